"""Normalisations, dropout and frozen parts in each engine against the bounds of the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, SGD, Adam
from fastneuron.testing import (
    Case,
    StepBounds,
    assert_parameters,
    assert_statistics,
    assert_within,
    backward,
    batches,
    case_of,
    check_step,
    exact,
    flat,
    forward,
    generated_norm_cases,
    integer_norm_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
    updated,
)
from fastneuron.testing.bounds import Precision
from fastneuron.testing.generate import OPTIMIZERS

CASES = generated_norm_cases(24)
DOUBLE = generated_norm_cases(12, seed=1, dtype="float64")


ALL = {f"{case.spec.dtype}-{case.name}": case for case in [*CASES, *DOUBLE]}


@cache
def first_batch(name: str, with_key: bool = True) -> tuple[StepBounds, Any]:
    """What a network's first batch gives, forward too: the same for every backend."""
    case = ALL[name]
    x, y = case.x[: case.batch], case.y[: case.batch]
    weight = None if case.weight is None else case.weight[: case.batch]
    key = scalars_of(case, 1)[0] if with_key else np.zeros(N_SCALARS)
    net = case.spec, case.parameters
    passed = forward(*net, x, Precision.of(case.spec.dtype), case.statistics, key)
    step = training_step(case.spec, case.loss, case.parameters, x, y, weight, case.statistics, key)
    return step, passed


def engine_of(backend: Backend, case: Case, **options: Any) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, **options), case)


@pytest.mark.parametrize("name", ALL)
def test_generated_network_through_steps(backend: Backend, name: str) -> None:
    """Steps are compared one by one: whole batches, a partial one, and one after some in a call."""
    case, steps = ALL[name], 8
    engine = engine_of(backend, case, batch_size=case.batch)
    order, bounds = batches(len(case.x), case.batch, steps, np.random.default_rng(1))
    scalars = scalars_of(case, steps)
    for step in (0, 2, 7):
        rows = order[bounds[step] : bounds[step + 1]]
        check_step(engine, case, rows, scalars[step], f"step {step}")
        stop = {0: 2, 2: 7, 7: 8}[step]
        if stop > step + 1:
            run_steps(engine, case, order, bounds[step + 1 : stop + 1], scalars[step + 1 : stop])


@pytest.mark.parametrize("name", ALL)
def test_gradients_and_inference(backend: Backend, name: str) -> None:
    case = ALL[name]
    engine, scalars = engine_of(backend, case), scalars_of(case, 1)
    weight = None if case.weight is None else case.weight[: case.batch]
    x, y = case.x[: case.batch], case.y[: case.batch]
    before = state_of(engine)
    for given in (scalars, None):
        want, _ = first_batch(name, given is not None)
        loss, gradients = engine.gradients(x, y, weight, given)
        assert_within(loss, want.loss, "loss of gradients()")
        assert_parameters(gradients, want.gradients, "gradient")
        assert_within(engine.forward_keep(x, given), want.out, "output in training")
    p = Precision.of(case.spec.dtype)
    _, activations = forward(case.spec, case.parameters, x, p, case.statistics)
    assert_within(engine.forward(x), activations[-1], "output in inference")
    assert engine.forward(x[:0]).shape == (0, case.spec.out_features)
    assert state_of(engine) == before


@pytest.mark.parametrize("name", ALL)
def test_forward_keep_and_update(backend: Backend, name: str) -> None:
    """A foreign loop gets dL/dx, through whatever is frozen, and moves the statistics too."""
    case = ALL[name]
    engine, p = engine_of(backend, case), Precision.of(case.spec.dtype)
    scalars = scalars_of(case, 1)
    x, y = case.x[: case.batch], case.y[: case.batch]
    want, passed = first_batch(name)
    out = engine.forward_keep(x, scalars)
    _, dout = backend.slots[case.loss.slot](out, y, None)
    dout = np.ascontiguousarray(dout)
    dx, outcome = engine.update(dout, scalars[0])
    assert (outcome.status, outcome.steps) == (Status.OK, 1)
    want_dx, gradients = backward(
        case.spec, case.parameters, *passed, exact(dout), p, case.statistics, scalars[0]
    )
    assert_within(dx, want_dx, "dx")
    zeros = engine_of(backend, case).export_moments()
    new, _ = updated(case.spec, case.optimizer, case.parameters, gradients, zeros, scalars[0])
    assert_parameters(engine.export(), new, "update")
    assert_statistics(engine, want.statistics, "update")


def test_generated_networks_cover_the_tables() -> None:
    layers = [layer for case in ALL.values() for layer in case.spec.layers]
    normal = [layer for layer in layers if isinstance(layer, (BatchNorm, LayerNorm))]
    assert {layer.activation for layer in normal} == set(ACTIVATIONS)
    assert {case.loss.name for case in CASES} == set(LOSSES)
    assert {case.optimizer for case in CASES} == set(OPTIMIZERS)
    for kind in (Dense, LayerNorm, BatchNorm):
        trained = {layer.trainable for layer in layers if isinstance(layer, kind)}
        assert trained == {True, False, "weight", "bias"}, kind
    kinds = {Dense, LayerNorm, BatchNorm, Dropout}
    assert {type(case.spec.layers[0]) for case in ALL.values()} == kinds
    assert {type(case.spec.layers[-1]) for case in ALL.values()} == kinds
    assert {1, 300} <= {size for case in CASES for size in case.spec.sizes}
    assert {2, 300} <= {case.batch for case in CASES}


