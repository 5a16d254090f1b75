"""The matrix product of the engine: one register tile, emitted as vector IR.

Everything the engine multiplies is ``C[r, :] = start + sum_k A[r, k] * B[k, :]`` for a few rows r
and one panel of columns. The accumulators live in vector registers for the whole sum and start from
a vector in memory: the bias in a forward product, zeros elsewhere. Sums run over k in ascending
order, one fused multiply-add each, whatever the number of rows in a tile, so a row's result has the
same bits in any tile.

A panel is `lanes` columns wide: two vector registers of the instruction set that Numba compiles
for. LLVM legalises the wide IR vectors, so the same code serves AVX-512, AVX2, NEON and plain SSE2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.panels import FAR, LINE, Loop, Panel
from fastneuron.kernels.numba_cpu.target import VECTOR_BYTES, ir_lanes, target_machine

#: Where the rows of A and the steps of k lie. ROWS: A is blocked [panel][row][lane], k runs along
#: lanes and then to the next panel (forward, data gradient). BATCH: rows are lanes of one panel and
#: k runs down its rows (weight gradient: A is x transposed, read in place).
ROWS = 0
BATCH = 1
#: What happens to a ROWS tile between its sums and memory.
PLAIN = 0
RELU_OUTPUT = 1
RELU_GATE = 2
#: What happens to a BATCH tile: plain, or a step of gradient descent from the parameters in memory.
DESCENT = 3


#: Steps of k between two loop branches.
UNROLL = 4


#: Rows of the tallest tile: two accumulators a row, and registers left for B and the splat of A.
#: x86 before AVX-512 has 16 registers (8 rows there spill: 4 times slower; 4 rows are 9 % slower
#: than 6), the others 32.
TALL = 6 if VECTOR_BYTES < 64 and target_machine() in ("x86_64", "i686") else 8
#: Places ahead that a product can ask for while it goes through its tall tiles in turn.
AHEAD = 4
NOTHING_AHEAD = (0,) * (AHEAD + 3)
#: Heights of tiles, lowest first: what tall ones leave over goes through one each of the others.
LOW = sorted({1, 2, 4, TALL})


class Tile(Panel):
    """Emits the IR of tiles of one width: sums in registers, epilogue, stores."""

    def __init__(self, builder: Any, base: Any, dtype: Any, pitch: int, width: int) -> None:
        super().__init__(builder, base, dtype, pitch, width)
        self.streams: list[tuple[Any, Any]] = []  # (slot of the place, step) of memory ahead

    def stream(self, place: Any, step: Any) -> Any:
        """Begin to ask for lines from a place on, and return the slot in which it stands."""
        slot = cgutils.alloca_once(self.builder, ir.IntType(64))  # LLVM keeps it in a register
        self.builder.store(place, slot)
        self.streams.append((slot, step))
        return slot

    def fetch_ahead(self) -> None:
        """Ask for the next line of each stream."""
        for slot, step in self.streams:
            ahead = self.builder.load(slot)
            self.fetch(ahead, near=FAR)
            self.builder.store(self.builder.add(ahead, step), slot)

    def fetch_next_tile(self, n_rows: int, p: Places) -> None:
        """Ask for what the next tile of the panel starts from, stores to, and is gated by."""
        builder = self.builder
        size = n_rows * self.pitch
        far = builder.icmp_signed("!=", p.ahead_step, self.constant(0))
        with builder.if_then(far):
            gated = builder.icmp_signed("==", p.epilogue, self.constant(RELU_GATE))
            saved = builder.select(gated, p.extra, p.out)
            for offset in range(size, 2 * size, LINE // self.itemsize):
                self.fetch(builder.add(p.out, self.constant(offset)), to_write=1)
                self.fetch(builder.add(saved, self.constant(offset)))

    def starts(self, n_rows: int, ones: int, p: Places) -> list[Any]:
        """Return what the accumulators start from: one row for all, loaded once, or their own."""
        builder = self.builder
        going_on = builder.icmp_signed("!=", p.start_step, self.constant(0))
        common = self.load(p.start)
        before, rows = builder.block, []
        with builder.if_then(going_on):
            place = p.start
            for _ in range(n_rows):
                rows.append(self.load(place))
                place = builder.add(place, p.start_step)
            if ones:
                rows.append(self.load(p.extra))
            inside = builder.block
        chosen = []
        for own in rows:
            phi = builder.phi(self.vector)
            phi.add_incoming(common, before)
            phi.add_incoming(own, inside)
            chosen.append(phi)
        return chosen

    def sums(self, n_rows: int, walk: int, ones: int, p: Places) -> list[Any]:
        """Return the accumulators, one a row and one more where `ones`."""
        builder = self.builder
        row_step, k_step = (self.pitch, 1) if walk == ROWS else (1, self.pitch)

        def multiply(a_now: Any, b_now: Any, now: list[Any], k: int) -> list[Any]:
            b_row = self.load(builder.add(b_now, self.constant(k * self.pitch)))
            new = []
            for r in range(n_rows):
                place = builder.add(a_now, self.constant(r * row_step + k * k_step))
                value = builder.load(self.at(place))
                new.append(builder.call(self.fma, [self.splat(value), b_row, now[r]]))
            if ones:
                new.append(builder.fadd(now[n_rows], b_row))
            return new

        def run(count: Any, a_off: Any, b_off: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
            carried = [a_off, b_off, *sums]
            # Lower tiles are for edges: unrolled they would double the compile time.
            for steps in (UNROLL, 1) if n_rows == TALL else (1,):
                loop = Loop(builder, count, carried, steps, f"k{steps}")
                a_now, b_now, *now = loop.values
                if steps > 1:
                    self.fetch_ahead()
                for k in range(steps):
                    now = multiply(a_now, b_now, now, k)
                a_next = builder.add(a_now, self.constant(steps * k_step))
                b_next = builder.add(b_now, self.constant(steps * self.pitch))
                carried = loop.close([a_next, b_next, *now], self.constant(steps))
                count = loop.count
            _a, b_end, *total = carried
            return b_end, total

        sums = self.starts(n_rows, ones, p)
        if walk == BATCH:
            return run(p.depth, p.a, p.b, sums)[1]
        panels = Loop(builder, p.depth, [p.a, p.b, *sums], 1, "panel")
        a_now, b_now, *now = panels.values
        panel = self.constant(self.pitch)
        short = builder.icmp_signed("<", panels.count, panel)
        b_end, new = run(builder.select(short, panels.count, panel), a_now, b_now, now)
        a_next = builder.add(a_now, p.a_panel)
        _a, _b, *total = panels.close([a_next, b_end, *new], panel)
        return total

    def tile(self, n_rows: int, walk: int, ones: int, p: Places) -> None:
        """Compute one tile and store it."""
        if walk == ROWS and n_rows == TALL:
            self.fetch_next_tile(n_rows, p)
        sums = self.sums(n_rows, walk, ones, p)
        if walk == ROWS:
            self.finish(sums, p)
            return
        self.finish_gradient(sums[:n_rows], p)
        if ones:
            self.store(sums[n_rows], p.extra)

    def finish_gradient(self, sums: list[Any], p: Places) -> None:
        """Store a gradient, or the parameters that it leads to."""
        builder = self.builder
        places = [builder.add(p.out, self.constant(r * self.pitch)) for r in range(len(sums))]
        descends = builder.icmp_signed("==", p.epilogue, self.constant(DESCENT))
        with builder.if_else(descends) as (descent, plain):
            with descent:
                rate, decay = (
                    self.splat(builder.load(self.at(builder.add(p.most, self.constant(i)))))
                    for i in (0, 1)
                )
                for value, place in zip(sums, places, strict=True):
                    old = self.load(place)
                    slope = builder.fadd(value, builder.fmul(decay, old))
                    self.store(builder.fsub(old, builder.fmul(rate, slope)), place)
            with plain:
                for value, place in zip(sums, places, strict=True):
                    self.store(value, place)

    def finish(self, sums: list[Any], p: Places) -> None:
        """Apply the epilogue to the rows, store them, and note the largest."""
        builder = self.builder
        zero, one = self.every_lane(0.0), self.every_lane(1.0)
        offsets = [self.constant(r * self.pitch) for r in range(len(sums))]
        is_relu = builder.icmp_signed("==", p.epilogue, self.constant(RELU_OUTPUT))
        low = builder.select(is_relu, zero, self.every_lane(-math.inf))
        # A compare, and this way round, so that NaN stays.
        values = [
            builder.select(builder.fcmp_ordered("<", value, low), low, value) for value in sums
        ]
        before = builder.block
        with builder.if_then(builder.icmp_signed("==", p.epilogue, self.constant(RELU_GATE))):
            gated = []
            for value, offset in zip(values, offsets, strict=True):
                is_open = builder.fcmp_ordered(">", self.load(builder.add(p.extra, offset)), zero)
                # A product, as the slot: a NaN passes a closed gate.
                gated.append(builder.fmul(value, builder.select(is_open, one, zero)))
            inside = builder.block
        for i, new in enumerate(gated):
            phi = builder.phi(self.vector)
            phi.add_incoming(values[i], before)
            phi.add_incoming(new, inside)
            values[i] = phi
        for value, offset in zip(values, offsets, strict=True):
            self.store(value, builder.add(p.out, offset))
        with builder.if_then(builder.icmp_signed(">=", p.most, self.constant(0))):
            self.note(values, p.most)


@dataclass(frozen=True)
class Places:
    """The run-time arguments of `product`, as IR values."""

    epilogue: Any
    out: Any
    start: Any
    start_step: Any
    a: Any
    a_panel: Any
    b: Any
    depth: Any
    extra: Any
    most: Any
    ahead_step: Any

    def down(self, builder: Any, rows: Any, walk: int, pitch: int) -> Places:
        """Return the places of the tile that begins `rows` rows further down."""
        skip = builder.mul(rows, ir.Constant(rows.type, pitch))
        return replace(
            self,
            out=builder.add(self.out, skip),
            start=builder.add(self.start, builder.mul(rows, self.start_step)),
            a=builder.add(self.a, skip if walk == ROWS else rows),
            extra=builder.add(self.extra, skip) if walk == ROWS else self.extra,
        )


def _emit_product(
    emitter: Tile, walk: int, n_rows: Any, places: Places, lines: Sequence[Any]
) -> None:
    """Emit tall tiles as long as they fit, then one tile each of 4, 2 and 1 rows as needed."""
    builder, pitch = emitter.builder, emitter.pitch

    def rest(done: Any, heights: list[int]) -> None:
        for height in heights:
            left = builder.sub(n_rows, done)
            taken = builder.icmp_signed(">=", left, emitter.constant(height))
            with builder.if_then(taken):
                emitter.tile(height, walk, 0, places.down(builder, done, walk, pitch))
            step = builder.select(taken, emitter.constant(height), emitter.constant(0))
            done = builder.add(done, step)

    none = emitter.constant(0)
    done = none
    *lines, soon, soon_step = lines
    # Where tall tiles are fewer than places, each asks for lines of several.
    beside = -(-AHEAD // max(pitch // TALL, 1)) if walk == BATCH else 1
    slots = [emitter.stream(line, places.ahead_step) for line in lines[:beside]]
    if walk == BATCH:
        emitter.stream(soon, soon_step)
        # The first tile carries the always-on row.
        wanted = builder.icmp_signed(">=", places.extra, none)
        height = none
        for first in LOW:
            fits = builder.icmp_signed(">=", n_rows, emitter.constant(first))
            height = builder.select(fits, emitter.constant(first), height)
        done = builder.select(wanted, height, none)
        switch_end = builder.append_basic_block("with.ones.done")
        switch = builder.switch(done, switch_end)
        for first in LOW:
            block = builder.append_basic_block(f"with.ones{first}")
            switch.add_case(emitter.constant(first), block)
            builder.position_at_end(block)
            emitter.tile(first, walk, 1, places)
            builder.branch(switch_end)
        builder.position_at_end(switch_end)
    tall = emitter.constant(TALL)
    loop = Loop(builder, builder.sub(n_rows, done), [done], TALL, "tall")
    (done,) = loop.values
    if walk == BATCH:
        for first_line, slot in enumerate(slots):
            ahead, *later = lines[first_line::beside]
            for i, line in enumerate(later, 1):
                reached = builder.icmp_signed(">=", done, emitter.constant(i * TALL))
                ahead = builder.select(reached, line, ahead)
            builder.store(ahead, slot)
    emitter.tile(TALL, walk, 0, places.down(builder, done, walk, pitch))
    (done,) = loop.close([builder.add(done, tall)], tall)
    rest(done, [height for height in reversed(LOW) if height < TALL])


@intrinsic(prefer_literal=True)
def product(
    typingctx: Any,
    walk: Any,
    columns: Any,
    epilogue: Any,
    arena: Any,
    out: Any,
    start: Any,
    start_step: Any,
    a: Any,
    a_panel: Any,
    b: Any,
    depth: Any,
    n_rows: Any,
    extra: Any,
    most: Any,
    ahead: Any,
) -> Any:
    """Compute rows of one panel: ``arena[out + r*P + c] = e(start[r, c] + sum_k A[r, k] B[k, c])``.

    Parameters
    ----------
    walk : literal int
        `ROWS` or `BATCH`.
    columns : int64
        Columns of the panel that count. Up to half a panel, only half is computed, and zeros are
        stored in the other half.
    epilogue : int64
        ROWS: e is `PLAIN`, `RELU_OUTPUT`, or `RELU_GATE`, which multiplies by ReLU's derivative at
        the outputs saved at `extra` (laid out like `out`). BATCH: `PLAIN`, or `DESCENT` for
        ``p - rate (sum + decay p)`` with p what stands at `out`.
    arena : 1-D contiguous array
    out, start, a, b, extra : int64
        Element offsets into the arena. B is contiguous over k with P columns; `a` is A's first
        element.
    start_step : int64
        Row r starts from ``arena[start + r*start_step + c]``: 0 for a bias, P with `start` at `out`
        to go on with sums of smaller k, which gives the bits of one longer sum.
    a_panel : int64
        ROWS: elements from one panel of A to the next. BATCH: unused.
    depth : int64
        Length of the sums; 0 stores the start.
    n_rows : int64
        Rows, any number.
    extra : int64
        BATCH: where the sums of B go, a row whose input is always 1 (the bias gradient), or -1. It
        starts from the start, or with a `start_step` from itself.
    most : int64
        ROWS: a panel row of maxima, see `note_run`, that the stored rows raise, or -1. `DESCENT`:
        where rate and decay stand.
    ahead : (step, place, place, place, place, soon, soon_step), int64
        Where memory lies that is needed after this product. While it computes, a tall tile asks for
        one cache line every `UNROLL` steps of k and goes `step` elements on. BATCH: tall tile i
        starts from place i, and where there are fewer tall tiles, each asks from several; beside
        it they ask from `soon` on, `soon_step` elements further each time, one tile after the
        other. ROWS: from place 0, and each goes on where the one before it ended; a step above 0
        also makes it ask for what the next tile reads and writes.
    """
    if not isinstance(walk, types.IntegerLiteral):
        return None
    pitch = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _walk, columns_value, epilogue_value, arena_value, *numbers, ahead_value = args
        base = context.make_array(signature.args[3])(context, builder, arena_value).data
        *sums, rows, extra_at, most_at = numbers
        step, *lines = cgutils.unpack_tuple(builder, ahead_value, AHEAD + 3)
        values = (epilogue_value, *sums, extra_at, most_at, step)
        places = Places(*values)
        half = ir.Constant(ir.IntType(64), pitch // 2)
        with builder.if_else(builder.icmp_signed("<=", columns_value, half)) as (narrow, wide):
            for branch, width in ((narrow, pitch // 2), (wide, pitch)):
                with branch:
                    emitter = Tile(builder, base, arena.dtype, pitch, width)
                    _emit_product(emitter, walk.literal_value, rows, places, lines)
        return context.get_dummy_value()

    numbers = [types.int64] * 10
    ahead = types.UniTuple(types.int64, AHEAD + 3)
    return types.void(walk, types.int64, types.int64, arena, *numbers, ahead), codegen
