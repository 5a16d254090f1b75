"""The main loop of every product: a block's tile of the result, from tiles in shared memory.

A factory makes it for a tile and for where the two operands' numbers lie. An operand lies *along*
the sum where a row holds the terms of one sum (x in x w), *across* it where a row holds one term of
many (w in x w). In shared memory both lie across, so that a thread reads four neighbours at a time.
While one pair of tiles is used, the next is on its way into the other half of shared memory.

Order: a sum's terms are added one after the other, to what its accumulator held before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.device_plan import Tile
from fastneuron.kernels.numba_cuda.driver import cuda, device_function
from fastneuron.kernels.numba_cuda.vectors import load4, load4_shared, store4_shared

__all__ = ["ACROSS", "ALONG", "PAD", "accumulate"]

ALONG, ACROSS = "along", "across"
#: Numbers between rows in shared memory: an operand that lies along is written a column at a time,
#: and with these a warp's 32 numbers go to 32 banks.
PAD = 4


@cache
def _fetch(layout: str, dtype: str, fours: bool) -> Any:
    """Return a function that reads four neighbours of an operand; outside of it are zeros.

    `line` counts the sums, `term` their terms. Where `fours`, rows have a multiple of four numbers
    and start at a multiple of 16 bytes.
    """
    zero = np.dtype(dtype).type(0)
    along = layout == ALONG

    @device_function
    def fetch(source, stride, line, term, lines, terms):
        if along:
            at, inside, left = line * stride + term, line < lines, terms - term
        else:
            at, inside, left = term * stride + line, term < terms, lines - line
        if not inside or left <= 0:
            return zero, zero, zero, zero
        if fours:
            return load4(source, at)
        return (
            source[at],
            source[at + 1] if left > 1 else zero,
            source[at + 2] if left > 2 else zero,
            source[at + 3] if left > 3 else zero,
        )

    return fetch


@cache
def _put(layout: str, length: int) -> Any:
    """Return a function that writes what `fetch` read into a tile in shared memory."""
    if layout == ALONG:

        @device_function
        def put(shared, start, line, term, four):
            at = start + term * length + line
            shared[at] = four[0]
            shared[at + length] = four[1]
            shared[at + 2 * length] = four[2]
            shared[at + 3 * length] = four[3]
    else:

        @device_function
        def put(shared, start, line, term, four):
            store4_shared(shared, start + term * length + line, four)

    return put


@cache
def _place(layout: str, lines: int, depth: int) -> Any:
    """Return a function: number of a piece of four -> the (line, term) where it starts."""
    per_line, per_term = depth // 4, lines // 4
    if layout == ALONG:
        return device_function(lambda piece: (piece // per_line, piece % per_line * 4))
    return device_function(lambda piece: (piece % per_term * 4, piece // per_term))


@cache
def accumulate(
    tile: Tile, dtype: str, left: str, right: str, left_fours: bool, right_fours: bool
) -> Any:
    """Return the main loop: ``sums += left right`` over the terms of `first` to `last`.

    Its arguments: sums, a thread's (thread_rows, thread_columns), INOUT; the shared vectors of both
    operands, each two tiles long; the operands with their strides, how many lines they have and
    where this block's begin; the terms `first`, a multiple of 4, to `last`.
    """
    rows, columns, depth, threads = tile.rows, tile.columns, tile.depth, tile.threads
    left_pieces = rows * depth // 4 // threads
    right_pieces = columns * depth // 4 // threads
    left_length, right_length = rows + PAD, columns + PAD
    left_size, right_size = depth * left_length, depth * right_length
    down, across = tile.threads_down, tile.threads_across
    row_fours, column_fours = tile.thread_rows // 4, tile.thread_columns // 4
    fetch_left, fetch_right = _fetch(left, dtype, left_fours), _fetch(right, dtype, right_fours)
    put_left, put_right = _put(left, left_length), _put(right, right_length)
    place_left, place_right = _place(left, rows, depth), _place(right, columns, depth)
    T = np.dtype(dtype).type

    @device_function
    def loop(
        sums, near_left, near_right,
        a, a_stride, a_lines, a_from, b, b_stride, b_lines, b_from, first, last,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        row, column = thread // across * 4, thread % across * 4
        next_left = cuda.local.array((left_pieces, 4), T)
        next_right = cuda.local.array((right_pieces, 4), T)
        row_part = cuda.local.array((row_fours, 4), T)
        column_part = cuda.local.array((column_fours, 4), T)
        for piece in range(left_pieces):
            line, term = place_left(thread + piece * threads)
            four = fetch_left(a, a_stride, a_from + line, first + term, a_lines, last)
            put_left(near_left, 0, line, term, four)
        for piece in range(right_pieces):
            line, term = place_right(thread + piece * threads)
            four = fetch_right(b, b_stride, b_from + line, first + term, b_lines, last)
            put_right(near_right, 0, line, term, four)
        cuda.syncthreads()
        half = 0
        for start in range(first, last, depth):
            coming = start + depth
            if coming < last:
                for piece in range(left_pieces):
                    line, term = place_left(thread + piece * threads)
                    four = fetch_left(a, a_stride, a_from + line, coming + term, a_lines, last)
                    for i in range(4):
                        next_left[piece, i] = four[i]
                for piece in range(right_pieces):
                    line, term = place_right(thread + piece * threads)
                    four = fetch_right(b, b_stride, b_from + line, coming + term, b_lines, last)
                    for i in range(4):
                        next_right[piece, i] = four[i]
            left_at, right_at = half * left_size + row, half * right_size + column
            for term in range(depth):
                for g in range(row_fours):
                    four = load4_shared(near_left, left_at + term * left_length + g * down * 4)
                    for i in range(4):
                        row_part[g, i] = four[i]
                for g in range(column_fours):
                    four = load4_shared(near_right, right_at + term * right_length + g * across * 4)
                    for j in range(4):
                        column_part[g, j] = four[j]
                for r in range(row_fours):
                    for i in range(4):
                        for c in range(column_fours):
                            for j in range(4):
                                sums[r * 4 + i, c * 4 + j] += row_part[r, i] * column_part[c, j]
            half = 1 - half
            if coming < last:
                for piece in range(left_pieces):
                    line, term = place_left(thread + piece * threads)
                    four = (
                        next_left[piece, 0], next_left[piece, 1],
                        next_left[piece, 2], next_left[piece, 3],
                    )  # fmt: skip
                    put_left(near_left, half * left_size, line, term, four)
                for piece in range(right_pieces):
                    line, term = place_right(thread + piece * threads)
                    four = (
                        next_right[piece, 0], next_right[piece, 1],
                        next_right[piece, 2], next_right[piece, 3],
                    )  # fmt: skip
                    put_right(near_right, half * right_size, line, term, four)
            cuda.syncthreads()

    return loop
