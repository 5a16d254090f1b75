"""The layers of a small network in a block's shared memory, forward and backward.

Order: an output's sum starts from b and goes over I, as in `products`; a weight's gradient goes
over the rows of a tile.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import numpy as np

from fastneuron.kernels.fused_plan import FusedLayer, FusedPlan, whole
from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.driver import cuda, device_function
from fastneuron.kernels.numba_cuda.vectors import load4_shared, store4_shared, thread_anew

__all__ = ["all_backward", "all_forward"]


@cache
def _copy_weight(layer: FusedLayer, dtype: str, threads: int) -> Any:
    """Return a function that copies a weight to shared memory, with zeros around it."""
    inputs, outputs, stride = layer.inputs, layer.outputs, layer.stride
    size, at, row = whole(inputs) * stride, layer.weight_at, layer.row
    zero = np.dtype(dtype).type(0)

    @device_function
    def copy(near, p, start):
        for q in range(thread_anew(), size, threads):
            i, o = q // stride, q % stride
            number = zero
            if i < inputs and o < outputs:
                number = p[start + at + i * row + o]
            near[q] = number

    return copy


def _over_four(f: Any) -> Any:
    """Return f of each of four numbers."""

    @device_function
    def over(z):
        return f(z[0]), f(z[1]), f(z[2]), f(z[3])

    return over


@cache
def _first_of_four(dtype: str) -> Any:
    """Return a function: the first `count` of four numbers, zeros for the others."""
    zero = np.dtype(dtype).type(0)

    @device_function
    def first(z, count):
        return (
            z[0] if count > 0 else zero,
            z[1] if count > 1 else zero,
            z[2] if count > 2 else zero,
            z[3] if count > 3 else zero,
        )

    return first


@cache
def _layer_forward(plan: FusedPlan, index: int, dtype: str, threads: int) -> Any:
    """Return a function: the layer's output, zeros in rows past the batch, from its input.

    Where the plan holds the parameters, `near` stands for p too.
    """
    layer, T = plan.layers[index], np.dtype(dtype).type
    zero = T(0)
    stride, rows = plan.row_stride, plan.rows // 4
    patches = rows * (whole(layer.outputs) // 4)
    inputs, outputs, bias, bias_at = layer.inputs, layer.outputs, layer.bias, layer.bias_at
    source, target, z_at = plan.tile_at[index], plan.tile_at[index + 1], plan.z_at[index]
    first_at, w_stride = z_at if layer.saves_z else target, layer.stride
    over, saves = _over_four(activations.value(layer.activation, dtype)), layer.saves_z
    first_of = _first_of_four(dtype)
    copy, copies, weight = (
        _copy_weight(layer, dtype, threads),
        not plan.holds,
        plan.weight_near(index),
    )

    @device_function
    def forward(near, p, start, count):
        if copies:
            copy(near, p, start)
            cuda.syncthreads()
        for patch in range(thread_anew(), patches, threads):
            row, column = patch % rows * 4, patch // rows * 4
            sums = cuda.local.array((4, 4), T)
            for j in range(4):
                first = zero
                if bias and column + j < outputs:
                    first = p[start + bias_at + column + j]
                for i in range(4):
                    sums[i, j] = first
            for k in range(inputs):
                a = load4_shared(near, source + k * stride + row)
                w = load4_shared(near, weight + k * w_stride + column)
                for i in range(4):
                    for j in range(4):
                        sums[i, j] += a[i] * w[j]
            for j in range(4):
                four = sums[0, j], sums[1, j], sums[2, j], sums[3, j]
                store4_shared(near, first_at + (column + j) * stride + row, four)
            # A loop of its own, so that f need not stand here 16 times beside the sums.
            for j in range(4):
                at = (column + j) * stride + row
                inside = count - row if column + j < outputs else 0
                four = load4_shared(near, first_at + at)
                if saves:
                    store4_shared(near, first_at + at, first_of(four, inside))
                store4_shared(near, target + at, first_of(over(four), inside))
        cuda.syncthreads()

    return forward


@cache
def _layer_backward(plan: FusedPlan, index: int, dtype: str, threads: int) -> Any:
    """Return a function: the layer's gradients, and the delta below in the place of its input.

    The gradients are added to those of the tiles before where `adds`.
    """
    layer, T = plan.layers[index], np.dtype(dtype).type
    zero = T(0)
    stride, rows = plan.row_stride, plan.rows // 4
    inputs, outputs, bias = layer.inputs, layer.outputs, layer.bias
    across, down = whole(inputs) // 4, whole(outputs) // 4
    weight_at, bias_at, to_row, w_stride = layer.weight_at, layer.bias_at, layer.row, layer.stride
    source, delta = plan.tile_at[index], plan.tile_at[index + 1]
    goes_on = index > 0
    copies = goes_on and not plan.holds and index < len(plan.layers) - 1
    below = plan.layers[index - 1] if goes_on else layer
    saved = plan.z_at[index - 1] if goes_on and below.saves_z else source
    slopes = _over_four(activations.derivative(below.activation, dtype))
    copy, weight = _copy_weight(layer, dtype, threads), plan.weight_near(index)

    @device_function
    def backward(near, p, start, gradient, base, count, adds):
        if copies:
            copy(near, p, start)
        for patch in range(thread_anew(), across * down, threads):
            # Neighbours take neighbouring outputs: their rows begin in different banks, and their
            # gradients lie side by side.
            i, o = patch // down, patch % down
            sums = cuda.local.array((4, 4), T)
            a = cuda.local.array((4, 4), T)
            for r in range(4):
                for c in range(4):
                    sums[r, c] = zero
            for row in range(0, count, 4):  # not of the tile: such a loop would be unrolled whole
                for r in range(4):
                    four = load4_shared(near, source + (i + r * across) * stride + row)
                    for k in range(4):
                        a[r, k] = four[k]
                for c in range(4):
                    four = load4_shared(near, delta + (o + c * down) * stride + row)
                    for k in range(4):
                        for r in range(4):
                            sums[r, c] += a[r, k] * four[k]
            for r in range(4):
                for c in range(4):
                    to_i, to_o = i + r * across, o + c * down
                    if to_i < inputs and to_o < outputs:
                        at = base + weight_at + to_i * to_row + to_o
                        gradient[at] = gradient[at] + sums[r, c] if adds else sums[r, c]
        if bias:
            for o in range(thread_anew(), outputs, threads):
                total = zero
                for row in range(0, count, 4):
                    four = load4_shared(near, delta + o * stride + row)
                    for k in range(4):
                        total += four[k]
                at = base + bias_at + o
                gradient[at] = gradient[at] + total if adds else total
        cuda.syncthreads()
        if goes_on:
            for patch in range(thread_anew(), rows * across, threads):
                row, i = patch % rows * 4, patch // rows * 4
                for c in range(4):  # as in the forward pass: the slopes first, by themselves
                    at = (i + c) * stride + row
                    store4_shared(near, source + at, slopes(load4_shared(near, saved + at)))
                sums = cuda.local.array((4, 4), T)
                d = cuda.local.array((4, 4), T)
                for r in range(4):
                    for c in range(4):
                        sums[r, c] = zero
                for o in range(0, outputs, 4):  # past the outputs are zeros
                    for k in range(4):
                        four = load4_shared(near, delta + (o + k) * stride + row)
                        for r in range(4):
                            d[r, k] = four[r]
                    for c in range(4):
                        w = load4_shared(near, weight + (i + c) * w_stride + o)
                        for k in range(4):
                            for r in range(4):
                                sums[r, c] += d[r, k] * w[k]
                for c in range(4):
                    at = source + (i + c) * stride + row
                    four = load4_shared(near, at)
                    store4_shared(
                        near,
                        at,
                        (
                            sums[0, c] * four[0],
                            sums[1, c] * four[1],
                            sums[2, c] * four[2],
                            sums[3, c] * four[3],
                        ),
                    )
            cuda.syncthreads()

    return backward


@cache
def all_forward(plan: FusedPlan, dtype: str, threads: int) -> Any:
    """Return a function: near, p, where p begins, count -> the tiles of all layers."""
    steps = [_layer_forward(plan, i, dtype, threads) for i in range(len(plan.layers))]

    def joined(before: Any, last: Any) -> Any:
        @device_function
        def both(near, p, start, count):
            before(near, p, start, count)
            last(near, p, start, count)

        return both

    return reduce(joined, steps)


@cache
def all_backward(plan: FusedPlan, dtype: str, threads: int) -> Any:
    """Return a function: near, p, its start, gradient, its start, count, adds -> the gradient."""
    steps = [_layer_backward(plan, i, dtype, threads) for i in reversed(range(len(plan.layers)))]

    def joined(before: Any, last: Any) -> Any:
        @device_function
        def both(near, p, start, gradient, base, count, adds):
            before(near, p, start, gradient, base, count, adds)
            last(near, p, start, gradient, base, count, adds)

        return both

    return reduce(joined, steps)
