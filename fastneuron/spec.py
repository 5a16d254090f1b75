"""Frozen descriptions of layers and networks: what they are, never their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import SpecError
from fastneuron.initializers import BIAS_INITIALIZERS, WEIGHT_INITIALIZERS
from fastneuron.registry import Registry

DTYPES = ("float32", "float64")
# A layer wider than this is a typing error, not a network: one row of weights would be 8 GiB.
MAX_FEATURES = 2**31 - 1


def _check_features(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SpecError(f"Dense: {name} must be a whole number, got {value!r}")
    if not 1 <= value <= MAX_FEATURES:
        raise SpecError(f"Dense: {name} must be from 1 to {MAX_FEATURES}, got {value}")


@dataclass(frozen=True)
class Dense:
    """A fully connected layer, ``a = f(x W + b)``.

    Parameters
    ----------
    in_features : int, optional
        Inputs a row. May be left out after the first layer: it is the layer before's width.
    out_features : int
        Neurons of the layer: the weight is (in_features, out_features), the bias (out_features,).
    activation : str
        A name of `fastneuron.activations.ACTIVATIONS`.
    bias : bool
        False leaves the bias out: every hyperplane then passes through the origin.
    weight_init : str
        A name of `fastneuron.initializers.WEIGHT_INITIALIZERS`; "auto" follows the activation.
    bias_init : str
        A name of `fastneuron.initializers.BIAS_INITIALIZERS`. Zero is fine, since the random
        weights break the symmetry already.

    Raises
    ------
    SpecError
        Where a size is not a whole number of at least 1.
    UnknownNameError
        Where the activation or an initialiser is in no table.
    """

    in_features: int | None = None
    out_features: int | None = None
    activation: str = "identity"
    bias: bool = True
    weight_init: str = "auto"
    bias_init: str = "zeros"

    def __post_init__(self) -> None:
        if self.out_features is None:
            raise SpecError(
                "Dense needs out_features: Dense(in_features, out_features), or "
                "Dense(out_features=...) where the layer before gives in_features"
            )
        _check_features("out_features", self.out_features)
        object.__setattr__(self, "out_features", int(self.out_features))
        if self.in_features is not None:
            _check_features("in_features", self.in_features)
            object.__setattr__(self, "in_features", int(self.in_features))
        if not isinstance(self.bias, (bool, np.bool_)):
            raise SpecError(f"Dense: bias must be True or False, got {self.bias!r}")
        object.__setattr__(self, "bias", bool(self.bias))
        ACTIVATIONS[self.activation]
        WEIGHT_INITIALIZERS[self.weight_init]
        BIAS_INITIALIZERS[self.bias_init]

    @property
    def n_parameters(self) -> int:
        """Number of trainable scalars; needs in_features to be known."""
        if self.in_features is None or self.out_features is None:
            raise SpecError("Dense: the parameter count needs in_features; put it in a network")
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


#: Layer kinds by the name that model files use.
LAYERS: Registry[type[Dense]] = Registry("layer kind")
LAYERS.register("dense", Dense)


@dataclass(frozen=True)
class NetworkSpec:
    """Layers whose sizes fit together, and the dtype they compute in.

    Build it with `NetworkSpec.chain`, which fills in left-out sizes and checks the given ones.
    """

    layers: tuple[Dense, ...]
    dtype: str = "float32"

    @classmethod
    def chain(cls, layers: Iterable[Dense], dtype: object = "float32") -> NetworkSpec:
        """Return the network of `layers`, each in_features filled in from the layer before.

        Raises
        ------
        SpecError
            Where there is no layer, the first has no in_features, two neighbours' sizes differ, or
            the dtype is not float32 or float64.
        """
        try:
            # np.dtype(None) would be float64.
            name = np.dtype(dtype or "none").name  # type: ignore[call-overload]
        except TypeError:
            name = repr(dtype)
        if name not in DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        chained: list[Dense] = []
        for i, layer in enumerate(layers):
            if not isinstance(layer, Dense):
                raise SpecError(
                    f"layer {i} is {layer!r}, not a layer description such as Dense(...)"
                )
            if chained:
                before = chained[-1].out_features
                if layer.in_features is None:
                    layer = replace(layer, in_features=before)
                elif layer.in_features != before:
                    raise SpecError(
                        f"layer {i} takes {layer.in_features} features, "
                        f"but layer {i - 1} gives {before}"
                    )
            elif layer.in_features is None:
                raise SpecError(
                    "the first layer needs in_features: Dense(in_features, out_features)"
                )
            chained.append(layer)
        if not chained:
            raise SpecError("a network needs at least one layer")
        return cls(tuple(chained), name)

    @property
    def in_features(self) -> int:
        """Features of an input row."""
        return self.layers[0].in_features or 0  # chain() has filled it in

    @property
    def out_features(self) -> int:
        """Values of an output row."""
        return self.layers[-1].out_features or 0  # Dense has checked it

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from the input to the output, one more than there are layers."""
        return (self.in_features, *(layer.out_features or 0 for layer in self.layers))

    @property
    def n_parameters(self) -> int:
        """Number of trainable scalars, weights and biases."""
        return sum(layer.n_parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one optimizer step for one row, bias and activation left out.

        Forward and weight gradient cost in x out each; the data gradient too, but layer 0 needs
        none.
        """
        products = [
            int(layer.in_features or 0) * int(layer.out_features or 0) for layer in self.layers
        ]
        return 3 * sum(products) - products[0]

    def to_json(self) -> dict[str, Any]:
        """Return a closed JSON description that `from_json` reads back."""
        return {
            "dtype": self.dtype,
            "layers": [{"kind": "dense", **asdict(layer)} for layer in self.layers],
        }

    @classmethod
    def from_json(cls, description: Mapping[str, Any]) -> NetworkSpec:
        """Rebuild a network description; what is missing, unknown or mistyped is a SpecError."""
        if not isinstance(description, Mapping) or set(description) != {"dtype", "layers"}:
            raise SpecError("a network description has exactly the keys 'dtype' and 'layers'")
        if not isinstance(description["layers"], list):
            raise SpecError("'layers' must be a list")
        layers = []
        for i, entry in enumerate(description["layers"]):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
                raise SpecError(f"layer {i}: not a layer description")
            kind = LAYERS[entry["kind"]]
            wanted = {field.name for field in fields(kind)}
            if set(entry) != wanted | {"kind"}:
                odd = sorted(map(str, set(entry) ^ (wanted | {"kind"})))
                raise SpecError(f"layer {i}: missing or unknown keys {', '.join(odd)}")
            layers.append(kind(**{key: entry[key] for key in wanted}))
        return cls.chain(layers, description["dtype"])
