"""Phase A of networks that have slim layers, where rows are many; see `slim` for what those are."""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.bounds import entry
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY
from fastneuron.kernels.numba_cpu.gather import gather_rows
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY
from fastneuron.kernels.numba_cpu.panels import note_run
from fastneuron.kernels.numba_cpu.rows import (
    cross_entropy_block,
    gate_output,
    layer_backward,
    layer_forward,
    scatter_delta,
    values_block,
)
from fastneuron.kernels.numba_cpu.slim import (
    gather_columns,
    slim_backward,
    slim_forward,
    slim_gate,
    slim_losses,
    slim_rows,
    to_columns,
    to_panel,
)
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.views import row, run
from fastneuron.kernels.stages import BACKWARD, FOREIGN, FORWARD, INPUT_DELTA
from fastneuron.kernels.stages import LOSS as WITH_LOSS

panels = inner(at.panels)


@inner
def into_run(arena, head, layer, rows_at, columns_at, first, n_rows):
    """Turn a block of panel rows into columns, at the start of a run of slim layers."""
    columns = layer[at.INPUTS] if columns_at == at.SLIM_IN else layer[at.OUTPUTS]
    source, target = layer[rows_at] + first * lanes(arena), layer[columns_at] + first
    to_columns(arena, source, target, head[at.SLIM_STRIDE], columns, n_rows)


@inner
def out_of_run(arena, head, layer, columns_at, rows_at, first, n_rows):
    """Turn columns into a block of panel rows, at the end of such a run."""
    columns = layer[at.OUTPUTS] if columns_at == at.SLIM_OUT else layer[at.INPUTS]
    source, target = layer[columns_at] + first, layer[rows_at] + first * lanes(arena)
    to_panel(arena, source, target, head[at.SLIM_STRIDE], columns, n_rows)


@inner
def leaves_run(stages, head, layers, index):
    """Whether a slim layer's outputs are read as panel rows."""
    if index + 1 < head[at.N_LAYERS]:
        return layers[index + 1, at.SLIM] == 0
    return not stages & WITH_LOSS or head[at.LOSS] == CROSS_ENTROPY


@glue
def slim_block(
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
):
    """Phase A of one block of rows of a network that has slim layers."""
    width = lanes(arena)
    stride = head[at.CAPACITY] * width
    n_layers = head[at.N_LAYERS]
    batch = samples.shape[0]
    last = row(layers, n_layers - 1)
    offset, padded = first * width, slim_rows(n_rows)
    which = run(samples, first, n_rows)
    if stages & FORWARD:
        if layers[0, at.SLIM]:
            here = layers[0, at.SLIM_IN] + first
            gather_columns(arena, x, which, here, head[at.SLIM_STRIDE])
            for c in range(x.shape[1]):
                if most >= 0:
                    note_run(arena, most, here + c * head[at.SLIM_STRIDE], padded)
        else:
            here = layers[0, at.IN_ROWS] + offset
            gather_rows(arena, x, which, n_rows, here, stride, most)
        for index in range(n_layers):
            layer = row(layers, index)
            note = entry(most, index + 1, 0, width) if index + 1 < n_layers else np.int64(-1)
            if layer[at.SLIM]:
                if index > 0 and not layers[index - 1, at.SLIM]:
                    into_run(arena, head, layer, at.IN_ROWS, at.SLIM_IN, first, n_rows)
                slim_forward(arena, head, layer, first, padded, note)
                if leaves_run(stages, head, layers, index):
                    out_of_run(arena, head, layer, at.SLIM_OUT, at.OUT_ROWS, first, n_rows)
            else:
                layer_forward(
                    arena,
                    head,
                    layer,
                    np.int64(0),
                    panels(layer[at.OUTPUTS], width),
                    layer[at.IN_ROWS] + offset,
                    layer[at.PRE_ROWS] + offset,
                    layer[at.OUT_ROWS] + offset,
                    stride,
                    n_rows,
                    note,
                )
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
        elif last[at.SLIM]:
            slim_losses(
                arena,
                head[at.LOSS],
                last[at.SLIM_OUT] + first,
                last[at.SLIM_OUT_DELTA] + first,
                head[at.SLIM_STRIDE],
                last[at.OUTPUTS],
                targets,
                weight,
                which,
                head[at.ROW_LOSS] + first,
                arena.dtype.type(1.0 / batch),
                scratch,
            )
        else:
            values_block(arena, head, last, stride, targets, weight, samples, first, n_rows, batch)
    if stages & FOREIGN:
        for r in range(first, first + n_rows):
            scatter_delta(arena, row(targets, r), last[at.OUT_DELTA] + r * width, stride)
    if stages & BACKWARD:
        note = entry(most, n_layers - 1, 1, width)
        if last[at.SLIM]:
            if stages & FOREIGN or head[at.LOSS] == CROSS_ENTROPY:
                into_run(arena, head, last, at.OUT_DELTA, at.SLIM_OUT_DELTA, first, n_rows)
            slim_gate(arena, head, last, first, padded, note)
        else:
            gate_output(arena, last, stride, first, n_rows, note)
        for index in range(n_layers - 1, -1 if stages & INPUT_DELTA else 0, -1):
            layer, before = row(layers, index), row(layers, max(index - 1, 0))
            code, saved = before[at.ACTIVATION], before[at.SAVED_ROWS]
            note = entry(most, index - 1, 1, width)
            here, down = layer[at.SLIM], before[at.SLIM]
            if index == 0:
                down = False
            if index == 0 or down:
                # np.int64: a literal would be a signature, and a compilation, of its own.
                code, note = np.int64(IDENTITY), np.int64(-1)
            if here:
                slim_backward(arena, head, layer, first, padded)
            else:
                none, end = np.int64(0), panels(layer[at.INPUTS], width)
                layer_backward(
                    arena, head, layer, none, end, stride, first, n_rows, code, saved, note
                )
            if down:
                if not here:
                    into_run(arena, head, before, at.OUT_DELTA, at.SLIM_OUT_DELTA, first, n_rows)
                note = entry(most, index - 1, 1, width)
                slim_gate(arena, head, before, first, padded, note)
            elif here:
                out_of_run(arena, head, layer, at.SLIM_IN_DELTA, at.IN_DELTA, first, n_rows)
                if index > 0:
                    gate_output(arena, before, stride, first, n_rows, note)
