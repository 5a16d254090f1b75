"""Dropout: a thread makes the four random words of four rows, and never stores them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.numba_cuda.driver import cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.outcome import STEP
from fastneuron.kernels.reference.dropout import KEY_STEPS, MULTIPLIERS, ROUNDS

__all__ = ["dropout"]

# All of it unsigned: a signed number beside one of 64 unsigned bits makes Numba take float64.
_M0, _M1 = (np.uint64(each) for each in MULTIPLIERS)
_K0, _K1 = (np.uint64(each) for each in KEY_STEPS)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@device_function
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: see `fastneuron.kernels.reference.dropout.philox`."""
    for _ in range(ROUNDS):
        low, high = _M0 * c0, _M1 * c2
        c0 = (high >> _HALF) ^ c1 ^ k0
        c1 = high & _LOW
        c2 = (low >> _HALF) ^ c3 ^ k1
        c3 = low & _LOW
        k0, k1 = (k0 + _K0) & _LOW, (k1 + _K1) & _LOW
    return c0, c1, c2, c3


@cache
def dropout(dtype: str, across: int) -> Any:
    """Return the kernel ``y = x (mask / (1 - rate))``, forward and backward.

    Its arguments: x (B, O) IN; y (B, O) OUT, which may be x; keys (steps, 2) uint64 and state IN;
    layer, its number; dropped, 2^32 times the rate; scale, 1 / (1 - rate); B, O. Blocks of four
    rows (blockIdx.x) and `across` columns (blockIdx.y).
    """
    zero = np.dtype(dtype).type(0)

    def dropout_rows(x, y, keys, state, layer, dropped, scale, batch, outputs):
        column = cuda.blockIdx.y * across + cuda.threadIdx.x
        first = cuda.blockIdx.x * 4
        if column < outputs:
            step = state[STEP]
            words = _philox(
                np.uint64(column),
                np.uint64(cuda.blockIdx.x),
                np.uint64(layer),
                np.uint64(0),
                keys[2 * step],
                keys[2 * step + 1],
            )
            for i in range(4):
                if first + i < batch:
                    at = (first + i) * outputs + column
                    y[at] = x[at] * (scale if words[i] >= np.uint64(dropped) else zero)

    return kernel(dropout_rows)
