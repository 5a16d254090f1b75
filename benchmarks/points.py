"""Which networks `sweep.py` measures: corners of what is allowed, and points drawn between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastneuron.peers.problems import ACTIVATIONS, LOSSES, RATES, Row

WIDEST, DEEPEST, LARGEST_BATCH = 4096, 20, 8192
#: Layers above which no network is drawn whose gradient shrinks by half or more in each of them:
#: nothing would be left to compare in the first, and Adam's second moments are subnormal numbers.
FADES_AFTER, FADING = 6, ("sigmoid", "softplus")


@dataclass(frozen=True)
class Limits:
    """What a point may cost at most, so that a step takes some 0.1 s on one core.

    Attributes
    ----------
    work : multiply-adds of a step; the largest row of the engine's table has 11.8e9
    parameters : of the network
    values : batch times the sum of all widths; a data set is four batches, and more
    """

    work: float = 12e9
    parameters: int = 2**25
    values: int = 2**24

    def allow(self, row: Row) -> bool:
        weights = sum(a * b for a, b in zip(row.sizes, row.sizes[1:], strict=False))
        return (
            row.multiply_adds <= self.work
            and weights + sum(row.sizes[1:]) <= self.parameters
            and row.batch * sum(row.sizes) <= self.values
        )


#: Where widths, depth and batch are as small or as large as a point's cost lets them.
CORNERS = tuple(
    Row.parse(text)
    for text in (
        "1-1 b1 sgd",
        "1-1 b8192 adam",
        "4096-4096 b1 sgd",
        "4096-1 b4095 momentum",
        "1-4096 b4095 adam",
        "4096-4096 b64 adam",
        "1-4096-1 b256 rmsprop",
        "4096-2-4096 b128 adamw",
        "1*21 b1 sgd tanh",
        "1*21 b8192 nesterov tanh",
        "64*21 b1 sgd",
        "64*21 b8192 adam",
        "1024*21 b1 momentum",
    )
)


def _log_uniform(rng: np.random.Generator, most: int) -> int:
    """Draw from 1 to `most`, every octave as likely."""
    return int(math.exp(rng.uniform(0, math.log(most + 1))))


def _draw(rng: np.random.Generator) -> Row:
    layers = _log_uniform(rng, DEEPEST)
    if rng.random() < 0.5:  # hidden layers alike, as people make them
        hidden = [_log_uniform(rng, WIDEST)] * (layers - 1)
    else:
        hidden = [_log_uniform(rng, WIDEST) for _ in range(layers - 1)]
    sizes = (_log_uniform(rng, WIDEST), *hidden, _log_uniform(rng, WIDEST))
    losses = [name for name in LOSSES if sizes[-1] > 1 or name != "cross_entropy"]
    kept = [name for name in ACTIVATIONS if layers <= FADES_AFTER or name not in FADING]
    return Row(
        sizes,
        _log_uniform(rng, LARGEST_BATCH),
        str(rng.choice(list(RATES))),
        "relu" if rng.random() < 0.5 else str(rng.choice(kept)),
        bias=bool(rng.random() < 0.9),
        asked_loss=None if rng.random() < 0.5 else str(rng.choice(losses)),
    )


def draw_points(seed: int, count: int, limits: Limits) -> Iterator[Row]:
    """Yield points inside the limits; the first ones are the same for every count.

    Widths, the number of layers and the batch are log-uniform, each point's from a stream of its
    own; a point that would cost too much is drawn again, whole.
    """
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        while not limits.allow(row := _draw(rng)):
            pass
        yield row
