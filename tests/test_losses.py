"""The table of losses: rows against scalar formulas, gradients against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastneuron.errors import UnknownNameError
from fastneuron.losses import LOSSES

NAMES = list(LOSSES)
DTYPES = [np.float32, np.float64]


def targets(name, rng, n, width):
    if name == "binary_cross_entropy":
        return rng.random((n, width))
    if name == "poisson":
        return rng.poisson(2, (n, width)).astype(float)
    if name == "cross_entropy":
        return rng.random((n, width))
    return 3 * rng.standard_normal((n, width))


def huber_of(r):
    return r * r / 2 if abs(r) <= 1 else abs(r) - 0.5


def logistic_loss(o, y):
    p = 1 / (1 + math.exp(-o))
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


SCALAR = {
    "mse": lambda o, y: (o - y) ** 2,
    "mae": lambda o, y: abs(o - y),
    "huber": lambda o, y: huber_of(o - y),
    "binary_cross_entropy": logistic_loss,
    "poisson": lambda o, y: math.exp(o) - y * o,
}


def row_loss(name, out, y):
    if name == "cross_entropy":
        total = sum(math.exp(o) for o in out)
        return -sum(t * math.log(math.exp(o) / total) for o, t in zip(out, y, strict=True))
    return sum(SCALAR[name](o, t) for o, t in zip(out, y, strict=True)) / len(out)


def test_the_table_is_complete():
    assert NAMES == ["mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "poisson"]
    assert [entry.code for entry in LOSSES.values()] == list(range(6))
    for name, entry in LOSSES.items():
        assert entry.name == name
        assert entry.slot == ("softmax_cross_entropy" if name == "cross_entropy" else name)
        assert entry.formula
        assert entry.gradient
        assert entry.source
    got = [entry.targets for entry in LOSSES.values()]
    assert got == ["values", "values", "values", "classes", "binary", "counts"]


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(UnknownNameError, match=r"unknown loss 'msee'.*did you mean 'mse'"):
        LOSSES["msee"]
    with pytest.raises(UnknownNameError, match=", ".join(NAMES)):
        LOSSES["hinge"]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_formula(name, width):
    rng = np.random.default_rng(1)
    out = 2 * rng.standard_normal((20, width))
    y = targets(name, rng, 20, width)
    want = [row_loss(name, o, t) for o, t in zip(out.tolist(), y.tolist(), strict=True)]
    np.testing.assert_allclose(LOSSES[name].rows(out, y), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_grad_is_the_slope_of_rows(name, width):
    rng = np.random.default_rng(2)
    out = 2 * rng.standard_normal((20, width))
    y = targets(name, rng, 20, width)
    if name in ("mae", "huber"):  # keep clear of the kinks, at 0 and 1
        residual = rng.choice([-1.7, -0.4, 0.3, 1.4], out.shape)
        y = out - residual
    entry = LOSSES[name]
    h = 1e-6
    want = np.empty_like(out)
    for j in range(width):
        step = np.zeros(width)
        step[j] = h
        want[:, j] = (entry.rows(out + step, y) - entry.rows(out - step, y)) / (2 * h)
    np.testing.assert_allclose(entry.grad(out, y), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_inputs_are_kept(name, dtype):
    rng = np.random.default_rng(3)
    out, y = rng.random((5, 3)).astype(dtype), rng.random((5, 3)).astype(dtype)
    before = out.copy(), y.copy()
    entry = LOSSES[name]
    rows, grad = entry.rows(out, y), entry.grad(out, y)
    assert (rows.dtype, rows.shape) == (dtype, (5,))
    assert (grad.dtype, grad.shape) == (dtype, (5, 3))
    np.testing.assert_array_equal(out, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_class_numbers_are_one_hot_rows(dtype):
    rng = np.random.default_rng(4)
    out = (5 * rng.standard_normal((30, 6))).astype(dtype)
    classes = rng.integers(0, 6, 30)
    one_hot = np.eye(6, dtype=dtype)[classes]
    entry = LOSSES["cross_entropy"]
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(entry.rows(out, classes), entry.rows(out, one_hot), rtol=eps)
    got = entry.grad(out, classes)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, entry.grad(out, one_hot), atol=eps)
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=10 * eps)


def test_softmax_does_not_see_a_shift():
    rng = np.random.default_rng(5)
    out = rng.integers(-20, 20, (10, 4)).astype(float)
    y = rng.integers(0, 4, 10)
    entry = LOSSES["cross_entropy"]
    np.testing.assert_array_equal(entry.rows(out + 1000, y), entry.rows(out, y))
    np.testing.assert_array_equal(entry.grad(out - 1000, y), entry.grad(out, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_are_stable(dtype):
    big = dtype(1e4)
    out = np.array([[big, -big], [-big, big]], dtype)
    entry = LOSSES["cross_entropy"]
    np.testing.assert_array_equal(entry.rows(out, np.array([0, 0])), [0, 2e4])
    np.testing.assert_array_equal(entry.grad(out, np.array([0, 0])), [[0, 0], [-1, 1]])
    entry = LOSSES["binary_cross_entropy"]
    y = np.array([[1, 0], [1, 0]], dtype)
    np.testing.assert_array_equal(entry.rows(out, y), [0, 1e4])
    np.testing.assert_array_equal(entry.grad(out, y), [[0, 0], [-0.5, 0.5]])


def test_small_probabilities_keep_their_relative_accuracy():
    out, y = np.array([[-40.0]]), np.array([[0.0]])
    entry = LOSSES["binary_cross_entropy"]
    np.testing.assert_allclose(entry.rows(out, y), math.exp(-40), rtol=1e-15)
    np.testing.assert_allclose(entry.grad(out, y), math.exp(-40), rtol=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_output_spoils_its_row_and_no_other(name, value):
    out = np.zeros((3, 2), np.float32)
    out[1, 0] = value
    rows = LOSSES[name].rows(out, np.zeros((3, 2), np.float32) + 0.5)
    np.testing.assert_array_equal(np.isfinite(rows), [True, False, True])


def test_overflow_is_an_infinite_loss():
    out = np.full((1, 1), 200, np.float32)
    y = np.zeros((1, 1), np.float32)
    assert LOSSES["poisson"].rows(out, y)[0] == np.inf
    assert LOSSES["mse"].rows(out * np.float32(1e30), y)[0] == np.inf


def test_subgradients_at_the_kinks():
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    assert LOSSES["mae"].grad(one, one) == 0
    assert LOSSES["huber"].grad(one, zero) == 1
    assert LOSSES["huber"].rows(one, zero) == 0.5


def test_predict():
    out = np.array([[0.5, -1.0], [-2.0, 3.0]], np.float32)
    for name in ("mse", "mae", "huber"):
        np.testing.assert_array_equal(LOSSES[name].predict(out), out)
    got = LOSSES["cross_entropy"].predict(out)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [0, 1])
    got = LOSSES["binary_cross_entropy"].predict(out)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(LOSSES["binary_cross_entropy"].predict(out[:, :1]), [1, 0])
    np.testing.assert_allclose(LOSSES["poisson"].predict(out), np.exp(out))
