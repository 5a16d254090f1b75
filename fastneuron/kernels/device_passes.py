"""The passes of a step as lists of calls of csrc/cuda/kernels.h on the buffers of an engine.

A list is made once for a number of rows: what changes from step to step is found through the step's
number on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.device_calls import Call, Device
from fastneuron.kernels.device_memory import Buffer, Chunk, State
from fastneuron.kernels.device_plan import blocks_of, row_groups
from fastneuron.kernels.device_state import DeviceRows
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["Cut", "Passes"]

#: Rows whose columns one block sums, where no product does.
GROUP = 128
# Blocks that a weight gradient's batch is cut for, and rows of a slice, at least: as the plan's.
_GRADIENT_BLOCKS = 288
_SLICE_ROWS = 256
# Blocks from which products take the large tile: as many as a large card has multiprocessors.
_LARGE_BLOCKS = 132


class Cut(NamedTuple):
    """How a product is cut: the tile's number, and its rows, columns and depth."""

    tile: int
    rows: int
    columns: int
    depth: int


class Passes:
    """Builds the passes of a network over the buffers of its engine.

    Parameters
    ----------
    tiles : tuple of int
        Numbers of the tiles in use: the large one and the small one.
    """

    def __init__(
        self, device: Device, spec: NetworkSpec, state: State, chunk: Chunk, tiles: tuple[int, int]
    ) -> None:
        self._spec, self._state, self._chunk = spec, state, chunk
        self._dtype = int(np.dtype(spec.dtype) == np.float64)
        self._cuts = [Cut(tile, *device.calls.tile(self._dtype, tile)) for tile in tiles]

    def scratch(self, rows: int) -> int:
        """Return the numbers that first stages of sums take."""
        least = min(GROUP, *(cut.rows for cut in self._cuts))
        sizes = [2 * row_groups(rows, least) * max(self._spec.sizes)]
        for layer in self._spec.layers:
            if isinstance(layer, Dense):
                inputs, outputs = layer.weight_shape
                slices = self._most_slices(rows, inputs, outputs)
                sizes.append(slices * inputs * outputs if slices > 1 else 0)
        return max(sizes)

    def gather(
        self, batch: DeviceRows, rows: int, data: Sequence[Buffer], *, weighted: bool, classes: bool
    ) -> list[Call]:
        """Return what copies a step's rows out of data: x, y, weights, class numbers."""
        where = self._chunk.order.address, self._chunk.bounds.address, self._chunk.state.address
        x, y, weight, labels = data
        width = int(self._spec.in_features), int(self._spec.out_features)
        found = [(self._dtype, x, batch.a[0], width[0])]
        found.append(
            (2, labels, batch.classes, 1) if classes else (self._dtype, y, batch.y, width[1])
        )
        if weighted:
            found.append((self._dtype, weight, batch.weight, 1))
        return [
            (
                "gather",
                (dtype, source.address, *where, to.address, source.size // columns, rows, columns),
            )
            for dtype, source, to, columns in found
        ]

    def forward(self, work: DeviceRows, rows: int) -> list[Call]:
        """Return the forward pass: in training where the buffers are for that."""
        calls: list[Call] = []
        for index, layer in enumerate(self._spec.layers):
            ends = work.a[index].address, work.a[index + 1].address
            if isinstance(layer, Dense):
                calls.append(self._dense_forward(work, rows, index, layer))
            elif isinstance(layer, Dropout):
                if work.training:
                    calls.append(self._dropout(index, layer, *ends, rows))
            else:
                assert isinstance(layer, (BatchNorm, LayerNorm))
                calls += self._norm_forward(work, rows, index, layer)
        return calls

    def loss(
        self, batch: DeviceRows, rows: int, loss: Loss, *, weighted: bool, classes: bool
    ) -> list[Call]:
        """Return what makes the batch's loss and the gradient by the output."""
        targets = (0, batch.classes.address) if classes else (batch.y.address, 0)
        weight = batch.weight.address if weighted else 0
        ends = batch.losses.address, batch.d[-1].address, rows, int(self._spec.out_features)
        out = batch.a[-1].address
        rows_of = "loss_rows", (self._dtype, loss.code, out, *targets, weight, *ends)
        return [rows_of, self.mean_loss(batch, rows)]

    def mean_loss(self, batch: DeviceRows, rows: int) -> Call:
        """Return what makes the batch's loss from those of its rows."""
        c = self._chunk
        state = c.losses.address, c.state.address, rows
        return "batch_loss", (self._dtype, batch.losses.address, *state)

    def backward(self, batch: DeviceRows, rows: int, *, need_dx: bool) -> list[Call]:
        """Return the backward pass from the gradient by the output, which stands in ``d[-1]``.

        It ends at the first layer that is trained, or with dL/dx in ``d[0]``.
        """
        layers = self._spec.layers
        trained = [i for i, each in enumerate(layers) if each.trains_weight or each.trains_bias]
        first = 0 if need_dx else min(trained, default=len(layers))
        calls: list[Call] = []
        gated = False  # whether the product above has done this layer's gate and column sums
        for index in reversed(range(first, len(layers))):
            layer = layers[index]
            goes_on = index > first or need_dx
            if not gated:
                calls += self._gate(batch, rows, index)
            gated = isinstance(layer, Dense)
            if isinstance(layer, Dense):
                if layer.trains_weight:
                    calls += self._weight_gradient(batch, rows, index, layer)
                if goes_on:
                    calls += self._data_gradient(batch, rows, index, layer)
            elif isinstance(layer, Dropout):
                if goes_on:
                    ends = batch.d[index + 1].address, batch.d[index].address
                    calls.append(self._dropout(index, layer, *ends, rows))
            else:
                assert isinstance(layer, (BatchNorm, LayerNorm))
                calls += self._norm_backward(batch, rows, index, layer, goes_on)
        return calls

    def apply(self, batch: DeviceRows, rows: int, optimizer: Optimizer, norms: int) -> list[Call]:
        """Return the update of a step whose loss and gradient are finite, and its end."""
        state, c = self._state, self._chunk
        found: list[Call] = []
        if state.size:
            step = c.scalars.address, c.state.address, state.size
            clip = self._dtype, state.g.address, state.marks.address, norms, *step
            moments = [*(each.address for each in state.moments), 0, 0][:2]
            flat = state.p.address, state.g.address, *moments, state.marks.address
            update = self._dtype, int(optimizer.kind), *flat, *step
            found += [("clip", clip), ("update", update)]
        for index, layer in enumerate(self._spec.layers):
            running, moments_of = state.statistics[index], batch.moments[index]
            if isinstance(layer, BatchNorm) and layer.uses_batch and running and moments_of:
                places = [each.address for each in (*moments_of[:2], *running)]
                ends = layer.momentum, rows, int(layer.out_features), c.state.address
                found.append(("move_statistics", (self._dtype, *places, *ends)))
        return [*found, ("advance", (c.state.address,))]

    # Products

    def _cut(self, rows: int, columns: int) -> Cut:
        large, small = self._cuts
        blocks = blocks_of(rows, large.rows) * blocks_of(columns, large.columns)
        return large if blocks >= _LARGE_BLOCKS else small

    def _most_slices(self, rows: int, inputs: int, outputs: int) -> int:
        cut = self._cut(inputs, outputs)
        blocks = blocks_of(inputs, cut.rows) * blocks_of(outputs, cut.columns)
        return max(1, min(_GRADIENT_BLOCKS // blocks, rows // _SLICE_ROWS))

    def _dense_forward(self, work: DeviceRows, rows: int, index: int, layer: Dense) -> Call:
        inputs, outputs = layer.weight_shape
        z, state = work.z[index], self._state
        places = (
            work.a[index].address,
            state.place(state.p, index, "weight"),
            state.place(state.p, index, "bias"),
            work.a[index + 1].address,
            0 if z is None else z.address,
        )
        head = self._dtype, self._cut(rows, outputs).tile, ACTIVATIONS[layer.activation].code
        return "forward", (*head, *places, rows, inputs, outputs)

    def _weight_gradient(
        self, batch: DeviceRows, rows: int, index: int, layer: Dense
    ) -> list[Call]:
        inputs, outputs = layer.weight_shape
        cut = self._cut(inputs, outputs)
        most = self._most_slices(rows, inputs, outputs)
        each = blocks_of(blocks_of(rows, most), cut.depth) * cut.depth
        slices = blocks_of(rows, each)
        gradient = self._state.place(self._state.g, index, "weight")
        out = batch.scratch.address if slices > 1 else gradient
        places = batch.a[index].address, batch.d[index + 1].address, out
        sizes = rows, inputs, outputs, each
        calls: list[Call] = [("weight_gradient", (self._dtype, cut.tile, *places, *sizes))]
        if slices > 1:
            calls.append(self._sum(out, gradient, slices, inputs * outputs))
        return calls

    def _data_gradient(
        self, batch: DeviceRows, rows: int, index: int, layer: Dense
    ) -> Iterator[Call]:
        """Make dz of the layer below with its bias gradient, or dL/dx, which has no gate."""
        inputs, outputs = layer.weight_shape
        cut, below = self._cut(rows, inputs), index - 1
        code, saved, partial = 0, 0, 0
        if index and not isinstance(self._spec.layers[below], Dropout):
            code = ACTIVATIONS[self._spec.layers[below].activation].code
            saved = batch.saved(below).address if code else 0
        bias = self._bias_gradient(below) if index else 0
        partial = batch.scratch.address if bias else 0
        weight = self._state.place(self._state.p, index, "weight")
        places = batch.d[index + 1].address, weight, saved, batch.d[index].address, partial
        yield (
            "data_gradient",
            (self._dtype, cut.tile, code, *places, rows, inputs, outputs),
        )
        if bias:
            yield self._sum(partial, bias, blocks_of(rows, cut.rows), inputs)

    # Passes

    def _bias_gradient(self, index: int) -> int:
        """Return the address of the bias gradient that is the column sum of a layer's dz, or 0."""
        layer = self._spec.layers[index]
        sums = isinstance(layer, Dense) and layer.trains_bias
        return self._state.place(self._state.g, index, "bias") if sums else 0

    def _gate(self, batch: DeviceRows, rows: int, index: int) -> Iterator[Call]:
        """Gate and bias gradient of a layer, where no product has done them."""
        layer, bias = self._spec.layers[index], self._bias_gradient(index)
        code = ACTIVATIONS[layer.activation].code
        if isinstance(layer, Dropout) or (code == 0 and not bias):
            return
        width, d = int(layer.out_features), batch.d[index + 1].address
        partial = batch.scratch.address if bias else 0
        places = d, batch.saved(index).address, d, partial
        yield "act_bias_backward", (self._dtype, code, *places, rows, width, GROUP)
        if bias:
            yield self._sum(partial, bias, row_groups(rows, GROUP), width)

    def _sum(self, parts: int, sums: int, count: int, n: int, factor: float = 1.0) -> Call:
        return "sum_parts", (self._dtype, parts, factor, sums, count, n)

    def _dropout(self, index: int, layer: Dropout, x: int, y: int, rows: int) -> Call:
        where = self._chunk.scalars.address, self._chunk.state.address
        numbers = index, layer.dropped, layer.rate, y, rows, int(layer.out_features)
        return "dropout", (self._dtype, x, *where, *numbers)

    def _norm_forward(
        self, work: DeviceRows, rows: int, index: int, layer: BatchNorm | LayerNorm
    ) -> Iterator[Call]:
        moments, width = work.moments[index], int(layer.out_features)
        assert moments is not None
        mean, variance, inverse = (each.address for each in moments)
        x, dtype, of_rows = work.a[index].address, self._dtype, isinstance(layer, LayerNorm)
        if isinstance(layer, LayerNorm):
            yield "row_moments", (dtype, x, layer.epsilon, mean, inverse, rows, width)
        elif work.training and layer.uses_batch:
            for around, out in ((0, mean), (mean, variance)):
                partial = work.scratch.address
                yield "spread", (dtype, x, around, partial, rows, width, GROUP)
                yield self._sum(partial, out, row_groups(rows, GROUP), width, 1 / rows)
            yield "inverse_root", (dtype, variance, layer.epsilon, inverse, width)
        else:
            running = self._state.statistics[index]
            assert running is not None
            mean, variance = (each.address for each in running)
            yield "inverse_root", (dtype, variance, layer.epsilon, inverse, width)
        z, state = work.z[index], self._state
        places = (
            state.place(state.p, index, "weight"),
            state.place(state.p, index, "bias"),
            work.a[index + 1].address,
            0 if z is None else z.address,
        )
        head = dtype, ACTIVATIONS[layer.activation].code, x, mean, inverse, int(of_rows)
        yield "norm_forward", (*head, *places, rows, width)

    def _norm_backward(
        self, batch: DeviceRows, rows: int, index: int, layer: BatchNorm | LayerNorm, goes_on: bool
    ) -> Iterator[Call]:
        """Weight and bias gradient of a normalisation, and the gradient by its input."""
        moments, width = batch.moments[index], int(layer.out_features)
        assert moments is not None
        mean, _, inverse = (each.address for each in moments)
        of_rows = isinstance(layer, LayerNorm)
        uses_batch = isinstance(layer, BatchNorm) and layer.uses_batch
        running = self._state.statistics[index]
        if running and not uses_batch:
            mean = running[0].address
        x, dy, dx = (each.address for each in (batch.a[index], batch.d[index + 1], batch.d[index]))
        sums = [each.address for each in batch.sums]
        if layer.trains_weight or layer.trains_bias or uses_batch:
            partial, groups = batch.scratch, row_groups(rows, GROUP)
            places = x, mean, inverse, int(of_rows), dy, partial.address
            yield "norm_sums", (self._dtype, *places, rows, width, GROUP)
            trains = layer.trains_weight, layer.trains_bias
            for i, name in enumerate(("weight", "bias")):
                if trains[i]:
                    sums[i] = self._state.place(self._state.g, index, name)
                yield self._sum(partial.at(i * groups * width), sums[i], groups, width)
        if not goes_on:
            return
        weight = self._state.place(self._state.p, index, "weight")
        head = self._dtype, x, mean, inverse, weight, dy
        if of_rows:
            yield "layer_backward", (*head, dx, rows, width)
        else:
            sums = sums if uses_batch else [0, 0]
            yield "batch_backward", (*head, *sums, dx, rows, width)
