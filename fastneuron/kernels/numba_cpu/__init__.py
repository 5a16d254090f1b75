"""The Numba CPU backend: every slot, and an engine of its own. Importing it imports numba."""

from __future__ import annotations

from typing import Any, cast

from fastneuron.kernels.contract import Ceilings
from fastneuron.kernels.numba_cpu import ceilings, slot_kernels
from fastneuron.kernels.numba_cpu.engine import NumbaEngine
from fastneuron.kernels.numba_cpu.jit import uniform
from fastneuron.kernels.numba_cpu.target import lane_count
from fastneuron.kernels.panel_slots import PanelSlots

__all__ = ["SLOTS", "NumbaEngine"]

#: What measures the processor's ceilings, see `contract.Ceilings`.
CEILINGS = Ceilings(ceilings.multiply_adds, ceilings.read_all, ceilings.copy_all, lane_count)
#: Slot name -> function; all of them.
SLOTS = PanelSlots(cast("Any", slot_kernels), lane_count, uniform).table()
