"""A team of threads over every kind of step: what a checker of data races shall watch.

Bits are compared here too, but most races do not show in them: `.ci/sanitize` runs this room with
the kernels in C under ThreadSanitizer, which sees those.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Status
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, Optimizer, RMSprop
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_inputs, draw_parameters, draw_targets


def dense(*sizes: int) -> list[Layer]:
    """A dense layer between each two sizes, the second without a bias, the last identity."""
    layers: list[Layer] = [
        Dense(a, b, ("gelu", "relu", "tanh")[i % 3], bias=i != 1)
        for i, (a, b) in enumerate(pairwise(sizes))
    ]
    layers[-1] = Dense(sizes[-2], sizes[-1])
    return layers


#: Layers, loss, optimizer: few and many weight tiles, slim layers, two passes where norms are
#: clipped, softmax and rows of values.
NETWORKS: dict[str, tuple[list[Layer], str, Optimizer]] = {
    "one tile": (dense(7, 9), "mse", SGD()),
    "tiles": (dense(40, 130, 70, 5), "cross_entropy", Adam()),
    "clipped": (dense(40, 130, 5), "huber", RMSprop(clip_norm=0.1)),
    "slim": (dense(2, 4, 3, 1), "binary_cross_entropy", SGD(momentum=0.9)),
    "slim at its end": (dense(50, 4, 4, 2), "poisson", SGD(momentum=0.9, nesterov=True)),
    "wide": (dense(300, 600, 3), "mae", SGD(weight_decay=0.1)),
    "normalised": (
        [
            BatchNorm(40),
            Dense(out_features=130),
            BatchNorm(activation="relu"),
            Dropout(0.3),
            Dense(out_features=70),
            LayerNorm(activation="gelu"),
            Dense(out_features=5),
        ],
        "cross_entropy",
        Adam(),
    ),
    "frozen in parts": (
        [
            Dense(300, 600, "relu", trainable="bias"),
            BatchNorm(activation="tanh", trainable=False),
            Dense(out_features=20, trainable=False),
            LayerNorm(trainable="weight"),
            Dense(out_features=3, trainable="weight"),
            BatchNorm(activation="silu", trainable="bias"),
        ],
        "mse",
        SGD(clip_norm=0.1),
    ),
}
#: Rows of the steps: few, so many that columns are dealt out, so many that rows are.
ROWS = (1, 3, 24, 150, 2, 64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_team_does_what_one_thread_does(blocked: Backend, name: str, dtype: str) -> None:
    layers, loss_name, optimizer = NETWORKS[name]
    spec, loss, rng = NetworkSpec.chain(layers, dtype), LOSSES[loss_name], np.random.default_rng(0)
    parameters, sizes = draw_parameters(spec, rng), spec.sizes
    statistics = [
        (np.zeros(layer.out_features, dtype), np.ones(layer.out_features, dtype))
        if layer.has_statistics
        else None
        for layer in spec.layers
    ]
    x = draw_inputs(rng, 200, sizes[0], dtype)
    y = draw_targets(loss, rng, 200, sizes[-1], dtype)
    weight = rng.uniform(0.5, 1.5, 200).astype(dtype)
    order = rng.integers(0, 200, sum(ROWS))
    bounds = np.concatenate([[0], np.cumsum(ROWS)]).astype(np.int64)
    scalars = optimizer.scalars(0, np.full(len(ROWS), 1e-3))
    dout = rng.standard_normal((90, sizes[-1])).astype(dtype)

    def trained(n_threads: int) -> list[Any]:
        engine = blocked.engine(spec, loss, optimizer, n_threads=n_threads, batch_size=8)
        engine.load(parameters)
        engine.load_statistics(statistics)
        losses = np.zeros(len(ROWS))
        outcome = engine.run(x, y, weight, order, bounds, scalars, losses)
        assert (outcome.status, outcome.steps) == (Status.OK, len(ROWS))
        found = [losses, engine.forward(x), engine.forward_keep(x[:90])]
        dx, outcome = engine.update(dout, scalars[0])
        assert outcome.status == Status.OK
        _loss, gradients = engine.gradients(x, y, None)
        pairs = [*gradients, *engine.export(), *(p for m in engine.export_moments() for p in m)]
        pairs += [pair for pair in engine.export_statistics() if pair is not None]
        found += [dx, *(array for pair in pairs for array in pair if array is not None)]
        return [array.tobytes() for array in found]

    want = trained(1)
    for n_threads in (2, 4):
        assert trained(n_threads) == want, f"{n_threads} threads"
