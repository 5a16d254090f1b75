"""Every slot of every backend against the float64 reference, within proved rounding bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.testing import (
    Bounded,
    Precision,
    activate,
    assert_within,
    column_sum,
    dense,
    draw_layer,
    draw_targets,
    exact,
    gate,
    loss_of_batch,
    matmul,
    ragged,
    saved_of,
    updated_vector,
)

DTYPES = ("float32", "float64")
ROWS = (0, *ragged(8))  # both sides of a register tile of 8 rows
COLUMNS = sorted({*ragged(16), *ragged(32)})  # and of panels of 16 and 32 columns
DEPTHS = (1, 2, 7, 33)

SlotOf = Callable[[str], Callable[..., Any]]


def integers(seed: int, dtype: str, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


# dense_forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_dense_forward_ragged(slot: SlotOf, columns: int, dtype: str) -> None:
    forward = slot("dense_forward")
    p = Precision.of(dtype)
    for rows in ROWS:
        for depth in DEPTHS:
            x, w, b = draw_layer(rows, rows, depth, columns, dtype)
            for bias, name in ((b, "relu"), (None, "identity")):
                got = forward(x, w, bias, name)
                z = dense(exact(x), exact(w), None if bias is None else exact(bias), p)
                assert got.dtype == dtype
                assert_within(got, activate(z, ACTIVATIONS[name], p), f"{rows}x{depth}x{columns}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_forward_activations(slot: SlotOf, name: str, bias: bool, dtype: str) -> None:
    forward = slot("dense_forward")
    p = Precision.of(dtype)
    for rows, inputs, outputs in ((29, 70, 45), (1, 1, 1), (130, 300, 10)):
        x, w, b = draw_layer(7, rows, inputs, outputs, dtype)
        got = forward(x, w, b if bias else None, name)
        z = dense(exact(x), exact(w), exact(b) if bias else None, p)
        assert_within(got, activate(z, ACTIVATIONS[name], p), name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_forward_exact_on_integers(slot: SlotOf, dtype: str) -> None:
    forward = slot("dense_forward")
    for rows, inputs, outputs in ((17, 4099, 33), (9, 300, 65), (1, 1, 1)):
        x, w = integers(1, dtype, rows, inputs), integers(2, dtype, inputs, outputs)
        b = integers(3, dtype, outputs)
        want = np.maximum(x.astype(np.int64) @ w.astype(np.int64) + b.astype(np.int64), 0)
        got = forward(x, w, b, "relu")
        np.testing.assert_array_equal(got, want.astype(dtype))


# bias_act_forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_act_forward(slot: SlotOf, name: str, dtype: str) -> None:
    forward = slot("bias_act_forward")
    p, f = Precision.of(dtype), ACTIVATIONS[name]
    rng = np.random.default_rng(3)
    for rows in ROWS:
        for columns in COLUMNS:
            # Magnitudes from underflow to saturation.
            z = (rng.normal(size=(rows, columns)) * 10 ** rng.uniform(-6, 2)).astype(dtype)
            b = rng.normal(size=columns).astype(dtype)
            summed = np.add(z, b, dtype=np.float64)
            want = activate(Bounded(summed, p.g(1) * np.abs(summed)), f, p)
            assert_within(forward(z, b, name), want, f"{name} {rows}x{columns}")
            want = activate(exact(z), f, p)
            assert_within(forward(z, None, name), want, f"{name} {rows}x{columns} without bias")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_all_magnitudes(slot: SlotOf, name: str) -> None:
    """Every 65537th float32 pattern: all signs, exponents and subnormal numbers."""
    forward = slot("bias_act_forward")
    patterns = np.arange(0, 2**32, 65537, dtype=np.uint64).astype(np.uint32)
    z = patterns.view(np.float32)
    z = z[np.isfinite(z)].reshape(1, -1)
    want = activate(exact(z), ACTIVATIONS[name], Precision.of("float32"))
    assert_within(forward(z, None, name), want, name)


def test_bias_act_forward_in_place(slot: SlotOf) -> None:
    forward = slot("bias_act_forward")
    z, b = integers(1, "float32", 9, 21), integers(2, "float32", 21)
    want = np.maximum(z + b, 0)
    got = forward(z, b, "relu", out=z)
    assert got is z
    np.testing.assert_array_equal(z, want)


# act_bias_backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_act_bias_backward(slot: SlotOf, name: str, dtype: str) -> None:
    backward = slot("act_bias_backward")
    p, f = Precision.of(dtype), ACTIVATIONS[name]
    rng = np.random.default_rng(4)
    for rows in ROWS:
        for columns in COLUMNS:
            z = (rng.normal(size=(rows, columns)) * 10 ** rng.uniform(-6, 2)).astype(dtype)
            da, saved = rng.normal(size=z.shape).astype(dtype), saved_of(z, name)
            dz, db = backward(da, saved, name)
            want = gate(exact(da), exact(saved), f, p)
            assert_within(dz, want, f"{name} {rows}x{columns}")
            # dz is checked already, so the sum starts from the kernel's own numbers.
            assert_within(db, column_sum(exact(dz), p), f"db {name} {rows}x{columns}")
            again, none = backward(da, saved, name, bias=False)
            assert none is None
            np.testing.assert_array_equal(again, dz)


@pytest.mark.parametrize("dtype", DTYPES)
def test_act_bias_backward_exact_on_integers(slot: SlotOf, dtype: str) -> None:
    backward = slot("act_bias_backward")
    da, saved = integers(1, dtype, 4097, 35), np.maximum(integers(2, dtype, 4097, 35), 0)
    dz, db = backward(da, saved, "relu")
    want = np.where(saved > 0, da, 0).astype(np.int64)
    np.testing.assert_array_equal(dz, want.astype(dtype))
    np.testing.assert_array_equal(db, want.sum(0).astype(dtype))


# dense_backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_dense_backward_ragged(slot: SlotOf, columns: int, dtype: str) -> None:
    backward = slot("dense_backward")
    p = Precision.of(dtype)
    rng = np.random.default_rng(5)
    for rows in ROWS[1:]:
        for inputs in (1, 2, 15, 16, 17, 33):
            x, w, _ = draw_layer(rows, rows, inputs, columns, dtype)
            saved = np.maximum(rng.normal(size=(rows, columns)), 0).astype(dtype)
            dy = rng.normal(size=saved.shape).astype(dtype)
            dx, dw, db = backward(dy, x, w, saved, "relu")
            dz = gate(exact(dy), exact(saved), ACTIVATIONS["relu"], p)
            shape = f"{rows}x{inputs}x{columns}"
            assert_within(dx, matmul(dz, exact(w).T, p), f"dx {shape}")
            assert_within(dw, matmul(exact(x).T, dz, p), f"dw {shape}")
            assert_within(db, column_sum(dz, p), f"db {shape}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_backward_activations(slot: SlotOf, name: str, dtype: str) -> None:
    backward = slot("dense_backward")
    p = Precision.of(dtype)
    x, w, b = draw_layer(11, 61, 40, 27, dtype)
    saved = saved_of(x @ w + b, name)
    dy = np.random.default_rng(6).normal(size=saved.shape).astype(dtype)
    dx, dw, db = backward(dy, x, w, saved, name)
    dz = gate(exact(dy), exact(saved), ACTIVATIONS[name], p)
    assert_within(dx, matmul(dz, exact(w).T, p), "dx")
    assert_within(dw, matmul(exact(x).T, dz, p), "dw")
    assert_within(db, column_sum(dz, p), "db")
    none, dw_again, no_db = backward(dy, x, w, saved, name, bias=False, need_dx=False)
    assert none is None
    assert no_db is None
    np.testing.assert_array_equal(dw_again, dw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_backward_exact_on_integers(slot: SlotOf, dtype: str) -> None:
    backward = slot("dense_backward")
    for rows, inputs, outputs in ((4097, 17, 35), (33, 65, 300), (1, 1, 1)):
        x, w = integers(1, dtype, rows, inputs), integers(2, dtype, inputs, outputs)
        dy, saved = integers(3, dtype, rows, outputs), integers(4, dtype, rows, outputs)
        dx, dw, db = backward(dy, x, w, saved, "relu")
        dz = np.where(saved > 0, dy, 0).astype(np.int64)
        np.testing.assert_array_equal(dx, (dz @ w.T.astype(np.int64)).astype(dtype))
        np.testing.assert_array_equal(dw, (x.T.astype(np.int64) @ dz).astype(dtype))
        np.testing.assert_array_equal(db, dz.sum(0).astype(dtype))


# losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(slot: SlotOf, name: str, weighted: bool, dtype: str) -> None:
    loss = LOSSES[name]
    function = slot(loss.slot)
    p = Precision.of(dtype)
    rng = np.random.default_rng(8)
    for rows in ROWS[1:]:
        for columns in COLUMNS:
            out = (rng.normal(size=(rows, columns)) * 10 ** rng.uniform(-3, 1)).astype(dtype)
            y = draw_targets(loss, rng, rows, columns, dtype)
            weight = rng.uniform(0, 2, rows).astype(dtype) if weighted else None
            got_rows, got_grad = function(out, y, weight)
            want_rows, want_grad, _ = loss_of_batch(loss, exact(out), y, weight, p)
            assert_within(got_rows, want_rows, f"{name} rows {rows}x{columns}")
            assert_within(got_grad, want_grad, f"{name} gradient {rows}x{columns}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_losses_exact_on_integers(slot: SlotOf, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    function = slot(loss.slot)
    out, y = integers(1, dtype, 16, 8), integers(2, dtype, 16, 8)
    weight = np.abs(integers(3, dtype, 16))
    rows, grad = function(out, y, weight)
    np.testing.assert_array_equal(rows, weight * loss.rows(out, y))
    np.testing.assert_array_equal(grad, weight[:, None] * loss.grad(out, y) / 16)


def test_losses_at_the_ends(slot: SlotOf) -> None:
    """Logits that would overflow exp have finite losses and gradients, the limits."""
    out = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], np.float32)
    rows, grad = slot("softmax_cross_entropy")(out, np.array([0, 0, 1]), None)
    np.testing.assert_allclose(rows, [0, 2e4, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(grad * 3, [[0, 0], [-1, 1], [0.5, -0.5]], atol=1e-6)
    rows, grad = slot("binary_cross_entropy")(
        out, np.array([[1, 1], [0, 1], [0, 1]], np.float32), None
    )
    np.testing.assert_allclose(rows, [5e3, 0, 5e3], rtol=1e-6)
    np.testing.assert_allclose(grad * 6, [[0, -1], [0, 0], [1, 0]], atol=1e-6)


# updates

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.1, weight_decay=0.01),
    "momentum": SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True),
    "adam": Adam(0.01, weight_decay=0.02),
    "adamw": AdamW(0.01),
    "rmsprop": RMSprop(0.01, weight_decay=0.01),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates(slot: SlotOf, name: str, dtype: str) -> None:
    optimizer = OPTIMIZERS[name]
    update = slot(optimizer.slot)
    p = Precision.of(dtype)
    rng = np.random.default_rng(9)
    for size in (1, 2, 15, 16, 17, 33, 1000):
        for step, clip in ((0, 1.0), (10, 0.25)):
            scalars = optimizer.scalars(step, np.full(1, 0.1))[0]
            param, g = (rng.normal(size=size).astype(dtype) for _ in range(2))
            g[rng.random(size) < 0.1] = 0
            moments = [
                np.abs(rng.normal(size=size)).astype(dtype) for _ in range(optimizer.n_moments)
            ]
            want = updated_vector(
                optimizer.kind,
                exact(param),
                exact(g),
                [exact(moment) for moment in moments],
                scalars,
                exact(clip),
                p,
            )
            update(param, g, tuple(moments), scalars, clip)
            for label, got, bounded in zip("pmv", [param, *moments], want, strict=False):
                worst = assert_within(got, bounded, f"{name} {label} size {size}")
                assert worst <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_update_exact_on_integers(slot: SlotOf, dtype: str) -> None:
    update = slot("sgd_update")
    param, g = integers(1, dtype, 1001), integers(2, dtype, 1001)
    scalars = np.zeros(N_SCALARS)
    scalars[0] = 0.25
    want = param - g / 4
    update(param, g, (), scalars, 1.0)
    np.testing.assert_array_equal(param, want)
