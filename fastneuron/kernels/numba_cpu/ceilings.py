"""What this core can do at most: multiply-adds in registers, and bytes from each level of memory.

Measured, never looked up: a kernel is judged by what the machine does beside it. The twins of
csrc/cpu/ceilings.h.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import I64, Memory, Number, Variable, whole
from fastneuron.kernels.numba_cpu.jit import kernel
from fastneuron.kernels.numba_cpu.panels import Loop
from fastneuron.kernels.numba_cpu.target import ir_lanes

#: Independent sums: above latency times units of any processor (4 x 2), below 16 registers.
CHAINS = 12
#: Sums that one pass over memory adds up side by side.
STREAMS = 8


@intrinsic
def _chains(typingctx: Any, out: Any, turns: Any) -> Any:
    lanes = ir_lanes(out.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, out, args[0])
        # Each starts elsewhere: equal ones would be computed once.
        starts = [memory.load(whole(i * lanes), lanes) for i in range(CHAINS)]
        loop = Loop(builder, args[1], [start.value for start in starts], 1, "turn")
        sums = [Number(builder, value) for value in loop.values]
        half, rest = sums[0].constant(0.5), sums[0].constant(0.75)
        ends = loop.close([each.call("fma", half, rest).value for each in sums], whole(1))
        for i, end in enumerate(ends):
            memory.store(Number(builder, end), whole(i * lanes))
        return context.get_dummy_value()

    return types.void(out, types.int64), codegen


@intrinsic
def _read(typingctx: Any, x: Any, turns: Any, out: Any) -> Any:
    lanes = ir_lanes(out.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source = Memory(context, builder, x, args[0])
        target = Memory(context, builder, out, args[2])
        zeros = ir.Constant(ir.VectorType(source.real, lanes), [0.0] * lanes)
        sums = [Variable(Number(builder, zeros)) for _ in range(STREAMS)]
        step = whole(STREAMS * lanes)
        with (
            cgutils.for_range(builder, args[1]),
            cgutils.for_range_slice(builder, whole(0), source.size, step, intp=I64) as (at, _),
        ):
            for i, total in enumerate(sums):
                total.set(total.get() + source.load(builder.add(at, whole(i * lanes)), lanes))
        for i, total in enumerate(sums):
            target.store(total.get(), whole(i * lanes))
        return context.get_dummy_value()

    return types.void(x, types.int64, out), codegen


@intrinsic
def _copy(typingctx: Any, x: Any, y: Any, turns: Any) -> Any:
    lanes = ir_lanes(y.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (Memory(context, builder, x, array) for array in args[:2])
        step = whole(STREAMS * lanes)
        nothing = ir.FunctionType(ir.VoidType(), [])
        with cgutils.for_range(builder, args[2]):
            with cgutils.for_range_slice(builder, whole(0), source.size, step, intp=I64) as (at, _):
                for i in range(STREAMS):
                    place = builder.add(at, whole(i * lanes))
                    target.store(source.load(place, lanes), place)
            # What is copied once would be enough, were memory not clobbered between.
            builder.asm(nothing, "", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(x, y, types.int64), codegen


@kernel
def multiply_adds(out, turns):
    """Do `CHAINS` vectors of multiply-adds, `turns` times, on the numbers of `out`."""
    _chains(out, turns)


@kernel
def read_all(x, turns, out):
    """Read x, whole multiples of `STREAMS` vectors, `turns` times; leave the sums in `out`."""
    _read(x, turns, out)


@kernel
def copy_all(x, y, turns):
    """Do ``y = x``, whole multiples of `STREAMS` vectors, `turns` times."""
    _copy(x, y, turns)
