"""Each slot of each backend: checked against the float64 reference, then timed. float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.backends import Backend
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, Optimizer, RMSprop
from fastneuron.testing import (
    Bounded,
    Precision,
    activate,
    assert_within,
    column_sum,
    dense,
    draw_inputs,
    draw_targets,
    exact,
    gate,
    loss_of_batch,
    matmul,
    updated_vector,
)

# Compiled kernels and caches are warm after the check, and 0.15 s hold enough rounds for a median.
pytestmark = pytest.mark.benchmark(max_time=0.15, min_rounds=5, min_time=1e-4)

#: Rows, inputs, outputs: a small hidden layer, a first layer of 28x28 images, a wide hidden layer.
SHAPES = {"32x64x64": (32, 64, 64), "128x784x128": (128, 784, 128), "256x512x512": (256, 512, 512)}
P = Precision.of("float32")


def own(backend: Backend, slot: str) -> Callable[..., Any]:
    if backend.origin[slot] != backend.name:
        pytest.skip(f"{slot} of {backend.name} is the one of {backend.origin[slot]}")
    return backend.slots[slot]


@cache
def layer(shape: str) -> tuple[Any, ...]:
    rows, inputs, outputs = SHAPES[shape]
    rng = np.random.default_rng(0)
    x = draw_inputs(rng, rows, inputs, "float32")
    w = rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)
    b = rng.normal(size=outputs).astype(np.float32)
    return x, w, b, rng.normal(size=(rows, outputs)).astype(np.float32)


@cache
def forward_reference(shape: str, bias: bool) -> Bounded:
    x, w, b, _ = layer(shape)
    z = dense(exact(x), exact(w), exact(b) if bias else None, P)
    return activate(z, ACTIVATIONS["relu"], P)


@cache
def backward_reference(shape: str) -> tuple[Bounded, Bounded, Bounded]:
    x, w, _, dy = layer(shape)
    dz = gate(exact(dy), exact(np.maximum(x @ w, 0)), ACTIVATIONS["relu"], P)
    return matmul(dz, exact(w).T, P), matmul(exact(x).T, dz, P), column_sum(dz, P)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_forward(benchmark: Any, backend: Backend, note: Any, shape: str, bias: bool) -> None:
    function = own(backend, "dense_forward")
    benchmark.group = f"dense_forward relu {shape} {'bias' if bias else 'no bias'}"
    x, w, b, out = layer(shape)
    out = np.empty_like(out)
    arguments = (x, w, b if bias else None, "relu", out)
    worst = assert_within(function(*arguments), forward_reference(shape, bias))
    benchmark(function, *arguments)
    rows, inputs, outputs = SHAPES[shape]
    words = rows * inputs + inputs * outputs + rows * outputs + bias * outputs
    note(worst, flop=2 * rows * inputs * outputs, words=words)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_backward(
    benchmark: Any, backend: Backend, note: Any, shape: str, bias: bool
) -> None:
    function = own(backend, "dense_backward")
    benchmark.group = f"dense_backward relu {shape} {'bias' if bias else 'no bias'}"
    x, w, _, dy = layer(shape)
    saved = np.maximum(x @ w, 0)
    got = function(dy, x, w, saved, "relu", bias)
    worst = max(
        assert_within(array, want, name)
        for name, array, want in zip(
            ("dx", "dw", "db"), got, backward_reference(shape), strict=True
        )
        if array is not None
    )
    assert (got[2] is not None) == bias
    benchmark(function, dy, x, w, saved, "relu", bias)
    rows, inputs, outputs = SHAPES[shape]
    words = 2 * (rows * inputs + rows * outputs + inputs * outputs) + bias * outputs
    note(worst, flop=4 * rows * inputs * outputs, words=words)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_act_forward(benchmark: Any, backend: Backend, note: Any, activation: str) -> None:
    function = own(backend, "bias_act_forward")
    benchmark.group = f"bias_act_forward {activation} 256x512"
    _, _, b, z = layer("256x512x512")
    out = np.empty_like(z)
    summed = np.add(z, b, dtype=np.float64)
    want = activate(Bounded(summed, P.g(1) * np.abs(summed)), ACTIVATIONS[activation], P)
    worst = assert_within(function(z, b, activation, out), want)
    benchmark(function, z, b, activation, out)
    note(worst, words=2 * z.size + b.size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_act_bias_backward(benchmark: Any, backend: Backend, note: Any, activation: str) -> None:
    function = own(backend, "act_bias_backward")
    benchmark.group = f"act_bias_backward {activation} 256x512"
    x, w, _, da = layer("256x512x512")
    f = ACTIVATIONS[activation]
    z = x @ w
    saved = z if f.saves == "z" else f.f(z)
    out = np.empty_like(da)
    dz, db = function(da, saved, activation, True, out)
    want = gate(exact(da), exact(saved), f, P)
    worst = max(assert_within(dz, want, "dz"), assert_within(db, column_sum(want, P), "db"))
    benchmark(function, da, saved, activation, True, out)
    note(worst, words=3 * da.size + da.shape[1])


@pytest.mark.parametrize("name", LOSSES)
def test_losses(benchmark: Any, backend: Backend, note: Any, name: str) -> None:
    loss = LOSSES[name]
    function = own(backend, loss.slot)
    benchmark.group = f"{loss.slot} 256x10"
    rng = np.random.default_rng(0)
    out = rng.normal(size=(256, 10)).astype(np.float32)
    y = rng.integers(0, 10, 256) if name == "cross_entropy" else None
    y = draw_targets(loss, rng, 256, 10, "float32") if y is None else y
    rows, grad = function(out, y, None)
    want_rows, want_grad, _ = loss_of_batch(loss, exact(out), y, None, P)
    worst = max(assert_within(rows, want_rows, "rows"), assert_within(grad, want_grad, "gradient"))
    benchmark(function, out, y, None)
    note(worst, words=2 * out.size + y.size + len(out))


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.01, weight_decay=1e-4),
    "momentum": SGD(0.01, momentum=0.9, weight_decay=1e-4),
    "nesterov": SGD(0.01, momentum=0.9, nesterov=True),
    "adam": Adam(1e-3),
    "rmsprop": RMSprop(1e-3),
}


@pytest.mark.parametrize("size", [10_000, 1_000_000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates(benchmark: Any, backend: Backend, note: Any, name: str, size: int) -> None:
    optimizer = OPTIMIZERS[name]
    function = own(backend, optimizer.slot)
    benchmark.group = f"{optimizer.slot} {size}"
    rng = np.random.default_rng(0)
    param, g = (rng.normal(size=size).astype(np.float32) for _ in range(2))
    moments = tuple(
        np.abs(rng.normal(size=size)).astype(np.float32) for _ in range(optimizer.n_moments)
    )
    scalars = optimizer.scalars(3, np.full(1, 1e-3))[0]
    want = updated_vector(
        optimizer.kind, exact(param), exact(g), [exact(m) for m in moments], scalars, exact(1.0), P
    )
    function(param, g, moments, scalars, 1.0)
    worst = max(
        assert_within(got, bounded) for got, bounded in zip((param, *moments), want, strict=True)
    )
    benchmark(function, param, g, moments, scalars, 1.0)
    note(worst, words=size * (3 + 2 * optimizer.n_moments))
