"""The three products of a dense layer, each with the work that its result allows on the way.

A block makes one tile of the result; blockIdx.x counts tiles of columns, blockIdx.y of rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.device_plan import Tile
from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.driver import ALIGNED, cuda, kernel
from fastneuron.kernels.numba_cuda.tiles import ACROSS, ALONG, PAD, accumulate

__all__ = ["data_gradient", "forward", "weight_gradient"]


@cache
def forward(
    tile: Tile,
    dtype: str,
    activation: str,
    bias: bool,
    keeps_z: bool,
    x_fours: bool,
    w_fours: bool,
) -> Any:
    """Return the kernel ``a = f(x w + b)``: each sum starts from b and goes over I in order.

    Its arguments: x (B, I), w (I, O), b (O,), z (B, O) OUT where `keeps_z`, a (B, O) OUT; B, I, O.
    A thread's rows and columns are groups of four neighbours, as `tiles` cuts them.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    f = activations.value(activation, dtype)
    loop = accumulate(tile, dtype, ALONG, ACROSS, x_fours, w_fours)
    rows, columns, down, across = tile.rows, tile.columns, tile.threads_down, tile.threads_across
    own_rows, own_columns = tile.thread_rows, tile.thread_columns
    left_size, right_size = 2 * tile.depth * (rows + PAD), 2 * tile.depth * (columns + PAD)

    def dense_forward(x, w, b, z, a, batch, inputs, outputs):
        near_left = cuda.shared.array(left_size, T, ALIGNED)
        near_right = cuda.shared.array(right_size, T, ALIGNED)
        sums = cuda.local.array((own_rows, own_columns), T)
        thread = cuda.threadIdx.x
        first_row, first_column = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        row, column = first_row + thread // across * 4, first_column + thread % across * 4
        for j in range(own_columns):
            at = column + j // 4 * across * 4 + j % 4
            start = zero
            if bias and at < outputs:
                start = b[at]
            for i in range(own_rows):
                sums[i, j] = start
        loop(
            sums, near_left, near_right,
            x, inputs, batch, first_row, w, outputs, outputs, first_column, 0, inputs,
        )  # fmt: skip
        # The loop below is too long to be unrolled, and would index the accumulators by a variable:
        # they would lie in memory all along. So it indexes a copy.
        results = cuda.local.array((own_rows, own_columns), T)
        for i in range(own_rows):
            for j in range(own_columns):
                results[i, j] = sums[i, j]
        for i in range(own_rows):
            at_row = row + i // 4 * down * 4 + i % 4
            if at_row < batch:
                for j in range(own_columns):
                    at = column + j // 4 * across * 4 + j % 4
                    if at < outputs:
                        if keeps_z:
                            z[at_row * outputs + at] = results[i, j]
                        a[at_row * outputs + at] = f(results[i, j])

    return kernel(dense_forward)


