"""Normalisations and what they make of rows; their sums over the batch are those of `columns`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Status
from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.columns import inverse_root
from fastneuron.kernels.numba_cuda.driver import cuda, kernel
from fastneuron.kernels.numba_cuda.outcome import STATUS
from fastneuron.kernels.numba_cuda.sums import sum_of_lanes

__all__ = [
    "batch_norm_backward",
    "layer_norm_backward",
    "layer_norm_forward",
    "move_statistics",
    "norm_forward",
    "running_inverse",
]

_OK = int(Status.OK)


@cache
def norm_forward(
    dtype: str, activation: str, bias: bool, keeps_z: bool, lanes: int, rows: int
) -> Any:
    """Return the kernel ``a = f(weight (x - mean) inverse + bias)`` by moments of the columns.

    Its arguments: x (B, O), mean, inverse, weight, bias (O,) IN; z, a (B, O) OUT; B, O.
    """
    f = activations.value(activation, dtype)

    def batch_norm_forward(x, mean, inverse, weight, shift, z, a, batch, outputs):
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        if row < batch:
            for j in range(cuda.threadIdx.x, outputs, lanes):
                at = row * outputs + j
                y = (x[at] - mean[j]) * inverse[j] * weight[j]
                if bias:
                    y += shift[j]
                if keeps_z:
                    z[at] = y
                a[at] = f(y)

    return kernel(batch_norm_forward)


@cache
def batch_norm_backward(dtype: str, uses_batch: bool, lanes: int, rows: int) -> Any:
    """Return the kernel ``dx = inverse weight (dy - mean(dy) - xhat mean(dy xhat))``.

    Where the moments are running ones the two means are not there. Its arguments: x, dy (B, O),
    mean, inverse, weight, along (O,) the sum of ``dy xhat``, plain (O,) that of dy, IN; dx (B, O)
    OUT; share, 1 / B; B, O.
    """

    def batch_norm_gradient(x, dy, mean, inverse, weight, along, plain, dx, share, batch, outputs):
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        if row < batch:
            for j in range(cuda.threadIdx.x, outputs, lanes):
                at = row * outputs + j
                d = dy[at]
                if uses_batch:
                    xhat = (x[at] - mean[j]) * inverse[j]
                    d = d - plain[j] * share - xhat * (along[j] * share)
                dx[at] = inverse[j] * (weight[j] * d)

    return kernel(batch_norm_gradient)


@cache
def layer_norm_forward(
    dtype: str, activation: str, bias: bool, keeps_z: bool, lanes: int, rows: int
) -> Any:
    """Return the kernel ``a = f(weight (x - mean) inverse + bias)`` by moments of the rows.

    Its arguments: x (B, O), weight, bias (O,) IN; mean, inverse (B,) OUT; z, a (B, O) OUT; share,
    1 / O; epsilon; B, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    f, total_of = activations.value(activation, dtype), sum_of_lanes(lanes)
    root_of = inverse_root(dtype)
    size = lanes * rows  # a name: of an expression Numba makes no constant

    def layer_norm(x, weight, shift, mean, inverse, z, a, share, epsilon, batch, outputs):
        shared = cuda.shared.array(size, T)
        lane, first = cuda.threadIdx.x, cuda.threadIdx.y * lanes
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        last = outputs if row < batch else 0
        start = row * outputs
        own = zero
        for j in range(lane, last, lanes):
            own += x[start + j]
        middle = total_of(shared, first, lane, own) * share
        own = zero
        for j in range(lane, last, lanes):
            distance = x[start + j] - middle
            own += distance * distance
        variance = total_of(shared, first, lane, own) * share
        root = root_of(variance, epsilon)
        if row < batch and lane == 0:
            mean[row] = middle
            inverse[row] = root
        for j in range(lane, last, lanes):
            y = (x[start + j] - middle) * root * weight[j]
            if bias:
                y += shift[j]
            if keeps_z:
                z[start + j] = y
            a[start + j] = f(y)

    return kernel(layer_norm)


@cache
def layer_norm_backward(dtype: str, lanes: int, rows: int) -> Any:
    """Return the kernel ``dx = inverse (g - mean(g) - xhat mean(g xhat))``, ``g = weight dy``.

    Its arguments: x, dy (B, O), mean, inverse (B,), weight (O,) IN; dx (B, O) OUT; share, 1 / O;
    B, O.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    total_of = sum_of_lanes(lanes)
    size = lanes * rows  # a name: of an expression Numba makes no constant

    def layer_norm_gradient(x, dy, mean, inverse, weight, dx, share, batch, outputs):
        shared = cuda.shared.array(size, T)
        lane, first = cuda.threadIdx.x, cuda.threadIdx.y * lanes
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        last, middle, root = 0, zero, zero
        if row < batch:
            last, middle, root = outputs, mean[row], inverse[row]
        start = row * outputs
        plain, along = zero, zero
        for j in range(lane, last, lanes):
            g = weight[j] * dy[start + j]
            plain += g
            along += g * ((x[start + j] - middle) * root)
        plain = total_of(shared, first, lane, plain) * share
        along = total_of(shared, first, lane, along) * share
        for j in range(lane, last, lanes):
            xhat = (x[start + j] - middle) * root
            dx[start + j] = root * (weight[j] * dy[start + j] - plain - xhat * along)

    return kernel(layer_norm_gradient)


@cache
def running_inverse(dtype: str, threads: int) -> Any:
    """Return the kernel ``inverse = 1 / sqrt(variance + epsilon)`` of running statistics.

    Its arguments: variance (O,) IN; inverse (O,) OUT; epsilon; O.
    """
    root_of = inverse_root(dtype)

    def inverse_of_running(variance, inverse, epsilon, count):
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count:
            inverse[at] = root_of(variance[at], epsilon)

    return kernel(inverse_of_running)


@cache
def move_statistics(threads: int) -> Any:
    """Return the kernel that moves running statistics towards a batch's, of a step that is applied.

    Its arguments: running mean and variance (O,) INOUT; mean, variance (O,) and state IN; momentum;
    wider, B / (B - 1); O.
    """

    def statistics_move(old_mean, old_variance, mean, variance, state, momentum, wider, count):
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count and state[STATUS] == _OK:
            old_mean[at] += momentum * (mean[at] - old_mean[at])
            old_variance[at] += momentum * (variance[at] * wider - old_variance[at])

    return kernel(statistics_move)
