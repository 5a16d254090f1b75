"""The passes of a step as lists of launches: which kernel, how many blocks, on which vectors.

A list is built once for a number of rows and launched again and again: nothing in it changes from
step to step, since what does is found through the step's number on the device. So it can be
recorded as a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastneuron.kernels.device_plan import Blocks, Tile, blocks_of, slices_of
from fastneuron.kernels.numba_cuda import columns, norms, products
from fastneuron.kernels.numba_cuda.driver import configured
from fastneuron.kernels.numba_cuda.dropout import dropout
from fastneuron.kernels.numba_cuda.rows import Rows
from fastneuron.kernels.numba_cuda.state import Chunk, State
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.spec import NetworkSpec

__all__ = ["Done", "Launch", "Passes", "prepared", "run_all"]


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: Any
    grid: Any
    block: Any
    arguments: tuple[Any, ...]
    shared: int = 0  # bytes of shared memory, where the launch decides


def prepared(launches: list[Launch], stream: Any) -> list[Callable[[], None]]:
    """Return what puts each of the launches on the stream."""
    return [
        partial(
            configured(each.kernel, each.grid, each.block, stream, each.shared), *each.arguments
        )
        for each in launches
    ]


def run_all(calls: list[Callable[[], None]]) -> None:
    """Put all prepared launches on their stream, in order."""
    for call in calls:
        call()


class Done(Enum):
    """How far the product above a layer has done the layer's gate and bias gradient."""

    NOTHING = auto()
    FIRST_STAGE = auto()  # the gate, and the sums of each row tile
    ALL = auto()


def _fours(count: int) -> bool:
    """Whether rows of that length start at multiples of four numbers."""
    return count % 4 == 0


