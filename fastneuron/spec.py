"""The frozen description of a network: layers whose sizes fit together, and a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastneuron import layers as descriptions
from fastneuron.errors import SpecError
from fastneuron.initializers import BIAS_INITIALIZERS
from fastneuron.layers import BatchNorm, Dense, Layer

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class NetworkSpec:
    """Layers whose sizes fit together, and the dtype they compute in.

    Build it with `NetworkSpec.chain`, which fills in left-out sizes and checks the given ones.
    """

    layers: tuple[Layer, ...]
    dtype: str = "float32"

    @classmethod
    def chain(cls, layers: Iterable[Layer], dtype: object = "float32") -> NetworkSpec:
        """Return the network of `layers`, each in_features filled in from the layer before.

        Raises
        ------
        SpecError
            Where there is no layer, the first has no in_features, two neighbours' sizes differ, the
            dtype is not float32 or float64, or a bias cannot be what its layer says.
        """
        try:
            # np.dtype(None) would be float64.
            name = np.dtype(dtype or "none").name  # type: ignore[call-overload]
        except TypeError:
            name = repr(dtype)
        if name not in DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        chained: list[Layer] = []
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise SpecError(
                    f"layer {i} is {layer!r}, not a layer description such as Dense(...)"
                )
            if chained:
                before = chained[-1].out_features
                layer = layer.with_inputs(before)
                if layer.in_features != before:
                    raise SpecError(
                        f"layer {i} takes {layer.in_features} features, "
                        f"but layer {i - 1} gives {before}"
                    )
            elif layer.in_features is None:
                raise SpecError(
                    "the first layer needs in_features: Dense(in_features, out_features)"
                    if isinstance(layer, Dense)
                    else f"the first layer needs features: {type(layer).__name__}(features=...)"
                )
            chained.append(layer)
        if not chained:
            raise SpecError("a network needs at least one layer")
        for i, layer in enumerate(chained):
            if isinstance(layer, Dense):
                chained[i] = _with_bias_decided(layer, chained, i)
        return cls(tuple(chained), name)

    @property
    def in_features(self) -> int:
        """Features of an input row."""
        return int(self.layers[0].in_features)

    @property
    def out_features(self) -> int:
        """Values of an output row."""
        return int(self.layers[-1].out_features)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from the input to the output, one more than there are layers."""
        return (self.in_features, *(int(layer.out_features) for layer in self.layers))

    @property
    def n_parameters(self) -> int:
        """Number of parameters, weights and biases."""
        return sum(layer.n_parameters for layer in self.layers)

    @property
    def back_to(self) -> int:
        """The first layer that deltas go back through: what is below it learns nothing.

        The first that is trained needs its own deltas, which are the next layer's work; a batch
        normalisation sums them up itself, on their way back.
        """
        for index, layer in enumerate(self.layers):
            if layer.trains_weight or layer.trains_bias:
                return index if isinstance(layer, BatchNorm) else index + 1
        return len(self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one optimizer step for one row: those of the dense layers' products.

        Forward costs in x out; so does the weight gradient where the weight is trained, and the
        data gradient from layer `back_to` on.
        """
        back_to = self.back_to
        products = (
            layer.n_weights * (1 + layer.trains_weight + (index >= back_to))
            for index, layer in enumerate(self.layers)
            if isinstance(layer, Dense)
        )
        return max(1, sum(products))

    @property
    def uses_batch(self) -> bool:
        """Whether a row's training output depends on the rows beside it."""
        return any(isinstance(layer, BatchNorm) and layer.uses_batch for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return a closed JSON description that `from_json` reads back."""
        return {
            "dtype": self.dtype,
            "layers": [descriptions.to_json(layer) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, description: Mapping[str, Any]) -> NetworkSpec:
        """Rebuild a network description; what is missing, unknown or mistyped is a SpecError."""
        if not isinstance(description, Mapping) or set(description) != {"dtype", "layers"}:
            raise SpecError("a network description has exactly the keys 'dtype' and 'layers'")
        if not isinstance(description["layers"], list):
            raise SpecError("'layers' must be a list")
        layers = [descriptions.from_json(e, i) for i, e in enumerate(description["layers"])]
        return cls.chain(layers, description["dtype"])


def bias_is_redundant(layers: Sequence[Layer], index: int) -> bool:
    """Return whether a bias of layer `index` would be taken away by the layer after it.

    So it is before a batch normalisation, with no activation between: the batch's mean holds the
    bias, and is subtracted (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2). By running
    statistics a layer subtracts what it learnt, and a bias has its effect.
    """
    layer, after = layers[index], layers[index + 1 : index + 2]
    return (
        isinstance(layer, Dense)
        and layer.activation == "identity"
        and any(isinstance(each, BatchNorm) and each.uses_batch for each in after)
    )


def _with_bias_decided(layer: Dense, layers: Sequence[Layer], index: int) -> Dense:
    """Return layer `index` with bias=True or False; what cannot be is a SpecError."""
    if layer.bias == "auto":
        bias = not bias_is_redundant(layers, index)
        if layer.trainable == "bias" and not bias:
            raise SpecError(
                f"layer {index}: trainable='bias', but the BatchNorm after it takes every bias "
                "away, so it has none; train that layer's, or keep this one: Dense(..., bias=True)"
            )
        layer = replace(layer, bias=bias)
    if BIAS_INITIALIZERS[layer.bias_init].from_labels:
        what = f"layer {index}: bias_init={layer.bias_init!r}"
        if index + 1 < len(layers):
            raise SpecError(f"{what} is for the output layer, the last one; layer {index} is not")
        if not layer.bias:
            raise SpecError(f"{what}, but it has bias=False")
        if layer.activation != "identity":
            raise SpecError(
                f"{what} needs activation='identity', since losses of classes want logits; "
                f"got {layer.activation!r}"
            )
    return layer
