"""Products of few rows, as vector IR: several panels side by side, and the weights as they lie.

A tile of one row has two chains of sums, and a fused multiply-add waits four cycles for the one
before it: one row alone would run at a quarter of the speed. `low_product` gives a core eight
chains or more by taking 4 or 2 panels at once; each sum keeps its order, and the bits it has in
`product`. `low_back` is the data gradient from the weights themselves: the transposed copy that
tall tiles need costs one row more memory traffic than everything else.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import Memory, Number, below
from fastneuron.kernels.numba_cpu.panels import FAR, Loop, Panel
from fastneuron.kernels.numba_cpu.target import VECTOR_BYTES, ir_lanes
from fastneuron.kernels.numba_cpu.tile import NOTHING_AHEAD, Places, Tile
from fastneuron.kernels.numba_cpu.transpose import lane_sums

#: Panels that are computed side by side, at most: two vectors each, they fill both multipliers of a
#: core through the four cycles that each multiply-add takes.
GROUP = 4
#: Rows that `low_back` takes at most: the sums of one register must be of whole inputs.
BACK_ROWS = 4 if VECTOR_BYTES >= 32 else 2


@intrinsic(prefer_literal=True)
def low_product(
    typingctx: Any,
    n_rows: Any,
    n_panels: Any,
    epilogue: Any,
    arena: Any,
    out: Any,
    out_panel: Any,
    start: Any,
    start_step: Any,
    start_panel: Any,
    a: Any,
    a_panel: Any,
    b: Any,
    b_panel: Any,
    depth: Any,
    extra: Any,
    most: Any,
) -> Any:
    """Compute what `product` does with ROWS for whole neighbouring panels, to the same bits.

    Parameters
    ----------
    n_rows, n_panels : literal int
        Rows, and panels side by side: of the last, too, all columns are computed.
    out_panel, start_panel, b_panel : int64
        Elements from one panel to the next, of `out` and `extra`, of `start`, and of B.

    All others are those of `product`.
    """
    if not isinstance(n_rows, types.IntegerLiteral) or not isinstance(
        n_panels, types.IntegerLiteral
    ):
        return None
    rows, panels, pitch = n_rows.literal_value, n_panels.literal_value, ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[3])(context, builder, args[3]).data
        to = Tile(builder, base, arena.dtype, pitch, pitch)
        _rows, _panels, epilogue, _arena, out, out_panel = args[:6]
        start, start_step, start_panel, a, a_panel, b, b_panel, depth, extra, most = args[6:]
        one, panel = to.constant(1), to.constant(pitch)

        def places(first: Any, step: Any) -> list[Any]:
            found = [first]
            for _ in range(panels - 1):
                found.append(builder.add(found[-1], step))
            return found

        sums = [
            to.load(builder.add(place, builder.mul(start_step, to.constant(r))))
            for place in places(start, start_panel)
            for r in range(rows)
        ]
        outer = Loop(builder, depth, [a, b, *sums], 1, "panel")
        a_now, b_now, *now = outer.values
        short = builder.icmp_signed("<", outer.count, panel)
        inner = Loop(
            builder, builder.select(short, outer.count, panel), [a_now, b_now, *now], 1, "k"
        )
        a_at, b_at, *now = inner.values
        values = [
            to.splat(builder.load(to.at(builder.add(a_at, to.constant(r * pitch)))))
            for r in range(rows)
        ]
        new = []
        for i, place in enumerate(places(b_at, b_panel)):
            b_row = to.load(place)
            for r in range(rows):
                new.append(builder.call(to.fma, [values[r], b_row, now[i * rows + r]]))
        _a, b_end, *new = inner.close([builder.add(a_at, one), builder.add(b_at, panel), *new], one)
        _a, _b, *total = outer.close([builder.add(a_now, a_panel), b_end, *new], panel)

        nothing = to.constant(NOTHING_AHEAD[0])
        for i, (place, saved) in enumerate(
            zip(places(out, out_panel), places(extra, out_panel), strict=True)
        ):
            to.finish(
                total[i * rows : (i + 1) * rows],
                Places(
                    epilogue,
                    place,
                    start,
                    start_step,
                    a,
                    a_panel,
                    b,
                    depth,
                    saved,
                    most,
                    nothing,
                ),
            )
        return context.get_dummy_value()

    return types.void(n_rows, n_panels, types.int64, arena, *[types.int64] * 12), codegen


@intrinsic(prefer_literal=True)
def low_back(
    typingctx: Any,
    n_rows: Any,
    arena: Any,
    out: Any,
    delta: Any,
    delta_panel: Any,
    w: Any,
    w_panel: Any,
    inputs: Any,
    outputs: Any,
    ahead: Any,
) -> Any:
    """Compute ``arena[out + r*P + i] = sum_o delta[r, o] W[i, o]`` for as many i as sums fit.

    Each register has the sums of one row and input, lane by lane over the panels of outputs; at the
    end neighbouring lanes are added, then pairs of them, and so on. L sums fill one register of L.

    Parameters
    ----------
    n_rows : literal int
        1: L inputs. 2 or `BACK_ROWS`: L/2, L/4 inputs. The order of a sum is the same.
    delta, w : int64
        Places of dL/dz, and of the first input's weights.
    delta_panel, w_panel : int64
        Elements from one panel of outputs to the next.
    inputs : int64
        Inputs that count; zeros are stored for the others, whose weights are read.
    outputs : int64
        Columns that count: no delta after them is read.
    ahead : int64
        Elements after its own weights of the cache lines that are asked for, or 0.
    """
    if not isinstance(n_rows, types.IntegerLiteral):
        return None
    rows, pitch = n_rows.literal_value, ir_lanes(arena.dtype)
    lanes = pitch // 2
    block = lanes // rows

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[1])(context, builder, args[1]).data
        to = Panel(builder, base, arena.dtype, lanes, lanes)
        _rows, _arena, out, delta, delta_panel, w, w_panel, inputs, outputs, ahead = args
        memory = Memory(context, builder, signature.args[1], args[1])
        zero = to.every_lane(0.0)
        loop = Loop(builder, outputs, [delta, w, *[zero] * lanes], 1, "outputs")
        d_at, w_at, *sums = loop.values
        far = builder.icmp_signed("!=", ahead, to.constant(0))
        with builder.if_then(far):
            for i in range(block):
                for half in (0, lanes):
                    place = builder.add(w_at, to.constant(i * pitch + half))
                    to.fetch(builder.add(place, ahead), near=FAR)
        for half in (0, lanes):
            mask = below(builder, builder.sub(loop.count, to.constant(half)), lanes)
            deltas = [
                memory.load_some(builder.add(d_at, to.constant(r * pitch + half)), mask).value
                for r in range(rows)
            ]
            for i in range(block):
                weights = to.load(builder.add(w_at, to.constant(i * pitch + half)))
                for r in range(rows):
                    k = r * block + i
                    sums[k] = builder.call(to.fma, [deltas[r], weights, sums[k]])
        _d, _w, *sums = loop.close(
            [builder.add(d_at, delta_panel), builder.add(w_at, w_panel), *sums],
            to.constant(pitch),
        )
        total = lane_sums(builder, sums)
        counts = below(builder, inputs, block)
        for r in range(rows):
            lanes_of_row = ir.Constant(
                ir.VectorType(ir.IntType(32), block), list(range(r * block, (r + 1) * block))
            )
            part = Number(builder, builder.shuffle_vector(total, total, lanes_of_row))
            memory.store(part.where(counts, 0.0), builder.add(out, to.constant(r * pitch)))
        return context.get_dummy_value()

    return types.void(n_rows, arena, *[types.int64] * 8), codegen
