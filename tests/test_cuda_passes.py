"""The passes of csrc/cuda but for products, on the processor, against bounds and integers."""

from __future__ import annotations

import math
from typing import Any

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import Kernels, state_at

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Status
from fastneuron.kernels.reference.dropout import kept
from fastneuron.losses import LOSSES
from fastneuron.optimizers import (
    CLIP_NORM,
    KEY_HIGH,
    KEY_LOW,
    L2,
    N_SCALARS,
    SGD,
    SHRINK,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
)
from fastneuron.testing import (
    POISONS,
    Bounded,
    Precision,
    activate,
    assert_within,
    column_sum,
    draw_targets,
    exact,
    gate,
    loss_of_batch,
    saved_of,
    updated_vector,
)

DTYPES = ("float32", "float64")
#: Rows around a group and a block's 8, columns around a warp's 32 and a pack.
SHAPES = ((1, 1), (3, 5), (8, 32), (9, 33), (26, 4), (17, 64), (33, 31))
TRAINED, DECAYS = 1, 2


@pytest.fixture
def kernels(cuda_kernels: Kernels) -> Kernels:
    cuda_kernels.poison, cuda_kernels.shift = "nan", 0
    return cuda_kernels


def drawn(seed: int, dtype: str, *shape: int) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10 ** rng.uniform(-3, 1)).astype(dtype)


