"""The slots of the two compiled backends: the same operations, the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.backends import Backend
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.testing import draw_layer, draw_targets, ragged

DTYPES = ("float32", "float64")
Pair = tuple[Backend, Backend]


def assert_same_bits(got: Any, want: Any, what: str) -> None:
    """Equal numbers with equal signs of zero; which NaN stands for NaN is the compiler's."""
    assert (got is None) == (want is None), what
    if got is not None:
        np.testing.assert_array_equal(got, want, what)
        there = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[there]), np.signbit(want[there]), what)


def agree(twins: Pair, slot: str, what: str, call: Callable[[Any], Any]) -> None:
    """Compare what `call` returns, one array or several, when it is given each backend's slot."""
    want, got = (call(backend.slots[slot]) for backend in twins)
    if isinstance(want, np.ndarray):
        want, got = (want,), (got,)
    for i, (one, other) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(one, other, f"{slot} {what}, array {i}")


def shapes() -> Iterator[tuple[int, int, int]]:
    for columns in sorted({*ragged(16), *ragged(32)}):
        for rows, inputs in ((1, 1), (2, 33), (8, 16), (9, 7), (17, 300)):
            yield rows, inputs, columns


#: Every sign and exponent and the special numbers among them.
PATTERNS = {
    "float32": np.arange(0, 2**32, 65537, dtype=np.uint64).astype(np.uint32).view(np.float32),
    "float64": (np.arange(0, 2**16, dtype=np.uint64) << 48 | 0x5A5A5A5A5A5A).view(np.float64),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_numba_and_cython_agree_on_activations(twins: Pair, name: str, dtype: str) -> None:
    z = PATTERNS[dtype]
    z = z[: len(z) // 257 * 257].reshape(-1, 257)
    agree(twins, "bias_act_forward", name, lambda slot: slot(z, None, name))
    finite = np.where(np.isfinite(z), z, 1)
    b = np.linspace(-2, 2, z.shape[1], dtype=dtype)
    agree(twins, "bias_act_forward", f"{name} with bias", lambda slot: slot(finite, b, name))
    da = np.roll(z, 1)
    with np.errstate(all="ignore"):
        agree(twins, "act_bias_backward", name, lambda slot: slot(da, z, name))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numba_and_cython_agree_on_products(twins: Pair, dtype: str) -> None:
    names = list(ACTIVATIONS)
    for i, (rows, inputs, columns) in enumerate(shapes()):
        name, what = names[i % len(names)], f"{rows}x{inputs}x{columns}"
        x, w, b = draw_layer(i, rows, inputs, columns, dtype)
        bias = b if i % 2 else None
        z = x @ w
        dy = np.roll(z, 1)
        agree(
            twins, "dense_forward", what,
            lambda slot, x=x, w=w, bias=bias, name=name: slot(x, w, bias, name),
        )  # fmt: skip
        agree(
            twins, "dense_backward", what,
            lambda slot, x=x, w=w, z=z, dy=dy, name=name, i=i: slot(dy, x, w, z, name, bool(i % 3)),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_numba_and_cython_agree_on_losses(twins: Pair, name: str, dtype: str) -> None:
    loss, rng = LOSSES[name], np.random.default_rng(1)
    for rows, _inputs, columns in shapes():
        out = (rng.normal(size=(rows, columns)) * 10 ** rng.uniform(-3, 1)).astype(dtype)
        y = draw_targets(loss, rng, rows, columns, dtype)
        for weight in (None, rng.uniform(0, 2, rows).astype(dtype)):
            agree(
                twins, loss.slot, f"{rows}x{columns}",
                lambda slot, out=out, y=y, weight=weight: slot(out, y, weight),
            )  # fmt: skip


OPTIMIZERS: list[Optimizer] = [
    SGD(0.1, weight_decay=0.01),
    SGD(0.1, momentum=0.9, weight_decay=0.01),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01, weight_decay=0.02),
    AdamW(0.01),
    RMSprop(0.01, weight_decay=0.01),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__ + one.slot)
def test_numba_and_cython_agree_on_updates(twins: Pair, optimizer: Optimizer, dtype: str) -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 15, 16, 17, 33, 1000):
        for step, clip in ((0, 1.0), (10, 0.25)):
            scalars = optimizer.scalars(step, np.full(1, 0.1))[0]
            drawn = rng.normal(size=(4, size)).astype(dtype)
            drawn[1, ::7] = 0

            def call(
                slot: Any, drawn: Any = drawn, scalars: Any = scalars, clip: float = clip
            ) -> Any:
                p, g, m, v = drawn.copy()
                v = np.abs(v)
                slot(p, g, (m, v)[: optimizer.n_moments], scalars, clip)
                return p, m, v

            agree(twins, optimizer.slot, f"{size} at step {step}", call)
