"""Marks of time: which part of a step a thread is at, noted for whoever profiles it.

The twin of csrc/cpu/marks.h; what the words mean is said in `fastneuron.kernels.marks`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels import marks as of
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.sync import barrier
from fastneuron.kernels.numba_cpu.target import target_machine
from fastneuron.kernels.stages import MARKS

_I64 = ir.IntType(64)


@intrinsic
def _ticks(typingctx: Any, words: Any) -> Any:
    """Return the processor's clock of constant rate; 0 where this has no way to it."""
    machine = target_machine()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if machine in ("x86_64", "i686"):
            clock = ir.FunctionType(_I64, [])
            name = "llvm.readcyclecounter"
            return builder.call(cgutils.get_or_insert_function(builder.module, clock, name), [])
        if machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(_I64, [])
            return builder.asm(kind, "mrs $0, cntvct_el0", "=r", [], side_effect=True)
        return ir.Constant(_I64, 0)

    return types.int64(words), codegen


@inner
def marks_of(words, tid):
    """Where thread `tid` notes its marks; 0 where nobody asks for them."""
    first = words[MARKS]
    return first + tid * words[MARKS + 1] if first else first


@inner
def _write(words, marks, what):
    count = words[marks + of.COUNT]
    if words[marks + of.LAST] == what or count >= words[marks + of.ROOM]:
        return
    words[marks + of.LAST] = what
    words[marks + of.COUNT] = count + 1
    place = marks + of.FIRST + 2 * count
    words[place] = what
    words[place + 1] = _ticks(words)


@inner
def mark(words, marks, part, layer):
    """Note that this thread begins a part of a layer's work."""
    if marks:
        _write(words, marks, part + layer * of.PARTS)


@inner
def meet(words, marks, n_threads):
    """Wait for the team; False where it gives up."""
    if n_threads > 1:  # alone there is nobody to wait for
        mark(words, marks, of.WAIT, 0)
    return barrier(words, n_threads)
