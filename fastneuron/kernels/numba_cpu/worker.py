"""What one thread of the team runs: a whole chunk of training steps, or blocks of inference.

The words array carries the barrier and, in `STEPS` and `STATUS`, how it went.
"""

from __future__ import annotations

import math

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels import marks as marks_as
from fastneuron.kernels.contract import Status
from fastneuron.kernels.numba_cpu.bounds import certainly_finite
from fastneuron.kernels.numba_cpu.few import few_rows_step
from fastneuron.kernels.numba_cpu.gather import gather_rows
from fastneuron.kernels.numba_cpu.jit import glue, inner, kernel
from fastneuron.kernels.numba_cpu.marks import mark, marks_of, meet
from fastneuron.kernels.numba_cpu.norms import norm_forward
from fastneuron.kernels.numba_cpu.passes import panels, phase_a
from fastneuron.kernels.numba_cpu.rows import layer_forward
from fastneuron.kernels.numba_cpu.sums import sum_of_rows
from fastneuron.kernels.numba_cpu.sync import draw
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tiles import (
    squared_norm,
    tile_gradient,
    tile_step,
    tile_update,
    transpose_tile,
)
from fastneuron.kernels.numba_cpu.views import copy, row, run
from fastneuron.kernels.stages import BACKWARD, INPUT_DELTA, STATUS, STEPS, TICKETS, UPDATE
from fastneuron.kernels.stages import LOSS as WITH_LOSS
from fastneuron.optimizers import CLIP_NORM

_LOSS_NOT_FINITE = int(Status.LOSS_NOT_FINITE)
_GRADIENT_NOT_FINITE = int(Status.GRADIENT_NOT_FINITE)


scratch_size = inner(at.scratch_size)


@inner
def clip_scale(squares, limit):
    """Return the factor that brings the global gradient norm down to `limit`; 0 means no limit."""
    if limit <= 0.0:
        return 1.0
    norm = math.sqrt(squares)
    return limit / norm if norm > limit else 1.0


@inner
def first_tile(head, layers, index):
    """Number of a layer's first tile; of all tiles where there is no such layer."""
    return layers[index, at.FIRST_TILE] if index < head[at.N_LAYERS] else head[at.N_TILES]


@glue
def step(
    stages,
    arena,
    head,
    layers,
    tiles,
    x,
    labels,
    targets,
    weight,
    samples,
    coming,
    scalars,
    losses,
    words,
    tid,
    n_threads,
    scratch,
):
    """One step; returns False where the chunk ends here."""
    batch = samples.shape[0]
    # Of shapes alone: the order of its sums must not hang on the steps around it.
    few = batch <= head[at.FEW]
    marks = marks_of(words, tid)
    refresh = stages & BACKWARD and not few and head[at.STALE]
    if refresh or (stages & INPUT_DELTA and not few):
        # Copies that training does not read are not kept up in it: make them for this step.
        own = first_tile(head, layers, head[at.BACK_TO])
        first = 0 if stages & INPUT_DELTA else own
        end = head[at.N_TILES] if refresh else own
        mark(words, marks, marks_as.REFRESH, 0)
        while True:
            ticket = first + draw(words, tid, n_threads, end - first)
            if ticket >= end:
                break
            tile = row(tiles, ticket)
            if tile[at.TILE_KIND] == at.DENSE:
                transpose_tile(arena, head, tile)
        if not meet(words, marks, n_threads):
            return False
    slim = head[at.SLIM_LAYERS] > 0 and batch >= at.SLIM_ROWS
    one_visit = stages & UPDATE and scalars[CLIP_NORM] == 0.0 and head[at.N_TILES] >= at.FUSE_FROM
    if not phase_a(
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
        one_visit,
        few,
        slim,
    ):
        return False
    if not meet(words, marks, n_threads):
        return False
    mark(words, marks, marks_as.CHECK, 0)
    # All have looked at it before the barrier, and will again after the next.
    if tid == 0 and (refresh or stages & UPDATE):
        head[at.STALE] = few
    if tid == 0 and stages & WITH_LOSS:
        loss = sum_of_rows(arena, head[at.ROW_LOSS], batch)
        losses[0] = loss
        if not math.isfinite(loss):
            words[STATUS] = _LOSS_NOT_FINITE
    # All threads read the same words, and find the same.
    if one_visit and certainly_finite(arena, head, layers, batch, stages & WITH_LOSS, n_threads):
        first_tiles = first_tile(head, layers, np.int64(1))
        while True:
            ticket = draw(words, tid, n_threads, head[at.N_TILES])
            if ticket >= head[at.N_TILES]:
                break
            tile = row(tiles, ticket)
            mark(words, marks, marks_as.GRADIENT, tile[at.TILE_LAYER])
            if few and tile[at.TILE_KIND] == at.DENSE:
                few_rows_step(arena, head, tile, batch, scalars, scratch)
                continue
            tile_step(
                arena,
                head,
                layers,
                few,
                slim,
                tile,
                batch,
                scalars,
                scratch,
                x,
                coming,
                ticket,
                first_tiles,
            )
        if not meet(words, marks, n_threads):
            return False
        if tid == 0:
            words[STEPS] += 1
        return True
    if stages & BACKWARD:
        while True:
            ticket = draw(words, tid, n_threads, head[at.N_TILES])
            if ticket >= head[at.N_TILES]:
                break
            tile = row(tiles, ticket)
            total_at = head[at.TILE_SQUARES] + tile[at.TILE_NUMBER]
            mark(words, marks, marks_as.GRADIENT, tile[at.TILE_LAYER])
            tile_gradient(arena, head, layers, slim, tile, batch, total_at, scratch)
    if not meet(words, marks, n_threads):
        return False
    if words[STATUS] != 0:
        return False
    if stages & UPDATE:
        mark(words, marks, marks_as.CHECK, 0)
        squares = squared_norm(arena, head)
        if not math.isfinite(squares):
            if tid == 0:
                words[STATUS] = _GRADIENT_NOT_FINITE
            return False
        clip = clip_scale(squares, scalars[CLIP_NORM])
        while True:
            ticket = draw(words, tid, n_threads, head[at.N_TILES])
            if ticket >= head[at.N_TILES]:
                break
            tile = row(tiles, ticket)
            mark(words, marks, marks_as.UPDATE, tile[at.TILE_LAYER])
            tile_update(arena, head, layers, tile, batch, scalars, clip, not few)
        if not meet(words, marks, n_threads):
            return False
        if tid == 0:
            words[STEPS] += 1
    return True


