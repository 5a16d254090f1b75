"""Many small networks, one a block, against the bounds of a step: tests of any such engine.

A room of tests takes them all with ``from ensemble_checks import *`` and has a fixture `make`, the
engine's class. Blocks have few threads and rows.
"""

from __future__ import annotations

import numpy as np
import pytest
from ensemble_cases import (
    CASES,
    PLACES,
    SIZES,
    CudaAPIError,
    assert_gaps_are_zero,
    assert_same,
    case,
    data_of,
    engine_of,
    models_of,
    one_of,
    optimizers_of,
    some_of,
    state_of,
    table_of,
    trained,
)

from fastneuron.errors import DeviceError, DeviceMemoryError, SpecError
from fastneuron.kernels import device_ensemble
from fastneuron.kernels.contract import Status
from fastneuron.layers import BatchNorm, Dense
from fastneuron.optimizers import RATE, SGD
from fastneuron.testing import (
    Precision,
    assert_parameters,
    assert_within,
    case_of,
    forward,
    integer_case,
    training_step,
    updated,
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("own", "near"), [(False, "both"), (True, "parameters"), (True, "neither")]
)
def test_each_step_of_each_model_is_within_its_bounds(make, name, own, near) -> None:
    of, models = CASES[name], 2
    optimizers = optimizers_of(of, models)
    engine = engine_of(make, of, models_of(of, models), optimizers, near=near)
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
def test_whole_numbers_are_exact_for_any_rows_of_a_tile(make, rows, near) -> None:
    of, models = integer_case(), 2
    two = [(np.stack([w, -w]), np.stack([b, b + 1])) for w, b in of.parameters]
    engine = engine_of(make, of, two, [of.optimizer] * models, rows=rows, near=near)
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


@pytest.mark.parametrize("near", PLACES)
def test_a_model_has_the_bits_that_it_has_alone_whatever_its_place(make, near) -> None:
    of = CASES["saves z"]
    together, losses = trained(make, of, 3, [0, 1, 2], near=near)
    for which in ([1], [2, 0, 1]):
        other, others = trained(make, of, 3, which, near=near)
        for place, model in enumerate(which):
            np.testing.assert_array_equal(others[:, place], losses[:, model])
            assert_same(state_of(other, place), state_of(together, model))


def test_models_share_no_scratch(make) -> None:
    """The simulator's blocks go one by one: shared scratch would not show in results."""
    of, last = CASES["ragged"], SIZES[-1]
    together, _ = trained(make, of, 3, [0, 1, 2], near="parameters")
    for m in range(3):
        alone, _ = trained(make, of, 3, [m], near="parameters")
        kept = [
            (each._flat(each._g).reshape(-1), each._rows.get(each.n_models * last))
            for each in (together, alone)
        ]
        for got, want in zip(*kept, strict=True):
            np.testing.assert_array_equal(got[m * len(want) : (m + 1) * len(want)], want)


def test_bits_do_not_depend_on_calls_launches_or_the_first_batch(make, monkeypatch) -> None:
    of = CASES["classes"]
    whole, losses = trained(make, of, 2, [0, 1])
    for calls, work, batch in ((3, 2e9, 4), (1, 1.0, 4), (1, 2e9, 1), (2, 2e9, 64)):
        monkeypatch.setattr(device_ensemble, "_LAUNCH_WORK", work)
        other, others = trained(make, of, 2, [0, 1], calls=calls, batch_size=batch)
        np.testing.assert_array_equal(others, losses)
        assert_same(state_of(other), state_of(whole))


def test_launches_are_cut_by_work_and_end_with_the_last_step(make, monkeypatch) -> None:
    of = CASES["classes"]
    ends = []
    kind = type(engine_of(make, of, models_of(of, 1), [of.optimizer]))
    monkeypatch.setattr(kind, "_training", lambda engine, steps, of_all: ends.extend(of_all) or [])
    of_all = {1.0: [1, 2, 3], 1e9: [3]}
    for work, want in of_all.items():
        ends.clear()
        monkeypatch.setattr(device_ensemble, "_LAUNCH_WORK", work)
        with pytest.raises(AssertionError):  # nothing was done
            trained(make, of, 2, [0, 1])
        assert ends == want


