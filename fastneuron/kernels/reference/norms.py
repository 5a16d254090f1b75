"""Batch and layer normalisation, forward and backward.

B batch rows, O features, T float32 or float64. `weight` (O,) and `bias` (O,) or None are what the
literature calls gamma and beta. A variance that is not finite gives NaN, where division by its root
would quietly give 0: the engine finds it in the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.reference.dense import quiet

__all__ = [
    "moments",
    "moved_statistics",
    "norm_backward",
    "norm_forward",
    "norm_gradients",
    "running_moments",
]

Array = NDArray[Any]
#: The axis that a normalisation's mean and variance are taken over.
OVER_BATCH, OVER_FEATURES = 0, 1


@quiet
def moments(x: Array, epsilon: float, axis: int) -> tuple[Array, Array, Array]:
    """Return mean, variance and ``1 / sqrt(variance + epsilon)`` over an axis of length n.

    Formula
    -------
    ``mean = sum x / n``; ``variance = sum (x - mean)^2 / n``.

    Arrays
    ------
    x (B, O) IN; each result (1, O) over the batch, (B, 1) over the features.

    Cost
    ----
    Reads B O, twice where a panel of x does not stay in cache.

    Order
    -----
    NumPy's; fast kernels in an order fixed by the length of the sum alone. The variance is summed
    around the mean, not as a difference of squares, which cancels (Chan, Golub & LeVeque 1983, The
    American Statistician 37).

    Source
    ------
    Ioffe & Szegedy 2015, arXiv:1502.03167; Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    share = x.dtype.type(1 / x.shape[axis])
    mean = x.sum(axis=axis, keepdims=True) * share
    variance = np.square(x - mean).sum(axis=axis, keepdims=True) * share
    return mean, variance, _inverse_root(variance, epsilon)


@quiet
def norm_forward(x: Array, mean: Array, inverse: Array, weight: Array, bias: Array | None) -> Array:
    """Return the normalised rows, before the activation.

    Formula
    -------
    ``y = weight (x - mean) inverse + bias``.

    Arrays
    ------
    x (B, O) IN; mean, inverse IN as `moments` gives them; weight (O,), bias (O,) or None IN;
    y (B, O) OUT.

    Cost
    ----
    Reads B O, writes B O.

    Order
    -----
    No sums.

    Source
    ------
    As for `moments`.
    """
    y = (x - mean) * inverse * weight
    return y if bias is None else y + bias


@quiet
def norm_gradients(x: Array, mean: Array, inverse: Array, dy: Array) -> tuple[Array, Array]:
    """Return the gradients by weight and bias.

    Formula
    -------
    ``dweight_j = sum_i dy_ij (x_ij - mean) inverse``; ``dbias_j = sum_i dy_ij``.

    Arrays
    ------
    x, dy (B, O) IN; mean, inverse IN as `moments` gives them; dweight, dbias (O,) OUT.

    Cost
    ----
    Reads 2 B O.

    Order
    -----
    Rows in NumPy's order; fast kernels in an order fixed by B alone.

    Source
    ------
    As for `moments`. The bias is the weight of an input that is always 1, here too.
    """
    return (dy * ((x - mean) * inverse)).sum(axis=0), dy.sum(axis=0)


@quiet
def norm_backward(
    x: Array, mean: Array, inverse: Array, weight: Array, dy: Array, axis: int
) -> Array:
    """Return the gradient by the rows that were normalised.

    Formula
    -------
    With ``xhat = (x - mean) inverse``, ``g = weight dy`` and means over the axis of the moments:
    ``dx = inverse (g - mean(g) - xhat mean(g xhat))``.

    Arrays
    ------
    x, dy (B, O) IN; mean, inverse IN as `moments` gives them; weight (O,) IN; dx (B, O) OUT.

    Cost
    ----
    Reads 2 B O, writes B O.

    Order
    -----
    Sums in NumPy's order; fast kernels in an order fixed by the length of the sum alone.

    Source
    ------
    The chain rule through mean and variance; Ioffe & Szegedy 2015, section 3.
    """
    share = x.dtype.type(1 / x.shape[axis])
    xhat = (x - mean) * inverse
    g = weight * dy
    mean_g = g.sum(axis=axis, keepdims=True) * share
    mean_gx = (g * xhat).sum(axis=axis, keepdims=True) * share
    return inverse * (g - mean_g - xhat * mean_gx)


@quiet
def running_moments(statistics: tuple[Array, Array], epsilon: float) -> tuple[Array, Array, Array]:
    """Return what `moments` returns over the batch, of running statistics."""
    mean, variance = (each[None] for each in statistics)
    return mean, variance, _inverse_root(variance, epsilon)


def moved_statistics(
    statistics: tuple[Array, Array], mean: Array, variance: Array, momentum: float, rows: int
) -> tuple[Array, Array]:
    """Return the running statistics after a step.

    Formula
    -------
    ``m += momentum (mean - m)``; ``v += momentum (variance rows / (rows - 1) - v)``. A batch of
    one row moves nothing.

    Arrays
    ------
    statistics: two of (O,) IN; mean, variance (1, O) IN; two of (O,) OUT.

    Cost
    ----
    Reads 4 O, writes 2 O.

    Order
    -----
    No sums.

    Source
    ------
    Ioffe & Szegedy 2015, algorithm 2: the variance of the population, ``B / (B - 1)`` of the
    batch's.
    """
    if rows < 2:
        return statistics
    kind = mean.dtype.type
    share, wider = kind(momentum), kind(rows / (rows - 1))
    old_mean, old_variance = statistics
    return (
        old_mean + share * (mean[0] - old_mean),
        old_variance + share * (variance[0] * wider - old_variance),
    )


def _inverse_root(variance: Array, epsilon: float) -> Array:
    inverse: Array = 1 / np.sqrt(variance + variance.dtype.type(epsilon))
    inverse[~np.isfinite(variance)] = np.nan
    return inverse
