"""Panel rows in code that is being emitted: loops over them, loads and stores, cache lines.

Everything here is LLVM IR: vectors of a panel's width, offsets into the arena as int64 values.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.target import ir_lanes

#: Bytes of a cache line.
LINE = 64
#: Where a line that is asked for shall wait: in the first level of cache, or in the second.
NEAR, FAR = 3, 2


class Loop:
    """A counted loop, ``while (count >= least) {...}``, whose carried values are phi nodes."""

    def __init__(self, builder: Any, count: Any, carried: list[Any], least: int, name: str) -> None:
        self.builder = builder
        before = builder.block
        self.head = builder.append_basic_block(name + ".head")
        self.body = builder.append_basic_block(name + ".body")
        self.done = builder.append_basic_block(name + ".done")
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.count = builder.phi(count.type, name + ".count")
        self.count.add_incoming(count, before)
        self.values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            self.values.append(phi)
        more = builder.icmp_signed(">=", self.count, ir.Constant(count.type, least))
        builder.cbranch(more, self.body, self.done)
        builder.position_at_end(self.body)

    def close(self, carried: list[Any], step: Any) -> list[Any]:
        """End the body, giving the carried values of the next turn; return those after the loop."""
        builder = self.builder
        self.count.add_incoming(builder.sub(self.count, step), builder.block)
        for phi, value in zip(self.values, carried, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(self.head)
        builder.position_at_end(self.done)
        return self.values


def _i32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


class Panel:
    """Emits access to panel rows of which `width` lanes are computed."""

    def __init__(self, builder: Any, base: Any, dtype: Any, pitch: int, width: int) -> None:
        self.builder = builder
        self.base = base
        self.pitch = pitch  # lanes from one panel row to the next
        self.width = width  # lanes that are computed
        self.itemsize = dtype.bitwidth // 8
        scalar = ir.FloatType() if self.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(scalar, width)
        byte = ir.IntType(8).as_pointer()
        self.prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, *[ir.IntType(32)] * 3]),
            "llvm.prefetch.p0",
        )
        self.fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fma.v{width}f{8 * self.itemsize}",
        )

    def constant(self, value: int) -> Any:
        """Return an int64."""
        return ir.Constant(ir.IntType(64), value)

    def every_lane(self, value: float) -> Any:
        """Return a vector with this number in every lane."""
        return ir.Constant(self.vector, [value] * self.width)

    def at(self, offset: Any) -> Any:
        """Return the address of an element."""
        return self.builder.gep(self.base, [offset])

    def load(self, offset: Any) -> Any:
        """Return the computed lanes of the row at `offset`."""
        # Arena offsets of panels are multiples of the panel, but A's rows and a user's slot
        # buffers need not be: claim the element's alignment only (free on aligned addresses).
        place = self.builder.bitcast(self.at(offset), self.vector.as_pointer())
        return self.builder.load(place, align=self.itemsize)

    def store(self, value: Any, offset: Any) -> None:
        """Store the computed lanes, and zeros in the lanes of the row that were not."""
        place = self.builder.bitcast(self.at(offset), self.vector.as_pointer())
        self.builder.store(value, place, align=self.itemsize)
        if self.width < self.pitch:
            rest = self.at(self.builder.add(offset, self.constant(self.width)))
            place = self.builder.bitcast(rest, self.vector.as_pointer())
            self.builder.store(self.every_lane(0.0), place, align=self.itemsize)

    def splat(self, value: Any) -> Any:
        """Return a vector with this IR value in every lane."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(nothing, value, self.constant(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, nothing, zeros)

    def fetch(self, offset: Any, to_write: int = 0, near: int = NEAR) -> None:
        """Ask for a cache line."""
        place = self.builder.bitcast(self.at(offset), ir.IntType(8).as_pointer())
        self.builder.call(self.prefetch, [place, *(_i32(n) for n in (to_write, near, 1))])

    def note(self, values: list[Any], most: Any) -> None:
        """Raise the row of maxima at `most` by the bits of each |value|, as integers."""
        builder = self.builder
        whole = ir.IntType(8 * self.itemsize)
        vector = ir.VectorType(whole, self.width)
        mask = ir.Constant(vector, [(1 << (whole.width - 1)) - 1] * self.width)
        place = builder.bitcast(self.at(most), vector.as_pointer())
        largest = builder.load(place, align=self.itemsize)
        for value in values:
            bits = builder.and_(builder.bitcast(value, vector), mask)
            above = builder.icmp_signed(">", bits, largest)
            largest = builder.select(above, bits, largest)
        builder.store(largest, place, align=self.itemsize)


@intrinsic
def note_run(typingctx: Any, arena: Any, most: Any, start: Any, size: Any) -> Any:
    """Raise the panel row of maxima at `most` by ``arena[start:start + size]``, whole panel rows.

    A maximum is the bits of |x| as an integer, which order like |x|, with NaN above infinity.
    """
    width = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, args[0]).data
        emitter = Panel(builder, base, arena.dtype, width, width)
        step = emitter.constant(width)
        loop = Loop(builder, args[3], [args[2]], width, "note")
        (now,) = loop.values
        emitter.note([emitter.load(now)], args[1])
        loop.close([builder.add(now, step)], step)
        return context.get_dummy_value()

    return types.void(arena, types.int64, types.int64, types.int64), codegen
