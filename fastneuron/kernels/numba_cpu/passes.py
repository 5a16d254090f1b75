"""Phase A of a step: rows go forward, meet the loss, and come back as deltas.

A thread takes blocks of rows through all layers. Where a thread's rows would be few and the weights
many, it takes panels of columns instead, a layer at a time for all rows: its panels are those that
it updates in phase B, so that half of the weights no longer come from the other thread's cache.
Both give the same bits.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.bounds import entry, forget_maxima, maxima_of
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY
from fastneuron.kernels.numba_cpu.few import few_rows_backward
from fastneuron.kernels.numba_cpu.gather import gather_rows
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY
from fastneuron.kernels.numba_cpu.rows import (
    cross_entropy_block,
    gate_output,
    layer_backward,
    layer_forward,
    scatter_delta,
    values_block,
)
from fastneuron.kernels.numba_cpu.slim_block import slim_block
from fastneuron.kernels.numba_cpu.sync import barrier, draw
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import row, run
from fastneuron.kernels.stages import BACKWARD, FOREIGN, FORWARD, INPUT_DELTA
from fastneuron.kernels.stages import LOSS as WITH_LOSS

panels = inner(at.panels)
goes_by_columns = inner(at.goes_by_columns)


@glue
def forward_part(arena, head, layers, index, first_panel, end_panel, first, n_rows, most):
    """Take some rows forward through some output panels of a layer."""
    width = lanes(arena)
    layer, offset = row(layers, index), first * width
    note = entry(most, index + 1, 0, width) if index + 1 < head[at.N_LAYERS] else np.int64(-1)
    layer_forward(
        arena,
        head,
        layer,
        first_panel,
        end_panel,
        layer[at.IN_ROWS] + offset,
        layer[at.PRE_ROWS] + offset,
        layer[at.OUT_ROWS] + offset,
        head[at.CAPACITY] * width,
        n_rows,
        note,
    )


@glue
def backward_part(arena, head, layers, index, first_panel, end_panel, first, n_rows, few, most):
    """Take some rows' deltas back through some input panels of a layer."""
    width = lanes(arena)
    layer, stride = row(layers, index), head[at.CAPACITY] * width
    # np.int64: a literal would be a signature, and a compilation, of its own.
    code, saved, note = np.int64(IDENTITY), np.int64(0), np.int64(-1)
    if index > 0:
        before = row(layers, index - 1)
        code, saved = before[at.ACTIVATION], before[at.SAVED_ROWS]
        note = entry(most, index - 1, 1, width)
    if few:
        few_rows_backward(
            arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, note
        )
    else:
        layer_backward(
            arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, note
        )


@glue
def loss_part(
    stages,
    arena,
    head,
    layers,
    labels,
    targets,
    weight,
    samples,
    first,
    n_rows,
    batch,
    scratch,
    most,
):
    """Turn some rows' outputs into loss and dL/dz of the last layer."""
    width = lanes(arena)
    stride, n_layers = head[at.CAPACITY] * width, head[at.N_LAYERS]
    last = row(layers, n_layers - 1)
    if stages & WITH_LOSS:
        if head[at.LOSS] == CROSS_ENTROPY:
            cross_entropy_block(
                arena,
                head,
                last,
                stride,
                labels,
                targets,
                weight,
                samples,
                first,
                n_rows,
                batch,
                scratch,
            )
        else:
            values_block(arena, head, last, stride, targets, weight, samples, first, n_rows, batch)
    if stages & FOREIGN:
        for r in range(first, first + n_rows):
            scatter_delta(arena, row(targets, r), last[at.OUT_DELTA] + r * width, stride)
    if stages & BACKWARD:
        gate_output(arena, last, stride, first, n_rows, entry(most, n_layers - 1, 1, width))


@glue
def phase_a(
    stages,
    arena,
    head,
    layers,
    x,
    labels,
    targets,
    weight,
    samples,
    words,
    tid,
    n_threads,
    scratch,
    noting,
    few,
    slim,
):
    """Do phase A of one step, `noting` maxima; return False where the team gives up.

    `few` says that the deltas go back through the weights as they lie, `slim` that the rows are
    many enough for layers of a few columns to work on columns.
    """
    width = lanes(arena)
    stride, n_layers = head[at.CAPACITY] * width, head[at.N_LAYERS]
    batch = samples.shape[0]
    final = 0 if stages & INPUT_DELTA else 1
    most = np.int64(-1)
    if noting:
        most = maxima_of(arena, head, tid)
        forget_maxima(arena, head, tid)
    n_parameters = head[at.MOMENT_1] - head[at.PARAMETERS]
    by_columns = not slim and goes_by_columns(layers, n_parameters, batch, n_threads)
    share = (batch + n_threads - 1) // n_threads
    unit, most_rows = at.TILE_ROWS, at.MAX_BLOCK
    if slim:
        unit = at.SLIM_ROWS
        most_rows = at.SLIM_BLOCK if head[at.SLIM_LAYERS] == n_layers else at.MAX_BLOCK
    block = min(most_rows, (share + unit - 1) // unit * unit)
    blocks = (batch + block - 1) // block
    none = np.int64(0)
    # By rows this is all there is; by columns gather and loss, with the layers between them.
    for part in range(2 if by_columns else 1):
        while True:
            ticket = draw(words, tid, n_threads, blocks)
            if ticket >= blocks:
                break
            first = ticket * block
            n_rows = min(block, batch - first)
            if slim:
                slim_block(
                    stages,
                    arena,
                    head,
                    layers,
                    x,
                    labels,
                    targets,
                    weight,
                    samples,
                    first,
                    n_rows,
                    scratch,
                    most,
                )
                continue
            if stages & FORWARD and part == 0:
                here = layers[0, at.IN_ROWS] + first * width
                gather_rows(arena, x, run(samples, first, n_rows), n_rows, here, stride, most)
                if not by_columns:
                    for index in range(n_layers):
                        end = panels(layers[index, at.OUTPUTS], width)
                        forward_part(arena, head, layers, index, none, end, first, n_rows, most)
            if not by_columns or part == 1:
                loss_part(
                    stages,
                    arena,
                    head,
                    layers,
                    labels,
                    targets,
                    weight,
                    samples,
                    first,
                    n_rows,
                    batch,
                    scratch,
                    most,
                )
            if stages & BACKWARD and not by_columns:
                for index in range(n_layers - 1, final - 1, -1):
                    end = panels(layers[index, at.INPUTS], width)
                    backward_part(arena, head, layers, index, none, end, first, n_rows, few, most)
        if not by_columns:
            return True
        if not barrier(words, n_threads):
            return False
        if part == 0 and stages & FORWARD:
            for index in range(n_layers):
                count = panels(layers[index, at.OUTPUTS], width)
                while True:
                    q = draw(words, tid, n_threads, count)
                    if q >= count:
                        break
                    forward_part(arena, head, layers, index, q, q + 1, none, batch, most)
                if not barrier(words, n_threads):
                    return False
    if stages & BACKWARD:
        for index in range(n_layers - 1, final - 1, -1):
            count = panels(layers[index, at.INPUTS], width)
            while True:
                p = draw(words, tid, n_threads, count)
                if p >= count:
                    break
                backward_part(arena, head, layers, index, p, p + 1, none, batch, few, most)
            if index > final and not barrier(words, n_threads):
                return False
    return True
