"""Sums over the threads of a block, in halves: their order is that of the threads' number alone.

`lanes` threads share a sum, a power of two; all threads of a block must call these together.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastneuron.kernels.numba_cuda.driver import cuda, device_function

__all__ = ["largest_of_lanes", "sum_of_lanes"]


@cache
def sum_of_lanes(lanes: int) -> Any:
    """Return a function: (shared, where the lanes' numbers begin, lane, own number) -> the sum."""

    @device_function
    def total(shared, first, lane, own):
        shared[first + lane] = own
        cuda.syncthreads()
        step = lanes // 2
        while step > 0:
            if lane < step:
                shared[first + lane] += shared[first + lane + step]
            cuda.syncthreads()
            step //= 2
        result = shared[first]
        cuda.syncthreads()
        return result

    return total


@cache
def largest_of_lanes(lanes: int) -> Any:
    """Return a function: (shared, where the lanes' numbers begin, lane, own number) -> the largest.

    NaN may be lost here.
    """

    @device_function
    def largest(shared, first, lane, own):
        shared[first + lane] = own
        cuda.syncthreads()
        step = lanes // 2
        while step > 0:
            if lane < step and shared[first + lane + step] > shared[first + lane]:
                shared[first + lane] = shared[first + lane + step]
            cuda.syncthreads()
            step //= 2
        result = shared[first]
        cuda.syncthreads()
        return result

    return largest
