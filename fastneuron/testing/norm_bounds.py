"""Rounding bounds of normalisations and of dropout, forward and backward.

What `bounds` says holds here too, of sums over an axis of length n. Two things are sharper than the
sum of their parts, since errors of the mean cancel; with e the errors of the rows, |e| <= E:

- ``|e_i - mean e| <= (1 - 2 / n) E_i + mean E``: nothing of a single row.
- a mean square around a mean that is off by D is off by D^2, and the distances c from the mean sum
  to 0: ``|var(x + e) - var(x)| <= 2 mean(|c| E) + mean E^2``.

Distances from a mean are rounded by themselves, which is how kernels must take them: the sum of a
mean and another number, subtracted at once, would be another algorithm.

An underflowing product errs by the smallest subnormal number, which later factors may enlarge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron.kernels.reference import dropout
from fastneuron.layers import BatchNorm, Dropout, LayerNorm
from fastneuron.optimizers import KEY_HIGH, KEY_LOW
from fastneuron.testing.bounds import Array, Bounded, Precision, column_sum, exact, multiply

__all__ = [
    "Normalised",
    "by_moments",
    "by_statistics",
    "dropped",
    "moved_statistics",
    "norm_backward",
    "norm_forward",
    "norm_gradients",
]


@dataclass(frozen=True)
class Normalised:
    """What a normalisation makes of its rows before weight and bias.

    Attributes
    ----------
    mean, variance, inverse : (1, O) over the batch or of running statistics, (B, 1) over features
        The last is ``1 / sqrt(variance + epsilon)``.
    centred, xhat : (B, O)
        ``x - mean``, and that times the inverse.
    axis : int or None
        What mean and variance are taken over; None where they are given.
    """

    mean: Bounded
    variance: Bounded
    inverse: Bounded
    centred: Bounded
    xhat: Bounded
    axis: int | None


def by_moments(layer: BatchNorm | LayerNorm, x: Bounded, p: Precision) -> Normalised:
    """Return rows normalised by their own mean and variance."""
    axis = 0 if isinstance(layer, BatchNorm) else 1
    n = x.value.shape[axis]
    mean, off, spread = _mean(x, axis, p)
    rounded = spread + off
    c = x.value - mean.value
    centred = Bounded(c, rounded + p.u * (np.abs(c) + rounded))
    variance = np.square(c).mean(axis=axis, keepdims=True)
    moved = 2 * (np.abs(c) * x.bound).mean(axis=axis, keepdims=True) + np.minimum(
        np.square(x.bound).mean(axis=axis, keepdims=True),
        np.square(spread).mean(axis=axis, keepdims=True),
    )
    moved = moved + off**2
    # The distance twice, the squares and their sum, the share.
    own = p.g(n + 2 + _share_roundings(n)) * (variance + moved)
    bound = moved + own + (3 * p.subnormal if n > 1 else 0)
    return _normalised(layer.epsilon, mean, Bounded(variance, bound), centred, axis, p)


def by_statistics(
    layer: BatchNorm, x: Bounded, statistics: tuple[Array, Array], p: Precision
) -> Normalised:
    """Return rows normalised by running statistics, which are known exactly."""
    mean, variance = (exact(each[None]) for each in statistics)
    c = x.value - mean.value
    centred = Bounded(c, x.bound + p.u * (np.abs(c) + x.bound))
    return _normalised(layer.epsilon, mean, variance, centred, None, p)


def _normalised(
    epsilon: float,
    mean: Bounded,
    variance: Bounded,
    centred: Bounded,
    axis: int | None,
    p: Precision,
) -> Normalised:
    """Round epsilon, sum, root and quotient; the inverse falls with the variance: an interval."""
    value = 1 / np.sqrt(variance.value + epsilon)
    most = 1 / np.sqrt(np.maximum(variance.value - variance.bound, 0) + epsilon)
    inverse = Bounded(value, most - value + p.g(4) * most)
    return Normalised(mean, variance, inverse, centred, multiply(centred, inverse, p), axis)


def _share_roundings(n: int) -> int:
    """Count those of a product with 1 / n, which is exact of a power of two, else rounded twice."""
    return 0 if n & (n - 1) == 0 else 3


def _mean(x: Bounded, axis: int, p: Precision) -> tuple[Bounded, Array, Array]:
    """Return the mean, how far rounding alone may move it, and how far rows move against it."""
    n = x.value.shape[axis]
    roundings = p.g(n - 1 + _share_roundings(n))
    off = roundings * x.size.mean(axis=axis, keepdims=True) + (p.subnormal if n > 1 else 0)
    error = x.bound.mean(axis=axis, keepdims=True)
    mean = Bounded(x.value.mean(axis=axis, keepdims=True), error + off)
    return mean, off, (1 - 2 / n) * x.bound + error


def norm_forward(rows: Normalised, weight: Array, bias: Array | None, p: Precision) -> Bounded:
    """Return ``y = weight xhat + bias``; the weight may meet the inverse first."""
    y = rows.xhat.scaled(weight.astype(np.float64), p.g(2))
    y = y + p.subnormal * (1 + np.abs(weight) + rows.centred.size)
    if bias is None:
        return y
    return Bounded(y.value + bias, y.bound + p.u * (y.size + np.abs(bias)))


def norm_gradients(rows: Normalised, dy: Bounded, p: Precision) -> tuple[Bounded, Bounded]:
    """Return ``sum dy xhat`` and ``sum dy`` over the batch; the inverse may come after the sum."""
    n = len(dy.value)
    size = (dy.size * rows.xhat.size).sum(0)
    moved = (dy.bound * np.abs(rows.xhat.value) + dy.size * rows.xhat.bound).sum(0)
    underflow = p.subnormal * (1 + rows.inverse.size.max(initial=0)) * n
    dweight = Bounded((dy.value * rows.xhat.value).sum(0), moved + p.g(n + 2) * size + underflow)
    return dweight, column_sum(dy, p)


def norm_backward(rows: Normalised, weight: Array, dy: Bounded, p: Precision) -> Bounded:
    """Return ``inverse (g - mean(g) - xhat mean(g xhat))``, ``g = weight dy``.

    The weight may be multiplied last, and ``mean(g xhat)`` times ``xhat`` may be computed as
    ``(x - mean)`` times a product with two inverses: at most g(n + 3) and two roundings.
    """
    g = dy.scaled(weight.astype(np.float64), p.g(1))
    if rows.axis is None:
        dx = multiply(g, rows.inverse, p, 2)
        return dx + _underflow(rows, weight, dx, p)
    n = dy.value.shape[rows.axis]
    mean, off, spread = _mean(g, rows.axis, p)
    value = g.value - mean.value
    error = spread + off + p.u * (np.abs(value) + spread + off)
    moved = g.bound * np.abs(rows.xhat.value) + g.size * rows.xhat.bound
    own = p.g(n + 3 + _share_roundings(n)) * g.size * rows.xhat.size
    along = Bounded(
        (g.value * rows.xhat.value).mean(axis=rows.axis, keepdims=True),
        (moved + own).mean(axis=rows.axis, keepdims=True),
    )
    taken = multiply(rows.xhat, along, p, 2)
    rest = value - taken.value
    error = error + taken.bound
    dx = multiply(Bounded(rest, error + p.u * (np.abs(rest) + error)), rows.inverse, p, 2)
    return dx + (_underflow(rows, weight, dx, p) if n > 1 else 0)


def _underflow(rows: Normalised, weight: Array, dx: Bounded, p: Precision) -> Array:
    """Each of at most eight products may underflow, and meet all other factors after that."""
    inverse = (1 + rows.inverse.size) ** 3
    factors = (1 + np.abs(weight)) * inverse * (1 + rows.centred.size) * (1 + dx.size)
    return np.asarray(8 * p.subnormal * factors)


def moved_statistics(
    layer: BatchNorm, statistics: tuple[Array, Array], rows: Normalised, p: Precision
) -> tuple[Bounded, Bounded]:
    """Return the running mean and variance after a step, from exactly known ones before it.

    Momentum and ``B / (B - 1)`` round, as do each product, difference and sum.
    """
    old = exact(statistics[0]), exact(statistics[1])
    n = len(rows.xhat.value)
    if n < 2:
        return old
    wider = rows.variance.scaled(n / (n - 1), p.g(3)) + p.subnormal
    return _moved(layer.momentum, old[0], rows.mean, p), _moved(layer.momentum, old[1], wider, p)


def _moved(momentum: float, old: Bounded, to: Bounded, p: Precision) -> Bounded:
    difference = Bounded(to.value[0] - old.value, to.bound[0])
    step = difference.scaled(momentum, p.g(3)) + p.subnormal
    value = old.value + step.value
    return Bounded(value, step.bound + p.u * (np.abs(value) + step.bound))


def dropped(
    layer: Dropout, x: Bounded, index: int, scalars: Array, p: Precision, dtype: Any
) -> Bounded:
    """Return the rows in training: which numbers are dropped is known exactly.

    So is the scale of the rest, which is rounded to the dtype; a power of two multiplies exactly.
    """
    key = int(scalars[KEY_LOW]), int(scalars[KEY_HIGH])
    count, features = x.value.shape
    kept = dropout.kept(count, features, index, key, int(layer.rate * 2**32))
    scale = float(np.dtype(dtype).type(1 / (1 - layer.rate)))
    return x.scaled(np.where(kept, scale, 0.0), 0.0 if np.frexp(scale)[0] == 0.5 else p.u)
