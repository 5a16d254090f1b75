"""Steps of an engine run and compared: with the bounds, and with each other to the bit."""

from __future__ import annotations

import numpy as np

from fastneuron.kernels.contract import Engine, Parameters, Statistics, Status
from fastneuron.keys import StepKeys
from fastneuron.schedules import Horizon
from fastneuron.testing.bounds import Array, assert_within
from fastneuron.testing.generate import Case
from fastneuron.testing.steps import BoundedStatistics, training_step
from fastneuron.testing.update_bounds import BoundedParameters, updated

__all__ = [
    "assert_parameters",
    "assert_statistics",
    "check_step",
    "flat",
    "run_steps",
    "scalars_of",
    "state_of",
]


def scalars_of(case: Case, steps: int, first: int = 0, seed: int = 0) -> Array:
    """Return the scalars of the steps from `first` on, with the keys of that seed."""
    rates = case.optimizer.schedule.rates(first, steps, Horizon(first + steps, first + steps))
    scalars = case.optimizer.scalars(first, rates)
    StepKeys(seed, 0).fill(scalars, first)
    return scalars


def run_steps(engine: Engine, case: Case, order: Array, bounds: Array, scalars: Array) -> Array:
    """Train on batches of the case, which must succeed, and return their losses."""
    losses = np.full(len(bounds) - 1, np.nan)
    bounds = np.ascontiguousarray(bounds)
    outcome = engine.run(case.x, case.y, case.weight, order, bounds, scalars, losses)
    assert outcome.status == Status.OK, f"{case.name}: {outcome.status!r} at step {outcome.steps}"
    assert outcome.steps == len(losses)
    return losses


def flat(parameters: Parameters | Statistics) -> list[Array]:
    """Return the arrays that there are."""
    return [array for pair in parameters for array in pair or () if array is not None]


def state_of(engine: Engine) -> bytes:
    """Return parameters, moments and running statistics, to be compared to the bit."""
    arrays = [a for p in (engine.export(), *engine.export_moments()) for a in flat(p)]
    arrays += flat(engine.export_statistics())
    return b"".join(array.tobytes() for array in arrays)


def assert_parameters(got: Parameters, want: BoundedParameters, what: str) -> float:
    """Raise AssertionError where an array is out of its bound; return the worst ratio."""
    worst = 0.0
    for i, (pair, bounded) in enumerate(zip(got, want, strict=True)):
        for name, array, bound in zip(("weight", "bias"), pair, bounded, strict=True):
            assert (array is None) == (bound is None), f"{what}: {name} of layer {i}"
            if array is not None and bound is not None:
                worst = max(worst, assert_within(array, bound, f"{what}: {name} of layer {i}"))
    return worst


def assert_statistics(engine: Engine, want: BoundedStatistics, what: str) -> float:
    """Raise AssertionError where a running statistic is out of its bound; return the worst."""
    worst = 0.0
    for i, (pair, bounded) in enumerate(zip(engine.export_statistics(), want, strict=True)):
        assert (pair is None) == (bounded is None), f"{what}: layer {i}"
        for name, got, bound in zip(("mean", "variance"), pair or (), bounded or (), strict=False):
            place = f"{what}: running {name} of layer {i}"
            worst = max(worst, assert_within(got, bound, place))
    return worst


def check_step(engine: Engine, case: Case, rows: Array, scalars: Array, what: str) -> float:
    """Run one step and compare loss, parameters, moments and statistics with the bounds.

    Returns
    -------
    float
        The largest error over its bound.
    """
    before, moments = engine.export(), engine.export_moments()
    kept = engine.export_statistics()
    weight = None if case.weight is None else case.weight[rows]
    want = training_step(
        case.spec, case.loss, before, case.x[rows], case.y[rows], weight, kept, scalars
    )
    new, new_moments = updated(case.spec, case.optimizer, before, want.gradients, moments, scalars)
    bounds = np.array([0, len(rows)], np.int64)
    losses = run_steps(engine, case, rows, bounds, scalars[None])
    ratios = [
        assert_within(losses[0], want.loss, f"{what}: loss"),
        assert_parameters(engine.export(), new, what),
        assert_statistics(engine, want.statistics, what),
    ]
    for got, bounded in zip(engine.export_moments(), new_moments, strict=True):
        ratios.append(assert_parameters(got, bounded, f"{what}: moment"))
    return max(ratios)
