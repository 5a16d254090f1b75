"""Batch normalisations become weights and biases: the same function, with less to compute.

By its running statistics a `BatchNorm` is ``f(factor x + shift)`` for each feature, with
``factor = weight / sqrt(variance + epsilon)`` and ``shift = bias - factor mean``. A layer that
gives ``x W + b`` takes that in as ``x (W factor) + (b factor + shift)``; one that is fed by it as
``x (factor W) + (b + shift W)``. Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Parameters, Statistics
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer

__all__ = ["folded"]

Vector = NDArray[np.float64]


class _Affine(NamedTuple):
    """``factor x + shift`` of each feature."""

    factor: Vector
    shift: Vector


def folded(
    layers: tuple[Layer, ...], parameters: Parameters, statistics: Statistics
) -> tuple[list[Layer], Parameters]:
    """Return layers without BatchNorm and Dropout that predict the same, and their parameters.

    Parameters
    ----------
    layers, parameters, statistics
        Of a network.

    Returns
    -------
    layers : list of Dense and LayerNorm
    parameters : list of (weight, bias or None)
        float64, of sums in an order that shapes alone decide.

    Notes
    -----
    A `BatchNorm` goes into the `Dense` or `LayerNorm` before it where that has no activation, else,
    where it has none itself, into the `Dense` after it. Where both ways are barred by an
    activation, a `LayerNorm` or an end of the network, it becomes a `Dense` of its own, with factor
    on the diagonal of its weight: features x features numbers.
    """
    made: list[Layer] = []
    values: Parameters = []
    waiting: _Affine | None = None  # for the Dense after it

    def put(layer: Layer, weight: Array, bias: Array | None) -> None:
        made.append(layer)
        values.append((weight, bias))

    for layer, (weight, bias), moments in zip(layers, parameters, statistics, strict=True):
        if isinstance(layer, BatchNorm) and moments is not None:
            affine = _affine(layer, weight, bias, moments)
            if waiting is not None:
                affine = _Affine(
                    affine.factor * waiting.factor, affine.factor * waiting.shift + affine.shift
                )
                waiting = None
            elif made and made[-1].activation == "identity":
                made[-1] = replace(cast(Any, made[-1]), activation=layer.activation, bias=True)
                values[-1] = _before(*values[-1], affine)
                continue
            if layer.activation == "identity":
                waiting = affine
            else:
                put(*_alone(affine, layer.activation))
        elif not isinstance(layer, Dropout):
            wide = weight.astype(np.float64)
            shift = None if bias is None else bias.astype(np.float64)
            if waiting is not None and isinstance(layer, Dense):
                layer = replace(layer, bias=True)
                wide, shift = _after(wide, shift, waiting)
                waiting = None
            elif waiting is not None:
                put(*_alone(waiting, "identity"))
                waiting = None
            put(layer, wide, shift)
    if not made and waiting is None:  # of Dropout alone
        features = int(layers[-1].out_features)
        waiting = _Affine(np.ones(features), np.zeros(features))
    if waiting is not None:
        put(*_alone(waiting, "identity"))
    return made, values


def _affine(
    layer: BatchNorm, weight: Array, bias: Array | None, moments: tuple[Array, Array]
) -> _Affine:
    mean, variance = (each.astype(np.float64) for each in moments)
    factor = weight.astype(np.float64) / np.sqrt(variance + layer.epsilon)
    return _Affine(factor, (0.0 if bias is None else bias.astype(np.float64)) - factor * mean)


def _before(weight: Array, bias: Array | None, affine: _Affine) -> tuple[Array, Array]:
    """Return weight and bias of a layer that also does what comes after it."""
    shift = affine.shift if bias is None else bias * affine.factor + affine.shift
    return weight * affine.factor, shift


def _after(weight: Array, bias: Array | None, affine: _Affine) -> tuple[Array, Array]:
    """Return weight and bias of a dense layer that also does what comes before it."""
    # Not the BLAS's product, whose order of sums may depend on its threads.
    shift = (affine.shift[:, None] * weight).sum(axis=0)
    return affine.factor[:, None] * weight, shift if bias is None else shift + bias


def _alone(affine: _Affine, activation: str) -> tuple[Layer, Array, Array]:
    features = len(affine.factor)
    layer = Dense(features, features, activation, bias=True)
    return layer, np.diag(affine.factor), affine.shift
