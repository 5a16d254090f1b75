"""Compiled bodies of the slots: pack rows or weights to panels, run the engine's loops, unpack.

Empty vectors stand for what is left out: no bias, no labels, no weights, no dx.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels.numba_cpu.elementwise import activate, gate
from fastneuron.kernels.numba_cpu.jit import inner, kernel
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY, row_scale, values_row
from fastneuron.kernels.numba_cpu.moves import gather
from fastneuron.kernels.numba_cpu.rows import (
    scatter_delta,
)
from fastneuron.kernels.numba_cpu.softmax import cross_entropy_row
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tile import NOTHING_AHEAD, PLAIN, ROWS, product
from fastneuron.kernels.numba_cpu.tiles import weight_gradient
from fastneuron.kernels.numba_cpu.updates import update
from fastneuron.kernels.numba_cpu.views import copy, fill, row, run


@inner
def unpack_panel(arena, start, out, first, columns):
    """Copy a panel's rows to columns `first` ... of a row-major matrix."""
    width = lanes(arena)
    for r in range(out.shape[0]):
        copy(run(row(out, r), first, columns), run(arena, start + r * width, columns))


@kernel
def forward_product(x, w, b, code, out, arena):
    """Compute f(x w + b), one output panel at a time."""
    width = lanes(arena)
    n_rows, inputs = x.shape
    outputs = w.shape[1]
    stride = n_rows * width
    weight = ((inputs + width - 1) // width) * stride
    result = weight + inputs * width
    start = result + stride
    for r in range(n_rows):
        gather(arena, row(x, r), r * width, stride)
    for q in range((outputs + width - 1) // width):
        first = q * width
        columns = min(width, outputs - first)
        fill(run(arena, weight, result - weight), arena.dtype.type(0.0))
        for i in range(inputs):
            copy(run(arena, weight + i * width, columns), run(row(w, i), first, columns))
        fill(run(arena, start, width), arena.dtype.type(0.0))
        if b.shape[0] > 0:
            copy(run(arena, start, columns), run(b, first, columns))
        product(
            ROWS,
            columns,
            PLAIN,
            arena,
            result,
            start,
            0,
            0,
            stride,
            weight,
            inputs,
            n_rows,
            0,
            -1,
            NOTHING_AHEAD,
        )
        activate(code, run(arena, result, stride))
        unpack_panel(arena, result, out, first, columns)


@kernel
def bias_act(z, b, code, out):
    """Compute f(z + b); `out` may be z itself."""
    for r in range(z.shape[0]):
        before, after = row(z, r), row(out, r)
        if b.shape[0] > 0:
            for j in range(after.shape[0]):
                after[j] = before[j] + b[j]
        else:
            copy(after, before)
        activate(code, after)


@kernel
def gate_reduce(da, saved, code, out, db):
    """Dz = da * f'; db += dz; `out` may be da itself."""
    for r in range(da.shape[0]):
        dz = row(out, r)
        copy(dz, row(da, r))
        gate(code, dz, row(saved, r))
        for j in range(db.shape[0]):
            db[j] += dz[j]


@kernel
def backward_products(dy, x, w, saved, code, dx, dw, db, arena):
    """Dx = dz w^T, dw = x^T dz, db = sums of dz, with dz = dy * f'."""
    width = lanes(arena)
    n_rows, inputs = x.shape
    outputs = w.shape[1]
    stride = n_rows * width
    input_panels = (inputs + width - 1) // width
    output_panels = (outputs + width - 1) // width
    zeros, bias_out = 0, width
    rows_at = 2 * width
    delta_at = rows_at + input_panels * stride
    rest = delta_at + output_panels * stride
    fill(run(arena, zeros, width), arena.dtype.type(0.0))
    for r in range(n_rows):
        gather(arena, row(x, r), rows_at + r * width, stride)
        scatter_delta(arena, row(dy, r), delta_at + r * width, stride)
        for q in range(output_panels):
            columns = min(width, outputs - q * width)
            start = delta_at + q * stride + r * width
            gate(code, run(arena, start, columns), run(row(saved, r), q * width, columns))
    if dx.shape[0] > 0:
        result = rest + outputs * width
        for p in range(input_panels):
            first = p * width
            columns = min(width, inputs - first)
            fill(run(arena, rest, result - rest), arena.dtype.type(0.0))
            for k in range(columns):
                for o in range(outputs):
                    arena[rest + o * width + k] = w[first + k, o]
            product(
                ROWS,
                columns,
                PLAIN,
                arena,
                result,
                zeros,
                0,
                delta_at,
                stride,
                rest,
                outputs,
                n_rows,
                0,
                -1,
                NOTHING_AHEAD,
            )
            unpack_panel(arena, result, dx, first, columns)
    for q in range(output_panels):
        first = q * width
        columns = min(width, outputs - first)
        for p in range(input_panels):
            count = min(width, inputs - p * width)
            wants_bias = p == 0 and db.shape[0] > 0
            a, b = rows_at + p * stride, delta_at + q * stride
            none = np.int64(-1)
            weight_gradient(
                arena,
                rest,
                zeros,
                a,
                b,
                n_rows,
                count,
                columns,
                bias_out if wants_bias else -1,
                NOTHING_AHEAD,
                none,
                none,
            )
            unpack_panel(arena, rest, dw[p * width : p * width + count], first, columns)
            if wants_bias:
                copy(run(db, first, columns), run(arena, bias_out, columns))


@kernel
def loss_rows(code, out, labels, targets, weight, rows, dout, arena):
    """Loss times weight of each row, and dL/d(out) of the weighted mean."""
    width = lanes(arena)
    n_rows, outputs = out.shape
    delta = ((outputs + width - 1) // width) * width
    dense = targets.shape[0] > 0
    share = arena.dtype.type(1.0 / n_rows)
    for r in range(n_rows):
        gather(arena, row(out, r), 0, width)
        scale = row_scale(arena, weight, r, share)
        if code == CROSS_ENTROPY:
            label = labels[r] if labels.shape[0] > 0 else 0
            target = row(targets, r) if dense else weight
            loss = cross_entropy_row(arena, 0, delta, width, outputs, label, target, dense, scale)
        else:
            target = row(targets, r)
            loss = values_row(arena, code, 0, delta, width, target, target, scale)
        rows[r] = loss * arena.dtype.type(n_rows)
        copy(row(dout, r), run(arena, delta, outputs))


@kernel
def update_run(kind, p, g, m, v, scalars, clip, arena):
    """One optimizer update of a run of parameters; `arena` has four panel rows for its tail."""
    width = lanes(arena)
    size = p.shape[0]
    whole = size - size % width
    update(
        kind,
        run(p, 0, whole),
        run(g, 0, whole),
        run(m, 0, whole),
        run(v, 0, whole),
        scalars,
        clip,
        1,
        width,
    )
    if whole < size:
        rest = size - whole
        fill(run(arena, 0, 4 * width), arena.dtype.type(0.0))
        copy(run(arena, 0, rest), run(p, whole, rest))
        copy(run(arena, width, rest), run(g, whole, rest))
        copy(run(arena, 2 * width, rest), run(m, whole, rest))
        copy(run(arena, 3 * width, rest), run(v, whole, rest))
        update(
            kind,
            run(arena, 0, width),
            run(arena, width, width),
            run(arena, 2 * width, width),
            run(arena, 3 * width, width),
            scalars,
            clip,
            1,
            width,
        )
        copy(run(m, whole, rest), run(arena, 2 * width, rest))
        copy(run(v, whole, rest), run(arena, 3 * width, rest))
        copy(run(p, whole, rest), run(arena, 0, rest))
