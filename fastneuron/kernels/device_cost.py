"""Whether a card would train faster than the CPU, predicted from shapes and the card's data sheet.

A step on the card takes its launches, its products tile by tile (`device_plan` cuts them, so many
tiles at a time as there are multiprocessors), and what all other kernels read and write. Data cross
the bus once a training where its length is known, else at every step. Before the first step kernels
are compiled. The CPU's side is `estimate.StepModel`, as the compiled engines choose threads by it.

No constant of the card was measured by this project: a card must be predicted to win by `WORTH`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastneuron.kernels.cost import Course
from fastneuron.kernels.device_card import Card
from fastneuron.kernels.device_plan import blocks_of, flat_size, slices_of, tile_of
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.speeds import TYPICAL
from fastneuron.layers import BatchNorm, Dense, Dropout
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.plans import duration
from fastneuron.spec import NetworkSpec
from fastneuron.threads import usable_cores

__all__ = ["Task", "Verdict", "launches_of", "step_on_card", "weigh"]

#: Seconds of one launch, in a graph or on a stream: 2 to 5 us are published for graphs and streams
#: of short kernels; not measured here.
LAUNCH = 3e-6
#: Share of a multiprocessor's peak that a tile reaches: hand-written float32 products are published
#: at 69 to 94 % of cuBLAS's rate, and that below the peak; not measured here.
SHARE = 0.6
#: Share of the memory's bandwidth that passes over vectors reach; not measured here.
MEMORY_SHARE = 0.8
#: Bytes a second from pageable host memory: about half of PCIe 4.0 x16 (32 GB/s, its
#: specification); not measured here.
TRANSFER = 12e9
#: Seconds until a kernel is compiled: 0.1 to 0.5 for compute capability 9.0, measured without a
#: card. Loading, and the driver's own start, are in `START`, which is not measured here.
COMPILE, START = 0.3, 0.5
#: The card must be predicted to take at most this share of the CPU's time: the price of constants
#: that nobody has measured.
WORTH = 0.5

#: Multiply-adds a cycle of a multiprocessor, by compute capability, in float32 and float64 (CUDA
#: C++ programming guide, throughput of native arithmetic instructions). A capability that is not
#: listed is taken for the slowest of both.
_PER_CYCLE = {
    (7, 0): (64, 32), (7, 5): (64, 2), (8, 0): (64, 32), (8, 6): (128, 2), (8, 7): (128, 2),
    (8, 9): (128, 2), (9, 0): (128, 64), (10, 0): (128, 64), (12, 0): (128, 2),
}  # fmt: skip
_UNKNOWN = (64, 2)


@dataclass(frozen=True)
class Task:
    """What is to be trained.

    Attributes
    ----------
    spec, loss, optimizer
    batch : int
        Rows of a step.
    rows, epochs : int
        Of the training; 0 where its length is not known, as of a trainer that is about to be used.
    n_threads : int or None
        The CPU's, where they were asked for.
    on_device : bool
        Whether the data lie on the card already.
    """

    spec: NetworkSpec
    loss: Loss | None
    optimizer: Optimizer | None
    batch: int
    rows: int = 0
    epochs: int = 0
    n_threads: int | None = None
    on_device: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether the card pays, and the reason in words."""

    pays: bool
    why: str


def weigh(task: Task, card: Card) -> Verdict:
    """Return whether a card would train in at most `WORTH` of the CPU's time."""
    if not card.multiprocessors or not card.clock or not card.bandwidth:
        return Verdict(False, f"the driver does not tell how fast the {card.name} is")
    need = _bytes_needed(task)
    if need > card.memory:
        return Verdict(
            False,
            f"about {need:,} bytes are needed, the {card.name} has {card.memory:,}",
        )
    batch = min(task.batch, task.rows or task.batch)
    device, host = step_on_card(task, batch, card), _step_on_host(task, batch)
    if not task.rows:
        text = f"predicted {duration(device)} a step on the {card.name} (by its data sheet)"
        return Verdict(device <= WORTH * host, f"{text}, {duration(host)} on the CPU")
    steps = task.epochs * blocks_of(task.rows, batch)
    start = START + COMPILE * launches_of(task.spec, batch)
    moved = 0.0 if task.on_device else _row_bytes(task.spec) * task.rows / TRANSFER
    on_card, on_host = start + moved + steps * device, steps * host
    text = (
        f"predicted {duration(on_card)} on the {card.name} (by its data sheet; {duration(start)} "
        f"of it to start), {duration(on_host)} on the CPU"
    )
    return Verdict(on_card <= WORTH * on_host, text)


