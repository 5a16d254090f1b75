"""Phase B: gradient and update of the parameters, one tile of a weight panel at a time.

A tile is the square of one input panel and one output panel. Its gradient sums over the rows of the
batch in ascending order; the bias gradient is one more accumulator row of the first input tile,
whose input is always 1, fed by loads that happen anyway.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.norms import follow_batch, vector_gradient
from fastneuron.kernels.numba_cpu.panels import LINE
from fastneuron.kernels.numba_cpu.slim import slim_gradient
from fastneuron.kernels.numba_cpu.sums import squares
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tile import (
    AHEAD,
    BATCH,
    DESCENT,
    NOTHING_AHEAD,
    PLAIN,
    TALL,
    UNROLL,
    product,
)
from fastneuron.kernels.numba_cpu.transpose import transpose
from fastneuron.kernels.numba_cpu.updates import PLAIN as SGD_UPDATE
from fastneuron.kernels.numba_cpu.updates import update
from fastneuron.kernels.numba_cpu.views import distance, fill, row, run
from fastneuron.optimizers import L2, RATE


@inner
def weight_gradient(
    arena, out, zeros, a, b, batch, n_rows, columns, bias_out, ahead, parameters, rates
):
    """Compute dW of `n_rows` inputs and one panel of outputs, in chunks of the batch.

    `bias_out` >= 0 asks for db of the panel too; `ahead` is as `product` takes it. Where
    `parameters` >= 0, a step of gradient descent with the rate and the decay at `rates` is done to
    the weights that stand there, instead of leaving dW at `out`.
    """
    width = lanes(arena)
    start, start_step = zeros, 0
    step, soon, soon_step = ahead[0], ahead[AHEAD + 1], ahead[AHEAD + 2]
    epilogue = np.int64(PLAIN)
    r = 0
    while r == 0 or r < batch:
        depth = min(at.BATCH_CHUNK, batch - r)
        skip = r // UNROLL * step
        target = out
        if parameters >= 0 and r + depth == batch:
            target, epilogue = parameters, np.int64(DESCENT)
        product(
            BATCH,
            columns,
            epilogue,
            arena,
            target,
            start,
            start_step,
            a + r * width,
            0,
            b + r * width,
            depth,
            n_rows,
            bias_out,
            rates,
            (
                step,
                ahead[1] + skip,
                ahead[2] + skip,
                ahead[3] + skip,
                ahead[4] + skip,
                soon + r // UNROLL * max(width // TALL, 1) * soon_step,
                soon_step,
            ),
        )
        start, start_step = out, width
        r += max(depth, 1)


@inner
def is_turned(tile, batch):
    """Whether a tile's gradient is computed with its inputs for lanes."""
    narrow = tile[at.TILE_OUTPUTS] <= at.TURNED_OUTPUTS and tile[at.TILE_BIAS] < 0
    return narrow and batch >= at.TURNED_ROWS


@inner
def turn_back(arena, turned, out, inputs, outputs):
    """Write a gradient that stands at `turned`, a panel row for each output, as a tile."""
    width = lanes(arena)
    fill(run(arena, out, inputs * width), arena.dtype.type(0.0))
    for o in range(outputs):
        for i in range(inputs):
            arena[out + i * width + o] = arena[turned + o * width + i]


@glue
def gradient(arena, head, tile, batch, out, bias_out, ahead, parameters, rates, spare):
    """Weight gradient of one tile, and bias gradient of its panel: see `weight_gradient`.

    `spare` has room for `TURNED_OUTPUTS` panel rows.
    """
    a, b, target = tile[at.TILE_A], tile[at.TILE_B], out
    n_rows, columns = tile[at.TILE_INPUTS], tile[at.TILE_OUTPUTS]
    turned = is_turned(tile, batch)
    if turned:  # the same products in the same order
        a, b, target = b, a, spare
        n_rows, columns = columns, n_rows
    weight_gradient(
        arena,
        target,
        head[at.ZEROS],
        a,
        b,
        batch,
        n_rows,
        columns,
        bias_out,
        ahead,
        parameters,
        rates,
    )
    if turned:
        turn_back(arena, spare, out, columns, n_rows)


