"""Ceilings of the machine, measured: multiply-adds a second, and bytes a second from each level.

The roofline's two sides (Williams, Waterman & Patterson 2009, "Roofline", Communications of the
ACM 52): a kernel that does f operations on b bytes takes at least ``max(f / peak, b / bandwidth)``.
Ceilings are best times, not medians: what a neighbour took away is no property of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import Ceilings
from fastneuron.threads import run_team

__all__ = ["Level", "MachineCeilings", "cache_sizes", "ceilings"]

#: Seconds of one timed run: a scheduler's slice, so that a good one is among a few.
_RUN_SECONDS = 4e-3
_RUNS = 12
#: A level is measured with sets of this share of it, since other things lie there too.
_SHARE = 0.5
#: Bytes of each thread's set in memory: at least so many, and so many times the last cache.
_MEMORY_BYTES, _MEMORY_TIMES, _MOST_BYTES = 128 << 20, 4, 512 << 20
#: Bytes a level where the system does not tell its caches.
_USUAL = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}
#: Vectors of one pass of the kernels, in which sizes come; see `contract.Ceilings`.
_CHAINS, _STREAMS = 12, 8


@dataclass(frozen=True)
class Level:
    """One level of memory.

    Attributes
    ----------
    name : "L1", "L2", "L3" or "memory"
    set_bytes : int
        What was read and copied, on all threads together.
    read, copy : float
        Bytes a second, on all threads together; a copy counts what it reads and writes.
    """

    name: str
    set_bytes: int
    read: float
    copy: float

    @property
    def pace(self) -> float:
        """Bytes a second that nothing exceeds: reading alone or copying, whichever is faster."""
        return max(self.read, self.copy)

    @property
    def size(self) -> int:
        """Bytes that lie in it, of which the set is a share."""
        return int(self.set_bytes / _SHARE)


@dataclass(frozen=True)
class MachineCeilings:
    """What so many threads reach together.

    Attributes
    ----------
    threads : int
    flops : dict of dtype name to float
        Operations a second, two a multiply-add.
    levels : tuple of Level
        From the nearest to the furthest.
    measured_by : str
        The backend whose kernels did it.
    """

    threads: int
    flops: dict[str, float]
    levels: tuple[Level, ...]
    measured_by: str

    @property
    def gflops(self) -> dict[str, float]:
        """`flops` in 1e9 a second."""
        return {dtype: rate / 1e9 for dtype, rate in self.flops.items()}

    @property
    def gbytes(self) -> tuple[tuple[int, float], ...]:
        """Bytes of each level, and its pace in 1e9 bytes a second."""
        return tuple((level.size, level.pace / 1e9) for level in self.levels)

    def level(self, held: float) -> Level:
        """Return the nearest level that holds so many bytes."""
        return next((one for one in self.levels if held <= one.size), self.levels[-1])

    def floor(
        self, operations: float, moved: float, dtype: str, held: float | None = None
    ) -> float:
        """Return the seconds that operations and bytes take at least: the roofline.

        Parameters
        ----------
        operations : float
            Two a multiply-add.
        moved : float
            Bytes that are read and written.
        dtype : str
            Of the operations, which take no time where it was not measured.
        held : float, optional
            Bytes that those moved are part of, which decide the level they come from; left out,
            they are all.
        """
        peak = self.flops.get(dtype, np.inf)
        return max(operations / peak, moved / self.level(moved if held is None else held).pace)

    def best_with(self, other: MachineCeilings) -> MachineCeilings:
        """Return the best of two measurements: a disturbed one found no ceiling, only a lower pace.

        Levels that the other does not know stay as they are.
        """
        flops = {name: max(rate, other.flops.get(name, 0.0)) for name, rate in self.flops.items()}
        known = {(one.name, one.set_bytes): one for one in other.levels}
        levels = []
        for one in self.levels:
            found = known.get((one.name, one.set_bytes), one)
            best = replace(one, read=max(one.read, found.read), copy=max(one.copy, found.copy))
            levels.append(best)
        return replace(self, flops=flops, levels=tuple(levels))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, rates in units a second."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> MachineCeilings:
        """Return what `to_json` gave, or what runs of `fastneuron bench` once kept in its place.

        Those had 1e9 operations a second, and the bytes of each level with its pace.
        """
        threads = int(found["threads"])
        if "gflops" in found:
            flops = {dtype: 1e9 * rate for dtype, rate in found["gflops"].items()}
            levels = [
                Level("", int(size * _SHARE), 1e9 * pace, 1e9 * pace)
                for size, pace in found["gbytes"]
            ]
            return cls(threads, flops, tuple(levels), "")
        levels = [Level(**level) for level in found["levels"]]
        return cls(threads, dict(found["flops"]), tuple(levels), found["measured_by"])

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        lines = [f"{self.threads} thread{plural}, by the kernels of {self.measured_by}"]
        lines += [f"{name:<8} {rate:8.1f} GFLOP/s" for name, rate in self.gflops.items()]
        lines.append("level         set     read GB/s   copy GB/s")
        lines += [
            f"{one.name:<8} {_size(one.set_bytes):>8} {one.read / 1e9:11.1f} {one.copy / 1e9:11.1f}"
            for one in self.levels
        ]
        return "\n".join(lines)


def ceilings(
    threads: int = 1,
    *,
    dtypes: Iterable[str] = ("float32", "float64"),
    backend: str | backends.Backend | None = None,
    memory: bool = True,
) -> MachineCeilings:
    """Measure what `threads` threads reach together, in about a second.

    Parameters
    ----------
    threads : int
    dtypes : iterable of str
    backend : str or Backend, optional
        Whose kernels to use; left out, Cython's or else Numba's.
    memory : bool
        False leaves out main memory, which takes half a GiB and most of the time.

    Raises
    ------
    BackendUnavailable
        Where no compiled backend runs here.
    """
    chosen, kernels = _kernels(backend)
    flops = {dtype: _flops(kernels, dtype, threads) for dtype in dtypes}
    sizes = cache_sizes()
    last = max(sizes.values())
    if memory:
        sizes["memory"] = int(
            min(max(_MEMORY_BYTES, _MEMORY_TIMES * last / _SHARE), _MOST_BYTES / _SHARE)
        )
    levels = []
    for name, size in sizes.items():
        shared = name in ("L3", "memory")
        own = int(size * _SHARE) // (threads if shared else 1)
        levels.append(_level(kernels, name, own, threads))
    return MachineCeilings(threads, flops, tuple(levels), chosen.name)


def cache_sizes() -> dict[str, int]:
    """Return the bytes of this core's data caches by level, nearest first.

    Only their sizes are taken from the system; how fast they are is measured.
    """
    found: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text("ascii").strip() for name in ("level", "type", "size")
            )
            if kind != "Instruction":
                factor = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
                found[f"L{level}"] = int(size.rstrip("KM")) * factor
        except (OSError, ValueError):
            continue
    return found or dict(_USUAL)


def _kernels(backend: str | backends.Backend | None) -> tuple[backends.Backend, Ceilings]:
    reasons = []
    for name in ("cython", "numba") if backend is None else (backend,):
        try:
            chosen = backends.get(name)
        except BackendUnavailable as error:
            reasons.append(str(error))
            continue
        if chosen.ceilings is not None:
            return chosen, chosen.ceilings
        reasons.append(f"{chosen.name} has no kernels of its own to measure with")
    raise BackendUnavailable(f"ceilings need a compiled backend: {'; '.join(reasons)}")


def _flops(kernels: Ceilings, dtype: str, threads: int) -> float:
    lanes = kernels.lane_count(dtype) // 2
    outs = [np.linspace(1, 2, _CHAINS * lanes).astype(dtype) for _ in range(threads)]

    def work(tid: int, turns: int) -> None:
        kernels.multiply_adds(outs[tid], turns)

    return 2 * _CHAINS * lanes * threads / _best(work, threads)


def _level(kernels: Ceilings, name: str, own_bytes: int, threads: int) -> Level:
    lanes = kernels.lane_count("float32") // 2
    unit = _STREAMS * lanes
    size = max(1, own_bytes // (4 * unit)) * unit
    # A copy's two halves share the level.
    half = max(1, size // (2 * unit)) * unit
    sums = [np.zeros(unit, np.float32) for _ in range(threads)]
    sources = [_numbers(size) for _ in range(threads)]
    targets = [_numbers(half) for _ in range(threads)]

    def read(tid: int, turns: int) -> None:
        kernels.read_all(sources[tid], turns, sums[tid])

    def copy(tid: int, turns: int) -> None:
        kernels.copy_all(sources[tid][:half], targets[tid], turns)

    return Level(
        name,
        4 * size * threads,
        4 * size * threads / _best(read, threads),
        8 * half * threads / _best(copy, threads),
    )


def _numbers(size: int) -> NDArray[np.float32]:
    """Return ones from a page's beginning on: a vector across two lines would be two loads."""
    raw = np.empty(4 * size + 4096, np.uint8)
    skip = -raw.ctypes.data % 4096
    array: NDArray[np.float32] = raw[skip : skip + 4 * size].view(np.float32)
    array[...] = 1  # each page is touched: memory that was never written to is one page of zeros
    return array


def _best(work: Callable[[int, int], None], threads: int) -> float:
    """Return the seconds of one turn of ``work(tid, turns)`` on all threads, the best of several.

    A team's time is that of its last thread from the moment the first one began.
    """

    def run(turns: int) -> float:
        begun, ended = [0.0] * threads, [0.0] * threads

        def timed(tid: int) -> None:
            begun[tid] = time.perf_counter()
            work(tid, turns)
            ended[tid] = time.perf_counter()

        run_team(threads, timed, lambda: None)
        return max(ended) - min(begun)

    run(1)
    turns = 1
    while (seconds := run(turns)) < _RUN_SECONDS:
        turns = max(2 * turns, int(turns * _RUN_SECONDS / max(seconds, 1e-9)))
    return min(run(turns) for _ in range(_RUNS)) / turns


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} B"