@kernel
def train(
    stages,
    arena,
    head,
    layers,
    tiles,
    x,
    labels,
    targets,
    weight,
    order,
    bounds,
    scalars,
    losses,
    words,
    tid,
    n_threads,
):
    """Run a chunk of steps as thread `tid` of `n_threads`.

    `stages` says which parts of the step to do.
    """
    scratch = head[at.SCRATCH] + tid * scratch_size(lanes(arena))
    for s in range(bounds.shape[0] - 1):
        samples = run(order, bounds[s], bounds[s + 1] - bounds[s])
        after = min(s + 2, bounds.shape[0] - 1)
        coming = run(order, bounds[s + 1], bounds[after] - bounds[s + 1])
        if not step(
            stages,
            arena,
            head,
            layers,
            tiles,
            x,
            labels,
            targets,
            weight,
            samples,
            coming,
            row(scalars, s),
            run(losses, s, 1),
            words,
            tid,
            n_threads,
            scratch,
        ):
            break
    mark(words, marks_of(words, tid), marks_as.END, 0)


@kernel
def infer(arena, head, layers, x, out, words, tid, n_threads):
    """Forward alone, in blocks of rows through two small buffers a thread."""
    width = lanes(arena)
    stride = head[at.INFER_ROWS] * width
    n_layers = head[at.N_LAYERS]
    outputs = layers[n_layers - 1, at.OUTPUTS]
    own = tid * at.INFER_BLOCK * width
    if n_threads == 1:
        words[TICKETS] = 0  # one thread's caller need not have cleared the words
    blocks = (x.shape[0] + at.INFER_BLOCK - 1) // at.INFER_BLOCK
    while True:
        ticket = draw(words, tid, n_threads, blocks)
        if ticket >= blocks:
            break
        first = ticket * at.INFER_BLOCK
        n_rows = min(at.INFER_BLOCK, x.shape[0] - first)
        here = layers[0, at.INFER_IN] + own
        gather_rows(arena, x, first, n_rows, here, stride, -1)
        for index in range(n_layers):
            layer = row(layers, index)
            a, z = layer[at.INFER_IN] + own, layer[at.INFER_OUT] + own
            end = panels(layer[at.OUTPUTS], width)
            start, none = np.int64(0), np.int64(-1)
            if layer[at.KIND] == at.DENSE:
                layer_forward(arena, head, layer, start, end, a, z, z, stride, n_rows, none)
            elif layer[at.KIND] != at.DROPOUT:
                norm_forward(arena, head, layer, start, end, a, z, z, stride, none, n_rows, none)
        result = layers[n_layers - 1, at.INFER_OUT] + own
        for r in range(n_rows):
            target = row(out, first + r)
            p = 0
            while p * width < outputs:
                count = min(width, outputs - p * width)
                source = run(arena, result + p * stride + r * width, count)
                copy(run(target, p * width, count), source)
                p += 1
