"""The columns of the tables that kernels read, and the sizes that kernels and layout share.

Kernels get the arena (one vector of the network's dtype) and two int64 tables, `head` and `layers`,
so that one compiled worker serves every network; a third, `tiles`, lists what phase B visits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Columns of the layer table. Positions are element offsets into the arena.
INPUTS, OUTPUTS, ACTIVATION, HAS_BIAS = 0, 1, 2, 3
WEIGHT = 4  # [panel of outputs][input][lane], offset within the parameter region
BIAS = 5  # [output], padded to whole panels, within the parameter region; -1 without a bias
START = 6  # where a forward tile's sums start from: the bias, or a block of zeros
TRANSPOSED = 7  # [panel of inputs][output][lane]
IN_ROWS = 8  # the layer's input activations
PRE_ROWS = 9  # where its forward tile writes z
OUT_ROWS = 10  # its output activations; the same place as z where f' needs only a
SAVED_ROWS = 11  # what f' is computed from
OUT_DELTA = 12  # dL/d(output), turned into dL/dz in place; where nothing reads them, the outputs'
IN_DELTA = 13  # dL/d(input)
FIRST_TILE = 14  # number of the layer's first tile, or where it has none the next layer's
INFER_IN, INFER_OUT = 15, 16  # the two places that inference goes to and fro between
SLIM = 17  # 1 for a layer that works on columns where rows are many, see `slim_layers`
# Places of such a layer's columns of rows, [column][row].
SLIM_IN, SLIM_PRE, SLIM_OUT, SLIM_OUT_DELTA, SLIM_IN_DELTA = 18, 19, 20, 21, 22
KIND = 23  # one of the kinds below
RUNNING = 24  # running mean and variance of a batch normalisation, [2][panel][lane]
# What a normalisation keeps of a step. Of a batch: mean, variance, 1 / sqrt(variance + epsilon),
# dL/dweight, dL/dbias, [5][panel][lane]. Of rows: mean and 1 / sqrt, [2][row].
KEPT = 25
NUMBERS = 26  # the layer's own numbers, in the network's dtype: see the entries below
DROPPED = 27  # a random number of 32 bits below this drops its element
LAYER_COLUMNS = 28

# Kinds of layers, and of tiles. A normalisation that is not trained goes by its running statistics;
# a tile of a bias alone belongs to a dense layer whose weight is not trained.
DENSE, BATCH_NORM, LAYER_NORM, DROPOUT, FROZEN_NORM, BIAS_ALONE = 0, 1, 2, 3, 4, 5

# Entries of a layer's own numbers.
EPSILON, MOMENTUM, KEPT_SCALE = 0, 1, 2

# Columns of the table of tiles, two cache lines each, in the order in which phase B visits what is
# trained: of a weight the squares of one input panel and one output panel. Positions as in the
# layer table.
TILE_LAYER, TILE_INPUTS, TILE_OUTPUTS = 0, 1, 2  # which layer; rows and columns that count
TILE_WEIGHT = 3
TILE_BIAS = 4  # the panel's bias, in the first input panel's tile; -1 in all others
TILE_A, TILE_B = 5, 6  # the input panel's activations and the output panel's deltas
TILE_TRANSPOSED = 7
# The activations of the input panel after this one, and which of how many shares of them the tile
# asks the caches for: those of one input panel have one share each.
TILE_NEXT_A, TILE_SHARE, TILE_SHARES = 8, 9, 10
TILE_KIND = 11  # that of its layer; of a normalisation a tile is one panel of weights and biases
# Place among the squares of all tiles: a matter of shapes alone, as the order of visits is not.
TILE_NUMBER = 12
TILE_COLUMNS = 16

# Entries of the head.
N_LAYERS, CAPACITY, ZEROS, PARAMETERS, MOMENT_1, MOMENT_2, GRADIENT = 0, 1, 2, 3, 4, 5, 6
ROW_LOSS, TILE_SQUARES, N_TILES, INFER_ROWS, DECAY_BIAS = 7, 8, 9, 10, 11
LOSS, UPDATE, SCRATCH, MAXIMA = 12, 13, 14, 15
FEW = 16  # rows up to which a step counts as one of few
STALE = 17  # 1 while steps of few rows have updated weights and not their transposed copies
SLIM_LAYERS, SLIM_STRIDE = 18, 19  # how many; elements from one column of rows to the next
BACK_TO = 20  # the first layer that deltas go back through in training
HEAD_ENTRIES = 21

#: Rows of one inference block: enough to use every weight panel many times, and a block of a
#: 512-wide layer stays in half of an L2 of 512 KiB.
INFER_BLOCK = 64
#: Rows that one thread takes at a time in phase A: activations of one block of a 512-wide network
#: stay in half of L2, and a weight panel read from L2 serves 16 tiles of 8 rows.
MAX_BLOCK = 128
#: Bytes of a row of A that one pass over a layer multiplies: a slice of a weight panel (256 steps
#: of float32, 32 KiB) then serves all rows of a block from the first-level cache. Forward and data
#: gradient of 2048-2048-2048-2048, batch 512: 0.92 of the FMA peak, whole panels 0.84; 512 to 1536
#: bytes are alike.
CHUNK_BYTES = 1024
#: Rows of the batch that one pass of a weight gradient adds up: the two panels of a tile (16 KiB
#: each of float32) stay in the first-level cache (784x512, batch 256: 0.97 of peak, else 0.95).
BATCH_CHUNK = 128
#: Bytes of weights from which a layer asks for its next panel while it works on one (2048x2048:
#: 0.92 of peak, without 0.74 to 0.84). Smaller layers stay in L2, and asking costs 1 %.
FAR_WEIGHTS = 1 << 19
#: Bytes of parameters from which a weight tile asks for its own while its gradient is computed, and
#: for its share of the next input panel. 784-512-512-10 with Adam is 8 % faster by its own and 2 to
#: 3 % more by its share, 6 to 10 % by both in float64; 1024-2048-2048-1024 with SGD 3 % by its
#: share, 7 % in float64. 784-128-10 of float32 (0.4 MB) is slower, of float64 (0.8 MB) 2 % faster.
FAR_PARAMETERS = 1 << 19
#: Bytes of the deltas that neighbouring weight tiles share, and of a layer's input activations up
#: to which they share one output panel only: the tiles' parameters then lie one after the other in
#: memory (784-128-10: 2 %).
BAND_BYTES, INPUT_BYTES = 1 << 18, 1 << 19
#: Rows of a step up to which deltas go back through the weights as they lie, without a transposed
#: copy, and a gradient is computed in the registers of its update: (bytes of parameters from which
#: they hold, rows). What it saves is memory traffic; what it costs grows with the rows. Measured
#: with momentum against tall tiles: 20-64-64-2 1.1 times as fast with 4 rows, 0.9 with 8;
#: 784-512-512-10 1.1 with 5, 1.0 with 8; six layers of 1024 2.1 with 4, 1.8 with 12, 1.4 with 24.
FEW_ROWS = ((0, 4), (1 << 20, 8), (1 << 24, 24))
#: Weight tiles from which gradient and update of a tile are one visit. Below, all gradients stay in
#: the first-level cache, and their squares cost less than the bound that proves them finite.
FUSE_FROM = 5
#: Outputs of a tile up to which, and rows of a batch from which, its gradient has inputs for lanes.
#: At most as many as a scratch's panel rows beside its tile. A register of one output in 16 lanes
#: is 15 of nothing (4096-1: 16 cycles a row and tile, with inputs for lanes 4; turning it back
#: takes as long as some 10 rows).
TURNED_OUTPUTS, TURNED_ROWS = 4, 32
#: Rows that slim layers work on together: four registers of float32 at 64 bytes.
SLIM_ROWS = 64
#: Rows of a block where all layers are slim: the calls of each cost little then, and a block
#: of 20 layers of one column stays in L2.
SLIM_BLOCK = 512
#: Rows of the tallest register tile; blocks are multiples of it.
TILE_ROWS = 8


#: Rows a thread up to which phase A may deal out columns.
COLUMNS_ROWS = 32


def goes_by_columns(
    layers: NDArray[np.int64], n_parameters: int, rows: int, n_threads: int
) -> bool:
    """Return whether a team deals out a layer's columns in phase A, rather than the rows.

    By rows every thread reads all weights, of which the others updated their share; by columns all
    activations and deltas, of which the others computed theirs: what is less goes to and fro.
    """
    if n_threads == 1 or rows > COLUMNS_ROWS * n_threads:
        return False
    columns = 0
    for index in range(layers.shape[0]):
        columns += layers[index, INPUTS] + layers[index, OUTPUTS]
    return bool(rows * columns < n_parameters)


def scratch_size(lanes: int) -> int:
    """Elements of one thread's own scratch: a square tile and four panel rows."""
    return lanes * lanes + 4 * lanes


def maxima(n_layers: int) -> int:
    """Panel rows in which a thread notes a step's largest numbers, lane by lane.

    Two a layer: its input activations, and dL/d(its output).
    """
    return 2 * n_layers


def panels(columns: int, lanes: int) -> int:
    """Panels that `columns` columns fill."""
    return -(-columns // lanes)
