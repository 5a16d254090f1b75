"""One training step in float64, a rounding bound beside every array: what an engine must meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Parameters, Statistics
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import Loss
from fastneuron.optimizers import N_SCALARS
from fastneuron.spec import NetworkSpec
from fastneuron.testing.bounds import (
    Array,
    Bounded,
    Precision,
    activate,
    column_sum,
    dense,
    exact,
    gate,
    matmul,
)
from fastneuron.testing.loss_bounds import loss_of_batch
from fastneuron.testing.norm_bounds import (
    Normalised,
    by_moments,
    by_statistics,
    dropped,
    moved_statistics,
    norm_backward,
    norm_forward,
    norm_gradients,
)
from fastneuron.testing.update_bounds import BoundedParameters

__all__ = ["BoundedStatistics", "StepBounds", "backward", "forward", "training_step"]

BoundedStatistics = list[tuple[Bounded, Bounded] | None]
#: The scalars of a step whose key is 0: what an engine takes where it is given none.
_NO_KEY = np.zeros(N_SCALARS)


@dataclass(frozen=True)
class StepBounds:
    """What a batch gives.

    Attributes
    ----------
    loss : ()
    out : (n, O)
    dx : (n, I)
    gradients : a layer; zero, exactly, of what is not trained
    statistics : a layer
        The running ones after a step that is applied.
    """

    loss: Bounded
    out: Bounded
    dx: Bounded
    gradients: BoundedParameters
    statistics: BoundedStatistics


def forward(
    spec: NetworkSpec,
    parameters: Parameters,
    x: Array,
    p: Precision,
    statistics: Statistics | None = None,
    scalars: Array | None = None,
) -> tuple[list[Bounded], list[Bounded]]:
    """Return every layer's z and a; ``a[0]`` is x itself, so a is one longer.

    In training where there are the scalars of a step, else in inference.
    """
    zs: list[Bounded] = []
    activations = [exact(x)]
    for i, (layer, (w, b)) in enumerate(zip(spec.layers, parameters, strict=True)):
        rows = activations[-1]
        if isinstance(layer, Dense):
            z = dense(rows, exact(w), None if b is None else exact(b), p)
        elif isinstance(layer, Dropout):
            z = rows if scalars is None else dropped(layer, rows, i, scalars, p, spec.dtype)
        else:
            normal = _normalised(layer, rows, _of(statistics, i), p, scalars is not None)
            z = norm_forward(normal, w, b, p)
        zs.append(z)
        activations.append(activate(z, ACTIVATIONS[layer.activation], p))
    return zs, activations


def _of(statistics: Statistics | None, index: int) -> tuple[Array, Array] | None:
    return None if statistics is None else statistics[index]


def _normalised(
    layer: Layer, x: Bounded, statistics: tuple[Array, Array] | None, p: Precision, training: bool
) -> Normalised:
    if isinstance(layer, LayerNorm):
        return by_moments(layer, x, p)
    assert isinstance(layer, BatchNorm)
    if training and layer.uses_batch:
        return by_moments(layer, x, p)
    assert statistics is not None, "running statistics are needed here"
    return by_statistics(layer, x, statistics, p)


def backward(
    spec: NetworkSpec,
    parameters: Parameters,
    zs: list[Bounded],
    activations: list[Bounded],
    dout: Bounded,
    p: Precision,
    statistics: Statistics | None = None,
    scalars: Array | None = None,
) -> tuple[Bounded, BoundedParameters]:
    """Return dL/dx and the gradients a layer, from dL/d(output) in training."""
    gradients: BoundedParameters = []
    da = dout
    for i in reversed(range(len(spec.layers))):
        layer, (w, b), x = spec.layers[i], parameters[i], activations[i]
        f = ACTIVATIONS[layer.activation]
        dz = gate(da, zs[i] if f.saves == "z" else activations[i + 1], f, p)
        dw, db = exact(w), exact(0.0)
        if isinstance(layer, Dense):
            dw, db = matmul(x.T, dz, p), column_sum(dz, p)
            da = matmul(dz, exact(w).T, p)
        elif isinstance(layer, Dropout):
            step = _NO_KEY if scalars is None else scalars
            da = dropped(layer, dz, i, step, p, spec.dtype)
        else:
            normal = _normalised(layer, x, _of(statistics, i), p, training=True)
            dw, db = norm_gradients(normal, dz, p)
            da = norm_backward(normal, w, dz, p)
        if not layer.trains_weight:
            dw = exact(np.zeros(w.shape))
        if b is not None and not layer.trains_bias:
            db = exact(np.zeros(b.shape))
        gradients.append((dw, None if b is None else db))
    return da, gradients[::-1]


def training_step(
    spec: NetworkSpec,
    loss: Loss,
    parameters: Parameters,
    x: Array,
    y: Array,
    weight: Array | None = None,
    statistics: Statistics | None = None,
    scalars: Array | None = None,
) -> StepBounds:
    """Return what one batch gives at `parameters`, each within its bound.

    Parameters
    ----------
    spec, loss, parameters
    x, y, weight
        The batch.
    statistics : list of (running mean, running variance) or None, optional
        Where the network keeps such.
    scalars : (N_SCALARS,) float64, optional
        The step's, for its key; None is the key 0.
    """
    p = Precision.of(spec.dtype)
    step = _NO_KEY if scalars is None else scalars
    zs, activations = forward(spec, parameters, x, p, statistics, step)
    _, dout, mean = loss_of_batch(loss, activations[-1], y, weight, p)
    dx, gradients = backward(spec, parameters, zs, activations, dout, p, statistics, step)
    moved: BoundedStatistics = []
    for i, layer in enumerate(spec.layers):
        pair = _of(statistics, i)
        if pair is None:
            moved.append(None)
        elif isinstance(layer, BatchNorm) and layer.uses_batch:
            normal = by_moments(layer, activations[i], p)
            moved.append(moved_statistics(layer, pair, normal, p))
        else:
            moved.append((exact(pair[0]), exact(pair[1])))
    return StepBounds(mean, activations[-1], dx, gradients, moved)
