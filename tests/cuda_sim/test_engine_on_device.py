"""The engine with tiny tiles: small networks of all kinds against the bounds of a step."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels import fused_plan
from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import Blocks, Tile
from fastneuron.kernels.numba_cuda import driver
from fastneuron.kernels.numba_cuda.engine import CudaEngine
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.optimizers import N_SCALARS, SGD, Adam, AdamW, RMSprop
from fastneuron.testing import (
    Case,
    Precision,
    assert_parameters,
    assert_within,
    backward,
    case_of,
    check_step,
    draw_inputs,
    exact,
    forward,
    integer_case,
    integer_norm_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
)

TILE = Tile(8, 8, 4, 4, 4)
BLOCKS = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)


def engine_of(case: Case, **given) -> CudaEngine:
    options = {"batch_size": case.batch, "tile": TILE, "blocks": BLOCKS, "fused_rows": (), **given}
    return loaded(CudaEngine(case.spec, case.loss, case.optimizer, **options), case)


def case(*layers, **given) -> Case:
    return case_of(*layers, **{"rows": 11, "batch": 5, **given})


CASES = {
    "one layer": case(Dense(3, 2)),
    "relu, classes": case(
        Dense(4, 9, "relu"), Dense(None, 3), loss="cross_entropy", optimizer=Adam(), seed=1
    ),
    "probabilities": case(
        Dense(5, 4, "tanh"), Dense(None, 8), loss="cross_entropy", optimizer=RMSprop(), seed=3
    ),
    "saves z, clipped": case(
        Dense(3, 5, "gelu"), Dense(None, 6, "silu", bias=False), Dense(None, 2, "softplus"),
        loss="huber", optimizer=SGD(0.05, momentum=0.9, nesterov=True, clip_norm=0.1),
    ),
    "decays, doubles": case(
        Dense(3, 9, "elu"), Dense(None, 3, "leaky_relu"), loss="mae", dtype="float64",
        optimizer=AdamW(0.01, weight_decay=0.1, decay_bias=True),
    ),
    "binary": case(Dense(2, 3, "sigmoid"), Dense(None, 1), loss="binary_cross_entropy"),
    "counts": case(Dense(2, 3, "relu"), Dense(None, 2), loss="poisson", optimizer=SGD(0.01, 0.8)),
    "batch norm": case(Dense(3, 6), BatchNorm(None, "relu"), Dense(None, 2)),
    "batch norm first and last": case(BatchNorm(4), Dense(None, 3, "relu"), BatchNorm(None, "elu")),
    "no statistics move": case(
        Dense(3, 5), BatchNorm(None, "gelu", trainable=False), Dense(None, 2)
    ),
    "layer norm": case(LayerNorm(4, bias=False), Dense(None, 5), LayerNorm(None, "silu")),
    "dropout": case(Dropout(0.25, 6), Dense(None, 7, "relu"), Dropout(0.5), Dense(None, 2)),
    "dropout of a norm": case(Dense(3, 5), LayerNorm(None, "tanh"), Dropout(0.5), Dense(None, 2)),
    "partly frozen": case(
        Dense(3, 4, "relu", trainable=False),
        Dense(None, 5, "relu", trainable="bias"),
        BatchNorm(trainable="weight"),
        Dense(None, 4, "relu", trainable="weight"),
        Dense(None, 2),
        optimizer=SGD(0.1, momentum=0.5, weight_decay=0.1),
    ),
    "nothing trains": case(Dense(3, 2, trainable=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_steps_are_within_their_bounds(name) -> None:
    of = CASES[name]
    engine = engine_of(of)
    scalars = scalars_of(of, 2)
    check_step(engine, of, np.arange(5), scalars[0], f"{name}, step 0")
    check_step(engine, of, np.array([10, 3, 3]), scalars[1], f"{name}, step 1")


#: What a block can train by itself.
FUSED = ("one layer", "relu, classes", "probabilities", "saves z, clipped", "decays, doubles")


@pytest.mark.parametrize("name", FUSED)
def test_fused_steps_and_predictions_are_within_their_bounds(name) -> None:
    of = CASES[name]
    engine = engine_of(of, fused_rows=(4,))
    assert engine.plan()["fused"] == "4 rows a block"
    out = engine.forward(of.x)
    p = Precision.of(of.spec.dtype)
    assert_within(out, forward(of.spec, of.parameters, of.x, p)[1][-1], name)
    np.testing.assert_array_equal(engine.forward(of.x[3:4]), out[3:4])
    scalars = scalars_of(of, 2)
    check_step(engine, of, np.arange(5), scalars[0], f"{name}, step 0")
    check_step(engine, of, np.array([10, 3, 3]), scalars[1], f"{name}, step 1")


def test_what_a_block_cannot_train_goes_layer_by_layer() -> None:
    for name in ("batch norm", "partly frozen", "dropout"):
        assert engine_of(CASES[name], fused_rows=(4,)).plan()["fused"] == "layer by layer"


def test_batches_with_too_many_partial_sums_go_layer_by_layer(monkeypatch) -> None:
    of = CASES["one layer"]
    monkeypatch.setattr(fused_plan, "_PARTIAL_BYTES", 4 * 32)
    engine = engine_of(of, fused_rows=(4,))
    scalars = scalars_of(of, 2)
    check_step(engine, of, np.arange(5), scalars[0], "two blocks, where one is room for")
    check_step(engine, of, np.arange(4), scalars[1], "one block")


def test_sample_weights_are_within_their_bounds() -> None:
    for name in ("one layer", "relu, classes"):
        of = CASES[name]
        weight = np.random.default_rng(0).uniform(0, 2, 11).astype(of.spec.dtype)
        weighted = Case(**{**vars(of), "weight": weight})
        rows = np.array([9, 1, 4, 0])
        for fused in ((), (4,)):
            engine = engine_of(weighted, fused_rows=fused)
            check_step(engine, weighted, rows, scalars_of(of, 1)[0], name)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["dense", "batch", "layer", "frozen"])
def test_whole_numbers_are_exact(kind, bias) -> None:
    of = integer_case(bias=bias) if kind == "dense" else integer_norm_case(kind, bias=bias)
    scalars = scalars_of(of, 1)
    order, bounds = np.arange(of.batch), np.array([0, of.batch])
    got, want = engine_of(of), loaded(ReferenceEngine(of.spec, of.loss, of.optimizer), of)
    losses = [run_steps(each, of, order, bounds, scalars) for each in (got, want)]
    assert losses[0] == losses[1]
    for new, right in zip(got.export(), want.export(), strict=True):
        for array, exactly in zip(new, right, strict=True):
            assert (array is None) == (exactly is None)
            if array is not None:
                np.testing.assert_array_equal(array, exactly)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("relu, classes", ()), ("relu, classes", (4,)), ("batch norm", ()), ("dropout", ())],
)
def test_bits_do_not_depend_on_chunks_or_on_where_the_data_is(name, fused) -> None:
    of = CASES[name]
    order = np.array([1, 7, 3, 2, 10, 4, 0, 0, 5, 6])
    bounds, scalars = np.array([0, 4, 8, 10]), scalars_of(of, 3)
    at_once, one_by_one, held = (engine_of(of, batch_size=n, fused_rows=fused) for n in (5, 1, 5))
    losses = run_steps(at_once, of, order, bounds, scalars)
    held.hold(of.x, of.y, of.weight)
    np.testing.assert_array_equal(run_steps(held, of, order, bounds, scalars), losses)
    for step in range(3):
        part = bounds[step : step + 2]
        some = run_steps(one_by_one, of, order, part, scalars[step : step + 1])
        assert some[0] == losses[step]
    want = state_of(at_once)
    assert state_of(one_by_one) == want
    assert state_of(held) == want


def test_held_data_is_found_on_the_device_and_other_data_is_not_taken_for_it() -> None:
    of = CASES["one layer"]
    weight = np.linspace(0, 2, 11).astype("float32")
    x, y = of.x.copy(), of.y.copy()
    held, other = (Case(**{**vars(of), "x": a, "y": b, "weight": weight.copy()})
                   for a, b in ((x, y), (of.x * 2, of.y * 2)))  # fmt: skip
    order, bounds, scalars = np.arange(5), np.array([0, 5]), scalars_of(of, 2)
    got, want = engine_of(held), engine_of(held)
    got.hold(held.x, held.y, held.weight)
    run_steps(got, other, order, bounds, scalars[:1])
    run_steps(want, other, order, bounds, scalars[:1])
    assert state_of(got) == state_of(want)
    got.hold(held.x, held.y, held.weight)
    run_steps(want, held, order, bounds, scalars[1:])
    x[...] = np.nan  # what is held is not read again
    run_steps(got, held, order, bounds, scalars[1:])
    assert state_of(got) == state_of(want)


def test_data_that_is_not_held_may_change_between_calls() -> None:
    of = CASES["one layer"]
    engine, other = engine_of(of), engine_of(of)
    x = of.x.copy()
    changing = Case(**{**vars(of), "x": x})
    order, bounds, scalars = np.arange(5), np.array([0, 5]), scalars_of(of, 2)
    run_steps(engine, changing, order, bounds, scalars[:1])
    x[...] = x[::-1].copy()
    run_steps(engine, changing, order, bounds, scalars[1:])
    run_steps(other, of, order, bounds, scalars[:1])
    run_steps(other, Case(**{**vars(of), "x": x.copy()}), order, bounds, scalars[1:])
    assert state_of(engine) == state_of(other)


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_within_their_bounds_and_have_the_same_bits_in_any_batch(name) -> None:
    of = CASES[name]
    engine, p = engine_of(of), Precision.of(of.spec.dtype)
    out = engine.forward(of.x)
    want = forward(of.spec, of.parameters, of.x, p, of.statistics)[1][-1]
    assert_within(out, want, name)
    np.testing.assert_array_equal(engine.forward(of.x[3:4]), out[3:4])
    np.testing.assert_array_equal(engine.forward(of.x[2:9]), out[2:9])
    assert engine.forward(of.x[:0]).shape == (0, of.spec.out_features)


@pytest.mark.parametrize("name", ["one layer", "saves z, clipped", "batch norm", "dropout"])
def test_foreign_losses(name) -> None:
    of = CASES[name]
    engine, p, scalars = engine_of(of), Precision.of(of.spec.dtype), scalars_of(of, 2)
    x, key = of.x[:5], scalars[:1]
    dout = draw_inputs(np.random.default_rng(0), 5, of.spec.out_features, of.spec.dtype)
    got = engine.forward_keep(x, key)
    zs, activations = forward(of.spec, of.parameters, x, p, of.statistics, key[0])
    assert_within(got, activations[-1], "output")
    args = of.spec, of.parameters, zs, activations, exact(dout), p, of.statistics, key[0]
    want = backward(*args)[0]
    dx, outcome = engine.update(dout, scalars[1])
    assert_within(dx, want, "dx")
    assert outcome == (Status.OK, 1)
    assert state_of(engine) != state_of(engine_of(of))


@pytest.mark.parametrize("name", ["relu, classes", "layer norm", "partly frozen", "dropout"])
def test_gradients_are_within_their_bounds_and_change_nothing(name) -> None:
    of = CASES[name]
    engine = engine_of(of)
    before = state_of(engine)
    key = scalars_of(of, 1)
    want = training_step(
        of.spec, of.loss, of.parameters, of.x[:7], of.y[:7], None, of.statistics, key[0]
    )
    loss, gradients = engine.gradients(of.x[:7], of.y[:7], None, key)
    assert_within(loss, want.loss, "loss")
    assert_parameters(gradients, want.gradients, name)
    assert state_of(engine) == before


def test_a_step_that_fails_is_not_applied_nor_any_after_it() -> None:
    of = CASES["batch norm"]
    order, bounds, scalars = np.arange(10), np.array([0, 3, 6, 8, 10]), scalars_of(of, 4)
    want = engine_of(of)
    first = run_steps(want, of, order, bounds[:3], scalars[:2])
    x = of.x.copy()
    x[7, 1] = np.nan
    got, losses = engine_of(of), np.full(4, -1.0)
    outcome = got.run(x, of.y, None, order, bounds, scalars, losses)
    assert outcome == (Status.LOSS_NOT_FINITE, 2)
    np.testing.assert_array_equal(losses, [*first, np.nan, -1])
    assert state_of(got) == state_of(want)
    # And the engine goes on from there.
    run_steps(got, of, order, bounds[:2], scalars[:1])
    run_steps(want, of, order, bounds[:2], scalars[:1])
    assert state_of(got) == state_of(want)


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    of = CASES["one layer"]
    engine = engine_of(of)
    engine.forward_keep(of.x[:3])
    before = state_of(engine)
    dout = np.zeros((3, 2), "float32")
    dout[2, 1] = np.inf
    _, outcome = engine.update(dout, scalars_of(of, 1)[0])
    assert outcome == (Status.GRADIENT_NOT_FINITE, 0)
    assert state_of(engine) == before


def test_what_is_loaded_is_exported() -> None:
    of = CASES["partly frozen"]
    rng = np.random.default_rng(0)
    moments = [
        [(rng.normal(size=w.shape).astype("float32"), None if b is None else b * 2) for w, b in p]
        for p in [of.parameters]
    ]
    engine = loaded(engine_of(of), of, moments)
    for got, want in zip([engine.export(), *engine.export_moments()], [of.parameters, *moments],
                         strict=True):  # fmt: skip
        for pair, right in zip(got, want, strict=True):
            for array, exactly in zip(pair, right, strict=True):
                np.testing.assert_equal(array, exactly)
    for pair, right in zip(engine.export_statistics(), of.statistics, strict=True):
        np.testing.assert_equal(pair, right)


def test_a_device_without_room_says_so(monkeypatch) -> None:
    def full(*shape_and_dtype: object) -> None:
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    of = CASES["one layer"]
    engine = engine_of(of)
    before = state_of(engine)
    with monkeypatch.context() as patched:
        patched.setattr(driver.cuda, "device_array", full)
        with pytest.raises(MemoryError, match=r"no room for [\d,]+ bytes more: take smaller"):
            engine.forward(of.x)
    assert state_of(engine) == before
    engine.forward(of.x)


def test_a_driver_that_does_not_start_says_what_it_says(monkeypatch) -> None:
    def broken() -> None:
        raise OSError("the driver\n is too old")

    monkeypatch.setattr(driver.cuda, "stream", broken)
    with pytest.raises(BackendUnavailable, match="CUDA does not start: the driver is too old"):
        engine_of(CASES["one layer"])


def test_the_plan_says_what_is_there() -> None:
    of = CASES["relu, classes"]
    engine = engine_of(of)
    run_steps(engine, of, np.arange(4), np.array([0, 4]), scalars_of(of, 1))
    plan = engine.plan()
    assert plan["backend"] == "cuda"
    assert plan["graph"] == "the simulator cannot record launches"
    assert plan["buffer_bytes"]["moments"] == 2 * plan["buffer_bytes"]["parameters"]
    assert scalars_of(of, 1).shape[1] == N_SCALARS
