"""Softmax and cross-entropy of a block of rows, for up to one panel of classes.

A row of ten classes fills a third of a vector register and its sums are chains of dependent adds,
so rows are turned into lanes: one register holds one class of as many rows as it has lanes. Each
row's operations and their order are those of `cross_entropy_row`: the bits do not depend on which
rows share a register.
"""

from __future__ import annotations

import math

from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.losses import row_scale
from fastneuron.kernels.numba_cpu.scalar import exp
from fastneuron.kernels.numba_cpu.tile import lanes
from fastneuron.kernels.numba_cpu.transpose import transpose_block
from fastneuron.kernels.numba_cpu.views import fill, row, run


@inner
def exponentials(arena, scratch, classes, best, total, group):
    """Turn the logits of `group` rows, class after class, into exp(o - best); sum them up."""
    first = run(arena, scratch, group)
    for r in range(group):
        best[r] = first[r]
        total[r] = best.dtype.type(0.0)
    for j in range(1, classes):
        o = run(arena, scratch + j * group, group)
        for r in range(group):
            best[r] = o[r] if o[r] > best[r] else best[r]
    for j in range(classes):
        o = run(arena, scratch + j * group, group)
        for r in range(group):
            o[r] = exp(o[r] - best[r])
        for r in range(group):
            total[r] += o[r]


@inner
def to_lanes(arena, out, scratch, classes, n_rows, group):
    """Copy rows to lanes; lanes without a row get zeros, which overflow nothing."""
    width = lanes(arena)
    if n_rows == group:
        transpose_block(arena, out, width, scratch, group)
        if classes > group:
            transpose_block(arena, out + group, width, scratch + group * group, group)
        return
    fill(run(arena, scratch, classes * group), arena.dtype.type(0.0))
    for r in range(n_rows):
        for j in range(classes):
            arena[scratch + j * group + r] = arena[out + r * width + j]


@inner
def from_lanes(arena, scratch, delta, classes, n_rows, group):
    """Copy lanes to rows, whole panel rows with zeros after the last class."""
    width = lanes(arena)
    zero = arena.dtype.type(0.0)
    fill(run(arena, scratch + classes * group, (width - classes) * group), zero)
    if n_rows == group:
        transpose_block(arena, scratch, group, delta, width)
        transpose_block(arena, scratch + group * group, group, delta + group, width)
        return
    for r in range(n_rows):
        for j in range(width):
            arena[delta + r * width + j] = arena[scratch + j * group + r]


@inner
def softmax_group(
    arena, out, delta, scratch, classes, labels, targets, weight, samples, loss, batch
):
    """Cross-entropy of up to one register of rows: row losses and dL/d(logits), weighted / B.

    `loss`, a run, has one entry a row; `samples` are the rows' numbers in the data. `scratch` has
    room for a panel row a lane, and three more.
    """
    width = lanes(arena)
    group = width // 2
    n_rows = loss.shape[0]
    best = run(arena, scratch + width * group, group)
    total = run(arena, scratch + width * group + group, group)
    share = run(arena, scratch + width * group + 2 * group, group)
    to_lanes(arena, out, scratch, classes, n_rows, group)
    exponentials(arena, scratch, classes, best, total, group)
    dense = targets.shape[0] > 0
    fill(share, arena.dtype.type(0.0))
    for r in range(n_rows):
        scale = row_scale(arena, weight, samples[r], batch)
        log_total = math.log(total[r])
        logits = run(arena, out + r * width, classes)
        if dense:
            target = row(targets, samples[r])
            mass = value = arena.dtype.type(0.0)
            for j in range(classes):
                mass += target[j]
                value += target[j] * (log_total + (best[r] - logits[j]))
            mass = scale * mass
        else:
            mass = scale
            value = log_total + (best[r] - logits[labels[samples[r]]])
        share[r] = mass / total[r]
        loss[r] = scale * value
    for j in range(classes):
        o = run(arena, scratch + j * group, group)
        for r in range(group):
            o[r] = o[r] * share[r]
    from_lanes(arena, scratch, delta, classes, n_rows, group)
    for r in range(n_rows):
        scale = row_scale(arena, weight, samples[r], batch)
        deltas = run(arena, delta + r * width, classes)
        if dense:
            target = row(targets, samples[r])
            for j in range(classes):
                deltas[j] -= scale * target[j]
        else:
            deltas[labels[samples[r]]] -= scale
