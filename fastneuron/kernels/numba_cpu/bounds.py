"""Whether a step's gradient is certain to be finite, known before the gradient is computed.

An update may only be applied when the whole gradient is known to be finite. Computing all of it
first costs a pass over memory and a barrier; but ``|dW_ij| <= B max|a| max|dz|``, so the largest
activation and delta of each layer nearly always settle the question. They are taken while phase A
has the rows in cache, as integers: the bits of |x| order like |x|, with NaN above infinity.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.sums import largest_bits
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import fill, row, run

maxima = inner(at.maxima)


def _integer(dtype: Any) -> Any:
    return types.int32 if dtype == types.float32 else types.int64


@intrinsic
def size_of_bits(typingctx: Any, vector: Any, bits: Any) -> Any:
    """Return the number of the vector's dtype that has these bits."""
    real, whole = vector.dtype, _integer(vector.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = args[1]
        if whole.bitwidth < 64:
            narrow = builder.trunc(narrow, ir.IntType(whole.bitwidth))
        return builder.bitcast(narrow, context.get_value_type(real))

    return real(vector, types.int64), codegen


@inner
def maxima_of(arena, head, tid):
    """Where thread `tid` notes its largest numbers."""
    return head[at.MAXIMA] + tid * maxima(head[at.N_LAYERS]) * lanes(arena)


@inner
def forget_maxima(arena, head, tid):
    """Set this thread's maxima to zero."""
    size = maxima(head[at.N_LAYERS]) * lanes(arena)
    fill(run(arena, maxima_of(arena, head, tid), size), arena.dtype.type(0.0))


@inner
def entry(most, index, kind, width):
    """Where the largest input (kind 0) or delta (1) of a layer is noted; -1 where none is."""
    return most + (2 * index + kind) * width if most >= 0 else most


@inner
def largest_of_team(arena, head, entry, n_threads):
    """Return one maximum over all lanes and threads."""
    width = lanes(arena)
    bits = np.int64(0)
    for tid in range(n_threads):
        start = maxima_of(arena, head, tid) + entry * width
        bits = max(bits, largest_bits(arena, start, width))
    return float(size_of_bits(arena, bits))


@inner
def certainly_finite(arena, head, layers, batch, with_loss, n_threads):
    """Return whether loss, gradient and the gradient's squared norm must all be finite.

    The bound is computed in float64, where it cannot round down by more than 1e-13; half the range
    is kept for the rounding of the sums themselves.
    """
    limit = 1.7e38 if arena.itemsize == 4 else 8.0e307
    squares = 0.0
    for index in range(head[at.N_LAYERS]):
        layer = row(layers, index)
        most_a = largest_of_team(arena, head, 2 * index, n_threads)
        most_d = batch * largest_of_team(arena, head, 2 * index + 1, n_threads)
        weights = float(layer[at.OUTPUTS])
        squares += weights * most_d * most_d
        # What was normalised over n numbers is at most sqrt(n); one of them, and the rest 0.
        if layer[at.KIND] == at.DENSE:
            weights *= layer[at.INPUTS]
        elif layer[at.KIND] == at.LAYER_NORM:
            most_a = math.sqrt(layer[at.OUTPUTS])
        else:
            most_a = math.sqrt(batch)
        squares += weights * (most_a * most_d) * (most_a * most_d)
    loss = 0.0
    if with_loss:
        bits = largest_bits(arena, head[at.ROW_LOSS], batch)
        loss = batch * float(size_of_bits(arena, bits))
    return squares < limit and loss < limit
