"""Many small networks, one a block, with few threads and rows, against the bounds of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastneuron.errors import DeviceError, DeviceMemoryError, SpecError
from fastneuron.kernels.contract import Status
from fastneuron.kernels.fused_plan import ensemble_plan
from fastneuron.kernels.numba_cuda import ensemble, ensemble_engine
from fastneuron.kernels.numba_cuda.ensemble import CudaEnsembleEngine
from fastneuron.layers import BatchNorm, Dense
from fastneuron.optimizers import RATE, SGD, Adam, AdamW, RMSprop
from fastneuron.testing import (
    Precision,
    assert_parameters,
    assert_within,
    case_of,
    forward,
    integer_case,
    scalars_of,
    training_step,
    updated,
)

THREADS = 4  # fewer than patches, so each thread takes several
ROWS = 8
# Whether parameters, and gradient, are in shared memory.
PLACES = {"both": (True, True), "parameters": (True, False), "neither": (False, False)}
SIZES = (5, 8, 19)  # less than a tile, one, and two and a part of one


def case(*layers, **given):
    return case_of(*layers, **{"rows": 22, "batch": 19, **given})


CASES = {
    "one layer": case(Dense(3, 2), loss="mae", optimizer=SGD(0.1)),
    "ragged": case(
        Dense(5, 9, "relu"),
        Dense(None, 6, "tanh", bias=False),
        Dense(None, 3),
        optimizer=SGD(0.1, momentum=0.9, weight_decay=0.1),
    ),
    "saves z": case(
        Dense(4, 5, "gelu"),
        Dense(None, 8, "silu"),
        Dense(None, 2, "gelu"),
        optimizer=SGD(0.1, momentum=0.9, nesterov=True, clip_norm=0.1),
    ),
    "classes": case(
        Dense(2, 7, "relu"),
        Dense(None, 3),
        loss="cross_entropy",
        seed=1,
        optimizer=Adam(0.01, weight_decay=0.1, decay_bias=True, clip_norm=0.1),
    ),
    "probabilities": case(
        Dense(2, 3, "elu"),
        Dense(None, 5),
        loss="cross_entropy",
        seed=3,
        optimizer=AdamW(0.01, weight_decay=0.1),
    ),
    "doubles": case(
        Dense(3, 6, "sigmoid"),
        Dense(None, 1),
        loss="huber",
        dtype="float64",
        optimizer=RMSprop(0.01, weight_decay=0.1),
    ),
    "bits": case(Dense(3, 4, "softplus"), Dense(None, 2), loss="binary_cross_entropy"),
    "counts": case(Dense(3, 4, "leaky_relu"), Dense(None, 2), loss="poisson"),
    "frozen": case(
        Dense(3, 5, "relu", trainable="bias"),
        Dense(None, 4, trainable=False),
        Dense(None, 2, trainable="weight"),
        optimizer=Adam(0.01, clip_norm=0.1),
    ),
}


def models_of(of, count, seed=0):
    """Parameters of some models, drawn around the case's."""
    rng = np.random.default_rng(seed)

    def some(array):
        if array is None:
            return None
        noise = rng.normal(1, 0.1, (count, *array.shape)) * array + rng.normal(
            0, 0.1, (count, *array.shape)
        )
        return noise.astype(array.dtype)

    return [(some(weight), some(bias)) for weight, bias in of.parameters]


def one_of(parameters, model):
    return [(w[model], None if b is None else b[model]) for w, b in parameters]


def some_of(parameters, models):
    return [(w[models], None if b is None else b[models]) for w, b in parameters]


def optimizers_of(of, count):
    """Each its own learning rate, and every other one the other way of bias decay."""
    one, found = of.optimizer, []
    for m in range(count):
        rate, decays = one.learning_rate * (1 + m), one.decay_bias ^ bool(m % 2)
        found.append(replace(one, learning_rate=rate, decay_bias=decays))
    return found


def engine_of(of, parameters, optimizers, **given):
    """The places of parameters and gradient, and a tile's rows, are given by name."""
    holds, keeps = PLACES[given.pop("near", "both")]
    plan = ensemble_plan(of.spec, (given.pop("rows", ROWS),), holds=holds, keeps=keeps)
    assert (plan.holds, plan.gradient_at is not None) == (holds, keeps)
    what = {"plan": plan, "threads": THREADS, "batch_size": 4, **given}
    engine = CudaEnsembleEngine(of.spec, of.loss, optimizers, **what)
    engine.load(parameters)
    return engine


