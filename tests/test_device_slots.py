"""The slots over the emulated CUDA kernels: what tests of the kernels do not say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_cuda import TINY, Calls, Kernels

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import SLOTS
from fastneuron.kernels.device_slots import DeviceSlots
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, RMSprop
from fastneuron.testing import (
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
    saved_of,
    updated_vector,
)

DTYPES = ("float32", "float64")
P = {dtype: Precision.of(dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def slots(cuda_kernels: Kernels) -> dict[str, Callable[..., Any]]:
    return DeviceSlots(Calls(cuda_kernels.path), TINY).table()


def test_all_slots_are_there(slots: dict[str, Callable[..., Any]]) -> None:
    assert set(slots) == set(SLOTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense(slots: dict[str, Callable[..., Any]], dtype: str) -> None:
    p, f = P[dtype], ACTIVATIONS["tanh"]
    x, w, b = draw_layer(1, 9, 7, 10, dtype)
    z = dense(exact(x), exact(w), exact(b), p)
    out = np.empty((9, 10), dtype)
    assert slots["dense_forward"](x, w, b, "tanh", out=out) is out
    assert_within(out, activate(z, f, p), "a")
    assert_within(slots["bias_act_forward"](out, None, "tanh"), activate(exact(out), f, p))
    saved, dy = saved_of(out, "tanh"), np.random.default_rng(2).normal(size=(9, 10)).astype(dtype)
    dz = gate(exact(dy), exact(saved), f, p)
    got, db = slots["act_bias_backward"](dy, saved, "tanh")
    assert_within(got, dz, "dz")
    assert_within(db, column_sum(dz, p), "db")
    dx, dw, db = slots["dense_backward"](dy, x, w, saved, "tanh")
    assert_within(dx, matmul(dz, exact(w).T, p), "dx")
    assert_within(dw, matmul(exact(x).T, dz, p), "dw")
    assert_within(db, column_sum(dz, p), "db")
    none, again, no_db = slots["dense_backward"](dy, x, w, saved, "tanh", False, False)
    assert (none, no_db) == (None, None)
    np.testing.assert_array_equal(again, dw)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(slots: dict[str, Callable[..., Any]], name: str) -> None:
    loss, rng = LOSSES[name], np.random.default_rng(3)
    out = rng.normal(size=(5, 6)).astype(np.float32)
    weight = rng.uniform(0, 2, 5).astype(np.float32)
    for y in (draw_targets(loss, rng, 5, 6, "float32") for _ in range(2)):
        rows, dout = slots[loss.slot](out, y, weight)
        want_rows, want_dout, _ = loss_of_batch(loss, exact(out), y, weight, P["float32"])
        assert_within(rows, want_rows, name)
        assert_within(dout, want_dout, name)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True), Adam(), RMSprop()],
    ids=lambda optimizer: optimizer.slot,
)
def test_updates(slots: dict[str, Callable[..., Any]], optimizer: Any) -> None:
    rng, scalars = np.random.default_rng(4), optimizer.scalars(2, np.full(1, 0.1))[0]
    p, g, *moments = (
        np.abs(rng.normal(size=35)).astype(np.float32) for _ in range(2 + optimizer.n_moments)
    )
    want = updated_vector(
        optimizer.kind, exact(p), exact(g), list(map(exact, moments)), scalars, exact(0.5),
        P["float32"],
    )  # fmt: skip
    slots[optimizer.slot](p, g, tuple(moments), scalars, 0.5)
    for got, bounded in zip((p, *moments), want, strict=True):
        assert_within(got, bounded, optimizer.slot)
