"""Phase A: blocks of batch rows go forward, meet the loss, and come back as deltas.

Rows never meet here, so how the batch is cut into blocks, and who takes which, changes no bit. A
sum runs over a layer's inputs (forward) or outputs (data gradient) in ascending order.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.elementwise import (
    IDENTITY,
    RELU,
    activate_rest,
    gate,
    gate_rest,
)
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.losses import row_scale, values_row
from fastneuron.kernels.numba_cpu.moves import gather
from fastneuron.kernels.numba_cpu.panels import note_run
from fastneuron.kernels.numba_cpu.products import (
    chunk_depth,
    fetch_step,
    group_of,
    panels_product,
)
from fastneuron.kernels.numba_cpu.softmax import cross_entropy_row, softmax_group
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tile import (
    PLAIN,
    RELU_GATE,
    RELU_OUTPUT,
)
from fastneuron.kernels.numba_cpu.views import fill, row, run


@inner
def layer_forward(arena, head, layer, first_panel, end_panel, a, pre, out, stride, n_rows, most):
    """Compute f(x W + b) of a block of rows; z stays at `pre` where that is not `out`.

    Of the output panels from `first_panel` up to `end_panel`. `most` is where the largest |output|
    of each lane is noted, or -1.
    """
    width = lanes(arena)
    inputs, outputs, code = layer[at.INPUTS], layer[at.OUTPUTS], layer[at.ACTIVATION]
    weight = head[at.PARAMETERS] + layer[at.WEIGHT]
    start_panel = width if layer[at.BIAS] >= 0 else 0
    epilogue = PLAIN
    chunk = chunk_depth(arena, inputs, n_rows)
    ahead_step = fetch_step(arena, inputs, outputs, n_rows)
    k = 0
    while k < inputs:
        depth = min(chunk, inputs - k)
        last = k + depth == inputs
        note = np.int64(-1)
        if last and code == RELU:
            epilogue = RELU_OUTPUT
        if last and code in (RELU, IDENTITY):
            note = most
        q = first_panel
        while q < end_panel:
            count = group_of(end_panel - q)
            here = q * stride
            start, step, panel = pre + here, width, stride
            if k == 0:
                start, step, panel = layer[at.START] + q * start_panel, 0, start_panel
            panels_product(
                arena,
                count,
                outputs - q * width,
                epilogue,
                pre + here,
                stride,
                start,
                step,
                panel,
                a + k // width * stride,
                weight + (q * inputs + k) * width,
                inputs * width,
                depth,
                n_rows,
                np.int64(0),
                note,
                ahead_step,
            )
            q += count
            if last and (pre != out or code not in (IDENTITY, RELU)):
                for place in range(here, q * stride, stride):
                    activate_rest(arena, code, pre + place, out + place, n_rows * width, most)
        k += depth


@inner
def gate_output(arena, layer, stride, first, n_rows, most):
    """Turn dL/d(output) of a block of rows into dL/dz in place; `most` as in `layer_forward`."""
    width = lanes(arena)
    code, offset, size = layer[at.ACTIVATION], first * width, n_rows * width
    for q in range((layer[at.OUTPUTS] + width - 1) // width):
        here = q * stride + offset
        if code != IDENTITY:
            delta = run(arena, layer[at.OUT_DELTA] + here, size)
            gate(code, delta, run(arena, layer[at.SAVED_ROWS] + here, size))
        if most >= 0:
            note_run(arena, most, layer[at.OUT_DELTA] + here, size)


@inner
def layer_backward(
    arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, most
):
    """Carry dL/dz of a block of rows back through the weights, and through f before them.

    To the input panels from `first_panel` up to `end_panel`. `code` is the activation of the layer
    before and `saved` where its f' is computed from; the result is that layer's dL/dz. `most` is
    where the largest of each lane is noted, or -1.
    """
    width = lanes(arena)
    inputs, outputs = layer[at.INPUTS], layer[at.OUTPUTS]
    offset = first * width
    epilogue = PLAIN
    chunk = chunk_depth(arena, outputs, n_rows)
    ahead_step = fetch_step(arena, inputs, outputs, n_rows)
    k = 0
    while k < outputs:
        depth = min(chunk, outputs - k)
        last = k + depth == outputs
        note = np.int64(-1)
        if last and code == RELU:
            epilogue = RELU_GATE
        if last and code in (RELU, IDENTITY):
            note = most
        p = first_panel
        while p < end_panel:
            count = group_of(end_panel - p)
            here = p * stride + offset
            target = layer[at.IN_DELTA] + here
            start, step, panel = target, width, stride
            if k == 0:
                start, step, panel = head[at.ZEROS], 0, 0
            panels_product(
                arena,
                count,
                inputs - p * width,
                epilogue,
                target,
                stride,
                start,
                step,
                panel,
                layer[at.OUT_DELTA] + offset + k // width * stride,
                layer[at.TRANSPOSED] + (p * outputs + k) * width,
                outputs * width,
                depth,
                n_rows,
                saved + here,
                note,
                ahead_step,
            )
            p += count
            if last and code not in (IDENTITY, RELU):
                for place in range(here, p * stride + offset, stride):
                    target = layer[at.IN_DELTA] + place
                    gate_rest(arena, code, target, saved + place, n_rows * width, most)
        k += depth


@inner
def scatter_delta(arena, values, out, stride):
    """Like `gather`, and fill the last panel up with zeros: deltas there must not count."""
    width = lanes(arena)
    gather(arena, values, out, stride)
    columns = values.shape[0]
    tail = columns % width
    if tail != 0:
        start = out + (columns // width) * stride
        fill(run(arena, start + tail, width - tail), arena.dtype.type(0.0))


@inner
def cross_entropy_block(
    arena, head, layer, stride, labels, targets, weight, samples, first, n_rows, batch, scratch
):
    """Cross-entropy of a block of rows: groups of rows side by side where the classes are few."""
    width = lanes(arena)
    classes = layer[at.OUTPUTS]
    dense = targets.shape[0] > 0
    share = arena.dtype.type(1.0 / batch)
    r = first
    while r < first + n_rows:
        out = layer[at.OUT_ROWS] + r * width
        delta = layer[at.OUT_DELTA] + r * width
        if classes <= width:
            group = min(width // 2, first + n_rows - r)
            losses = head[at.ROW_LOSS] + r
            which = run(samples, r, group)
            softmax_group(
                arena, out, delta, scratch, classes, labels, targets, weight, which, losses, share
            )
            r += group
        else:
            sample = samples[r]
            scale = row_scale(arena, weight, sample, share)
            label = labels[sample] if labels.shape[0] > 0 else 0
            target = row(targets, sample) if dense else weight
            arena[head[at.ROW_LOSS] + r] = cross_entropy_row(
                arena, out, delta, stride, classes, label, target, dense, scale
            )
            r += 1


@inner
def values_block(arena, head, layer, stride, targets, weight, samples, first, n_rows, batch):
    """Any other loss of a block of rows."""
    width = lanes(arena)
    share = arena.dtype.type(1.0 / batch)
    for r in range(first, first + n_rows):
        sample = samples[r]
        scale = row_scale(arena, weight, sample, share)
        out = layer[at.OUT_ROWS] + r * width
        delta = layer[at.OUT_DELTA] + r * width
        target = row(targets, sample)
        coming = row(targets, samples[min(r + 1, batch - 1)])
        arena[head[at.ROW_LOSS] + r] = values_row(
            arena, head[at.LOSS], out, delta, stride, target, coming, scale
        )
