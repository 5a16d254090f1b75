"""The compiled CPU backend: every slot and the engine over kernels in C, built where a compiler is.

Nothing is compiled at run time: a process trains within a fraction of a second. The kernels are
built for several instruction sets and the best that the processor runs is taken;
FASTNEURON_INSTRUCTION_SET asks for another.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastneuron.kernels import constants
from fastneuron.kernels.blocked import BlockedEngine
from fastneuron.kernels.contract import Array, Ceilings
from fastneuron.kernels.panel_slots import PanelSlots

__all__ = ["SLOTS", "CythonEngine", "instruction_set"]

VARIABLE = "FASTNEURON_INSTRUCTION_SET"


def _extension() -> Any:
    try:
        return import_module("fastneuron.kernels._cython_cpu")
    except ImportError as error:
        note = Path(__file__).with_name("_cython_cpu_missing.txt")
        if note.exists():
            reason = note.read_text(encoding="utf-8").strip()
        elif error.name == "fastneuron.kernels._cython_cpu":
            reason = "this installation was made without it"
        else:
            reason = f"it does not load: {error}"
        raise ImportError(
            f"the compiled extension is not there ({reason}); to build it, install fastneuron "
            "from source with a C compiler, FASTNEURON_REQUIRE_EXT=1 shows the compiler's error"
        ) from error


def _choose(extension: Any) -> None:
    """Take the instruction set that is asked for, or the best."""
    if getattr(extension, "constants", str)() != constants.digest():
        raise ImportError(
            "the compiled extension was built for other tables than this Python code has: "
            "install fastneuron again, from the same source"
        )
    names = extension.instruction_sets()
    asked = os.environ.get(VARIABLE, "")
    if asked and asked not in names:
        raise ImportError(
            f"{VARIABLE}={asked} asks for an instruction set that this processor or this "
            f"installation does not have; {', '.join(names) or 'none'} can be used"
        )
    if not names:
        raise ImportError("this processor runs none of the instruction sets it was built for")
    extension.choose(asked or names[-1])


_c = _extension()
_choose(_c)


def instruction_set() -> str:
    """Return the name of the instruction set in use."""
    return str(_c.chosen())


def _lane_count(dtype: Any) -> int:
    """Columns of one panel for `dtype`: two registers' worth."""
    return int(2 * _c.vector_bytes() // np.dtype(dtype).itemsize)


def _as_it_is(array: Array) -> Array:
    return array


class CythonEngine(BlockedEngine):
    """Two-phase training steps in machine code that a C compiler made ahead."""

    backend: ClassVar[str] = "cython"

    def _lanes(self) -> int:
        return _lane_count(self.spec.dtype)

    # The functions themselves: a method between costs 0.1 us of a call.
    _input = staticmethod(_as_it_is)
    _train = staticmethod(_c.train)
    _infer = staticmethod(_c.infer)


#: What measures the processor's ceilings, see `contract.Ceilings`.
CEILINGS = Ceilings(_c.multiply_adds, _c.read_all, _c.copy_all, _lane_count)
#: Slot name -> function; all of them.
SLOTS = PanelSlots(_c, _lane_count, _as_it_is).table()
