"""Sums over the rows of a batch, in two stages, and what is done to the rows on the way.

A block takes a group of rows and `across` columns; thread (i, j) adds up every `down`-th row of
column i, then those of a column meet one after the other. The second stage does the same to the
groups. So the order is that of B alone.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.driver import cuda, device_function, kernel

__all__ = ["batch_moments", "column_spread", "gate", "inverse_root", "norm_sums", "sum_partials"]


@cache
def _meet(across: int, down: int) -> Any:
    """Return a function: the sum of a column's `down` threads, right for its first thread."""

    @device_function
    def meet(shared, i, j, own):
        shared[j * across + i] = own
        cuda.syncthreads()
        total = shared[i]
        if j == 0:
            for k in range(1, down):
                total += shared[k * across + i]
        cuda.syncthreads()
        return total

    return meet


@cache
def gate(dtype: str, activation: str, sums: bool, across: int, down: int, group: int) -> Any:
    """Return the kernel ``dz = da f'(saved)``, with dz summed over each group of rows.

    Its arguments: da (B, O), saved (B, O) IN; dz (B, O) OUT, which may be da; partials
    (groups, O) OUT where `sums`; B, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    slope, meet = activations.derivative(activation, dtype), _meet(across, down)
    gates = activation != "identity"
    size = across * down  # a name: of an expression Numba makes no constant

    def act_bias_backward(da, saved, dz, partials, batch, outputs):
        shared = cuda.shared.array(size, T)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * across + i
        first = cuda.blockIdx.y * group
        own = zero
        if column < outputs:
            for row in range(first + j, min(first + group, batch), down):
                at = row * outputs + column
                d = da[at]
                if gates:
                    d = d * slope(saved[at])
                dz[at] = d
                own += d
        if sums:
            total = meet(shared, i, j, own)
            if j == 0 and column < outputs:
                partials[cuda.blockIdx.y * outputs + column] = total

    return kernel(act_bias_backward)


@cache
def column_spread(dtype: str, centred: bool, across: int, down: int, group: int) -> Any:
    """Return the kernel that sums x, or where `centred` ``(x - mean)^2``, over groups of rows.

    Its arguments: x (B, O), mean (O,) IN; partials (groups, O) OUT; B, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    meet = _meet(across, down)
    size = across * down  # a name: of an expression Numba makes no constant

    def batch_spread(x, mean, partials, batch, outputs):
        shared = cuda.shared.array(size, T)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * across + i
        first = cuda.blockIdx.y * group
        own = zero
        if column < outputs:
            for row in range(first + j, min(first + group, batch), down):
                each = x[row * outputs + column]
                if centred:
                    each = each - mean[column]
                    each = each * each
                own += each
        total = meet(shared, i, j, own)
        if j == 0 and column < outputs:
            partials[cuda.blockIdx.y * outputs + column] = total

    return kernel(batch_spread)


@cache
def norm_sums(dtype: str, by_column: bool, across: int, down: int, group: int) -> Any:
    """Return the kernel that sums ``dy xhat`` and dy over groups of rows.

    Its arguments: x, dy (B, O) IN; mean, inverse IN, of the columns where `by_column`, else of the
    rows; partials (2, groups, O) OUT; B, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    meet = _meet(across, down)
    size = across * down  # a name: of an expression Numba makes no constant

    def norm_gradients(x, dy, mean, inverse, partials, batch, outputs):
        shared = cuda.shared.array(size, T)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        column = cuda.blockIdx.x * across + i
        first = cuda.blockIdx.y * group
        along, plain = zero, zero
        if column < outputs:
            for row in range(first + j, min(first + group, batch), down):
                at = row * outputs + column
                of = column if by_column else row
                d = dy[at]
                along += d * ((x[at] - mean[of]) * inverse[of])
                plain += d
        along = meet(shared, i, j, along)
        plain = meet(shared, i, j, plain)
        if j == 0 and column < outputs:
            place = cuda.blockIdx.y * outputs + column
            partials[place] = along
            partials[cuda.gridDim.y * outputs + place] = plain

    return kernel(norm_gradients)


@cache
def sum_partials(dtype: str, across: int, down: int) -> Any:
    """Return the second stage ``out_j = sum_g partials_gj``.

    Thread (i, j) of a block adds up every `down`-th group of column i, then those of a column meet
    one after the other. Its arguments: partials (groups, n) IN; out (n,) OUT; groups, n.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    meet = _meet(across, down)
    size = across * down

    def partial_sums(partials, out, groups, count):
        shared = cuda.shared.array(size, T)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        at = cuda.blockIdx.x * across + i
        own = zero
        if at < count:
            for g in range(j, groups, down):
                own += partials[g * count + at]
        total = meet(shared, i, j, own)
        if j == 0 and at < count:
            out[at] = total

    return kernel(partial_sums)


@cache
def batch_moments(dtype: str, spread: bool, threads: int) -> Any:
    """Return the second stage of a batch's mean, or where `spread` of its variance and inverse.

    Its arguments: partials (groups, O) IN; out (O,) OUT, the mean or the variance; inverse (O,) OUT
    where `spread`, ``1 / sqrt(variance + epsilon)``; share, 1 / B; epsilon; groups, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    root_of = inverse_root(dtype)

    def moments_of_batch(partials, out, inverse, share, epsilon, groups, count):
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count:
            total = zero
            for g in range(groups):
                total += partials[g * count + at]
            total = total * share
            out[at] = total
            if spread:
                inverse[at] = root_of(total, epsilon)

    return kernel(moments_of_batch)


@cache
def inverse_root(dtype: str) -> Any:
    """Return a function ``1 / sqrt(variance + epsilon)``; NaN where the variance is not finite."""
    T = np.dtype(dtype).type
    one, nan = T(1), T(np.nan)

    @device_function
    def inverse(variance, epsilon):
        if not math.isfinite(variance):
            return nan
        return one / T(math.sqrt(variance + epsilon))

    return inverse
