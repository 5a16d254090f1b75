"""What this machine can do at most, measured: multiply-adds, and bytes to and from each memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.profiling import machine_ceilings

__all__ = ["Ceilings", "measure"]

#: Side of the matrices whose product the BLAS is asked for: large enough for its best pace.
_SIDE = 768
#: Bytes of source and target of the copies: within 1st, 2nd and 3rd level caches, and beyond.
_SETS = (32 << 10, 512 << 10, 8 << 20, 128 << 20)
#: Seconds of a timed burst of copies, and bursts: the best one counts.
_BURST, _BURSTS = 2e-3, 12


@dataclass(frozen=True)
class Ceilings:
    """The pace that nothing exceeds, as far as it was measured.

    Attributes
    ----------
    gflops : dict of dtype to float
        1e9 operations a second, two a multiply-add, of all threads together.
    gbytes : tuple of (int, float)
        Bytes of the set, ascending, and 1e9 bytes a second that a copy within it reads or writes.
    threads : int
    """

    gflops: dict[str, float]
    gbytes: tuple[tuple[int, float], ...]
    threads: int

    def bandwidth(self, nbytes: float) -> float:
        """Return 1e9 bytes a second for a set of `nbytes`."""
        pace = next((pace for size, pace in self.gbytes if nbytes <= size), self.gbytes[-1][1])
        return pace

    def floor(self, flop: float, nbytes: float, dtype: str) -> float:
        """Return the seconds below which the work cannot be done; 0 where nothing is known."""
        peak = self.gflops.get(dtype, 0.0)
        arithmetic = flop / peak / 1e9 if peak else 0.0
        return max(arithmetic, nbytes / self.bandwidth(nbytes) / 1e9)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Ceilings:
        """Return what `to_json` gave."""
        gbytes = tuple((int(size), float(pace)) for size, pace in found["gbytes"])
        return cls(dict(found["gflops"]), gbytes, int(found["threads"]))


def measure(threads: int = 1) -> Ceilings:
    """Measure the ceilings of `threads` cores, in a second or two.

    By the compiled kernels of `fastneuron.profiling.ceilings`; where there are none, by the BLAS's
    matrix product and NumPy's copies, which nothing else there exceeds.
    """
    try:
        found = machine_ceilings.ceilings(threads, dtypes=_DTYPES)
    except BackendUnavailable:
        copies = [_copy(size) for size in _SETS]
        # What fits a nearer memory is no slower there; NumPy's own start counts in the least ones.
        best = [max(copies[i:]) for i in range(len(copies))]
        peaks = {dtype: _product(dtype) for dtype in _DTYPES}
        return Ceilings(peaks, tuple(zip(_SETS, best, strict=True)), threads)
    gflops = {dtype: rate / 1e9 for dtype, rate in found.flops.items()}
    # A set is half of its level, which counts for all of it.
    gbytes = [(2 * one.set_bytes, max(one.read, one.copy) / 1e9) for one in found.levels]
    return Ceilings(gflops, tuple(gbytes), threads)


_DTYPES = ("float32", "float64")


def _product(dtype: str) -> float:
    a = np.ones((_SIDE, _SIDE), dtype)
    out = np.empty_like(a)
    return 2 * _SIDE**3 / _best(lambda: np.matmul(a, a, out=out)) / 1e9


def _copy(size: int) -> float:
    source = np.ones(size // 2, np.uint8)
    target = np.zeros_like(source)
    return size / _best(lambda: np.copyto(target, source)) / 1e9


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
