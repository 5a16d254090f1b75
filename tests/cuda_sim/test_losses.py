"""Losses and what becomes of them, with few lanes over ragged rows."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import blocks_of
from fastneuron.kernels.numba_cuda.losses import loss_rows
from fastneuron.kernels.numba_cuda.outcome import mean_loss
from fastneuron.losses import LOSSES
from fastneuron.testing import Precision, assert_within, draw_targets, exact, loss_of_batch

LANES, ROWS = 4, 2


def run(device, name, out, y, weight):
    (batch, outputs), dtype = out.shape, out.dtype.name
    kernel = loss_rows(name, dtype, LANES, ROWS, weight is not None, y.ndim == 1)
    losses, dout = device.out(batch, dtype=dtype), device.out(batch, outputs, dtype=dtype)
    given = np.full(1, np.nan, dtype) if weight is None else weight
    grid = blocks_of(batch, ROWS)
    device.launch(kernel, grid, (LANES, ROWS), out, y, given, losses, dout, batch, outputs)
    return device.result(losses, batch), device.result(dout, batch, outputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(("batch", "outputs"), [(1, 2), (3, 9), (4, 4), (5, 3)])
def test_a_loss_is_within_its_bound(device, name, dtype, batch, outputs) -> None:
    rng = np.random.default_rng(batch)
    loss, p = LOSSES[name], Precision.of(dtype)
    out = rng.normal(0, 2, (batch, outputs)).astype(dtype)
    kinds = [draw_targets(loss, rng, batch, outputs, dtype)]
    if name == "cross_entropy":
        rows = rng.dirichlet(np.ones(outputs), batch).astype(dtype) * dtype_of(dtype, 2)
        kinds = [rng.integers(0, outputs, batch), rows]
    for y in kinds:
        for weight in (None, rng.uniform(0, 2, batch).astype(dtype)):
            losses, dout = run(device, name, out, y, weight)
            want_rows, want_dout, want = loss_of_batch(loss, exact(out), y, weight, p)
            assert_within(losses, want_rows, "rows")
            assert_within(dout, want_dout, "dout")
            means, state = np.full(3, np.nan), np.array([1, 0])
            device.launch(mean_loss(LANES), 1, LANES, losses, means, state, batch)
            assert_within(means[1], want, "mean")
            np.testing.assert_array_equal(np.isnan(means), [True, False, True])
            np.testing.assert_array_equal(state, [1, Status.OK])


def dtype_of(dtype: str, number: float):
    return np.dtype(dtype).type(number)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nan_in_an_output_is_in_its_loss_and_gradient(device, name) -> None:
    out = np.zeros((3, 5), "float32")
    out[1, 4] = np.nan
    y = np.full((3, 5), 0.25, "float32")
    losses, dout = run(device, name, out, y, None)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    assert np.isnan(dout[1, 4])
    assert np.isfinite(dout[[0, 2]]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_chunk_once(device, bad) -> None:
    rows, losses, state = np.ones(7, "float32"), np.full(3, -1.0), np.array([1, 0])
    rows[6] = bad
    device.launch(mean_loss(LANES), 1, LANES, rows, losses, state, 7)
    np.testing.assert_array_equal(state, [1, Status.LOSS_NOT_FINITE])
    np.testing.assert_array_equal(losses, [-1, bad, -1])
    rows[6] = 1
    device.launch(mean_loss(LANES), 1, LANES, rows, losses, state, 7)
    np.testing.assert_array_equal(losses, [-1, bad, -1])  # what is queued behind changes nothing
    np.testing.assert_array_equal(state, [1, Status.LOSS_NOT_FINITE])


def test_the_mean_is_summed_in_float64(device) -> None:
    rows = np.array([2.0**24, 1, 1, 1, 1, 1, 1, 1], "float32")
    losses, state = np.zeros(1), np.zeros(2, np.int64)
    device.launch(mean_loss(LANES), 1, LANES, rows, losses, state, 8)
    assert losses[0] == (2.0**24 + 7) / 8
