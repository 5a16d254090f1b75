"""The update slots: one optimizer step on a flat vector of n parameters, in place.

What all of them share. Arrays: p (n,) INOUT; g (n,) IN, the gradient of the mean loss; moments, a
tuple of (n,) INOUT; scalars (N_SCALARS,) float64 IN, a row of `Optimizer.scalars`, with L2 and
SHRINK zeroed for biases by the caller; clip_scale, a number, 1 where nothing is clipped. Scalars
are combined in float64 (such as 1 - BETA1) and meet the arrays rounded to T.

Every update steps along ``g' = clip_scale g + L2 p``. Names in capitals are columns of scalars.

Order: elementwise, no sums. Sources: `fastneuron.optimizers`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.reference.dense import quiet
from fastneuron.optimizers import BETA1, BETA2, CORRECTION, EPSILON, L2, RATE, SHRINK

__all__ = ["adam_update", "momentum_update", "nesterov_update", "rmsprop_update", "sgd_update"]

Array: TypeAlias = NDArray[Any]
Moments: TypeAlias = tuple[Array, ...]


@quiet
def sgd_update(
    p: Array, g: Array, moments: Moments, scalars: NDArray[np.float64], clip_scale: float
) -> None:
    """Step down the gradient.

    Formula
    -------
    ``p -= RATE g'``.

    Cost
    ----
    Reads 2 n, writes n.

    Source
    ------
    Robbins & Monro 1951.
    """
    s = scalars.tolist()
    p -= s[RATE] * (clip_scale * g + s[L2] * p)


@quiet
def momentum_update(
    p: Array, g: Array, moments: Moments, scalars: NDArray[np.float64], clip_scale: float
) -> None:
    """Step along a velocity that remembers earlier gradients.

    Formula
    -------
    ``v = BETA1 v + g'``; ``p -= RATE v``. One moment: v.

    Cost
    ----
    Reads 3 n, writes 2 n.

    Source
    ------
    Polyak 1964, with the learning rate outside of the velocity.
    """
    s = scalars.tolist()
    (v,) = moments
    v[...] = s[BETA1] * v + (clip_scale * g + s[L2] * p)
    p -= s[RATE] * v


@quiet
def nesterov_update(
    p: Array, g: Array, moments: Moments, scalars: NDArray[np.float64], clip_scale: float
) -> None:
    """Step along the gradient plus the velocity that the next step would have.

    Formula
    -------
    ``v = BETA1 v + g'``; ``p -= RATE (g' + BETA1 v)``. One moment: v.

    Cost
    ----
    Reads 3 n, writes 2 n.

    Source
    ------
    Nesterov 1983, as rewritten by Sutskever, Martens, Dahl & Hinton 2013, ICML; the parameters
    held are those at the point looked ahead to.
    """
    s = scalars.tolist()
    (v,) = moments
    g = clip_scale * g + s[L2] * p
    v[...] = s[BETA1] * v + g
    p -= s[RATE] * (g + s[BETA1] * v)


@quiet
def adam_update(
    p: Array, g: Array, moments: Moments, scalars: NDArray[np.float64], clip_scale: float
) -> None:
    """Step by the gradient's mean over the root of its mean square; AdamW too.

    Formula
    -------
    ``m = BETA1 m + (1 - BETA1) g'``; ``v = BETA2 v + (1 - BETA2) g'^2``;
    ``p = p - SHRINK p - RATE m / (sqrt(v) CORRECTION + EPSILON)``. Two moments: m, v. The bias of
    both means at the start is undone in RATE (over 1 - BETA1^t) and CORRECTION
    (1 / sqrt(1 - BETA2^t)).

    Cost
    ----
    Reads 4 n, writes 3 n.

    Source
    ------
    Kingma & Ba 2014, arXiv:1412.6980; SHRINK: Loshchilov & Hutter 2017, arXiv:1711.05101.
    """
    s = scalars.tolist()
    m, v = moments
    g = clip_scale * g + s[L2] * p
    m[...] = s[BETA1] * m + (1 - s[BETA1]) * g
    v[...] = s[BETA2] * v + (1 - s[BETA2]) * (g * g)
    p[...] = p - s[SHRINK] * p - s[RATE] * m / (np.sqrt(v) * s[CORRECTION] + s[EPSILON])


@quiet
def rmsprop_update(
    p: Array, g: Array, moments: Moments, scalars: NDArray[np.float64], clip_scale: float
) -> None:
    """Step by the gradient over the root of its mean square.

    Formula
    -------
    ``v = BETA2 v + (1 - BETA2) g'^2``; ``p -= RATE g' / (sqrt(v) + EPSILON)``. One moment: v.

    Cost
    ----
    Reads 3 n, writes 2 n.

    Source
    ------
    Tieleman & Hinton 2012, lecture 6.5.
    """
    s = scalars.tolist()
    (v,) = moments
    g = clip_scale * g + s[L2] * p
    v[...] = s[BETA2] * v + (1 - s[BETA2]) * (g * g)
    p -= s[RATE] * g / (np.sqrt(v) + s[EPSILON])
