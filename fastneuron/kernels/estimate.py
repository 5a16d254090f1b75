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

Where the batch has fewer blocks of `TILE_ROWS` rows than there are threads, phase A leaves threads
idle. `StepModel.by_columns` says what it would take with each layer's panels dealt out instead, one
barrier a layer: the same sums in the same order, so the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.columns import FUSE_FROM, panels
from fastneuron.kernels.speeds import Speeds
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

#: Independent sums that keep the multiply-add units busy: a latency of 4 cycles on two units.
CHAINS = 8
#: Bytes that a core's first and second level hold beside other things (of 48 KiB and 1 MiB), and
#: the third level for one core. Prices pass from one to the next between a half and double of it.
_FIRST, _SECOND, _THIRD = 32 << 10, 1 << 20, 32 << 20

#: Slots a vector that an activation takes forward and its gate backward; ReLU's are in registers.
#: Measured: a step of 64-512-512-10, batch 128, against the same with ReLU, give or take a third.
_ACTIVATIONS = {
    "identity": (0.0, 0.0),
    "relu": (0.0, 0.0),
    "leaky_relu": (9.0, 4.0),
    "elu": (27.0, 8.0),
    "gelu": (45.0, 41.0),
    "silu": (25.0, 28.0),
    "softplus": (25.0, 25.0),
    "sigmoid": (24.0, 4.0),
    "tanh": (28.0, 4.0),
}
_OTHER_ACTIVATION = (40.0, 40.0)


def _updates() -> dict[str, float]:
    return {
        "sgd_update": 2.0,
        "momentum_update": 7.4,
        "nesterov_update": 8.5,
        "adam_update": 11.0,
        "rmsprop_update": 10.0,
    }


@dataclass(frozen=True)
class Prices:
    """What each kind of work costs: slots, or multiples of `Speeds.byte` for bytes.

    The figures are those of ``benchmarks/cost.py --fit``: least squares of the relative error over
    stages of the steps of 30 networks, float32, on one Zen 5 core with AVX-512. Steps come out
    within 15 %; those of few rows, which need no transposed copy, are over-predicted by up to a
    third. `foreign_byte` was set by the same steps on two such cores; Nesterov and RMSprop stand
    beside their likes unmeasured.
    """

    row_slots: float = 1.05  # of phase A's sums, in slots that are counted
    row_tile: float = 8.0  # start and stores of a register tile
    row_panel: float = 10.0  # one panel of columns for one block of rows
    gathered: float = 20.0  # a panel row copied from the data
    softmax_group: float = 1330.0  # as many rows as a register has lanes, beside their classes
    exponential: float = 10.0  # a vector of them
    loss_row: float = 8.0  # a row that is turned to a loss alone, or added to the batch's
    loss_vector: float = 12.7  # a vector of outputs of such a row
    bound: float = 3.8  # a vector looked at for the largest value
    batch_slots: float = 1.05  # of phase B's sums
    batch_tile: float = 8.0
    visit: float = 20.0  # a weight tile
    second_visit: float = 444.0  # where gradients come first and updates later
    squared: float = 11.2  # a vector of the gradient's squared norm
    update: dict[str, float] = field(default_factory=_updates)  # a vector of parameters
    transposed: float = 2.0  # a vector of the transposed copy
    step: float = 577.0  # all that a step does once
    source_byte: float = 2.7  # of the data set, which lies anywhere
    streamed_byte: float = 0.05  # of a panel that no first level holds, read again for each tile
    second_byte: float = 0.2  # of a set that the second level holds
    third_byte: float = 0.7
    memory_byte: float = 4.1
    foreign_byte: float = 4.0  # that another core wrote last


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


