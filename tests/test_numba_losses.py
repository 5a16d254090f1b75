"""The emitted losses, sums and moves of the Numba engine, one by one and on every ragged end."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron.kernels.columns import SLIM_ROWS
from fastneuron.kernels.numba_cpu import losses, moves, softmax, sums, updates
from fastneuron.kernels.numba_cpu.jit import kernel
from fastneuron.kernels.numba_cpu.slim import dot
from fastneuron.kernels.numba_cpu.target import lane_count
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, RMSprop

DTYPES = ["float32", "float64"]
FLOOR = {"float32": 2e-6, "float64": 1e-14}  # some 20 roundings
VALUES = [name for name in LOSSES if name != "cross_entropy"]


@kernel
def call_group(arena, out, delta, scratch, classes, labels, targets, weight, samples, at, share):  # type: ignore[no-untyped-def]
    softmax.softmax_group(
        arena, out, delta, scratch, classes, labels, targets, weight, samples, at, share
    )


@kernel
def call_softmax_row(arena, out, delta, stride, classes, label, target, dense, scale):  # type: ignore[no-untyped-def]
    return softmax.cross_entropy_row(
        arena, out, delta, stride, classes, label, target, dense, scale
    )


@kernel
def call_values_row(arena, code, out, delta, stride, target, coming, scale):  # type: ignore[no-untyped-def]
    return losses.values_row(arena, code, out, delta, stride, target, coming, scale)


@kernel
def call_sum(arena, first, count):  # type: ignore[no-untyped-def]
    return sums.sum_of_rows(arena, first, count)


@kernel
def call_squares(arena, first, size, other, other_size):  # type: ignore[no-untyped-def]
    return sums.squares(arena, first, size, other, other_size)


@kernel
def call_largest(arena, first, size):  # type: ignore[no-untyped-def]
    return sums.largest_bits(arena, first, size)


@kernel
def call_gather(arena, sample, out, stride):  # type: ignore[no-untyped-def]
    moves.gather(arena, sample, out, stride)


@kernel
def call_update(kind, p, g, m, v, scalars, columns):  # type: ignore[no-untyped-def]
    updates.update(kind, p, g, m, v, scalars, 1.0, 1, columns)


def in_panels(row: Any, lanes: int, stride: int) -> Any:
    """A row laid out in panels, poison where it is not."""
    count = -(-row.size // lanes)
    blocked = np.full((count - 1) * stride + lanes, np.nan, row.dtype)
    for p in range(count):
        part = row[p * lanes : (p + 1) * lanes]
        blocked[p * stride : p * stride + part.size] = part
    return blocked


def from_panels(arena: Any, at: int, columns: int, lanes: int, stride: int) -> Any:
    """The panels of one row that stands at `at`, whole ones."""
    count = -(-columns // lanes)
    return np.concatenate([arena[at + p * stride : at + p * stride + lanes] for p in range(count)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_a_group(dtype: str, dense: bool, weighted: bool) -> None:
    lanes = lane_count(dtype)
    group, rng, loss = lanes // 2, np.random.default_rng(0), LOSSES["cross_entropy"]
    no_weight, share = np.empty(0, dtype), np.dtype(dtype).type(1 / 7)
    for classes in (1, 2, 3, group - 1, group, group + 1, lanes):
        # In every other row some logits are so far apart that only the largest may be the shift.
        spread = np.where(np.arange(group) % 2, 2000, 6)[:, None]
        logits = (spread * rng.standard_normal((group, classes))).astype(dtype)
        weight = rng.uniform(0.5, 2, 50).astype(dtype)
        labels = rng.integers(0, classes, 50)
        targets = rng.random((50, classes)).astype(dtype)
        samples = rng.permutation(50)[:group]
        y = targets[samples].astype(np.float64) if dense else labels[samples]
        scale = (weight[samples] if weighted else np.ones(group)) * float(share)
        want = scale * loss.rows(logits.astype(np.float64), y)
        want_delta = scale[:, None] * loss.grad(logits.astype(np.float64), y)
        rows = np.full((group, lanes), np.nan, dtype)  # lanes after the last class are poison
        rows[:, :classes] = logits
        first_bits = []
        beside = 5 + lanes * lanes
        for n_rows, delta in itertools.product(range(group, 0, -1), (beside, 3)):
            arena = np.full(lanes * lanes * 4, np.nan, dtype)
            out, scratch, at = 3, 2 * lanes * lanes + 7, 3 * lanes**2 + 99
            arena[out : out + n_rows * lanes] = rows[:n_rows].ravel()
            call_group(
                arena,
                out,
                delta,
                scratch,
                classes,
                np.empty(0, np.int64) if dense else labels,
                targets if dense else np.empty((0, 0), dtype),
                weight if weighted else no_weight,
                samples[:n_rows],
                at,
                share,
            )
            got, got_delta = arena[at : at + n_rows], arena[delta : delta + n_rows * lanes]
            got_delta = got_delta.reshape(n_rows, lanes)
            what = f"{classes} classes, {n_rows} rows"
            np.testing.assert_allclose(got, want[:n_rows], FLOOR[dtype], FLOOR[dtype], what)
            np.testing.assert_allclose(
                got_delta[:, :classes], want_delta[:n_rows], FLOOR[dtype], FLOOR[dtype], what
            )
            assert (got_delta[:, classes:] == 0).all(), what
            first_bits.append(got[0].tobytes() + got_delta[0].tobytes())
            # Nothing was written beside rows, losses and scratch: they are poison as before.
            assert np.isnan(arena[at + n_rows :]).all(), what
            assert np.isnan(arena[delta + n_rows * lanes : scratch]).all(), what
        assert len(set(first_bits)) == 1, "a row knows its companions"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("dense", [False, True])
def test_cross_entropy_of_a_row(dtype: str, dense: bool, in_place: bool) -> None:
    lanes = lane_count(dtype)
    rng, loss, stride = np.random.default_rng(1), LOSSES["cross_entropy"], 2 * lanes + 5
    for classes in (1, 2, lanes // 2, lanes // 2 + 1, lanes, lanes + 1, 3 * lanes - 1):
        # All below zero: lanes without a class must not be the largest.
        logits = (6 * rng.standard_normal(classes) - 3000).astype(dtype)
        target = rng.random(classes).astype(dtype)
        label = int(rng.integers(classes))
        arena = np.full(16 * stride, np.nan, dtype)
        row = in_panels(logits, lanes, stride)
        arena[3 : 3 + row.size] = row
        before, scale = arena.copy(), np.dtype(dtype).type(0.3)
        delta = 3 if in_place else 8 * stride
        got = call_softmax_row(arena, 3, delta, stride, classes, label, target, dense, scale)
        y = target[None].astype(np.float64) if dense else np.array([label])
        wide = logits[None].astype(np.float64)
        close = {"rtol": FLOOR[dtype], "atol": FLOOR[dtype], "err_msg": f"{classes} classes"}
        np.testing.assert_allclose(got, float(scale) * loss.rows(wide, y)[0], **close)
        got_delta = from_panels(arena, delta, classes, lanes, stride)
        want = float(scale) * loss.grad(wide, y)[0]
        np.testing.assert_allclose(got_delta[:classes], want, **close)
        assert (got_delta[classes:] == 0).all()
        for p in range(-(-classes // lanes)):
            for each in (arena, before):
                each[delta + p * stride : delta + p * stride + lanes] = np.nan
        np.testing.assert_array_equal(arena, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("name", VALUES)
def test_other_losses_of_a_row(dtype: str, name: str, in_place: bool) -> None:
    lanes = lane_count(dtype)
    rng, loss, stride = np.random.default_rng(2), LOSSES[name], 2 * lanes + 5
    for outputs in (1, 2, lanes // 2, lanes // 2 + 1, lanes, lanes + 1, 3 * lanes - 1):
        o = (2 * rng.standard_normal(outputs)).astype(dtype)
        y = rng.integers(0, 2, outputs).astype(dtype)
        o[0] = y[0]  # a residual of zero
        arena = np.full(16 * stride, np.nan, dtype)
        row = in_panels(o, lanes, stride)
        arena[3 : 3 + row.size] = row
        before, scale = arena.copy(), np.dtype(dtype).type(0.3)
        delta = 3 if in_place else 8 * stride
        got = call_values_row(arena, loss.code, 3, delta, stride, y, y[:1], scale)
        wide, wanted = o[None].astype(np.float64), y[None].astype(np.float64)
        close = {"rtol": FLOOR[dtype], "atol": FLOOR[dtype], "err_msg": f"{outputs} outputs"}
        np.testing.assert_allclose(got, float(scale) * loss.rows(wide, wanted)[0], **close)
        got_delta = from_panels(arena, delta, outputs, lanes, stride)
        want = float(scale) * loss.grad(wide, wanted)[0]
        np.testing.assert_allclose(got_delta[:outputs], want, **close)
        assert (got_delta[outputs:] == 0).all()
        for p in range(-(-outputs // lanes)):
            for each in (arena, before):
                each[delta + p * stride : delta + p * stride + lanes] = np.nan
        np.testing.assert_array_equal(arena, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_rows_goes_by_eights(dtype: str) -> None:
    rng = np.random.default_rng(3)
    for count in range(42):
        arena = np.full(60, np.nan, dtype)
        rows = (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 7, count)).astype(dtype)
        arena[5 : 5 + count] = rows
        eights = np.zeros(-(-count // 8) * 8)
        eights[:count] = rows
        want = np.zeros(8)
        for part in eights.reshape(-1, 8):
            want = want + part
        while want.size > 1:
            want = want[: want.size // 2] + want[want.size // 2 :]
        assert call_sum(arena, 5, count) == want[0], f"{count} rows"
        for bad in (np.nan, np.inf):
            if count:
                arena[5 + count - 1] = bad
                np.testing.assert_equal(call_sum(arena, 5, count), bad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_of_two_runs(dtype: str) -> None:
    lanes, rng = lane_count(dtype), np.random.default_rng(4)
    for first, second in ((0, 0), (1, 0), (0, 1), (3, 1), (8, 2)):
        arena = np.full(20 * lanes, np.nan, dtype)
        a, b = rng.integers(-9, 10, first * lanes), rng.integers(-9, 10, second * lanes)
        arena[3 : 3 + a.size], arena[12 * lanes : 12 * lanes + b.size] = a, b
        got = call_squares(arena, 3, a.size, 12 * lanes, b.size)
        assert got == (a**2).sum() + (b**2).sum()
    arena[3 + lanes] = np.nan
    assert np.isnan(call_squares(arena, 3, a.size, 12 * lanes, b.size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_bits_see_every_element(dtype: str) -> None:
    lanes, rng = lane_count(dtype), np.random.default_rng(5)
    whole = np.dtype(dtype.replace("float", "int"))
    for size in [*range(1, lanes + 2), 4 * lanes, 4 * lanes + 3]:
        arena = np.full(6 * lanes, np.nan, dtype)
        part = arena[2 : 2 + size]
        part[:] = rng.uniform(-1, 1, size)
        for value in (-2.0, 3.0, np.inf, -np.inf, np.nan):
            at = int(rng.integers(size))
            part[at] = value
            got = call_largest(arena, 2, size)
            assert got == np.abs(np.array([value], dtype)).view(whole)[0], f"{value} of {size}"
            part[at] = 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_fills_registers_up(dtype: str) -> None:
    lanes = lane_count(dtype)
    half, stride = lanes // 2, 3 * lanes + 1
    for columns in range(1, 2 * lanes + 2):
        arena = np.full(4 * stride, np.nan, dtype)
        sample = np.arange(1.0, columns + 1).astype(dtype)
        call_gather(arena, sample, 5, stride)
        got = from_panels(arena, 5, columns, lanes, stride)
        filled = -(-columns // half) * half
        np.testing.assert_array_equal(got[:columns], sample)
        assert (got[columns:filled] == 0).all(), f"{columns} columns"
        assert np.isnan(got[filled:]).all(), f"{columns} columns"
        assert np.isfinite(arena).sum() == filled, f"{columns} columns"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "optimizer", [SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam(), RMSprop()]
)
def test_update_of_half_a_panel(dtype: str, optimizer: Any) -> None:
    lanes, rng = lane_count(dtype), np.random.default_rng(6)
    half, scalars = lanes // 2, optimizer.scalars(3, np.full(1, 0.01))[0]
    arrays = [rng.uniform(0.1, 1, (5, lanes)).astype(dtype) for _ in range(4)]
    whole = [array.copy() for array in arrays]
    call_update(optimizer.kind, *(array.ravel() for array in whole), scalars, half + 1)
    for columns in (1, half):
        narrow = [array.copy() for array in arrays]
        for array in narrow:
            array[:, half:] = 7
        call_update(optimizer.kind, *(array.ravel() for array in narrow), scalars, columns)
        for got, want in zip(narrow, whole, strict=True):
            np.testing.assert_array_equal(got[:, :half], want[:, :half])
            assert (got[:, half:] == 7).all()
    assert (whole[0] != arrays[0]).all()


@kernel
def call_dot(arena, a, d, count, ones):  # type: ignore[no-untyped-def]
    return dot(arena, a, d, count, ones)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slim_gradient_sums_the_rows_of_the_batch_and_no_others(dtype: str) -> None:
    rng, size = np.random.default_rng(0), 3 * SLIM_ROWS
    for count in range(2 * SLIM_ROWS + 2):
        arena = np.full(2 * size + 3, np.nan, dtype)
        a, d = rng.integers(-9, 10, (2, count))
        arena[3 : 3 + count], arena[3 + size : 3 + size + count] = a, d
        assert call_dot(arena, 3, 3 + size, count, False) == (a * d).sum(), f"{count} rows"
        assert call_dot(arena, 3, 3 + size, count, True) == d.sum(), f"{count} rows"