def step_on_card(task: Task, batch: int, card: Card) -> float:
    """Return the predicted seconds of a step; of a training of unknown length with its transfer."""
    spec = task.spec
    itemsize = np.dtype(spec.dtype).itemsize
    per_cycle = _PER_CYCLE.get(card.capability, _UNKNOWN)[spec.dtype == "float64"]
    term = 1 / (SHARE * per_cycle * card.clock)  # seconds of a multiply-add on a multiprocessor
    tile = tile_of(spec.dtype)
    one = tile.rows * tile.columns * term  # a tile, for each term of its sums

    def product(rows: int, columns: int, depth: int, slices: int = 1) -> float:
        blocks = blocks_of(rows, tile.rows) * blocks_of(columns, tile.columns) * slices
        return blocks_of(blocks, card.multiprocessors) * one * depth

    seconds = LAUNCH * launches_of(spec, batch)
    for index, layer in enumerate(spec.layers):
        if isinstance(layer, Dense):
            inputs, outputs = layer.weight_shape
            seconds += product(batch, outputs, inputs)
            if layer.trains_weight:
                slices, each = slices_of(batch, inputs, outputs, tile)
                seconds += product(inputs, outputs, min(each, batch), slices)
            if index >= spec.back_to:
                seconds += product(batch, inputs, outputs)
    moments = 0 if task.optimizer is None else task.optimizer.n_moments
    # Of each number of the batch: gather or product writes it, the next reads it, and its delta
    # likewise. Parameters and moments are read and written, the gradient written and read twice.
    moved = 4 * batch * sum(spec.sizes) + flat_size(spec) * (2 + 3 + 2 * moments)
    seconds += moved * itemsize / (MEMORY_SHARE * card.bandwidth)
    if not task.rows and not task.on_device:
        seconds += batch * _row_bytes(spec) / TRANSFER
    return seconds


def launches_of(spec: NetworkSpec, batch: int) -> int:
    """Return about how many kernels a step launches: a product's or a norm's own, and ten more."""
    tile = tile_of(spec.dtype)
    count = 8  # gather of x and y, the loss and its mean, squares, judge, update, advance
    for index, layer in enumerate(spec.layers):
        goes_on = index >= spec.back_to
        if isinstance(layer, Dense):
            inputs, outputs = layer.weight_shape
            slices, _ = slices_of(batch, inputs, outputs, tile)
            count += 1 + layer.trains_weight * (1 + (slices > 1)) + layer.trains_bias + goes_on
        elif isinstance(layer, Dropout):
            count += 1 + goes_on
        else:
            forward = 5 + 1 if isinstance(layer, BatchNorm) and layer.uses_batch else 1
            count += forward + 3 + goes_on
    return count + 1  # the gate of the last layer


def _row_bytes(spec: NetworkSpec) -> int:
    """Return the bytes of a row of data and its target."""
    return (spec.in_features + spec.out_features) * np.dtype(spec.dtype).itemsize


def _bytes_needed(task: Task) -> int:
    """Return about what a training takes on a card: flat vectors, a batch both ways, the data."""
    spec = task.spec
    moments = 0 if task.optimizer is None else task.optimizer.n_moments
    numbers = flat_size(spec) * (2 + moments) + 3 * task.batch * sum(spec.sizes)
    data = 0 if task.on_device else task.rows * _row_bytes(spec)
    return numbers * np.dtype(spec.dtype).itemsize + data


def _step_on_host(task: Task, batch: int) -> float:
    """Return the predicted seconds of a step of a compiled engine on a typical core of this kind.

    The panel of the instruction set that NumPy found: two registers.
    """
    table = getattr(getattr(np, "_core", None), "_multiarray_umath", None)
    wide = getattr(table, "__cpu_features__", {}).get("AVX512F")
    lanes = (128 if wide else 64) // np.dtype(task.spec.dtype).itemsize
    model = StepModel(task.spec, task.loss, task.optimizer, lanes=lanes)

    def predict(rows: int, threads: int) -> float:
        return model.step(rows, threads, TYPICAL).seconds

    course = Course(usable_cores(), task.n_threads)
    return predict(batch, course.choice(batch, 1, predict).threads)