@cache
def data_gradient(
    tile: Tile, dtype: str, activation: str, column_sums: bool, dz_fours: bool, w_fours: bool
) -> Any:
    """Return the kernel ``dz_below = (dz w^T) f'(saved)``, with the column sums of its rows.

    Its arguments: dz (B, O), w (I, O), saved (B, I) of the layer below, as its activation saves it;
    out (B, I) OUT; partials (row tiles, I) OUT where `column_sums`; B, O, I. A row tile's sum of a
    column, the first stage of the bias gradient below, goes over each thread's rows and then over
    the threads from top to bottom.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    gates = activation != "identity"
    slope = activations.derivative(activation, dtype)
    loop = accumulate(tile, dtype, ALONG, ALONG, dz_fours, w_fours)
    rows, columns, down, across = tile.rows, tile.columns, tile.threads_down, tile.threads_across
    own_rows, own_columns, threads = tile.thread_rows, tile.thread_columns, tile.threads
    left_size, right_size = 2 * tile.depth * (rows + PAD), 2 * tile.depth * (columns + PAD)
    sum_size = down * columns if column_sums else 1

    def dense_data_gradient(dz, w, saved, out, partials, batch, outputs, inputs):
        near_left = cuda.shared.array(left_size, T, ALIGNED)
        near_right = cuda.shared.array(right_size, T, ALIGNED)
        near_sums = cuda.shared.array(sum_size, T)
        sums = cuda.local.array((own_rows, own_columns), T)
        thread = cuda.threadIdx.x
        first_row, first_column = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        own_row, own_column = thread // across, thread % across * 4
        row = first_row + own_row * 4
        for i in range(own_rows):
            for j in range(own_columns):
                sums[i, j] = zero
        loop(
            sums, near_left, near_right,
            dz, outputs, batch, first_row, w, outputs, inputs, first_column, 0, outputs,
        )  # fmt: skip
        results = cuda.local.array((own_rows, own_columns), T)  # a copy: see `forward`
        for i in range(own_rows):
            for j in range(own_columns):
                results[i, j] = sums[i, j]
        for j in range(own_columns):
            within = own_column + j // 4 * across * 4 + j % 4
            at = first_column + within
            total = zero
            for i in range(own_rows):
                at_row = row + i // 4 * down * 4 + i % 4
                if at_row < batch and at < inputs:
                    d = results[i, j]
                    if gates:
                        d = d * slope(saved[at_row * inputs + at])
                    out[at_row * inputs + at] = d
                    total += d
            if column_sums:
                near_sums[own_row * columns + within] = total
        if column_sums:
            cuda.syncthreads()
            for within in range(thread, columns, threads):
                at = first_column + within
                if at < inputs:
                    total = zero
                    for k in range(down):
                        total += near_sums[k * columns + within]
                    partials[cuda.blockIdx.y * inputs + at] = total

    return kernel(dense_data_gradient)


@cache
def weight_gradient(tile: Tile, dtype: str, x_fours: bool, dz_fours: bool) -> Any:
    """Return the kernel ``dw = x^T dz`` over slices of the batch; blockIdx.z counts the slices.

    Its arguments: x (B, I), dz (B, O), partials (slices, I, O) OUT; B, I, O, and the rows of a
    slice. The bias gradient is not a row of this product: `data_gradient` sums dz while it writes
    it, for two additions a number and no load, where a row of ones would cost a row of tiles
    whenever I is a multiple of the tile.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    loop = accumulate(tile, dtype, ACROSS, ACROSS, x_fours, dz_fours)
    rows, columns, down, across = tile.rows, tile.columns, tile.threads_down, tile.threads_across
    own_rows, own_columns = tile.thread_rows, tile.thread_columns
    left_size, right_size = 2 * tile.depth * (rows + PAD), 2 * tile.depth * (columns + PAD)

    def dense_weight_gradient(x, dz, partials, batch, inputs, outputs, slice_rows):
        near_left = cuda.shared.array(left_size, T, ALIGNED)
        near_right = cuda.shared.array(right_size, T, ALIGNED)
        sums = cuda.local.array((own_rows, own_columns), T)
        thread = cuda.threadIdx.x
        first_row, first_column = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        row, column = first_row + thread // across * 4, first_column + thread % across * 4
        for i in range(own_rows):
            for j in range(own_columns):
                sums[i, j] = zero
        first = cuda.blockIdx.z * slice_rows
        loop(
            sums, near_left, near_right,
            x, inputs, inputs, first_row, dz, outputs, outputs, first_column,
            first, min(first + slice_rows, batch),
        )  # fmt: skip
        start = cuda.blockIdx.z * inputs * outputs
        for i in range(own_rows):
            at_row = row + i // 4 * down * 4 + i % 4
            if at_row < inputs:
                for j in range(own_columns):
                    at = column + j // 4 * across * 4 + j % 4
                    if at < outputs:
                        partials[start + at_row * outputs + at] = sums[i, j]

    return kernel(dense_weight_gradient)
