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
from fastneuron.kernels.numba_cuda.driver import cuda, kernel
from fastneuron.kernels.numba_cuda.sums import sum_of_lanes

__all__ = ["STATUS", "STEP", "advance", "judge", "mean_loss", "squares"]

#: Places of the state.
STEP, STATUS = 0, 1

_OK = int(Status.OK)
_LOSS, _GRADIENT = int(Status.LOSS_NOT_FINITE), int(Status.GRADIENT_NOT_FINITE)


@cache
def mean_loss(threads: int) -> Any:
    """Return the kernel ``losses[step] = sum(rows) / B``, for one block.

    Its arguments: rows (B,) IN; losses (steps,) float64 OUT; state INOUT; B.
    """
    total_of = sum_of_lanes(threads)
    zero = np.float64(0)

    def step_mean_loss(rows, losses, state, batch):
        shared = cuda.shared.array(threads, np.float64)
        thread = cuda.threadIdx.x
        own = zero
        for i in range(thread, batch, threads):
            own += np.float64(rows[i])
        mean = total_of(shared, 0, thread, own) / np.float64(batch)
        if thread == 0 and state[STATUS] == _OK:
            losses[state[STEP]] = mean
            if not math.isfinite(mean):
                state[STATUS] = _LOSS

    return kernel(step_mean_loss)


@cache
def squares(threads: int, chunk: int) -> Any:
    """Return the kernel that sums the squares of each chunk of the gradient that is trained.

    Its arguments: gradient (n,), marks (n / 16,) IN; partials (chunks,) float64 OUT; n.
    """
    total_of = sum_of_lanes(threads)
    zero = np.float64(0)

    def gradient_squares(gradient, marks, partials, count):
        shared = cuda.shared.array(threads, np.float64)
        thread = cuda.threadIdx.x
        first = cuda.blockIdx.x * chunk
        own = zero
        for i in range(first + thread, min(first + chunk, count), threads):
            if marks[i // ALIGNMENT] & TRAINS:
                own += np.float64(gradient[i]) * np.float64(gradient[i])
        total = total_of(shared, 0, thread, own)
        if thread == 0:
            partials[cuda.blockIdx.x] = total

    return kernel(gradient_squares)


@cache
def judge(threads: int, dtype: str) -> Any:
    """Return the kernel that decides whether a step is applied, and by how much it is clipped.

    Its arguments: partials (chunks,) and limits (steps,) float64 IN; clip (1,) OUT, the factor of
    the gradient; state INOUT; how many chunks. One block.
    """
    total_of = sum_of_lanes(threads)
    T = np.dtype(dtype).type
    zero, most = np.float64(0), np.float64(np.finfo(dtype).max)

    def gradient_judge(partials, limits, clip, state, chunks):
        shared = cuda.shared.array(threads, np.float64)
        thread = cuda.threadIdx.x
        own = zero
        for i in range(thread, chunks, threads):
            own += partials[i]
        squared = total_of(shared, 0, thread, own)
        if thread == 0 and state[STATUS] == _OK:
            if squared <= most:
                limit, norm = limits[state[STEP]], math.sqrt(squared)
                clip[0] = T(limit / norm) if zero < limit and limit < norm else T(1)
            else:  # NaN too
                state[STATUS] = _GRADIENT

    return kernel(gradient_judge)


@cache
def advance() -> Any:
    """Return the kernel, of one thread, that ends a step which was applied."""

    def step_advance(state):
        if state[STATUS] == _OK:
            state[STEP] += 1

    return kernel(step_advance)
