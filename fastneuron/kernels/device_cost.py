"""Whether a card would train faster than the CPU, predicted from shapes and the card's data sheet.

A step on the card takes its launches (`device_launches` counts them), its products tile by tile
(`device_plan` cuts them, so many tiles at a time as there are multiprocessors), and what all other
kernels read and write. A small network is trained by blocks that keep all of it, rows of a batch at
a time: then only data, parameters and the blocks' gradients are read and written. Data cross the
bus once a training where its length is known, else at every step. Before the first step numba-cuda
compiles its kernels. The CPU's side is `estimate.StepModel`, as the compiled engines choose threads
by it.

Of the kernels compiled with the package the smaller tile is taken for the larger one. cuBLASLt is
not counted on.

No constant of the card was measured by this project: a card must be predicted to win by `WORTH`.
`python -m fastneuron.gpu_suite` measures each of them where there is a card (stage "costs").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastneuron.kernels.cost import Course
from fastneuron.kernels.device_card import Card
from fastneuron.kernels.device_launches import NUMBA, fused_for, launches_of
from fastneuron.kernels.device_plan import blocks_of, flat_size, kept_numbers, slices_of, tile_of
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.fused_plan import FusedPlan
from fastneuron.kernels.speeds import TYPICAL
from fastneuron.layers import Dense
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.plans import duration
from fastneuron.spec import NetworkSpec
from fastneuron.threads import usable_cores

__all__ = ["Task", "Verdict", "peak_of", "start_on_card", "step_on_card", "weigh"]

#: Seconds of one launch in a recorded graph, as both engines have theirs but for the first steps: 2
#: to 5 us are published for graphs and streams of short kernels; not measured here.
LAUNCH = 3e-6
#: Share of a multiprocessor's peak that a tile, or a fused network, reaches: hand-written products
#: in float32 are published at 69 to 94 % of cuBLAS's, and that below the peak; not measured here.
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
    kernels : {"numba-cuda", "compiled"}
        Whose run on the card.
    """

    spec: NetworkSpec
    loss: Loss | None
    optimizer: Optimizer | None
    batch: int
    rows: int = 0
    epochs: int = 0
    n_threads: int | None = None
    on_device: bool = False
    kernels: str = NUMBA


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
    start = start_on_card(task, batch)
    on_card = start + _transfer(task) + steps * device
    on_host = steps * host
    text = (
        f"predicted {duration(on_card)} on the {card.name} (by its data sheet; {duration(start)} "
        f"of it to start), {duration(on_host)} on the CPU"
    )
    return Verdict(on_card <= WORTH * on_host, text)


def peak_of(card: Card, dtype: str) -> float:
    """Return the multiply-adds a second of one multiprocessor, at most."""
    return _PER_CYCLE.get(card.capability, _UNKNOWN)[dtype == "float64"] * card.clock


def start_on_card(task: Task, batch: int) -> float:
    """Return the predicted seconds before the first step."""
    compiles = task.kernels == NUMBA
    return START + COMPILE * launches_of(task.spec, batch) * compiles


def _transfer(task: Task) -> float:
    """Return the seconds that the data of a training take to the card."""
    if task.on_device:
        return 0.0
    return task.rows * _row_bytes(task.spec) / TRANSFER


def step_on_card(task: Task, batch: int, card: Card) -> float:
    """Return the predicted seconds of a step; of a training of unknown length with its transfer."""
    spec = task.spec
    plan = fused_for(spec, batch, task.kernels)
    seconds = LAUNCH * launches_of(spec, batch, task.kernels)
    if plan:
        seconds += _fused(spec, batch, card, plan)
    else:
        seconds += _by_layer(spec, batch, card)
    moments = 0 if task.optimizer is None else task.optimizer.n_moments
    # Parameters and moments are read and written, the gradient written and read twice.
    moved = flat_size(spec) * (2 + 3 + 2 * moments)
    if plan:
        # Rows are gathered where they are used; each block's gradient is written and summed.
        moved += batch * (spec.in_features + spec.out_features) + 2 * plan.partials(batch, spec)
    else:
        # Of each number of the batch: gather or product writes it, the next reads it, and its delta
        # likewise.
        moved += 4 * batch * sum(spec.sizes)
    seconds += moved * np.dtype(spec.dtype).itemsize / (MEMORY_SHARE * card.bandwidth)
    if not task.rows and not task.on_device:
        seconds += batch * _row_bytes(spec) / TRANSFER
    return seconds


def _by_layer(spec: NetworkSpec, batch: int, card: Card) -> float:
    """Return the seconds of the products, tile by tile."""
    tile = tile_of(spec.dtype)
    # A tile, for each term of its sums.
    one = tile.rows * tile.columns / (SHARE * peak_of(card, spec.dtype))

    def product(rows: int, columns: int, depth: int, slices: int = 1) -> float:
        blocks = blocks_of(rows, tile.rows) * blocks_of(columns, tile.columns) * slices
        return blocks_of(blocks, card.multiprocessors) * one * depth

    seconds = 0.0
    for index, layer in enumerate(spec.layers):
        if isinstance(layer, Dense):
            inputs, outputs = layer.weight_shape
            seconds += product(batch, outputs, inputs)
            if layer.trains_weight:
                slices, each = slices_of(batch, inputs, outputs, tile)
                seconds += product(inputs, outputs, min(each, batch), slices)
            if index >= spec.back_to:
                seconds += product(batch, inputs, outputs)
    return seconds


def _fused(spec: NetworkSpec, batch: int, card: Card, plan: FusedPlan) -> float:
    """Return the seconds of all products of a step, a block's rows on a multiprocessor."""
    rounds = blocks_of(blocks_of(batch, plan.rows), card.multiprocessors)
    return rounds * plan.rows * spec.multiply_adds / (SHARE * peak_of(card, spec.dtype))


def _row_bytes(spec: NetworkSpec) -> int:
    """Return the bytes of a row of data and its target."""
    return (spec.in_features + spec.out_features) * np.dtype(spec.dtype).itemsize


def _bytes_needed(task: Task) -> int:
    """Return about what a training takes on a card: flat vectors, a batch both ways, the data."""
    spec, batch = task.spec, task.batch
    moments = 0 if task.optimizer is None else task.optimizer.n_moments
    numbers = flat_size(spec) * (2 + moments) + kept_numbers(spec, batch) + batch * sum(spec.sizes)
    plan = fused_for(spec, batch, task.kernels)
    if plan:  # which has room for going layer by layer all the same
        numbers += plan.partials(batch, spec)
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
