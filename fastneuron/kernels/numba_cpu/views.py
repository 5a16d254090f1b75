"""Views of arrays without checks and reference counts.

An ordinary slice clips its ends, handles negative ones and counts references: in code that takes a
few slices a row of data that is most of the machine code, and most of its compile time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.jit import inner


def _view(context: Any, builder: Any, array_type: Any, data: Any, size: Any) -> Any:
    """Build a 1-D contiguous array that borrows its memory."""
    view = context.make_array(array_type)(context, builder)
    itemsize = ir.Constant(ir.IntType(64), array_type.dtype.bitwidth // 8)
    view.data = data
    view.nitems = size
    view.itemsize = itemsize
    view.shape = cgutils.pack_array(builder, [size])
    view.strides = cgutils.pack_array(builder, [itemsize])
    view.meminfo = cgutils.get_null_value(view.meminfo.type)
    view.parent = cgutils.get_null_value(view.parent.type)
    return view._getvalue()


@intrinsic
def run(typingctx: Any, vector: Any, start: Any, size: Any) -> Any:
    """Return ``vector[start:start + size]`` of a contiguous vector; nothing is checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, args[0]).data
        data = builder.gep(base, [args[1]])
        return _view(context, builder, signature.return_type, data, args[2])

    return vector(vector, types.int64, types.int64), codegen


@intrinsic
def row(typingctx: Any, matrix: Any, index: Any) -> Any:
    """Return ``matrix[index]`` of a C-contiguous matrix; nothing is checked."""
    vector = matrix.copy(ndim=1)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        columns = builder.extract_value(array.shape, 1)
        data = builder.gep(array.data, [builder.mul(args[1], columns)])
        return _view(context, builder, signature.return_type, data, columns)

    return vector(matrix, types.int64), codegen


@intrinsic
def distance(typingctx: Any, arena: Any, x: Any) -> Any:
    """Elements from the start of the arena to the start of x, another array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        starts = [
            builder.ptrtoint(context.make_array(kind)(context, builder, array).data, i64)
            for kind, array in zip(signature.args, args, strict=True)
        ]
        itemsize = ir.Constant(i64, arena.dtype.bitwidth // 8)
        return builder.sdiv(builder.sub(starts[1], starts[0]), itemsize)

    return types.int64(arena, x), codegen


@inner
def copy(target, source):
    """Copy a run of equal length."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@inner
def fill(target, value):
    """Set every element of a run."""
    for i in range(target.shape[0]):
        target[i] = value
