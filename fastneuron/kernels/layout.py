"""The blocked layout of a training engine: one arena, and a table of where everything lies in it.

A matrix of N columns is stored as ceil(N / P) panels of P columns, each panel contiguous row after
row: ``[panel][row][lane]``. Weights are (in_features, out_features) panels over the outputs, so
their rows are the inputs; the transposed copy that the data gradient reads has panels over the
inputs. Activations and deltas have panels over the features and one row a sample of the batch. The
columns that fill up a last panel hold zero weights and zero deltas and are never read as inputs.

Kernels get the arena (one vector of the network's dtype) and two int64 tables, `head` and `layers`,
so that one compiled worker serves every network.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Array, Parameters
from fastneuron.spec import NetworkSpec

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
FIRST_TILE = 14  # number of the layer's first weight tile
INFER_IN, INFER_OUT = 15, 16  # the two places that inference goes to and fro between
SLIM = 17  # 1 for a layer that works on columns where rows are many, see `slim_layers`
# Places of such a layer's columns of rows, [column][row].
SLIM_IN, SLIM_PRE, SLIM_OUT, SLIM_OUT_DELTA, SLIM_IN_DELTA = 18, 19, 20, 21, 22
LAYER_COLUMNS = 23

# Columns of the table of weight tiles, two cache lines each: the squares of one input panel and one
# output panel in the order in which phase B visits them. Positions as in the layer table.
TILE_LAYER, TILE_INPUTS, TILE_OUTPUTS = 0, 1, 2  # which layer; rows and columns that count
TILE_WEIGHT = 3
TILE_BIAS = 4  # the panel's bias, in the first input panel's tile; -1 in all others
TILE_A, TILE_B = 5, 6  # the input panel's activations and the output panel's deltas
TILE_TRANSPOSED = 7
# The activations of the input panel after this one, and which of how many shares of them the tile
# asks the caches for: those of one input panel have one share each.
TILE_NEXT_A, TILE_SHARE, TILE_SHARES = 8, 9, 10
TILE_COLUMNS = 16

# Entries of the head.
N_LAYERS, CAPACITY, ZEROS, PARAMETERS, MOMENT_1, MOMENT_2, GRADIENT = 0, 1, 2, 3, 4, 5, 6
ROW_LOSS, TILE_SQUARES, N_TILES, INFER_ROWS, DECAY_BIAS = 7, 8, 9, 10, 11
LOSS, UPDATE, SCRATCH, MAXIMA = 12, 13, 14, 15
FEW = 16  # rows up to which a step counts as one of few
STALE = 17  # 1 while steps of few rows have updated weights and not their transposed copies
SLIM_LAYERS, SLIM_STRIDE = 18, 19  # how many; elements from one column of rows to the next
HEAD_ENTRIES = 20

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


def few_rows(parameter_bytes: int) -> int:
    """Rows up to which a step counts as one of few, see `FEW_ROWS`."""
    most = 0
    for size, rows in FEW_ROWS:
        if parameter_bytes >= size:
            most = rows
    return most


def odd_tiles(rows: int) -> int:
    """Rows that panels of `rows` rows stand apart: an odd number of tiles.

    Panels a power of two apart fall on the same few cache sets: with 64 KiB between them a block
    of rows has a quarter of L2 to live in.
    """
    return (-(-rows // TILE_ROWS) | 1) * TILE_ROWS


def slim_layers(sizes: tuple[int, ...], lanes: int) -> list[bool]:
    """Return which layers work on columns of rows where a batch has `SLIM_ROWS` rows or more.

    Runs of layers with at most a quarter of a panel of inputs and of outputs; where a run begins or
    ends inside the network, rows are turned into columns or back, which has to pay.
    """
    narrow = [max(pair) <= lanes // 4 for pair in pairwise(sizes)]
    chosen = [False] * len(narrow)
    first = 0
    while first < len(narrow):
        end = first
        while end < len(narrow) and narrow[end]:
            end += 1
        turns = (first > 0) + (end < len(narrow))
        if end - first > turns:
            chosen[first:end] = [True] * (end - first)
        first = end + 1
    return chosen


@dataclass(frozen=True)
class Layout:
    """Offsets of one network's training state, for one panel width and one batch capacity.

    Attributes
    ----------
    head, layers, tiles : int64 tables for the kernels.
    persistent : int
        Elements from the arena's start that must survive a growth of the capacity: zeros,
        parameters, moments and transposed weights. All after it is scratch.
    size : int
        Elements of the arena.
    """

    spec: NetworkSpec
    lanes: int
    capacity: int
    n_threads: int
    head: NDArray[np.int64]
    layers: NDArray[np.int64]
    tiles: NDArray[np.int64]
    n_parameters: int
    persistent: int
    size: int

    @classmethod
    def build(cls, spec: NetworkSpec, lanes: int, capacity: int, n_threads: int) -> Layout:
        """Lay out `spec` for batches of up to `capacity` rows and `n_threads` threads."""
        head = np.zeros(HEAD_ENTRIES, np.int64)
        table = np.zeros((len(spec.layers), LAYER_COLUMNS), np.int64)
        sizes = spec.sizes
        capacity = odd_tiles(capacity)

        offset = tiles = 0
        for row, layer, inputs, outputs in zip(table, spec.layers, sizes, sizes[1:], strict=False):
            activation = ACTIVATIONS[layer.activation]
            row[[INPUTS, OUTPUTS, ACTIVATION, HAS_BIAS]] = (
                inputs,
                outputs,
                activation.code,
                layer.bias,
            )
            row[WEIGHT] = offset
            offset += panels(outputs, lanes) * inputs * lanes
            row[BIAS] = offset if layer.bias else -1
            offset += panels(outputs, lanes) * lanes if layer.bias else 0
            row[FIRST_TILE] = tiles
            tiles += panels(outputs, lanes) * panels(inputs, lanes)
        n_parameters = offset

        place = _Allocator(lanes)
        head[ZEROS] = place(lanes)
        for region in (PARAMETERS, MOMENT_1, MOMENT_2):
            head[region] = place(n_parameters)
        for row in table:
            row[START] = head[ZEROS] if row[BIAS] < 0 else head[PARAMETERS] + row[BIAS]
            row[TRANSPOSED] = place(panels(row[INPUTS], lanes) * row[OUTPUTS] * lanes)
        persistent = place.used

        head[GRADIENT] = place(n_parameters)
        head[TILE_SQUARES] = place(tiles)
        head[ROW_LOSS] = place(capacity)
        head[SCRATCH] = place(n_threads * scratch_size(lanes))
        head[MAXIMA] = place(n_threads * maxima(len(spec.layers)) * lanes)

        def rows(columns: int) -> int:
            return place(panels(columns, lanes) * capacity * lanes)

        activations, deltas = rows(sizes[0]), rows(sizes[0])
        infer_rows = odd_tiles(INFER_BLOCK * n_threads)
        widest = max(panels(size, lanes) for size in sizes) * infer_rows * lanes
        ping, pong = place(widest), place(widest)
        for index, (row, layer) in enumerate(zip(table, spec.layers, strict=True), 1):
            row[IN_ROWS], row[IN_DELTA] = activations, deltas
            activations = row[OUT_ROWS] = rows(row[OUTPUTS])
            saves_z = ACTIVATIONS[layer.activation].saves == "z"
            row[PRE_ROWS] = rows(row[OUTPUTS]) if saves_z else activations
            row[SAVED_ROWS] = row[PRE_ROWS]  # a replaces z in place where f' needs only a
            # Where nothing but the loss reads the last outputs, its deltas replace them in cache.
            read_once = index == len(table) and layer.activation == "identity"
            deltas = row[OUT_DELTA] = activations if read_once else rows(row[OUTPUTS])
            row[INFER_IN], row[INFER_OUT] = ping, pong
            ping, pong = pong, ping

        table[:, SLIM] = slim_layers(sizes, lanes)
        head[SLIM_LAYERS] = table[:, SLIM].sum()
        head[SLIM_STRIDE] = -(-capacity // SLIM_ROWS) * SLIM_ROWS
        columns: tuple[int, int] | None = None
        for row, layer in zip(table, spec.layers, strict=True):
            if not row[SLIM]:
                columns = None
                continue
            values, deltas = columns or [place(row[INPUTS] * head[SLIM_STRIDE]) for _ in range(2)]
            row[SLIM_IN], row[SLIM_IN_DELTA] = values, deltas
            size = row[OUTPUTS] * head[SLIM_STRIDE]
            row[SLIM_OUT], row[SLIM_OUT_DELTA] = columns = place(size), place(size)
            saves_z = ACTIVATIONS[layer.activation].saves == "z"
            row[SLIM_PRE] = place(size) if saves_z else row[SLIM_OUT]

        head[N_LAYERS], head[CAPACITY], head[N_TILES] = len(spec.layers), capacity, tiles
        head[INFER_ROWS] = infer_rows
        head[FEW] = few_rows(n_parameters * np.dtype(spec.dtype).itemsize)
        return cls(
            spec,
            lanes,
            capacity,
            n_threads,
            head,
            table,
            tile_table(table, lanes, capacity * lanes, np.dtype(spec.dtype).itemsize),
            n_parameters,
            persistent,
            place.used,
        )

    def pack(self, parameters: Parameters, region: Array) -> None:
        """Write row-major parameters into a parameter-shaped region of the arena."""
        for row, (weight, bias) in zip(self.layers, parameters, strict=True):
            self._weight_view(region, row)[...] = to_panels(weight, self.lanes)
            if bias is not None:
                view = self._bias_view(region, row)
                view[: bias.size] = bias
                view[bias.size :] = 0

    def unpack(self, region: Array) -> Parameters:
        """Return fresh row-major copies of a parameter-shaped region."""
        result: Parameters = []
        for row in self.layers:
            weight = from_panels(self._weight_view(region, row), int(row[OUTPUTS]))
            bias = self._bias_view(region, row)[: row[OUTPUTS]].copy() if row[HAS_BIAS] else None
            result.append((weight, bias))
        return result

    def _weight_view(self, region: Array, row: NDArray[np.int64]) -> Array:
        inputs, count = int(row[INPUTS]), panels(int(row[OUTPUTS]), self.lanes)
        start = int(row[WEIGHT])
        view = region[start : start + count * inputs * self.lanes]
        return view.reshape(count, inputs, self.lanes)

    def _bias_view(self, region: Array, row: NDArray[np.int64]) -> Array:
        start = int(row[BIAS])
        return region[start : start + panels(int(row[OUTPUTS]), self.lanes) * self.lanes]

    def transposed_view(self, arena: Array, layer: int) -> Array:
        """Return layer `layer`'s transposed weight, [panel of inputs][output][lane], as a view."""
        row = self.layers[layer]
        count, outputs = panels(int(row[INPUTS]), self.lanes), int(row[OUTPUTS])
        start = int(row[TRANSPOSED])
        return arena[start : start + count * outputs * self.lanes].reshape(
            count, outputs, self.lanes
        )

    def rows_view(self, arena: Array, offset: int, columns: int) -> Array:
        """Return a block of sample rows, [panel][row][lane], as a view."""
        count = panels(columns, self.lanes)
        size = count * self.capacity * self.lanes
        return arena[offset : offset + size].reshape(count, self.capacity, self.lanes)

    def explain(self) -> dict[str, Any]:
        """Sizes in bytes, for `Engine.plan`."""
        itemsize = np.dtype(self.spec.dtype).itemsize
        return {
            "panel_columns": self.lanes,
            "batch_capacity": self.capacity,
            "state_bytes": self.persistent * itemsize,
            "scratch_bytes": (self.size - self.persistent) * itemsize,
        }


