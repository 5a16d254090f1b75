"""The NumPy backend: every slot and an engine composed of them; what all other kernels must equal.

The slots' documentation is here and nowhere else: `dense`, `losses`, `updates`.
"""

from __future__ import annotations

from fastneuron.kernels.reference.engine import ReferenceEngine
from fastneuron.kernels.reference.slots import SLOTS

__all__ = ["SLOTS", "ReferenceEngine"]
