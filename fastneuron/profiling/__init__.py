"""What a step costs and why: measurements that a sceptic cannot shake.

Names are imported when they are first used, as the package's own are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastneuron.profiling.bias_profile import BiasProfile, bias
    from fastneuron.profiling.bias_sweeps import BiasSweep, bias_sweep
    from fastneuron.profiling.machine_ceilings import MachineCeilings, ceilings
    from fastneuron.profiling.roofs import Roofline, roofline
    from fastneuron.profiling.step_profile import StepProfile, step

__all__ = [
    "BiasProfile",
    "BiasSweep",
    "MachineCeilings",
    "Roofline",
    "StepProfile",
    "bias",
    "bias_sweep",
    "ceilings",
    "roofline",
    "step",
]

_ROOMS = {
    "bias_profile": ("BiasProfile", "bias"),
    "bias_sweeps": ("BiasSweep", "bias_sweep"),
    "machine_ceilings": ("MachineCeilings", "ceilings"),
    "roofs": ("Roofline", "roofline"),
    "step_profile": ("StepProfile", "step"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'fastneuron.profiling' has no attribute {name!r}")
    value = getattr(import_module(f"fastneuron.profiling.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
