"""Networks of every layer kind, same bits: for any threads, chunks, capacity, scratch and twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.optimizers import SGD, Adam
from fastneuron.testing import (
    Case,
    batches,
    case_of,
    generated_norm_cases,
    loaded,
    run_steps,
    scalars_of,
    state_of,
)

STEPS = 6
GENERATED = generated_norm_cases(24)


def tower(rows: int, batch: int, width: int, dtype: str = "float32", **other: Any) -> Case:
    """Segments of rows between batch normalisations, and every other kind within them."""
    layers = [
        Dense(30, width, "relu"), BatchNorm(), Dropout(0.3), Dense(out_features=width + 9),
        LayerNorm(activation="gelu"), Dense(out_features=40, bias=True, trainable="bias"),
        BatchNorm(activation="tanh"), BatchNorm(trainable=False), Dense(out_features=10),
    ]  # fmt: skip
    return case_of(*layers, rows=rows, batch=batch, dtype=dtype, **other)


#: Generated ones; few rows, blocks of rows, and columns that are dealt out; both dtypes.
SOME = [
    *(GENERATED[i] for i in (0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 15, 20)),
    tower(60, 4, 50),
    tower(500, 200, 50, optimizer=Adam(0.01)),
    tower(700, 300, 30, loss="cross_entropy", dtype="float64"),
    tower(120, 40, 700, optimizer=SGD(0.01, momentum=0.9, clip_norm=0.1)),
    *generated_norm_cases(4, seed=9, dtype="float64"),
]
some = pytest.mark.parametrize("case", SOME, ids=lambda case: f"{case.spec.dtype}-{case.name}")


def make(backend: Backend, case: Case, **options: Any) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, **options), case)


def train(engine: Engine, case: Case, steps: int = STEPS, seed: int = 0) -> bytes:
    """Losses, parameters, moments, statistics and outputs after some steps, as bytes."""
    order, bounds = batches(len(case.x), case.batch, steps, np.random.default_rng(seed))
    losses = run_steps(engine, case, order, bounds, scalars_of(case, steps, seed=seed))
    return losses.tobytes() + state_of(engine) + engine.forward(case.x).tobytes()


def foreign(engine: Engine, case: Case) -> bytes:
    """What gradients() finds, and a step by forward_keep and update: its output, dx and state."""
    scalars = scalars_of(case, 1, seed=5)
    x, y = case.x[: case.batch], case.y[: case.batch]
    found = repr(engine.gradients(x, y, None, scalars)).encode()
    out = engine.forward_keep(x, scalars)
    dout = np.ascontiguousarray(out[::-1])
    dx, outcome = engine.update(dout, scalars[0])
    assert outcome.status == Status.OK
    return found + out.tobytes() + dx.tobytes() + state_of(engine)


@some
def test_thread_counts(blocked: Backend, case: Case) -> None:
    engine = make(blocked, case, n_threads=1, batch_size=case.batch)
    want = train(engine, case), foreign(engine, case)
    for n_threads in (2, 3, 4, 5, 6, 7, 8, None):
        engine = make(blocked, case, n_threads=n_threads, batch_size=case.batch)
        got = train(engine, case), foreign(engine, case)
        assert got == want, f"{n_threads} threads"


@some
def test_capacities_chunks_and_what_lay_in_scratch(blocked: Backend, case: Case) -> None:
    engine = make(blocked, case, batch_size=case.batch)
    want = train(engine, case), foreign(engine, case)
    for capacity in (1, 400):
        engine = make(blocked, case, batch_size=capacity)
        assert (train(engine, case), foreign(engine, case)) == want, f"capacity {capacity}"
    order, bounds = batches(len(case.x), case.batch, STEPS, np.random.default_rng(0))
    scalars = scalars_of(case, STEPS)
    single = make(blocked, case)
    losses = [
        run_steps(single, case, order, bounds[s : s + 2], scalars[s : s + 1]) for s in range(STEPS)
    ]
    got = np.concatenate(losses).tobytes() + state_of(single) + single.forward(case.x).tobytes()
    assert (got, foreign(single, case)) == want, "step by step"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_poisoned_scratch(blocked: Backend, value: float) -> None:
    """What a step keeps for the next thing it does is never read before it is written."""
    for case in SOME:
        clean, dirty = (make(blocked, case, batch_size=case.batch + 9) for _ in range(2))
        poison: Callable[[float], None] = dirty.poison  # type: ignore[attr-defined]
        for seed in range(2):
            poison(value)
            assert train(dirty, case, seed=seed) == train(clean, case, seed=seed), case.name
        poison(value)
        assert foreign(dirty, case) == foreign(clean, case), case.name


@some
def test_rows_of_inference_do_not_know_their_batch(blocked: Backend, case: Case) -> None:
    """By running statistics rows never meet, whatever their companions are."""
    engine = make(blocked, case)
    want, n = engine.forward(case.x), len(case.x)
    rows = np.random.default_rng(3).integers(0, n, 2 * n + 1)
    for n_threads in (1, 3):
        other = make(blocked, case, n_threads=n_threads)
        np.testing.assert_array_equal(other.forward(case.x[rows]), want[rows])
        np.testing.assert_array_equal(other.forward(case.x[:1])[0], want[0])
        x = case.x.copy()
        x[::2] = np.nan
        np.testing.assert_array_equal(other.forward(x)[1::2], want[1::2])


@some
def test_twins_agree(twins: tuple[Backend, Backend], case: Case) -> None:
    """Numba's engine and the one in C: the same operations in the same order."""
    found = []
    for backend in twins:
        engine = make(backend, case, n_threads=2, batch_size=case.batch)
        found.append((train(engine, case), foreign(engine, case)))
    assert found[0] == found[1]


def test_batches_that_grow(blocked: Backend) -> None:
    """An engine made for one row takes any batch; statistics and parameters are kept meanwhile."""
    case = tower(130, 1, 40)
    sizes = [2, 3, 17, 1, 40, 9, 64]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    order = np.random.default_rng(0).integers(0, 130, bounds[-1])
    scalars = scalars_of(case, len(sizes))
    small, large = make(blocked, case, batch_size=1), make(blocked, case, batch_size=64)
    want = run_steps(large, case, order, bounds, scalars)
    got = [
        run_steps(small, case, order, bounds[s : s + 2], scalars[s : s + 1])[0]
        for s in range(len(sizes))
    ]
    np.testing.assert_array_equal(got, want)
    assert state_of(small) == state_of(large)


def test_statistics_resume_to_the_bit(blocked: Backend) -> None:
    case = tower(130, 32, 40, optimizer=Adam(0.01))
    order, bounds = batches(130, 32, 8, np.random.default_rng(3))
    scalars = scalars_of(case, 8)
    through, first = make(blocked, case), make(blocked, case)
    run_steps(through, case, order, bounds, scalars)
    run_steps(first, case, order, bounds[:5], scalars[:4])
    second = blocked.engine(case.spec, case.loss, case.optimizer)
    second.load(first.export())
    second.load_moments(first.export_moments())
    second.load_statistics(first.export_statistics())
    run_steps(second, case, order, bounds[4:], scalars[4:])
    assert state_of(second) == state_of(through)
