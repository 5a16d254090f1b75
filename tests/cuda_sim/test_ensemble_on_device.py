"""`Ensemble` on the device: what it makes of each network is what the reference makes of it."""

from __future__ import annotations

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import ensemble_parameters
from fastneuron.kernels.device_plan import Blocks, Tile
from fastneuron.kernels.numba_cuda import engine

RNG = np.random.default_rng(5)
X = RNG.normal(size=(6, 3)).astype(np.float32)
Y = np.stack([X[:, 0] * X[:, 1], X[:, 2]], axis=1)
OPTIMIZERS = [fn.Adam(0.01), fn.Adam(0.02)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work cut small, for a simulated thread takes a millisecond; parameters go home if asked."""
    blocks = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)
    monkeypatch.setattr(ensemble_parameters, "_KEEP_SECONDS", 1e9)
    monkeypatch.setattr(engine, "tile_of", lambda dtype: Tile(8, 8, 4, 4, 4))
    monkeypatch.setattr(engine, "Blocks", lambda: blocks)


def networks() -> list[fn.Sequential]:
    return [fn.mlp([3, 4, 2], "tanh", seed=m) for m in range(2)]


def weights(net: fn.Sequential) -> list[np.ndarray]:
    return [array for layer in net.layers for array in (layer.weight, layer.bias)]


def test_each_network_is_trained_as_the_reference_trains_it() -> None:
    nets, want = networks(), networks()
    ensemble = fn.Ensemble(nets, "mse", OPTIMIZERS, batch_size=4, device="cuda")
    reference = fn.Ensemble(want, "mse", OPTIMIZERS, batch_size=4, backend="numpy")
    assert ensemble.plan["device"] == "cuda"
    own = np.stack([X, X[::-1]])
    for data in ((X, Y), (own, Y)):
        np.testing.assert_allclose(ensemble.run(*data), reference.run(*data), rtol=1e-4)
    weight = np.array([[1, 2, 0, 1, 1, 1], [1, 1, 1, 1, 2, 0]])
    got = ensemble.step(X, Y, weight)
    np.testing.assert_allclose(got, reference.step(X, Y, weight), rtol=1e-4)
    for net, of_reference in zip(nets, want, strict=True):
        for one, other in zip(weights(net), weights(of_reference), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(ensemble.forward(X), reference.forward(X), atol=1e-5)
    with fn.backends.use("numpy"):
        np.testing.assert_allclose(nets[1].forward(X), want[1].forward(X), atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_one_that_diverges_stops_alone() -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", OPTIMIZERS, batch_size=4, device="cuda")
    for layer in nets[1].layers:
        layer.weight = np.full(layer.weight.shape, 3e38, np.float32)
    before = weights(nets[1])
    with pytest.warns(fn.DivergenceWarning, match="1 of 2 networks diverged.*: 1 at step 0"):
        losses = ensemble.step(X, Y)
    assert np.isnan(losses).tolist() == [False, True]
    again = ensemble.step(X, Y)
    assert np.isnan(again).tolist() == [False, True]
    assert again[0] < losses[0]
    for one, other in zip(weights(nets[1]), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert ensemble.steps.tolist() == [2, 0]
