"""What slim layers add to phase A, where rows are many; see `slim` for what they are."""

from __future__ import annotations

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.bounds import entry
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY
from fastneuron.kernels.numba_cpu.panels import note_run
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
from fastneuron.kernels.stages import FOREIGN
from fastneuron.kernels.stages import LOSS as WITH_LOSS


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


@inner
def slim_gather(arena, head, layer, x, which, first, most):
    """Gather rows `which` of x to the columns of a slim layer 0."""
    here, stride = layer[at.SLIM_IN] + first, head[at.SLIM_STRIDE]
    gather_columns(arena, x, which, here, stride)
    if most >= 0:
        for c in range(x.shape[1]):
            note_run(arena, most, here + c * stride, slim_rows(which.shape[0]))


@inner
def slim_layer_forward(stages, arena, head, layers, index, layer, first, n_rows, most):
    """`layer_forward` of a slim layer; where its run begins or ends, rows are turned."""
    if index > 0 and not layers[index - 1, at.SLIM]:
        into_run(arena, head, layer, at.IN_ROWS, at.SLIM_IN, first, n_rows)
    slim_forward(arena, head, layer, first, slim_rows(n_rows), most)
    if leaves_run(stages, head, layers, index):
        out_of_run(arena, head, layer, at.SLIM_OUT, at.OUT_ROWS, first, n_rows)


@inner
def slim_loss_block(arena, head, layer, targets, weight, which, first, batch, scratch):
    """Any loss but cross-entropy of a block of rows whose outputs are columns."""
    slim_losses(
        arena,
        head[at.LOSS],
        layer[at.SLIM_OUT] + first,
        layer[at.SLIM_OUT_DELTA] + first,
        head[at.SLIM_STRIDE],
        layer[at.OUTPUTS],
        targets,
        weight,
        which,
        head[at.ROW_LOSS] + first,
        arena.dtype.type(1.0 / batch),
        scratch,
    )


@inner
def slim_layer_backward(stages, arena, head, layers, index, layer, first, n_rows, most, further):
    """Turn a slim layer's dL/d(output) into dL/dz, and where `further` into dL/d(input).

    What dL/d(input) is gated with is left to the layer before.
    """
    n_layers = head[at.N_LAYERS]
    at_end = index + 1 == n_layers
    as_rows = at_end and (stages & FOREIGN or head[at.LOSS] == CROSS_ENTROPY)
    if as_rows or (not at_end and not layers[index + 1, at.SLIM]):
        into_run(arena, head, layer, at.OUT_DELTA, at.SLIM_OUT_DELTA, first, n_rows)
    note = entry(most, index, 1, lanes(arena))
    slim_gate(arena, head, layer, first, slim_rows(n_rows), note)
    if further:
        slim_backward(arena, head, layer, first, slim_rows(n_rows))
        if index == 0 or not layers[index - 1, at.SLIM]:
            out_of_run(arena, head, layer, at.SLIM_IN_DELTA, at.IN_DELTA, first, n_rows)
