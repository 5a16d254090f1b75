"""What is trained while it is timed: a network with its data, and whether its steps are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array
from fastneuron.descriptions import checked_count
from fastneuron.errors import FastneuronError, SpecError
from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import OPTIMIZERS, Optimizer
from fastneuron.spec import NetworkSpec
from fastneuron.testing import assert_within, draw_parameters, draw_targets, training_step, updated

__all__ = ["STEPS_A_CALL", "Check", "Setting", "Workload", "WrongResult", "within"]

#: Learning rate of timed steps: they move parameters by more than rounding, and ten thousands of
#: steps leave the network where it is.
RATE = 1e-7
#: Batches of the data: more than a first-level cache holds of any but the smallest.
BATCHES = 4
#: Draws of a neuron until it is active on some row: half of those of a first layer are on each.
_DRAWS = 100
#: Steps of one call of an engine: the order of so many rows stays in a cache.
STEPS_A_CALL = 64


class WrongResult(FastneuronError, ArithmeticError):
    """What was to be timed computes something else than the reference: no time is reported."""


@dataclass(frozen=True)
class Setting:
    """One network, batch and machine part: a point of a sweep.

    Attributes
    ----------
    sizes : tuple of int
        Widths from the input to the output.
    batch_size : int
    activation : str
        Of the hidden layers; the last has none.
    loss, optimizer, dtype, backend : str
    n_threads : int
    """

    sizes: tuple[int, ...]
    batch_size: int
    activation: str = "relu"
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    dtype: str = "float32"
    backend: str = "auto"
    n_threads: int = 1

    @classmethod
    def checked(cls, layers: Sequence[int], batch_size: int, **others: Any) -> Setting:
        """Return the setting with its backend chosen; what cannot be is a FastneuronError."""
        if len(layers) < 2:
            raise SpecError("layers needs the width of the input and of every layer: 784,512,10")
        sizes = tuple(checked_count("layers", "each width", width) for width in layers)
        setting = cls(sizes, checked_count("profile", "batch_size", batch_size), **others)
        checked_count("profile", "n_threads", setting.n_threads)
        ACTIVATIONS[setting.activation]
        if LOSSES[setting.loss].targets == "classes" and sizes[-1] < 2:
            raise SpecError(
                f"{setting.loss} needs 2 outputs or more; the last layer has {sizes[-1]}"
            )
        OPTIMIZERS[setting.optimizer]
        NetworkSpec.chain([Dense(1, 1)], setting.dtype)
        work = 1e9  # compiling is paid for elsewhere, and is told apart
        chosen = backends.get(setting.backend, setting.dtype, work).name
        return replace(setting, backend=chosen)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.dtype).itemsize

    def spec(self, *, bias: bool = True, trainable: bool | str = True) -> NetworkSpec:
        """Return the network, with biases or without."""
        last = len(self.sizes) - 2
        layers = [
            Dense(
                inputs,
                outputs,
                "identity" if i == last else self.activation,
                bias=bias,
                trainable=trainable,
            )
            for i, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False))
        ]
        return NetworkSpec.chain(layers, self.dtype)

    @property
    def label(self) -> str:
        """Return the setting in a line."""
        threads = f"{self.n_threads} thread{'s' * (self.n_threads > 1)}"
        return (
            f"{'-'.join(map(str, self.sizes))} {self.activation}, batch {self.batch_size}, "
            f"{self.optimizer}, {self.dtype}; {self.backend}, {threads}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the setting as plain values."""
        return {
            "layers": list(self.sizes),
            "batch_size": self.batch_size,
            "activation": self.activation,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "dtype": self.dtype,
            "backend": self.backend,
            "threads": self.n_threads,
        }


