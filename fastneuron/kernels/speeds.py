"""How fast a core is: the few figures that turn counted work into time.

Training starts with `TYPICAL`, which costs nothing: the choice of threads needs ratios only.
Whoever asks for a plan gets figures measured on the spot, in a few milliseconds, once a process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

#: Bytes that a copy passes over to be timed: beyond any second-level cache, within most third ones.
_COPIED = 8 << 20
_COPIES = 6


@dataclass(frozen=True)
class Speeds:
    """Speeds of one core, and of the team.

    Attributes
    ----------
    slot : float
        Seconds in which a core starts one vector multiply-add, as the engine's own tiles reach it.
    byte : float
        Seconds to read or write one byte of a set that lies in the third-level cache.
    barrier : float
        Seconds of one meeting of running threads.
    wake : float
        Seconds until helpers that slept have come and gone; once a call.
    measured : bool
        Whether slot and byte were measured in this process.
    """

    slot: float
    byte: float
    barrier: float
    wake: float
    measured: bool = False

    def peak(self, lanes: int) -> float:
        """Return multiply-adds a second on one core, for panels of `lanes` columns."""
        return lanes / 2 / self.slot


#: AMD Zen 5 server core at 3.75 GHz. slot: 240 GFLOP/s of independent float32 multiply-adds in
#: 16-lane registers (benchmarks/peak.py); AVX2 cores of 4 GHz have the same slot for 8 lanes. byte:
#: NumPy copies of 4 MiB to 4 MiB, 0.009 to 0.012 ns. barrier: 1000 empty steps of two threads.
#: wake: a call of run_team(2) that does nothing, on a virtual machine (10 to 20 us without one).
TYPICAL = Speeds(slot=0.1333e-9, byte=0.01e-9, barrier=0.15e-6, wake=40e-6)


def copy_seconds() -> float:
    """Measure the seconds a byte that a copy beyond the second-level cache reads or writes."""
    source = np.ones(_COPIED // 2, np.uint8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return best / _COPIED
