"""What this machine can do at most, measured even where no compiled kernel runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.profiling import machine_ceilings
from fastneuron.profiling.machine_ceilings import Level
from fastneuron.profiling.machine_ceilings import MachineCeilings as Ceilings

__all__ = ["Ceilings", "measure"]

#: Side of the matrices whose product the BLAS is asked for: large enough for its best pace.
_SIDE = 768
#: Bytes of source and target of the copies: half of usual caches, and beyond.
_SETS = {"L1": 16 << 10, "L2": 256 << 10, "L3": 4 << 20, "memory": 64 << 20}
#: Seconds of a timed burst of copies, and bursts: the best one counts.
_BURST, _BURSTS = 2e-3, 12


def measure(threads: int = 1) -> Ceilings:
    """Measure the ceilings of `threads` cores, in a second or two.

    By the compiled kernels of `fastneuron.profiling.ceilings`; where there are none, by the BLAS's
    matrix product and NumPy's copies, which nothing else there exceeds.
    """
    try:
        return machine_ceilings.ceilings(threads)
    except BackendUnavailable:
        copies = [_copy(size) for size in _SETS.values()]
        # What fits a nearer memory is no slower there; NumPy's own start counts in the least ones.
        best = [max(copies[i:]) for i in range(len(copies))]
        levels = [
            Level(name, size, pace, pace)
            for (name, size), pace in zip(_SETS.items(), best, strict=True)
        ]
        flops = {dtype: _product(dtype) for dtype in ("float32", "float64")}
        return Ceilings(threads, flops, tuple(levels), "NumPy")


def _product(dtype: str) -> float:
    a = np.ones((_SIDE, _SIDE), dtype)
    out = np.empty_like(a)
    return 2 * _SIDE**3 / _best(lambda: np.matmul(a, a, out=out))


def _copy(size: int) -> float:
    source = np.ones(size // 2, np.uint8)
    target = np.zeros_like(source)
    return size / _best(lambda: np.copyto(target, source))


def _best(function: Callable[[], object]) -> float:
    """Return the least seconds of a call."""
    count, best = 1, float("inf")
    for _ in range(_BURSTS):
        start = time.perf_counter()
        for _ in range(count):
            function()
        seconds = (time.perf_counter() - start) / count
        best, count = min(best, seconds), max(1, int(_BURST / seconds))
    return best
