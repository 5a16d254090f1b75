"""Phase A of a step: rows go forward, meet the loss, and come back as deltas.

The way there and back has stations: the gather, each layer forward, the loss, each layer back. A
thread takes blocks of rows through as many stations as it can. Where a thread's rows would be few
and the weights many, it takes panels of columns instead, one station at a time for all rows: its
panels are those that it updates in phase B, so that half of the weights no longer come from the
other thread's cache. Both give the same bits. A normalisation of the batch, whose sums go over all
rows, is dealt out by panels at any rate. Between stations that are dealt out apart the team meets.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.marks import BACKWARD as BACKWARD_PART
from fastneuron.kernels.marks import FORWARD as FORWARD_PART
from fastneuron.kernels.marks import GATHER
from fastneuron.kernels.marks import LOSS as LOSS_PART
from fastneuron.kernels.numba_cpu.bounds import entry, forget_maxima, maxima_of
from fastneuron.kernels.numba_cpu.dropout import dropout_panels
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY
from fastneuron.kernels.numba_cpu.few import few_rows_backward
from fastneuron.kernels.numba_cpu.gather import gather_rows
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY
from fastneuron.kernels.numba_cpu.marks import mark, marks_of, meet
from fastneuron.kernels.numba_cpu.norms import norm_backward, norm_forward
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
from fastneuron.kernels.numba_cpu.sync import draw
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import row, run
from fastneuron.kernels.stages import BACKWARD, FOREIGN, FORWARD, INPUT_DELTA
from fastneuron.kernels.stages import LOSS as WITH_LOSS

panels = inner(at.panels)
goes_by_columns = inner(at.goes_by_columns)


@glue
def forward_part(
    stages, arena, head, layers, index, first_panel, end_panel, first, n_rows, scalars, most, slim
):
    """Take some rows forward through some output panels of a layer."""
    width = lanes(arena)
    layer, offset, stride = row(layers, index), first * width, head[at.CAPACITY] * width
    note = entry(most, index + 1, 0, width) if index + 1 < head[at.N_LAYERS] else np.int64(-1)
    x, out = layer[at.IN_ROWS] + offset, layer[at.OUT_ROWS] + offset
    pre = layer[at.PRE_ROWS] + offset
    if slim and layer[at.SLIM]:
        slim_layer_forward(stages, arena, head, layers, index, layer, first, n_rows, note)
    elif layer[at.KIND] == at.DENSE:
        layer_forward(arena, head, layer, first_panel, end_panel, x, pre, out, stride, n_rows, note)
    elif layer[at.KIND] == at.DROPOUT:
        dropout_panels(
            arena,
            layer,
            index,
            scalars,
            first_panel,
            end_panel,
            x,
            out,
            stride,
            first,
            n_rows,
            np.int64(IDENTITY),
            out,
            note,
        )
    else:
        norm_forward(
            arena, head, layer, first_panel, end_panel, x, pre, out, stride, first, n_rows, note
        )


@glue
def backward_part(
    stages,
    arena,
    head,
    layers,
    index,
    first_panel,
    end_panel,
    first,
    n_rows,
    scalars,
    most,
    few,
    slim,
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
        further = index >= head[at.BACK_TO] or stages & INPUT_DELTA != 0
        slim_layer_backward(stages, arena, head, layers, index, layer, first, n_rows, most, further)
        if further and index > 0 and not before[at.SLIM]:
            gate_output(arena, before, stride, first, n_rows, note)
    elif layer[at.KIND] == at.DROPOUT:
        delta = layer[at.OUT_DELTA] + first * width
        dropout_panels(
            arena,
            layer,
            index,
            scalars,
            first_panel,
            end_panel,
            delta,
            delta,
            stride,
            first,
            n_rows,
            code,
            saved + first * width,
            note,
        )
    elif layer[at.KIND] != at.DENSE:
        norm_backward(
            arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, note
        )
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


@inner
def block_rows(head, batch, n_threads, slim):
    """Rows that a thread takes through phase A at a time."""
    share = batch if n_threads == 1 else (batch + n_threads - 1) // n_threads
    unit, most_rows = at.TILE_ROWS, at.MAX_BLOCK
    if slim:
        unit = at.SLIM_ROWS
        most_rows = at.SLIM_BLOCK if head[at.SLIM_LAYERS] == head[at.N_LAYERS] else at.MAX_BLOCK
    return min(most_rows, (share + unit - 1) & -unit)  # no division: a unit is a power of two


@inner
def layer_at(station, n_layers):
    """Return the layer of a station; -1 and `n_layers` stand for the gather and the loss."""
    return station - 1 if station <= n_layers + 1 else 2 * n_layers + 1 - station


@inner
def part_of(station, index, n_layers):
    """Return what a station's mark says: the part, and its layer."""
    if station == 0:
        return GATHER, 0
    if station == n_layers + 1:
        return LOSS_PART, n_layers - 1
    return (FORWARD_PART if station <= n_layers else BACKWARD_PART), index


