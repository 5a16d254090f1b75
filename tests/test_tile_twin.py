"""The register tile against its twin in plain Python, to the bit."""

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

BATCH, PLAIN, ROWS = compiled.BATCH, compiled.PLAIN, compiled.ROWS
tile, lane_count = compiled.tile, compiled.lane_count
SHAPES = {"rows": (3, ROWS, 0), "batch": (4, BATCH, 0), "batch with ones": (3, BATCH, 1)}


@numba.njit(error_model="numpy")
def tile_of_rows(columns, epilogue, arena, out, start, a, a_panel, b, depth, extra):  # type: ignore[no-untyped-def]
    tile(3, ROWS, 0, columns, epilogue, arena, out, start, a, a_panel, b, depth, extra)


@numba.njit(error_model="numpy")
def tile_of_batch(columns, epilogue, arena, out, start, a, a_panel, b, depth, extra):  # type: ignore[no-untyped-def]
    tile(4, BATCH, 0, columns, epilogue, arena, out, start, a, a_panel, b, depth, extra)


@numba.njit(error_model="numpy")
def tile_with_ones(columns, epilogue, arena, out, start, a, a_panel, b, depth, extra):  # type: ignore[no-untyped-def]
    tile(3, BATCH, 1, columns, epilogue, arena, out, start, a, a_panel, b, depth, extra)


COMPILED: dict[str, Any] = dict(
    zip(SHAPES, (tile_of_rows, tile_of_batch, tile_with_ones), strict=True)
)


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
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_twin_gives_the_same_bits(shape: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    n_rows, walk, ones = SHAPES[shape]
    lanes = lane_count(dtype)
    capacity = 5  # rows of one panel of A
    epilogues = range(3) if walk == ROWS else [PLAIN]
    for depth in (0, 1, 3, lanes, 2 * lanes + 5):
        for columns in (1, lanes // 2, lanes // 2 + 1, lanes):
            for epilogue in epilogues:
                start, a = 3, 3 + lanes  # off every vector's boundary
                b = a + capacity * (depth + lanes) + lanes * depth
                out = b + lanes * depth + 7
                extra = out + lanes * n_rows + 7
                want = drawn(rng, dtype, extra + lanes * n_rows + 7)
                got = want.copy()
                places = (out, start, a, capacity * lanes, b, depth, extra)
                COMPILED[shape](columns, epilogue, got, *places)
                tile_twin.tile(n_rows, walk, ones, columns, epilogue, want, *places, lanes=lanes)
                what = f"depth {depth}, {columns} columns, epilogue {epilogue}"
                np.testing.assert_array_equal(got, want, err_msg=what)