def test_bounds_of_generated_networks_mean_something() -> None:
    """In float64 each gradient's bound is far below it; in float32 most are below a tenth."""
    for cases, share, least in ((CASES, 0.1, 0.6), (DOUBLE, 1e-6, 0.9)):
        ratios = []
        for case in cases:
            want = training_step(
                case.spec, case.loss, case.parameters, case.x, case.y, case.weight, case.statistics
            )
            arrays = [g for pair in want.gradients for g in pair if g is not None]
            size = sum(float(np.square(g.value).sum()) for g in arrays)
            error = sum(float(np.square(g.bound).sum()) for g in arrays)
            ratios.append((error / size) ** 0.5 if size else 0.0)
        assert np.mean(np.array(ratios) < share) >= least, sorted(ratios)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["batch", "layer", "frozen"])
def test_integer_step_is_exact(backend: Backend, kind: str, dtype: str, bias: bool) -> None:
    """Not a bit may be wrong: mean over a wrong count, a bias left out or twice, a shifted mask."""
    for seed in range(4):
        case = integer_norm_case(kind, seed, dtype, bias)
        scalars = scalars_of(case, 1, seed=seed)
        engine = engine_of(backend, case, batch_size=case.batch)
        want = training_step(
            case.spec, case.loss, case.parameters, case.x, case.y, None, case.statistics, scalars[0]
        )
        loss, gradients = engine.gradients(case.x, case.y, None, scalars)
        assert loss == want.loss.value
        run_steps(engine, case, np.arange(16), np.array([0, 16]), scalars)
        new = engine.export()
        for i, (wanted, before) in enumerate(zip(want.gradients, case.parameters, strict=True)):
            for got_g, got_p, g, p in zip(gradients[i], new[i], wanted, before, strict=True):
                if g is not None:
                    np.testing.assert_array_equal(got_g, g.value, f"gradient of layer {i}")
                    np.testing.assert_array_equal(got_p, p - 0.125 * g.value, f"layer {i}")
        for got, pair in zip(engine.export_statistics(), want.statistics, strict=True):
            if pair is not None:
                assert got is not None
                np.testing.assert_array_equal(got[0], pair[0].value)
        other = engine_of(backend, case)
        np.testing.assert_array_equal(other.forward_keep(case.x, scalars), want.out.value)
        dout = np.ascontiguousarray(2 / 4 / 16 * (want.out.value - case.y), dtype)
        dx, _ = other.update(dout, scalars[0])
        np.testing.assert_array_equal(dx, want.dx.value)
        if bias and kind == "batch":  # the bias that the batch's mean takes away
            np.testing.assert_array_equal(gradients[0][1], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics_of_two_rows_are_exact(backend: Backend, dtype: str) -> None:
    """Of 2 rows the corrected variance is twice the batch's: (1 - (-1))^2 / 2 = 2."""
    case = case_of(BatchNorm(3, momentum=0.25), Dense(out_features=2), rows=2, batch=2, dtype=dtype)
    x = np.array([[3, 10, -4], [5, 4, -4]], dtype)
    case = replace(case, x=x, statistics=[(np.ones(3, dtype), np.full(3, 2, dtype)), None])
    engine = engine_of(backend, case)
    run_steps(engine, case, np.arange(2), np.array([0, 2]), scalars_of(case, 1))
    pair = engine.export_statistics()[0]
    assert pair is not None
    np.testing.assert_array_equal(pair[0], [1 + 0.75, 1 + 1.5, 1 - 1.25])
    np.testing.assert_array_equal(pair[1], [2, 2 + 4, 1.5])


def test_batches_of_one_row(backend: Backend) -> None:
    """Its mean is the row itself: the output is the bias, no delta goes on, nothing is kept."""
    case = case_of(Dense(5, 7), BatchNorm(), Dense(out_features=3), batch=1)
    engine = engine_of(backend, case)
    out = engine.forward_keep(case.x[:1])
    _, (_, beta), (w, b) = case.parameters
    want = training_step(
        case.spec, case.loss, case.parameters, case.x[:1], case.y[:1], None, case.statistics
    )
    assert_within(out, want.out, "output")
    assert beta is not None
    assert b is not None
    np.testing.assert_allclose(out[0], beta @ w + b, rtol=1e-5, atol=1e-6)
    _, gradients = engine.gradients(case.x[:1], case.y[:1], None)
    np.testing.assert_array_equal(gradients[0][0], 0)
    np.testing.assert_array_equal(gradients[1][0], 0)
    before = flat(engine.export_statistics())
    check_step(engine, case, np.array([4]), scalars_of(case, 1)[0], "one row")
    for got, kept in zip(flat(engine.export_statistics()), before, strict=True):  # type: ignore
        np.testing.assert_array_equal(got, kept)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 13, 24, 25])
