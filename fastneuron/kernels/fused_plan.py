"""How a small network lies in a block's shared memory: a function of its shape alone.

Plain Python, shared by the CUDA backends, as `device_plan` is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.device_plan import (
    ALIGNMENT,
    DECAYS,
    TRAINS,
    blocks_of,
    flat_parts,
    flat_size,
    saves_z,
)
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec

__all__ = [
    "ENSEMBLE_ROWS",
    "FUSED_ROWS",
    "KIBIBYTES",
    "MOST_FEATURES",
    "SHARED_BYTES",
    "FusedLayer",
    "FusedPlan",
    "blocks_together",
    "ensemble_marks",
    "ensemble_plan",
    "ensemble_threads",
    "fused_plan",
    "whole",
]

#: Widest layer, inputs and outputs included, of a network that a block trains by itself.
MOST_FEATURES = 128
#: Bytes of shared memory that every card from sm_80 on gives a block on request (CUDA C programming
#: guide, table of technical specifications: 99 KiB on the smallest, less 1 KiB of the system's).
SHARED_BYTES = 96 * 1024
# Bytes of partial gradients, of all blocks of a batch, up to which a batch is trained so.
_PARTIAL_BYTES = 256 * 1024**2
#: Rows of a block: the most that fit. Fewer than 16 would copy weights for too little work.
FUSED_ROWS = (128, 64, 32, 16)
#: Rows of a block that is one model of many. The batch is no matter: a larger one goes tile by
#: tile, so that a model's bits are those of its shape. More rows would leave a multiprocessor fewer
#: blocks, and with them less to do while one waits.
ENSEMBLE_ROWS = (32, 16)
#: Shared memory of a multiprocessor of sm_90 and sm_100.
KIBIBYTES = 228
# Blocks of a model each that are enough there: a gradient in global memory is written once and read
# twice a step, nearly what the moments of Adam are, and a fourth block would hide less than that.
_ENOUGH = 3
# A multiprocessor's registers from sm_70 on, and what the fused kernels keep to.
_REGISTERS, _REGISTERS_OF_A_THREAD = 65536, 128
# Numbers between a row's end and the next one's beginning, so that eight neighbours which read four
# numbers each begin in different banks.
_PAD = 4


def whole(count: int) -> int:
    """Return `count` rounded up to whole groups of four."""
    return -(-count // 4) * 4


@dataclass(frozen=True)
class FusedLayer:
    """A dense layer in a fused network.

    Attributes
    ----------
    inputs, outputs, activation, bias, saves_z
    weight_at, bias_at : int
        Where they begin in the flat vector of parameters.
    row : int
        Numbers from row to row of the weight there.
    """

    inputs: int
    outputs: int
    activation: str
    bias: bool
    saves_z: bool
    weight_at: int
    bias_at: int
    row: int

    @property
    def stride(self) -> int:
        """Numbers from row to row of the weight in shared memory."""
        return _stride(self.outputs)


@dataclass(frozen=True)
class FusedPlan:
    """Where everything lies in shared memory, in numbers from its beginning.

    Attributes
    ----------
    layers : tuple of FusedLayer
    rows : int
        Of the batch, a block.
    tile_at : tuple of int
        The input's tile and each layer's output's: a row of `row_stride` numbers for each feature,
        features rounded up to whole groups of four.
    z_at : tuple of int
        The tile of what a layer saves before its activation; 0 where it saves none.
    numbers : int
        All of it.
    flat : int
        Numbers of the flat vector of parameters.
    holds : bool
        Whether in front is that flat vector, or else room for the largest weight.
    gradient_at : int or None
        Where a model's gradient lies, or None where it lies in global memory.
    """

    layers: tuple[FusedLayer, ...]
    rows: int
    tile_at: tuple[int, ...]
    z_at: tuple[int, ...]
    numbers: int
    flat: int
    holds: bool
    gradient_at: int | None = None

    def partials(self, batch: int, spec: NetworkSpec) -> int:
        """Return the numbers of the partial gradients of a batch."""
        return -(-batch // self.rows) * flat_size(spec)

    @staticmethod
    def most_partials(spec: NetworkSpec) -> int:
        """Return how many there may be: larger batches go layer by layer."""
        return _PARTIAL_BYTES // np.dtype(spec.dtype).itemsize

    @property
    def row_stride(self) -> int:
        """Numbers from feature to feature."""
        return self.rows + _PAD

    @property
    def forward_numbers(self) -> int:
        """All that a prediction takes of shared memory."""
        return self.numbers if self.gradient_at is None else self.gradient_at

    def weight_near(self, index: int) -> int:
        """Return where a layer's weight lies in shared memory."""
        return self.layers[index].weight_at if self.holds else 0


def fused_plan(spec: NetworkSpec, rows: tuple[int, ...] = FUSED_ROWS) -> FusedPlan | None:
    """Return how a block trains the network, or None where it cannot.

    It can where all layers are dense and wholly trained, none is wider than `MOST_FEATURES`, and
    the least number of rows fits into `SHARED_BYTES`.
    """
    dense = all(isinstance(each, Dense) and each.trainable is True for each in spec.layers)
    if not dense or max(spec.sizes) > MOST_FEATURES:
        return None
    at = {(part.layer, part.name): part.offset for part in flat_parts(spec)}
    layers = tuple(
        _layer(each, at[index, "weight"], at.get((index, "bias"), 0), int(each.out_features))
        for index, each in enumerate(spec.layers)
    )
    plans = (_placed(layers, count, flat_size(spec), holds=False) for count in rows)
    return _first_that_fits(plans, spec)


