"""The optimizer's kernel over flat vectors, and the kernels that decide whether it acts."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import DECAYS, TRAINS, blocks_of
from fastneuron.kernels.numba_cuda import outcome, updates
from fastneuron.optimizers import L2, N_SCALARS, SGD, SHRINK, Adam, AdamW, RMSprop
from fastneuron.testing import Precision, assert_within, exact, updated_vector

THREADS = 8
OPTIMIZERS = [
    SGD(0.1, weight_decay=0.01),
    SGD(0.1, momentum=0.9, weight_decay=0.1),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01, weight_decay=0.01),
    AdamW(0.01, weight_decay=0.1),
    RMSprop(0.01, weight_decay=0.3),
]


def vectors(dtype: str, count: int = 48):
    rng = np.random.default_rng(0)
    p, g, m = (rng.normal(size=count).astype(dtype) for _ in range(3))
    return p, g, m, rng.uniform(0.01, 1, count).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}-{o.kind.name}")
def test_an_update_is_within_its_bound(device, optimizer, dtype) -> None:
    p, g, first, second = vectors(dtype)
    if optimizer.kind.name == "RMSPROP":
        first = second.copy()
    scalars = optimizer.scalars(4, np.array([0.5, 0.1]))
    table = updates.table_of(scalars, dtype)
    # Of three groups of 16 one decays, one is not trained at all, and one does not decay.
    marks = np.array([TRAINS | DECAYS, 0, TRAINS], np.uint8)
    clip, state = np.array([0.25], dtype), np.array([1, Status.OK])
    got = [each.copy() for each in (p, first, second)]
    kernel = updates.update(optimizer.kind, optimizer.n_moments, dtype, THREADS)
    count = 44  # the last block and the last group are not full
    grid = blocks_of(count, THREADS)
    device.launch(kernel, grid, THREADS, got[0], g, *got[1:], marks, table, clip, state, count)
    kept = [first, second][: optimizer.n_moments]
    for decays, part in ((True, slice(0, 16)), (False, slice(32, 44))):
        row = scalars[1].copy()
        if not decays:
            row[[L2, SHRINK]] = 0
        want = updated_vector(
            optimizer.kind, exact(p[part]), exact(g[part]), [exact(m[part]) for m in kept],
            row, exact(0.25), Precision.of(dtype),
        )  # fmt: skip
        for name, new, bounded in zip(("p", "first", "second"), got, want, strict=False):
            assert_within(new[part], bounded, f"{name}, decays={decays}")
    for new, old in zip(got, (p, first, second), strict=True):
        np.testing.assert_array_equal(new[16:32], old[16:32])
        np.testing.assert_array_equal(new[44:], old[44:])
    for new, old in zip(got[1 + optimizer.n_moments :], (first, second)[optimizer.n_moments :]):  # noqa: B905
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("status", [Status.LOSS_NOT_FINITE, Status.GRADIENT_NOT_FINITE])
def test_a_failed_chunk_is_not_updated(device, status) -> None:
    p, g, first, second = vectors("float32")
    got = [each.copy() for each in (p, first, second)]
    optimizer = Adam()
    table = updates.table_of(optimizer.scalars(0, np.ones(1)), "float32")
    marks, state = np.full(3, TRAINS, np.uint8), np.array([0, status])
    kernel = updates.update(optimizer.kind, 2, "float32", THREADS)
    clip = np.ones(1, "float32")
    device.launch(kernel, 6, THREADS, got[0], g, *got[1:], marks, table, clip, state, 48)
    np.testing.assert_array_equal(got, [p, first, second])
    device.launch(outcome.advance(), 1, 1, state)
    np.testing.assert_array_equal(state, [0, status])


CHUNK = 10


def judged(device, gradient, marks, limit):
    """(clip, state) of a gradient."""
    count = len(gradient)
    chunks = blocks_of(count, CHUNK)
    partials = np.full(chunks, np.nan)
    device.launch(
        outcome.squares(4, CHUNK), chunks, 4, gradient, np.array(marks, np.uint8), partials, count
    )
    clip, state = device.out(1, dtype=gradient.dtype.name), np.array([2, Status.OK])
    limits = np.array([np.nan, np.nan, limit])
    judge = outcome.judge(4, gradient.dtype.name)
    device.launch(judge, 1, 4, partials, limits, clip, state, chunks)
    return device.result(clip, 1)[0], state


def test_the_norm_is_that_of_what_is_trained(device) -> None:
    gradient = np.zeros(48, "float32")
    gradient[[0, 47]] = 3, 4
    gradient[16:32] = np.nan
    marks = [TRAINS, DECAYS, TRAINS | DECAYS]
    for limit, want in ((0, 1), (5, 1), (2.5, 0.5), (100, 1)):
        clip, state = judged(device, gradient, marks, limit)
        assert clip == want
        np.testing.assert_array_equal(state, [2, Status.OK])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**64])
@pytest.mark.parametrize("place", [0, 9, 10, 33])
def test_a_gradient_whose_square_is_not_finite_is_found(device, bad, place) -> None:
    gradient = np.zeros(34, "float32")
    gradient[place] = bad
    clip, state = judged(device, gradient, [TRAINS] * 3, 1.0)
    np.testing.assert_array_equal(state, [2, Status.GRADIENT_NOT_FINITE])
    assert np.isnan(clip)


def test_squares_are_summed_in_float64(device) -> None:
    gradient = np.full(2, 2.0**63, "float32")  # each square is finite in float32, and so is the sum
    _, state = judged(device, gradient, [TRAINS], 0)
    assert state[1] == Status.OK
    gradient = np.full(2, 2.0**-80, "float32")  # each square underflows in float32
    clip, _ = judged(device, gradient, [TRAINS], 2.0**-80)
    assert clip == np.float32(2**-0.5)


def test_the_table_combines_in_float64() -> None:
    scalars = np.zeros((1, N_SCALARS))
    scalars[0, 3:5] = 0.9, 0.999
    table = updates.table_of(scalars, "float32")
    np.testing.assert_array_equal(table[0, -2:], np.float32([1 - 0.9, 1 - 0.999]))
