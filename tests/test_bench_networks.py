"""Suites of whole networks: every kind of layer is timed, and checked inside a bound that tells."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron import folding
from fastneuron.bench import running
from fastneuron.bench.networks import LAYERED, steps
from fastneuron.bench.suites import workloads
from fastneuron.bench.workloads import Workload
from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.reference import ReferenceEngine, dropout, norms
from fastneuron.kernels.reference import engine as engine_module

KINDS = {*(kind for kinds in LAYERED.values() for kind in kinds), "folded"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS", (0.002, 0.002))
    monkeypatch.setattr(running, "ROUNDS", (3, 2))


def kind_of(workload: Workload) -> str:
    last = workload.shape.split()[-1]
    return last if last in KINDS else ""


def found(label: str) -> Workload:
    (one,) = (w for suite in ("steps", "inference") for w in workloads(suite) if str(w) == label)
    return one


@pytest.mark.parametrize(
    "workload",
    [w for suite in ("steps", "inference") for w in workloads(suite) if kind_of(w)],
    ids=str,
)
def test_a_workload_of_each_kind_is_right_and_can_be_timed(workload: Workload) -> None:
    prepare = workload.build()
    for name in workload.backends:
        try:
            prepared = prepare(name)
        except BackendUnavailable:
            continue
        assert 0 <= prepared.error_over_bound <= 1
        prepared.work(2)


@pytest.mark.parametrize("workload", [w for w in steps() if w.flop < 1e10], ids=str)
def test_bounds_of_a_step_say_something(workload: Workload) -> None:
    """Below a quarter of the root mean square for most entries of a gradient; never endless."""
    problem: Any = workload.build().__self__  # type: ignore[attr-defined]
    for pair in problem.want.gradients:
        for bounded in pair:
            if bounded is not None and bounded.value.any():
                size = np.sqrt(np.square(bounded.value).mean())
                assert np.median(bounded.bound) < 0.25 * size
    for parameters in (problem.updated, *problem.updated_moments):
        for pair in parameters:
            for bounded in pair:
                assert bounded is None or np.isfinite(bounded.bound).all()


@pytest.mark.parametrize(
    ("label", "flop", "words"),
    [
        # Three products a weight, two in the first layer, whose inputs need no deltas; parameters
        # are read twice and updated with two moments.
        ("step 20-64-64-2 b32 adam layer_norm f32 bias", 2 * 32 * 15232, 5890 * 8 + 640),
        # Dense biases are left out, running statistics updated.
        ("step 20-64-64-2 b32 adam batch_norm f32 bias", 2 * 32 * 15232, 5762 * 8 + 512 + 640),
        ("step 20-64-64-2 b32 adam dropout0.1 f32 bias", 2 * 32 * 15232, 5634 * 8 + 640),
        # The first layer is only gone through, forward; deltas end behind the second.
        (
            "step 784-512-512-10 b256 adam frozen1 f32 bias",
            2 * 256 * (784 * 512 + 2 * 512 * 512 + 3 * 5120),
            (785 * 512) + (513 * 512 + 5130) * 8 + 256 * 784,
        ),
    ],
)
def test_work_is_what_the_mathematics_needs(label: str, flop: float, words: int) -> None:
    workload = found(label)
    assert workload.flop == flop
    assert workload.nbytes == 4 * words


def changed(name: str, function: Callable[..., Any]) -> tuple[Any, str, Any]:
    module = dropout if hasattr(dropout, name) else norms
    twin = SimpleNamespace(**{**vars(module), name: function})
    return engine_module, module.__name__.split(".")[-1], twin


def larger(x: Any, epsilon: float, axis: int) -> Any:
    """A normalised number is a thousandth too large."""
    mean, variance, inverse = norms.moments(x, epsilon, axis)
    return mean, variance, inverse * inverse.dtype.type(1.001)


def rolled(x: Any, mask: Any, rate: float) -> Any:
    return dropout.dropout(x, np.roll(mask, 1, axis=0), rate)


def statistics_that_stand_still(old: Any, *rest: Any) -> Any:
    return old


def trained_all(engine: Any, parameters: Any) -> Any:
    return [(array, False) for pair in parameters for array in pair if array is not None]


def folding_with(mean: float, variance: float) -> tuple[Any, str, Any]:
    """Statistics are folded in that are so many times what they should be."""
    right = folding._affine

    def affine(layer: Any, weight: Any, bias: Any, moments: Any) -> Any:
        return right(layer, weight, bias, (mean * moments[0], variance * moments[1]))

    return folding, "_affine", affine


SMALL, WIDE = "step 20-64-64-2 b32 adam {} f32 bias", "step 784-512-512-10 b256 adam {} f32 bias"
ONE_ROW = "forward 784-512-512-10 1 row folded f32 bias"
FAULTS: dict[str, tuple[str, tuple[Any, str, Any]]] = {
    "numbers of a batch too large": (SMALL.format("batch_norm"), changed("moments", larger)),
    "numbers of a wide batch too large": (WIDE.format("batch_norm"), changed("moments", larger)),
    "numbers of a row too large": (SMALL.format("layer_norm"), changed("moments", larger)),
    "running statistics stand still": (
        SMALL.format("batch_norm"),
        changed("moved_statistics", statistics_that_stand_still),
    ),
    "mask shifted by one row": (SMALL.format("dropout0.1"), changed("dropout", rolled)),
    "mask shifted in a wide layer": (WIDE.format("dropout0.1"), changed("dropout", rolled)),
    "frozen layer trained": (WIDE.format("frozen1"), (ReferenceEngine, "_trained", trained_all)),
    "folded without its mean": (ONE_ROW, folding_with(0, 1)),
    "folded variance a hundredth too large": (ONE_ROW, folding_with(1, 1.01)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_has_no_time(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    label, plant = FAULTS[fault]
    options: Any = {"names": ["numpy"], "listed": [found(label)], "passes": 1}
    assert [row.status for row in running.run(**options).rows] == ["ok"]
    monkeypatch.setattr(*plant)
    (row,) = running.run(**options).rows
    assert row.status == "wrong", fault
    assert "outside the bound" in row.reason
    assert row.samples == ()