@pytest.mark.parametrize("kind", ["batch", "layer", "dropout"])
def test_few_rows(backend: Backend, kind: str, batch: int) -> None:
    """Batches on both sides of where a step counts as one of few rows."""
    middle: Layer = {"batch": BatchNorm(), "layer": LayerNorm(), "dropout": Dropout()}[kind]
    case = case_of(Dense(20, 40, "tanh"), middle, Dense(out_features=33), rows=60, batch=batch)
    engine = engine_of(backend, case)
    scalars = scalars_of(case, 4)
    for step in range(4):
        rows = np.arange(step * batch, (step + 1) * batch) % 60
        check_step(engine, case, rows, scalars[step], f"step {step}")


@pytest.mark.parametrize(
    "optimizer", [SGD(0.05), Adam(0.01, clip_norm=1e-3)], ids=["plain", "clip"]
)
def test_one_visit_and_two(backend: Backend, optimizer: Any) -> None:
    """Enough weight tiles that gradient and update are one visit, and a norm that is clipped."""
    case = case_of(
        Dense(70, 90), BatchNorm(activation="relu"), Dropout(0.25), Dense(out_features=80),
        LayerNorm(), Dense(out_features=20, trainable="bias"), rows=130, batch=64,
        optimizer=optimizer,
    )  # fmt: skip
    engine = engine_of(backend, case, batch_size=64)
    order, bounds = batches(130, 64, 6, np.random.default_rng(0))
    scalars = scalars_of(case, 6)
    for step in range(6):
        rows = order[bounds[step] : bounds[step + 1]]
        check_step(engine, case, rows, scalars[step], f"step {step}")


def test_constant_columns(backend: Backend) -> None:
    """A variance of 0 is no division by 0: the output is the bias, and all stays finite."""
    case = case_of(BatchNorm(4), LayerNorm(), Dense(out_features=2), batch=40)
    case.x[...] = np.array([1, 2, -3, 0], np.float32)
    engine = engine_of(backend, case)
    scalars = scalars_of(case, 3)
    for step in range(3):
        check_step(engine, case, np.arange(40), scalars[step], f"step {step}")


def test_rows_of_one_feature(backend: Backend) -> None:
    case = case_of(Dense(6, 1), LayerNorm(activation="relu"), Dense(out_features=3))
    _, gradients = engine_of(backend, case).gradients(case.x, case.y, None)
    np.testing.assert_array_equal(gradients[1][0], 0)  # every number is its row's mean
    np.testing.assert_array_equal(gradients[0][0], 0)


def test_large_means_do_not_eat_the_variance(backend: Backend) -> None:
    """Summed around the mean: a difference of squares of numbers about 4096 would leave nothing."""
    case = case_of(BatchNorm(6), LayerNorm(bias=False), Dense(out_features=2), batch=40)
    case.x[...] = 4096 + np.rint(case.x * 4) / 4  # exact in float32
    engine = engine_of(backend, case)
    want = training_step(
        case.spec, case.loss, case.parameters, case.x, case.y, None, case.statistics
    )
    assert max(float(g.bound.max()) for g in flat(want.gradients)) < 1
    check_step(engine, case, np.arange(40), scalars_of(case, 1)[0], "step")


@pytest.mark.parametrize("features", [8, 32])
@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_extreme_means(backend: Backend, kind: Any, features: int) -> None:
    """An exact mean leaves nothing, however large; nor do the columns beside a last panel."""
    case = case_of(kind(features), Dense(out_features=2), rows=8, batch=8)
    case.x[...] = np.float32(2.0**100)
    engine = engine_of(backend, case)
    (_, beta), (w, b) = case.parameters
    assert beta is not None
    assert b is not None
    out = engine.forward_keep(case.x)
    np.testing.assert_allclose(out, np.tile(beta @ w + b, (8, 1)), rtol=1e-4, atol=1e-5)
    dx, outcome = engine.update(case.y, scalars_of(case, 1)[0])
    assert outcome.status == Status.OK
    assert np.isfinite(dx).all()
    before = case.parameters[0][0]
    np.testing.assert_array_equal(engine.export()[0][0], before)  # its gradient is d times 0
    run_steps(engine, case, np.arange(8), np.array([0, 8]), scalars_of(case, 1))


def test_predictions_between_forward_and_update(backend: Backend) -> None:
    """Inference touches nothing that a step has kept: batch statistics, rows' means, masks."""
    layers = [Dense(6, 9), BatchNorm(), Dropout(0.3), LayerNorm(), Dense(out_features=4)]
    case = case_of(*layers, rows=40, batch=40)
    found = []
    for asked in (False, True):
        engine, scalars = engine_of(backend, case), scalars_of(case, 1)
        out = engine.forward_keep(case.x[:20], scalars)
        if asked:
            engine.forward(case.x)
            engine.forward(case.x[:3])
        dx, _ = engine.update(np.ascontiguousarray(out), scalars[0])
        found.append(dx.tobytes() + state_of(engine))
    assert found[0] == found[1]
