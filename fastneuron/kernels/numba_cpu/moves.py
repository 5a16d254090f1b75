"""Rows of a user's data on their way into panels."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import I64, Memory, below, whole
from fastneuron.kernels.numba_cpu.target import ir_lanes


@intrinsic
def gather(typingctx: Any, arena: Any, sample: Any, out: Any, stride: Any) -> Any:
    """Copy one row, a vector, to its place in panels that stand `stride` apart.

    The last register is filled up with zeros; what is left of the last panel after it stays.
    """
    pitch = ir_lanes(arena.dtype)
    lanes = pitch // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        source = Memory(context, builder, sample, args[1])
        rest = builder.and_(source.size, whole(lanes - 1))
        even = builder.sub(source.size, rest)

        def place(column: Any) -> Any:
            panel, odd = builder.udiv(column, whole(pitch)), builder.and_(column, whole(lanes))
            return builder.add(args[2], builder.add(builder.mul(panel, args[3]), odd))

        with cgutils.for_range_slice(builder, whole(0), even, whole(lanes), intp=I64) as (at, _):
            memory.store(source.load(at, lanes), place(at))
        with builder.if_then(builder.icmp_signed(">", rest, whole(0))):
            mask = below(builder, rest, lanes)
            memory.store(source.load_some(even, mask), place(even))
        return context.get_dummy_value()

    return types.void(arena, sample, types.int64, types.int64), codegen
