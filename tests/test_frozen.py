"""Frozen layers, weights and biases on every backend: what is not trained stays to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.testing import (
    Case,
    assert_within,
    case_of,
    check_step,
    flat,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
)

#: Each would move a frozen parameter if it were let: by decay, by shrinking, by old moments.
OPTIMIZERS: list[Optimizer] = [
    SGD(0.05, weight_decay=0.1, decay_bias=True),
    SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1, clip_norm=0.05),
    Adam(0.01, weight_decay=0.1),
    AdamW(0.01, weight_decay=0.5, decay_bias=True),
    RMSprop(0.01, weight_decay=0.1, decay_bias=True),
]
PARTS = [True, False, "weight", "bias"]


def engine_of(backend: Backend, case: Case, **options: Any) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, **options), case)


def trained(case: Case) -> list[bool]:
    """Of each parameter array that there is, whether steps change it."""
    return [
        trains
        for layer, pair in zip(case.spec.layers, case.parameters, strict=True)
        for trains, array in zip((layer.trains_weight, layer.trains_bias), pair, strict=True)
        if array is not None
    ]


def check(backend: Backend, case: Case, batch: int = 13) -> None:
    """Steps within their bounds; what is frozen keeps its bits, all else moves."""
    engine = engine_of(backend, case, batch_size=batch)
    scalars = scalars_of(case, 3)
    rows = np.arange(len(case.x))
    for step in range(3):
        check_step(engine, case, np.roll(rows, step)[:batch], scalars[step], f"step {step}")
    found = zip(flat(engine.export()), flat(case.parameters), trained(case), strict=True)
    for i, (got, before, trains) in enumerate(found):
        if not trains:
            np.testing.assert_array_equal(got, before, f"array {i}")
        elif got.size:
            assert (got != before).any(), f"array {i} stands still"
    _, gradients = engine.gradients(case.x[:batch], case.y[:batch], None, scalars[:1])
    for got, trains in zip(flat(gradients), trained(case), strict=True):
        if not trains:
            np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__ + o.slot)
@pytest.mark.parametrize("batch", [3, 33])
def test_optimizers_leave_it_alone(backend: Backend, optimizer: Optimizer, batch: int) -> None:
    """In few rows and in many, in one visit of a tile and in two."""
    layers = [
        Dense(20, 40, "tanh", trainable="weight"), BatchNorm(trainable="bias"),
        Dense(out_features=40, trainable="bias"), LayerNorm(trainable="weight"),
        Dense(out_features=30, trainable=False), BatchNorm(trainable=False),
        LayerNorm(trainable=False), Dense(out_features=9),
    ]  # fmt: skip
    check(backend, case_of(*layers, batch=batch, optimizer=optimizer), batch)


@pytest.mark.parametrize("second", PARTS)
@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("size", [5, 70])
def test_parts_of_dense_layers(backend: Backend, first: Any, second: Any, size: int) -> None:
    """All pairs of neighbours, narrow enough for slim layers and wide enough for many tiles."""
    layers = [Dense(4, size, "relu", trainable=first), Dense(size, 3, trainable=second)]
    case = case_of(*layers, rows=150, batch=140, optimizer=SGD(0.05, weight_decay=0.1))
    if first is False and second is False:
        engine = engine_of(backend, case)
        before = state_of(engine)
        run_steps(engine, case, np.arange(140), np.array([0, 70, 140]), scalars_of(case, 2))
        assert state_of(engine) == before
    else:
        check(backend, case, 140)


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(6, 5, trainable=False)],
        [Dense(6, 5, "tanh", trainable=False), Dropout(), LayerNorm(trainable=False)],
        [BatchNorm(6, trainable=False), Dense(out_features=40, trainable=False)],
        [Dropout(0.5, 6)],
        [Dropout(0.5, 6), Dropout(0.25)],
    ],
    ids=lambda layers: "-".join(layer.kind for layer in layers),
)
def test_nothing_to_train(backend: Backend, layers: list[Layer]) -> None:
    """Steps give losses and dL/dx all the same, and change nothing."""
    case = case_of(*layers, optimizer=AdamW(0.1, weight_decay=0.5, decay_bias=True))
    engine, scalars = engine_of(backend, case), scalars_of(case, 3)
    before = state_of(engine)
    losses = run_steps(engine, case, np.arange(39), np.array([0, 13, 26, 39]), scalars)
    assert len(set(losses.tolist())) == 3
    out = engine.forward_keep(case.x, scalars)
    key = scalars[0]
    want = training_step(
        case.spec, case.loss, case.parameters, case.x, case.y, None, case.statistics, key
    )
    assert_within(out, want.out, "output")
    dout = np.ascontiguousarray(case.loss.grad(want.out.value, case.y) / len(out), out.dtype)
    dx, outcome = engine.update(dout, key)
    assert outcome.status == Status.OK
    error = np.abs(dx - want.dx.value)
    assert (error <= want.dx.bound + 1e-6 * (1 + np.abs(want.dx.value))).all()
    assert np.abs(dx).max() > 0
    assert state_of(engine) == before


@pytest.mark.parametrize("batch", [2, 13, 140])
@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_deltas_stop_where_nothing_is_learnt(backend: Backend, frozen: int, batch: int) -> None:
    """The first layers frozen: `run` needs no deltas there, `update` gives dL/dx through them.

    The two leave the same parameters behind; a step of one after the other knows no stale copy.
    """
    layers: list[Layer] = [
        Dense(7, 40, "tanh", trainable=False), LayerNorm(trainable=False),
        Dense(out_features=33, activation="relu", trainable=False), BatchNorm(trainable=False),
        Dense(out_features=20), Dense(out_features=5),
    ]  # fmt: skip
    for i in range(frozen, 4):
        layers[i] = replace(layers[i], trainable=True)  # type: ignore[type-var]
    case = case_of(*layers, rows=150, batch=batch, optimizer=SGD(0.05, momentum=0.5))
    scalars, rows = scalars_of(case, 4), np.arange(batch)
    engine, twin = engine_of(backend, case), engine_of(backend, case)
    x, y = case.x[rows], case.y[rows]
    for step in range(4):
        before, statistics = engine.export(), engine.export_statistics()
        want = training_step(case.spec, case.loss, before, x, y, None, statistics, scalars[step])
        run_steps(engine, case, rows, np.array([0, batch]), scalars[step : step + 1])
        if step % 2:  # the twin goes by turns: a foreign loop, then a step of `run`
            run_steps(twin, case, rows, np.array([0, batch]), scalars[step : step + 1])
        else:
            out = twin.forward_keep(x, scalars[step : step + 1])
            _, dout = backend.slots["mse"](out, y, None)
            dx, _ = twin.update(np.ascontiguousarray(dout), scalars[step])
            assert_within(dx, want.dx, "dx")
            assert np.abs(dx).max() > 0
        if backend.name == "numpy":  # its BLAS may sum in another order
            for got, other in zip(flat(engine.export()), flat(twin.export()), strict=True):
                np.testing.assert_allclose(got, other, rtol=1e-4, atol=1e-5)
        else:
            assert state_of(engine) == state_of(twin), f"step {step}"


@pytest.mark.parametrize("trainable", [False, "bias", "weight"])
@pytest.mark.parametrize("batch", [3, 70, 140])
def test_narrow_layers_under_a_frozen_one(backend: Backend, batch: int, trainable: Any) -> None:
    """Layers that work on columns of rows, by `run` and by a foreign loop in turns."""
    layers = [
        Dense(3, 4, "tanh", trainable=False), Dense(4, 4, "gelu", trainable=trainable),
        Dense(4, 3, "relu", trainable=False), Dense(3, 2),
    ]  # fmt: skip
    case = case_of(*layers, rows=150, batch=batch, optimizer=SGD(0.05, momentum=0.5))
    check(backend, case, batch)
    engine, scalars = engine_of(backend, case), scalars_of(case, 4)
    x, y = case.x[:batch], case.y[:batch]
    for step in range(4):
        want = training_step(case.spec, case.loss, engine.export(), x, y)
        if step % 2:
            check_step(engine, case, np.arange(batch), scalars[step], f"step {step}")
        else:
            out = engine.forward_keep(x)
            _, dout = backend.slots["mse"](out, y, None)
            dx, _ = engine.update(np.ascontiguousarray(dout), scalars[step])
            assert_within(dx, want.dx, "dx")


def test_a_frozen_batch_norm_goes_by_its_statistics(backend: Backend) -> None:
    """In training too: rows never meet, one row is enough, and nothing moves."""
    case = case_of(
        Dense(4, 9), BatchNorm(trainable=False, activation="relu"), Dense(out_features=2)
    )
    engine, scalars = engine_of(backend, case), scalars_of(case, 1)
    want = engine.forward(case.x)
    if backend.name != "numpy":
        np.testing.assert_array_equal(engine.forward_keep(case.x), want)
        np.testing.assert_array_equal(engine.forward_keep(case.x[3:4])[0], want[3])
    np.testing.assert_allclose(engine.forward_keep(case.x[:5]), want[:5], rtol=1e-5, atol=1e-6)
    check_step(engine, case, np.array([7]), scalars[0], "one row")
    got, before = engine.export_statistics()[1], (case.statistics or [None])[1]
    assert got is not None
    assert before is not None
    for one, other in zip(got, before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_half_frozen_batch_norm_goes_by_the_batch(backend: Backend, part: str) -> None:
    case = case_of(Dense(4, 9), BatchNorm(trainable=part), Dense(out_features=2))
    engine = engine_of(backend, case)
    check(backend, case)
    run_steps(engine, case, np.arange(13), np.array([0, 13]), scalars_of(case, 1))
    got, before = engine.export_statistics()[1], (case.statistics or [None])[1]
    assert got is not None
    assert before is not None
    assert all((one != other).all() for one, other in zip(got, before, strict=True))


@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_a_clipped_norm_counts_only_what_is_trained(backend: Backend, kind: Any) -> None:
    """The clipped step is that long, whatever gradient a frozen part would have."""
    layers = [Dense(6, 30), kind(trainable="bias"), Dense(out_features=5, trainable=False)]
    case = case_of(*layers, optimizer=SGD(1.0, clip_norm=0.125))
    engine = engine_of(backend, case)
    rows = np.arange(13)
    _, gradients = engine.gradients(case.x[rows], case.y[rows], None)
    norm = np.sqrt(sum(np.square(g, dtype=float).sum() for g in flat(gradients)))
    assert norm > 0.125
    run_steps(engine, case, rows, np.array([0, 13]), scalars_of(case, 1))
    moved = zip(flat(engine.export()), flat(case.parameters), strict=True)
    length = np.sqrt(sum(np.square(a.astype(float) - b).sum() for a, b in moved))
    np.testing.assert_allclose(length, 0.125, rtol=1e-4)
