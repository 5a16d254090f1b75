"""What a user holds: a network to describe, train, ask and keep."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends, diagnostics, files, fitting
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array, as_rows, as_targets, as_weights, fits_finite_rows
from fastneuron.errors import SpecError
from fastneuron.initializers import BIAS_INITIALIZERS, WEIGHT_INITIALIZERS
from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.layers import Layer as Description
from fastneuron.losses import LOSSES, Loss
from fastneuron.order import checked_seed
from fastneuron.parameters import LiveEngine, ParameterStore
from fastneuron.spec import NetworkSpec
from fastneuron.trainer import mean_loss

__all__ = ["Layer", "Sequential", "load", "mlp"]


class Layer:
    """One layer of a network: its description, and its parameters as they are now.

    Attributes
    ----------
    spec : Dense, BatchNorm, LayerNorm or Dropout
    """

    def __init__(self, store: ParameterStore, index: int) -> None:
        self._store = store
        self._index = index
        self.spec: Description = store.spec.layers[index]

    @property
    def weight(self) -> Array:
        """A copy of the weight; assign to change it.

        (in_features, out_features) of a dense layer, (features,) of a normalisation, and (0,) of a
        layer that has none.
        """
        return self._store.pull()[self._index][0].copy()

    @weight.setter
    def weight(self, value: Any) -> None:
        self._store.set_weight(self._index, value)

    @property
    def bias(self) -> Array | None:
        """A copy of the bias (out_features,), or None where there is none; assign to change it."""
        bias = self._store.pull()[self._index][1]
        return None if bias is None else bias.copy()

    @bias.setter
    def bias(self, value: Any) -> None:
        self._store.set_bias(self._index, value)

    @property
    def running_mean(self) -> Array | None:
        """A copy of a `BatchNorm`'s running mean (features,), else None; assignable."""
        pair = self._store.pull_statistics()[self._index]
        return None if pair is None else pair[0].copy()

    @running_mean.setter
    def running_mean(self, value: Any) -> None:
        self._store.set_statistics(self._index, value, self.running_variance)

    @property
    def running_variance(self) -> Array | None:
        """A copy of a `BatchNorm`'s running variance (features,), else None; assignable."""
        pair = self._store.pull_statistics()[self._index]
        return None if pair is None else pair[1].copy()

    @running_variance.setter
    def running_variance(self, value: Any) -> None:
        self._store.set_statistics(self._index, self.running_mean, value)

    def __repr__(self) -> str:
        return f"Layer({self.spec!r})"


