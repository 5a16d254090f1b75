"""Losses of single rows: loss and dL/d(output) in one visit.

`o`, `d` and `y` are runs of one row: outputs, deltas to write, targets. Sums go over the outputs in
ascending order.
"""

from __future__ import annotations

from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.scalar import exp, log1p_unit, sigmoid
from fastneuron.losses import LOSSES

MSE = LOSSES["mse"].code
MAE = LOSSES["mae"].code
HUBER = LOSSES["huber"].code
CROSS_ENTROPY = LOSSES["cross_entropy"].code
BINARY_CROSS_ENTROPY = LOSSES["binary_cross_entropy"].code
POISSON = LOSSES["poisson"].code


@inner
def row_scale(arena, weight, sample, batch):
    """Return what a row's loss counts in its batch: weight / B; no weights mean weight 1."""
    scale = arena.dtype.type(1.0 / batch)
    if weight.shape[0] > 0:
        scale = scale * weight[sample]
    return scale


@inner
def values_run(code, o, y, d, scale):
    """Write scale * dl/do of a run of outputs and return the run's summed loss (not scaled)."""
    zero, half = o.dtype.type(0.0), o.dtype.type(0.5)
    one, two = o.dtype.type(1.0), o.dtype.type(2.0)
    total = zero
    n = y.shape[0]
    if code == MSE:
        for j in range(n):
            r = o[j] - y[j]
            d[j] = scale * (two * r)
            total += r * r
    elif code == MAE:
        for j in range(n):
            r = o[j] - y[j]
            d[j] = scale * (one if r > zero else (-one if r < zero else r))
            total += abs(r)
    elif code == HUBER:
        for j in range(n):
            r = o[j] - y[j]
            size = abs(r)
            flat = one if r > zero else -one
            d[j] = scale * (flat if size > one else r)
            total += size - half if size > one else half * r * r
    elif code == BINARY_CROSS_ENTROPY:
        for j in range(n):
            d[j] = scale * (sigmoid(o[j]) - y[j])
            above = zero if o[j] < zero else o[j]
            total += above - o[j] * y[j] + log1p_unit(exp(-abs(o[j])))
    else:  # POISSON
        for j in range(n):
            e = exp(o[j])
            d[j] = scale * (e - y[j])
            total += e - y[j] * o[j]
    return total


@inner
def largest(o, best):
    """Return the largest of `best` and a run; a NaN is left to the sums that follow."""
    for j in range(o.shape[0]):
        best = o[j] if o[j] > best else best
    return best


@inner
def exponentials(o, d, shift):
    """Write exp(o - shift) to d and return the run's sum."""
    for j in range(o.shape[0]):
        d[j] = exp(o[j] - shift)
    total = o.dtype.type(0.0)
    for j in range(o.shape[0]):
        total += d[j]
    return total