@dataclass(frozen=True)
class Passes:
    """Builds the passes of a network over the vectors of its engine."""

    spec: NetworkSpec
    tile: Tile
    blocks: Blocks
    state: State
    chunk: Chunk

    def forward(self, rows: Rows, batch: int) -> list[Launch]:
        """Return the forward pass: in training where the rows are for that."""
        launches: list[Launch] = []
        for index, layer in enumerate(self.spec.layers):
            if isinstance(layer, Dense):
                launches += self._dense_forward(rows, batch, index, layer)
            elif isinstance(layer, Dropout):
                if rows.training:
                    ends = rows.a[index], rows.a[index + 1]
                    launches.append(self._dropout(index, layer, *ends, batch))
            elif isinstance(layer, LayerNorm):
                launches.append(self._layer_norm_forward(rows, batch, index, layer))
            else:
                assert isinstance(layer, BatchNorm)
                launches += self._batch_norm_forward(rows, batch, index, layer)
        return launches

    def backward(self, rows: Rows, batch: int, *, need_dx: bool) -> list[Launch]:
        """Return the backward pass from dL/d(output), which stands in the last of ``rows.d``.

        It ends at the first layer that is trained, or with dL/dx in ``rows.d[0]``.
        """
        layers = self.spec.layers
        trained = [i for i in range(len(layers)) if self._trains(i + 1)]
        first = 0 if need_dx else min(trained, default=len(layers))
        launches: list[Launch] = []
        done = Done.NOTHING
        for index in reversed(range(first, len(layers))):
            layer = layers[index]
            goes_on = index > first or need_dx
            if isinstance(layer, Dense) and layer.trains_weight:
                launches += self._gradients(rows, batch, index, layer, done)
            else:
                launches += self._finish(rows, batch, index, done)
            done = Done.NOTHING
            if isinstance(layer, Dense):
                # The column sums of the layer below go to the scratch vector last.
                if goes_on:
                    more, done = self._data_gradient(rows, batch, index, layer)
                    launches += more
            elif isinstance(layer, Dropout):
                if goes_on:
                    ends = rows.d[index + 1], rows.d[index]
                    launches.append(self._dropout(index, layer, *ends, batch))
            else:
                launches += self._norm_backward(rows, batch, index, goes_on)
        return launches

    def move_statistics(self, rows: Rows, batch: int) -> list[Launch]:
        """Return what moves the running statistics: nothing for a batch of one row."""
        launches = []
        T, threads = self._number, self.blocks.threads
        for index, layer in enumerate(self.spec.layers):
            pair, moments = self.state.statistics[index], rows.moments[index]
            if isinstance(layer, BatchNorm) and layer.uses_batch and pair and moments and batch > 1:
                numbers = T(layer.momentum), T(batch / (batch - 1)), layer.out_features
                arguments = (*pair, moments[0], moments[1], self.chunk.state, *numbers)
                grid = blocks_of(layer.out_features, threads)
                launches.append(Launch(norms.move_statistics(threads), grid, threads, arguments))
        return launches

    @property
    def _number(self) -> Any:
        return np.dtype(self.spec.dtype).type

    def _over_rows(self, batch: int) -> tuple[int, tuple[int, int]]:
        """Grid and block of kernels where lanes share a row."""
        return blocks_of(batch, self.blocks.rows), (self.blocks.lanes, self.blocks.rows)

    def _over_columns(self, batch: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Grid and block of kernels that sum columns over groups of rows."""
        b = self.blocks
        return (blocks_of(width, b.across), blocks_of(batch, b.group)), (b.across, b.down)

    @property
    def _columns(self) -> tuple[int, int, int]:
        return self.blocks.across, self.blocks.down, self.blocks.group

    def _sums(self, index: int) -> bool:
        """Whether the bias gradient of a layer is the column sum of its dz, and wanted."""
        layer = self.spec.layers[index]
        return isinstance(layer, Dense) and layer.trains_bias

    def _trains(self, count: int) -> bool:
        """Whether any of the first `count` layers is trained."""
        return any(each.trains_weight or each.trains_bias for each in self.spec.layers[:count])

    def _dense_forward(self, rows: Rows, batch: int, index: int, layer: Dense) -> list[Launch]:
        inputs, outputs = layer.weight_shape
        kernel = products.forward(
            self.tile,
            self.spec.dtype,
            layer.activation,
            bool(layer.bias),
            rows.keeps_z(index),
            _fours(inputs),
            _fours(outputs),
        )
        grid = blocks_of(outputs, self.tile.columns), blocks_of(batch, self.tile.rows)
        w, b = (self.state.of(self.state.p, index, name) for name in ("weight", "bias"))
        vectors = rows.a[index], w, b, rows.z[index], rows.a[index + 1]
        return [Launch(kernel, grid, self.tile.threads, (*vectors, batch, inputs, outputs))]

    def _finish(self, rows: Rows, batch: int, index: int, done: Done) -> list[Launch]:
        """What is left of a layer's gate and bias gradient."""
        if done is Done.NOTHING:
            return self._gate(rows, batch, index)
        if done is Done.FIRST_STAGE and self._sums(index):
            return [self._bias_gradient(rows, index, blocks_of(batch, self.tile.rows))]
        return []

    def _gradients(
        self, rows: Rows, batch: int, index: int, layer: Dense, done: Done
    ) -> list[Launch]:
        """The gradients of a layer, with what its gate has left to do."""
        ends = self._finish(rows, batch, index, done)
        return [*ends, *self._weight_gradient(rows, batch, index, layer)]

    def _gate(self, rows: Rows, batch: int, index: int) -> list[Launch]:
        """f' and the bias gradient of a layer, where no product has done them."""
        layer, sums = self.spec.layers[index], self._sums(index)
        if layer.activation == "identity" and not sums:
            return []
        width = int(layer.out_features)
        kernel = columns.gate(self.spec.dtype, layer.activation, sums, *self._columns)
        d = rows.d[index + 1]
        arguments = (d, rows.saved(index), d, rows.scratch, batch, width)
        launches = [Launch(kernel, *self._over_columns(batch, width), arguments)]
        if sums:
            groups = blocks_of(batch, self.blocks.group)
            launches.append(self._bias_gradient(rows, index, groups))
        return launches

    def second_stage(self, partials: Any, out: Any, groups: int, count: int) -> Launch:
        """Return what sums the partial sums of `groups` blocks."""
        across, down, _ = self._columns
        kernel = columns.sum_partials(self.spec.dtype, across, down)
        arguments = partials, out, groups, count
        return Launch(kernel, blocks_of(count, across), (across, down), arguments)

    def _bias_gradient(self, rows: Rows, index: int, groups: int) -> Launch:
        gradient = self.state.of(self.state.g, index, "bias")
        width = int(self.spec.layers[index].out_features)
        return self.second_stage(rows.scratch, gradient, groups, width)

    def _weight_gradient(self, rows: Rows, batch: int, index: int, layer: Dense) -> list[Launch]:
        inputs, outputs = layer.weight_shape
        tile, gradient = self.tile, self.state.of(self.state.g, index, "weight")
        slices, each = slices_of(batch, inputs, outputs, tile)
        kernel = products.weight_gradient(tile, self.spec.dtype, _fours(inputs), _fours(outputs))
        grid = blocks_of(outputs, tile.columns), blocks_of(inputs, tile.rows), slices
        partials = gradient if slices == 1 else rows.scratch
        vectors = rows.a[index], rows.d[index + 1], partials
        numbers = batch, inputs, outputs, each
        launches = [Launch(kernel, grid, tile.threads, (*vectors, *numbers))]
        if slices > 1:
            launches.append(self.second_stage(partials, gradient, slices, inputs * outputs))
        return launches

    def _data_gradient(
        self, rows: Rows, batch: int, index: int, layer: Dense
    ) -> tuple[list[Launch], Done]:
        """Make dz of the layer below, or dL/dx, which has no gate; say how far that one is done."""
        inputs, outputs = layer.weight_shape
        below = index - 1
        activation = self.spec.layers[below].activation if index else "identity"
        saved = rows.saved(below) if index else rows.none
        kernel = products.data_gradient(
            self.tile,
            self.spec.dtype,
            activation,
            bool(index) and self._sums(below),
            _fours(outputs),
            _fours(outputs),
        )
        grid = blocks_of(inputs, self.tile.columns), blocks_of(batch, self.tile.rows)
        w = self.state.of(self.state.p, index, "weight")
        vectors = rows.d[index + 1], w, saved, rows.d[index], rows.scratch
        launch = Launch(kernel, grid, self.tile.threads, (*vectors, batch, outputs, inputs))
        return [launch], Done.FIRST_STAGE

    def _dropout(self, index: int, layer: Dropout, x: Any, y: Any, batch: int) -> Launch:
        width, threads = int(layer.out_features), self.blocks.threads
        grid = blocks_of(batch, 4), blocks_of(width, threads)
        scale = self._number(1 / (1 - layer.rate))
        numbers = index, layer.dropped, scale, batch, width
        arguments = (x, y, self.chunk.keys.array, self.chunk.state, *numbers)
        return Launch(dropout(self.spec.dtype, threads), grid, threads, arguments)

    def _layer_norm_forward(self, rows: Rows, batch: int, index: int, layer: LayerNorm) -> Launch:
        width, moments = int(layer.out_features), rows.moments[index]
        assert moments is not None
        kernel = norms.layer_norm_forward(
            self.spec.dtype,
            layer.activation,
            layer.bias,
            rows.keeps_z(index),
            self.blocks.lanes,
            self.blocks.rows,
        )
        w, b = (self.state.of(self.state.p, index, name) for name in ("weight", "bias"))
        vectors = rows.a[index], w, b, moments[0], moments[2], rows.z[index], rows.a[index + 1]
        numbers = self._number(1 / width), self._number(layer.epsilon), batch, width
        return Launch(kernel, *self._over_rows(batch), (*vectors, *numbers))

    def _batch_norm_forward(
        self, rows: Rows, batch: int, index: int, layer: BatchNorm
    ) -> list[Launch]:
        width, moments = int(layer.out_features), rows.moments[index]
        assert moments is not None
        x, (mean, variance, inverse) = rows.a[index], moments
        threads, dtype = self.blocks.threads, self.spec.dtype
        over = blocks_of(width, threads), threads
        epsilon = self._number(layer.epsilon)
        launches = []
        if rows.training and layer.uses_batch:
            numbers = (
                self._number(1 / batch), epsilon, blocks_of(batch, self.blocks.group), width,
            )  # fmt: skip
            for spread, out in ((False, mean), (True, variance)):
                kernel = columns.column_spread(dtype, spread, *self._columns)
                arguments: tuple[Any, ...] = (x, mean, rows.scratch, batch, width)
                launches.append(Launch(kernel, *self._over_columns(batch, width), arguments))
                kernel = columns.batch_moments(dtype, spread, threads)
                launches.append(Launch(kernel, *over, (rows.scratch, out, inverse, *numbers)))
        else:
            pair = self.state.statistics[index]
            assert pair is not None
            mean, variance = pair
            kernel = norms.running_inverse(dtype, threads)
            launches.append(Launch(kernel, *over, (variance, inverse, epsilon, width)))
        keeps_z, cut = rows.keeps_z(index), (self.blocks.lanes, self.blocks.rows)
        kernel = norms.norm_forward(dtype, layer.activation, layer.bias, keeps_z, *cut)
        w, b = (self.state.of(self.state.p, index, name) for name in ("weight", "bias"))
        vectors = x, mean, inverse, w, b, rows.z[index], rows.a[index + 1]
        launches.append(Launch(kernel, *self._over_rows(batch), (*vectors, batch, width)))
        return launches

    def _norm_backward(self, rows: Rows, batch: int, index: int, goes_on: bool) -> list[Launch]:
        """Weight and bias gradient of a normalisation, and dL/d(its input)."""
        layer, moments = self.spec.layers[index], rows.moments[index]
        assert moments is not None
        width, dtype = int(layer.out_features), self.spec.dtype
        mean, _, inverse = moments
        by_column = isinstance(layer, BatchNorm)
        uses_batch = isinstance(layer, BatchNorm) and layer.uses_batch
        if isinstance(layer, BatchNorm) and not uses_batch:
            pair = self.state.statistics[index]
            assert pair is not None
            mean = pair[0]
        x, dy, dx = rows.a[index], rows.d[index + 1], rows.d[index]
        launches = []
        sums = list(rows.sums)
        if layer.trains_weight or layer.trains_bias or uses_batch:
            kernel = columns.norm_sums(dtype, by_column, *self._columns)
            arguments: tuple[Any, ...] = (x, dy, mean, inverse, rows.scratch, batch, width)
            launches.append(Launch(kernel, *self._over_columns(batch, width), arguments))
            groups = blocks_of(batch, self.blocks.group)
            trains = layer.trains_weight, layer.trains_bias
            for k, name in enumerate(("weight", "bias")):
                if trains[k]:
                    sums[k] = self.state.of(self.state.g, index, name)
                partials = rows.scratch[k * groups * width : (k + 1) * groups * width]
                launches.append(self.second_stage(partials, sums[k], groups, width))
        if not goes_on:
            return launches
        w, cut = self.state.of(self.state.p, index, "weight"), self._over_rows(batch)
        if by_column:
            kernel = norms.batch_norm_backward(dtype, uses_batch, *cut[1])
            ends = self._number(1 / batch), batch, width
            launches.append(Launch(kernel, *cut, (x, dy, mean, inverse, w, *sums, dx, *ends)))
        else:
            kernel = norms.layer_norm_backward(dtype, *cut[1])
            ends = self._number(1 / width), batch, width
            launches.append(Launch(kernel, *cut, (x, dy, mean, inverse, w, dx, *ends)))
        return launches
