"""Sums and maxima over runs of the arena, as vectors.

A sum goes lane by lane in ascending order, and then over the lanes in halves: its order is a
function of its length alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import (
    I64,
    Memory,
    Number,
    Variable,
    below,
    whole,
)
from fastneuron.kernels.numba_cpu.target import ir_lanes

#: Lanes of the sum of row losses, on every target.
LOSS_LANES = 8


@intrinsic
def sum_of_rows(typingctx: Any, arena: Any, first: Any, count: Any) -> Any:
    """Return the float64 sum of `count` numbers: lane k has every 8th from the k-th on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        doubles = ir.VectorType(ir.DoubleType(), LOSS_LANES)
        total = Variable(Number(builder, ir.Constant(doubles, [0.0] * LOSS_LANES)))
        with cgutils.for_range_slice(builder, whole(0), args[2], whole(LOSS_LANES), intp=I64) as (
            at,
            _,
        ):
            mask = below(builder, builder.sub(args[2], at), LOSS_LANES)
            some = memory.load_some(builder.add(args[1], at), mask)
            if some.single:
                some = Number(builder, builder.fpext(some.value, doubles))
            total.set(total.get() + some)
        return total.get().tree_sum().value

    return types.float64(arena, types.int64, types.int64), codegen


@intrinsic
def squares(typingctx: Any, arena: Any, first: Any, size: Any, other: Any, other_size: Any) -> Any:
    """Return the sum of the squares of two runs of whole panel rows."""
    width = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        zeros = ir.Constant(ir.VectorType(memory.real, width), [0.0] * width)
        total = Variable(Number(builder, zeros))
        for start, count in (args[1:3], args[3:5]):
            with cgutils.for_range_slice(builder, whole(0), count, whole(width), intp=I64) as (
                at,
                _,
            ):
                values = memory.load(builder.add(start, at), width)
                total.set(total.get() + values * values)
        return total.get().tree_sum().value

    return arena.dtype(arena, *[types.int64] * 4), codegen


@intrinsic
def largest_bits(typingctx: Any, arena: Any, first: Any, size: Any) -> Any:
    """Return the bits of the largest |x| of a run, as an integer.

    Integers order them like the numbers, with infinity and then NaN above.
    """
    width = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        vector = ir.VectorType(memory.real, width)
        zeros = Number(builder, ir.Constant(vector, [0.0] * width))
        most = Variable(zeros)

        def raise_by(some: Number) -> None:
            size, so_far = abs(some), most.get()
            larger = builder.icmp_signed(">", size.bits(), so_far.bits())
            most.set(size.where(larger, so_far))

        rest = builder.srem(args[2], whole(width))
        even = builder.sub(args[2], rest)
        with cgutils.for_range_slice(builder, whole(0), even, whole(width), intp=I64) as (at, _):
            raise_by(memory.load(builder.add(args[1], at), width))
        with builder.if_then(builder.icmp_signed(">", rest, whole(0))):
            mask = below(builder, rest, width)
            raise_by(memory.load_some(builder.add(args[1], even), mask))
        bits = most.get().bits()
        kind = bits.type.element
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [bits.type]),
            f"llvm.vector.reduce.smax.v{width}i{kind.width}",
        )
        found = builder.call(reduce, [bits])
        return builder.sext(found, I64) if kind.width < 64 else found

    return types.int64(arena, types.int64, types.int64), codegen
