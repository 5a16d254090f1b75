"""What a training step costs: predicted part by part from shapes, for any number of threads.

Compute is counted in *slots*: the time in which a core starts one vector multiply-add. A register
tile of r rows and v vectors spends ``max(r v, CHAINS, r + v)`` slots on each term of its sums: it
needs that many independent sums to hide an addition's latency, and its loads go at the same rate.
So low tiles and half panels (v = 1) cost more than their arithmetic; each tile pays once for its
start and stores, which is what short sums suffer from. Memory is counted in bytes, whose price
depends on how much is passed over before they are met again.

Phase A is as long as its busiest thread, which takes whole blocks of rows; phase B as long as an
equal share of the tiles, or as the whole tiles that one thread must take. What another core wrote
last is dear: activations, deltas and parameters all change hands once a step.

A layer that works on its rows' numbers one by one has no products: it costs passes over vectors. A
batch normalisation is met by all threads before and behind it, each way, and its panels of columns
are dealt out, whichever way the other layers go. What is not trained has no tiles in phase B.

Where the batch has fewer blocks of `TILE_ROWS` rows than there are threads, phase A leaves threads
idle. `StepModel.by_columns` says what it would take with each layer's panels dealt out instead, one
barrier a layer: the same sums in the same order, so the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.columns import FUSE_FROM, panels
from fastneuron.kernels.prices import ACTIVATIONS, OTHER_ACTIVATION, Prices, tile_heights
from fastneuron.kernels.speeds import Speeds
from fastneuron.kernels.tiles import kind_of
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec


class Part(NamedTuple):
    """One line of the estimate.

    Attributes
    ----------
    phase : "A", "B" or "team"
    name : str
    layer : int or None
    seconds : float
        Its share of the time of the busiest thread.
    multiply_adds : int
        Of the whole step, on all threads.
    """

    phase: str
    name: str
    layer: int | None
    seconds: float
    multiply_adds: int


@dataclass(frozen=True)
class Estimate:
    """A predicted step: its parts, which sum up to it."""

    threads: int
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Predicted time of the step."""
        return math.fsum(part.seconds for part in self.parts)