def _tiles(rows: int) -> list[int]:
    """Heights of the register tiles that `rows` rows are cut into."""
    heights = [at.TILE_ROWS] * (rows // at.TILE_ROWS)
    left = rows % at.TILE_ROWS
    for height in (4, 2, 1):
        if left >= height:
            heights.append(height)
            left -= height
    return heights


def _ramp(size: float, level: int) -> float:
    """Return how much of a set of `size` bytes misses a level: none up to half, all from double."""
    return min(1.0, max(0.0, 0.5 * math.log2(max(size, 1.0) / level) + 0.5))


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
        Weight tiles of phase B.
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
        self._itemsize = np.dtype(spec.dtype).itemsize
        self._sizes = spec.sizes
        self._codes = [_ACTIVATIONS.get(x.activation, _OTHER_ACTIVATION) for x in spec.layers]
        self._softmax = loss is not None and loss.targets == "classes"
        self._update = None if optimizer is None else self.prices.update[optimizer.slot]
        self._kept = 1 + (0 if optimizer is None else optimizer.n_moments)
        self._panels = [panels(size, lanes) for size in spec.sizes]
        #: Vectors of each layer's weights; as many again in its transposed copy, but for layer 0.
        self._vectors = [2 * q * i for i, q in zip(spec.sizes, self._panels[1:], strict=False)]
        self.n_tiles = sum(p * q for p, q in zip(self._panels, self._panels[1:], strict=False))
        self.fused = self.n_tiles >= FUSE_FROM and not getattr(optimizer, "clip_norm", None)
        vector = lanes // 2 * self._itemsize
        self._weight_bytes = [vectors * vector for vectors in self._vectors]
        # Met again at the next step: parameters, moments, transposed copies.
        self._state_bytes = self._kept * sum(self._weight_bytes) + sum(self._weight_bytes[1:])

    def byte(self, size: float) -> float:
        """Price of a byte of a set of `size` bytes that is passed over again and again."""
        p = self.prices
        price = p.second_byte * _ramp(size, _FIRST)
        price += (p.third_byte - p.second_byte) * _ramp(size, _SECOND)
        return price + (p.memory_byte - p.third_byte) * _ramp(size, _THIRD)

    def _sums(self, depth: int, rows: int, columns: int, tile: float, factor: float) -> float:
        """Slots of the product of one block of rows, or of one panel of them, with a layer."""
        whole, rest = divmod(columns, self.lanes)
        half = 0 < rest <= self.lanes // 2
        heights = _tiles(rows)
        total = 0.0
        for vectors, count in ((2, whole + (rest > 0 and not half)), (1, int(half))):
            if count:
                terms = sum(max(r * vectors, CHAINS, r + vectors) for r in heights)
                total += count * (factor * depth * terms + tile * len(heights))
        return total

    def _product(self, depth: int, rows: int, columns: int, weight: int) -> tuple[float, float]:
        """Slots and bytes of a product of phase A: all panels of one layer, one block of rows."""
        p = self.prices
        slots = self._sums(depth, rows, columns, p.row_tile, p.row_slots)
        slots += p.row_panel * panels(columns, self.lanes)
        panel = depth * self.lanes * self._itemsize
        again = p.streamed_byte * _ramp(panel, _FIRST) * len(_tiles(rows))
        return slots, weight * (again + self.byte(self._state_bytes))

    def _block(self, rows: int, speeds: Speeds, source_byte: float) -> list[Part]:
        """Phase A for one block of rows, whose data cost so much a byte."""
        p, sizes = self.prices, self._sizes
        slot, byte = speeds.slot, speeds.byte
        parts: list[Part] = []

        def add(name: str, layer: int | None, slots: float, moved: float, work: int = 0) -> None:
            parts.append(Part("A", name, layer, slots * slot + moved * byte, work))

        source = source_byte * rows * sizes[0] * self._itemsize
        add("gather", None, p.gathered * rows * self._panels[0], source)
        for i, (forward, _) in enumerate(self._codes):
            slots, moved = self._product(sizes[i], rows, sizes[i + 1], self._weight_bytes[i])
            slots += forward * rows * 2 * self._panels[i + 1]
            add("forward", i, slots, moved, rows * sizes[i] * sizes[i + 1])
        add("loss", None, self._loss(rows), 0.0)
        last = len(self._codes) - 1
        for i in range(last, 0, -1):
            slots, moved = self._product(sizes[i + 1], rows, sizes[i], self._weight_bytes[i])
            slots += self._codes[i - 1][1] * rows * 2 * self._panels[i]
            if i == last:
                slots += self._codes[i][1] * rows * 2 * self._panels[i + 1]
            add("deltas", i, slots, moved, rows * sizes[i] * sizes[i + 1])
        if self.fused:
            seen = sum(self._panels[:-1]) + sum(self._panels[1:])
            add("bounds", None, p.bound * 2 * rows * seen, 0.0)
        return parts

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
        return [
            same[0]._replace(
                seconds=math.fsum(part.seconds for part in same),
                multiply_adds=self._work(same[0], rows),
            )
            for same in zip(*blocks, strict=True)
        ]

    def _work(self, part: Part, rows: int) -> int:
        """Multiply-adds of a part for the whole batch."""
        if part.layer is None or part.name == "update":
            return 0
        return rows * self._sizes[part.layer] * self._sizes[part.layer + 1]

    def _tiles_phase(self, rows: int, threads: int, speeds: Speeds) -> list[Part]:
        """Phase B: all tiles, shared out."""
        p, lanes, sizes = self.prices, self.lanes, self._sizes
        # A thread takes whole tiles: its share of all is n / threads rounded up.
        share = -(-self.n_tiles // threads) / self.n_tiles
        panel_bytes = rows * lanes * self._itemsize
        parts = []
        for i, vectors in enumerate(self._vectors):
            inputs, outputs = self._panels[i], self._panels[i + 1]
            tiles = inputs * outputs
            whole, rest = divmod(sizes[i], lanes)
            slots = p.visit * tiles
            for height, count in ((lanes, whole), (rest, 1)):
                if height and count:
                    one = self._sums(rows, height, sizes[i + 1], p.batch_tile, p.batch_slots)
                    slots += count * one
            met = (outputs + 1) * panel_bytes  # deltas of the layer pass by one panel of inputs
            moved = 2 * tiles * panel_bytes * self.byte(met)
            seconds = share * (slots * speeds.slot + moved * speeds.byte)
            parts.append(Part("B", "gradient", i, seconds, rows * sizes[i] * sizes[i + 1]))
            if self._update is None:
                continue
            slots = self._update * vectors
            passes = 2 * self._kept  # parameters and moments are read and written
            if i > 0:
                slots += p.transposed * vectors
                passes += 2  # a line is read before it is written
            if not self.fused:
                slots += p.second_visit * tiles + p.squared * vectors
                passes += 2
            moved = passes * self._weight_bytes[i] * self.byte(self._state_bytes)
            seconds = share * (slots * speeds.slot + moved * speeds.byte)
            parts.append(Part("B", "update", i, seconds, 0))
        return parts

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
        weights = sum(self._weight_bytes) + sum(self._weight_bytes[1:])
        touched = min(1.0, 2 / math.sqrt(threads)) * rows_bytes + weights
        touched += (self._state_bytes + rows_bytes) / threads
        moved = p.foreign_byte * touched * (threads - 1) / threads
        parts.append(Part("team", "exchange", None, moved * speeds.byte, 0))
        meetings = barriers * speeds.barrier * math.log2(threads)
        parts.append(Part("team", "barriers", None, meetings, 0))
        return parts

    def step(self, rows: int, threads: int, speeds: Speeds) -> Estimate:
        """Return the prediction for a training step on `rows` rows."""
        parts = self._rows_phase(rows, threads, speeds) + self._tiles_phase(rows, threads, speeds)
        parts += self._team(rows, threads, speeds, 2 if self.fused else 3)
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
            columns = self._panels[part.layer + (part.name == "forward")]
            share = -(-blocks * columns // threads) / columns
            work = self._work(part, rows)
            parts.append(part._replace(seconds=share * part.seconds, multiply_adds=work))
            meetings += threads > 1
        parts += self._tiles_phase(rows, threads, speeds)
        parts += self._team(rows, threads, speeds, meetings + (2 if self.fused else 3))
        return Estimate(threads, tuple(parts))

    def inference(self, rows: int, threads: int, speeds: Speeds) -> float:
        """Return the predicted seconds of `forward` on `rows` rows, without waking."""
        # The rows of a call lie one after the other, and were written or read lately.
        source = self.byte(rows * self._sizes[0] * self._itemsize)
        whole, rest = divmod(rows, at.INFER_BLOCK)
        rounds = -(-whole // threads)
        seconds = rounds * self._forward(at.INFER_BLOCK, speeds, source) if whole else 0.0
        if rest and whole % threads == 0:
            seconds += self._forward(rest, speeds, source)
        return seconds

    def _forward(self, rows: int, speeds: Speeds, source: float) -> float:
        parts = self._block(rows, speeds, source)
        result = rows * self._panels[-1]  # panel rows copied to the caller's array
        slots = self.prices.gathered * result
        moved = source * result * self.lanes * self._itemsize
        copied = slots * speeds.slot + moved * speeds.byte
        return copied + math.fsum(
            part.seconds for part in parts if part.name in ("gather", "forward")
        )
