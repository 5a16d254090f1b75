"""Batch rows on their way into panels: every element once, nothing beside, the largest noted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron.kernels.numba_cpu.gather import TOGETHER, gather_rows
from fastneuron.kernels.numba_cpu.jit import kernel
from fastneuron.kernels.numba_cpu.target import lane_count


@kernel
def call_gather(arena, x, samples, n_rows, out, stride, most):  # type: ignore[no-untyped-def]
    gather_rows(arena, x, samples, n_rows, out, stride, most)


@kernel
def call_consecutive(arena, x, first, n_rows, out, stride, most):  # type: ignore[no-untyped-def]
    gather_rows(arena, x, first, n_rows, out, stride, most)


def gathered(x: Any, which: Any, n_rows: int, most: bool) -> tuple[Any, Any, Any]:
    """Return panels of zeros that rows went to, the row of maxima, and all else in the arena."""
    lanes = lane_count(x.dtype)
    panels, capacity = -(-x.shape[1] // lanes), n_rows + 3
    size = panels * capacity * lanes
    arena = np.zeros(7 + size + 5 + lanes, x.dtype)
    arena[7 + size + 5 :] = 0.5
    call = call_consecutive if isinstance(which, int) else call_gather
    call(arena, x, which, n_rows, 7, capacity * lanes, 7 + size + 5 if most else -1)
    blocked = arena[7 : 7 + size].reshape(panels, capacity, lanes)
    beside = np.concatenate([arena[:7], arena[7 + size : 7 + size + 5]])
    return blocked, arena[7 + size + 5 :], beside


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_rows", [1, 2, TOGETHER, 2 * TOGETHER + 3])
def test_rows_come_whole_and_alone(dtype: str, n_rows: int) -> None:
    lanes = lane_count(dtype)
    rng = np.random.default_rng(0)
    for columns in (*range(1, lanes + 2), 2 * lanes - 1, 2 * lanes, 3 * lanes + 5):
        x = rng.standard_normal((40, columns)).astype(dtype)
        samples = rng.integers(0, 40, n_rows)
        for which, rows in ((samples, x[samples]), (11, x[11 : 11 + n_rows])):
            blocked, most, beside = gathered(x, which, n_rows, most=True)
            want = np.zeros_like(blocked)
            for p in range(len(want)):
                part = rows[:, p * lanes : (p + 1) * lanes]
                want[p, :n_rows, : part.shape[1]] = part
            np.testing.assert_array_equal(blocked, want, err_msg=f"{columns} columns")
            assert not beside.any()
            largest = np.abs(want).max(axis=(0, 1))
            np.testing.assert_array_equal(most, np.maximum(largest, 0.5))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_not_finite_is_the_largest(bad: float) -> None:
    x = np.ones((20, 37), np.float32)
    x[13, 36] = bad
    lanes = lane_count(x.dtype)
    _, most, _ = gathered(x, 0, 20, most=True)
    want = np.ones(lanes)
    want[36 % lanes] = abs(bad)
    np.testing.assert_array_equal(most[36 % lanes], np.float32(abs(bad)))
    assert np.isfinite(np.delete(most, 36 % lanes)).all()


def test_no_maxima_unless_asked_for() -> None:
    _, most, _ = gathered(np.ones((9, 5), np.float32), 0, 9, most=False)
    assert (most == 0.5).all()
