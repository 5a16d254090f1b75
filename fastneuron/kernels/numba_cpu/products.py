"""Products of a block of rows with neighbouring weight panels, in slices of the sums' length."""

from __future__ import annotations

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.low import GROUP, low_product
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.tile import ROWS, TALL, UNROLL, product


@inner
def chunk_depth(arena, depth, n_rows):
    """Length of the partial sums of one pass: chunks of about equal length, in whole panels.

    Rows that go through in one pass take all of it: no panel is read twice.
    """
    width = lanes(arena)
    most = at.CHUNK_BYTES // arena.itemsize
    chunks = 1 if n_rows in (1, 2, 4) else (depth + most - 1) // most
    return ((depth + chunks - 1) // chunks + width - 1) // width * width


@inner
def fetch_step(arena, inputs, outputs, n_rows):
    """Elements that a product asks for of the next weight panel, each few steps of k.

    Once through a block of rows it has then asked for all of it. 0 for layers that stay in cache.
    """
    if inputs * outputs * arena.itemsize < at.FAR_WEIGHTS:
        return 0
    return TALL * UNROLL * lanes(arena) // n_rows


@inner
def group_of(left):
    """Panels, of those left, that are computed side by side."""
    return GROUP if left >= GROUP else 2 if left >= 2 else 1


@inner
def panels_product(
    arena,
    count,
    columns,
    epilogue,
    out,
    stride,
    start,
    start_step,
    start_panel,
    a,
    b,
    b_panel,
    depth,
    n_rows,
    extra,
    most,
    ahead_step,
):
    """Compute `product` of 1, 2 or 4 neighbouring panels, of which `columns` columns count.

    `start`, b and the places at `out` and `extra` go on `start_panel`, `b_panel` and `stride`
    elements a panel.
    """
    width = lanes(arena)
    tall = n_rows - n_rows % TALL if count > 1 else n_rows
    if tall > 0:
        for i in range(count):
            product(
                ROWS,
                columns - i * width,
                epilogue,
                arena,
                out + i * stride,
                start + i * start_panel,
                start_step,
                a,
                stride,
                b + i * b_panel,
                depth,
                tall,
                extra + i * stride,
                most,
                (ahead_step, b + (i + 1) * b_panel, 0, 0, 0, 0, 0),
            )
    if n_rows - tall >= 4:
        skip = tall * width
        for i in range(0, count, 2):
            low_product(
                4,
                2,
                epilogue,
                arena,
                out + skip + i * stride,
                stride,
                start + tall * start_step + i * start_panel,
                start_step,
                start_panel,
                a + skip,
                stride,
                b + i * b_panel,
                b_panel,
                depth,
                extra + skip + i * stride,
                most,
            )
        tall += 4
    if n_rows - tall >= 2:
        skip = tall * width
        for i in range(0, count, 2):
            low_product(
                2,
                2,
                epilogue,
                arena,
                out + skip + i * stride,
                stride,
                start + tall * start_step + i * start_panel,
                start_step,
                start_panel,
                a + skip,
                stride,
                b + i * b_panel,
                b_panel,
                depth,
                extra + skip + i * stride,
                most,
            )
        tall += 2
    if tall < n_rows:
        skip = tall * width
        out, extra, a, start = out + skip, extra + skip, a + skip, start + tall * start_step
        if count == GROUP:
            low_product(
                1,
                4,
                epilogue,
                arena,
                out,
                stride,
                start,
                start_step,
                start_panel,
                a,
                stride,
                b,
                b_panel,
                depth,
                extra,
                most,
            )
        else:
            low_product(
                1,
                2,
                epilogue,
                arena,
                out,
                stride,
                start,
                start_step,
                start_panel,
                a,
                stride,
                b,
                b_panel,
                depth,
                extra,
                most,
            )
