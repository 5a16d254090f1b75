"""Calls of kernels: arguments, the bounded reference of the result, and what the work amounts to.

The suites `slots` and `ops` time the same calls, one below the border and one through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, Optimizer, RMSprop
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
    saved_of,
    updated_vector,
)

__all__ = ["OPTIMIZERS", "Call", "act_bias_backward", "bias_act_forward", "dense_backward",
           "dense_forward", "loss_rows", "update"]  # fmt: skip

#: Seed of all data: the same in every run and for every backend.
SEED = 0
#: Rate of the updates that are timed: over a million calls the parameters move by some 1e-3.
_STILL = 1e-9

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd_update": SGD(1e-2, weight_decay=1e-4),
    "momentum_update": SGD(1e-2, momentum=0.9, weight_decay=1e-4),
    "nesterov_update": SGD(1e-2, momentum=0.9, nesterov=True),
    "adam_update": Adam(1e-2),
    "rmsprop_update": RMSprop(1e-2),
}


@dataclass(frozen=True)
class Call:
    """A call of the kernel `name`, and what it must give.

    Attributes
    ----------
    fresh : callable
        Returns the positional arguments, which slots and `fastneuron.ops` have in common; arrays
        that a call changes are its own.
    options : dict
        Those that `fastneuron.ops` takes by name; a slot takes them by position, in this order.
    check : callable
        Given the result and the arguments, returns the largest error over its bound;
        AssertionError where it is above 1.
    timed : callable
        Given the arguments of the checked call, returns those of the timed ones.
    """

    name: str
    fresh: Callable[[], tuple[Any, ...]]
    options: dict[str, Any]
    check: Callable[[Any, tuple[Any, ...]], float]
    timed: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple


def _worst(pairs: list[tuple[str, Any, Bounded]]) -> float:
    return max(assert_within(got, want, name) for name, got, want in pairs)


def dense_forward(rows: int, inputs: int, outputs: int, dtype: str, bias: bool) -> Call:
    """Return relu(x w + b)."""
    x, w, b = draw_layer(SEED, rows, inputs, outputs, dtype)
    p = Precision.of(dtype)
    z = dense(exact(x), exact(w), exact(b) if bias else None, p)
    want = activate(z, ACTIVATIONS["relu"], p)
    return Call(
        "dense_forward",
        lambda: (x, w, b if bias else None, "relu"),
        {"out": np.empty((rows, outputs), dtype)},
        lambda got, _: assert_within(got, want, "y"),
    )


def dense_backward(rows: int, inputs: int, outputs: int, dtype: str, bias: bool) -> Call:
    """Return the three gradients of relu(x w + b)."""
    x, w, _ = draw_layer(SEED, rows, inputs, outputs, dtype)
    rng = np.random.default_rng(SEED + 1)
    dy = rng.normal(size=(rows, outputs)).astype(dtype)
    y = np.maximum(x @ w, 0)
    p = Precision.of(dtype)
    dz = gate(exact(dy), exact(y), ACTIVATIONS["relu"], p)
    wants = matmul(dz, exact(w).T, p), matmul(exact(x).T, dz, p), column_sum(dz, p)

    def check(got: Any, _: Any) -> float:
        assert (got[2] is not None) == bias, f"db: got {got[2]!r} from a layer, bias={bias}"
        named = zip(("dx", "dw", "db"), got, wants, strict=True)
        return _worst([entry for entry in named if entry[1] is not None])

    return Call("dense_backward", lambda: (dy, x, w, y, "relu"), {"bias": bias}, check)


def bias_act_forward(rows: int, outputs: int, activation: str, dtype: str, bias: bool) -> Call:
    """Return f(z + b)."""
    rng = np.random.default_rng(SEED)
    z, b = rng.normal(size=(rows, outputs)).astype(dtype), rng.normal(size=outputs).astype(dtype)
    p = Precision.of(dtype)
    summed = exact(z)
    if bias:
        value = np.add(z, b, dtype=np.float64)
        summed = Bounded(value, p.g(1) * np.abs(value))
    want = activate(summed, ACTIVATIONS[activation], p)
    return Call(
        "bias_act_forward",
        lambda: (z, b if bias else None, activation),
        {"out": np.empty_like(z)},
        lambda got, _: assert_within(got, want, "a"),
    )


def act_bias_backward(rows: int, outputs: int, activation: str, dtype: str, bias: bool) -> Call:
    """Return da f' and, with a bias, its sum over the rows."""
    rng = np.random.default_rng(SEED)
    da, z = (rng.normal(size=(rows, outputs)).astype(dtype) for _ in range(2))
    saved = np.ascontiguousarray(saved_of(z, activation), dtype)
    p = Precision.of(dtype)
    want = gate(exact(da), exact(saved), ACTIVATIONS[activation], p)
    sums = column_sum(want, p)

    def check(got: Any, _: Any) -> float:
        dz, db = got
        assert (db is not None) == bias, f"db: got {db!r} from a layer, bias={bias}"
        return _worst([("dz", dz, want), *([("db", db, sums)] if bias else [])])

    options = {"bias": bias, "out": np.empty_like(da)}
    return Call("act_bias_backward", lambda: (da, saved, activation), options, check)


def loss_rows(name: str, rows: int, outputs: int, dtype: str) -> Call:
    """Return the loss of each row and the gradient of their mean; classes are numbers."""
    loss = LOSSES[name]
    rng = np.random.default_rng(SEED)
    out = rng.normal(size=(rows, outputs)).astype(dtype)
    y = (
        rng.integers(0, outputs, rows)
        if loss.targets == "classes"
        else draw_targets(loss, rng, rows, outputs, dtype)
    )
    want, gradient, _ = loss_of_batch(loss, exact(out), y, None, Precision.of(dtype))
    return Call(
        loss.slot,
        lambda: (out, y, None),
        {},
        lambda got, _: _worst([("rows", got[0], want), ("gradient", got[1], gradient)]),
    )


def update(name: str, size: int, dtype: str) -> Call:
    """Return None: an update works in place, and goes on where it stopped.

    What is checked is a step at an ordinary rate, which moves the parameters by far more than they
    are rounded by. What is timed goes on at `_STILL`: values that grow, or shrink until they are
    subnormal, would be other work in the millionth call than in the first.
    """
    optimizer = OPTIMIZERS[name]
    rng = np.random.default_rng(SEED)
    param, g = (rng.normal(size=size).astype(dtype) for _ in range(2))
    moments = tuple(np.abs(rng.normal(size=size)).astype(dtype) for _ in range(optimizer.n_moments))
    scalars, still = (optimizer.scalars(3, np.full(1, rate))[0] for rate in (1e-2, _STILL))
    wants = updated_vector(
        optimizer.kind,
        exact(param),
        exact(g),
        [exact(m) for m in moments],
        scalars,
        exact(1.0),
        Precision.of(dtype),
    )

    def fresh() -> tuple[Any, ...]:
        return param.copy(), g, tuple(m.copy() for m in moments), scalars, 1.0

    def check(_: Any, arguments: tuple[Any, ...]) -> float:
        got = arguments[0], *arguments[2]
        return _worst([(f"array {i}", got[i], want) for i, want in enumerate(wants)])

    return Call(name, fresh, {}, check, lambda arguments: (*arguments[:3], still, 1.0))
