"""What a user holds: a network to describe, train, ask and keep."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastneuron import backends, diagnostics, files, fitting, initial
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array, as_rows, as_targets, as_weights, fits_finite_rows
from fastneuron.descriptions import checked_number
from fastneuron.device_arrays import DeviceArray, as_device_rows, device_array
from fastneuron.elision import ELISION
from fastneuron.errors import DataError, SpecError
from fastneuron.folding import folded
from fastneuron.handles import Layer
from fastneuron.initializers import BIAS_INITIALIZERS
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.layers import Layer as Description
from fastneuron.losses import LOSSES, Loss
from fastneuron.order import checked_seed
from fastneuron.parameters import LiveEngine, ParameterStore
from fastneuron.spec import NetworkSpec
from fastneuron.summary import summary

__all__ = ["Layer", "Sequential", "load", "mlp"]

#: What `mlp` can put after each hidden layer.
NORMS = {"batch": BatchNorm, "layer": LayerNorm}


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

    A `Dense` right before a `BatchNorm` is made without a bias, unless it says bias=True. The first
    network of a process that this happens to says so, in a line on stderr.

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
        self._set(ParameterStore(spec, initial.drawn(spec, self.seed)))
        ELISION.note(layers, spec)

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

        Rows that lie on a CUDA device are asked there, and a `DeviceArray` comes back; whether
        they are finite is not looked at.

        Raises
        ------
        DataError
            Where X is not two-dimensional, has the wrong width, or holds NaN or infinity.
        """
        name = ""
        if not fits_finite_rows(X, self._features, self._dtype):
            found = device_array(X, "X")
            if found is None:
                X = as_rows(X, "X", self._dtype, self._features)
            else:
                X, name = as_device_rows(found, "X", self._dtype, self._features), "cuda"
        with self.parameters.lock:
            return self._live(name).answer(X)

    def predict(self, X: Any) -> Array:
        """Return predictions by the loss trained for.

        Class numbers (n,) for cross_entropy; 0 or 1 for binary_cross_entropy, (n,) where there is
        one output; the rate for poisson; else, and before any training, what `forward` returns.
        """
        out = self._answers(X)
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
        out = self._answers(X)
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
        return entry.mean(self.forward(x), targets, weight)

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

    def set_class_prior(self, y: Any, loss: str | Loss, sample_weight: Any = None) -> None:
        """Set the output bias so that the first predictions are those frequencies that y has.

        For cross_entropy it is log p_k of class k, for binary_cross_entropy log(p / (1 - p)), for
        poisson the log of the mean count, else the mean: what a network would learn whose weights
        are 0. Half a row more is counted of everything, so that what y lacks has a finite bias.

        The first `fit` does it for an output layer with bias_init="class_prior"; call it yourself
        before the first step of a `Trainer`.

        Parameters
        ----------
        y : array_like
            Targets, as `fit` takes them.
        loss : str or Loss
        sample_weight : array_like (n,), optional

        Raises
        ------
        SpecError
            Where the output layer has no bias, or an activation.
        DataError
            Where y does not fit the network or the loss.
        """
        entry = self._loss(loss)
        n = len(y) if hasattr(y, "__len__") else 1
        if not n:
            raise DataError("y holds no labels: the class prior is their frequencies")
        targets = as_targets(y, entry.targets, n, self.spec.out_features, self.spec.dtype)
        weight = None if sample_weight is None else as_weights(sample_weight, len(targets))
        initial.set_prior(self.parameters, entry, targets, weight)

    def fold(self) -> Sequential:
        """Return a network for predictions: no BatchNorm and no Dropout, the same outputs.

        Each `BatchNorm` has become part of the weight and bias of a layer beside it, by its running
        statistics, or, between two activations, a `Dense` with a diagonal weight; see
        `fastneuron.folding.folded`. Outputs agree up to the rounding of the network's dtype: the
        new parameters are computed in float64 and rounded once. This network stays as it is.

        Raises
        ------
        DataError
            Where a folded parameter is too large for the network's dtype.
        """
        store = self.parameters
        with store.lock:
            layers, values = folded(store.spec.layers, store.pull(), store.pull_statistics())
            spec = NetworkSpec.chain(layers, store.spec.dtype)
            made = ParameterStore(spec, values)
            made.loss, made.epochs = store.loss, store.epochs
        return _network(made, self.seed, copy.deepcopy(self.preprocessing))

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
        return summary(self.spec)

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

    def _live(self, name: str = "") -> LiveEngine:
        """Return the engine to ask: a trainer's own where it is the newest, else one for asking."""
        owner = self.parameters.owner
        name = name or backends.current()
        if owner is not None and name in ("auto", owner.backend):
            return owner
        if self._inference is None or self._inference_name != name:
            backend = backends.get(name, self.spec.dtype)
            make = partial(backend.engine, self.spec)
            self._inference = LiveEngine(self.parameters, make, backend.name)
            self._inference_name = name
        return self._inference

    def _answers(self, X: Any) -> Array:
        """Return what `forward` does as a NumPy array, wherever X lies."""
        out: Any = self.forward(X)
        return out.copy_to_host() if isinstance(out, DeviceArray) else out

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
    bias: bool | str = "auto",
    dtype: Any = "float32",
    seed: int | None = None,
    weight_init: str = "auto",
    bias_init: str = "zeros",
    norm: str | None = None,
    dropout: float = 0.0,
) -> Sequential:
    """Return a multi-layer perceptron of the widths `sizes`, from the input to the output.

    Parameters
    ----------
    sizes : sequence of int
        At least two: ``[784, 512, 10]`` has one hidden layer of 512 neurons.
    activation, output_activation : str
        Of the hidden layers, and of the last. Losses on logits want the output "identity".
    bias : bool or "auto"
        Whether every dense layer has a bias, or none; "auto" leaves out those that a `BatchNorm`
        after them would take away.
    dtype, seed
        See `Sequential`.
    weight_init, bias_init
        See `Dense`. With bias_init="class_prior" the hidden layers' biases start at zero.
    norm : {None, "batch", "layer"}
        What stands after each hidden `Dense`, with the activation after it.
    dropout : float
        Rate of the `Dropout` after each hidden activation; 0 for none.
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise SpecError(f"sizes must be a list of widths such as [784, 512, 10], got {sizes!r}")
    widths = list(sizes)
    if len(widths) < 2:
        raise SpecError(f"sizes needs an input and an output width at least, got {widths!r}")
    if norm not in (None, *NORMS):
        raise SpecError(f"norm must be None, 'batch' or 'layer', got {norm!r}")
    rate = checked_number("mlp", "dropout", dropout, 0, 1, open_high=True)
    hidden_init = "zeros" if BIAS_INITIALIZERS[bias_init].from_labels else bias_init
    layers: list[Description] = []
    for i, width in enumerate(widths[1:-1]):
        first = "identity" if norm else activation
        layers.append(Dense(widths[i], width, first, bias, weight_init, hidden_init))
        if norm:
            layers.append(NORMS[norm](activation=activation))
        if rate:
            layers.append(Dropout(rate))
    layers.append(Dense(widths[-2], widths[-1], output_activation, bias, weight_init, bias_init))
    return Sequential(*layers, dtype=dtype, seed=seed)


def load(path: str | os.PathLike[str]) -> Sequential:
    """Return the network in a model file; see `fastneuron.files.load` for the errors."""
    model = files.load(path)
    store = ParameterStore(model.spec, model.parameters, model.statistics)
    store.loss = model.loss
    return _network(store, 0, model.preprocessing)


def _network(store: ParameterStore, seed: int, preprocessing: dict[str, Any] | None) -> Sequential:
    """Return a network of parameters that exist already."""
    net = Sequential.__new__(Sequential)
    net.__setstate__({"parameters": store, "seed": seed, "preprocessing": preprocessing})
    return net
