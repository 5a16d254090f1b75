"""Gradient and update in one visit: the bits of two passes, and never a half-applied step."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels import columns as at
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, Optimizer, RMSprop
from fastneuron.spec import NetworkSpec

SIZES = (40, 130, 70, 5)


def setting(dtype: str, scale: float = 1.0) -> tuple[NetworkSpec, Parameters, Any, Any]:
    layers = [
        Dense(a, b, activation="tanh" if i == 0 else "relu" if i == 1 else "identity")
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    ]
    spec = NetworkSpec.chain(layers, dtype)
    rng = np.random.default_rng(0)
    parameters: Parameters = [
        ((rng.standard_normal((a, b)) / np.sqrt(a)).astype(dtype), np.zeros(b, dtype))
        for a, b in itertools.pairwise(SIZES)
    ]
    x = (scale * rng.standard_normal((90, SIZES[0]))).astype(dtype)
    return spec, parameters, x, rng.standard_normal((90, SIZES[-1])).astype(dtype)


def trained(
    backend: Backend, optimizer: Optimizer, dtype: str, scale: float, steps: int = 5
) -> Any:
    spec, parameters, x, y = setting(dtype, scale)
    engine = backend.engine(spec, LOSSES["mse"], optimizer, n_threads=2, batch_size=30)
    engine.load(parameters)
    order = np.arange(steps * 30) % 90
    scalars, losses = optimizer.scalars(0, np.full(steps, 1e-3)), np.zeros(steps)
    outcome = engine.run(x, y, None, order, np.arange(0, 30 * steps + 1, 30), scalars, losses)
    return outcome, losses, engine.export()


def flat(parameters: Parameters) -> Any:
    return np.concatenate(
        [array.ravel() for pair in parameters for array in pair if array is not None]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("one_visit", "two_passes"),
    [
        (SGD(), SGD(clip_norm=1e9)),
        (SGD(momentum=0.9, weight_decay=0.1), SGD(momentum=0.9, weight_decay=0.1, clip_norm=1e9)),
        (Adam(), Adam(clip_norm=1e9)),
        (RMSprop(), RMSprop(clip_norm=1e9)),
    ],
)
def test_same_bits_as_in_two_passes(
    blocked: Backend, one_visit: Optimizer, two_passes: Optimizer, dtype: str
) -> None:
    made: Any = blocked.engine(setting(dtype)[0])
    assert made._layout.head[at.N_TILES] >= at.FUSE_FROM
    _, want_losses, want = trained(blocked, two_passes, dtype, 1.0)
    outcome, losses, got = trained(blocked, one_visit, dtype, 1.0)
    assert outcome.status == Status.OK
    assert losses.tobytes() == want_losses.tobytes()
    assert flat(got).tobytes() == flat(want).tobytes()


def test_where_the_bound_says_nothing_the_gradient_is_looked_at(blocked: Backend) -> None:
    # Activations of 1e17 and more: B max|a| max|dz| squares beyond float32, the gradient does not.
    scale = 1e16
    want = trained(blocked, SGD(clip_norm=1e30), "float32", scale, steps=1)
    got = trained(blocked, SGD(), "float32", scale, steps=1)
    assert got[0].status == want[0].status == Status.OK
    assert flat(got[2]).tobytes() == flat(want[2]).tobytes()


def test_an_overflowing_gradient_leaves_every_parameter_alone(backend: Backend) -> None:
    # Inputs of 1e30 that zero weights keep from the loss, but not from dW = x^T dz.
    spec, parameters, x, y = setting("float32")
    weight, bias = parameters[0]
    assert bias is not None
    parameters[0] = (np.zeros_like(weight), bias + np.float32(0.5))
    engine = backend.engine(spec, LOSSES["mse"], SGD(), n_threads=2, batch_size=30)
    engine.load(parameters)
    x = (x * np.float32(1e30)).astype(np.float32)
    losses = np.zeros(1)
    scalars = SGD().scalars(0, np.full(1, 1e-3))
    outcome = engine.run(x, y, None, np.arange(30), np.array([0, 30]), scalars, losses)
    assert outcome.status == Status.GRADIENT_NOT_FINITE
    assert outcome.steps == 0
    assert np.isfinite(losses).all()
    assert flat(engine.export()).tobytes() == flat(parameters).tobytes()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "identity"])
@pytest.mark.parametrize("where", ["activation", "delta"])
def test_hidden_sizes_count_in_the_bound(blocked: Backend, where: str, activation: str) -> None:
    """Outputs and loss stay small, but dW = a^T dz squares beyond float32."""
    sizes = (40, 130, 70, 5)
    layers = [Dense(a, b, activation) for a, b in itertools.pairwise(sizes[:3])]
    spec = NetworkSpec.chain([*layers, Dense(70, 5)], "float32")
    rng = np.random.default_rng(0)
    parameters: Parameters = [
        ((rng.random((a, b)) + 0.5).astype(np.float32), np.full(b, 1.0, np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    # Inputs are positive: so are all activations.
    huge, tiny = np.float32(1e25), np.float32(1e-25)
    if where == "activation":
        parameters[0][0][...] *= huge
        parameters[1][0][...] = 0
    else:
        parameters[1][0][...] *= tiny
        parameters[1][1][...] = tiny  # type: ignore[index]
        parameters[2][0][...] *= huge
    x, y = rng.random((30, 40)).astype(np.float32), rng.random((30, 5)).astype(np.float32)
    engine = blocked.engine(spec, LOSSES["mse"], SGD(), n_threads=2, batch_size=30)
    engine.load(parameters)
    losses = np.zeros(1)
    scalars = SGD().scalars(0, np.full(1, 1e-3))
    outcome = engine.run(x, y, None, np.arange(30), np.array([0, 30]), scalars, losses)
    assert np.isfinite(losses).all()
    assert outcome.status == Status.GRADIENT_NOT_FINITE
    assert flat(engine.export()).tobytes() == flat(parameters).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(blocked: Backend, bad: float) -> None:
    spec, parameters, x, y = setting("float32")
    engine = blocked.engine(spec, LOSSES["mse"], SGD(), n_threads=2, batch_size=30)
    engine.load(parameters)
    y[45, 2] = bad
    losses = np.zeros(3)
    scalars = SGD().scalars(0, np.full(3, 1e-3))
    outcome = engine.run(x, y, None, np.arange(90), np.arange(0, 91, 30), scalars, losses)
    assert outcome.status == Status.LOSS_NOT_FINITE
    assert outcome.steps == 1
    assert np.isfinite(losses[0])
    assert not np.isfinite(losses[1])
    again = blocked.engine(spec, LOSSES["mse"], SGD(), n_threads=1, batch_size=30)
    again.load(parameters)
    again.run(x, y, None, np.arange(30), np.array([0, 30]), scalars[:1], losses[:1])
    assert flat(engine.export()).tobytes() == flat(again.export()).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_turned_gradient_has_the_same_bits(blocked: Backend, dtype: str) -> None:
    """Eight outputs are not turned: half as large a gradient each, the mean being over twice."""
    turned, batch, rng = at.TURNED_OUTPUTS, at.TURNED_ROWS + 5, np.random.default_rng(0)
    w = rng.standard_normal((100, 2 * turned)).astype(dtype)
    b = rng.standard_normal(2 * turned).astype(dtype)
    x = rng.standard_normal((batch, 100)).astype(dtype)
    y = rng.standard_normal((batch, 2 * turned)).astype(dtype)
    found = []
    for outputs in (turned, 2 * turned):
        engine = blocked.engine(NetworkSpec.chain([Dense(100, outputs)], dtype), LOSSES["mse"])
        engine.load([(w[:, :outputs], b[:outputs])])
        found.append(engine.gradients(x, y[:, :outputs].copy(), None)[1][0])
    (got, got_b), (want, want_b) = found
    assert np.array_equal(got, 2 * want[:, :turned])
    assert got_b is not None
    assert want_b is not None
    assert np.array_equal(got_b, 2 * want_b[:turned])


@pytest.mark.parametrize("outputs", [1, at.TURNED_OUTPUTS])
@pytest.mark.parametrize(
    ("one_visit", "two_passes"), [(SGD(), SGD(clip_norm=1e9)), (Adam(), Adam(clip_norm=1e9))]
)
def test_turned_tiles_in_one_visit(
    blocked: Backend, outputs: int, one_visit: Optimizer, two_passes: Optimizer
) -> None:
    batch, rng = 2 * at.TURNED_ROWS, np.random.default_rng(0)
    spec = NetworkSpec.chain([Dense(at.FUSE_FROM * 32, outputs)], "float32")
    w = rng.standard_normal((at.FUSE_FROM * 32, outputs)).astype(np.float32)
    x = rng.standard_normal((batch, len(w))).astype(np.float32)
    y = rng.standard_normal((batch, outputs)).astype(np.float32)
    found = []
    for optimizer in (one_visit, two_passes):
        engine: Any = blocked.engine(spec, LOSSES["mse"], optimizer, n_threads=2, batch_size=batch)
        engine.load([(w, np.zeros(outputs, np.float32))])
        order, bounds = np.arange(3 * batch) % batch, np.arange(4) * batch
        scalars, losses = optimizer.scalars(0, np.full(3, 1e-3)), np.zeros(3)
        assert engine.run(x, y, None, order, bounds, scalars, losses).steps == 3
        engine.poison(np.nan)
        found.append(flat(engine.export()))
    assert np.isfinite(found[0]).all()
    assert np.array_equal(*found)