class StepModel:
    """Predicts the steps of one network.

    Parameters
    ----------
    lanes : int
        Columns of a panel, which is two vectors.
    prices : Prices, optional

    Attributes
    ----------
    n_tiles : int
        What phase B visits: tiles of weight matrices, panels of normalisations and lone biases.
    back_to : int
        The first layer that deltas go back through.
    fused : bool
        Whether gradient and update of a tile are one visit.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizer: Optimizer | None,
        *,
        lanes: int,
        prices: Prices | None = None,
    ) -> None:
        self.prices = prices or Prices()
        self.lanes = lanes
        self.back_to = spec.back_to
        self._itemsize = np.dtype(spec.dtype).itemsize
        self._sizes = spec.sizes
        self._kinds = [kind_of(layer) for layer in spec.layers]
        self._trains = [(layer.trains_weight, layer.trains_bias) for layer in spec.layers]
        #: Whether phase B has a weight matrix of the layer's to update.
        self._matrix = [
            kind == at.DENSE and weight
            for kind, (weight, _) in zip(self._kinds, self._trains, strict=True)
        ]
        self._codes = [ACTIVATIONS.get(x.activation, OTHER_ACTIVATION) for x in spec.layers]
        self._softmax = loss is not None and loss.targets == "classes"
        self._update = None if optimizer is None else self.prices.update[optimizer.slot]
        self._panels = [panels(size, lanes) for size in spec.sizes]
        self._tiles = [self._count_tiles(i) for i in range(len(spec.layers))]
        self.n_tiles = sum(self._tiles)
        self.fused = self.n_tiles >= FUSE_FROM and not getattr(optimizer, "clip_norm", None)
        vector = lanes // 2 * self._itemsize
        kept = 1 + (0 if optimizer is None else optimizer.n_moments)
        #: Bytes of weight matrices, and how many such arrays a step passes over.
        self._weight_bytes = [
            2 * q * size * vector * (kind == at.DENSE)
            for kind, size, q in zip(self._kinds, spec.sizes, self._panels[1:], strict=False)
        ]
        self._kept = [kept if weight else 1 for weight, _ in self._trains]
        #: Bytes of the transposed copies, which only data gradients read.
        self._transposed_bytes = [
            size if i >= self.back_to else 0 for i, size in enumerate(self._weight_bytes)
        ]
        # Met again at the next step: parameters, moments, transposed copies.
        held = zip(self._kept, self._weight_bytes, strict=True)
        self._state_bytes = sum(n * size for n, size in held) + sum(self._transposed_bytes)

    def _count_tiles(self, i: int) -> int:
        """Return what phase B visits for layer `i`: nothing where it learns nothing."""
        inputs, outputs = self._panels[i : i + 2]
        if self._matrix[i]:
            return inputs * outputs
        return outputs if any(self._trains[i]) else 0

    @property
    def n_meetings(self) -> int:
        """Meetings of the team that batch normalisations take: one before, one behind, each way."""
        return sum(
            2 + 2 * (i >= self.back_to)
            for i, kind in enumerate(self._kinds)
            if kind == at.BATCH_NORM
        )

    def _product(self, depth: int, rows: int, columns: int, weight: int) -> tuple[float, float]:
        """Slots and bytes of a product of phase A: all panels of one layer, one block of rows."""
        p = self.prices
        slots = p.sums(self.lanes, depth, rows, columns, p.row_tile, p.row_slots)
        slots += p.row_panel * panels(columns, self.lanes)
        panel = depth * self.lanes * self._itemsize
        again = p.streamed(panel) * len(tile_heights(rows))
        return slots, weight * (again + p.byte(self._state_bytes))

    def _block(
        self, rows: int, speeds: Speeds, source_byte: float, *, in_training: bool = True
    ) -> list[Part]:
        """Phase A for one block of rows, whose data cost so much a byte."""
        p, sizes = self.prices, self._sizes
        slot, byte = speeds.slot, speeds.byte
        parts: list[Part] = []

        def add(name: str, layer: int | None, slots: float, moved: float, work: int = 0) -> None:
            parts.append(Part("A", name, layer, slots * slot + moved * byte, work))

        source = source_byte * rows * sizes[0] * self._itemsize
        add("gather", None, p.gathered * rows * self._panels[0], source)
        for i in range(len(self._kinds)):
            slots, moved = self._layer(i, rows, back=False, in_training=in_training)
            add("forward", i, slots, moved, rows * self._products(i))
        add("loss", None, self._loss(rows), 0.0)
        for i in range(len(self._kinds) - 1, self.back_to - 1, -1):
            slots, moved = self._layer(i, rows, back=True)
            add("deltas", i, slots, moved, rows * self._products(i))
        if self.fused:
            seen = sum(self._panels[:-1]) + sum(self._panels[1:])
            add("bounds", None, p.bound * 2 * rows * seen, 0.0)
        return parts

    def _products(self, i: int) -> int:
        """Return the multiply-adds of one product of layer `i` with a row."""
        return self._sizes[i] * self._sizes[i + 1] if self._kinds[i] == at.DENSE else 0

    def _layer(
        self, i: int, rows: int, *, back: bool, in_training: bool = True
    ) -> tuple[float, float]:
        """Slots and bytes of layer `i` on so many rows, forward or back, with activations."""
        ends = self._sizes[i : i + 2]
        if self._kinds[i] != at.DENSE:
            slots, moved = self._passes(i, rows, back=back, in_training=in_training)
        else:
            depth, columns = ends[::-1] if back else ends
            slots, moved = self._product(depth, rows, columns, self._weight_bytes[i])
        if not back:
            return slots + self._codes[i][0] * rows * 2 * self._panels[i + 1], moved
        if i > 0:
            slots += self._codes[i - 1][1] * rows * 2 * self._panels[i]
        if i == len(self._kinds) - 1:
            slots += self._codes[i][1] * rows * 2 * self._panels[i + 1]
        return slots, moved

    def _passes(self, i: int, rows: int, *, back: bool, in_training: bool) -> tuple[float, float]:
        """Slots and bytes of a layer without products on so many rows."""
        p, kind = self.prices, self._kinds[i]
        vectors = 2 * rows * self._panels[i]
        if kind == at.DROPOUT:
            return (p.dropout * vectors if in_training else 0.0), 0.0
        if kind == at.LAYER_NORM:
            one = p.layer_norm_back if back else p.layer_norm
            return one * vectors + p.layer_norm_row * rows, 0.0
        if kind == at.FROZEN_NORM or not in_training:
            return p.one_pass * vectors, 0.0
        # A panel of many rows is in no first level: its passes, and the blocks of rows behind it,
        # read it from the next one.
        size = rows * self._panels[i] * self.lanes * self._itemsize
        one, passes = (p.batch_norm_back, 4) if back else (p.batch_norm, 6)
        return one * vectors, passes * size * p.byte(2 * size)

    def _loss(self, rows: int) -> float:
        p, outputs = self.prices, self._sizes[-1]
        if not self._softmax:
            return rows * (p.loss_row + p.loss_vector * 2 * self._panels[-1])
        if outputs <= self.lanes:
            groups = -(-rows // (self.lanes // 2))
            return groups * (p.softmax_group + p.exponential * outputs) + p.loss_row * rows
        return rows * (2 * p.loss_row + p.exponential * 2 * self._panels[-1])

    def blocks(self, rows: int, threads: int) -> tuple[int, int]:
        """Return the rows of a block of phase A, and how many blocks there are."""
        share = -(-rows // threads)
        block = min(at.MAX_BLOCK, -(-share // at.TILE_ROWS) * at.TILE_ROWS)
        return block, -(-rows // block)

    def _rows_phase(self, rows: int, threads: int, speeds: Speeds) -> list[Part]:
        """Phase A: the blocks of the busiest thread."""
        block, _ = self.blocks(rows, threads)
        whole, rest = divmod(rows, block)
        counts = {block: -(-whole // threads)} if whole else {}
        # The last block is short: it is met where all others are whole rounds already.
        if rest and whole % threads == 0:
            counts[rest] = 1
        source = self.prices.source_byte
        blocks = [
            [
                part._replace(seconds=count * part.seconds)
                for part in self._block(size, speeds, source)
            ]
            for size, count in counts.items()
        ]
        parts = []
        for same in zip(*blocks, strict=True):
            seconds = math.fsum(part.seconds for part in same)
            i = same[0].layer
            if i is not None and self._kinds[i] == at.BATCH_NORM:
                slots, moved = self._layer(i, rows, back=same[0].name == "deltas")
                share = -(-self._panels[i] // threads) / self._panels[i]
                seconds = share * (slots * speeds.slot + moved * speeds.byte)
            work = self._work(same[0], rows)
            parts.append(same[0]._replace(seconds=seconds, multiply_adds=work))
        return parts

    def _work(self, part: Part, rows: int) -> int:
        """Multiply-adds of a part for the whole batch."""
        if part.layer is None or part.name == "update":
            return 0
        return rows * self._products(part.layer)

    def _tiles_phase(self, rows: int, threads: int, speeds: Speeds) -> list[Part]:
        """Phase B: all tiles, shared out."""
        p = self.prices
        if not self.n_tiles:
            return []
        # A thread takes whole tiles: its share of all is n / threads rounded up.
        share = -(-self.n_tiles // threads) / self.n_tiles
        parts = []
        for i, tiles in enumerate(self._tiles):
            if not tiles:
                continue
            slots, moved, work = self._gradient(i, rows)
            seconds = share * (slots * speeds.slot + moved * speeds.byte)
            parts.append(Part("B", "gradient", i, seconds, work))
            if self._update is None:
                continue
            # Of a weight matrix, or a row for a weight and one for a bias.
            columns = self._sizes[i] if self._matrix[i] else sum(self._trains[i])
            vectors = 2 * self._panels[i + 1] * columns
            slots = self._update * vectors
            passes = 2 * self._kept[i]  # parameters and moments are read and written
            if self._matrix[i] and i >= self.back_to:
                slots += p.transposed * vectors
                passes += 2  # a line is read before it is written
            if not self.fused:
                slots += p.second_visit * tiles + p.squared * vectors
                passes += 2
            size = self._weight_bytes[i] if self._matrix[i] else 0
            moved = passes * size * p.byte(self._state_bytes)
            seconds = share * (slots * speeds.slot + moved * speeds.byte)
            parts.append(Part("B", "update", i, seconds, 0))
        return parts

    def _gradient(self, i: int, rows: int) -> tuple[float, float, int]:
        """Slots, bytes and multiply-adds of the gradients of layer `i`."""
        p, lanes, sizes = self.prices, self.lanes, self._sizes
        outputs, tiles = self._panels[i + 1], self._tiles[i]
        slots = p.visit * tiles
        panel_bytes = rows * lanes * self._itemsize
        if self._matrix[i]:
            whole, rest = divmod(sizes[i], lanes)
            for height, count in ((lanes, whole), (rest, 1)):
                if height and count:
                    one = p.sums(lanes, rows, height, sizes[i + 1], p.batch_tile, p.batch_slots)
                    slots += count * one
            met = (outputs + 1) * panel_bytes  # deltas of the layer pass by one panel of inputs
            return slots, 2 * tiles * panel_bytes * p.byte(met), rows * self._products(i)
        if self._kinds[i] == at.BATCH_NORM:  # added up in phase A
            return slots, 0.0, 0
        sums = 1 if self._kinds[i] == at.DENSE else 2
        slots += sums * p.one_pass * 2 * rows * outputs
        return slots, sums * outputs * panel_bytes * p.byte(outputs * panel_bytes), 0

    def _team(self, rows: int, threads: int, speeds: Speeds, barriers: int) -> list[Part]:
        """Return what a step costs beside its phases."""
        p = self.prices
        parts = [Part("team", "step", None, p.step * speeds.slot, 0)]
        if threads == 1:
            return parts
        panel_bytes = rows * self.lanes * self._itemsize
        rows_bytes = panel_bytes * (sum(self._panels[:-1]) + sum(self._panels[1:]))
        # Tiles and blocks go to whoever is free: all but 1 / threads was last with someone else.
        # Read whole: the parameters, and this thread's part of the rows; a share is written.
        weights = sum(self._weight_bytes) + sum(self._transposed_bytes)
        touched = min(1.0, 2 / math.sqrt(threads)) * rows_bytes + weights
        touched += (self._state_bytes + rows_bytes) / threads
        # A batch normalisation reads what blocks of rows wrote, and they what it wrote.
        touched += sum(
            self._panels[i] * panel_bytes * (2 + 2 * (i >= self.back_to)) / threads
            for i, kind in enumerate(self._kinds)
            if kind == at.BATCH_NORM
        )
        moved = p.foreign_byte * touched * (threads - 1) / threads
        parts.append(Part("team", "exchange", None, moved * speeds.byte, 0))
        meetings = barriers * speeds.barrier * math.log2(threads)
        parts.append(Part("team", "barriers", None, meetings, 0))
        return parts

    def step(self, rows: int, threads: int, speeds: Speeds) -> Estimate:
        """Return the prediction for a training step on `rows` rows."""
        parts = self._rows_phase(rows, threads, speeds) + self._tiles_phase(rows, threads, speeds)
        meetings = self.n_meetings + (2 if self.fused else 3)
        parts += self._team(rows, threads, speeds, meetings)
        return Estimate(threads, tuple(parts))

    def by_columns(self, rows: int, threads: int, speeds: Speeds) -> Estimate:
        """Return the same where phase A deals out panels of a layer's columns, not blocks of rows.

        Gather, loss and bounds stay with blocks of rows. Every layer ends with a barrier, forward
        and back, and every thread reads what all others wrote.
        """
        block = at.TILE_ROWS * -(-rows // at.TILE_ROWS)
        block = min(block, at.MAX_BLOCK)
        blocks = -(-rows // block)
        by_rows = {
            (part.name, part.layer): part for part in self._rows_phase(rows, threads, speeds)
        }
        parts = []
        meetings = 0
        for part in self._block(min(block, rows), speeds, self.prices.source_byte):
            if part.layer is None:
                parts.append(by_rows[part.name, None])
                continue
            meetings += threads > 1
            # Of a row all columns are normalised by one thread; a batch's go by columns anyway.
            if self._kinds[part.layer] in (at.LAYER_NORM, at.BATCH_NORM):
                parts.append(by_rows[part.name, part.layer])
                continue
            columns = self._panels[part.layer + (part.name == "forward")]
            share = -(-blocks * columns // threads) / columns
            work = self._work(part, rows)
            parts.append(part._replace(seconds=share * part.seconds, multiply_adds=work))
        parts += self._tiles_phase(rows, threads, speeds)
        parts += self._team(rows, threads, speeds, meetings + (2 if self.fused else 3))
        return Estimate(threads, tuple(parts))

    def inference(self, rows: int, threads: int, speeds: Speeds) -> float:
        """Return the predicted seconds of `forward` on `rows` rows, without waking."""
        # The rows of a call lie one after the other, and were written or read lately.
        source = self.prices.byte(rows * self._sizes[0] * self._itemsize)
        whole, rest = divmod(rows, at.INFER_BLOCK)
        rounds = -(-whole // threads)
        seconds = rounds * self._forward(at.INFER_BLOCK, speeds, source) if whole else 0.0
        if rest and whole % threads == 0:
            seconds += self._forward(rest, speeds, source)
        return seconds

    def _forward(self, rows: int, speeds: Speeds, source: float) -> float:
        parts = self._block(rows, speeds, source, in_training=False)
        result = rows * self._panels[-1]  # panel rows copied to the caller's array
        slots = self.prices.gathered * result
        moved = source * result * self.lanes * self._itemsize
        copied = slots * speeds.slot + moved * speeds.byte
        return copied + math.fsum(
            part.seconds for part in parts if part.name in ("gather", "forward")
        )
