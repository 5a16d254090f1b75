"""What stands below the Numba engine: tile, transposition, exponentials, barrier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron.kernels import stages
from fastneuron.kernels.numba_cpu import exponentials, sync, views
from fastneuron.kernels.numba_cpu.jit import inner, kernel, uniform
from fastneuron.kernels.numba_cpu.target import lane_count
from fastneuron.kernels.numba_cpu.tile import (
    NOTHING_AHEAD,
    PLAIN,
    RELU_GATE,
    RELU_OUTPUT,
    ROWS,
    TALL,
    product,
)
from fastneuron.kernels.numba_cpu.tiles import weight_gradient
from fastneuron.kernels.numba_cpu.transpose import transpose
from fastneuron.threads import run_team

DTYPES = ["float32", "float64"]


@kernel
def call_product(  # type: ignore[no-untyped-def]
    arena, out, start, step, a, stride, b, depth, n_rows, columns, epilogue, saved
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
        stride,
        b,
        depth,
        n_rows,
        saved,
        -1,
        NOTHING_AHEAD,
    )


@kernel
def call_gradient(arena, out, zeros, a, b, batch, n_rows, columns, bias_out):  # type: ignore[no-untyped-def]
    weight_gradient(
        arena, out, zeros, a, b, batch, n_rows, columns, bias_out, NOTHING_AHEAD, -1, -1
    )


@kernel
def call_transpose(arena, source, target, n_rows, n_columns):  # type: ignore[no-untyped-def]
    transpose(arena, source, target, n_rows, n_columns)


@kernel
def call_exp(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = exponentials.exp(x[i])


@kernel
def call_expm1(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = exponentials.expm1(x[i])


@kernel
def call_log1p(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = exponentials.log1p_unit(x[i])


@kernel
def call_log(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = exponentials.log(x[i])


@kernel
def count_together(words, counts, tid, n_threads, rounds):  # type: ignore[no-untyped-def]
    """Each round every thread adds 1 behind a barrier; a thread that ran ahead would be seen."""
    for r in range(rounds):
        sync.fetch_add(counts, 0, 1)
        if not sync.barrier(words, n_threads):
            return
        if sync.load_word(counts, 0) != (r + 1) * n_threads:
            sync.fetch_add(counts, 8, 1)
        if not sync.barrier(words, n_threads):
            return


@kernel
def draw_all(words, drawn, tid, n_threads):  # type: ignore[no-untyped-def]
    while True:
        ticket = sync.draw(words, tid, n_threads, drawn.shape[0])
        if ticket >= drawn.shape[0]:
            return
        drawn[ticket] += tid + 1


class Arena:
    """A vector that hands out runs and is poisoned where nothing was put."""

    def __init__(self, dtype: str) -> None:
        self.values = np.full(1 << 16, np.nan, dtype)
        self.used = 3  # no run starts on a vector's boundary: only the element's may be claimed

    def put(self, array: Any) -> int:
        array = np.asarray(array, self.values.dtype).ravel()
        start = self.space(array.size)
        self.values[start : start + array.size] = array
        return start

    def space(self, size: int) -> int:
        start = self.used
        self.used += size + 5
        return start


def filled(matrix: Any, columns: int) -> Any:
    """Return the matrix with zeros from `columns` on, as last panels are filled up."""
    matrix = matrix.copy()
    matrix[..., columns:] = 0
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", range(1, 2 * TALL + 2))
def test_product_is_exact_on_integers(dtype: str, n_rows: int) -> None:
    lanes = lane_count(dtype)
    rng = np.random.default_rng(n_rows)
    columns_of = {0: 1, 1: lanes // 2, lanes: lanes // 2 + 1}  # at both sides of half a panel
    for depth in (0, 1, lanes - 1, lanes, lanes + 1, 2 * lanes + 3):
        columns = columns_of.get(depth, lanes)
        count, capacity = -(-depth // lanes), n_rows + 2
        x = rng.integers(-9, 10, (n_rows, depth))
        w = filled(rng.integers(-9, 10, (depth, lanes)), columns)
        start = filled(rng.integers(-9, 10, lanes), columns)
        saved = rng.integers(-1, 2, (n_rows, lanes))
        blocked = np.full((count, capacity, lanes), np.nan)  # spare rows and lanes are poison
        for p in range(count):
            part = x[:, p * lanes : (p + 1) * lanes]
            blocked[p, :n_rows, : part.shape[1]] = part
        arena = Arena(dtype)
        a, b, s = arena.put(blocked), arena.put(w), arena.put(start)
        gate, out = arena.put(saved), arena.space(n_rows * lanes)
        z = x @ w + start
        for epilogue, want in (
            (PLAIN, z),
            (RELU_OUTPUT, np.maximum(z, 0)),
            (RELU_GATE, z * (saved > 0)),
        ):
            before = arena.values.copy()
            panel = capacity * lanes
            call_product(
                arena.values, out, s, 0, a, panel, b, depth, n_rows, columns, epilogue, gate
            )
            got = arena.values[out : out + n_rows * lanes].reshape(n_rows, lanes)
            np.testing.assert_array_equal(got, want)
            before[out : out + n_rows * lanes] = arena.values[out : out + n_rows * lanes]
            # Nothing beside the tile was written.
            np.testing.assert_array_equal(arena.values, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_weight_and_bias_gradient_are_exact_on_integers(dtype: str, bias: bool) -> None:
    lanes = lane_count(dtype)
    rng = np.random.default_rng(1)
    for n_rows in range(1, lanes + 1):
        for batch, columns in (
            (0, lanes),
            (1, 1),
            (2, lanes // 2),
            (13, lanes // 2 + 1),
            (7, lanes),
        ):
            x = rng.integers(-9, 10, (batch, lanes))
            d = filled(rng.integers(-9, 10, (batch, lanes)), columns)
            arena = Arena(dtype)
            a, b, zeros = arena.put(x), arena.put(d), arena.put(np.zeros(lanes))
            out, bias_out = arena.space(n_rows * lanes), arena.space(lanes)
            where = bias_out if bias else -1
            call_gradient(arena.values, out, zeros, a, b, batch, n_rows, columns, where)
            got = arena.values[out : out + n_rows * lanes].reshape(n_rows, lanes)
            np.testing.assert_array_equal(got, x[:, :n_rows].T @ d)
            got = arena.values[bias_out : bias_out + lanes]
            want = d.sum(axis=0) if bias else np.full(lanes, np.nan)
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("columns", [5, 32])
def test_a_row_has_the_same_bits_in_any_tile(columns: int) -> None:
    lanes, most = lane_count("float32"), 2 * TALL + 1
    depth = 2 * lanes - 3
    rng = np.random.default_rng(2)
    x = rng.standard_normal((most, 2 * lanes)).astype(np.float32)
    blocked = np.stack([x[:, :lanes], x[:, lanes:]])
    arena = Arena("float32")
    a, b = arena.put(blocked), arena.put(filled(rng.standard_normal((depth, lanes)), columns))
    start, out = arena.put(np.zeros(lanes)), arena.space(most * lanes)

    def bits(n_rows: int) -> bytes:
        panel = most * lanes
        call_product(
            arena.values, out, start, 0, a, panel, b, depth, n_rows, columns, RELU_OUTPUT, 0
        )
        return arena.values[out : out + n_rows * lanes].tobytes()

    want = bits(most)
    for n_rows in range(1, most):
        assert bits(n_rows) == want[: n_rows * lanes * 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_of_every_size(dtype: str) -> None:
    lanes = lane_count(dtype)
    half = lanes // 2
    for n_rows in range(1, lanes + 1):
        for n_columns in range(1, lanes + 1):
            arena = Arena(dtype)
            block = np.arange(1.0, lanes * lanes + 1).reshape(lanes, lanes)
            block[n_rows:] = np.nan
            source, target = arena.put(block), arena.space(lanes * lanes)
            before = arena.values.copy()
            call_transpose(arena.values, source, target, n_rows, n_columns)
            got = arena.values[target : target + lanes * lanes].reshape(lanes, lanes).copy()
            np.testing.assert_array_equal(got[:n_columns, :n_rows], block[:n_rows, :n_columns].T)
            # Lanes that fill up the last register may hold zeros; the rest is not written.
            rest, filled_up = got[:n_columns, n_rows:], -(-n_rows // half) * half - n_rows
            assert (np.isnan(rest) | (rest == 0)).all()
            assert np.isnan(rest[:, filled_up:]).all()
            assert np.isnan(got[n_columns:]).all()
            arena.values[target : target + lanes * lanes] = np.nan
            np.testing.assert_array_equal(arena.values, before)


def ulps(got: Any, want: Any) -> Any:
    rounded = want.astype(got.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(got - want) / np.spacing(np.abs(rounded))


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float32", -104, 88.7), ("float64", -745, 709)]
)
def test_exponentials_keep_their_published_accuracy(dtype: str, low: float, high: float) -> None:
    x = np.linspace(low, high, 400_001).astype(dtype)
    got = np.empty_like(x)
    call_exp(x, got)
    assert ulps(got, np.exp(x.astype(np.longdouble))).max() <= 1.5
    near = np.linspace(-3, 3, 200_001).astype(dtype)
    tiny = (np.logspace(-30, 0, 10_001) * -1).astype(dtype)
    x = np.concatenate([x[x < 40], near, tiny, -tiny])
    got = np.empty_like(x)
    call_expm1(x, got)
    want = np.expm1(x.astype(np.longdouble))
    assert ulps(got, want)[want != 0].max() <= 2
    x = np.concatenate([np.linspace(0, 1, 200_001), np.logspace(-30, 0, 10_001)]).astype(dtype)
    got = np.empty_like(x)
    call_log1p(x, got)
    want = np.log1p(x.astype(np.longdouble))
    assert ulps(got, want)[want != 0].max() <= 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponentials_of_special_values(dtype: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4], dtype)
    got = np.empty_like(x)
    call_exp(x, got)
    np.testing.assert_array_equal(got, [np.nan, np.inf, 0, 1, 1, np.inf, 0])
    call_expm1(x[[0, 2, 3]], got[:3])
    np.testing.assert_array_equal(got[:3], [np.nan, -1, 0])
    call_log(np.array([np.nan, np.inf, 1.0], dtype), got[:3])
    np.testing.assert_array_equal(got[:3], [np.nan, np.inf, 0])


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_nobody_passes_the_barrier_early(n_threads: int) -> None:
    words, counts = np.zeros(stages.words(n_threads), np.int64), np.zeros(16, np.int64)
    rounds = 300
    run_team(
        n_threads,
        lambda tid: count_together(words, counts, tid, n_threads, rounds),
        lambda: None,
    )
    assert counts[0] == rounds * n_threads
    assert counts[8] == 0


def test_an_aborted_barrier_lets_go() -> None:
    words, counts = np.zeros(stages.words(2), np.int64), np.zeros(16, np.int64)
    words[stages.ABORTED] = 1
    count_together(words, counts, 0, 2, 1)  # alone, where two are expected
    assert counts[0] == 1


@pytest.mark.parametrize("n_threads", [1, 4])
def test_every_ticket_goes_to_one_thread(n_threads: int) -> None:
    words, drawn = np.zeros(stages.words(n_threads), np.int64), np.zeros(5000, np.int64)
    run_team(n_threads, lambda tid: draw_all(words, drawn, tid, n_threads), lambda: None)
    assert ((drawn >= 1) & (drawn <= n_threads)).all()


@kernel
def draw_in_order(words, drawn, tid, n_threads):  # type: ignore[no-untyped-def]
    for i in range(drawn.shape[0]):
        drawn[i] = sync.draw(words, tid, n_threads, drawn.shape[0] - 1)


def test_a_thread_begins_with_its_own_share_and_then_helps() -> None:
    words, drawn = np.zeros(stages.words(3), np.int64), np.full(8, -1)
    draw_in_order(words, drawn, 1, 3)  # alone of three threads, of 7 items
    np.testing.assert_array_equal(drawn, [2, 3, 4, 5, 6, 0, 1, 7])


def test_read_only_data_compiles_nothing_new() -> None:
    given = np.arange(6.0).reshape(2, 3)
    assert uniform(given) is given
    frozen = given.copy()
    frozen.flags.writeable = False
    alias = uniform(frozen)
    assert alias.flags.writeable
    assert alias.ctypes.data == frozen.ctypes.data
    assert not frozen.flags.writeable
    del frozen
    np.testing.assert_array_equal(alias, given)  # the memory lives as long as the alias


@inner
def sum_run(vector, start, size):  # type: ignore[no-untyped-def]
    total = 0.0
    part = views.run(vector, start, size)
    for i in range(part.shape[0]):
        total += part[i]
    return total


@kernel
def sum_of_views(matrix, index, start, size):  # type: ignore[no-untyped-def]
    return sum_run(views.row(matrix, index), start, size)


def test_views_are_slices() -> None:
    matrix = np.arange(30.0).reshape(5, 6)
    assert sum_of_views(matrix, 2, 1, 3) == matrix[2, 1:4].sum()
    assert sum_of_views(matrix, 4, 5, 0) == 0.0
