"""How a step went, kept on the device: the mean loss, the gradient's norm, and what comes of them.

`state` is (2,) int64: the number of the step, and the `Status` that ended the chunk. A step whose
loss or gradient is not finite leaves both there, no later kernel applies anything, and the steps
that are queued behind it repeat it without effect. So the host asks once a chunk.

Losses and squares are summed in float64, as in the reference: of all kernels in float32 these alone
compute in it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import ALIGNMENT, TRAINS
from fastneuron.kernels.numba_cuda.driver import cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.sums import sum_of_lanes

__all__ = [
    "STATUS",
    "STEP",
    "advance",
    "clip_of",
    "is_finite",
    "judge",
    "mean_loss",
    "mean_of",
    "squares",
    "squares_of",
]

#: Places of the state.
STEP, STATUS = 0, 1

_OK = int(Status.OK)
_LOSS, _GRADIENT = int(Status.LOSS_NOT_FINITE), int(Status.GRADIENT_NOT_FINITE)


@cache
def mean_of(threads: int) -> Any:
    """Return a function: (shared, rows, first, B) -> the mean of B rows' losses, in float64."""
    total_of = sum_of_lanes(threads)
    zero = np.float64(0)

    @device_function
    def mean(shared, rows, first, batch):
        thread = cuda.threadIdx.x
        own = zero
        for i in range(thread, batch, threads):
            own += np.float64(rows[first + i])
        return total_of(shared, 0, thread, own) / np.float64(batch)

    return mean


@cache
def squares_of(threads: int) -> Any:
    """Return a function: the sum in float64 of the squares of a gradient, where it is trained.

    Its arguments: shared, gradient, marks (of 16 numbers each); where both begin; the first number
    after it, and the last but one.
    """
    total_of = sum_of_lanes(threads)
    zero = np.float64(0)

    @device_function
    def total(shared, gradient, marks, start, marks_at, first, last):
        thread = cuda.threadIdx.x
        own = zero
        for i in range(first + thread, last, threads):
            if marks[marks_at + i // ALIGNMENT] & TRAINS:
                own += np.float64(gradient[start + i]) * np.float64(gradient[start + i])
        return total_of(shared, 0, thread, own)

    return total


@cache
def is_finite(dtype: str) -> Any:
    """Return a function: whether a step with such a squared norm is applied."""
    most = np.float64(np.finfo(dtype).max)

    @device_function
    def finite(squared):
        return squared <= most  # not of NaN

    return finite


@cache
def clip_of(dtype: str) -> Any:
    """Return a function: squared norm, limit -> the factor of the gradient."""
    T = np.dtype(dtype).type
    zero = np.float64(0)

    @device_function
    def factor(squared, limit):
        norm = math.sqrt(squared)
        return T(limit / norm) if zero < limit and limit < norm else T(1)

    return factor


@cache
def mean_loss(threads: int) -> Any:
    """Return the kernel ``losses[step] = sum(rows) / B``, for one block.

    Its arguments: rows (B,) IN; losses (steps,) float64 OUT; state INOUT; B.
    """
    mean_of_rows = mean_of(threads)

    def step_mean_loss(rows, losses, state, batch):
        shared = cuda.shared.array(threads, np.float64)
        mean = mean_of_rows(shared, rows, 0, batch)
        if cuda.threadIdx.x == 0 and state[STATUS] == _OK:
            losses[state[STEP]] = mean
            if not math.isfinite(mean):
                state[STATUS] = _LOSS

    return kernel(step_mean_loss)


@cache
def squares(threads: int, chunk: int) -> Any:
    """Return the kernel that sums the squares of each chunk of the gradient that is trained.

    Its arguments: gradient (n,), marks (n / 16,) IN; partials (chunks,) float64 OUT; n.
    """
    total_of = squares_of(threads)

    def gradient_squares(gradient, marks, partials, count):
        shared = cuda.shared.array(threads, np.float64)
        first = cuda.blockIdx.x * chunk
        total = total_of(shared, gradient, marks, 0, 0, first, min(first + chunk, count))
        if cuda.threadIdx.x == 0:
            partials[cuda.blockIdx.x] = total

    return kernel(gradient_squares)


@cache
def judge(threads: int, dtype: str) -> Any:
    """Return the kernel that decides whether a step is applied, and by how much it is clipped.

    Its arguments: partials (chunks,) and limits (steps,) float64 IN; clip (1,) OUT, the factor of
    the gradient; state INOUT; how many chunks. One block.
    """
    total_of, finite, factor = sum_of_lanes(threads), is_finite(dtype), clip_of(dtype)
    zero = np.float64(0)

    def gradient_judge(partials, limits, clip, state, chunks):
        shared = cuda.shared.array(threads, np.float64)
        thread = cuda.threadIdx.x
        own = zero
        for i in range(thread, chunks, threads):
            own += partials[i]
        squared = total_of(shared, 0, thread, own)
        if thread == 0 and state[STATUS] == _OK:
            if finite(squared):
                clip[0] = factor(squared, limits[state[STEP]])
            else:
                state[STATUS] = _GRADIENT

    return kernel(gradient_judge)


@cache
def advance() -> Any:
    """Return the kernel, of one thread, that ends a step which was applied."""

    def step_advance(state):
        if state[STATUS] == _OK:
            state[STEP] += 1

    return kernel(step_advance)
