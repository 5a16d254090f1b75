"""What one thread of the team runs: a whole chunk of training steps, or blocks of inference.

The words array carries the barrier and, in `STEPS` and `STATUS`, how it went.
"""

from __future__ import annotations

import math

import numpy as np

from fastneuron.kernels import layout as at
from fastneuron.kernels.contract import Status
from fastneuron.kernels.numba_cpu.bounds import certainly_finite, forget_maxima, maxima_of
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY
from fastneuron.kernels.numba_cpu.few import few_rows_backward, few_rows_step
from fastneuron.kernels.numba_cpu.gather import gather_rows
from fastneuron.kernels.numba_cpu.jit import glue, inner, kernel
from fastneuron.kernels.numba_cpu.losses import CROSS_ENTROPY
from fastneuron.kernels.numba_cpu.rows import (
    cross_entropy_block,
    gate_output,
    layer_backward,
    layer_forward,
    scatter_delta,
    values_block,
)
from fastneuron.kernels.numba_cpu.sums import sum_of_rows
from fastneuron.kernels.numba_cpu.sync import barrier, draw
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tiles import (
    squared_norm,
    tile_gradient,
    tile_step,
    tile_update,
    transpose_tile,
)
from fastneuron.kernels.numba_cpu.views import copy, row, run
from fastneuron.kernels.stages import BACKWARD, FOREIGN, FORWARD, INPUT_DELTA, STATUS, STEPS, UPDATE
from fastneuron.kernels.stages import LOSS as WITH_LOSS
from fastneuron.optimizers import CLIP_NORM

_LOSS_NOT_FINITE = int(Status.LOSS_NOT_FINITE)
_GRADIENT_NOT_FINITE = int(Status.GRADIENT_NOT_FINITE)


#: Weight tiles from which gradient and update of a tile are one visit. Below, all gradients stay in
#: the first-level cache, and their squares cost less than the bound that proves them finite.
FUSE_FROM = 5

scratch_size = inner(at.scratch_size)
panels = inner(at.panels)


@inner
def entry(most, index, kind, width):
    """Where the largest input (kind 0) or delta (1) of a layer is noted; -1 where none is."""
    return most + (2 * index + kind) * width if most >= 0 else most