@glue
def coming_piece(arena, x, coming, piece, pieces, size):
    """Place, seen from the arena, of one of a row's `pieces` that the next step will gather."""
    r = piece // pieces
    if r >= coming.shape[0]:
        return np.int64(0)
    return distance(arena, x) + coming[r] * x.shape[1] + (piece - r * pieces) * size


@inner
def is_product(layers, slim, tile):
    """Whether a tile's gradient is a product of panels."""
    return tile[at.TILE_KIND] == at.DENSE and not (slim and layers[tile[at.TILE_LAYER], at.SLIM])


@inner
def other_gradient(arena, head, layers, slim, tile, batch, out, bias_out):
    """Gradient of a tile that is no product of panels."""
    layer = row(layers, tile[at.TILE_LAYER])
    if slim and layer[at.SLIM]:
        slim_gradient(arena, head, layer, tile[at.TILE_INPUTS], batch, out, bias_out)
    else:
        vector_gradient(arena, head, layer, tile, batch, out, bias_out)


@glue
def tile_gradient(arena, head, layers, slim, tile, batch, total_at, scratch):
    """Gradient of one tile; its sum of squares goes to `total_at`."""
    width = lanes(arena)
    out = head[at.GRADIENT] + tile[at.TILE_WEIGHT]
    bias_out = head[at.GRADIENT] + tile[at.TILE_BIAS] if tile[at.TILE_BIAS] >= 0 else -1
    none = np.int64(-1)
    if is_product(layers, slim, tile):
        zero = np.int64(0)  # not `NOTHING_AHEAD`: literals would be a compilation of their own
        nothing = (zero, zero, zero, zero, zero, zero, zero)
        gradient(arena, head, tile, batch, out, bias_out, nothing, none, none, scratch)
    else:
        other_gradient(arena, head, layers, slim, tile, batch, out, bias_out)
    biases = width if bias_out >= 0 else 0
    arena[total_at] = squares(arena, out, tile[at.TILE_INPUTS] * width, bias_out, biases)


@glue
def transpose_tile(arena, head, tile):
    """Refresh one tile of the transposed copy."""
    source = head[at.PARAMETERS] + tile[at.TILE_WEIGHT]
    target = tile[at.TILE_TRANSPOSED]
    transpose(arena, source, target, tile[at.TILE_INPUTS], tile[at.TILE_OUTPUTS])


@inner
def apply(arena, head, tile, slope, bias_slope, scalars, clip, descended, copied):
    """Update the parameters of one tile, and their transposed copy where `copied`.

    The gradients stand at `slope` and `bias_slope`; where `descended`, the weights are updated
    already. Layers that no deltas go back through have no use for a copy in training.
    """
    width = lanes(arena)
    position, bias = tile[at.TILE_WEIGHT], tile[at.TILE_BIAS]
    size, decays = tile[at.TILE_INPUTS] * width, np.int64(1)
    is_dense = tile[at.TILE_KIND] == at.DENSE
    if not is_dense:
        decays = head[at.DECAY_BIAS]
    for part in range(1 if descended else 0, 2 if bias >= 0 else 1):
        if part == 1:
            size, position, slope, decays = width, bias, bias_slope, head[at.DECAY_BIAS]
        update(
            head[at.UPDATE],
            run(arena, head[at.PARAMETERS] + position, size),
            run(arena, slope, size),
            run(arena, head[at.MOMENT_1] + position, size),
            run(arena, head[at.MOMENT_2] + position, size),
            scalars,
            clip,
            decays,
            tile[at.TILE_OUTPUTS],
        )
    if copied and is_dense and tile[at.TILE_LAYER] >= head[at.BACK_TO]:
        transpose_tile(arena, head, tile)