def test_a_model_that_fails_keeps_its_whole_steps_and_the_others_go_on(make) -> None:
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
    engine = engine_of(make, of, start, optimizers)
    outcome = engine.run(x, y, None, order, bounds, scalars, losses)
    loss, gradient = Status.LOSS_NOT_FINITE, Status.GRADIENT_NOT_FINITE
    np.testing.assert_array_equal(outcome.status, [Status.OK, loss, gradient, Status.OK])
    np.testing.assert_array_equal(outcome.steps, want)
    assert np.isnan(losses[2, 1])
    assert losses[1, 2] > 1e20
    np.testing.assert_array_equal(losses[3, 1], -1)
    np.testing.assert_array_equal(losses[2:, 2], -1)
    for m in range(models):
        one, taken = engine_of(make, of, some_of(start, [m]), optimizers[m : m + 1]), want[m]
        alone = np.zeros((taken, 1))
        part = order[m : m + 1], bounds[: taken + 1], scalars[:taken, m : m + 1], alone
        one.run(x[m : m + 1], y[m : m + 1], None, *part)
        assert_same(state_of(engine, m), state_of(one, 0))
        np.testing.assert_array_equal(losses[:taken, m], alone[:, 0])


def test_a_rate_of_its_own_is_one_models_alone(make) -> None:
    of = CASES["one layer"]
    start = models_of(of, 2)
    engine = engine_of(make, of, start, [of.optimizer] * 2)
    scalars = table_of(of, [of.optimizer] * 2, 1)
    scalars[0, 1, RATE] = 0
    where = np.arange(5)[None], np.array([0, 5])
    engine.run(of.x, of.y, None, *where, scalars, np.zeros((1, 2)))
    assert_same(state_of(engine, 1), [a[1] for pair in start for a in pair])
    assert (engine.export()[0][0][0] != start[0][0][0]).any()


def test_scalars_that_all_share_are_as_those_that_each_has(make) -> None:
    of = CASES["classes"]
    one = table_of(of, [of.optimizer], 2)
    states = []
    for scalars in (np.broadcast_to(one, (2, 3, one.shape[2])), one.repeat(3, axis=1)):
        engine = engine_of(make, of, models_of(of, 3), [of.optimizer] * 3)
        losses = np.zeros((2, 3))
        where = np.arange(12)[None], np.array([0, 4, 12])
        engine.run(of.x, of.y, None, *where, scalars, losses)
        states.append([losses, *state_of(engine)])
    assert_same(*states)


@pytest.mark.parametrize("count", [9, 22, 30])
def test_an_order_that_all_share_is_as_one_that_each_has(make, count) -> None:
    """Fewer rows than there are, all of them, and more: not held, held, and each its own data."""
    of = CASES["probabilities"]
    rows = np.random.default_rng(0).integers(0, len(of.x), count)
    bounds, states = np.array([0, 4, count]), []
    for way in ("shared", "each", "held", "own data"):
        engine = engine_of(make, of, models_of(of, 2), [of.optimizer] * 2)
        x, y = (np.stack([a, a]) for a in (of.x, of.y)) if way == "own data" else (of.x, of.y)
        if way == "held":
            engine.hold(x, y, None)
        order = rows[None].repeat(2, 0) if way == "each" else rows[None]
        losses = np.zeros((2, 2))
        engine.run(x, y, None, order, bounds, table_of(of, [of.optimizer] * 2, 2), losses)
        states.append([losses, *state_of(engine)])
    for state in states[1:]:
        assert_same(state, states[0])


