"""What is trained: the rows of the table, and the problem of a row."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.spec import NetworkSpec

Array = Any

#: Learning rates, at most. `Problem.learning_rate` is so much less that wide and deep networks stay
#: stable for thousands of steps, and still moves float32 weights far beyond their rounding.
RATES = {
    "sgd": 0.02,
    "momentum": 0.01,
    "nesterov": 0.01,
    "adam": 1e-3,
    "adamw": 1e-3,
    "rmsprop": 1e-3,
}
MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-8
DECAY, RHO = 0.01, 0.9  # AdamW's, of weights and not of biases; RMSprop's
#: Arrays of moments that an optimizer keeps for every parameter.
MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 1}
ACTIVATIONS = (
    "relu", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus", "leaky_relu",
)  # fmt: skip
NORMS: dict[str, type[BatchNorm] | type[LayerNorm]] = {
    "batch_norm": BatchNorm,
    "layer_norm": LayerNorm,
}
LOSSES = ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "poisson")

#: Rows of the data set, at least; and at least so many batches.
DATA_ROWS, DATA_BATCHES = 4096, 4
#: More layers than this start sqrt(2) times larger, or ReLUs would let nothing through to the last.
SHALLOW = 4


class Network:
    """What rows and problems say of a network. Hidden layers are alike, the last has no activation.

    Attributes
    ----------
    sizes : widths from the input to the output
    batch : rows of a step
    activation : of the hidden layers
    bias : whether dense layers have one, where it has an effect
    norm : one of NORMS after each hidden layer's products, before the activation, or nothing
    dropout : rate of a dropout after each hidden layer, or 0
    frozen : so many of the first dense layers are not trained
    """

    sizes: tuple[int, ...]
    batch: int
    activation: str
    bias: bool
    dtype: str
    norm: str
    dropout: float
    frozen: int

    def spec(self, dtype: str) -> NetworkSpec:
        bias = "auto" if self.bias else False
        layers: list[Layer] = []
        hidden = list(pairwise(self.sizes))
        last = hidden.pop()
        for i, (a, b) in enumerate(hidden):
            activation = "identity" if self.norm else self.activation
            layers.append(Dense(a, b, activation, bias=bias, trainable=i >= self.frozen))
            if self.norm:
                layers.append(NORMS[self.norm](activation=self.activation))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        layers.append(Dense(*last, bias=bias, trainable=len(hidden) >= self.frozen))
        return NetworkSpec.chain(layers, dtype)

    @property
    def plain(self) -> bool:
        """Whether all layers are dense, and all of them trained."""
        return not (self.norm or self.dropout or self.frozen)

    @property
    def multiply_adds(self) -> int:
        """Of a step: forward, data gradient where anything learns from it, weight gradient."""
        return self.batch * self.spec(self.dtype).multiply_adds


@dataclass(frozen=True, eq=False)
class Problem(Network):
    """What to train, on what, from where.

    Attributes
    ----------
    optimizer : one of RATES, with the constants of this file
    loss : one of LOSSES, mean over the batch and, but for cross-entropy, over the outputs
    x : (n, I)
    y : (n, O), or (n,) int64 class numbers for cross-entropy
    parameters : what every peer starts from
    rate : learning rate, where it shall be another than a stable one
    """

    sizes: tuple[int, ...]
    batch: int
    optimizer: str
    activation: str
    bias: bool
    dtype: str
    loss: str
    x: Array
    y: Array
    parameters: Parameters
    norm: str = ""
    dropout: float = 0.0
    frozen: int = 0
    rate: float | None = None

    @property
    def data_rows(self) -> int:
        return len(self.x)

    @property
    def statistics(self) -> list[tuple[Array, Array]]:
        """Running mean and variance that every peer starts from, of each batch normalisation."""
        layers = self.spec(self.dtype).layers
        widths = [layer.out_features for layer in layers if layer.has_statistics]
        return [(np.zeros(n, self.dtype), np.ones(n, self.dtype)) for n in widths]

    @property
    def learning_rate(self) -> float:
        """`rate`, or that of RATES, over what a step of 1 in every weight would do to the outputs.

        A gradient step is stable below 2 over the loss's curvature: at most some 50 (poisson) times
        the squared inputs of all weights that an output hangs on, over the outputs of a mean. Steps
        of Adam and RMSprop have a size of their own: that of all weights of an output counts.
        """
        if self.rate is not None:
            return self.rate
        reach = max(self.sizes[:-1]) * (len(self.sizes) - 1)
        if self.optimizer in ("adam", "adamw", "rmsprop"):
            calm = 64 / reach
        else:
            calm = 4 * (1 if self.loss == "cross_entropy" else self.sizes[-1]) / reach
        return RATES[self.optimizer] * min(1.0, calm)


@dataclass(frozen=True)
class Row(Network):
    """A network, batch and optimizer; the efficiencies asked of one and two cores, if any."""

    sizes: tuple[int, ...]
    batch: int
    optimizer: str
    activation: str = "relu"
    bias: bool = True
    dtype: str = "float32"
    goals: tuple[float | None, float | None] = (None, None)
    asked_loss: str | None = None
    norm: str = ""
    dropout: float = 0.0
    frozen: int = 0

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read "784-128-10 b32 sgd", with any of tanh ..., mae ..., float64, nobias after it.

        "64*5" are five layers of 64. batch_norm, layer_norm, dropout0.1 and frozen1 (layers) too.
        """
        words = text.split()
        try:
            sizes: tuple[int, ...] = ()
            for word in words[0].split("-"):
                size, _, times = word.partition("*")
                sizes += (int(size),) * int(times or 1)
            row = cls(sizes, int(words[1].removeprefix("b")), words[2])
            more: dict[str, Any] = {}
            for word in words[3:]:
                if word in ACTIVATIONS:
                    more["activation"] = word
                elif word in LOSSES:
                    more["asked_loss"] = word
                elif word in ("float32", "float64"):
                    more["dtype"] = word
                elif word == "nobias":
                    more["bias"] = False
                elif word in NORMS:
                    more["norm"] = word
                elif word.startswith("dropout"):
                    more["dropout"] = float(word.removeprefix("dropout"))
                elif word.startswith("frozen"):
                    more["frozen"] = int(word.removeprefix("frozen"))
                else:
                    raise ValueError
            if len(sizes) < 2 or min(*sizes, row.batch) < 1 or row.optimizer not in RATES:
                raise ValueError
            # The last layer is trained in any case, or there were nothing to measure.
            if not (
                0 <= more.get("dropout", 0) < 1 and 0 <= more.get("frozen", 0) < len(sizes) - 1
            ):
                raise ValueError
        except (ValueError, IndexError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no row: want '784-128-10 b32 sgd', the optimizer one of "
                f"{', '.join(RATES)}, then any of {', '.join(ACTIVATIONS)}, {', '.join(LOSSES)}, "
                f"{', '.join(NORMS)}, dropout0.1, frozen1, float64, nobias"
            ) from None
        return cls(sizes, row.batch, row.optimizer, **more)

    @property
    def label(self) -> str:
        runs = [(size, len(list(group))) for size, group in groupby(self.sizes)]
        sizes = [f"{size}*{n}" if n > 3 else "-".join([str(size)] * n) for size, n in runs]
        words = ["-".join(sizes), f"b{self.batch}", self.optimizer]
        words += [self.activation] if self.activation != "relu" else []
        words += [self.asked_loss] if self.asked_loss else []
        words += [self.norm] if self.norm else []
        words += [f"dropout{self.dropout:g}"] if self.dropout else []
        words += [f"frozen{self.frozen}"] if self.frozen else []
        words += ["float64"] if self.dtype == "float64" else []
        words += [] if self.bias else ["nobias"]
        return " ".join(words)

    @property
    def loss(self) -> str:
        """The one asked for; else squared error for one output or very many, or classes."""
        if self.asked_loss:
            return self.asked_loss
        return "mse" if self.sizes[-1] == 1 or self.sizes[-1] >= 1000 else "cross_entropy"

    @property
    def data_rows(self) -> int:
        return max(DATA_ROWS, DATA_BATCHES * self.batch)