@glue
def rows_phase(
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
):
    """Phase A of one step: draw blocks of rows until none is left, `noting` their maxima.

    `few` says that the deltas go back through the weights as they lie.
    """
    width = lanes(arena)
    stride = head[at.CAPACITY] * width
    n_layers = head[at.N_LAYERS]
    batch = samples.shape[0]
    share = (batch + n_threads - 1) // n_threads
    block = min(at.MAX_BLOCK, (share + at.TILE_ROWS - 1) // at.TILE_ROWS * at.TILE_ROWS)
    last = row(layers, n_layers - 1)
    most = np.int64(-1)
    if noting:
        most = maxima_of(arena, head, tid)
        forget_maxima(arena, head, tid)
    blocks = (batch + block - 1) // block
    while True:
        ticket = draw(words, tid, n_threads, blocks)
        if ticket >= blocks:
            break
        first = ticket * block
        n_rows = min(block, batch - first)
        offset = first * width
        if stages & FORWARD:
            here = layers[0, at.IN_ROWS] + offset
            gather_rows(arena, x, run(samples, first, n_rows), n_rows, here, stride, most)
            for index in range(n_layers):
                layer = row(layers, index)
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
                    entry(most, index + 1, 0, width) if index + 1 < n_layers else -1,
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
            else:
                values_block(
                    arena, head, last, stride, targets, weight, samples, first, n_rows, batch
                )
        if stages & FOREIGN:
            for r in range(first, first + n_rows):
                scatter_delta(arena, row(targets, r), last[at.OUT_DELTA] + r * width, stride)
        if stages & BACKWARD:
            gate_output(arena, last, stride, first, n_rows, entry(most, n_layers - 1, 1, width))
            final = 0 if stages & INPUT_DELTA else 1
            for index in range(n_layers - 1, final - 1, -1):
                # np.int64: a literal would be a signature, and a compilation, of its own.
                code, saved, note = np.int64(IDENTITY), np.int64(0), np.int64(-1)
                if index > 0:
                    before = row(layers, index - 1)
                    code, saved = before[at.ACTIVATION], before[at.SAVED_ROWS]
                    note = entry(most, index - 1, 1, width)
                layer = row(layers, index)
                end = panels(layer[at.INPUTS], width)
                if few:
                    few_rows_backward(
                        arena,
                        head,
                        layer,
                        np.int64(0),
                        end,
                        stride,
                        first,
                        n_rows,
                        code,
                        saved,
                        note,
                    )
                else:
                    layer_backward(
                        arena,
                        head,
                        layer,
                        np.int64(0),
                        end,
                        stride,
                        first,
                        n_rows,
                        code,
                        saved,
                        note,
                    )


@inner
def clip_scale(squares, limit):
    """Return the factor that brings the global gradient norm down to `limit`; 0 means no limit."""
    norm = math.sqrt(squares)
    return limit / norm if limit > 0.0 and norm > limit else 1.0


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
    refresh = stages & BACKWARD and not few and head[at.STALE]
    if refresh or (stages & INPUT_DELTA and not few):
        # Layer 0's transposed copy is not kept up in training: make it for this step.
        own = layers[1, at.FIRST_TILE] if head[at.N_LAYERS] > 1 else head[at.N_TILES]
        first = 0 if stages & INPUT_DELTA else own
        end = head[at.N_TILES] if refresh else own
        while True:
            ticket = first + draw(words, tid, n_threads, end - first)
            if ticket >= end:
                break
            transpose_tile(arena, head, row(tiles, ticket))
        if not barrier(words, n_threads):
            return False
    one_visit = stages & UPDATE and scalars[CLIP_NORM] == 0.0 and head[at.N_TILES] >= FUSE_FROM
    rows_phase(
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
        one_visit,
        few,
    )
    if not barrier(words, n_threads):
        return False
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
        first_tiles = layers[1, at.FIRST_TILE] if head[at.N_LAYERS] > 1 else head[at.N_TILES]
        while True:
            ticket = draw(words, tid, n_threads, head[at.N_TILES])
            if ticket >= head[at.N_TILES]:
                break
            if few:
                few_rows_step(arena, head, row(tiles, ticket), batch, scalars, scratch)
                continue
            tile_step(
                arena,
                head,
                row(tiles, ticket),
                batch,
                scalars,
                scratch,
                x,
                coming,
                ticket,
                first_tiles,
            )
        if not barrier(words, n_threads):
            return False
        if tid == 0:
            words[STEPS] += 1
        return True
    if stages & BACKWARD:
        while True:
            ticket = draw(words, tid, n_threads, head[at.N_TILES])
            if ticket >= head[at.N_TILES]:
                break
            total_at = head[at.TILE_SQUARES] + ticket
            tile_gradient(arena, head, row(tiles, ticket), batch, total_at)
    if not barrier(words, n_threads):
        return False
    if words[STATUS] != 0:
        return False
    if stages & UPDATE:
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
            tile_update(arena, head, row(tiles, ticket), scalars, clip, not few)
        if not barrier(words, n_threads):
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
            return


@kernel
def infer(arena, head, layers, x, out, words, tid, n_threads):
    """Forward alone, in blocks of rows through two small buffers a thread."""
    width = lanes(arena)
    stride = head[at.INFER_ROWS] * width
    n_layers = head[at.N_LAYERS]
    outputs = layers[n_layers - 1, at.OUTPUTS]
    own = tid * at.INFER_BLOCK * width
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
            layer_forward(
                arena, head, layer, np.int64(0), end, a, z, z, stride, n_rows, np.int64(-1)
            )
        result = layers[n_layers - 1, at.INFER_OUT] + own
        for r in range(n_rows):
            target = row(out, first + r)
            p = 0
            while p * width < outputs:
                count = min(width, outputs - p * width)
                source = run(arena, result + p * stride + r * width, count)
                copy(run(target, p * width, count), source)
                p += 1
