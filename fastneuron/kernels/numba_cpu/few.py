"""Steps of few rows: what they cost is memory traffic, so a phase visits each weight once.

Deltas go back through the weights as they lie, and gradients are computed in the registers of their
update. Such a step leaves the transposed copies of the weights behind: see `layout.STALE`.
"""

from __future__ import annotations

import numpy as np

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY, gate
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.low import BACK_ROWS, low_back
from fastneuron.kernels.numba_cpu.panels import note_run
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.updates import update_by_rows
from fastneuron.kernels.numba_cpu.views import fill, run


@inner
def few_rows_backward(
    arena, head, layer, first_panel, end_panel, stride, first, n_rows, code, saved, most
):
    """Do what `layer_backward` does, for few rows, from the weights themselves.

    A sum goes over every L-th output, and then over the L lanes of a register.
    """
    width = lanes(arena)
    inputs, outputs = layer[at.INPUTS], layer[at.OUTPUTS]
    offset, size = first * width, n_rows * width
    delta = layer[at.OUT_DELTA] + offset
    weight = head[at.PARAMETERS] + layer[at.WEIGHT]
    far = inputs * outputs * arena.itemsize >= at.FAR_WEIGHTS
    block = width // 2
    for p in range(first_panel, end_panel):
        here = p * stride + offset
        target = layer[at.IN_DELTA] + here
        left = inputs - p * width
        if left <= block:  # the other half of the last panel is not visited below
            for r in range(n_rows):
                fill(run(arena, target + r * width + block, block), arena.dtype.type(0.0))
        half = 0
        while half < min(width, left):
            w = weight + (p * width + half) * width
            r = 0
            while r + BACK_ROWS <= n_rows:
                for i in range(half, half + block, block // BACK_ROWS):
                    low_back(
                        BACK_ROWS,
                        arena,
                        target + r * width + i,
                        delta + r * width,
                        stride,
                        weight + (p * width + i) * width,
                        inputs * width,
                        left - i,
                        outputs,
                        block * width if far and r == 0 else 0,
                    )
                r += BACK_ROWS
            while r + 2 <= n_rows:
                for i in range(half, half + block, block // 2):
                    low_back(
                        2,
                        arena,
                        target + r * width + i,
                        delta + r * width,
                        stride,
                        weight + (p * width + i) * width,
                        inputs * width,
                        left - i,
                        outputs,
                        block * width if far and r == 0 else 0,
                    )
                r += 2
            if r < n_rows:
                low_back(
                    1,
                    arena,
                    target + r * width + half,
                    delta + r * width,
                    stride,
                    w,
                    inputs * width,
                    left - half,
                    outputs,
                    block * width if far and r == 0 else 0,
                )
            half += block
        if code != IDENTITY:
            gate(code, run(arena, target, size), run(arena, saved + here, size))
        if most >= 0:
            note_run(arena, most, target, size)


@inner
def few_rows_step(arena, head, tile, batch, scalars, scratch):
    """Gradient and update of one tile, of few rows: no gradient is stored, no copy refreshed."""
    width = lanes(arena)
    position, bias = tile[at.TILE_WEIGHT], tile[at.TILE_BIAS]
    size, decays, a, a_step = tile[at.TILE_INPUTS] * width, np.int64(1), tile[at.TILE_A], width
    n_parameters = head[at.MOMENT_1] - head[at.PARAMETERS]
    ahead = width * width if n_parameters * arena.itemsize > at.FAR_PARAMETERS else 0
    while True:
        update_by_rows(
            head[at.UPDATE],
            run(arena, head[at.PARAMETERS] + position, size),
            run(arena, head[at.MOMENT_1] + position, size),
            run(arena, head[at.MOMENT_2] + position, size),
            arena,
            a,
            a_step,
            tile[at.TILE_B],
            batch,
            scalars,
            decays,
            tile[at.TILE_OUTPUTS],
            ahead,
        )
        if bias < 0 or position == bias:
            break
        # The input of a bias is 1 in every row.
        arena[scratch] = 1.0
        size, position, decays, a, a_step = width, bias, head[at.DECAY_BIAS], scratch, 0
