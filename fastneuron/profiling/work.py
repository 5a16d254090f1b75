"""How much each part of a training step has to do: multiply-adds, and the words that it must move.

Counted from shapes, for the ideal of a fused kernel: B batch rows, I inputs, O outputs.

==========  ==================================  ==============================================
part        multiply-adds                       words
==========  ==================================  ==============================================
gather      0                                   2 B I
forward     B I O of a dense layer              B I + I O + B O (+ O with a bias)
loss        0                                   3 B O
backward    B I O of a dense layer              B O + I O + B I
gradient    B I O (+ B O with a bias)           B I + B O, and where the update is the same visit
update      0                                   (3 + 2 m) I O: the parameter read and written, m
                                                moments likewise, the transposed copy written
==========  ==================================  ==============================================

A normalisation or a dropout reads and writes its rows once each way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastneuron.kernels import marks
from fastneuron.layers import BatchNorm, Dense, Dropout
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["Work", "work_of"]


class Work(NamedTuple):
    """What a part of a step has to do.

    Attributes
    ----------
    multiply_adds : int
    moved : int
        Bytes that it reads and writes at least.
    held : int
        Bytes that it goes to and fro in: they decide which level of memory it is fed from.
    """

    multiply_adds: int
    moved: int
    held: int


def work_of(
    spec: NetworkSpec, optimizer: Optimizer, rows: int, part: int, index: int, *, fused: bool
) -> Work:
    """Return what a part of a layer has to do in a step of so many rows.

    Parameters
    ----------
    part : int
        A part of `fastneuron.kernels.marks`.
    index : int
        The layer.
    fused : bool
        Whether a gradient and its update are one visit.
    """
    layer = spec.layers[index]
    size = np.dtype(spec.dtype).itemsize
    inputs, outputs = int(layer.in_features), int(layer.out_features)
    ins, outs = rows * inputs, rows * outputs
    weights = layer.n_weights if isinstance(layer, Dense) else 0
    bias = outputs if layer.bias else 0
    trained = layer.n_weights * layer.trains_weight + outputs * layer.trains_bias
    update = (3 + 2 * optimizer.n_moments) * trained
    if isinstance(layer, Dropout):
        ins = 0  # the mask is not stored
    # A batch normalisation has summed its gradient up on the way back.
    read = 0 if isinstance(layer, BatchNorm) else ins + outs
    multiply_adds, words, held = {
        marks.GATHER: (0, 2 * ins, 2 * ins),
        marks.FORWARD: (rows * weights, ins + weights + outs + bias, ins + weights + outs),
        marks.LOSS: (0, 3 * outs, 3 * outs),
        marks.BACKWARD: (rows * weights, outs + weights + ins, outs + weights + ins),
        marks.GRADIENT: (
            rows * (weights * layer.trains_weight + outputs * layer.trains_bias) if weights else 0,
            read + (update if fused else trained),
            read + (update if fused else trained),
        ),
        marks.UPDATE: (0, update, update),
    }.get(part, (0, 0, 0))
    return Work(multiply_adds, size * words, size * held)