class Workload:
    """The data, the parameters and the optimizer of a setting; drawn once, the same for everyone.

    Attributes
    ----------
    x : (BATCHES * batch_size, I); y as the loss takes it
    parameters : row-major, with biases
    """

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting = setting
        rng = np.random.default_rng(seed)
        rows = BATCHES * setting.batch_size
        self.loss: Loss = LOSSES[setting.loss]
        # Without decay, which would shrink a bias that is a row of the weight, and no other.
        rule: Any = OPTIMIZERS[setting.optimizer]
        self.optimizer: Optimizer = rule(RATE, weight_decay=0.0)
        self.spec = setting.spec()
        self.x: Array = rng.normal(size=(rows, setting.sizes[0])).astype(setting.dtype)
        self.parameters: Parameters = _enlivened(
            self.spec, draw_parameters(self.spec, rng), self.x, rng
        )
        self.y: Array = draw_targets(self.loss, rng, rows, setting.sizes[-1], setting.dtype)
        if self.loss.targets == "classes":
            self.y = rng.integers(0, setting.sizes[-1], rows)
        order = [rng.permutation(rows) for _ in range(STEPS_A_CALL // BATCHES)]
        self.order: NDArray[np.int64] = np.concatenate(order).astype(np.int64)
        self.bounds = np.arange(STEPS_A_CALL + 1, dtype=np.int64) * setting.batch_size
        self.scalars = self.optimizer.scalars(0, np.full(STEPS_A_CALL, RATE))

    @property
    def batch(self) -> tuple[Array, Array]:
        """The rows whose step is checked."""
        rows = self.setting.batch_size
        return self.x[:rows], self.y[:rows]

    def without_biases(self) -> Parameters:
        """Return the same weights alone."""
        return [(weight, None) for weight, _ in self.parameters]

    @cached_property
    def with_bias(self) -> Check:
        """What a step with biases must give."""
        return Check(self, self.spec, self.parameters)

    @cached_property
    def without_bias(self) -> Check:
        """What a step without biases must give."""
        return Check(self, self.setting.spec(bias=False), self.without_biases())

    @cached_property
    def frozen(self) -> Check:
        """What a step gives that leaves the biases as they are."""
        return Check(self, self.setting.spec(trainable="weight"), self.parameters)


def _enlivened(
    spec: NetworkSpec, parameters: Parameters, x: Array, rng: np.random.Generator
) -> Parameters:
    """Draw anew every neuron that no row makes active, in the network with biases or without.

    The moments of a dead ReLU's weights fade to subnormal numbers and stay there, which some
    processors are slow at: whether a network happened to have one would then count as its bias's
    cost (measured on Zen 5: two such neurons of 130 make a step of 20-64-64-2 16 % slower).
    """
    inputs = [x.astype(np.float64)] * 2
    for layer, (weight, bias) in zip(spec.layers, parameters, strict=True):
        assert bias is not None
        for _ in range(_DRAWS):
            zs = [inputs[0] @ weight + bias, inputs[1] @ weight]
            dead = np.flatnonzero(np.logical_or.reduce([(z <= 0).all(axis=0) for z in zs]))
            if layer.activation != "relu" or not len(dead):
                break
            weight[:, dead] = rng.normal(0, len(weight) ** -0.5, (len(weight), len(dead)))
            bias[dead] = rng.uniform(-0.5, 0.5, len(dead))
        inputs = [ACTIVATIONS[layer.activation].f(z) for z in zs]
    return parameters


class Check:
    """One step in float64 with a proved bound beside every number, and comparisons with it."""

    def __init__(self, workload: Workload, spec: NetworkSpec, parameters: Parameters) -> None:
        self.spec, self.start = spec, parameters
        x, y = workload.batch
        self.want = training_step(spec, workload.loss, parameters, x, y)
        zeros: Parameters = [
            (np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in parameters
        ]
        moments = [zeros] * workload.optimizer.n_moments
        self.after, _ = updated(
            spec,
            workload.optimizer,
            parameters,
            self.want.gradients,
            moments,
            workload.scalars[0],
        )

    def gradients(self, who: str, loss: float, gradients: Parameters) -> float:
        """Raise where loss or gradients are wrong; return the largest share of a bound."""
        shares = [within(who, "the loss", np.asarray(loss), self.want.loss)]
        layers = zip(self.spec.layers, gradients, self.want.gradients, strict=True)
        for i, (layer, (dw, db), (want_dw, want_db)) in enumerate(layers):
            shares.append(within(who, f"dL/dW of layer {i}", dw, want_dw))
            if want_db is not None and layer.trains_bias:
                shares.append(within(who, f"dL/db of layer {i}", db, want_db))
        return max(shares)

    def step(self, who: str, parameters: Parameters) -> float:
        """Raise where parameters after one step are wrong; return the largest share of a bound."""
        shares = []
        layers = zip(self.spec.layers, parameters, self.after, self.start, strict=True)
        for i, (layer, (w, b), (want_w, want_b), (_, b0)) in enumerate(layers):
            shares.append(within(who, f"the new W of layer {i}", w, want_w))
            if want_b is None:
                continue
            if layer.trains_bias:
                shares.append(within(who, f"the new b of layer {i}", b, want_b))
            elif not np.array_equal(b, b0):  # type: ignore[arg-type]
                raise WrongResult(f"{who}: b of layer {i} is frozen, but a step changed it")
        return max(shares)


def within(who: str, what: str, got: Any, want: Any) -> float:
    """Return the largest share of a bound that is used; raise WrongResult beyond it."""
    try:
        return assert_within(got, want, f"{who}: {what}")
    except AssertionError as error:
        raise WrongResult(f"{error}; no time is reported") from None
