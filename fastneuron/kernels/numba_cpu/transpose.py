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

from fastneuron.kernels.numba_cpu.emit import Memory, Number, whole
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.target import ir_lanes, lanes

#: Columns up to which a block is copied element by element: 64 lane exchanges take longer.
ONE_BY_ONE = 2


def _exchange(step: int, size: int, upper: bool) -> list[int]:
    """Lanes of rows (a, b) that make their new row when blocks of `step` lanes change sides.

    The lower row keeps a's even blocks and takes b's in place of its odd ones; the upper row the
    other halves (J. O. Eklundh, IEEE Trans. Computers C-21, 1972).
    """
    shift = step if upper else 0
    return [
        (lane - step + shift + size) if (lane // step) % 2 else lane + shift for lane in range(size)
    ]


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of a square block, given as a list of vectors."""
    return _rounds(builder, list(rows), len(rows) // 2)


def transposed_pairs(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of rows half as long as they are many, given as a list of vectors."""
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    joined = [_shuffled(builder, low, high, list(range(2 * half))) for low, high in pairs]
    return _rounds(builder, joined, half // 2)


def _rounds(builder: Any, rows: list[Any], width: int) -> list[Any]:
    """Exchange blocks of `width` lanes between rows that are so far apart, then halves of them."""
    size = rows[0].type.count
    while width:
        for r in range(len(rows)):
            if (r // width) % 2 == 0:
                a, b = rows[r], rows[r + width]
                rows[r] = _shuffled(builder, a, b, _exchange(width, size, upper=False))
                rows[r + width] = _shuffled(builder, a, b, _exchange(width, size, upper=True))
        width //= 2
    return rows


def lane_sums(builder: Any, rows: list[Any]) -> Any:
    """Return the vector of the sums of a square block's rows, neighbouring lanes added first."""
    rows, size, step = list(rows), len(rows), 1
    while step < size:
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [
            builder.fadd(
                _shuffled(builder, a, b, _exchange(step, size, upper=False)),
                _shuffled(builder, a, b, _exchange(step, size, upper=True)),
            )
            for a, b in pairs
        ]
        step *= 2
    return rows[0]


def _shuffled(builder: Any, a: Any, b: Any, picked: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(picked)), picked)
    return builder.shuffle_vector(a, b, mask)


def _place(builder: Any, start: Any, row: int, pitch: int, last: Any) -> Any:
    """Return where a row begins; those past the last, if it is given, stand where it does."""
    held = whole(row)
    if last is not None:
        held = builder.select(builder.icmp_signed("<", held, last), held, last)
    return builder.add(start, builder.mul(held, whole(pitch)))


@intrinsic
def transpose_block(typingctx: Any, arena: Any, source: Any, target: Any) -> Any:
    """Transpose one L x L block, L lanes of one register: target[j, i] = source[i, j].

    Rows of both stand one panel width apart.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        _emit(memory, arena.dtype, args[1], args[2], None, None)
        return context.get_dummy_value()

    return types.void(arena, types.int64, types.int64), codegen


@intrinsic
def transpose_edge(
    typingctx: Any, arena: Any, source: Any, target: Any, n_rows: Any, n_columns: Any
) -> Any:
    """Like `transpose_block`, for a smaller one.

    Source rows past `n_rows` are not read and count as zeros; columns past `n_columns` are left
    out.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        last_row, last_column = (builder.sub(count, whole(1)) for count in args[3:])
        memory = Memory(context, builder, arena, args[0])
        _emit(memory, arena.dtype, args[1], args[2], last_row, last_column)
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 4), codegen


def _emit(
    memory: Memory, dtype: Any, source: Any, target: Any, last_row: Any, last_column: Any
) -> None:
    builder, pitch = memory.builder, ir_lanes(dtype)
    size = pitch // 2
    rows = []
    for r in range(size):
        row = memory.load(_place(builder, source, r, pitch, last_row), size)
        if last_row is not None:
            row = row.where(builder.icmp_signed("<=", whole(r), last_row), 0.0)
        rows.append(row.value)
    columns = transposed(builder, rows)
    # Backwards: what has no place of its own is written to the last one's, and then over.
    for j in reversed(range(size)):
        place = _place(builder, target, j, pitch, last_column)
        memory.store(Number(builder, columns[j]), place)


@inner
def transpose(arena, source, target, n_rows, n_columns):
    """target[j, i] = source[i, j]; rows of both stand one panel width apart.

    n_rows and n_columns are at most a panel. Lanes of the target past n_rows may get zeros, which
    is what fills up the last panel of a transposed weight.
    """
    panel = lanes(arena)
    block = panel // 2
    if n_columns <= ONE_BY_ONE:
        for i in range(n_rows):
            for j in range(n_columns):
                arena[target + j * panel + i] = arena[source + i * panel + j]
        return
    i = 0
    while i < n_rows:
        j = 0
        while j < n_columns:
            start, end = source + i * panel + j, target + j * panel + i
            if i + block <= n_rows and j + block <= n_columns:
                transpose_block(arena, start, end)
            else:
                rows, columns = min(block, n_rows - i), min(block, n_columns - j)
                transpose_edge(arena, start, end, rows, columns)
            j += block
        i += block
