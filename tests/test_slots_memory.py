"""Slots and memory: poison, guard pages, and the places of NaN and infinity."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.backends import Backend
from fastneuron.kernels import reference
from fastneuron.losses import LOSSES
from fastneuron.testing import POISONS, draw_layer, draw_targets, guards_work, poisoned, saved_of

DTYPES = ("float32", "float64")
SlotOf = Callable[[str], Callable[..., Any]]


@pytest.mark.parametrize("poison", POISONS)
def test_out_is_never_read(backend: Backend, poison: str) -> None:
    x, w, b = draw_layer(1, 19, 23, 37, "float32")
    z = x @ w
    cases: dict[str, Callable[..., Any]] = {
        "dense_forward": lambda f, out: f(x, w, b, "tanh", out=out),
        "bias_act_forward": lambda f, out: f(z, b, "gelu", out=out),
        "act_bias_backward": lambda f, out: f(z, z, "silu", out=out)[0],
    }
    compared = 0
    for slot, call in cases.items():
        if backend.origin[slot] == backend.name:
            function = backend.slots[slot]
            want = call(function, None)
            out = poisoned(want.shape, want.dtype, poison)
            got = call(function, out)
            assert got is out
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), slot)
            compared += 1
    assert compared >= 2


GUARDED = """
import sys
import numpy as np
from fastneuron import backends
from fastneuron.testing import guarded
backend = backends.get(sys.argv[1])
rng = np.random.default_rng(0)
def call(slot, *arrays, out=None, **options):
    function = backend.slots[slot]
    for side in ("after", "before"):
        from contextlib import ExitStack
        with ExitStack() as stack:
            lent = [
                stack.enter_context(guarded(a, side)) if isinstance(a, np.ndarray) else a
                for a in arrays
            ]
            if out is not None:
                options["out"] = stack.enter_context(guarded(np.zeros(out, lent[0].dtype), side))
            function(*lent, **options)
for dtype in ("float32", "float64"):
    for rows, inputs, outputs in ((1, 1, 1), (9, 17, 33), (17, 5, 16), (8, 33, 7), (3, 64, 65)):
        x = rng.normal(size=(rows, inputs)).astype(dtype)
        w = rng.normal(size=(inputs, outputs)).astype(dtype)
        b = rng.normal(size=outputs).astype(dtype)
        dy = rng.normal(size=(rows, outputs)).astype(dtype)
        for name in ("relu", "gelu", "tanh"):
            call("dense_forward", x, w, b, name, out=dy.shape)
            call("bias_act_forward", dy, b, name, out=dy.shape)
            call("act_bias_backward", dy, dy, name, out=dy.shape)
            call("dense_backward", dy, x, w, dy, name)
        weight = np.ones(rows, dtype)
        for slot in ("mse", "mae", "huber", "binary_cross_entropy", "poisson"):
            call(slot, dy, dy, weight)
        call("softmax_cross_entropy", dy, np.zeros(rows, np.int64), weight)
        call("softmax_cross_entropy", dy, np.abs(dy), weight)
        flat, scalars = w.ravel(), np.full(8, 0.1)
        def update(p, g, m, v, scalars):
            for slot, moments in (("sgd", ()), ("momentum", (m,)), ("nesterov", (m,)),
                                  ("adam", (m, v)), ("rmsprop", (v,))):
                backend.slots[slot + "_update"](p, g, moments, scalars, 1.0)
        backend.slots["updates"] = update
        call("updates", flat, flat, flat, np.abs(flat), scalars)
# The engine reads its data where it lies, too.
from fastneuron.losses import LOSSES
from fastneuron.optimizers import Adam
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_parameters
def train(x, y, weight, order, bounds, scalars, losses):
    assert engine.run(x, y, weight, order, bounds, scalars, losses).steps == 2
    engine.forward(x)
    engine.gradients(x, y, weight)
    dout = engine.forward_keep(x)
    engine.update(dout, scalars[0])
backend.slots["train"] = train
for rows, inputs, hidden, outputs in (
    (19, 7, 18, 3), (19, 1, 5, 1), (19, 16, 18, 35), (11, 33, 9, 17), (9, 65, 70, 64),
    (70, 3, 4, 2), (67, 1, 2, 1), (66, 4, 40, 3),  # slim layers, the last at the beginning only
):
    for loss_name, kind in (
        ("mse", "values"), ("mae", "values"),
        ("cross_entropy", "labels"), ("cross_entropy", "rows"),
    ):
        for dtype in ("float32", "float64"):
            y = rng.random((rows, outputs)).astype(dtype)
            y = rng.integers(0, outputs, rows) if kind == "labels" else y
            spec = NetworkSpec.chain([Dense(inputs, hidden, "relu"), Dense(hidden, outputs)], dtype)
            engine = backend.engine(spec, LOSSES[loss_name], Adam(), batch_size=1)
            engine.load(draw_parameters(spec, rng))
            call("train", rng.normal(size=(rows, inputs)).astype(dtype), y, np.ones(rows, dtype),
                 np.arange(rows)[::-1].copy(), np.array([0, 3, rows]),
                 Adam().scalars(0, np.full(2, 0.01)), np.zeros(2))
