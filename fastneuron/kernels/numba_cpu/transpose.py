"""Transposition of square blocks in vector registers.

Phase B keeps a transposed copy of the weights for the data gradient. Element by element, with a
stride between stores, that costs 20 to 40 % of the phase; as log2(L) rounds of lane exchanges on
L x L blocks it costs 1 to 2 %.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.tile import VECTOR_BYTES, lanes


def _exchange(step: int, size: int, upper: bool) -> list[int]:
    """Lanes of rows (a, b) that make their new row when blocks of `step` lanes change sides.

    The lower row keeps a's even blocks and takes b's in place of its odd ones; the upper row the
    other halves (J. O. Eklundh, IEEE Trans. Computers C-21, 1972).
    """
    shift = step if upper else 0
    return [
        (lane - step + shift + size) if (lane // step) % 2 else lane + shift for lane in range(size)
    ]


@intrinsic
def transpose_block(
    typingctx: Any, arena: Any, source: Any, step: Any, target: Any, out_step: Any
) -> Any:
    """Transpose one L x L block, L lanes of one register: target[j, i] = source[i, j].

    `step` and `out_step` are the elements from one row to the next.
    """
    size = VECTOR_BYTES * 8 // arena.dtype.bitwidth
    scalar = ir.FloatType() if arena.dtype == types.float32 else ir.DoubleType()
    vector = ir.VectorType(scalar, size)
    itemsize = arena.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, args[0]).data

        def at(start: Any, row: int, row_step: Any) -> Any:
            offset = builder.add(start, builder.mul(ir.Constant(ir.IntType(64), row), row_step))
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def shuffle(a: Any, b: Any, picked: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), size), picked)
            return builder.shuffle_vector(a, b, mask)

        rows = [builder.load(at(args[1], r, args[2]), align=itemsize) for r in range(size)]
        width = size // 2
        while width:
            for r in range(size):
                if (r // width) % 2 == 0:
                    a, b = rows[r], rows[r + width]
                    rows[r] = shuffle(a, b, _exchange(width, size, upper=False))
                    rows[r + width] = shuffle(a, b, _exchange(width, size, upper=True))
            width //= 2
        for r in range(size):
            builder.store(rows[r], at(args[3], r, args[4]), align=itemsize)
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 4), codegen


@inner
def transpose(arena, source, target, n_rows, n_columns):
    """target[j, i] = source[i, j]; rows of both stand one panel width apart.

    n_rows and n_columns are at most a panel; whole blocks go through registers, edges one by one.
    """
    panel = lanes(arena)
    block = panel // 2
    i = 0
    while i + block <= n_rows:
        j = 0
        while j + block <= n_columns:
            transpose_block(arena, source + i * panel + j, panel, target + j * panel + i, panel)
            j += block
        while j < n_columns:
            for k in range(block):
                arena[target + j * panel + i + k] = arena[source + (i + k) * panel + j]
            j += 1
        i += block
    while i < n_rows:
        for j in range(n_columns):
            arena[target + j * panel + i] = arena[source + i * panel + j]
        i += 1