@inner
def dealt_by_panels(layers, index, by_columns):
    """Whether the team deals out a station's panels, each for all rows of the batch."""
    if index < 0 or index >= layers.shape[0]:
        return False
    kind = layers[index, at.KIND]
    return kind == at.BATCH_NORM or (by_columns and kind != at.LAYER_NORM)


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
    scalars,
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
    final = 0 if stages & INPUT_DELTA else head[at.BACK_TO]
    if slim and final > 0 and layers[final - 1, at.SLIM]:
        final -= 1  # slim layers gate their own deltas, the first that is trained too
    most = np.int64(-1)
    if noting:
        most = maxima_of(arena, head, tid)
        forget_maxima(arena, head, tid)
    n_parameters = head[at.MOMENT_1] - head[at.PARAMETERS]
    by_columns = not slim and goes_by_columns(layers, n_parameters, batch, n_threads)
    marks = marks_of(words, tid)
    block = block_rows(head, batch, n_threads, slim)
    blocks = 1 if batch <= block else (batch + block - 1) // block
    begin = 0 if stages & FORWARD else n_layers + 1
    end = n_layers + 2
    if stages & BACKWARD:
        end = 2 * n_layers + 2 - final
    # One loop for all stations: each call in it is compiled once.
    while begin < end:
        by_panels = dealt_by_panels(layers, layer_at(begin, n_layers), by_columns)
        stop, count, first_panel, end_panel = begin + 1, blocks, np.int64(0), np.int64(0)
        if by_panels:
            count = panels(layers[layer_at(begin, n_layers), at.INPUTS], width)
            if begin <= n_layers:
                count = panels(layers[begin - 1, at.OUTPUTS], width)
        while not (by_columns or by_panels) and stop < end:
            if dealt_by_panels(layers, layer_at(stop, n_layers), by_columns):
                break
            stop += 1
        while True:
            ticket = draw(words, tid, n_threads, count)
            if ticket >= count:
                break
            first, n_rows = np.int64(0), batch
            if by_panels:
                first_panel, end_panel = ticket, ticket + 1
            else:
                first = ticket * block
                n_rows = min(block, batch - first)
            for station in range(begin, stop):
                index = layer_at(station, n_layers)
                mark(words, marks, *part_of(station, index, n_layers))
                if station == 0:
                    which = run(samples, first, n_rows)
                    if slim and layers[0, at.SLIM]:
                        slim_gather(arena, head, row(layers, 0), x, which, first, most)
                    else:
                        here = layers[0, at.IN_ROWS] + first * width
                        gather_rows(arena, x, which, n_rows, here, stride, most)
                elif station <= n_layers:
                    if not by_panels:
                        end_panel = panels(layers[index, at.OUTPUTS], width)
                    forward_part(
                        stages,
                        arena,
                        head,
                        layers,
                        index,
                        first_panel,
                        end_panel,
                        first,
                        n_rows,
                        scalars,
                        most,
                        slim,
                    )
                elif station == n_layers + 1:
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
                else:
                    if not by_panels:
                        end_panel = panels(layers[index, at.INPUTS], width)
                    backward_part(
                        stages,
                        arena,
                        head,
                        layers,
                        index,
                        first_panel,
                        end_panel,
                        first,
                        n_rows,
                        scalars,
                        most,
                        few,
                        slim,
                    )
        begin = stop
        if begin < end and not meet(words, marks, n_threads):
            return False
    return True