class _Allocator:
    """Hands out offsets one after the other, each on a panel boundary."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.used = 0

    def __call__(self, elements: Any) -> int:
        start = self.used
        self.used += panels(int(elements), self.lanes) * self.lanes
        return start


def tile_table(
    layers: NDArray[np.int64], lanes: int, stride: int, itemsize: int
) -> NDArray[np.int64]:
    """Return the table of weight tiles of all layers; panels of rows are `stride` elements apart.

    Neighbours share the input panel, and stay in a band of output panels whose deltas stay in L2
    while the parameters stream by.
    """
    tables = []
    for index, layer in enumerate(layers):
        inputs, outputs = int(layer[INPUTS]), int(layer[OUTPUTS])
        band = max(1, BAND_BYTES // (stride * itemsize))
        if panels(inputs, lanes) * stride * itemsize <= INPUT_BYTES:
            band = 1
        q, p = np.meshgrid(np.arange(panels(outputs, lanes)), np.arange(panels(inputs, lanes)))
        order = np.lexsort((q.ravel(), p.ravel(), q.ravel() // band))
        q, p = q.ravel()[order], p.ravel()[order]
        table = np.empty((len(order), TILE_COLUMNS), np.int64)
        table[:, TILE_LAYER] = index
        table[:, TILE_INPUTS] = np.minimum(lanes, inputs - p * lanes)
        table[:, TILE_OUTPUTS] = np.minimum(lanes, outputs - q * lanes)
        table[:, TILE_WEIGHT] = layer[WEIGHT] + (q * inputs + p * lanes) * lanes
        has_bias = (p == 0) & (layer[BIAS] >= 0)
        table[:, TILE_BIAS] = np.where(has_bias, layer[BIAS] + q * lanes, -1)
        table[:, TILE_A] = layer[IN_ROWS] + p * stride
        table[:, TILE_B] = layer[OUT_DELTA] + q * stride
        table[:, TILE_TRANSPOSED] = layer[TRANSPOSED] + (p * outputs + q * lanes) * lanes
        tables.append(table)
    table = np.concatenate(tables)
    turns = np.flatnonzero(np.diff(table[:, TILE_A], prepend=-1))
    ends = np.append(turns[1:], len(table))
    for start, end in zip(turns, ends, strict=True):
        table[start:end, TILE_NEXT_A] = table[end % len(table), TILE_A]
        table[start:end, TILE_SHARE] = np.arange(end - start)
        table[start:end, TILE_SHARES] = end - start
    return table


def to_panels(matrix: Array, lanes: int) -> Array:
    """Return ``[panel][row][lane]`` of a (rows, columns) matrix, filled up with zeros."""
    n_rows, columns = matrix.shape
    blocked = np.zeros((panels(columns, lanes), n_rows, lanes), matrix.dtype)
    whole = columns // lanes
    if whole:
        cut = matrix[:, : whole * lanes].reshape(n_rows, whole, lanes)
        blocked[:whole] = cut.transpose(1, 0, 2)
    if columns % lanes:
        blocked[whole, :, : columns % lanes] = matrix[:, whole * lanes :]
    return blocked


def from_panels(blocked: Array, columns: int) -> Array:
    """Return a fresh C-contiguous (rows, columns) matrix of ``[panel][row][lane]``."""
    count, n_rows, lanes = blocked.shape
    matrix = blocked.transpose(1, 0, 2).reshape(n_rows, count * lanes)[:, :columns]
    # np.array, not ascontiguousarray: one panel that is exactly full would come back as a view.
    return np.array(matrix, order="C")


def aligned(elements: int, dtype: Any, alignment: int = 4096) -> Array:
    """Return an uninitialised vector whose first element stands on an `alignment`-byte boundary."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(elements * itemsize + alignment, np.uint8)
    skip = -raw.ctypes.data % alignment
    return raw[skip : skip + elements * itemsize].view(dtype)
