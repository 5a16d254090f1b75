"""Layer 1: the kernels in numba's simulator, in a process of their own.

The simulator must be chosen before numba is imported, so `tests/test_cuda_simulator.py` runs this
folder in a process that has the variable; anywhere else nothing is collected here.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
from cuda_kernels import LAUNCHED, factory_of

collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["test_*.py"]

# The simulator polls its threads: it should let go of the interpreter sooner than in 5 ms.
sys.setswitchinterval(1e-3)
# On one core they hand it on up to ten times as fast as over two.
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


_launched: dict[object, str] = {}


@pytest.fixture(autouse=True, scope="session")
def _noted():
    """Notes which kernels are launched, for the process that started this one."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    real = FakeCUDAKernel.__call__

    def noting(kernel, *arguments):
        if not kernel._device and kernel.fn.__code__ not in _launched:
            _launched[kernel.fn.__code__] = factory_of(kernel.fn)
        return real(kernel, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAKernel, "__call__", noting)
        yield
    if os.environ.get(LAUNCHED):
        names = sorted(set(_launched.values()))
        Path(os.environ[LAUNCHED], f"{os.getpid()}.json").write_text(json.dumps(names))


class OneAtATime(dict):
    """The simulator's shared arrays: who finds none has until it puts one there.

    Numba's own dictionary lets two threads of a block find none, and each then has its own array.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turn = Lock()

    def get(self, place):
        found = super().get(place)
        if found is None:  # else nobody need wait: all but the first of a block find it
            self._turn.acquire()
            found = super().get(place)
            if found is not None:
                self._turn.release()
        return found

    def __setitem__(self, place, array) -> None:
        super().__setitem__(place, array)
        self._turn.release()


@pytest.fixture(autouse=True)
def shared_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all threads of a block; what a launch asks for begins as NaN, not as zeros."""
    shared = import_module("numba.cuda.simulator.kernelapi").FakeCUDAShared
    begin = shared.__init__

    def poisoned(self, size: int) -> None:
        begin(self, size)
        self._dynshared[:] = -1
        self._allocations = OneAtATime()

    monkeypatch.setattr(shared, "__init__", poisoned)


class Device:
    """Launches of kernels whose results are checked: nothing beside them may be written."""

    #: What stands behind every result: a kernel that writes there is found.
    TAIL = 5

    def out(self, *shape: int, dtype: str = "float32"):
        """A result full of NaN, which no kernel may read, and a guard behind it."""
        size = int(np.prod(shape))
        return np.full(size + self.TAIL, np.nan, dtype)

    def result(self, array, *shape: int):
        """What a kernel wrote to an `out`."""
        size = int(np.prod(shape))
        assert np.isnan(array[size:]).all(), "the kernel wrote behind its result"
        return array[:size].reshape(shape)

    def launch(self, kernel, grid, threads, *args) -> None:
        flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in args]
        kernel[grid, threads](*flat)


@pytest.fixture(scope="session")
def device() -> Device:
    return Device()


@pytest.fixture
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work cut small, for a simulated thread takes a millisecond; parameters go home if asked."""
    from fastneuron import intake
    from fastneuron.kernels.device_plan import Blocks, Tile
    from fastneuron.kernels.numba_cuda import engine

    blocks = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)
    monkeypatch.setattr(intake, "_KEEP_SECONDS", 1e9)
    monkeypatch.setattr(engine, "tile_of", lambda dtype: Tile(8, 8, 4, 4, 4))
    monkeypatch.setattr(engine, "Blocks", lambda: blocks)
