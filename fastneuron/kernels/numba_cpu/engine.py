"""The Numba engine: the blocked engine with workers compiled by Numba."""

from __future__ import annotations

from typing import ClassVar

from fastneuron.kernels.blocked import BlockedEngine
from fastneuron.kernels.numba_cpu.cache import Record, records
from fastneuron.kernels.numba_cpu.jit import uniform
from fastneuron.kernels.numba_cpu.target import lane_count
from fastneuron.kernels.numba_cpu.worker import infer, train


class NumbaEngine(BlockedEngine):
    """Two-phase training steps in machine code that Numba generates for this CPU."""

    backend: ClassVar[str] = "numba"
    #: Kernels that this process has found or compiled so far.
    kernel_records: ClassVar[list[Record]] = records

    def _lanes(self) -> int:
        return lane_count(self.spec.dtype)

    # The functions themselves: a method between costs 0.1 us of a call.
    _input = staticmethod(uniform)
    _train = staticmethod(train)
    _infer = staticmethod(infer)