def table_of(of, optimizers, steps, first=0):
    each = [scalars_of(replace(of, optimizer=one), steps, first) for one in optimizers]
    return np.stack(each, axis=1)


def data_of(of, models, own, weighted, seed=0):
    """x, y, weight and order: the case's for all models, or each its own."""
    rng = np.random.default_rng(seed)
    count = sum(SIZES)
    weight = rng.uniform(0, 2, len(of.x)).astype(of.spec.dtype) if weighted else None
    if not own:
        return of.x, of.y, weight, rng.integers(0, len(of.x), (1, count))
    places = [rng.permutation(len(of.x)) for _ in range(models)]
    x, y = (np.stack([array[at] for at in places]) for array in (of.x, of.y))
    weight = np.stack([weight[at] for at in places]) if weighted else None
    return x, y, weight, rng.integers(0, len(of.x), (models, count))


def state_of(engine, model=slice(None)):
    """Parameters and moments, to be compared to the bit."""
    parameters = [engine.export(), *engine.export_moments()]
    return [a[model] for each in parameters for pair in each for a in pair if a is not None]


def assert_same(got, want) -> None:
    for new, old in zip(got, want, strict=True):
        np.testing.assert_array_equal(new, old)


def assert_gaps_are_zero(engine) -> None:
    vectors = [engine._p, *engine._moments]
    vectors += [] if engine._plan.gradient_at is not None else [engine._g]
    for vector in vectors:
        flat = vector.copy_to_host().reshape(engine.n_models, -1)
        for pair in engine._parts(flat):
            for view in pair:
                if view is not None:
                    view[...] = 0
        assert not flat.any(), "between arrays is nothing"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("own", "near"), [(False, "both"), (True, "parameters"), (True, "neither")]
)
def test_each_step_of_each_model_is_within_its_bounds(name, own, near) -> None:
    of, models = CASES[name], 2
    optimizers = optimizers_of(of, models)
    engine = engine_of(of, models_of(of, models), optimizers, near=near)
    x, y, weight, order = data_of(of, models, own, weighted=own)
    bounds = np.cumsum([0, *SIZES])
    scalars = table_of(of, optimizers, len(SIZES))
    losses = np.full((1, models), np.nan)
    for step in range(len(SIZES)):
        before, moments = engine.export(), engine.export_moments()
        where = bounds[step : step + 2]
        outcome = engine.run(x, y, weight, order, where, scalars[step : step + 1], losses)
        np.testing.assert_array_equal(outcome.status, Status.OK)
        np.testing.assert_array_equal(outcome.steps, 1)
        after, new_moments = engine.export(), engine.export_moments()
        for m in range(models):
            rows = order[m if own else 0, where[0] : where[1]]
            x_m, y_m = (x[m], y[m]) if own else (x, y)
            some = None if weight is None else (weight[m] if own else weight)[rows]
            what = f"{name}, step {step}, model {m}"
            old = one_of(before, m)
            want = training_step(of.spec, of.loss, old, x_m[rows], y_m[rows], some)
            assert_within(losses[0, m], want.loss, f"{what}: loss")
            new, moved = updated(
                of.spec, optimizers[m], old, want.gradients,
                [one_of(each, m) for each in moments], scalars[step, m],
            )  # fmt: skip
            assert_parameters(one_of(after, m), new, what)
            for got, bounded in zip(new_moments, moved, strict=True):
                assert_parameters(one_of(got, m), bounded, f"{what}: moment")
    assert_gaps_are_zero(engine)


@pytest.mark.parametrize("rows", [4, 8, 16])
@pytest.mark.parametrize("near", PLACES)
def test_whole_numbers_are_exact_for_any_rows_of_a_tile(rows, near) -> None:
    of, models = integer_case(), 2
    two = [(np.stack([w, -w]), np.stack([b, b + 1])) for w, b in of.parameters]
    engine = engine_of(of, two, [of.optimizer] * models, rows=rows, near=near)
    scalars, losses = table_of(of, [of.optimizer] * models, 1), np.zeros((1, models))
    bounds = np.array([0, 16])
    engine.run(of.x, of.y, None, np.arange(16)[None], bounds, scalars, losses)
    for m in range(models):
        old = one_of(two, m)
        step = training_step(of.spec, of.loss, old, of.x, of.y)
        want, _ = updated(of.spec, of.optimizer, old, step.gradients, [], scalars[0, m])
        for got, exactly in zip(one_of(engine.export(), m), want, strict=True):
            np.testing.assert_array_equal(got[0], exactly[0].value)
            np.testing.assert_array_equal(got[1], exactly[1].value)
        assert losses[0, m] == step.loss.value


