"""The reference engine: gradients by finite differences, steps by hand, failures."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Outcome, Status
from fastneuron.kernels.reference import SLOTS, ReferenceEngine
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, RATE, SGD, Adam, AdamW, RMSprop
from fastneuron.spec import NetworkSpec

DTYPES = ["float32", "float64"]
KINKED = {"relu", "leaky_relu"}


def network(activation, bias, sizes=(3, 4, 2), dtype="float64"):
    hidden = [Dense(i, o, activation, bias) for i, o in pairwise(sizes[:-1])]
    return NetworkSpec.chain([*hidden, Dense(sizes[-2], sizes[-1], bias=bias)], dtype)


def draw_parameters(spec, rng):
    return [
        (
            rng.standard_normal((layer.in_features, layer.out_features)).astype(spec.dtype),
            rng.standard_normal(layer.out_features).astype(spec.dtype) if layer.bias else None,
        )
        for layer in spec.layers
    ]


def draw_targets(loss, out, rng):
    """Targets of the loss's kind; for mae and huber with residuals away from the kinks."""
    match loss:
        case "cross_entropy":
            return rng.integers(0, out.shape[1], len(out))
        case "binary_cross_entropy":
            return rng.random(out.shape).astype(out.dtype)
        case "poisson":
            return rng.poisson(2, out.shape).astype(out.dtype)
        case "mse":
            return rng.standard_normal(out.shape).astype(out.dtype)
    return (out - rng.choice([-1.6, -0.5, 0.4, 1.5], out.shape)).astype(out.dtype)


def problem(activation, loss, bias, dtype="float64", batch=5, seed=0):
    """An engine with parameters, and a batch whose pre-activations are away from zero."""
    spec = network(activation, bias, dtype=dtype)
    for attempt in range(1000):
        rng = np.random.default_rng((seed, attempt))
        parameters = draw_parameters(spec, rng)
        x = rng.standard_normal((batch, 3)).astype(dtype)
        w, b = parameters[0]
        z = x @ w if b is None else x @ w + b
        if activation not in KINKED or np.abs(z).min() > 0.02:
            break
    engine = ReferenceEngine(spec, LOSSES[loss], SGD(0.1))
    engine.load(parameters)
    y = draw_targets(loss, engine.forward(x), rng)
    return engine, parameters, x, y, rng


def differences(function, arrays, h=1e-6):
    """Central differences of a number by every entry of the arrays, which are moved in place."""
    slopes = []
    for array in arrays:
        slope = np.empty_like(array)
        for index in np.ndindex(array.shape):
            middle = array[index]
            array[index] = middle + h
            above = function()
            array[index] = middle - h
            below = function()
            array[index] = middle
            slope[index] = (above - below) / (2 * h)
        slopes.append(slope)
    return slopes


def flat(parameters):
    return [array for pair in parameters for array in pair if array is not None]


