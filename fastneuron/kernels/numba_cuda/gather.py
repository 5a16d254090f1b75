"""The rows of a step's batch, found by the step's number, which is on the device too."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastneuron.kernels.numba_cuda.driver import cuda, kernel
from fastneuron.kernels.numba_cuda.outcome import STEP

__all__ = ["gather"]


@cache
def gather(lanes: int, rows: int) -> Any:
    """Return the kernel ``out_i = source[order[bounds[step] + i]]`` of rows of any dtype.

    Its arguments: source (n, F), order, bounds, state IN, out (B, F) OUT; B, F. Blocks of
    (lanes, rows) threads, a row of them to a row of the batch.
    """

    def gather_rows(source, order, bounds, state, out, batch, features):
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        if row < batch:
            sample = order[bounds[state[STEP]] + row]
            for j in range(cuda.threadIdx.x, features, lanes):
                out[row * features + j] = source[sample * features + j]

    return kernel(gather_rows)
