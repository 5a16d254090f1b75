"""Batch rows from the user's matrix into panels, as vector IR, several rows at a time.

The rows of a shuffled batch lie anywhere in memory: copied one after the other, each waits for its
own cache misses. `TOGETHER` rows go side by side, panel after panel, so that their misses overlap
(784 columns, 128 rows from DRAM: 73 us one by one, 35 so; from L3 15 and 10.5).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.panels import Loop, Panel
from fastneuron.kernels.numba_cpu.target import ir_lanes

#: Rows whose panels are copied side by side.
TOGETHER = 8


@intrinsic
def gather_rows(
    typingctx: Any,
    arena: Any,
    x: Any,
    samples: Any,
    n_rows: Any,
    out: Any,
    stride: Any,
    most: Any,
) -> Any:
    """Copy rows `samples` of the C-contiguous x to panels at `out`, panels `stride` apart.

    `samples` is a vector of row numbers, or the first of `n_rows` consecutive ones. Lanes after the
    last column stay. `most` is a panel row of maxima to raise, or -1.
    """
    width = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position])

        source = array(1)
        columns = builder.extract_value(source.shape, 1)
        consecutive = isinstance(samples, types.Integer)
        numbers = args[2] if consecutive else array(2).data
        n_rows_value, out_at, panel_step, most_at = args[3:]
        to = Panel(builder, array(0).data, arena.dtype, width, width)
        zero, one, panel = (to.constant(n) for n in (0, 1, width))

        def rows_from(first: Any, count: int) -> None:
            """Copy `count` rows; all offsets are computed before anything is loaded."""
            places = []
            for r in range(count):
                index = builder.add(first, to.constant(r))
                if consecutive:
                    sample = builder.add(numbers, index)
                else:
                    sample = builder.load(builder.gep(numbers, [index]))
                start = builder.gep(source.data, [builder.mul(sample, columns)])
                target = builder.add(out_at, builder.mul(index, panel))
                places.append((start, target))

            def copy(column: Any, shift: Any, size: int) -> list[Any]:
                part = Panel(builder, to.base, arena.dtype, size, size)
                kind = part.vector.as_pointer()
                values = [
                    builder.load(
                        builder.bitcast(builder.gep(start, [column]), kind), align=to.itemsize
                    )
                    for start, _target in places
                ]
                for value, (_start, target) in zip(values, places, strict=True):
                    part.store(value, builder.add(target, shift))
                return values

            loop = Loop(builder, columns, [zero, zero], width, "panel")
            column, shift = loop.values
            values = copy(column, shift, width)
            with builder.if_then(noting):
                to.note(values, most_at)
            column, shift = loop.close(
                [builder.add(column, panel), builder.add(shift, panel_step)], panel
            )
            size = width // 2
            while size:  # the tail, in powers of two
                there = builder.icmp_signed("!=", builder.and_(columns, to.constant(size)), zero)
                with builder.if_then(there):
                    copy(column, shift, size)
                step = builder.select(there, to.constant(size), zero)
                column, shift = builder.add(column, step), builder.add(shift, step)
                size //= 2

        noting = builder.icmp_signed(">=", most_at, zero)
        together = to.constant(TOGETHER)
        loop = Loop(builder, n_rows_value, [zero], TOGETHER, "rows")
        (first,) = loop.values
        rows_from(first, TOGETHER)
        (first,) = loop.close([builder.add(first, together)], together)
        loop = Loop(builder, loop.count, [first], 1, "row")
        (first,) = loop.values
        rows_from(first, 1)
        loop.close([builder.add(first, one)], one)

        # A last panel that is not full is noted as it lies, with zeros in its other lanes.
        rest = builder.and_(columns, to.constant(width - 1))
        short = builder.icmp_signed(">", rest, zero)
        with builder.if_then(builder.and_(noting, short)):
            whole = builder.udiv(columns, panel)
            start = builder.add(out_at, builder.mul(whole, panel_step))
            loop = Loop(builder, n_rows_value, [start], 1, "note")
            (now,) = loop.values
            to.note([to.load(now)], most_at)
            loop.close([builder.add(now, panel)], one)
        return context.get_dummy_value()

    which = types.int64 if isinstance(samples, types.Integer) else samples
    return types.void(arena, x, which, *[types.int64] * 4), codegen
