"""What each kind of work costs: the figures that the cost model counts with, and their origin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastneuron.kernels.columns import TILE_ROWS

#: Independent sums that keep the multiply-add units busy: a latency of 4 cycles on two units.
CHAINS = 8
#: Bytes that a core's first and second level hold beside other things (of 48 KiB and 1 MiB), and
#: the third level for one core. Prices pass from one to the next between a half and double of it.
_FIRST, _SECOND, _THIRD = 32 << 10, 1 << 20, 32 << 20

#: Slots a vector that an activation takes forward and its gate backward; ReLU's are in registers.
#: Measured: a step of 64-512-512-10, batch 128, against the same with ReLU, give or take a third.
ACTIVATIONS = {
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
OTHER_ACTIVATION = (40.0, 40.0)


def _updates() -> dict[str, float]:
    return {
        "sgd_update": 2.0,
        "momentum_update": 7.4,
        "nesterov_update": 8.5,
        "adam_update": 11.0,
        "rmsprop_update": 10.0,
    }


def tile_heights(rows: int) -> list[int]:
    """Heights of the register tiles that `rows` rows are cut into."""
    heights = [TILE_ROWS] * (rows // TILE_ROWS)
    left = rows % TILE_ROWS
    for height in (4, 2, 1):
        if left >= height:
            heights.append(height)
            left -= height
    return heights


def _ramp(size: float, level: int) -> float:
    """Return how much of a set of `size` bytes misses a level: none up to half, all from double."""
    return min(1.0, max(0.0, 0.5 * math.log2(max(size, 1.0) / level) + 0.5))


@dataclass(frozen=True)
class Prices:
    """What each kind of work costs: slots, or multiples of `Speeds.byte` for bytes.

    The figures are those of ``benchmarks/cost.py --fit``: least squares of the relative error over
    stages of the steps of 30 networks, float32, on one Zen 5 core with AVX-512. Steps come out
    within 15 %; those of few rows, which need no transposed copy, are over-predicted by up to a
    third. `foreign_byte` was set by the same steps on two such cores; Nesterov and RMSprop stand
    beside their likes unmeasured. Layers without products were set by turns of steps with them and
    without, of five networks on either engine: the ratios come out within
    4 %, of steps below 10 us within 7.
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
    batch_norm: float = 10.0  # a vector, forward: two passes of sums, and one that writes
    batch_norm_back: float = 3.0
    layer_norm: float = 19.0
    layer_norm_back: float = 17.0
    layer_norm_row: float = 10.0  # its lanes added up and a root taken; either way
    dropout: float = 27.0  # a vector of random numbers, either way
    one_pass: float = 3.0  # a vector that is read, multiplied and written, or added up
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

    def byte(self, size: float) -> float:
        """Price of a byte of a set of `size` bytes that is passed over again and again."""
        price = self.second_byte * _ramp(size, _FIRST)
        price += (self.third_byte - self.second_byte) * _ramp(size, _SECOND)
        return price + (self.memory_byte - self.third_byte) * _ramp(size, _THIRD)

    def streamed(self, size: float) -> float:
        """Price of a byte of a panel of `size` bytes, for each tile that reads it."""
        return self.streamed_byte * _ramp(size, _FIRST)

    def sums(
        self, lanes: int, depth: int, rows: int, columns: int, tile: float, factor: float
    ) -> float:
        """Slots of the product of one block of rows, or of one panel of them, with a layer."""
        whole, rest = divmod(columns, lanes)
        half = 0 < rest <= lanes // 2
        heights = tile_heights(rows)
        total = 0.0
        for vectors, count in ((2, whole + (rest > 0 and not half)), (1, int(half))):
            if count:
                terms = sum(max(r * vectors, CHAINS, r + vectors) for r in heights)
                total += count * (factor * depth * terms + tile * len(heights))
        return total
