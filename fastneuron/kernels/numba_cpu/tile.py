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

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

#: Where the rows of A and the steps of k lie. ROWS: A is blocked [panel][row][lane], k runs along
#: lanes and then to the next panel (forward, data gradient). BATCH: rows are lanes of one panel and
#: k runs down its rows (weight gradient: A is x transposed, read in place).
ROWS = 0
BATCH = 1
#: What happens to a ROWS tile between its sums and memory.
PLAIN = 0
RELU_OUTPUT = 1
RELU_GATE = 2


#: Steps of k between two loop branches.
UNROLL = 4


def target_features() -> str:
    """Return the features that Numba compiles for: NUMBA_CPU_NAME counts, cpuid does not."""
    _triple, _name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(features)


def target_machine() -> str:
    """Return the machine part of the target triple: "x86_64", "aarch64" ..."""
    return str(cpu_target.target_context.codegen().magic_tuple()[0]).split("-")[0]


def _vector_bytes(features: str) -> int:
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 64
    if "+avx" in enabled:
        return 32
    return 16


#: Bytes of one vector register of the target.
VECTOR_BYTES = _vector_bytes(target_features())


#: Rows of the tallest tile: two accumulators a row, and registers left for B and the splat of A.
#: x86 before AVX-512 has 16 registers (8 rows there spill: 4 times slower), the others 32.
TALL = 4 if VECTOR_BYTES < 64 and target_machine() in ("x86_64", "i686") else 8


def lane_count(dtype: Any) -> int:
    """Columns of one panel for `dtype`: two registers' worth."""
    return 2 * VECTOR_BYTES // np.dtype(dtype).itemsize


def ir_lanes(dtype: Any) -> int:
    """Return the same for a Numba type."""
    return 2 * VECTOR_BYTES * 8 // dtype.bitwidth


