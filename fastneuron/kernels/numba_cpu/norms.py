"""Layers without a weight matrix: normalisations, and the tiles of vectors of parameters."""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.batch_norm import (
    BIAS_SLOPE,
    WEIGHT_SLOPE,
    batch_back,
    frozen_back,
    moments,
    move_statistics,
    normalise,
)
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY, RELU, activate_rest, gate_rest
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.layer_norm import normalise_rows, rows_back, rows_weight_gradient
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import copy, row, run
from fastneuron.kernels.numba_cpu.visits import panel_sum


@inner
def norm_forward(
    arena, head, layer, first_panel, end_panel, x, pre, out, stride, first, n_rows, most
):
    """Normalise a block of rows and apply f; places as in `layer_forward`.

    `first` is the number of the block's first row in the batch, or -1 outside of training. A
    normalisation of a batch needs all of its rows then, one of rows all panels.
    """
    width = lanes(arena)
    kind, code, numbers = layer[at.KIND], layer[at.ACTIVATION], layer[at.NUMBERS]
    weight, bias = head[at.PARAMETERS] + layer[at.WEIGHT], layer[at.START]
    bias_step = width if layer[at.BIAS] >= 0 else 0
    is_relu, note = np.int64(code == RELU), np.int64(-1)
    if code in (RELU, IDENTITY):
        note = most
    if kind == at.LAYER_NORM:
        features, kept = layer[at.OUTPUTS], np.int64(-1)
        if first >= 0:
            kept = layer[at.KEPT] + first
        normalise_rows(
            arena,
            x,
            pre,
            stride,
            features,
            n_rows,
            arena.dtype.type(1.0 / features),
            numbers,
            weight,
            bias,
            bias_step,
            kept,
            kept + head[at.CAPACITY],
            is_relu,
            note,
        )
    else:
        by_batch = kind == at.BATCH_NORM and first >= 0
        statistics, step = layer[at.RUNNING], panel_width(arena, layer)
        if by_batch:
            statistics = layer[at.KEPT]
        for q in range(first_panel, end_panel):
            here, own = q * stride, statistics + q * width
            if by_batch:
                share = arena.dtype.type(1.0 / n_rows)
                moments(arena, x + here, n_rows, share, numbers, own, step)
            normalise(
                arena,
                x + here,
                pre + here,
                n_rows,
                own,
                own + step,
                numbers,
                weight + q * width,
                bias + q * bias_step,
                is_relu,
                note,
            )
    for q in range(first_panel, end_panel):
        here = q * stride
        activate_rest(arena, code, pre + here, out + here, n_rows * width, most)


@inner
def panel_width(arena, layer):
    """Elements of a vector of whole panels, one number a feature."""
    width = lanes(arena)
    return (layer[at.OUTPUTS] + width - 1) // width * width


@inner
def norm_backward(
    arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, most
):
    """Do what `layer_backward` does, for a normalisation; rows and panels as in `norm_forward`."""
    width = lanes(arena)
    kind, offset, step = layer[at.KIND], first * width, panel_width(arena, layer)
    x, delta, out = layer[at.IN_ROWS], layer[at.OUT_DELTA] + offset, layer[at.IN_DELTA] + offset
    weight = head[at.PARAMETERS] + layer[at.WEIGHT]
    is_relu, note = np.int64(code == RELU), np.int64(-1)
    if code in (RELU, IDENTITY):
        note = most
    # Where nothing is gated, what is loaded all the same shall be in cache.
    gates = saved + offset if code == RELU else delta
    if kind == at.LAYER_NORM:
        features = layer[at.OUTPUTS]
        rows_back(
            arena,
            x + offset,
            delta,
            out,
            stride,
            features,
            n_rows,
            arena.dtype.type(1.0 / features),
            weight,
            layer[at.KEPT] + first,
            layer[at.KEPT] + head[at.CAPACITY] + first,
            gates,
            is_relu,
            note,
        )
    else:
        for q in range(first_panel, end_panel):
            here, vector = q * stride, q * width
            if kind == at.BATCH_NORM:
                batch_back(
                    arena,
                    x + here,
                    delta + here,
                    n_rows,
                    arena.dtype.type(1.0 / n_rows),
                    layer[at.KEPT] + vector,
                    step,
                    weight + vector,
                    gates + here,
                    is_relu,
                    note,
                )
            else:
                frozen_back(
                    arena,
                    delta + here,
                    n_rows,
                    layer[at.RUNNING] + step + vector,
                    layer[at.NUMBERS],
                    weight + vector,
                    gates + here,
                    is_relu,
                    note,
                )
    for q in range(first_panel, end_panel):
        here = q * stride
        gate_rest(arena, code, out + here, saved + offset + here, n_rows * width, most)


@inner
def vector_gradient(arena, head, layer, tile, batch, out, bias_out):
    """Gradient of a tile of one panel of weights and biases, of those of them that are trained."""
    width = lanes(arena)
    has_weight = tile[at.TILE_INPUTS] > 0
    if tile[at.TILE_KIND] == at.BATCH_NORM:
        kept, step = kept_of(layer, tile), panel_width(arena, layer)
        if has_weight:
            copy(run(arena, out, width), run(arena, kept + WEIGHT_SLOPE * step, width))
        if bias_out >= 0:
            copy(run(arena, bias_out, width), run(arena, kept + BIAS_SLOPE * step, width))
        return
    if has_weight:
        means = layer[at.KEPT]
        inverses = means + head[at.CAPACITY]
        columns = tile[at.TILE_OUTPUTS]
        rows_weight_gradient(
            arena, tile[at.TILE_A], tile[at.TILE_B], columns, batch, means, inverses, out
        )
    if bias_out >= 0:
        panel_sum(arena, tile[at.TILE_B], batch, bias_out)


@inner
def kept_of(layer, tile):
    """Where a batch normalisation keeps the mean of a tile's panel."""
    return layer[at.KEPT] + tile[at.TILE_WEIGHT] - layer[at.WEIGHT]


@inner
def follow_batch(arena, layers, tile, batch):
    """After its update, let a batch normalisation's tile move its running statistics."""
    if batch < 2:
        return
    layer = row(layers, tile[at.TILE_LAYER])
    kept, step = kept_of(layer, tile), panel_width(arena, layer)
    running = layer[at.RUNNING] + kept - layer[at.KEPT]
    wider = arena.dtype.type(batch / (batch - 1.0))
    move_statistics(arena, running, step, kept, step, layer[at.NUMBERS], wider)
