"""The reference's slots: by formula, by exact integers, into poisoned memory."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels import contract
from fastneuron.kernels.reference import SLOTS
from fastneuron.losses import LOSSES

DTYPES = ["float32", "float64"]


def test_every_slot_is_filled_and_documented():
    assert tuple(SLOTS) == contract.SLOTS
    for name, slot in SLOTS.items():
        doc = inspect.getdoc(slot)
        shared = inspect.getmodule(slot).__doc__
        for heading in ("Formula", "Arrays", "Cost", "Order", "Source"):
            assert (
                f"{heading}\n---" in doc or f"{heading}:" in shared or f" {heading}:" in shared
            ), f"{name} lacks {heading}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_dense_slots_are_exact_on_integers(bias, dtype):
    rng = np.random.default_rng(4)
    x, w, b, dy = (
        rng.integers(-4, 5, shape) for shape in [(6, 5), (5, 3), (3,), (6, 3)]
    )  # fmt: skip
    want_a = np.maximum(x @ w + b * bias, 0)
    want_dz = dy * (want_a > 0)
    args = [array.astype(dtype) for array in (x, w, b, dy)]
    fx, fw, fb, fdy = args
    given = fb if bias else None

    a = SLOTS["dense_forward"](fx, fw, given, "relu")
    np.testing.assert_array_equal(a, want_a)
    assert a.dtype == dtype
    np.testing.assert_array_equal(SLOTS["bias_act_forward"](fx @ fw, given, "relu"), want_a)

    dz, db = SLOTS["act_bias_backward"](fdy, a, "relu", bias)
    np.testing.assert_array_equal(dz, want_dz)
    dx, dw, db_too = SLOTS["dense_backward"](fdy, fx, fw, a, "relu", bias)
    np.testing.assert_array_equal(dx, want_dz @ w.T)
    np.testing.assert_array_equal(dw, x.T @ want_dz)
    assert SLOTS["dense_backward"](fdy, fx, fw, a, "relu", bias, need_dx=False)[0] is None
    for got in (db, db_too):
        if bias:
            np.testing.assert_array_equal(got, want_dz.sum(axis=0))
        else:
            assert got is None
    for array, want in zip(args, (x, w, b, dy), strict=True):
        np.testing.assert_array_equal(array, want)  # IN stays as it was


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
def test_out_is_overwritten_and_returned(poison):
    rng = np.random.default_rng(5)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(4, 3), (3, 2), (2,)])
    for name in ACTIVATIONS:
        out = np.full((4, 2), poison, np.float32)
        want = SLOTS["dense_forward"](x, w, b, name)
        assert SLOTS["dense_forward"](x, w, b, name, out) is out
        np.testing.assert_array_equal(out, want)
        z = x @ w
        assert SLOTS["bias_act_forward"](z, b, name, z) is z  # in place
        np.testing.assert_array_equal(z, want)
        want_dz, _ = SLOTS["act_bias_backward"](want, want, name)
        out.fill(poison)
        dz, _ = SLOTS["act_bias_backward"](want, want, name, out=out)
        assert dz is out
        np.testing.assert_array_equal(out, want_dz)


@pytest.mark.parametrize("batch", [0, 1])
def test_dense_slots_take_empty_and_single_batches(batch):
    x, w, b = np.ones((batch, 3)), np.ones((3, 2)), np.ones(2)
    a = SLOTS["dense_forward"](x, w, b, "relu")
    dx, dw, db = SLOTS["dense_backward"](np.ones((batch, 2)), x, w, a, "relu")
    assert (a.shape, dx.shape) == ((batch, 2), (batch, 3))
    np.testing.assert_array_equal(dw, np.full((3, 2), batch))
    np.testing.assert_array_equal(db, np.full(2, batch))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_loss_slots_weigh_rows_and_divide_by_the_batch(loss):
    rng = np.random.default_rng(6)
    out = rng.standard_normal((6, 3))
    classes = loss.name == "cross_entropy"
    y = rng.integers(0, 3, 6) if classes else rng.random((6, 3))
    weight = rng.random(6)
    rows, dout = SLOTS[loss.slot](out, y)
    np.testing.assert_array_equal(rows, loss.rows(out, y))
    np.testing.assert_allclose(dout, loss.grad(out, y) / 6, rtol=1e-15)
    rows, dout = SLOTS[loss.slot](out, y, weight)
    np.testing.assert_allclose(rows, weight * loss.rows(out, y), rtol=1e-15)
    np.testing.assert_allclose(dout, weight[:, None] * loss.grad(out, y) / 6, rtol=1e-15)
    for dtype in DTYPES:
        y = y if classes else y.astype(dtype)
        got = SLOTS[loss.slot](out.astype(dtype), y, weight.astype(dtype))
        assert [array.dtype.name for array in got] == [dtype, dtype]


def test_dead_units_have_gradient_zero():
    rng = np.random.default_rng(7)
    x, w = rng.random((5, 3)), -rng.random((3, 2))
    a = SLOTS["dense_forward"](x, w, None, "relu")
    for gradient in SLOTS["dense_backward"](np.ones((5, 2)), x, w, a, "relu"):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_the_bias_is_the_weight_of_a_column_of_ones():
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((7, 3)), rng.standard_normal((7, 4))
    w, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    ones_x, ones_w = np.hstack([x, np.ones((7, 1))]), np.vstack([w, b])
    a = SLOTS["dense_forward"](x, w, b, "tanh")
    np.testing.assert_allclose(SLOTS["dense_forward"](ones_x, ones_w, None, "tanh"), a, rtol=1e-13)
    _, dw, db = SLOTS["dense_backward"](dy, x, w, a, "tanh")
    _, want, none = SLOTS["dense_backward"](dy, ones_x, ones_w, a, "tanh", bias=False)
    assert none is None
    np.testing.assert_allclose(np.vstack([dw, db]), want, rtol=1e-12, atol=1e-14)
