"""Optimizer updates over runs of parameters, in place; formulas in `fastneuron.optimizers`."""

from __future__ import annotations

import math

from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.optimizers import (
    BETA1,
    BETA2,
    CORRECTION,
    EPSILON,
    L2,
    RATE,
    SGD,
    SHRINK,
    Adam,
    RMSprop,
)

PLAIN = SGD().kind
MOMENTUM = SGD(momentum=0.5).kind
NESTEROV = SGD(momentum=0.5, nesterov=True).kind
ADAM = Adam().kind
RMSPROP = RMSprop().kind


@inner
def update(kind, p, g, m, v, scalars, clip, decays):
    """Update parameters p from gradients g; m and v are the moments that the kind has.

    `scalars` is one step's row of `Optimizer.scalars`; `decays` is 0 for biases that weight
    decay leaves alone.
    """
    real = p.dtype.type
    n = p.shape[0]
    rate, scale = real(scalars[RATE]), real(clip)
    l2 = real(scalars[L2]) if decays != 0 else real(0.0)
    if kind == PLAIN:
        for i in range(n):
            p[i] = p[i] - rate * (scale * g[i] + l2 * p[i])
    elif kind == MOMENTUM:
        beta = real(scalars[BETA1])
        for i in range(n):
            m[i] = beta * m[i] + (scale * g[i] + l2 * p[i])
            p[i] = p[i] - rate * m[i]
    elif kind == NESTEROV:
        beta = real(scalars[BETA1])
        for i in range(n):
            slope = scale * g[i] + l2 * p[i]
            m[i] = beta * m[i] + slope
            p[i] = p[i] - rate * (slope + beta * m[i])
    elif kind == ADAM:
        shrink = real(scalars[SHRINK]) if decays != 0 else real(0.0)
        beta1, rest1 = real(scalars[BETA1]), real(1.0 - scalars[BETA1])
        beta2, rest2 = real(scalars[BETA2]), real(1.0 - scalars[BETA2])
        correction, epsilon = real(scalars[CORRECTION]), real(scalars[EPSILON])
        for i in range(n):
            slope = scale * g[i] + l2 * p[i]
            m[i] = beta1 * m[i] + rest1 * slope
            v[i] = beta2 * v[i] + rest2 * slope * slope
            root = math.sqrt(v[i]) * correction + epsilon
            p[i] = p[i] - shrink * p[i] - rate * m[i] / root
    else:  # RMSPROP, whose one moment is the mean square
        beta2, rest2 = real(scalars[BETA2]), real(1.0 - scalars[BETA2])
        epsilon = real(scalars[EPSILON])
        for i in range(n):
            slope = scale * g[i] + l2 * p[i]
            m[i] = beta2 * m[i] + rest2 * slope * slope
            p[i] = p[i] - rate * slope / (math.sqrt(m[i]) + epsilon)
