"""Phase B: gradient and update of the parameters, one tile of a weight panel at a time.

A tile is the square of one input panel and one output panel. Its gradient sums over the rows of the
batch in ascending order; the bias gradient is one more accumulator row of the first input tile,
whose input is always 1, fed by loads that happen anyway.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.sums import squares
from fastneuron.kernels.numba_cpu.tile import BATCH, PLAIN, TALL, lanes, tile
from fastneuron.kernels.numba_cpu.transpose import transpose
from fastneuron.kernels.numba_cpu.updates import update
from fastneuron.kernels.numba_cpu.views import row, run


@inner
def locate(head, layers, ticket, width):
    """Return (layer, output panel, input panel) of a tile number.

    Neighbours share the input panel: it stays in cache while the layer's deltas pass by.
    """
    index = head[at.N_LAYERS] - 1
    while ticket < layers[index, at.FIRST_TILE]:
        index -= 1
    number = ticket - layers[index, at.FIRST_TILE]
    output_panels = (layers[index, at.OUTPUTS] + width - 1) // width
    p = number // output_panels
    return index, number - p * output_panels, p


@inner
def weight_gradient(arena, out, zeros, a, b, batch, n_rows, columns, bias_out):
    """Compute dW of `n_rows` inputs and one panel of outputs: tall tiles, then 4, 2, 1 rows.

    `bias_out` >= 0 asks for db of the panel too: the first tile carries the always-on row.
    """
    width = lanes(arena)
    r = 0
    if bias_out >= 0:
        if n_rows >= TALL:
            tile(TALL, BATCH, 1, columns, PLAIN, arena, out, zeros, a, 0, b, batch, bias_out)
            r = TALL
        elif n_rows >= 4:
            tile(4, BATCH, 1, columns, PLAIN, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 4
        elif n_rows >= 2:
            tile(2, BATCH, 1, columns, PLAIN, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 2
        else:
            tile(1, BATCH, 1, columns, PLAIN, arena, out, zeros, a, 0, b, batch, bias_out)
            r = 1
    while r + TALL <= n_rows:
        tile(TALL, BATCH, 0, columns, PLAIN, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += TALL
    if r + 4 <= n_rows:
        tile(4, BATCH, 0, columns, PLAIN, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += 4
    if r + 2 <= n_rows:
        tile(2, BATCH, 0, columns, PLAIN, arena, out + r * width, zeros, a + r, 0, b, batch, 0)
        r += 2
    if r < n_rows:
        tile(1, BATCH, 0, columns, PLAIN, arena, out + r * width, zeros, a + r, 0, b, batch, 0)


@glue
def place(head, layers, ticket, width):
    """Return of a tile: layer, panels, input rows, and its positions among the parameters.

    The position of the bias is -1 where another tile, or none, has it.
    """
    index, q, p = locate(head, layers, ticket, width)
    layer = row(layers, index)
    n_rows = min(width, layer[at.INPUTS] - p * width)
    weight = layer[at.WEIGHT] + (q * layer[at.INPUTS] + p * width) * width
    bias = layer[at.BIAS] + q * width if p == 0 and layer[at.BIAS] >= 0 else -1
    return index, q, p, n_rows, weight, bias


@inner
def gradient(arena, head, layer, q, p, batch, n_rows, out, bias_out):
    """Weight gradient of one tile, and bias gradient of its panel where `bias_out` >= 0."""
    width = lanes(arena)
    stride = head[at.CAPACITY] * width
    a, b = layer[at.IN_ROWS] + p * stride, layer[at.OUT_DELTA] + q * stride
    columns = layer[at.OUTPUTS] - q * width
    weight_gradient(arena, out, head[at.ZEROS], a, b, batch, n_rows, columns, bias_out)


@glue
def tile_gradient(arena, head, layers, ticket, batch):
    """Gradient of one tile, and its sum of squares."""
    width = lanes(arena)
    index, q, p, n_rows, weight, bias = place(head, layers, ticket, width)
    out = head[at.GRADIENT] + weight
    bias_out = head[at.GRADIENT] + bias if bias >= 0 else -1
    gradient(arena, head, row(layers, index), q, p, batch, n_rows, out, bias_out)
    biases = width if bias >= 0 else 0
    total = squares(arena, out, n_rows * width, bias_out, biases)
    arena[head[at.TILE_SQUARES] + ticket] = total


@glue
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
def apply(arena, head, layers, index, q, p, n_rows, weight, bias, slope, bias_slope, scalars, clip):
    """Update the parameters of one tile; layer 0 has no use for a transposed copy in training.

    `weight` and `bias` are positions in the parameter region; their gradients stand at `slope` and
    `bias_slope`.
    """
    width = lanes(arena)
    columns = layers[index, at.OUTPUTS] - q * width
    size, position, decays = n_rows * width, weight, np.int64(1)
    while True:
        update(
            head[at.UPDATE],
            run(arena, head[at.PARAMETERS] + position, size),
            run(arena, slope, size),
            run(arena, head[at.MOMENT_1] + position, size),
            run(arena, head[at.MOMENT_2] + position, size),
            scalars,
            clip,
            decays,
            columns,
        )
        if bias < 0 or position == bias:
            break
        size, position, slope, decays = width, bias, bias_slope, head[at.DECAY_BIAS]
    if index > 0:
        transpose_tile(arena, head, row(layers, index), q, p)


@glue
def tile_update(arena, head, layers, ticket, scalars, clip):
    """Optimizer update of one tile whose gradient stands in the gradient region."""
    index, q, p, n_rows, weight, bias = place(head, layers, ticket, lanes(arena))
    slope, bias_slope = head[at.GRADIENT] + weight, head[at.GRADIENT] + bias
    apply(arena, head, layers, index, q, p, n_rows, weight, bias, slope, bias_slope, scalars, clip)


@glue
def tile_step(arena, head, layers, ticket, batch, scalars, scratch):
    """Gradient and update of one tile in one visit; the gradient never leaves the cache."""
    width = lanes(arena)
    index, q, p, n_rows, weight, bias = place(head, layers, ticket, width)
    bias_slope = scratch + width * width
    bias_out = bias_slope if bias >= 0 else -1
    gradient(arena, head, row(layers, index), q, p, batch, n_rows, scratch, bias_out)
    apply(arena, head, layers, index, q, p, n_rows, weight, bias, scratch, bias_slope, scalars, 1.0)


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
