"""The device as a backend: asked for by name, reached through the registry, trained by `fit`."""

from __future__ import annotations

import numpy as np

import fastneuron as fn
from fastneuron import backends
from fastneuron.kernels import fused_plan
from fastneuron.kernels.device_plan import Blocks
from fastneuron.kernels.numba_cuda import engine
from fastneuron.optimizers import SGD


def test_the_backend_is_one_of_those_that_run() -> None:
    found = backends.available()["cuda"]
    assert isinstance(found, backends.Backend)
    assert (found.device, found.has_engine) == ("cuda", True)
    assert set(found.origin.values()) == {"numpy"}


def test_fit_trains_as_on_the_reference(monkeypatch) -> None:
    # Small blocks, since each of their threads is one of Python's; whole numbers and powers of two,
    # so every sum is exact in any order.
    small = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)
    monkeypatch.setattr(engine, "Blocks", lambda: small)
    monkeypatch.setattr(fused_plan, "SHARED_BYTES", 4096)  # for 32 rows a block
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (8, 3)).astype("float32")
    y = x @ np.array([1, -2, 3], "float32") + 1
    nets = [fn.Sequential(fn.Dense(3, 1, weight_init="zeros")) for _ in range(2)]
    for net, backend in zip(nets, ("cuda", "numpy"), strict=True):
        net.fit(
            x,
            y,
            loss="mse",
            optimizer=SGD(2.0**-4),
            epochs=1,
            batch_size=4,
            seed=0,
            backend=backend,
        )
    got, want = ([net.layers[0].weight, net.layers[0].bias] for net in nets)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert got[0].any()
    assert got[1].any()