def trained(of, models, which, calls=1, **given):
    """(engine, losses, outcomes) of some of the models after three steps on their own data."""
    optimizers = [optimizers_of(of, models)[m] for m in which]
    engine = engine_of(of, some_of(models_of(of, models), which), optimizers, **given)
    x, y, weight, order = data_of(of, models, own=True, weighted=True)
    given = x[which], y[which], weight[which], order[which]
    bounds = np.cumsum([0, *SIZES])
    scalars = table_of(of, optimizers_of(of, models), len(SIZES))[:, which]
    losses = np.full((len(SIZES), len(which)), np.nan)
    for part in np.array_split(np.arange(len(SIZES)), calls):
        where = bounds[part[0] : part[-1] + 2]
        outcome = engine.run(*given, where, scalars[part], losses[part[0] : part[-1] + 1])
        np.testing.assert_array_equal(outcome.steps, len(part))
    return engine, losses


@pytest.mark.parametrize("near", PLACES)
def test_a_model_has_the_bits_that_it_has_alone_whatever_its_place(near) -> None:
    of = CASES["saves z"]
    together, losses = trained(of, 3, [0, 1, 2], near=near)
    for which in ([1], [2, 0, 1]):
        other, others = trained(of, 3, which, near=near)
        for place, model in enumerate(which):
            np.testing.assert_array_equal(others[:, place], losses[:, model])
            assert_same(state_of(other, place), state_of(together, model))


def test_models_share_no_scratch() -> None:
    """The simulator's blocks go one by one: shared scratch would not show in results."""
    of, last = CASES["ragged"], SIZES[-1]
    together, _ = trained(of, 3, [0, 1, 2], near="parameters")
    for m in range(3):
        alone, _ = trained(of, 3, [m], near="parameters")
        kept = [
            (each._g.copy_to_host(), each._rows.array.copy_to_host()[: each.n_models * last])
            for each in (together, alone)
        ]
        for got, want in zip(*kept, strict=True):
            np.testing.assert_array_equal(got[m * len(want) : (m + 1) * len(want)], want)


def test_bits_do_not_depend_on_calls_launches_or_the_first_batch(monkeypatch) -> None:
    of = CASES["classes"]
    whole, losses = trained(of, 2, [0, 1])
    for calls, work, batch in ((3, 2e9, 4), (1, 1.0, 4), (1, 2e9, 1), (2, 2e9, 64)):
        monkeypatch.setattr(ensemble, "_LAUNCH_WORK", work)
        other, others = trained(of, 2, [0, 1], calls=calls, batch_size=batch)
        np.testing.assert_array_equal(others, losses)
        assert_same(state_of(other), state_of(whole))


def test_launches_are_cut_by_work_and_end_with_the_last_step(monkeypatch) -> None:
    of = CASES["classes"]
    ends = []
    monkeypatch.setattr(
        ensemble, "prepared", lambda launches, stream: ends.append(launches[0].arguments[-1]) or []
    )
    of_all = {1.0: [1, 2, 3], 1e9: [3]}
    for work, want in of_all.items():
        ends.clear()
        monkeypatch.setattr(ensemble, "_LAUNCH_WORK", work)
        with pytest.raises(AssertionError):  # nothing was done
            trained(of, 2, [0, 1])
        assert ends == want


def test_a_model_that_fails_keeps_its_whole_steps_and_the_others_go_on() -> None:
    of = case(Dense(3, 4), Dense(None, 1), loss="mae", optimizer=SGD(0.01, momentum=0.5))
    models, steps = 4, 4
    optimizers = optimizers_of(of, models)
    start = models_of(of, models)
    x, y = np.stack([of.x] * models), np.stack([of.y] * models)
    x[1, 6] = np.nan  # in step 2: the loss
    x[2, 4] = 1e25  # in step 1: the squares of its gradient are no float32, its loss is
    order, bounds = np.arange(12)[None].repeat(models, 0), np.array([0, 2, 4, 7, 12])
    scalars, want = table_of(of, optimizers, steps), np.array([4, 2, 2, 4])
    order[2, [2, 4]] = 4, 2
    want[2] = 1
    losses = np.full((steps, models), -1.0)
    engine = engine_of(of, start, optimizers)
    outcome = engine.run(x, y, None, order, bounds, scalars, losses)
    loss, gradient = Status.LOSS_NOT_FINITE, Status.GRADIENT_NOT_FINITE
    np.testing.assert_array_equal(outcome.status, [Status.OK, loss, gradient, Status.OK])
    np.testing.assert_array_equal(outcome.steps, want)
    assert np.isnan(losses[2, 1])
    assert losses[1, 2] > 1e20
    np.testing.assert_array_equal(losses[3, 1], -1)
    np.testing.assert_array_equal(losses[2:, 2], -1)
    for m in range(models):
        one, taken = engine_of(of, some_of(start, [m]), optimizers[m : m + 1]), want[m]
        alone = np.zeros((taken, 1))
        part = order[m : m + 1], bounds[: taken + 1], scalars[:taken, m : m + 1], alone
        one.run(x[m : m + 1], y[m : m + 1], None, *part)
        assert_same(state_of(engine, m), state_of(one, 0))
        np.testing.assert_array_equal(losses[:taken, m], alone[:, 0])


