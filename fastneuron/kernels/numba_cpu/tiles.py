"""Phase B: gradient and update of the parameters, one tile of a weight panel at a time.

A tile is the square of one input panel and one output panel. Its gradient sums over the rows of the
batch in ascending order; the bias gradient is one more accumulator row of the first input tile,
whose input is always 1, fed by loads that happen anyway.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.tile import BATCH, lanes, tile
from fastneuron.kernels.numba_cpu.transpose import transpose
from fastneuron.kernels.numba_cpu.updates import update


@inner
def locate(head, layers, ticket, width):
    """Return (layer, output panel, input panel) of a tile number."""
    index = head[at.N_LAYERS] - 1
    while ticket < layers[index, at.FIRST_TILE]:
        index -= 1
    inner_number = ticket - layers[index, at.FIRST_TILE]
    input_panels = (layers[index, at.INPUTS] + width - 1) // width
    return index, inner_number // input_panels, inner_number % input_panels


@inner
def weight_gradient(arena, out, zeros, a, b, batch, n_rows, bias_out):
    """DW of `n_rows` inputs and one panel of outputs: tiles of 8 rows, then 4, 2, 1.

    `bias_out` >= 0 asks for db of the panel too: the first tile carries the always-on row.
    """
    width = lanes(arena)
    r = 0
    if bias_out >= 0:
        if n_rows >= 8:
            tile(8, BATCH, 1, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 8
        elif n_rows >= 4:
            tile(4, BATCH, 1, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 4
        elif n_rows >= 2:
            tile(2, BATCH, 1, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 2
        else:
            tile(1, BATCH, 1, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 1
    while r + 8 <= n_rows:
        tile(8, BATCH, 0, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += 8
    if r + 4 <= n_rows:
        tile(4, BATCH, 0, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += 4
    if r + 2 <= n_rows:
        tile(2, BATCH, 0, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += 2
    if r < n_rows:
        tile(1, BATCH, 0, arena, out + r * width, zeros, a + r, 0, b, batch, 0)


@inner
def squares(run, sums):
    """Add the squares of a run of whole panel rows to one sum a lane."""
    width = sums.shape[0]
    for r in range(run.shape[0] // width):
        row = run[r * width : (r + 1) * width]
        for j in range(width):
            sums[j] += row[j] * row[j]


@inner
def tile_gradient(arena, head, layers, ticket, batch, sums):
    """Gradient of one tile, and its sum of squares; `sums` is scratch of one panel row."""
    width = lanes(arena)
    index, q, p = locate(head, layers, ticket, width)
    layer = layers[index]
    stride = head[at.CAPACITY] * width
    n_rows = min(width, layer[at.INPUTS] - p * width)
    out = head[at.GRADIENT] + layer[at.WEIGHT] + (q * layer[at.INPUTS] + p * width) * width
    bias_out = -1
    if p == 0 and layer[at.BIAS] >= 0:
        bias_out = head[at.GRADIENT] + layer[at.BIAS] + q * width
    a = layer[at.IN_ROWS] + p * stride
    b = layer[at.OUT_DELTA] + q * stride
    weight_gradient(arena, out, head[at.ZEROS], a, b, batch, n_rows, bias_out)
    sums[:] = 0
    squares(arena[out : out + n_rows * width], sums)
    if bias_out >= 0:
        squares(arena[bias_out : bias_out + width], sums)
    total = sums[0]
    for j in range(1, width):
        total += sums[j]
    arena[head[at.TILE_SQUARES] + ticket] = total


@inner
def transpose_tile(arena, head, layer, q, p):
    """Refresh one tile of the transposed copy."""
    width = lanes(arena)
    inputs, outputs = layer[at.INPUTS], layer[at.OUTPUTS]
    n_rows = min(width, inputs - p * width)
    n_columns = min(width, outputs - q * width)
    source = head[at.PARAMETERS] + layer[at.WEIGHT] + (q * inputs + p * width) * width
    target = layer[at.TRANSPOSED] + (p * outputs + q * width) * width
    transpose(arena, source, target, n_rows, n_columns)


@inner
def run_update(arena, head, position, size, scalars, clip, decays):
    """Update `size` parameters from `position` of the parameter region."""
    p = head[at.PARAMETERS] + position
    g = head[at.GRADIENT] + position
    m = head[at.MOMENT_1] + position
    v = head[at.MOMENT_2] + position
    update(
        head[at.UPDATE],
        arena[p : p + size],
        arena[g : g + size],
        arena[m : m + size],
        arena[v : v + size],
        scalars,
        clip,
        decays,
    )


@inner
def tile_update(arena, head, layers, ticket, scalars, clip):
    """Optimizer update of one tile; layer 0 has no use for a transposed copy in training."""
    width = lanes(arena)
    index, q, p = locate(head, layers, ticket, width)
    layer = layers[index]
    n_rows = min(width, layer[at.INPUTS] - p * width)
    position = layer[at.WEIGHT] + (q * layer[at.INPUTS] + p * width) * width
    run_update(arena, head, position, n_rows * width, scalars, clip, True)
    if p == 0 and layer[at.BIAS] >= 0:
        decays = head[at.DECAY_BIAS] != 0
        run_update(arena, head, layer[at.BIAS] + q * width, width, scalars, clip, decays)
    if index > 0:
        transpose_tile(arena, head, layer, q, p)


@inner
def squared_norm(arena, head):
    """Squared norm of the whole gradient, tiles in ascending order, in the arena's dtype.

    In that dtype on purpose: a gradient whose square overflows it counts as not finite, which
    bounds every update that an optimizer can make.
    """
    first = head[at.TILE_SQUARES]
    total = arena.dtype.type(0.0)
    for i in range(head[at.N_TILES]):
        total += arena[first + i]
    return np.float64(total)