def test_held_data_are_found_on_the_device_and_others_are_not_taken_for_them(make) -> None:
    of = CASES["ragged"]
    optimizers = optimizers_of(of, 2)
    scalars, where = table_of(of, optimizers, 1), (np.arange(3, 12)[None], np.array([0, 9]))

    def losses_of(engine, x):
        engine.load(models_of(of, 2))
        losses = np.zeros((1, 2))
        engine.run(x, of.y, None, *where, scalars, losses)
        return losses

    engine = engine_of(make, of, models_of(of, 2), optimizers)
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
    make, name, near, monkeypatch
) -> None:
    of, models = CASES[name], 3
    parameters = models_of(of, models)
    engine = engine_of(make, of, parameters, [of.optimizer] * models, near=near)
    rng = np.random.default_rng(0)
    x = np.stack([of.x[rng.permutation(len(of.x))[:9]] for _ in range(models)])
    got, shared = engine.forward(x), engine.forward(x[1])
    assert got.shape == (models, 9, of.spec.out_features)
    for m in range(models):
        bounds = forward(of.spec, one_of(parameters, m), x[m], Precision.of(of.spec.dtype))[1]
        assert_within(got[m], bounds[-1], name)
    np.testing.assert_array_equal(shared[1], got[1])
    np.testing.assert_array_equal(engine.forward(x[:, 4:5]), got[:, 4:5])
    monkeypatch.setattr(device_ensemble, "_PREDICTED_BYTES", 1)
    np.testing.assert_array_equal(engine.forward(x[:, :3]), got[:, :3])
    monkeypatch.setattr(device_ensemble, "_MOST_MODELS", 2)
    np.testing.assert_array_equal(engine.forward(x[:, :2]), got[:, :2])
    assert engine.forward(x[:, :0]).shape == (models, 0, of.spec.out_features)


def test_the_shipped_cut_trains_within_the_bounds(make) -> None:
    of = case_of(Dense(2, 5, "relu"), Dense(None, 2), rows=40, batch=33)
    engine = make(of.spec, of.loss, [of.optimizer], batch_size=33)
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
    plan = engine.plan()
    assert plan["buffer_bytes"]["parameters"] == 4 * engine._plan.flat
    assert plan["shared_bytes"] > 4 * engine._plan.numbers


def test_what_no_block_can_train_has_no_engine(make) -> None:
    for layers in ([Dense(129, 2)], [Dense(4, 4), BatchNorm()]):
        of = case_of(*layers)
        with pytest.raises(SpecError, match="block"):
            make(of.spec, of.loss, [of.optimizer])


def test_an_engine_without_steps_changes_nothing(make) -> None:
    of = CASES["classes"]
    start = models_of(of, 2)
    engine = engine_of(make, of, start, [of.optimizer] * 2)
    empty = np.zeros((1, 0), np.int64), np.array([0]), np.zeros((0, 2, 10)), np.zeros((0, 2))
    outcome = engine.run(of.x, of.y, None, *empty)
    np.testing.assert_array_equal(outcome, np.zeros((2, 2)))
    assert_same(state_of(engine)[:4], [a for pair in start for a in pair])
    moments = [models_of(of, 2, seed) for seed in (1, 2)]
    engine.load_moments(moments)
    assert_same(state_of(engine)[4:], [a for each in moments for pair in each for a in pair])


def test_a_devices_faults_are_told_as_ours(make, monkeypatch) -> None:
    of = CASES["classes"]

    def fails(*arguments):
        raise CudaAPIError(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    def is_full(*arguments):
        raise CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    engine = engine_of(make, of, models_of(of, 2), [of.optimizer] * 2)
    where = np.arange(12)[None], np.array([0, 4, 12]), np.zeros((2, 2, 10)), np.zeros((2, 2))
    engine.hold(of.x, of.y, None)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_training", lambda *given: [fails])
        with pytest.raises(DeviceError) as raised:
            engine.run(of.x, of.y, None, *where)
        assert not raised.value.whole
        assert engine._held is None
    monkeypatch.setattr(type(engine._p), "put", is_full)
    with pytest.raises(DeviceMemoryError) as raised:
        engine.hold(of.x, of.y, None)
    assert raised.value.whole
    with pytest.raises(DeviceMemoryError):
        make(of.spec, of.loss, [of.optimizer] * 2)
