"""Slim layers, whose rows are lanes: the bits of panels, and gradients inside their bounds."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels import columns as at
from fastneuron.kernels.columns import SLIM_BLOCK, SLIM_ROWS
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.kernels.layout import slim_layers
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD
from fastneuron.spec import NetworkSpec
from fastneuron.testing import assert_within, draw_inputs, draw_parameters, training_step
from fastneuron.testing.generate import draw_targets

DTYPES = ["float32", "float64"]
BATCHES = [SLIM_ROWS, SLIM_ROWS + 1, 2 * SLIM_ROWS + 17, SLIM_BLOCK + 130]
ACTIVATIONS = ["tanh", "gelu", "relu", "silu", "identity", "sigmoid"]


def lane_count(blocked: Backend, dtype: str) -> int:
    made: Any = blocked.engine(NetworkSpec.chain([Dense(1, 1)], dtype))
    return int(made._lanes())


def networks(blocked: Backend, dtype: str) -> list[tuple[int, ...]]:
    """Runs of slim layers that are all, begin, end, and lie within the network."""
    lanes = lane_count(blocked, dtype)
    most = lanes // 4
    return [
        (1, 1),
        (most, 1, most, most),
        (1, most, 1, 3 * lanes + 5),
        (lanes + 3, 1, most, 1),
        (lanes + 1, most, 1, 1, most, 37),
    ]


LOSS_NAMES = ["mse", "huber", "poisson", "binary_cross_entropy", "mae"]
CASES = [*enumerate(LOSS_NAMES), (1, "cross_entropy"), (4, "cross_entropy")]


def drawn(dtype: str, sizes: tuple[int, ...], seed: int = 0) -> tuple[NetworkSpec, Parameters]:
    layers = [
        Dense(a, b, activation=ACTIVATIONS[(2 * seed + i) % 6], bias=(i + seed) % 3 != 1)
        for i, (a, b) in enumerate(pairwise(sizes))
    ]
    layers[-1] = Dense(sizes[-2], sizes[-1], "identity" if seed % 2 else "tanh", bias=True)
    spec = NetworkSpec.chain(layers, dtype)
    return spec, draw_parameters(spec, np.random.default_rng(seed))


def engine(
    blocked: Backend,
    spec: NetworkSpec,
    parameters: Parameters,
    loss: str,
    slim: bool,
    n_threads: int = 1,
) -> Any:
    options = {"n_threads": n_threads, "batch_size": max(BATCHES)}
    made: Any = blocked.engine(spec, LOSSES[loss], SGD(0.1), **options)
    made.load(parameters)
    assert made._layout.head[at.SLIM_LAYERS] > 0, "no slim layer"
    if not slim:
        made._layout.head[at.SLIM_LAYERS] = 0
    return made


def flat(parameters: Parameters) -> Any:
    return np.concatenate([a.ravel() for pair in parameters for a in pair if a is not None])


def test_which_layers_are_slim() -> None:
    assert slim_layers((1, 8), 32) == [True]
    assert slim_layers((1, 9), 32) == [False]
    assert slim_layers((8, 8, 8, 9), 32) == [True, True, False]
    assert slim_layers((8, 8, 9), 32) == [False, False]  # one layer does not pay for a turn
    assert slim_layers((99, 4, 4, 4, 99), 32) == [False] * 4  # nor do two for two
    assert slim_layers((99, 4, 4, 4, 4, 99), 32) == [False, True, True, True, False]
    assert slim_layers((2, 2, 99, 1, 1), 8) == [False, False, False, False]
    assert slim_layers((2, 2, 1, 99, 1, 1, 2), 8) == [True, True, False, False, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("which", "loss"), CASES)
def test_same_bits_as_panels_but_for_the_gradient_which_is_in_bounds(
    blocked: Backend, which: int, loss: str, dtype: str
) -> None:
    sizes = networks(blocked, dtype)[which]
    for seed, batch in enumerate(BATCHES):
        rng = np.random.default_rng(seed)
        spec, parameters = drawn(dtype, sizes, seed)
        x = draw_inputs(rng, batch, sizes[0], dtype)
        y = draw_targets(LOSSES[loss], rng, batch, sizes[-1], dtype)
        weight = rng.uniform(0, 2, batch).astype(dtype) if seed % 2 else None
        one, other = (engine(blocked, spec, parameters, loss, slim) for slim in (True, False))
        one.poison(np.nan)
        what = f"{batch} rows"

        got_loss, got = one.gradients(x, y, weight)
        want_loss, _ = other.gradients(x, y, weight)
        assert got_loss == want_loss, what
        want = training_step(spec, LOSSES[loss], parameters, x, y, weight)
        for pair, bounds in zip(got, want.gradients, strict=True):
            for array, bound in zip(pair, bounds, strict=True):
                if array is not None:
                    assert_within(array, bound, what)

        np.testing.assert_array_equal(one.forward_keep(x), other.forward_keep(x), what)
        dout = rng.standard_normal((batch, sizes[-1])).astype(dtype)
        scalars = SGD(0.1).scalars(0, np.full(1, 0.1))[0]
        (got_dx, status), (want_dx, _) = (each.update(dout, scalars) for each in (one, other))
        assert status.status == Status.OK
        np.testing.assert_array_equal(got_dx, want_dx, what)


def test_rows_after_the_last_have_zeros_for_deltas(blocked: Backend) -> None:
    spec, parameters = drawn("float32", (2, 2, 2), 1)
    made = engine(blocked, spec, parameters, "huber", True)
    made.poison(np.nan)
    x, y = np.ones((2, SLIM_ROWS + 3, 2), np.float32)
    made.gradients(x, y, None)
    stride, table = int(made._layout.head[at.SLIM_STRIDE]), made._layout.layers
    for place in (table[0, at.SLIM_IN], table[1, at.SLIM_OUT_DELTA], table[0, at.SLIM_OUT_DELTA]):
        got = made._arena[place : place + 2 * stride].reshape(2, stride)
        assert np.isfinite(got[:, : len(x)]).all()
        assert (got[:, len(x) : 2 * SLIM_ROWS] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", range(5))
def test_whole_numbers_are_exact(blocked: Backend, dtype: str, which: int) -> None:
    rng = np.random.default_rng(which)
    sizes = networks(blocked, dtype)[which]
    layers = [Dense(a, b, "relu") for a, b in pairwise(sizes)]
    layers[-1] = Dense(sizes[-2], sizes[-1], "identity")
    spec = NetworkSpec.chain(layers, dtype)
    parameters: Parameters = [
        (rng.integers(-1, 2, pair).astype(dtype), rng.integers(-1, 2, pair[1]).astype(dtype))
        for pair in pairwise(sizes)
    ]
    batch = 128
    x = rng.integers(-1, 2, (batch, sizes[0])).astype(dtype)
    kept = [engine(blocked, spec, parameters, "mse", slim) for slim in (True, False)]
    outs = [each.forward_keep(x) for each in kept]
    dout = rng.integers(-1, 2, outs[0].shape).astype(dtype)
    scalars = SGD(1.0).scalars(0, np.full(1, 1.0))[0]
    for each in kept:
        _dx, outcome = each.update(dout, scalars)
        assert outcome.status == Status.OK
    got, want = (flat(each.export()) for each in kept)
    np.testing.assert_array_equal(got, want)
    assert (got != flat(parameters)).any()


def trained(
    blocked: Backend, dtype: str, which: int, n_threads: int, scratch: float, loss: str = "mse"
) -> bytes:
    """Three steps of many rows and few."""
    sizes, rng = networks(blocked, dtype)[which], np.random.default_rng(which)
    spec, parameters = drawn(dtype, sizes, which)
    batch, steps = BATCHES[-1], 3
    x = draw_inputs(rng, 2 * batch, sizes[0], dtype)
    y = draw_targets(LOSSES[loss], rng, 2 * batch, sizes[-1], dtype)
    order = np.concatenate([rng.permutation(2 * batch)[:batch] for _ in range(steps)])
    bounds = np.array([0, batch, batch + 60, 2 * batch], np.int64)  # 60 rows go in panels
    made = engine(blocked, spec, parameters, loss, True, n_threads)
    made.poison(scratch)
    losses = np.zeros(steps)
    scalars = SGD(0.1).scalars(0, np.full(steps, 0.1))
    outcome = made.run(x, y, None, order, bounds, scalars, losses)
    assert outcome.status == Status.OK
    return losses.tobytes() + flat(made.export()).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", range(5))
def test_threads_and_scratch_change_no_bit(blocked: Backend, dtype: str, which: int) -> None:
    kinds = itertools.product((1, 2, 3, 8), (np.nan, 1e38))
    assert len({trained(blocked, dtype, which, *kind) for kind in kinds}) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("which", "loss"), CASES)
def test_numba_and_cython_agree_to_the_bit(
    twins: tuple[Backend, Backend], which: int, loss: str, dtype: str
) -> None:
    of_numba, of_cython = (trained(each, dtype, which, 2, np.nan, loss) for each in twins)
    assert of_cython == of_numba
