"""Phase A of a step: rows go forward, meet the loss, and come back as deltas.

A thread takes blocks of rows through all layers. Where a thread's rows would be few and the weights
many, it takes panels of columns instead, a layer at a time for all rows: its panels are those that
it updates in phase B, so that half of the weights no longer come from the other thread's cache.
Both give the same bits.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
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
from fastneuron.kernels.numba_cpu.slim_block import (
    slim_gather,
    slim_layer_backward,
    slim_layer_forward,
    slim_loss_block,
)
from fastneuron.kernels.numba_cpu.sync import barrier, draw
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import row, run
from fastneuron.kernels.stages import BACKWARD, FOREIGN, FORWARD, INPUT_DELTA
from fastneuron.kernels.stages import LOSS as WITH_LOSS

panels = inner(at.panels)
goes_by_columns = inner(at.goes_by_columns)


@glue
def forward_part(
    stages, arena, head, layers, index, first_panel, end_panel, first, n_rows, most, slim
):
    """Take some rows forward through some output panels of a layer."""
    width = lanes(arena)
    layer, offset = row(layers, index), first * width
    note = entry(most, index + 1, 0, width) if index + 1 < head[at.N_LAYERS] else np.int64(-1)
    if slim and layer[at.SLIM]:
        slim_layer_forward(stages, arena, head, layers, index, layer, first, n_rows, note)
    else:
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
def backward_part(
    stages, arena, head, layers, index, first_panel, end_panel, first, n_rows, most, few, slim
):
    """Take some rows' deltas back through some input panels of a layer."""
    width = lanes(arena)
    layer, stride = row(layers, index), head[at.CAPACITY] * width
    # np.int64: a literal would be a signature, and a compilation, of its own.
    code, saved, note = np.int64(IDENTITY), np.int64(0), np.int64(-1)
    before = row(layers, max(index - 1, 0))
    if index > 0 and not (slim and before[at.SLIM] and not layer[at.SLIM]):
        # Before a slim layer nothing is gated here: it gates for itself.
        code, saved = before[at.ACTIVATION], before[at.SAVED_ROWS]
        note = entry(most, index - 1, 1, width)
    if slim and layer[at.SLIM]:
        further = index > 0 or stages & INPUT_DELTA != 0
        slim_layer_backward(stages, arena, head, layers, index, layer, first, n_rows, most, further)
        if index > 0 and not before[at.SLIM]:
            gate_output(arena, before, stride, first, n_rows, note)
    elif few:
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
    slim,
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
        elif slim and last[at.SLIM]:
            which = run(samples, first, n_rows)
            slim_loss_block(arena, head, last, targets, weight, which, first, batch, scratch)
        else:
            values_block(arena, head, last, stride, targets, weight, samples, first, n_rows, batch)
    if stages & FOREIGN:
        for r in range(first, first + n_rows):
            scatter_delta(arena, row(targets, r), last[at.OUT_DELTA] + r * width, stride)
    if stages & BACKWARD and not (slim and last[at.SLIM]):
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
    # Slim layers gate their own deltas, the first one too.
    final = 0 if stages & INPUT_DELTA or (slim and layers[0, at.SLIM]) else 1
    most = np.int64(-1)
    if noting:
        most = maxima_of(arena, head, tid)
        forget_maxima(arena, head, tid)
    n_parameters = head[at.MOMENT_1] - head[at.PARAMETERS]
    by_columns = not slim and goes_by_columns(layers, n_parameters, batch, n_threads)
    share = batch if n_threads == 1 else (batch + n_threads - 1) // n_threads
    unit, most_rows = at.TILE_ROWS, at.MAX_BLOCK
    if slim:
        unit = at.SLIM_ROWS
        most_rows = at.SLIM_BLOCK if head[at.SLIM_LAYERS] == n_layers else at.MAX_BLOCK
    block = min(most_rows, (share + unit - 1) & -unit)  # no division: a unit is a power of two
    # By rows one pass does everything. By columns: gather, each layer forward, loss, each layer
    # back. One loop for both, since each call of it is compiled.
    for turn in range(2 * n_layers + 2 if by_columns else 1):
        count = 1 if batch <= block else (batch + block - 1) // block
        forward_from, forward_to = 0, n_layers
        back_from, back_to = final, n_layers
        with_loss = True
        if by_columns:
            forward_to = back_from = back_to = 0
            with_loss = turn == n_layers + 1
            if 1 <= turn <= n_layers:
                forward_from, forward_to = turn - 1, turn
                count = panels(layers[forward_from, at.OUTPUTS], width)
            elif turn > n_layers + 1:
                back_from = 2 * n_layers + 1 - turn
                back_to = back_from + 1
                if back_from < final:
                    break
                count = panels(layers[back_from, at.INPUTS], width)
        whole_batch = by_columns and (forward_to > 0 or back_to > 0)
        while True:
            ticket = draw(words, tid, n_threads, count)
            if ticket >= count:
                break
            first, end = ticket * block, np.int64(0)
            n_rows, first_panel = min(block, batch - first), np.int64(0)
            if whole_batch:
                first, n_rows, first_panel, end = np.int64(0), batch, ticket, ticket + 1
            if stages & FORWARD and turn == 0:
                which = run(samples, first, n_rows)
                if slim and layers[0, at.SLIM]:
                    slim_gather(arena, head, row(layers, 0), x, which, first, most)
                else:
                    here = layers[0, at.IN_ROWS] + first * width
                    gather_rows(arena, x, which, n_rows, here, stride, most)
            if stages & FORWARD:
                for index in range(forward_from, forward_to):
                    if not by_columns:
                        end = panels(layers[index, at.OUTPUTS], width)
                    forward_part(
                        stages,
                        arena,
                        head,
                        layers,
                        index,
                        first_panel,
                        end,
                        first,
                        n_rows,
                        most,
                        slim,
                    )
            if with_loss:
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
                    slim,
                )
            if stages & BACKWARD:
                for index in range(back_to - 1, back_from - 1, -1):
                    if not by_columns:
                        end = panels(layers[index, at.INPUTS], width)
                    backward_part(
                        stages,
                        arena,
                        head,
                        layers,
                        index,
                        first_panel,
                        end,
                        first,
                        n_rows,
                        most,
                        few,
                        slim,
                    )
        if by_columns and not barrier(words, n_threads):
            return False
    return True