def integers(seed: int, dtype: str, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


# gather


@pytest.mark.parametrize("dtype", [*DTYPES, "int64"])
@pytest.mark.parametrize("width", [1, 3, 4, 5, 8])
def test_gather(kernels: Kernels, width: int, dtype: str) -> None:
    x = integers(1, dtype, 20, width)
    order = np.random.default_rng(2).permutation(20)
    bounds = np.array([0, 3, 10, 20])
    for step in range(3):
        rows = order[bounds[step] : bounds[step + 1]]
        np.testing.assert_array_equal(kernels.gather(x, order, bounds, step, len(rows)), x[rows])
    np.testing.assert_array_equal(kernels.gather(x, order, None, 2, 4), x[order[:4]])


# bias_act_forward, act_bias_backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_act_forward(kernels: Kernels, name: str, dtype: str) -> None:
    p, f = Precision.of(dtype), ACTIVATIONS[name]
    for i, shape in enumerate(SHAPES):
        z, b = drawn(i, dtype, *shape), drawn(i + 1, dtype, shape[1])
        summed = np.add(z, b, dtype=np.float64)
        want = activate(Bounded(summed, p.g(1) * np.abs(summed)), f, p)
        assert_within(kernels.bias_act_forward(z, b, name), want, f"{name} {shape}")
        want = activate(exact(z), f, p)
        assert_within(kernels.bias_act_forward(z, None, name), want, f"{name} {shape} no bias")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_all_magnitudes(kernels: Kernels, name: str) -> None:
    """Every 131101st float32 pattern, forward and through the gate."""
    f, p = ACTIVATIONS[name], Precision.of("float32")
    z = np.arange(0, 2**32, 131101, dtype=np.uint64).astype(np.uint32).view(np.float32)
    z = np.ascontiguousarray(z[np.isfinite(z)])[None]
    assert_within(kernels.bias_act_forward(z, None, name), activate(exact(z), f, p), name)
    saved, da = saved_of(z, name), np.full_like(z, 1.25)
    keeps = np.flatnonzero(np.isfinite(saved))
    keeps = keeps[: keeps.size // 32 * 32].reshape(-1, 32)
    saved, da = saved[0, keeps], da[0, keeps]
    dz, _ = kernels.act_bias_backward(da, saved, name, len(da), bias=False)
    with np.errstate(over="ignore"):  # of the bound's own z * z
        assert_within(dz, gate(exact(da), exact(saved), f, p), name)


def test_limits_and_nan(kernels: Kernels) -> None:
    z = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    for name, f in ACTIVATIONS.items():
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(kernels.bias_act_forward(z, None, name), f.f(z), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_act_bias_backward(kernels: Kernels, name: str, dtype: str) -> None:
    p, f = Precision.of(dtype), ACTIVATIONS[name]
    for i, shape in enumerate(SHAPES):
        da, saved = drawn(i, dtype, *shape), saved_of(drawn(i + 9, dtype, *shape), name)
        dz, partial = kernels.act_bias_backward(da, saved, name, 16)
        assert_within(dz, gate(exact(da), exact(saved), f, p), f"dz {shape}")
        got = kernels.sum_parts(partial)
        assert_within(got, column_sum(exact(dz), p), f"db {shape}")
        if i == 0:
            again, none = kernels.act_bias_backward(da, saved, name, 16, bias=False)
            assert none is None
            np.testing.assert_array_equal(again, dz)


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums_exact_on_integers(kernels: Kernels, dtype: str) -> None:
    da, saved = integers(1, dtype, 45, 35), integers(2, dtype, 45, 35)
    want = (da * (saved > 0)).astype(np.int64)
    for group in (5, 16, 100):
        dz, partial = kernels.act_bias_backward(da, saved, "relu", group)
        np.testing.assert_array_equal(dz, want)
        np.testing.assert_array_equal(kernels.sum_parts(partial), want.sum(0))
        np.testing.assert_array_equal(kernels.sum_parts(partial, 0.25), want.sum(0) / 4)


# dropout


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(kernels: Kernels, dtype: str) -> None:
    scalars = np.zeros((3, N_SCALARS))
    scalars[1, [KEY_LOW, KEY_HIGH]] = 0xDEADBEEF, 0xFFFFFFFF
    for i, shape in enumerate(SHAPES):
        for rate in (0.0, 0.3, 0.5):
            x = drawn(i, dtype, *shape)
            for step, key in ((1, (0xDEADBEEF, 0xFFFFFFFF)), (2, (0, 0))):
                mask = kept(*shape, 5, key, int(rate * 2**32))
                want = x * np.where(mask, x.dtype.type(1 / (1 - rate)), x.dtype.type(0))
                got = kernels.dropout(x, scalars, step, 5, int(rate * 2**32), rate)
                np.testing.assert_array_equal(got, want)


# losses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(kernels: Kernels, name: str, weighted: bool, dtype: str) -> None:
    loss, p = LOSSES[name], Precision.of(dtype)
    rng = np.random.default_rng(8)
    for i, shape in enumerate(((1, 1), (3, 2), (4, 32), (5, 33), (9, 70))):
        out = drawn(i, dtype, *shape)
        weight = rng.uniform(0, 2, shape[0]).astype(dtype) if weighted else None
        for y in (draw_targets(loss, rng, *shape, dtype) for _ in range(2)):
            rows, dout = kernels.loss_rows(loss, out, y, weight)
            want_rows, want_dout, mean = loss_of_batch(loss, exact(out), y, weight, p)
            assert_within(rows, want_rows, f"{name} rows {shape}")
            assert_within(dout, want_dout, f"{name} gradient {shape}")
            losses, state = np.full(3, np.nan), state_at(1)
            kernels.batch_loss(rows, losses, state)
            assert state["status"] == Status.OK
            assert_within(losses[1:2], Bounded(mean.value[None], mean.bound[None]), name)
            assert np.isnan(losses[[0, 2]]).all()


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_losses_exact_on_integers(kernels: Kernels, name: str) -> None:
    loss = LOSSES[name]
    out, y = integers(1, "float32", 16, 8), integers(2, "float32", 16, 8)
    weight = np.abs(integers(3, "float32", 16))
    rows, dout = kernels.loss_rows(loss, out, y, weight)
    np.testing.assert_array_equal(rows, weight * loss.rows(out, y))
    np.testing.assert_array_equal(dout, weight[:, None] * loss.grad(out, y) / 16)


def test_class_probabilities_need_not_sum_to_one(kernels: Kernels) -> None:
    loss, out = LOSSES["cross_entropy"], drawn(1, "float32", 3, 5)
    y = np.random.default_rng(2).uniform(0, 2, (3, 5)).astype(np.float32)
    rows, dout = kernels.loss_rows(loss, out, y, None)
    want_rows, want_dout, _ = loss_of_batch(loss, exact(out), y, None, Precision.of("float32"))
    assert_within(rows, want_rows, "rows")
    assert_within(dout, want_dout, "gradient")


def test_losses_at_the_ends(kernels: Kernels) -> None:
    """Logits that would overflow exp have finite losses and gradients, the limits."""
    out = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], np.float32)
    rows, dout = kernels.loss_rows(LOSSES["cross_entropy"], out, np.array([0, 0, 1]), None)
    np.testing.assert_allclose(rows, [0, 2e4, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(dout * 3, [[0, 0], [-1, 1], [0.5, -0.5]], atol=1e-6)
    y = np.array([[1, 1], [0, 1], [0, 1]], np.float32)
    rows, dout = kernels.loss_rows(LOSSES["binary_cross_entropy"], out, y, None)
    np.testing.assert_allclose(rows, [5e3, 0, 5e3], rtol=1e-6)
    np.testing.assert_allclose(dout * 6, [[0, -1], [0, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_nan_reaches_the_loss_of_its_row(kernels: Kernels, name: str) -> None:
    loss = LOSSES[name]
    out = drawn(1, "float32", 6, 40)
    out[2, 35] = np.nan
    y = draw_targets(loss, np.random.default_rng(1), 6, 40, "float32")
    rows, dout = kernels.loss_rows(loss, out, y, None)
    assert np.isnan(rows).tolist() == [i == 2 for i in range(6)]
    assert np.isnan(dout[2, 35])
    assert np.isfinite(np.delete(dout, 2, axis=0)).all()


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
def test_updates(kernels: Kernels, name: str, dtype: str) -> None:
    """Each array begins at a whole run; its mark says whether it is trained and decays."""
    optimizer, p = OPTIMIZERS[name], Precision.of(dtype)
    rng = np.random.default_rng(9)
    for size, clip in ((1, 1.0), (16, 0.25), (83, 1.0), (3 * 16, 0.5)):
        scalars = optimizer.scalars(3, np.full(2, 0.1))
        param, g = (rng.normal(size=size).astype(dtype) for _ in range(2))
        moments = [np.abs(rng.normal(size=size)).astype(dtype) for _ in range(optimizer.n_moments)]
        marks = np.array([TRAINED | DECAYS, TRAINED, 0, TRAINED | DECAYS, 0, TRAINED], np.uint8)
        got = kernels.update(
            optimizer.kind, param, g, moments, marks, scalars, state_at(1, clip_scale=clip)
        )
        of_place = marks[np.arange(size) // 16]
        for mark in set(of_place.tolist()):
            at = of_place == mark
            row = scalars[1].copy()
            if not mark & DECAYS:
                row[[L2, SHRINK]] = 0
            old = [exact(each[at]) for each in (param, *moments)]
            want = updated_vector(
                optimizer.kind, old[0], exact(g[at]), old[1:], row, exact(clip), p
            )
            for label, each, before, bounded in zip(
                "pmv", got, (param, *moments), want, strict=False
            ):
                if mark & TRAINED:
                    assert_within(each[at], bounded, f"{name} {label} size {size}")
                else:
                    np.testing.assert_array_equal(each[at], before[at])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.0, 0.5, 100.0])
def test_clip(kernels: Kernels, limit: float, dtype: str) -> None:
    scalars = np.zeros((2, N_SCALARS))
    scalars[1, CLIP_NORM] = limit
    for size in (1, 35, 4096, 8200):
        g = np.random.default_rng(size).normal(size=size).astype(dtype)
        marks = np.where(np.arange(-(-size // 16)) % 3 == 1, 0, TRAINED).astype(np.uint8)
        trained = g[marks[np.arange(size) // 16] > 0].astype(np.float64)
        norm = math.sqrt(float(np.square(trained).sum()))
        state = state_at(1)
        kernels.clip(g, marks, scalars, state)
        want = limit / norm if 0 < limit < norm else 1.0
        bound = Precision.of("float64").g(size + 3) * want * (want != 1)
        assert_within(state["clip_scale"], Bounded(np.asarray(want), np.asarray(bound)))
        assert (state["step"], state["status"]) == (1, Status.OK)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worst", ["nan", "inf", "square"])
def test_a_gradient_that_is_not_finite_stops_the_chunk(
    kernels: Kernels, worst: str, dtype: str
) -> None:
    g = np.ones(100, dtype)
    g[70] = float(worst) if worst != "square" else np.sqrt(np.finfo(dtype).max) * 1.5
    marks, scalars, state = np.full(7, TRAINED, np.uint8), np.ones((1, N_SCALARS)), state_at(0)
    kernels.clip(g, marks, scalars, state)
    assert state["status"] == Status.GRADIENT_NOT_FINITE
    p = np.ones(100, dtype)
    (after,) = kernels.update(0, p, g, (), marks, scalars, state)
    np.testing.assert_array_equal(after, p)
    kernels.advance(state)
    assert state["step"] == 0
    marks[70 // 16] = 0
    kernels.clip(g, marks, scalars, ok := state_at(0))
    assert ok["status"] == Status.OK, "of what is not trained"


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_chunk(kernels: Kernels, worst: float) -> None:
    rows = np.ones(300, np.float32)
    rows[299] = worst
    losses, state = np.zeros(3), state_at(1)
    kernels.batch_loss(rows, losses, state)
    np.testing.assert_array_equal(losses, [0, worst, 0])
    assert state["status"] == Status.LOSS_NOT_FINITE
    kernels.batch_loss(np.ones(2, np.float32), losses, state)
    assert state["status"] == Status.LOSS_NOT_FINITE
    np.testing.assert_array_equal(losses, [0, worst, 0])


def test_steps_advance(kernels: Kernels) -> None:
    state = state_at(4)
    kernels.advance(state)
    assert state["step"] == 5


# all of them


def everything(kernels: Kernels, dtype: str) -> list[bytes]:
    z, da, b = (drawn(i, dtype, 9, 33) for i in range(3))
    y = np.random.default_rng(1).dirichlet(np.ones(33), 9).astype(dtype)
    scalars, marks, state = np.full(N_SCALARS, 0.5), np.full(19, 3, np.uint8), state_at(0)
    dz, partial = kernels.act_bias_backward(da, z, "gelu", 4)
    kernels.clip(da.reshape(-1), marks, scalars, state)
    flat = [np.abs(each).reshape(-1) for each in (z, da, b, y)]
    found = [
        dz,
        kernels.sum_parts(partial),
        kernels.bias_act_forward(z, b[0], "tanh"),
        kernels.gather(z, np.arange(9), None, 0, 9),
        kernels.dropout(z, scalars, 0, 1, 2**31, 0.5),
        *kernels.loss_rows(LOSSES["cross_entropy"], z, y, None),
        *kernels.loss_rows(LOSSES["poisson"], z, y, None),
        *kernels.update(3, flat[0], flat[1], flat[2:], marks, scalars, state),
        state,
    ]
    return [each.tobytes() for each in found]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_any_run(kernels: Kernels, dtype: str) -> None:
    """Of poisoned outputs, of unaligned ones, with the blocks of a grid in another order."""
    want = everything(kernels, dtype)
    for poison in POISONS:
        kernels.poison = poison
        assert everything(kernels, dtype) == want, poison
    kernels.shift = np.dtype(dtype).itemsize
    assert everything(kernels, dtype) == want, "unaligned"
    emulated_cuda.reversed_blocks(True)
    try:
        assert everything(kernels, dtype) == want, "blocks in reverse"
    finally:
        emulated_cuda.reversed_blocks(False)