@intrinsic
def lanes(typingctx: Any, arena: Any) -> Any:
    """Panel width for the arena's dtype, a constant in the compiled code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), ir_lanes(signature.args[0].dtype))

    return types.int64(arena), codegen


class _Loop:
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


class _Emitter:
    """Emits the IR of one tile of one width: sums in registers, epilogue, stores."""

    def __init__(self, builder: Any, base: Any, dtype: Any, pitch: int, width: int) -> None:
        self.builder = builder
        self.base = base
        self.pitch = pitch  # lanes from one panel row to the next
        self.width = width  # lanes that are computed
        self.itemsize = dtype.bitwidth // 8
        scalar = ir.FloatType() if self.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(scalar, width)
        self.fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fma.v{width}f{8 * self.itemsize}",
        )

    def constant(self, value: int) -> Any:
        return ir.Constant(ir.IntType(64), value)

    def every_lane(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.width)

    def at(self, offset: Any) -> Any:
        return self.builder.gep(self.base, [offset])

    def load(self, offset: Any) -> Any:
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
        nothing = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(nothing, value, self.constant(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, nothing, zeros)

    def sums(
        self,
        n_rows: int,
        walk: int,
        ones: int,
        start: Any,
        a: Any,
        a_panel: Any,
        b: Any,
        depth: Any,
    ) -> list[Any]:
        """Return the accumulators: one a row, and one more where `ones`."""
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
                loop = _Loop(builder, count, carried, steps, f"k{steps}")
                a_now, b_now, *now = loop.values
                for k in range(steps):
                    now = multiply(a_now, b_now, now, k)
                a_next = builder.add(a_now, self.constant(steps * k_step))
                b_next = builder.add(b_now, self.constant(steps * self.pitch))
                carried = loop.close([a_next, b_next, *now], self.constant(steps))
                count = loop.count
            _a, b_end, *total = carried
            return b_end, total

        sums = [self.load(start)] * n_rows
        if ones:
            sums.append(self.every_lane(0.0))
        if walk == BATCH:
            return run(depth, a, b, sums)[1]
        panels = _Loop(builder, depth, [a, b, *sums], 1, "panel")
        a_now, b_now, *now = panels.values
        panel = self.constant(self.pitch)
        short = builder.icmp_signed("<", panels.count, panel)
        b_end, new = run(builder.select(short, panels.count, panel), a_now, b_now, now)
        a_next = builder.add(a_now, a_panel)
        _a, _b, *total = panels.close([a_next, b_end, *new], panel)
        return total

    def finish(self, sums: list[Any], epilogue: Any, out: Any, saved: Any) -> None:
        """Apply the epilogue to the rows and store them."""
        builder = self.builder
        zero, one = self.every_lane(0.0), self.every_lane(1.0)
        offsets = [self.constant(r * self.pitch) for r in range(len(sums))]

        def store_all(values: list[Any]) -> None:
            for value, offset in zip(values, offsets, strict=True):
                self.store(value, builder.add(out, offset))

        chosen = builder.icmp_signed("==", epilogue, self.constant(RELU_OUTPUT))
        with builder.if_else(chosen) as (relu, other):
            with relu:  # compares so that NaN stays
                below = [builder.fcmp_ordered("<", value, zero) for value in sums]
                pairs = zip(below, sums, strict=True)
                store_all([builder.select(where, zero, value) for where, value in pairs])
            with other:
                chosen = builder.icmp_signed("==", epilogue, self.constant(RELU_GATE))
                with builder.if_else(chosen) as (gate, plain):
                    with gate:  # a product, as the slot: a NaN passes a closed gate
                        gated = []
                        for value, offset in zip(sums, offsets, strict=True):
                            active = self.load(builder.add(saved, offset))
                            is_open = builder.fcmp_ordered(">", active, zero)
                            factor = builder.select(is_open, one, zero)
                            gated.append(builder.fmul(value, factor))
                        store_all(gated)
                    with plain:
                        store_all(sums)


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any,
    rows: Any,
    walk: Any,
    ones: Any,
    columns: Any,
    epilogue: Any,
    arena: Any,
    out: Any,
    start: Any,
    a: Any,
    a_panel: Any,
    b: Any,
    depth: Any,
    extra: Any,
) -> Any:
    """Compute one tile: ``arena[out + r*P + c] = e(arena[start + c] + sum_k A[r, k] * B[k, c])``.

    Parameters
    ----------
    rows, walk, ones : literal int
        Rows of the tile; `ROWS` or `BATCH`; 1 adds one accumulator row whose input is always 1 (the
        bias gradient), stored at `extra`.
    columns : int64
        Columns of the panel that count. Up to half a panel, only half is computed, and zeros are
        stored in the other half.
    epilogue : int64
        e: `PLAIN`, `RELU_OUTPUT`, or `RELU_GATE`, which multiplies by ReLU's derivative at the
        outputs saved at `extra` (laid out like `out`).
    arena : 1-D contiguous array
    out, start, a, b, extra : int64
        Element offsets into the arena. B is contiguous over k with P columns; `a` is A's first
        element.
    a_panel : int64
        ROWS: elements from one panel of A to the next. BATCH: unused.
    depth : int64
        Length of the sums; 0 stores the start.
    """
    literals = (rows, walk, ones)
    if not all(isinstance(argument, types.IntegerLiteral) for argument in literals):
        return None
    n_rows, row_walk, with_ones = (argument.literal_value for argument in literals)
    pitch = ir_lanes(arena.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns_value, epilogue_value = args[3:5]
        base = context.make_array(signature.args[5])(context, builder, args[5]).data
        out_at, start_at, a_at, a_panel_step, b_at, depth_value, extra_at = args[6:]

        def emit(width: int) -> None:
            emitter = _Emitter(builder, base, arena.dtype, pitch, width)
            sums = emitter.sums(
                n_rows, row_walk, with_ones, start_at, a_at, a_panel_step, b_at, depth_value
            )
            if row_walk == ROWS:
                emitter.finish(sums, epilogue_value, out_at, extra_at)
                return
            for r in range(n_rows):
                emitter.store(sums[r], builder.add(out_at, emitter.constant(r * pitch)))
            if with_ones:
                emitter.store(sums[n_rows], extra_at)

        half = ir.Constant(ir.IntType(64), pitch // 2)
        with builder.if_else(builder.icmp_signed("<=", columns_value, half)) as (narrow, wide):
            with narrow:
                emit(pitch // 2)
            with wide:
                emit(pitch)
        return context.get_dummy_value()

    numbers = [types.int64] * 7
    return types.void(rows, walk, ones, types.int64, types.int64, arena, *numbers), codegen
