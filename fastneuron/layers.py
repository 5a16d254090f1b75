"""Frozen descriptions of the layers that a network is made of: what they are, never their values.

Every layer takes rows of ``in_features`` numbers and gives rows of ``out_features``. Those with
parameters have a ``weight`` and perhaps a ``bias``: of a normalisation that is the factor and the
summand of each feature, which its literature calls gamma and beta.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.descriptions import checked_number, to_description
from fastneuron.errors import SpecError
from fastneuron.initializers import BIAS_INITIALIZERS, WEIGHT_INITIALIZERS
from fastneuron.registry import Registry

__all__ = ["LAYERS", "BatchNorm", "Dense", "Dropout", "Layer", "LayerNorm"]

# A layer wider than this is a typing error, not a network: one row of weights would be 8 GiB.
MAX_FEATURES = 2**31 - 1
#: What of a layer is trained, for each value of `trainable`: (weight, bias).
TRAINED: dict[Any, tuple[bool, bool]] = {
    True: (True, True),
    False: (False, False),
    "weight": (True, False),
    "bias": (False, True),
}
# Below float32's smallest normal number epsilon would turn to 0 there, and 0 / 0 follow; far above
# any variance it is a typing error.
_LEAST_EPSILON, _MOST_EPSILON = 2.0**-126, 1e10

Self = TypeVar("Self", bound="Layer")


class Layer:
    """Base of the descriptions.

    Attributes
    ----------
    kind : str
        The name that model files use.
    has_parameters : bool
    has_statistics : bool
        Whether it keeps a running mean and variance of its inputs.
    weight_shape : tuple of int
    trains_weight, trains_bias : bool
    """

    kind: ClassVar[str]
    has_parameters: ClassVar[bool] = True
    has_statistics: ClassVar[bool] = False
    _n_positional: ClassVar[int] = 2  # fields that `repr` shows without their names

    # Of layers that have no such thing.
    activation: Any = "identity"
    bias: Any = False
    trainable: Any = True

    in_features: Any
    out_features: Any

    def with_inputs(self: Self, count: int) -> Self:
        """Return this layer for rows of `count` features, where it was left open."""
        raise NotImplementedError

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight; (0,) where there is none."""
        return (0,)

    @property
    def trains_weight(self) -> bool:
        """Whether steps change the weight."""
        return self.has_parameters and TRAINED[self.trainable][0]

    @property
    def trains_bias(self) -> bool:
        """Whether steps change the bias; False where there is none."""
        return bool(self.bias) and TRAINED[self.trainable][1]

    @property
    def n_weights(self) -> int:
        """Numbers in the weight."""
        return int(np.prod(self.weight_shape))

    @property
    def n_parameters(self) -> int:
        """Number of parameters, weight and bias; needs the layer's sizes to be known."""
        if self.in_features is None or self.out_features is None:
            raise SpecError(
                f"{self._name}: the parameter count needs in_features; put it in a network"
            )
        return self.n_weights + (self.out_features if self.bias else 0)

    def __repr__(self) -> str:
        shown = []
        for i, field in enumerate(fields(self)):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if i < self._n_positional:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{self._name}({', '.join(shown)})"

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_features(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise SpecError(f"{self._name}: {name} must be a whole number, got {value!r}")
        if not 1 <= value <= MAX_FEATURES:
            raise SpecError(f"{self._name}: {name} must be from 1 to {MAX_FEATURES}, got {value}")
        self._set(name, int(value))

    def _check_trainable(self) -> None:
        value = self.trainable
        if isinstance(value, np.bool_):
            self._set("trainable", bool(value))
        elif not isinstance(value, (bool, str)) or value not in TRAINED:
            raise SpecError(
                f"{self._name}: trainable must be True, False, 'weight' or 'bias', got {value!r}"
            )
        if self.trainable == "bias" and not self.bias:
            raise SpecError(f"{self._name}: trainable='bias', but it has bias=False")

    def _check_bias(self, *, automatic: bool = False) -> None:
        value = self.bias
        if not isinstance(value, (bool, np.bool_)) and not (automatic and value == "auto"):
            wanted = "True, False or 'auto'" if automatic else "True or False"
            raise SpecError(f"{self._name}: bias must be {wanted}, got {value!r}")
        self._set("bias", value if value == "auto" else bool(value))


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """A fully connected layer, ``a = f(x W + b)``.

    Parameters
    ----------
    in_features : int, optional
        Inputs a row. May be left out after the first layer: it is the layer before's width.
    out_features : int
        Neurons of the layer: the weight is (in_features, out_features), the bias (out_features,).
    activation : str
        A name of `fastneuron.activations.ACTIVATIONS`.
    bias : bool or "auto"
        False leaves the bias out: every hyperplane then passes through the origin. "auto" leaves it
        out where it can have no effect: right before a `BatchNorm`, which subtracts what it adds
        (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2).
    weight_init : str
        A name of `fastneuron.initializers.WEIGHT_INITIALIZERS`; "auto" follows the activation.
    bias_init : str
        A name of `fastneuron.initializers.BIAS_INITIALIZERS`. Zero is fine, since the random
        weights break the symmetry already. "class_prior", for the output layer alone: zero until
        the first `fit`, which sets it from the labels (see `Sequential.set_class_prior`).
    trainable : bool, "weight" or "bias"
        What steps change: all of it, nothing, or one of the two. Weight decay too leaves alone what
        is not trained.

    Raises
    ------
    SpecError
        Where a size is not a whole number of at least 1.
    UnknownNameError
        Where the activation or an initialiser is in no table.
    """

    kind: ClassVar[str] = "dense"
    _n_positional: ClassVar[int] = 3

    in_features: int | None = None
    out_features: int | None = None
    activation: str = "identity"
    bias: bool | str = "auto"
    weight_init: str = "auto"
    bias_init: str = "zeros"
    trainable: bool | str = True

    def __post_init__(self) -> None:
        if self.out_features is None:
            raise SpecError(
                "Dense needs out_features: Dense(in_features, out_features), or "
                "Dense(out_features=...) where the layer before gives in_features"
            )
        self._check_features("out_features")
        if self.in_features is not None:
            self._check_features("in_features")
        self._check_bias(automatic=True)
        self._check_trainable()
        ACTIVATIONS[self.activation]
        WEIGHT_INITIALIZERS[self.weight_init]
        BIAS_INITIALIZERS[self.bias_init]

    def with_inputs(self, count: int) -> Dense:
        """Return this layer for rows of `count` features, where it was left open."""
        return replace(self, in_features=count) if self.in_features is None else self

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(in_features, out_features)."""
        return (self.in_features or 0, self.out_features or 0)


class _Elementwise(Layer):
    """Base of the layers that keep their rows' width, called `features`."""

    features: int | None

    @property
    def in_features(self) -> Any:
        """Features of a row."""
        return self.features

    @property
    def out_features(self) -> Any:
        """Features of a row."""
        return self.features

    def with_inputs(self: Self, count: int) -> Self:
        """Return this layer for rows of `count` features, where it was left open."""
        return self if self.in_features is not None else replace(self, features=count)  # type: ignore


class _Norm(_Elementwise):
    """What the normalisations have in common."""

    epsilon: float

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(features,): a factor for each."""
        return (self.features or 0,)

    def _check(self) -> None:
        if self.features is not None:
            self._check_features("features")
        self._check_bias()
        self._check_trainable()
        ACTIVATIONS[self.activation]
        ends = _LEAST_EPSILON, _MOST_EPSILON
        self._set("epsilon", checked_number(self._name, "epsilon", self.epsilon, *ends))


@dataclass(frozen=True, repr=False)
class BatchNorm(_Norm):
    """Batch normalisation, ``a = f(weight (x - mean) / sqrt(variance + epsilon) + bias)``.

    Training takes mean and variance of each feature over the batch, and keeps running ones, which
    are all that predictions use. A layer that feeds it directly needs no bias: the mean takes away
    whatever was added, and this layer's bias (beta) does the shifting.

    Parameters
    ----------
    features : int, optional
        Width of a row; may be left out after the first layer.
    activation : str
        A name of `fastneuron.activations.ACTIVATIONS`, applied after the normalisation.
    momentum : float
        Within [0, 1]: how much of the running statistics each step replaces by the batch's.
    epsilon : float
        Above 0 (2**-126 to 1e10): added to the variance.
    bias : bool
        False leaves beta out.
    trainable : bool, "weight" or "bias"
        What steps change. A layer with trainable=False normalises by its running statistics in
        training too, and leaves them as they are.

    Raises
    ------
    SpecError
        Where a size is not a whole number of at least 1, or a number out of its range.
    UnknownNameError
        Where the activation is in no table.

    Notes
    -----
    The batch's variance is the mean square distance from the mean; the running one is corrected to
    that of the population by ``B / (B - 1)``. A batch of one row, which has no variance, leaves the
    running statistics alone. Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    kind: ClassVar[str] = "batch_norm"
    has_statistics: ClassVar[bool] = True

    features: int | None = None
    activation: str = "identity"
    momentum: float = 0.1
    epsilon: float = 1e-5
    bias: bool = True
    trainable: bool | str = True

    def __post_init__(self) -> None:
        self._check()
        self._set("momentum", checked_number("BatchNorm", "momentum", self.momentum, 0, 1))

    @property
    def uses_batch(self) -> bool:
        """Whether training takes mean and variance from the batch."""
        return self.trainable is not False


@dataclass(frozen=True, repr=False)
class LayerNorm(_Norm):
    """Layer normalisation, ``a = f(weight (x - mean) / sqrt(variance + epsilon) + bias)``.

    Mean and variance are those of a row over its features: rows never meet, and training and
    predictions compute the same.

    Parameters
    ----------
    features : int, optional
        Width of a row; may be left out after the first layer.
    activation : str
        A name of `fastneuron.activations.ACTIVATIONS`, applied after the normalisation.
    epsilon : float
        Above 0 (2**-126 to 1e10): added to the variance.
    bias : bool
        False leaves beta out.
    trainable : bool, "weight" or "bias"
        What steps change.

    Raises
    ------
    SpecError
        Where a size is not a whole number of at least 1, or a number out of its range.
    UnknownNameError
        Where the activation is in no table.

    Notes
    -----
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, equation 4.
    """

    kind: ClassVar[str] = "layer_norm"

    features: int | None = None
    activation: str = "identity"
    epsilon: float = 1e-5
    bias: bool = True
    trainable: bool | str = True

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True, repr=False)
class Dropout(_Elementwise):
    """Sets each number to 0 with probability `rate` in training, and divides the rest by 1 - rate.

    Predictions pass it by. Which numbers are dropped is a function of the seed, the step, the layer
    and the place in the batch alone: the same for any thread count, and never stored.

    Parameters
    ----------
    rate : float
        Within [0, 1).
    features : int, optional
        Width of a row; may be left out after the first layer.

    Raises
    ------
    SpecError
        Where a size is not a whole number of at least 1, or the rate is out of its range.

    Notes
    -----
    Source: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, JMLR 15.
    """

    kind: ClassVar[str] = "dropout"
    has_parameters: ClassVar[bool] = False

    rate: float = 0.5
    features: int | None = None

    def __post_init__(self) -> None:
        if self.features is not None:
            self._check_features("features")
        rate = checked_number("Dropout", "rate", self.rate, 0, 1, open_high=True)
        self._set("rate", rate)

    @property
    def dropped(self) -> int:
        """A random number of 32 bits below this drops its element."""
        return int(self.rate * 2**32)


#: Layer kinds by the name that model files use.
LAYERS: Registry[type[Layer]] = Registry("layer kind")
for _layer in (Dense, BatchNorm, LayerNorm, Dropout):
    LAYERS.register(_layer.kind, _layer)


def to_json(layer: Layer) -> dict[str, Any]:
    """Return a closed JSON description of a layer; `trainable` is told where it is not True."""
    named = to_description(layer, layer.kind)
    if named.get("trainable") is True:
        del named["trainable"]
    return named


def from_json(description: Any, index: int) -> Layer:
    """Rebuild a layer from its description; what is missing or unknown is a SpecError."""
    if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
        raise SpecError(f"layer {index}: not a layer description")
    kind: Any = LAYERS[description["kind"]]
    given = {key: value for key, value in description.items() if key != "kind"}
    wanted = {field.name for field in fields(kind)}
    odd = (set(given) ^ wanted) - (wanted & {"trainable"})
    if odd:
        raise SpecError(
            f"layer {index}: missing or unknown keys {', '.join(sorted(map(str, odd)))}"
        )
    layer: Layer = kind(**given)
    return layer
