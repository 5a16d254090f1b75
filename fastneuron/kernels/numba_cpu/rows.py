"""Phase A: blocks of batch rows go forward, meet the loss, and come back as deltas.

Rows never meet here, so how the batch is cut into blocks, and who takes which, changes no bit. A
sum runs over a layer's inputs (forward) or outputs (data gradient) in ascending order.
"""

from __future__ import annotations

from fastneuron.kernels import layout as at
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY, RELU, activate, gate
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.losses import row_scale, values_row
from fastneuron.kernels.numba_cpu.moves import gather
from fastneuron.kernels.numba_cpu.softmax import cross_entropy_row, softmax_group
from fastneuron.kernels.numba_cpu.tile import (
    PLAIN,
    RELU_GATE,
    RELU_OUTPUT,
    ROWS,
    TALL,
    lanes,
    tile,
)
from fastneuron.kernels.numba_cpu.views import copy, fill, row, run


@inner
def product(arena, out, start, a, stride, b, depth, n_rows, columns, epilogue, saved):
    """One panel of columns for a block of rows: tall tiles, then 4, 2, 1 rows.

    `stride` separates panels of A; `out`, `a` and `saved` are the positions of the block's first
    row.
    """
    width = lanes(arena)
    r = 0
    while r + TALL <= n_rows:
        s = r * width
        tile(
            TALL,
            ROWS,
            0,
            columns,
            epilogue,
            arena,
            out + s,
            start,
            a + s,
            stride,
            b,
            depth,
            saved + s,
        )
        r += TALL
    if r + 4 <= n_rows:
        s = r * width
        tile(
            4, ROWS, 0, columns, epilogue, arena, out + s, start, a + s, stride, b, depth, saved + s
        )
        r += 4
    if r + 2 <= n_rows:
        s = r * width
        tile(
            2, ROWS, 0, columns, epilogue, arena, out + s, start, a + s, stride, b, depth, saved + s
        )
        r += 2
    if r < n_rows:
        s = r * width
        tile(
            1, ROWS, 0, columns, epilogue, arena, out + s, start, a + s, stride, b, depth, saved + s
        )


@inner
def layer_forward(arena, head, layer, a, pre, out, stride, n_rows):
    """Compute f(x W + b) of a block of rows; z stays at `pre` where that is not `out`."""
    width = lanes(arena)
    inputs, outputs, code = layer[at.INPUTS], layer[at.OUTPUTS], layer[at.ACTIVATION]
    weight = head[at.PARAMETERS] + layer[at.WEIGHT]
    from_bias = layer[at.BIAS] >= 0
    epilogue = RELU_OUTPUT if code == RELU else PLAIN
    for q in range((outputs + width - 1) // width):
        here = q * stride
        start = layer[at.START] + (q * width if from_bias else 0)
        product(
            arena,
            pre + here,
            start,
            a,
            stride,
            weight + q * inputs * width,
            inputs,
            n_rows,
            outputs - q * width,
            epilogue,
            out,  # not read: only RELU_GATE does
        )
        size = n_rows * width
        if pre != out:
            copy(run(arena, out + here, size), run(arena, pre + here, size))
        if code != IDENTITY and code != RELU:
            activate(code, run(arena, out + here, size))


@inner
def gate_output(arena, layer, stride, first, n_rows):
    """Turn dL/d(output) of a block of rows into dL/dz in place."""
    width = lanes(arena)
    code, offset = layer[at.ACTIVATION], first * width
    if code != IDENTITY:
        for q in range((layer[at.OUTPUTS] + width - 1) // width):
            here = q * stride + offset
            delta = run(arena, layer[at.OUT_DELTA] + here, n_rows * width)
            gate(code, delta, run(arena, layer[at.SAVED_ROWS] + here, n_rows * width))


@inner
def layer_backward(arena, head, layer, stride, first, n_rows, code, saved):
    """Carry dL/dz of a block of rows back through the weights, and through f before them.

    `code` is the activation of the layer before and `saved` where its f' is computed from; the
    result is that layer's dL/dz.
    """
    width = lanes(arena)
    inputs, outputs = layer[at.INPUTS], layer[at.OUTPUTS]
    offset = first * width
    epilogue = RELU_GATE if code == RELU else PLAIN
    for p in range((inputs + width - 1) // width):
        here = p * stride + offset
        target = layer[at.IN_DELTA] + here
        product(
            arena,
            target,
            head[at.ZEROS],
            layer[at.OUT_DELTA] + offset,
            stride,
            layer[at.TRANSPOSED] + p * outputs * width,
            outputs,
            n_rows,
            inputs - p * width,
            epilogue,
            saved + here,
        )
        if code != IDENTITY and code != RELU:
            size = n_rows * width
            gate(code, run(arena, target, size), run(arena, saved + here, size))


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
        arena[head[at.ROW_LOSS] + r] = values_row(
            arena, head[at.LOSS], out, delta, stride, row(targets, sample), scale
        )
