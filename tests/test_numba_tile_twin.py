"""The matrix product against its twin in plain Python, to the bit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastneuron.testing import tile_twin

pytest.importorskip("numba", reason="numba is not installed")

import numba

from fastneuron.kernels.numba_cpu import tile as compiled
from fastneuron.kernels.numba_cpu.target import lane_count

BATCH, PLAIN, ROWS, TALL = compiled.BATCH, compiled.PLAIN, compiled.ROWS, compiled.TALL
product = compiled.product


@numba.njit(error_model="numpy")
def of_rows(  # type: ignore[no-untyped-def]
    columns, epilogue, arena, out, start, step, a, a_panel, b, depth, n_rows, extra, most, ahead
):
    product(
        ROWS,
        columns,
        epilogue,
        arena,
        out,
        start,
        step,
        a,
        a_panel,
        b,
        depth,
        n_rows,
        extra,
        most,
        (ahead, b, 0, 0, 0, b, ahead),
    )


@numba.njit(error_model="numpy")
def of_batch(  # type: ignore[no-untyped-def]
    columns, epilogue, arena, out, start, step, a, a_panel, b, depth, n_rows, extra, most, ahead
):
    product(
        BATCH,
        columns,
        epilogue,
        arena,
        out,
        start,
        step,
        a,
        a_panel,
        b,
        depth,
        n_rows,
        extra,
        most,
        (ahead, a, b, out, start, b, ahead),
    )


COMPILED: dict[int, Any] = {ROWS: of_rows, BATCH: of_batch}


def test_the_numbers_mean_the_same() -> None:
    for name in ("ROWS", "BATCH", "PLAIN", "RELU_OUTPUT", "RELU_GATE"):
        assert getattr(tile_twin, name) == getattr(compiled, name), name


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(0)
    for x, y, z in rng.standard_normal((200, 3)).tolist():
        got = tile_twin.fma(x, y, -x * y)
        assert Fraction(got) == Fraction(x) * Fraction(y) - Fraction(x * y)  # exact: it fits
        got = tile_twin.fma(x, y, z)
        want = Fraction(x) * Fraction(y) + Fraction(z)
        assert abs(Fraction(got) - want) <= Fraction(math.ulp(got)) / 2


def drawn(rng: np.random.Generator, dtype: str, size: int) -> Any:
    if dtype == "float64":
        return rng.standard_normal(size)
    return rng.integers(-9, 10, size).astype(dtype)  # every sum is exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("going_on", [False, True], ids=["from one row", "going on"])
@pytest.mark.parametrize("n_rows", [1, 3, TALL, 2 * TALL + 7])
@pytest.mark.parametrize("walk", [ROWS, BATCH], ids=["rows", "batch"])
def test_the_twin_gives_the_same_bits(walk: int, n_rows: int, going_on: bool, dtype: str) -> None:
    rng = np.random.default_rng(3)
    lanes = lane_count(dtype)
    if walk == BATCH:
        n_rows = min(n_rows, lanes)  # rows are lanes of one panel
    capacity = n_rows + 1  # rows of one panel of A
    epilogues = range(3) if walk == ROWS else [PLAIN]
    depths = (0, 1, 7, lanes, lanes + 5) if n_rows < TALL else (3, lanes + 5)
    for depth in depths:
        for columns in (lanes // 2, lanes // 2 + 1):
            for epilogue in epilogues:
                for kept in (True, False):  # maxima, or the always-on row
                    start, a = 3, 3 + lanes  # off every vector's boundary
                    b = a + max(capacity, depth) * (depth + lanes) + lanes
                    out = b + lanes * depth + 7
                    extra = out + lanes * n_rows + 7
                    most = extra + lanes * n_rows + 7
                    want = drawn(rng, dtype, most + lanes + 7)
                    want[most : most + lanes] = np.abs(want[most : most + lanes])
                    got = want.copy()
                    first, step = (out, lanes) if going_on else (start, 0)
                    extra = extra if walk == ROWS or kept else -1
                    most = most if kept and walk == ROWS else -1
                    places = (
                        out,
                        first,
                        step,
                        a,
                        capacity * lanes,
                        b,
                        depth,
                        n_rows,
                        extra,
                        most,
                    )
                    COMPILED[walk](columns, epilogue, got, *places, 5)
                    tile_twin.product(walk, columns, epilogue, want, *places, lanes=lanes)
                    what = f"depth {depth}, {columns} columns, epilogue {epilogue}, kept {kept}"
                    np.testing.assert_array_equal(got, want, err_msg=what)
