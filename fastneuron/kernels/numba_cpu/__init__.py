"""The Numba CPU backend: every slot, and an engine of its own. Importing it imports numba."""

from __future__ import annotations

from fastneuron.kernels.numba_cpu.engine import NumbaEngine
from fastneuron.kernels.numba_cpu.slots import SLOTS

__all__ = ["SLOTS", "NumbaEngine"]