def relative_error(got, want):
    got, want = (np.concatenate([array.ravel() for array in arrays]) for arrays in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def steps(engine, n, rate=0.1):
    return engine.optimizer.scalars(0, np.full(n, rate))


def run(engine, x, y, weight=None, n=1, rate=0.1):
    """Train n times on the whole of x; return the outcome and the losses, NaN where not written."""
    losses = np.full(n, np.nan)
    order = np.tile(np.arange(len(x)), n)
    bounds = np.arange(n + 1) * len(x)
    return engine.run(x, y, weight, order, bounds, steps(engine, n, rate), losses), losses


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_the_slopes_of_the_loss(activation, loss, bias):
    engine, parameters, x, y, rng = problem(activation, loss, bias)
    weight = rng.random(len(x)) + 0.5

    def loss_there():
        engine.load(parameters)
        return engine.gradients(x, y, weight)[0]

    want = differences(loss_there, flat(parameters))
    engine.load(parameters)
    _, got = engine.gradients(x, y, weight)
    assert [b is None for _, b in got] == [not bias, not bias]
    assert relative_error(flat(got), want) < 1e-7


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dx_is_the_slope_by_the_input(activation):
    engine, _, x, y, _ = problem(activation, "mse", bias=True)
    want = differences(lambda: engine.gradients(x, y, None)[0], [x])
    out = engine.forward_keep(x)
    dx, outcome = engine.update(2 * (out - y) / out.size, steps(engine, 1)[0])
    assert outcome == Outcome(Status.OK, 1)
    assert relative_error([dx], want) < 1e-7


def test_soft_targets_have_their_gradient():
    engine, parameters, x, _, rng = problem("tanh", "cross_entropy", bias=True)
    y = rng.random((len(x), 2))  # rows that sum to no one

    def loss_there():
        engine.load(parameters)
        return engine.gradients(x, y, None)[0]

    want = differences(loss_there, flat(parameters))
    engine.load(parameters)
    assert relative_error(flat(engine.gradients(x, y, None)[1]), want) < 1e-7


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_follows_float64(activation, loss):
    engine, parameters, x, y, _ = problem(activation, loss, bias=True, dtype="float32")
    wide = ReferenceEngine(network(activation, True), LOSSES[loss])
    wide.load(parameters)
    y64 = y if y.dtype == np.int64 else y.astype(np.float64)
    want_loss, want = wide.gradients(x.astype(np.float64), y64, None)
    got_loss, got = engine.gradients(x, y, None)
    assert {array.dtype.name for array in flat(got)} == {"float32"}
    assert got_loss == pytest.approx(want_loss, rel=1e-5)
    assert relative_error(flat(got), flat(want)) < 1e-5


# ---- the engine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [SGD(0.1, 0.9), Adam(0.01, clip_norm=0.1), RMSprop(0.01)])
def test_run_is_gradients_and_slots_repeated(optimizer, dtype):
    spec = network("tanh", True, (3, 5, 4, 2), dtype)
    rng = np.random.default_rng(8)
    parameters = draw_parameters(spec, rng)
    x, y = (rng.standard_normal((9, width)).astype(dtype) for width in (3, 2))
    order, bounds = rng.permutation(9), np.array([0, 4, 8, 9])
    table, losses = optimizer.scalars(0, np.full(3, 0.1)), np.empty(3)
    tolerance = 1e-13 if dtype == "float64" else 1e-5
    engine = ReferenceEngine(spec, LOSSES["mse"], optimizer)
    engine.load(parameters)
    assert engine.run(x, y, None, order, bounds, table, losses) == Outcome(Status.OK, 3)

    moments = [[np.zeros_like(p) for p in flat(parameters)] for _ in range(optimizer.n_moments)]
    twin = ReferenceEngine(spec, LOSSES["mse"])
    for step in range(3):
        twin.load(parameters)
        rows = order[bounds[step] : bounds[step + 1]]
        loss, gradients = twin.gradients(x[rows], y[rows], None)
        assert losses[step] == pytest.approx(loss, rel=tolerance)
        norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in flat(gradients)))
        scale = min(1.0, optimizer.clip_norm / norm) if optimizer.clip_norm else 1.0
        for p, g, *m in zip(flat(parameters), flat(gradients), *moments, strict=True):
            flats = tuple(moment.reshape(-1) for moment in m)
            SLOTS[optimizer.slot](p.reshape(-1), g.reshape(-1), flats, table[step], scale)
    for got, want in zip(flat(engine.export()), flat(parameters), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    for got, want in zip(engine.export_moments(), moments, strict=True):
        for one, other in zip(flat(got), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_a_step_is_exact_on_integers():
    rng = np.random.default_rng(9)
    spec = NetworkSpec.chain([Dense(3, 4, "relu"), Dense(4, 2)], "float32")
    w1, b1, w2, b2 = (rng.integers(-2, 3, shape) for shape in [(3, 4), (4,), (4, 2), (2,)])
    x, y = rng.integers(-2, 3, (8, 3)), rng.integers(-2, 3, (8, 2))
    a = np.maximum(x @ w1 + b1, 0)
    residual = a @ w2 + b2 - y  # of mse's 2 r / O / B with O = 2 and B = 8: dout = r / 8
    dz = (residual @ w2.T) * (a > 0)
    want = [w1 - x.T @ dz, b1 - dz.sum(0), w2 - a.T @ residual, b2 - residual.sum(0)]
    engine = ReferenceEngine(spec, LOSSES["mse"], SGD())
    engine.load([(w1, b1), (w2, b2)])
    data = x.astype(np.float32), y.astype(np.float32)
    outcome, losses = run(engine, *data, rate=8.0)
    assert outcome.status is Status.OK
    assert losses[0] == (residual**2).sum() / 16
    for got, exact in zip(flat(engine.export()), want, strict=True):
        np.testing.assert_array_equal(got, exact)


def test_update_is_a_step_of_run():
    # The last layer's slope comes from its output, so that what the caller gets is also kept.
    spec = NetworkSpec.chain([Dense(3, 4, "gelu"), Dense(4, 2, "tanh")], "float64")
    rng = np.random.default_rng(13)
    parameters = draw_parameters(spec, rng)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    engine = ReferenceEngine(spec, LOSSES["mse"], SGD(0.1))
    engine.load(parameters)
    assert run(engine, x, y)[0].status is Status.OK
    want = engine.export()
    engine.load(parameters)
    out = engine.forward_keep(x)
    _, dout = SLOTS["mse"](out, y)
    x_before = x.copy()
    x[:] = np.nan  # the caller's arrays are the caller's
    out[:] = np.nan
    engine.forward(x_before[:2])  # touches nothing that update needs
    engine.update(dout, steps(engine, 1)[0])
    for got, exact in zip(flat(engine.export()), flat(want), strict=True):
        np.testing.assert_array_equal(got, exact)


def test_weights_count_rows():
    engine, parameters, x, y, _ = problem("silu", "huber", bias=True)
    # Rows 0, 0, 1 as a batch of three equal rows 0 and 1 weighted 2 and 1 in a batch of two.
    rows = np.array([0, 0, 1])
    want_loss, want = engine.gradients(x[rows], y[rows], None)
    weight = np.array([2.0, 1.0])
    got_loss, got = engine.gradients(x[:2], y[:2], weight)
    assert 2 * got_loss == pytest.approx(3 * want_loss)
    for one, other in zip(flat(got), flat(want), strict=True):
        np.testing.assert_allclose(2 * one, 3 * other, rtol=1e-12)
    # run takes the weights of the rows that order names.
    data_weight = np.array([9.0, 1.0, 9.0, 2.0, 9.0])
    losses = np.empty(1)
    order = np.array([3, 1])
    engine.run(x, y, data_weight, order, np.array([0, 2]), steps(engine, 1), losses)
    engine.load(parameters)
    want_loss, _ = engine.gradients(x[order], y[order], weight)
    assert losses[0] == want_loss


def test_clipping_is_by_the_norm_of_all_layers_together():
    engine, parameters, x, y, _ = problem("tanh", "mse", bias=True)
    _, gradients = engine.gradients(x, y, None)
    norm = np.sqrt(sum((g**2).sum() for g in flat(gradients)))
    for limit, scale in [(norm / 4, 0.25), (norm * 4, 1.0)]:
        clipped = ReferenceEngine(engine.spec, engine.loss, SGD(clip_norm=limit))
        clipped.load(parameters)
        run(clipped, x, y, rate=1.0)
        changes = [
            a - b for a, b in zip(flat(parameters), flat(clipped.export()), strict=True)
        ]  # fmt: skip
        for change, g in zip(changes, flat(gradients), strict=True):
            np.testing.assert_allclose(change, scale * g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW, RMSprop])
def test_decay_leaves_biases_alone_unless_told(make, decay_bias):
    spec = network("tanh", True)
    engine = ReferenceEngine(spec, LOSSES["mse"], make(weight_decay=0.5, decay_bias=decay_bias))
    parameters = draw_parameters(spec, np.random.default_rng(10))
    engine.load(parameters)
    x = np.ones((4, 3))
    y = engine.forward(x)  # targets that leave no gradient: only the decay is at work
    run(engine, x, y, rate=1e-3)
    for (w, b), (w_before, b_before) in zip(engine.export(), parameters, strict=True):
        assert (np.abs(w) < np.abs(w_before)).all()
        assert (np.abs(b) < np.abs(b_before)).all() == decay_bias
        assert decay_bias or (b == b_before).all()


def states_equal(engine, parameters, moments):
    got = [flat(engine.export()), *map(flat, engine.export_moments())]
    want = [flat(parameters), *map(flat, moments)]
    return all(
        np.array_equal(a, b)
        for one, other in zip(got, want, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    # At 3e15 the loss and the gradient are finite, near 1e31, but the gradient's square is not.
    ("size", "weight", "status"),
    [
        (np.nan, 1, Status.LOSS_NOT_FINITE),
        (np.inf, 1, Status.LOSS_NOT_FINITE),
        (1e30, 1, Status.LOSS_NOT_FINITE),  # the squared error overflows
        (1, np.inf, Status.LOSS_NOT_FINITE),
        (3e15, 1, Status.GRADIENT_NOT_FINITE),
    ],
)  # fmt: skip
def test_a_failing_step_changes_nothing(size, weight, status):
    spec = NetworkSpec.chain([Dense(2, 1)], "float32")
    engine = ReferenceEngine(spec, LOSSES["mse"], Adam())
    engine.load([(np.ones((2, 1)), np.zeros(1))])
    x = np.array([[1, 2], [3, 4], [size, size]], np.float32)
    y = np.zeros((3, 1), np.float32)
    weights = np.array([1, 1, weight], np.float32)
    order, bounds = np.array([0, 1, 2, 0]), np.array([0, 1, 2, 3, 4])
    losses = np.full(4, -1.0)
    table = steps(engine, 4, 1e-3)
    assert engine.run(x, y, weights, order[:2], bounds[:3], table, losses) == Outcome(Status.OK, 2)
    good = engine.export(), engine.export_moments()
    engine.load([(np.ones((2, 1)), np.zeros(1))])
    engine.load_moments([[(np.zeros((2, 1)), np.zeros(1))]] * 2)
    outcome = engine.run(x, y, weights, order, bounds, table, losses)
    assert outcome == Outcome(status, 2)
    assert states_equal(engine, *good)
    assert np.isfinite(losses[2]) == (status is Status.GRADIENT_NOT_FINITE)
    assert losses[2] != -1  # the failing step's loss is there,
    assert losses[3] == -1  # and no later one


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_a_failing_update_changes_nothing(bad):
    spec = NetworkSpec.chain([Dense(2, 2, "tanh"), Dense(2, 1)], "float32")
    engine = ReferenceEngine(spec, None, SGD(0.1, 0.9))
    engine.load(draw_parameters(spec, np.random.default_rng(11)))
    before = engine.export(), engine.export_moments()
    engine.forward_keep(np.ones((3, 2), np.float32))
    dx, outcome = engine.update(np.full((3, 1), bad, np.float32), steps(engine, 1)[0])
    assert outcome == Outcome(Status.GRADIENT_NOT_FINITE, 0)
    assert dx.shape == (3, 2)
    assert states_equal(engine, *before)


def test_state_goes_in_and_out_by_copy():
    spec = network("relu", True, dtype="float32")
    engine = ReferenceEngine(spec, LOSSES["mse"], Adam())
    rng = np.random.default_rng(12)
    parameters = draw_parameters(spec, rng)
    moments = [draw_parameters(spec, rng), draw_parameters(spec, rng)]
    engine.load([(np.asfortranarray(w), b) for w, b in parameters])
    engine.load_moments(moments)
    assert states_equal(engine, parameters, moments)
    for array in flat(engine.export()) + [a for m in engine.export_moments() for a in flat(m)]:
        assert array.flags.c_contiguous
        assert array.dtype == np.float32
        array.fill(7)
    assert states_equal(engine, parameters, moments)
    engine.load(moments[0])
    assert states_equal(engine, moments[0], moments)  # load leaves the moments as they are


def test_forward_of_no_rows():
    engine = problem("gelu", "mse", bias=True)[0]
    assert engine.forward(np.empty((0, 3))).shape == (0, 2)


def test_given_slots_take_the_place_of_the_references():
    engine, parameters, x, y, _ = problem("gelu", "mse", bias=True)
    calls = []

    def spy(name):
        def slot(*args, **kwargs):
            calls.append(name)
            return SLOTS[name](*args, **kwargs)

        return slot

    spied = ReferenceEngine(
        engine.spec, engine.loss, engine.optimizer, slots={name: spy(name) for name in SLOTS}
    )
    spied.load(parameters)
    run(spied, x, y)
    run(engine, x, y)
    assert states_equal(spied, engine.export(), [])
    want = ["dense_forward", "bias_act_forward", "dense_forward", "mse"]
    want += ["dense_backward"] * 2 + ["sgd_update"] * 4
    assert calls == want


def test_the_plan_can_be_printed():
    engine = ReferenceEngine(network("relu", True, dtype="float32"), LOSSES["mse"], Adam())
    plan = json.loads(json.dumps(engine.plan()))
    assert plan["buffer_bytes"] == {"parameters": 4 * 26, "moments": 2 * 4 * 26}


def test_a_linear_neuron_finds_its_line():
    x = np.linspace(-1, 1, 20)[:, None]
    y = 2 * x + 3
    engine = ReferenceEngine(NetworkSpec.chain([Dense(1, 1)], "float64"), LOSSES["mse"], SGD())
    outcome, losses = run(engine, x, y, n=300, rate=0.3)
    assert outcome == Outcome(Status.OK, 300)
    assert losses[-1] < 1e-20
    (w, b), = engine.export()  # fmt: skip
    np.testing.assert_allclose([w[0, 0], b[0]], [2, 3], rtol=1e-9)
    assert steps(engine, 1).shape == (1, N_SCALARS)
    assert steps(engine, 1)[0, RATE] == 0.1
