"""Whether a step's gradient is certain to be finite, known before the gradient is computed.

An update may only be applied when the whole gradient is known to be finite. Computing all of it
first costs a pass over memory and a barrier; but ``|dW_ij| <= B max|a| max|dz|``, so the largest
activation and delta of each layer nearly always settle the question. They are taken while phase A
has the rows in cache, as integers: the bits of |x| order like |x|, with NaN above infinity.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.sums import largest_bits
from fastneuron.kernels.numba_cpu.tile import lanes
from fastneuron.kernels.numba_cpu.views import row
from fastneuron.kernels.stages import WORDS


def _integer(dtype: Any) -> Any:
    return types.int32 if dtype == types.float32 else types.int64


#: Parameters up to which the gradient, half a MiB of float32, is still in cache when it is wanted.
KEPT_GRADIENT = 1 << 17


@inner
def bound_pays(noted, parameters):
    """Return whether looking at so many numbers is cheaper than two visits to all parameters.

    Two visits look at each parameter's gradient once more. Both ways give the same bits.
    """
    return noted <= parameters or parameters > KEPT_GRADIENT


@inner
def noted_columns(head, layers, width):
    """Return how many numbers a row of the batch has that `note_sizes` looks at."""
    columns = 0
    for index in range(head[at.N_LAYERS]):
        columns += (layers[index, at.INPUTS] + width - 1) // width * width
        columns += (layers[index, at.OUTPUTS] + width - 1) // width * width
    return columns


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
def note_sizes(arena, head, layers, words, tid, stride, first, n_rows, with_loss):
    """Raise this thread's maxima by a block of rows: activations, deltas, row losses."""
    width = lanes(arena)
    offset, size = first * width, n_rows * width
    place = WORDS + tid * at.MAXIMA_A_LAYER * (head[at.N_LAYERS] + 1)
    for index in range(head[at.N_LAYERS]):
        layer = row(layers, index)
        for p in range((layer[at.INPUTS] + width - 1) // width):
            bits = largest_bits(arena, layer[at.IN_ROWS] + p * stride + offset, size)
            words[place] = max(words[place], bits)
        for q in range((layer[at.OUTPUTS] + width - 1) // width):
            bits = largest_bits(arena, layer[at.OUT_DELTA] + q * stride + offset, size)
            words[place + 1] = max(words[place + 1], bits)
        place += at.MAXIMA_A_LAYER
    if with_loss:
        bits = largest_bits(arena, head[at.ROW_LOSS] + first, n_rows)
        words[place] = max(words[place], bits)


@inner
def forget_sizes(head, words, tid):
    """Set this thread's maxima to zero."""
    count = at.MAXIMA_A_LAYER * (head[at.N_LAYERS] + 1)
    for i in range(count):
        words[WORDS + tid * count + i] = 0


@inner
def largest_of_team(arena, words, place, count, n_threads):
    """Return one maximum over all threads."""
    bits = words[place]
    for tid in range(1, n_threads):
        bits = max(bits, words[place + tid * count])
    return float(size_of_bits(arena, bits))


@inner
def certainly_finite(arena, head, layers, words, batch, n_threads):
    """Return whether loss, gradient and the gradient's squared norm must all be finite.

    The bound is computed in float64, where it cannot round down by more than 1e-13; half the range
    is kept for the rounding of the sums themselves.
    """
    limit = 1.7e38 if arena.itemsize == 4 else 8.0e307
    count = at.MAXIMA_A_LAYER * (head[at.N_LAYERS] + 1)
    place = WORDS
    squares = 0.0
    for index in range(head[at.N_LAYERS]):
        layer = row(layers, index)
        most_a = largest_of_team(arena, words, place, count, n_threads)
        most_d = batch * largest_of_team(arena, words, place + 1, count, n_threads)
        weights = float(layer[at.INPUTS]) * layer[at.OUTPUTS]
        squares += weights * (most_a * most_d) * (most_a * most_d)
        squares += layer[at.OUTPUTS] * most_d * most_d
        place += at.MAXIMA_A_LAYER
    loss = batch * largest_of_team(arena, words, place, count, n_threads)
    return squares < limit and loss < limit
