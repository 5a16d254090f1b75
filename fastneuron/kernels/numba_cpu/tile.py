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


def _ir_lanes(dtype: Any) -> int:
    return 2 * VECTOR_BYTES * 8 // dtype.bitwidth


@intrinsic
def lanes(typingctx: Any, arena: Any) -> Any:
    """Panel width for the arena's dtype, a constant in the compiled code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), _ir_lanes(signature.args[0].dtype))

    return types.int64(arena), codegen


class _Loop:
    """A counted loop, ``while (count > 0) {...}``, whose carried values are phi nodes."""

    def __init__(self, builder: Any, count: Any, carried: list[Any], name: str) -> None:
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
        more = builder.icmp_signed(">", self.count, ir.Constant(count.type, 0))
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


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any,
    rows: Any,
    walk: Any,
    ones: Any,
    arena: Any,
    out: Any,
    start: Any,
    a: Any,
    a_panel: Any,
    b: Any,
    depth: Any,
    ones_out: Any,
) -> Any:
    """Compute one tile: ``arena[out + r*P + c] = arena[start + c] + sum_k A[r, k] * B[k, c]``.

    Parameters
    ----------
    rows, walk, ones : literal int
        Rows of the tile; `ROWS` or `BATCH`; 1 adds one accumulator row whose input is always 1 (the
        bias gradient), stored at `ones_out`.
    arena : 1-D contiguous array
    out, start, a, b, ones_out : int64
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
    width = _ir_lanes(arena.dtype)
    scalar = ir.FloatType() if arena.dtype == types.float32 else ir.DoubleType()
    vector = ir.VectorType(scalar, width)
    itemsize = arena.dtype.bitwidth // 8
    row_step, k_step = (width, 1) if row_walk == ROWS else (1, width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        base = context.make_array(signature.args[3])(context, builder, args[3]).data
        out_at, start_at, a_at, a_panel_step, b_at, depth_value, ones_at = args[4:]
        fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector, vector, vector]),
            f"llvm.fma.v{width}f{arena.dtype.bitwidth}",
        )

        def constant(value: int) -> Any:
            return ir.Constant(i64, value)

        def at(offset: Any) -> Any:
            return builder.gep(base, [offset])

        def load_vector(offset: Any) -> Any:
            # Arena offsets of panels are multiples of the panel, but A's rows and a user's slot
            # buffers need not be: claim the element's alignment only (free on aligned addresses).
            return builder.load(builder.bitcast(at(offset), vector.as_pointer()), align=itemsize)

        def store_vector(value: Any, offset: Any) -> None:
            builder.store(value, builder.bitcast(at(offset), vector.as_pointer()), align=itemsize)

        def splat(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, constant(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        def multiply(a_off: Any, b_off: Any, sums: list[Any]) -> list[Any]:
            b_row = load_vector(b_off)
            result = []
            for r in range(n_rows):
                value = builder.load(at(builder.add(a_off, constant(r * row_step))))
                result.append(builder.call(fma, [splat(value), b_row, sums[r]]))
            if with_ones:
                result.append(builder.fadd(sums[n_rows], b_row))
            return result

        def run(count: Any, a_off: Any, b_off: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
            loop = _Loop(builder, count, [a_off, b_off, *sums], "k")
            a_now, b_now, *now = loop.values
            new = multiply(a_now, b_now, now)
            a_next = builder.add(a_now, constant(k_step))
            b_next = builder.add(b_now, constant(width))
            _a, b_end, *total = loop.close([a_next, b_next, *new], constant(1))
            return b_end, total

        sums = [load_vector(start_at)] * n_rows
        if with_ones:
            sums.append(ir.Constant(vector, [0.0] * width))
        if row_walk == BATCH:
            _end, sums = run(depth_value, a_at, b_at, sums)
        else:
            panels = _Loop(builder, depth_value, [a_at, b_at, *sums], "panel")
            a_now, b_now, *now = panels.values
            short = builder.icmp_signed("<", panels.count, constant(width))
            count = builder.select(short, panels.count, constant(width))
            b_end, new = run(count, a_now, b_now, now)
            a_next = builder.add(a_now, a_panel_step)
            _a, _b, *sums = panels.close([a_next, b_end, *new], constant(width))
        for r in range(n_rows):
            store_vector(sums[r], builder.add(out_at, constant(r * width)))
        if with_ones:
            store_vector(sums[n_rows], ones_at)
        return context.get_dummy_value()

    return (
        types.void(rows, walk, ones, arena, *[types.int64] * 7),
        codegen,
    )
