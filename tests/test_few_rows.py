"""Steps of few rows: same bits however steps are cut and mixed, inside the same bounds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels import columns as at
from fastneuron.kernels.contract import Engine, Parameters, Status
from fastneuron.kernels.layout import few_rows
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.spec import NetworkSpec
from fastneuron.testing import assert_within, generated_cases, loaded, training_step

DTYPES = ["float32", "float64"]
FEW = few_rows(0)
OPTIMIZERS: list[Optimizer] = [
    SGD(weight_decay=0.1),
    SGD(clip_norm=0.1),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
    Adam(weight_decay=0.1),
    AdamW(),
    RMSprop(),
]

SIZES = (40, 130, 70, 5)


def network(dtype: str) -> tuple[NetworkSpec, Parameters, Any, Any]:
    layers = [
        Dense(a, b, activation=f, bias=i != 1)
        for i, (a, b, f) in enumerate(
            zip(SIZES, SIZES[1:], ("tanh", "relu", "identity"), strict=False)
        )
    ]
    rng = np.random.default_rng(0)
    parameters: Parameters = [
        (
            (rng.standard_normal((a, b)) / np.sqrt(a)).astype(dtype),
            np.zeros(b, dtype) if layer.bias else None,
        )
        for layer, (a, b) in zip(layers, itertools.pairwise(SIZES), strict=True)
    ]
    x, y = rng.standard_normal((90, SIZES[0])), rng.standard_normal((90, SIZES[-1]))
    return NetworkSpec.chain(layers, dtype), parameters, x.astype(dtype), y.astype(dtype)


def engine_of(
    blocked: Backend, dtype: str, optimizer: Optimizer, n_threads: int, capacity: int
) -> Engine:
    spec, parameters, _x, _y = network(dtype)
    options = {"n_threads": n_threads, "batch_size": capacity}
    engine = blocked.engine(spec, LOSSES["mse"], optimizer, **options)
    engine.load(parameters)
    return engine


def state(engine: Engine) -> bytes:
    return b"".join(
        array.tobytes()
        for parameters in [engine.export(), *engine.export_moments()]
        for pair in parameters
        for array in pair
        if array is not None
    )


#: Rows of steps around the limit, in every order of few and many.
MIXED = (1, 3, 64, 2, 64, FEW, FEW + 1, FEW, 1, 30, 30, 1)


def trained(
    engine: Engine, optimizer: Optimizer, cuts: tuple[int, ...], meddling: bool = False
) -> bytes:
    """Do the steps of MIXED in chunks that end at `cuts`; `meddling` looks in between."""
    _spec, _parameters, x, y = network(engine.spec.dtype)
    order = np.random.default_rng(1).integers(0, len(x), sum(MIXED))
    bounds = np.concatenate([[0], np.cumsum(MIXED)]).astype(np.int64)
    scalars = optimizer.scalars(0, np.full(len(MIXED), 1e-2))
    losses = np.zeros(len(MIXED))
    for first, end in itertools.pairwise((0, *cuts, len(MIXED))):
        part = losses[first:end]
        outcome = engine.run(x, y, None, order, bounds[first : end + 1], scalars[first:end], part)
        assert outcome.status == Status.OK
        if meddling:
            engine.gradients(x[:50], y[:50], None)
            engine.forward_keep(x[:2])
    return losses.tobytes() + state(engine)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [SGD(), Adam(), SGD(clip_norm=0.1)], ids=lambda one: one.slot)
def test_few_and_many_rows_in_any_chunks(
    blocked: Backend, optimizer: Optimizer, dtype: str
) -> None:
    every = tuple(range(1, len(MIXED)))
    want = trained(engine_of(blocked, dtype, optimizer, 1, 64), optimizer, every)
    for n_threads, capacity, cuts in itertools.product((1, 3), (1, 300), ((), (2,), (1, 6, 9))):
        got = trained(engine_of(blocked, dtype, optimizer, n_threads, capacity), optimizer, cuts)
        assert got == want, (n_threads, capacity, cuts)
    got = trained(engine_of(blocked, dtype, optimizer, 2, 1), optimizer, every, meddling=True)
    assert got == want, "with gradients() and forward_keep() between"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__ + one.slot)
def test_numba_and_cython_agree_to_the_bit(
    twins: tuple[Backend, Backend], optimizer: Optimizer, dtype: str
) -> None:
    of_numba, of_cython = (
        trained(engine_of(each, dtype, optimizer, 2, 64), optimizer, (5,)) for each in twins
    )
    assert of_cython == of_numba


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 60])
@pytest.mark.parametrize("reload", [False, True])
def test_after_few_rows_an_engine_is_as_one_that_was_loaded(
    blocked: Backend, rows: int, reload: bool
) -> None:
    """Copies of weights that steps of few rows left behind are never used."""
    optimizer = SGD(0.1, momentum=0.9)
    _spec, parameters, x, y = network("float32")
    dout = np.random.default_rng(2).standard_normal((rows, SIZES[-1])).astype(np.float32)
    scalars = optimizer.scalars(0, np.full(3, 0.1))
    engine = engine_of(blocked, "float32", optimizer, 1, 3)
    engine.run(x, y, None, np.arange(6), np.array([0, 2, 3, 6]), scalars, np.zeros(3))
    if reload:
        engine.load(parameters)
    fresh = engine_of(blocked, "float32", optimizer, 1, 60)
    fresh.load(engine.export())
    fresh.load_moments(engine.export_moments())
    got, want = (repr(one.gradients(x[:rows], y[:rows], None)) for one in (engine, fresh))
    assert got == want
    for one in (engine, fresh):
        one.forward_keep(x[:rows])
    (got_dx, _), (want_dx, _) = (one.update(dout, scalars[0]) for one in (engine, fresh))
    np.testing.assert_array_equal(got_dx, want_dx)
    assert state(engine) == state(fresh)


CASES = [case for case in generated_cases(30) if len(case.spec.layers) > 1][:12]


@pytest.mark.parametrize("most", [FEW, 24])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_of_few_rows_keep_their_bounds(
    blocked: Backend, case: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at, "FEW_ROWS", ((0, most),))  # as for large networks
    engine = loaded(blocked.engine(case.spec, case.loss, case.optimizer, n_threads=1), case)
    for rows in range(1, FEW + 1) if most == FEW else (FEW + 1, 13, 24):
        kept = np.arange(rows) % len(case.x)
        x, y = case.x[kept], case.y[kept]
        weight = None if case.weight is None else case.weight[kept]
        want = training_step(case.spec, case.loss, case.parameters, x, y, weight)
        _loss, gradients = engine.gradients(x, y, weight)
        for i, (pair, bounded) in enumerate(zip(gradients, want.gradients, strict=True)):
            for array, bound in zip(pair, bounded, strict=True):
                if array is not None:
                    assert_within(array, bound, f"{rows} rows: layer {i}")


def test_the_limit_grows_with_the_parameters() -> None:
    limits = [few_rows(size) for size in (0, 1 << 10, 1 << 20, 1 << 24, 1 << 40)]
    assert limits == sorted(limits)
    assert limits[0] >= 1
    assert limits[0] == limits[1] < limits[2] < limits[3] == limits[4]


def test_a_loss_that_is_not_finite_changes_nothing(blocked: Backend) -> None:
    _spec, _parameters, x, y = network("float32")
    x[0, 7] = np.nan
    for rows in (1, FEW, FEW + 1):
        engine = engine_of(blocked, "float32", SGD(), 1, 8)
        before = state(engine)
        scalars = np.zeros((1, N_SCALARS))
        outcome = engine.run(x, y, None, np.arange(rows), np.array([0, rows]), scalars, np.zeros(1))
        assert outcome.status == Status.LOSS_NOT_FINITE
        assert state(engine) == before