class Sequential:
    """A network of layers, each fed by the one before.

    Parameters
    ----------
    *layers : Dense, BatchNorm, LayerNorm or Dropout
        in_features may be left out after the first.
    dtype : {"float32", "float64"}
    seed : int, optional
        Decides the initial parameters and, unless a trainer has its own, the data order. Left out,
        it is drawn; `seed` says what it was.

    Raises
    ------
    SpecError
        Where the layers' sizes do not fit together.

    Notes
    -----
    Each weight and each bias has a random stream of its own, so that two networks of one seed
    that differ only in their biases start from the same weights.

    Several Python threads may use one network; their calls of it wait for each other.

    Attributes
    ----------
    layers : tuple of Layer
    seed : int
    preprocessing : dict or None
        What `save` keeps beside the parameters: how raw data becomes X.
    parameters : ParameterStore
        The one truth about the parameters, which trainers share.
    """

    def __init__(
        self, *layers: Description, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        spec = NetworkSpec.chain(layers, dtype)
        self.seed = secrets.randbits(32) if seed is None else checked_seed(seed)
        self.preprocessing: dict[str, Any] | None = None
        self._set(ParameterStore(spec, _initial(spec, self.seed)))

    @property
    def spec(self) -> NetworkSpec:
        """The network's description."""
        return self.parameters.spec

    @property
    def loss(self) -> str | None:
        """Name of the loss that the network was last trained for."""
        return self.parameters.loss

    # The functions are the methods: their first argument is the network.
    fit = fitting.fit
    diagnose = diagnostics.diagnose

    def forward(self, X: Any) -> Array:
        """Return the output (n, out_features) for X (n, in_features): logits, rates' logs, values.

        Raises
        ------
        DataError
            Where X is not two-dimensional, has the wrong width, or holds NaN or infinity.
        """
        if not fits_finite_rows(X, self._features, self._dtype):
            X = as_rows(X, "X", self._dtype, self._features)
        with self.parameters.lock:
            return self._live().answer(X)

    def predict(self, X: Any) -> Array:
        """Return predictions by the loss trained for.

        Class numbers (n,) for cross_entropy; 0 or 1 for binary_cross_entropy, (n,) where there is
        one output; the rate for poisson; else, and before any training, what `forward` returns.
        """
        out = self.forward(X)
        return out if self.loss is None else LOSSES[self.loss].predict(out)

    def predict_proba(self, X: Any) -> Array:
        """Return probabilities (n, out_features), after training for a classification loss.

        For cross_entropy each row sums to 1; for binary_cross_entropy each output has its own.
        """
        if self.loss not in ("cross_entropy", "binary_cross_entropy"):
            raise SpecError(
                "predict_proba needs a network trained for cross_entropy or binary_cross_entropy; "
                f"this one's loss is {self.loss!r}"
            )
        out = self.forward(X)
        if self.loss == "binary_cross_entropy":
            return ACTIVATIONS["sigmoid"].f(out)
        p = np.exp(out - out.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def evaluate(
        self, X: Any, y: Any, loss: str | Loss | None = None, sample_weight: Any = None
    ) -> float:
        """Return the mean loss over the rows; the loss is the one trained for unless given."""
        entry = self._loss(loss)
        x = as_rows(X, "X", self.spec.dtype, self.spec.in_features)
        targets = as_targets(y, entry.targets, len(x), self.spec.out_features, self.spec.dtype)
        weight = None if sample_weight is None else as_weights(sample_weight, len(x))
        return mean_loss(entry, self.forward(x), targets, weight)

    def score(self, X: Any, y: Any) -> float:
        """Return the share of right predictions for the classification losses, else R squared."""
        entry = self._loss(None)
        out = self.forward(X)
        targets = as_targets(y, entry.targets, len(out), self.spec.out_features, self.spec.dtype)
        got = entry.predict(out)
        if entry.targets == "classes" and targets.ndim == 2:
            targets = targets.argmax(axis=1)
        if entry.targets in ("classes", "binary"):
            return float(np.mean(got == targets.reshape(got.shape)))
        want = targets.astype(np.float64)
        rest = np.square(want - got).sum()
        spread = np.square(want - want.mean(axis=0)).sum()
        return float(1 - rest / spread) if spread > 0 else float(rest == 0)

    def save(
        self, path: str | os.PathLike[str], preprocessing: dict[str, Any] | None = None
    ) -> None:
        """Write the network to a model file (safetensors), whole or not at all.

        Parameters
        ----------
        path : path_like
        preprocessing : dict, optional
            A JSON description of how raw data becomes X, kept in the file and in `preprocessing`.
        """
        if preprocessing is not None:
            self.preprocessing = preprocessing
        store = self.parameters
        with store.lock:
            model = files.ModelFile(
                self.spec, store.pull(), store.pull_statistics(), self.loss, self.preprocessing
            )
        files.save(path, model)

    def summary(self) -> str:
        """Return a table of the layers: shapes, parameters, and how many of them are biases."""
        rows = [("layer", "kind", "shape", "activation", "weights", "biases")]
        for i, layer in enumerate(self.spec.layers):
            rows.append(
                (
                    str(i),
                    layer.kind,
                    f"{layer.in_features} -> {layer.out_features}",
                    layer.activation,
                    f"{layer.n_weights:,}",
                    f"{layer.n_parameters - layer.n_weights:,}" if layer.bias else "none",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 4 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        total = self.spec.n_parameters
        biases = sum(layer.out_features or 0 for layer in self.spec.layers if layer.bias)
        lines.append(
            f"{total:,} parameters ({self.spec.dtype}), {biases:,} of them biases "
            f"({100 * biases / total:.2g} %)"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sequential\n{self.summary()}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave engines out of copies and pickles."""
        return {
            "parameters": self.parameters,
            "seed": self.seed,
            "preprocessing": self.preprocessing,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.preprocessing = state["preprocessing"]
        self._set(state["parameters"])

    def _set(self, store: ParameterStore) -> None:
        self.parameters = store
        self._features = store.spec.in_features
        self._dtype = np.dtype(store.spec.dtype)
        self.layers = tuple(Layer(store, i) for i in range(len(store.spec.layers)))
        self._inference: LiveEngine | None = None
        self._inference_name = ""

    def _live(self) -> LiveEngine:
        """Return the engine to ask: a trainer's own where it is the newest, else one for asking."""
        owner = self.parameters.owner
        name = backends.current()
        if owner is not None and name in ("auto", owner.backend):
            return owner
        if self._inference is None or self._inference_name != name:
            backend = backends.get(dtype=self.spec.dtype)
            make = partial(backend.engine, self.spec)
            self._inference = LiveEngine(self.parameters, make, backend.name)
            self._inference_name = name
        return self._inference

    def _loss(self, loss: str | Loss | None) -> Loss:
        if isinstance(loss, Loss):
            return loss
        name = loss if loss is not None else self.loss
        if name is None:
            raise SpecError(
                f"no loss is known before training: give loss=... one of {', '.join(LOSSES)}"
            )
        return LOSSES[name]


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    output_activation: str = "identity",
    bias: bool = True,
    dtype: Any = "float32",
    seed: int | None = None,
    weight_init: str = "auto",
    bias_init: str = "zeros",
) -> Sequential:
    """Return a multi-layer perceptron of the widths `sizes`, from the input to the output.

    Parameters
    ----------
    sizes : sequence of int
        At least two: ``[784, 512, 10]`` has one hidden layer of 512 neurons.
    activation, output_activation : str
        Of the hidden layers, and of the last. Losses on logits want the output "identity".
    bias : bool
        Whether every layer has a bias, or none.
    dtype, seed
        See `Sequential`.
    weight_init, bias_init
        See `Dense`.
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise SpecError(f"sizes must be a list of widths such as [784, 512, 10], got {sizes!r}")
    widths = list(sizes)
    if len(widths) < 2:
        raise SpecError(f"sizes needs an input and an output width at least, got {widths!r}")
    last = len(widths) - 2
    layers = [
        Dense(
            widths[i],
            widths[i + 1],
            output_activation if i == last else activation,
            bias,
            weight_init,
            bias_init,
        )
        for i in range(last + 1)
    ]
    return Sequential(*layers, dtype=dtype, seed=seed)


def load(path: str | os.PathLike[str]) -> Sequential:
    """Return the network in a model file; see `fastneuron.files.load` for the errors."""
    model = files.load(path)
    net = Sequential.__new__(Sequential)
    store = ParameterStore(model.spec, model.parameters, model.statistics)
    store.loss = model.loss
    net.__setstate__({"parameters": store, "seed": 0, "preprocessing": model.preprocessing})
    return net


def _initial(spec: NetworkSpec, seed: int) -> Parameters:
    """Draw the parameters; key (0, layer, 0) is a weight's stream, (0, layer, 1) a bias's."""

    def stream(layer: int, which: int) -> np.random.Generator:
        key = np.random.SeedSequence(seed, spawn_key=(0, layer, which))
        return np.random.Generator(np.random.PCG64(key))

    def cast(array: NDArray[np.float64]) -> Array:
        return array.astype(spec.dtype)

    parameters: Parameters = []
    for i, layer in enumerate(spec.layers):
        if not isinstance(layer, Dense):
            beta = np.zeros(layer.out_features, spec.dtype) if layer.bias else None
            parameters.append((np.ones(layer.weight_shape, spec.dtype), beta))
            continue
        fan = (layer.in_features or 0, layer.out_features or 0, layer.activation)
        weight = cast(WEIGHT_INITIALIZERS[layer.weight_init].draw(stream(i, 0), *fan))
        bias = cast(BIAS_INITIALIZERS[layer.bias_init].draw(stream(i, 1), *fan))
        parameters.append((weight, bias if layer.bias else None))
    return parameters
