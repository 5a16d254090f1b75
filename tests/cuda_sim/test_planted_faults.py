"""What layer 1 must find: a bias or a row that is dropped, a tail that is one off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import test_columns
import test_fused
import test_products
from planting import planted_module

from fastneuron.kernels.numba_cuda import fused as fused_room

KERNELS = "fastneuron.kernels.numba_cuda"


@dataclass(frozen=True)
class Fault:
    """A fault in a room of the kernels, and the test that must fail for it.

    names: what the tests call of the room, by the room's name or by these: all are exchanged.
    """

    room: str
    old: str
    new: str
    tests: Any
    names: tuple[str, ...]
    check: Callable[[Any], None]
    which: int = 0


def products(device: Any) -> None:
    test_products.test_whole_numbers_are_exact(device, test_products.TINY, 9, 5, 7)


def gate(device: Any) -> None:
    test_columns.test_gate_and_both_stages_of_its_sums(device, 11, 3, "tanh")


def fused(device: Any) -> None:
    test_fused.test_whole_numbers_are_exact_for_any_rows_of_a_block(device)


def ragged_fused(device: Any) -> None:
    test_fused.test_a_step_is_within_its_bounds(device, "ragged", False)


_PRODUCTS = test_products, ("forward", "data_gradient", "weight_gradient"), products
_FUSED = test_fused, ("fused_step", "fused_forward")
_GATE = test_columns, ("gate", "sum_partials"), gate

FAULTS = {
    "forward without its bias": Fault("products", "start = b[at]", "start = zero", *_PRODUCTS),
    "a bias gradient without its last threads": Fault(
        "products", "for k in range(down)", "for k in range(down - 1)", *_PRODUCTS
    ),
    "the last row of a product not written": Fault(
        "products", "if at_row < batch:", "if at_row < batch - 1:", *_PRODUCTS
    ),
    "a row past the last written": Fault(
        "products", "if at_row < batch:", "if at_row <= batch:", *_PRODUCTS
    ),
    "the last column of a weight gradient not written": Fault(
        "products", "if at < outputs:", "if at < outputs - 1:", *_PRODUCTS, which=1
    ),
    "a slice one row short": Fault(
        "products", "min(first + slice_rows, batch)", "min(first + slice_rows, batch - 1)",
        *_PRODUCTS,
    ),
    "a row of the bias gradient left out": Fault(
        "columns", "min(first + group, batch)", "min(first + group, batch - 1)", *_GATE
    ),
    "a part of the bias gradient left out": Fault(
        "columns", "range(j, groups, down)", "range(j, groups - 1, down)", *_GATE
    ),
    "the last of a block's sums left out": Fault(
        "columns", "for k in range(1, down)", "for k in range(1, down - 1)", *_GATE
    ),
    "fused forward without its bias": Fault(
        "fused_layers", "first = p[start + bias_at + column + j]", "first = zero", *_FUSED, fused
    ),
    "rows of the fused bias gradient left out": Fault(
        "fused_layers", "total += four[k]", "total += four[k] if row else zero", *_FUSED, fused
    ),
    "the last input of a fused layer left out": Fault(
        "fused_layers", "for k in range(inputs):", "for k in range(inputs - 1):", *_FUSED, fused
    ),
    "rows past the batch in a fused layer": Fault(
        "fused_layers", "inside = count - row if", "inside = count - row + 1 if", *_FUSED,
        ragged_fused,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    fault.check(device)
    room: Any = planted_module(f"{KERNELS}.{fault.room}", fault.old, fault.new, fault.which)
    if fault.room == "fused_layers":  # of which `fused` makes kernels, anew
        for each in room.__all__:
            monkeypatch.setattr(fused_room, each, getattr(room, each))
        room = SimpleNamespace(
            **{each: getattr(fused_room, each).__wrapped__ for each in fault.names}
        )
    caller = getattr(fault.tests, fault.room, fault.tests)
    for each in fault.names:
        monkeypatch.setattr(caller, each, getattr(room, each))
    with pytest.raises((AssertionError, IndexError)):
        fault.check(device)
