"""Rounding bounds of an optimizer's step: what an engine's parameters and moments must meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.optimizers import (
    BETA1,
    BETA2,
    CLIP_NORM,
    CORRECTION,
    EPSILON,
    L2,
    RATE,
    SHRINK,
    Optimizer,
    UpdateKind,
)
from fastneuron.spec import NetworkSpec
from fastneuron.testing.bounds import Array, Bounded, Precision, exact

__all__ = ["BoundedParameters", "clip_scale", "updated", "updated_vector"]

BoundedParameters = list[tuple[Bounded, Bounded | None]]


def _flat(parameters: BoundedParameters) -> list[Bounded]:
    return [array for pair in parameters for array in pair if array is not None]


def clip_scale(gradients: BoundedParameters, limit: float, p: Precision) -> Bounded:
    """Return min(1, limit / ||g||), which falls with the norm: the bound is that of an interval.

    ``| ||g'|| - ||g|| | <= ||E||``, and a sum of N squares and a root round ``g(N + 3)`` at most.
    """
    if limit == 0:
        return exact(1.0)
    arrays = _flat(gradients)
    count = sum(array.value.size for array in arrays)
    norm = np.sqrt(sum(float(np.square(array.value).sum()) for array in arrays))
    error = np.sqrt(sum(float(np.square(array.bound).sum()) for array in arrays))
    rounding = p.g(count + 3)
    low, high = max((norm - error) * (1 - rounding), 0.0), (norm + error) * (1 + rounding)
    value = min(1.0, limit / norm) if norm else 1.0
    most = min(1.0, limit / low) if low else 1.0
    least = min(1.0, limit / high) if high else 1.0
    width = max(most - value, value - least) + p.g(3) * value
    return Bounded(np.asarray(value), np.asarray(width if most < 1 or least < 1 else 0.0))


def updated(
    spec: NetworkSpec,
    optimizer: Optimizer,
    parameters: Parameters,
    gradients: BoundedParameters,
    moments: Sequence[Parameters],
    scalars: Array,
) -> tuple[BoundedParameters, list[BoundedParameters]]:
    """Return parameters and moments after one step, from exactly known ones before it.

    What is not trained stays as it is, to the bit. Only the weights of dense layers always decay.
    """
    p = Precision.of(spec.dtype)
    clip = clip_scale(gradients, float(scalars[CLIP_NORM]), p)
    new: BoundedParameters = []
    new_moments: list[BoundedParameters] = [[] for _ in moments]
    for i, (layer, pair, grads) in enumerate(zip(spec.layers, parameters, gradients, strict=True)):
        results: list[list[Bounded] | None] = []
        trains, decays = (layer.trains_weight, layer.trains_bias), (isinstance(layer, Dense), False)
        for j, (param, grad) in enumerate(zip(pair, grads, strict=True)):
            if param is None or grad is None:
                results.append(None)
                continue
            old = [exact(moment[i][j]) for moment in moments]
            if not trains[j]:
                results.append([exact(param), *old])
                continue
            row = scalars.copy()
            if not (decays[j] or optimizer.decay_bias):
                row[[L2, SHRINK]] = 0
            results.append(updated_vector(optimizer.kind, exact(param), grad, old, row, clip, p))
        weight, bias = results
        assert weight is not None
        new.append((weight[0], None if bias is None else bias[0]))
        for k, target in enumerate(new_moments):
            target.append((weight[1 + k], None if bias is None else bias[1 + k]))
    return new, new_moments


def updated_vector(
    kind: UpdateKind,
    param: Bounded,
    grad: Bounded,
    moments: Sequence[Bounded],
    scalars: Array,
    clip: Bounded,
    p: Precision,
) -> list[Bounded]:
    """Return [parameter, *moments] after one update; every scalar may be rounded to the dtype.

    A factor ``1 - beta`` may be formed from the rounded beta: it errs by u absolutely.
    """
    g = _sum([_product(p, clip, grad), _product(p, _scalar(scalars[L2], p), param)], p)
    rate = _scalar(scalars[RATE], p)
    beta1, beta2 = _scalar(scalars[BETA1], p), _scalar(scalars[BETA2], p)
    if kind == UpdateKind.SGD:
        return [_sum([param, _negated(_product(p, rate, g))], p)]
    if kind in (UpdateKind.MOMENTUM, UpdateKind.NESTEROV):
        v = _sum([_product(p, beta1, moments[0]), g], p)
        along = v if kind == UpdateKind.MOMENTUM else _sum([g, _product(p, beta1, v)], p)
        return [_sum([param, _negated(_product(p, rate, along))], p), v]
    v = _sum([_product(p, beta2, moments[-1]), _product(p, _rest(scalars[BETA2], p), g, g)], p)
    root = _root(v, p)
    epsilon = _scalar(scalars[EPSILON], p)
    if kind == UpdateKind.RMSPROP:
        step = _product(p, rate, _quotient(g, _sum([root, epsilon], p), p))
        return [_sum([param, _negated(step)], p), v]
    m = _sum([_product(p, beta1, moments[0]), _product(p, _rest(scalars[BETA1], p), g)], p)
    below = _sum([_product(p, root, _scalar(scalars[CORRECTION], p)), epsilon], p)
    step = _product(p, rate, _quotient(m, below, p))
    shrunk = _product(p, _scalar(scalars[SHRINK], p), param)
    return [_sum([param, _negated(shrunk), _negated(step)], p), m, v]


def _scalar(x: float, p: Precision) -> Bounded:
    return Bounded(np.asarray(float(x)), np.asarray(p.u * abs(float(x))))


def _rest(beta: float, p: Precision) -> Bounded:
    return Bounded(np.asarray(1 - float(beta)), np.asarray(2 * p.u))


def _negated(x: Bounded) -> Bounded:
    return Bounded(-x.value, x.bound)


def _product(p: Precision, *factors: Bounded) -> Bounded:
    """Product in any grouping: a rounding a factor, one for regrouping, one for `error`."""
    value, size = factors[0].value, factors[0].size
    for factor in factors[1:]:
        value, size = value * factor.value, size * factor.size
    error = size - np.abs(value)  # all ways of operand errors together
    return Bounded(value, np.maximum(error, 0) + p.g(len(factors) + 2) * size + p.subnormal)


def _sum(terms: list[Bounded], p: Precision) -> Bounded:
    """Sum in any order, fused or not."""
    size = sum(term.size for term in terms)
    bound = sum(term.bound for term in terms) + p.g(len(terms)) * size
    return Bounded(np.asarray(sum(term.value for term in terms)), np.asarray(bound))


def _root(v: Bounded, p: Precision) -> Bounded:
    """Root: monotone, so an interval; the lower end is the wider one."""
    value = np.sqrt(v.value)
    low = np.sqrt(np.maximum(v.value - v.bound, 0))
    return Bounded(value, value - low + p.g(2) * (value + np.sqrt(v.bound)))


def _quotient(x: Bounded, y: Bounded, p: Precision) -> Bounded:
    """Return x / y for y > 0: ``(Ex + |x / y| Ey) / (y - Ey)``; endless where y's reaches 0."""
    value = x.value / y.value
    low = y.value - y.bound
    with np.errstate(divide="ignore", invalid="ignore"):
        error = (x.bound + np.abs(value) * y.bound) / low
    error = np.where(low > 0, error, np.where(x.size > 0, np.inf, 0.0))
    return Bounded(value, error + p.g(3) * (np.abs(value) + error) + p.subnormal)
