"""How a small network lies in a block's shared memory: a function of its shape alone.

Plain Python, shared by the CUDA backends, as `device_plan` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from fastneuron.kernels.device_plan import flat_parts, flat_size, saves_z
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec

__all__ = [
    "FUSED_ROWS",
    "MOST_FEATURES",
    "SHARED_BYTES",
    "FusedLayer",
    "FusedPlan",
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
    """

    inputs: int
    outputs: int
    activation: str
    bias: bool
    saves_z: bool
    weight_at: int
    bias_at: int

    @property
    def stride(self) -> int:
        """Numbers from row to row of the weight in shared memory."""
        return whole(self.outputs) + _PAD


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
        All of it. In front is room for the largest weight.
    """

    layers: tuple[FusedLayer, ...]
    rows: int
    tile_at: tuple[int, ...]
    z_at: tuple[int, ...]
    numbers: int

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
        FusedLayer(
            int(each.in_features),
            int(each.out_features),
            each.activation,
            bool(each.bias),
            saves_z(each),
            at[index, "weight"],
            at.get((index, "bias"), 0),
        )
        for index, each in enumerate(spec.layers)
    )
    for count in rows:
        plan = _placed(layers, count)
        if plan.numbers * np.dtype(spec.dtype).itemsize <= SHARED_BYTES:
            return plan
    return None


def _placed(layers: tuple[FusedLayer, ...], rows: int) -> FusedPlan:
    weight = max(whole(each.inputs) * each.stride for each in layers)
    stride = rows + _PAD
    widths = [layers[0].inputs, *(each.outputs for each in layers)]
    sizes = [whole(width) * stride for width in widths]
    sizes += [whole(each.outputs) * stride * each.saves_z for each in layers]
    starts = list(accumulate(sizes, initial=weight))
    n = len(widths)
    z_at = tuple(
        start if each.saves_z else 0 for start, each in zip(starts[n:-1], layers, strict=True)
    )
    return FusedPlan(layers, rows, tuple(starts[:n]), z_at, starts[-1])