def test_a_rate_of_its_own_is_one_models_alone() -> None:
    of = CASES["one layer"]
    start = models_of(of, 2)
    engine = engine_of(of, start, [of.optimizer] * 2)
    scalars = table_of(of, [of.optimizer] * 2, 1)
    scalars[0, 1, RATE] = 0
    where = np.arange(5)[None], np.array([0, 5])
    engine.run(of.x, of.y, None, *where, scalars, np.zeros((1, 2)))
    assert_same(state_of(engine, 1), [a[1] for pair in start for a in pair])
    assert (engine.export()[0][0][0] != start[0][0][0]).any()


def test_scalars_that_all_share_are_as_those_that_each_has() -> None:
    of = CASES["classes"]
    one = table_of(of, [of.optimizer], 2)
    states = []
    for scalars in (np.broadcast_to(one, (2, 3, one.shape[2])), one.repeat(3, axis=1)):
        engine = engine_of(of, models_of(of, 3), [of.optimizer] * 3)
        losses = np.zeros((2, 3))
        where = np.arange(12)[None], np.array([0, 4, 12])
        engine.run(of.x, of.y, None, *where, scalars, losses)
        states.append([losses, *state_of(engine)])
    assert_same(*states)


@pytest.mark.parametrize("count", [9, 22, 30])
def test_an_order_that_all_share_is_as_one_that_each_has(count) -> None:
    """Fewer rows than there are, all of them, and more: not held, held, and each its own data."""
    of = CASES["probabilities"]
    rows = np.random.default_rng(0).integers(0, len(of.x), count)
    bounds, states = np.array([0, 4, count]), []
    for way in ("shared", "each", "held", "own data"):
        engine = engine_of(of, models_of(of, 2), [of.optimizer] * 2)
        x, y = (np.stack([a, a]) for a in (of.x, of.y)) if way == "own data" else (of.x, of.y)
        if way == "held":
            engine.hold(x, y, None)
        order = rows[None].repeat(2, 0) if way == "each" else rows[None]
        losses = np.zeros((2, 2))
        engine.run(x, y, None, order, bounds, table_of(of, [of.optimizer] * 2, 2), losses)
        states.append([losses, *state_of(engine)])
    for state in states[1:]:
        assert_same(state, states[0])


def test_held_data_are_found_on_the_device_and_others_are_not_taken_for_them() -> None:
    of = CASES["ragged"]
    optimizers = optimizers_of(of, 2)
    scalars, where = table_of(of, optimizers, 1), (np.arange(3, 12)[None], np.array([0, 9]))

    def losses_of(engine, x):
        engine.load(models_of(of, 2))
        losses = np.zeros((1, 2))
        engine.run(x, of.y, None, *where, scalars, losses)
        return losses

    engine = engine_of(of, models_of(of, 2), optimizers)
    want, other = losses_of(engine, of.x), losses_of(engine, of.x + 1)
    assert (want != other).all()
    x = of.x.copy()
    engine.hold(x, of.y, None)
    x += 1  # not looked at again
    np.testing.assert_array_equal(losses_of(engine, x), want)
    np.testing.assert_array_equal(losses_of(engine, x.copy()), other)
    np.testing.assert_array_equal(losses_of(engine, x), other)
    engine.hold(x, of.y, None)
    engine.let_go()
    np.testing.assert_array_equal(losses_of(engine, of.x), want)