@glue
def tile_update(arena, head, layers, tile, batch, scalars, clip, copied):
    """Optimizer update of one tile whose gradient stands in the gradient region."""
    slope, bias_slope = head[at.GRADIENT] + tile[at.TILE_WEIGHT], head[at.GRADIENT]
    bias_slope += tile[at.TILE_BIAS]
    none = np.bool_(False)  # a literal would be a compilation of its own
    apply(arena, head, tile, slope, bias_slope, scalars, clip, none, copied)
    if tile[at.TILE_KIND] == at.BATCH_NORM:
        follow_batch(arena, layers, tile, batch)


@glue
def lines_ahead(arena, head, tile, batch, x, coming, ticket, first_tiles):
    """Choose what a tile's gradient asks the caches for, as `product` takes it.

    Of many parameters: its own, their moments and their transposed copy, for the update that
    follows, and its share of the activations of the next input panel. In layer 0, of `first_tiles`
    tiles, beside them, or alone, a piece of the rows that the next step begins with: a thread's
    share of the tiles has its share of the rows.
    """
    n_parameters = head[at.MOMENT_1] - head[at.PARAMETERS]
    far = n_parameters * arena.itemsize > at.FAR_PARAMETERS
    first = tile[at.TILE_LAYER] == 0 and coming.shape[0] > 0
    if not far and not first:
        return NOTHING_AHEAD
    turns = max(batch // UNROLL, 1)
    streams = 1 if far else AHEAD
    pieces = max(streams * first_tiles // max(coming.shape[0], 1), 1)
    size = (x.shape[1] + pieces - 1) // pieces
    if not far:
        return (
            max(size // turns, 1),
            coming_piece(arena, x, coming, AHEAD * ticket, pieces, size),
            coming_piece(arena, x, coming, AHEAD * ticket + 1, pieces, size),
            coming_piece(arena, x, coming, AHEAD * ticket + 2, pieces, size),
            coming_piece(arena, x, coming, AHEAD * ticket + 3, pieces, size),
            np.int64(0),
            np.int64(0),
        )
    width = lanes(arena)
    p = head[at.PARAMETERS] + tile[at.TILE_WEIGHT]
    moments = n_parameters if head[at.UPDATE] != SGD_UPDATE else 0
    rest = tile[at.TILE_TRANSPOSED]
    if first:
        rest = coming_piece(arena, x, coming, ticket, pieces, size)
    talls = max(width // TALL, 1)
    shares = talls * tile[at.TILE_SHARES]
    # Not past a line: what the tiles have no time to ask for is left out.
    soon_step = min((width * UNROLL + shares - 1) // shares, LINE // arena.itemsize)
    soon = tile[at.TILE_NEXT_A] + tile[at.TILE_SHARE] * talls * turns * soon_step
    step = max(width * width // turns, 1)
    return step, p, p + moments, p + 2 * moments, rest, soon, soon_step


@glue
def tile_step(
    arena, head, layers, few, slim, tile, batch, scalars, scratch, x, coming, ticket, first_tiles
):
    """Gradient and update of one tile in one visit; the gradient never leaves the cache.

    For plain gradient descent it does not leave the registers, unless it `is_turned`.
    """
    width = lanes(arena)
    bias_slope = scratch + width * width
    bias_out = bias_slope if tile[at.TILE_BIAS] >= 0 else -1
    descends = False
    if is_product(layers, slim, tile):
        ahead = lines_ahead(arena, head, tile, batch, x, coming, ticket, first_tiles)
        descends = head[at.UPDATE] == SGD_UPDATE and not is_turned(tile, batch)
        parameters, rates = np.int64(-1), bias_slope + width
        if descends:
            parameters = head[at.PARAMETERS] + tile[at.TILE_WEIGHT]
            arena[rates] = scalars[RATE]
            arena[rates + 1] = scalars[L2]
        gradient(arena, head, tile, batch, scratch, bias_out, ahead, parameters, rates, bias_slope)
    else:
        other_gradient(arena, head, layers, slim, tile, batch, scratch, bias_out)
    apply(arena, head, tile, scratch, bias_slope, scalars, 1.0, descends, not few)
    if tile[at.TILE_KIND] == at.BATCH_NORM:
        follow_batch(arena, layers, tile, batch)


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
