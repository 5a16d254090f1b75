"""The blocked layout of a training engine: one arena, and a table of where everything lies in it.

A matrix of N columns is stored as ceil(N / P) panels of P columns, each panel contiguous row after
row: ``[panel][row][lane]``. Weights are (in_features, out_features) panels over the outputs, so
their rows are the inputs; the transposed copy that the data gradient reads has panels over the
inputs. Activations and deltas have panels over the features and one row a sample of the batch. The
columns that fill up a last panel hold zero weights and zero deltas and are never read as inputs.
The weight of a normalisation, one number a feature, lies like a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels import columns as at
from fastneuron.kernels.contract import Array, Parameters, Statistics, clear_untrained
from fastneuron.kernels.tiles import kind_of, tile_table
from fastneuron.layers import BatchNorm, Dropout, LayerNorm
from fastneuron.spec import NetworkSpec


def few_rows(parameter_bytes: int) -> int:
    """Rows up to which a step counts as one of few, see `FEW_ROWS`."""
    most = 0
    for size, rows in at.FEW_ROWS:
        if parameter_bytes >= size:
            most = rows
    return most


def odd_tiles(rows: int) -> int:
    """Rows that panels of `rows` rows stand apart: an odd number of tiles.

    Panels a power of two apart fall on the same few cache sets: with 64 KiB between them a block
    of rows has a quarter of L2 to live in.
    """
    return (-(-rows // at.TILE_ROWS) | 1) * at.TILE_ROWS


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
        head = np.zeros(at.HEAD_ENTRIES, np.int64)
        table = np.zeros((len(spec.layers), at.LAYER_COLUMNS), np.int64)
        sizes, itemsize = spec.sizes, np.dtype(spec.dtype).itemsize
        capacity = odd_tiles(capacity)

        offset = 0
        for row, layer, inputs, outputs in zip(table, spec.layers, sizes, sizes[1:], strict=False):
            code = ACTIVATIONS[layer.activation].code
            row[[at.INPUTS, at.OUTPUTS, at.ACTIVATION, at.HAS_BIAS]] = (
                inputs,
                outputs,
                code,
                layer.bias,
            )
            row[at.KIND] = kind_of(layer)
            width = at.panels(outputs, lanes) * lanes
            row[at.WEIGHT] = offset
            offset += width * (inputs if row[at.KIND] == at.DENSE else layer.has_parameters)
            row[at.BIAS] = offset if layer.bias else -1
            offset += width if layer.bias else 0
            if isinstance(layer, Dropout):
                row[at.DROPPED] = layer.dropped
        n_parameters = offset

        place = _Allocator(lanes)
        head[at.ZEROS] = place(lanes)
        for region in (at.PARAMETERS, at.MOMENT_1, at.MOMENT_2):
            head[region] = place(n_parameters)
        for row, layer in zip(table, spec.layers, strict=True):
            row[at.START] = (
                head[at.ZEROS] if row[at.BIAS] < 0 else head[at.PARAMETERS] + row[at.BIAS]
            )
            if row[at.KIND] == at.DENSE:
                row[at.TRANSPOSED] = place(
                    at.panels(row[at.INPUTS], lanes) * row[at.OUTPUTS] * lanes
                )
            else:
                row[at.NUMBERS] = place(lanes)
            if layer.has_statistics:
                row[at.RUNNING] = place(2 * at.panels(row[at.OUTPUTS], lanes) * lanes)
        persistent = place.used

        head[at.GRADIENT] = place(n_parameters)
        head[at.ROW_LOSS] = place(capacity)
        head[at.SCRATCH] = place(n_threads * at.scratch_size(lanes))
        head[at.MAXIMA] = place(n_threads * at.maxima(len(spec.layers)) * lanes)

        def rows(columns: int) -> int:
            return place(at.panels(columns, lanes) * capacity * lanes)

        activations = rows(sizes[0])
        infer_rows = odd_tiles(at.INFER_BLOCK * n_threads)
        widest = max(at.panels(size, lanes) for size in sizes) * infer_rows * lanes
        ping, pong = place(widest), place(widest)
        for row, layer in zip(table, spec.layers, strict=True):
            row[at.IN_ROWS] = activations
            activations = row[at.OUT_ROWS] = rows(row[at.OUTPUTS])
            saves_z = ACTIVATIONS[layer.activation].saves == "z"
            row[at.PRE_ROWS] = rows(row[at.OUTPUTS]) if saves_z else activations
            row[at.SAVED_ROWS] = row[at.PRE_ROWS]  # a replaces z in place where f' needs only a
            row[at.INFER_IN], row[at.INFER_OUT] = ping, ping
            if row[at.KIND] == at.DENSE:
                row[at.INFER_OUT] = pong
                ping, pong = pong, ping
            if row[at.KIND] == at.BATCH_NORM:
                row[at.KEPT] = place(5 * at.panels(row[at.OUTPUTS], lanes) * lanes)
            elif row[at.KIND] == at.LAYER_NORM:
                row[at.KEPT] = place(2 * capacity)
        # Where nothing but the loss reads the last outputs, its deltas replace them in cache.
        read_once = spec.layers[-1].activation == "identity"
        deltas = activations if read_once else rows(sizes[-1])
        for row in table[::-1]:
            row[at.OUT_DELTA] = deltas
            if row[at.KIND] in (at.DENSE, at.LAYER_NORM):  # the others work in place
                deltas = rows(row[at.INPUTS])
            row[at.IN_DELTA] = deltas

        if not table[:, at.KIND].any():  # all are dense
            table[:, at.SLIM] = slim_layers(sizes, lanes)
        head[at.SLIM_LAYERS] = table[:, at.SLIM].sum()
        head[at.SLIM_STRIDE] = -(-capacity // at.SLIM_ROWS) * at.SLIM_ROWS
        columns: tuple[int, int] | None = None
        for row, layer in zip(table, spec.layers, strict=True):
            if not row[at.SLIM]:
                columns = None
                continue
            pair = columns or [place(row[at.INPUTS] * head[at.SLIM_STRIDE]) for _ in range(2)]
            row[at.SLIM_IN], row[at.SLIM_IN_DELTA] = pair
            size = row[at.OUTPUTS] * head[at.SLIM_STRIDE]
            row[at.SLIM_OUT], row[at.SLIM_OUT_DELTA] = columns = place(size), place(size)
            saves_z = ACTIVATIONS[layer.activation].saves == "z"
            row[at.SLIM_PRE] = place(size) if saves_z else row[at.SLIM_OUT]

        tiles = tile_table(spec.layers, table, lanes, capacity * lanes, itemsize)
        head[at.TILE_SQUARES] = place(len(tiles))
        head[at.N_LAYERS], head[at.CAPACITY], head[at.N_TILES] = (
            len(spec.layers),
            capacity,
            len(tiles),
        )
        head[at.INFER_ROWS], head[at.BACK_TO] = infer_rows, spec.back_to
        head[at.FEW] = few_rows(n_parameters * itemsize)
        return cls(
            spec,
            lanes,
            capacity,
            n_threads,
            head,
            table,
            tiles,
            n_parameters,
            persistent,
            place.used,
        )

    def pack(self, parameters: Parameters, region: Array) -> None:
        """Write row-major parameters into a parameter-shaped region of the arena."""
        for row, (weight, bias) in zip(self.layers, parameters, strict=True):
            if row[at.KIND] == at.DENSE:
                self._weight_view(region, row)[...] = to_panels(weight, self.lanes)
            elif weight.size:
                self._write_vector(region, row[at.WEIGHT], weight)
            if bias is not None:
                self._write_vector(region, row[at.BIAS], bias)

    def unpack(self, region: Array) -> Parameters:
        """Return fresh row-major copies of a parameter-shaped region."""
        result: Parameters = []
        for row, layer in zip(self.layers, self.spec.layers, strict=True):
            outputs = int(row[at.OUTPUTS])
            if row[at.KIND] == at.DENSE:
                weight = from_panels(self._weight_view(region, row), outputs)
            else:
                weight = self._vector(region, row[at.WEIGHT], layer.n_weights)
            bias = self._vector(region, row[at.BIAS], outputs) if row[at.HAS_BIAS] else None
            result.append((weight, bias))
        return result

    def unpack_gradient(self, arena: Array) -> Parameters:
        """Return fresh copies of the gradient; that of what is not trained is zero."""
        region = arena[self.head[at.GRADIENT] :][: self.n_parameters]
        gradient = self.unpack(region)
        clear_untrained(self.spec, gradient)
        return gradient

    def write_numbers(self, arena: Array) -> None:
        """Write the layers' own numbers."""
        for row, layer in zip(self.layers, self.spec.layers, strict=True):
            numbers = arena[row[at.NUMBERS] : row[at.NUMBERS] + self.lanes]
            if isinstance(layer, (BatchNorm, LayerNorm)):
                numbers[at.EPSILON] = layer.epsilon
            if isinstance(layer, BatchNorm):
                numbers[at.MOMENTUM] = layer.momentum
            if isinstance(layer, Dropout):
                numbers[at.KEPT_SCALE] = 1 / (1 - layer.rate)

    def pack_statistics(self, statistics: Statistics, arena: Array) -> None:
        """Write the running statistics of the layers that keep some."""
        for row, pair in zip(self.layers, statistics, strict=True):
            for which, values in enumerate(pair or ()):
                self._write_vector(arena, self._running(row, which), values)

    def unpack_statistics(self, arena: Array) -> Statistics:
        """Return fresh copies of the running statistics."""
        result: Statistics = []
        for row, layer in zip(self.layers, self.spec.layers, strict=True):
            if not layer.has_statistics:
                result.append(None)
                continue
            mean, variance = (
                self._vector(arena, self._running(row, which), int(row[at.OUTPUTS]))
                for which in (0, 1)
            )
            result.append((mean, variance))
        return result

    def _running(self, row: NDArray[np.int64], which: int) -> int:
        return (
            int(row[at.RUNNING]) + which * at.panels(int(row[at.OUTPUTS]), self.lanes) * self.lanes
        )

    def _write_vector(self, region: Array, start: Any, values: Array) -> None:
        """Write one number a feature, and zeros in the lanes that fill up the last panel."""
        width = at.panels(values.size, self.lanes) * self.lanes
        region[start : start + values.size] = values
        region[start + values.size : start + width] = 0

    def _vector(self, region: Array, start: Any, size: int) -> Array:
        return region[start : start + size].copy()

    def _weight_view(self, region: Array, row: NDArray[np.int64]) -> Array:
        inputs, count = int(row[at.INPUTS]), at.panels(int(row[at.OUTPUTS]), self.lanes)
        start = int(row[at.WEIGHT])
        view = region[start : start + count * inputs * self.lanes]
        return view.reshape(count, inputs, self.lanes)

    def transposed_view(self, arena: Array, layer: int) -> Array:
        """Return layer `layer`'s transposed weight, [panel of inputs][output][lane], as a view."""
        row = self.layers[layer]
        count, outputs = at.panels(int(row[at.INPUTS]), self.lanes), int(row[at.OUTPUTS])
        start = int(row[at.TRANSPOSED])
        return arena[start : start + count * outputs * self.lanes].reshape(
            count, outputs, self.lanes
        )

    def rows_view(self, arena: Array, offset: int, columns: int) -> Array:
        """Return a block of sample rows, [panel][row][lane], as a view."""
        count = at.panels(columns, self.lanes)
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
        self.used += at.panels(int(elements), self.lanes) * self.lanes
        return start


def to_panels(matrix: Array, lanes: int) -> Array:
    """Return ``[panel][row][lane]`` of a (rows, columns) matrix, filled up with zeros."""
    n_rows, columns = matrix.shape
    blocked = np.zeros((at.panels(columns, lanes), n_rows, lanes), matrix.dtype)
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