print("untouched")
"""


@pytest.mark.skipif(not guards_work(), reason="guard pages need Linux's mprotect")
def test_nothing_leaves_its_arrays(backend: Backend) -> None:
    """In a process of its own: a word beyond an array's end is a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, backend.name], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout.strip() == "untouched"


def same_places(got: Any, want: Any, what: str) -> None:
    """NaN where the reference has NaN, infinities of the same sign where it has those."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), f"{what}: places of NaN")
    infinite = np.isinf(want)
    np.testing.assert_array_equal(np.isinf(got), infinite, f"{what}: places of infinity")
    np.testing.assert_array_equal(np.sign(got[infinite]), np.sign(want[infinite]), what)


SPECIAL = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1.0, -1.0, 0.0, -0.0, 1e-42])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_inf_forward(slot: SlotOf, name: str, dtype: str) -> None:
    forward = slot("bias_act_forward")
    z = np.concatenate([np.roll(SPECIAL, k) for k in range(4)]).reshape(4, 10).astype(dtype)
    same_places(forward(z, None, name), reference.SLOTS["bias_act_forward"](z, None, name), name)
    b = np.zeros(10, dtype)
    b[4] = np.nan
    same_places(forward(z, b, name), reference.SLOTS["bias_act_forward"](z, b, name), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_inf_backward(slot: SlotOf, name: str, dtype: str) -> None:
    backward = slot("act_bias_backward")
    with np.errstate(all="ignore"):
        values = saved_of(SPECIAL.astype(dtype), name)
    # Every special gradient against every special saved value.
    da, saved = (np.ascontiguousarray(g) for g in np.meshgrid(SPECIAL.astype(dtype), values))
    got, got_b = backward(da, saved, name)
    want, want_b = reference.SLOTS["act_bias_backward"](da, saved, name)
    same_places(got, want, name)
    same_places(got_b, want_b, f"db {name}")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_inf_through_products(slot: SlotOf, name: str) -> None:
    forward = slot("dense_forward")
    backward = slot("dense_backward")
    x, w, b = draw_layer(3, 12, 20, 18, "float32")
    x[1, 3], x[5, 0], x[7, 19] = np.nan, np.inf, -np.inf
    x[9] = 0  # zero times a finite weight stays zero
    got = forward(x, w, b, name)
    same_places(got, reference.SLOTS["dense_forward"](x, w, b, name), name)
    dy = np.ones_like(got)
    dy[2, 4], dy[3, 5] = np.nan, -np.inf
    saved = saved_of(np.where(np.isfinite(x), x, 0) @ w + b, name)
    got_all = backward(dy, x, w, saved, name)
    want_all = reference.SLOTS["dense_backward"](dy, x, w, saved, name)
    for what, got, want in zip(("dx", "dw", "db"), got_all, want_all, strict=True):
        same_places(got, want, f"{name} {what}")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_show_what_is_not_finite(slot: SlotOf, name: str) -> None:
    """A row whose outputs hold NaN or an infinity has a loss that is not finite, and no other."""
    loss = LOSSES[name]
    function = slot(loss.slot)
    rng = np.random.default_rng(2)
    out = rng.normal(size=(5, 4)).astype(np.float32)
    out[1, 2], out[3, 0] = np.nan, np.inf
    y = draw_targets(loss, rng, 5, 4, "float32")
    rows, grad = function(out, y, None)
    np.testing.assert_array_equal(np.isfinite(rows), [True, False, True, False, True])
    np.testing.assert_array_equal(np.isfinite(grad[[0, 2, 4]]).all(), True)
    assert np.isnan(grad[1]).any()


def test_the_compiled_backend_says_why_it_is_missing() -> None:
    script = (
        "import sys; sys.modules['fastneuron.kernels._cython_cpu'] = None\n"
        "from fastneuron import backends\n"
        "print(backends.available()['cython'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert "extension is not there" in done.stdout, done.stdout + done.stderr
    assert "C compiler" in done.stdout