@pytest.mark.parametrize("name", ["ragged", "saves z", "doubles"])
@pytest.mark.parametrize("near", PLACES)
def test_predictions_are_within_their_bounds_and_have_the_same_bits_in_any_batch(
    name, near, monkeypatch
) -> None:
    of, models = CASES[name], 3
    parameters = models_of(of, models)
    engine = engine_of(of, parameters, [of.optimizer] * models, near=near)
    rng = np.random.default_rng(0)
    x = np.stack([of.x[rng.permutation(len(of.x))[:9]] for _ in range(models)])
    got, shared = engine.forward(x), engine.forward(x[1])
    assert got.shape == (models, 9, of.spec.out_features)
    for m in range(models):
        bounds = forward(of.spec, one_of(parameters, m), x[m], Precision.of(of.spec.dtype))[1]
        assert_within(got[m], bounds[-1], name)
    np.testing.assert_array_equal(shared[1], got[1])
    np.testing.assert_array_equal(engine.forward(x[:, 4:5]), got[:, 4:5])
    monkeypatch.setattr(ensemble, "_PREDICTED_BYTES", 1)
    np.testing.assert_array_equal(engine.forward(x[:, :3]), got[:, :3])
    monkeypatch.setattr(ensemble, "_MOST_MODELS", 2)
    np.testing.assert_array_equal(engine.forward(x[:, :2]), got[:, :2])
    assert engine.forward(x[:, :0]).shape == (models, 0, of.spec.out_features)


def test_the_shipped_cut_trains_within_the_bounds() -> None:
    of = case_of(Dense(2, 5, "relu"), Dense(None, 2), rows=40, batch=33)
    engine = ensemble_engine(of.spec, of.loss, [of.optimizer], batch_size=33)
    start = [(w[None], b[None]) for w, b in of.parameters]
    engine.load(start)
    losses, scalars = np.zeros((1, 1)), table_of(of, [of.optimizer], 1)
    rows = np.arange(33)
    engine.run(of.x, of.y, None, rows[None], np.array([0, 33]), scalars, losses)
    want = training_step(of.spec, of.loss, of.parameters, of.x[rows], of.y[rows])
    new, _ = updated(of.spec, of.optimizer, of.parameters, want.gradients, [], scalars[0, 0])
    assert_parameters(one_of(engine.export(), 0), new, "33 rows in tiles of 32")
    assert engine.plan()["weights"] == "in shared memory from step to step"
    assert engine.plan()["gradient"] == "in shared memory"
    assert engine.plan()["buffer_bytes"]["parameters"] == 4 * engine._plan.flat


def test_what_no_block_can_train_has_no_engine() -> None:
    for layers in ([Dense(129, 2)], [Dense(4, 4), BatchNorm()]):
        of = case_of(*layers)
        assert ensemble_engine(of.spec, of.loss, [of.optimizer]) is None
        with pytest.raises(SpecError, match="block"):
            CudaEnsembleEngine(of.spec, of.loss, [of.optimizer])


def test_an_engine_without_steps_changes_nothing() -> None:
    of = CASES["classes"]
    start = models_of(of, 2)
    engine = engine_of(of, start, [of.optimizer] * 2)
    empty = np.zeros((1, 0), np.int64), np.array([0]), np.zeros((0, 2, 10)), np.zeros((0, 2))
    outcome = engine.run(of.x, of.y, None, *empty)
    np.testing.assert_array_equal(outcome, np.zeros((2, 2)))
    assert_same(state_of(engine)[:4], [a for pair in start for a in pair])
    moments = [models_of(of, 2, seed) for seed in (1, 2)]
    engine.load_moments(moments)
    assert_same(state_of(engine)[4:], [a for each in moments for pair in each for a in pair])


class CudaAPIError(RuntimeError):
    """What the driver's bindings raise, by name."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code


def test_a_devices_faults_are_told_as_ours(monkeypatch) -> None:
    of = CASES["classes"]

    def fails(*arguments):
        raise CudaAPIError(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    def is_full(*arguments):
        raise CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    engine = engine_of(of, models_of(of, 2), [of.optimizer] * 2)
    where = np.arange(12)[None], np.array([0, 4, 12]), np.zeros((2, 2, 10)), np.zeros((2, 2))
    engine.hold(of.x, of.y, None)
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "run_all", fails)
        with pytest.raises(DeviceError) as raised:
            engine.run(of.x, of.y, None, *where)
        assert not raised.value.whole
        assert engine._held is None
    with monkeypatch.context() as patch:
        patch.setattr(ensemble.Vector, "put", is_full)
        with pytest.raises(DeviceMemoryError) as raised:
            engine.hold(of.x, of.y, None)
        assert raised.value.whole
    monkeypatch.setattr(ensemble, "zeros", is_full)
    with pytest.raises(DeviceMemoryError):
        ensemble_engine(of.spec, of.loss, [of.optimizer] * 2)
