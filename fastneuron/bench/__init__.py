"""Benchmark suites: checked, timed side by side, compared from run to run.

The command is `fastneuron bench`; `run` and `compare` give the same as objects. Names are imported
when they are first used: the command's arguments are understood without NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastneuron.bench.comparing import Comparison, compare
    from fastneuron.bench.results import Result, Row
    from fastneuron.bench.running import run

__all__ = ["Comparison", "Result", "Row", "compare", "run"]

_ROOM_OF = {
    "Comparison": "comparing",
    "compare": "comparing",
    "Result": "results",
    "Row": "results",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'fastneuron.bench' has no attribute {name!r}")
    return getattr(import_module(f"fastneuron.bench.{_ROOM_OF[name]}"), name)
