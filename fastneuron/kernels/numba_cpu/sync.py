"""Barrier, work tickets and abort flag for the thread team, on one small int64 array.

Words of the array stand 64 bytes apart, one cache line each. The waiting thread spins for a few
microseconds, since a barrier of running threads takes 0.1, and then yields its core at every look,
so that more threads than cores, or a busy neighbour, slow a step down but never stall it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.target import target_machine
from fastneuron.kernels.stages import ABORTED, ARRIVED, GENERATION, TICKETS

#: Looks at the generation before yielding: 3 microseconds, 20 times an undisturbed barrier. Where
#: two threads of a team share a core, each barrier wastes this time before the other may run.
SPINS = 100

_YIELD = "fastneuron_yield_core"


def _yield_address() -> int:
    """Address of the C call that gives up the rest of the time slice."""
    if sys.platform == "win32":
        entry: Any = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        entry = ctypes.CDLL(None).sched_yield
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


# Compiled kernels name the symbol, so that cached machine code of another process finds it too.
llvm.add_symbol(_YIELD, _yield_address())


def _word(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    base = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(base, [args[1]])


@intrinsic
def fetch_add(typingctx: Any, words: Any, index: Any, amount: Any) -> Any:
    """Add to a word in one indivisible step; return its value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = _word(context, builder, signature, args)
        return builder.atomic_rmw("add", word, args[2], "acq_rel")

    return types.int64(words, types.int64, types.int64), codegen


@intrinsic
def load_word(typingctx: Any, words: Any, index: Any) -> Any:
    """Read a word that other threads write; what they wrote before it is visible after."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature, args), "acquire", 8)

    return types.int64(words, types.int64), codegen


@intrinsic
def store_word(typingctx: Any, words: Any, index: Any, value: Any) -> Any:
    """Write a word that other threads read; what this thread wrote before is visible with it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _word(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def relax(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop."""
    machine = target_machine()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing, number = ir.VoidType(), ir.IntType(32)
        # LLVM's own names for the instructions: inline assembly would need an assembly parser.
        if machine in ("x86_64", "i686"):
            pause = ir.FunctionType(nothing, [])
            name, arguments = "llvm.x86.sse2.pause", []
        elif machine in ("aarch64", "arm64"):
            pause = ir.FunctionType(nothing, [number])
            name, arguments = "llvm.aarch64.hint", [ir.Constant(number, 1)]
        else:
            return context.get_dummy_value()
        builder.call(cgutils.get_or_insert_function(builder.module, pause, name), arguments)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typingctx: Any) -> Any:
    """Give up the rest of this thread's time slice."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        entry = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, entry, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inner
def barrier(words, n_threads):
    """Wait for all threads; return False where the team was told to give up.

    The last to arrive rewinds the tickets for the next phase: nobody draws one while all wait.
    """
    if n_threads == 1:
        words[TICKETS] = 0
        return True
    generation = load_word(words, GENERATION)
    if fetch_add(words, ARRIVED, 1) == n_threads - 1:
        store_word(words, ARRIVED, 0)
        for tid in range(n_threads):
            store_word(words, TICKETS + 8 * tid, 0)
        store_word(words, GENERATION, generation + 1)
        return True
    spins = 0
    while load_word(words, GENERATION) == generation:
        if load_word(words, ABORTED) != 0:
            return False
        spins += 1
        if spins > SPINS:
            yield_core()
        else:
            relax()
    return True


@inner
def draw(words, tid, n_threads, total):
    """Return one of `total` work items of a phase, each to one thread only; `total` when all went.

    A thread draws from its own share first, the same at every step, and finds in its caches what it
    left there; then it helps the others.
    """
    if n_threads == 1:
        ticket = words[TICKETS]
        words[TICKETS] = ticket + 1
        return min(ticket, total)
    for turn in range(n_threads):
        owner = tid + turn
        if owner >= n_threads:
            owner -= n_threads
        first = owner * total // n_threads
        size = (owner + 1) * total // n_threads - first
        counter = TICKETS + 8 * owner
        # Look first: what is used up shall not be pulled to and fro among the caches.
        if load_word(words, counter) < size:
            ticket = fetch_add(words, counter, 1)
            if ticket < size:
                return first + ticket
    return total