TABLE = (
    Row((1024, 2048, 2048, 1024), 512, "sgd", goals=(0.93, 0.88)),
    Row((784, 512, 512, 10), 256, "adam", goals=(0.89, 0.84)),
    Row((17, 256, 256, 6), 256, "adam", goals=(0.87, 0.78)),
    Row((784, 128, 10), 128, "adam", goals=(0.82, 0.72)),
    Row((784, 128, 10), 32, "sgd", goals=(0.80, 0.62)),
    Row((64, 128, 10), 64, "momentum", goals=(0.65, 0.45)),
    Row((20, 64, 64, 2), 32, "adam", goals=(0.55, None)),
    Row((2, 8, 1), 4, "sgd"),
)


def parse_rows(text: str) -> list[Row]:
    """Read rows of the table by their numbers, and networks as `Row.parse` does."""
    rows = []
    for part in text.split(","):
        if part.strip().isdecimal():
            if not 1 <= int(part) <= len(TABLE):
                raise argparse.ArgumentTypeError(f"rows are 1 to {len(TABLE)}, got {part.strip()}")
            rows.append(TABLE[int(part) - 1])
        else:
            rows.append(Row.parse(part))
    return rows


def problem_of(row: Row, seed: int = 0) -> Problem:
    """Draw data, and parameters as large as glorot_uniform's with biases that matter."""
    rng = np.random.default_rng(seed)
    of_norms = np.random.default_rng((seed, 1))  # a network without them draws the same
    n = row.data_rows
    parameters: Parameters = []
    gain = 12 if len(row.sizes) - 1 > SHALLOW else 6
    for layer in row.spec(row.dtype).layers:
        if isinstance(layer, Dense):
            fans = layer.weight_shape
            w = rng.uniform(-1, 1, fans) * np.sqrt(gain / sum(fans))
            b = rng.uniform(-0.1, 0.1, fans[1])
        else:
            w = of_norms.uniform(0.9, 1.1, layer.weight_shape)
            b = of_norms.uniform(-0.1, 0.1, layer.out_features)
        parameters.append((w.astype(row.dtype), b.astype(row.dtype) if layer.bias else None))
    x = rng.standard_normal((n, row.sizes[0])).astype(row.dtype)
    shape = (n, row.sizes[-1])
    if row.loss == "cross_entropy":
        y = rng.integers(0, row.sizes[-1], n)
    elif row.loss == "binary_cross_entropy":
        y = rng.integers(0, 2, shape).astype(row.dtype)
    elif row.loss == "poisson":
        y = rng.poisson(1.0, shape).astype(row.dtype)
    else:
        y = rng.standard_normal(shape).astype(row.dtype)
    given = (row.sizes, row.batch, row.optimizer, row.activation, row.bias, row.dtype, row.loss)
    return Problem(*given, x, y, parameters, row.norm, row.dropout, row.frozen)


def draw_order(rng: np.random.Generator, n: int, batch: int, steps: int) -> Array:
    """Return the rows of `steps` full batches (steps, batch), every epoch shuffled anew."""
    per_epoch = n // batch
    epochs = -(-steps // per_epoch)
    rows = np.concatenate([rng.permutation(n)[: per_epoch * batch] for _ in range(epochs)])
    return rows.reshape(-1, batch)[:steps]