def ensemble_plan(
    spec: NetworkSpec,
    rows: tuple[int, ...] = ENSEMBLE_ROWS,
    *,
    holds: bool | None = None,
    keeps: bool | None = None,
) -> FusedPlan | None:
    """Return how a block trains a whole model of many, or None where it cannot.

    It can where all layers are dense, none is wider than `MOST_FEATURES`, and the least number of
    rows fits into `SHARED_BYTES`. The block holds all parameters in shared memory where they fit,
    however few the rows, and then the gradient where enough blocks still fit beside each other;
    `holds` and `keeps` ask for one or the other.

    A flat vector lies here as it does in shared memory, so that copies go straight: the rows of a
    weight `FusedLayer.stride` apart, in whole groups of four rows, zeros between.
    """
    dense = all(isinstance(each, Dense) for each in spec.layers)
    if not dense or max(spec.sizes) > MOST_FEATURES:
        return None
    layers, end = [], 0
    for each in spec.layers:
        stride, bias_at = _stride(each.out_features), 0
        weight_at, end = end, end + _aligned(whole(int(each.in_features)) * stride)
        if each.bias:
            bias_at, end = end, end + _aligned(int(each.out_features))
        layers.append(_layer(each, weight_at, bias_at, stride))
    ways = (True, False) if holds is None else (holds,)
    plans = (_placed(tuple(layers), count, end, holds=way) for way in ways for count in rows)
    plan = _first_that_fits(plans, spec)
    if plan is None or not plan.holds or keeps is False:
        return plan
    both = replace(plan, numbers=plan.numbers + end, gradient_at=plan.numbers)
    size = both.numbers * np.dtype(spec.dtype).itemsize
    together = blocks_together(size, ensemble_threads(plan), KIBIBYTES)
    return both if size <= SHARED_BYTES and (keeps or together >= _ENOUGH) else plan


def ensemble_marks(spec: NetworkSpec, plan: FusedPlan, decay_bias: bool) -> NDArray[np.uint8]:
    """Return a mark (`TRAINS`, `DECAYS`) for every 16 numbers of a model's flat vector."""
    marks = np.zeros(plan.flat // ALIGNMENT, np.uint8)
    for layer, at in zip(spec.layers, plan.layers, strict=True):
        if layer.trains_weight:
            end = at.weight_at + whole(at.inputs) * at.row
            marks[at.weight_at // ALIGNMENT : blocks_of(end, ALIGNMENT)] = TRAINS | DECAYS
        if at.bias and layer.trains_bias:
            end = at.bias_at + at.outputs
            mark = TRAINS | (DECAYS if decay_bias else 0)
            marks[at.bias_at // ALIGNMENT : blocks_of(end, ALIGNMENT)] = mark
    return marks


def ensemble_threads(plan: FusedPlan) -> int:
    """Return the threads of a block: a power of two, one for four rows of the widest layer's fours.

    From one warp to 256: more would leave a multiprocessor's registers one block.
    """
    patches = plan.rows // 4 * max(whole(each.outputs) // 4 for each in plan.layers)
    return min(256, max(32, 1 << (patches - 1).bit_length()))


def blocks_together(shared: int, threads: int, kibibytes: int) -> int:
    """Return how many blocks run at once on a multiprocessor of so much shared memory.

    Of `shared` bytes each, beside what the sums of `outcome` take and 1 KiB of the system's (CUDA C
    programming guide, "shared memory" of each card from sm_80 on); of threads of 128 registers.
    """
    by_registers = _REGISTERS // (_REGISTERS_OF_A_THREAD * threads)
    return min(by_registers, kibibytes * 1024 // (shared + 8 * threads + 1024))


def _layer(each: Any, weight_at: int, bias_at: int, row: int) -> FusedLayer:
    inputs, outputs, bias = int(each.in_features), int(each.out_features), bool(each.bias)
    saves = saves_z(each)
    return FusedLayer(inputs, outputs, each.activation, bias, saves, weight_at, bias_at, row)


def _stride(outputs: int) -> int:
    return whole(outputs) + _PAD


def _aligned(count: int) -> int:
    return blocks_of(count, ALIGNMENT) * ALIGNMENT


def _first_that_fits(plans: Iterable[FusedPlan], spec: NetworkSpec) -> FusedPlan | None:
    size = np.dtype(spec.dtype).itemsize
    return next((plan for plan in plans if plan.numbers * size <= SHARED_BYTES), None)


def _placed(layers: tuple[FusedLayer, ...], rows: int, flat: int, *, holds: bool) -> FusedPlan:
    weights = flat if holds else max(whole(each.inputs) * each.stride for each in layers)
    stride = rows + _PAD
    widths = [layers[0].inputs, *(each.outputs for each in layers)]
    sizes = [whole(width) * stride for width in widths]
    sizes += [whole(each.outputs) * stride * each.saves_z for each in layers]
    starts = list(accumulate(sizes, initial=weights))
    n = len(widths)
    z_at = tuple(
        start if each.saves_z else 0 for start, each in zip(starts[n:-1], layers, strict=True)
    )
    return FusedPlan(layers, rows, tuple(starts[:n]), z_at, starts[-1], flat, holds)
