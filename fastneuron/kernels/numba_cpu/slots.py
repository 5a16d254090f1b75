"""The slots on plain row-major arrays: the engine's own loops between a packing and an unpacking.

Formulas, arrays and costs are documented in `fastneuron.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Array
from fastneuron.kernels.layout import aligned, panels
from fastneuron.kernels.numba_cpu.jit import uniform
from fastneuron.kernels.numba_cpu.losses import (
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    HUBER,
    MAE,
    MSE,
    POISSON,
)
from fastneuron.kernels.numba_cpu.slot_kernels import (
    backward_products,
    bias_act,
    forward_product,
    gate_reduce,
    loss_rows,
    update_run,
)
from fastneuron.kernels.numba_cpu.target import lane_count
from fastneuron.kernels.numba_cpu.updates import ADAM, MOMENTUM, NESTEROV, PLAIN, RMSPROP

__all__ = ["SLOTS"]

_NO_LABELS = np.empty(0, np.int64)


def _arena(like: Array, *parts: int) -> Array:
    """Scratch of `parts` runs of panel rows."""
    return aligned(sum(parts) * lane_count(like.dtype), like.dtype)


def _vector(b: Array | None, like: Array) -> Array:
    return uniform(np.empty(0, like.dtype) if b is None else b)


def dense_forward(
    x: Array, w: Array, b: Array | None, activation: str = "identity", out: Array | None = None
) -> Array:
    """Register tiles whose sums start from b, ascending over I; f while the panel is in cache."""
    (n_rows, inputs), outputs = x.shape, w.shape[1]
    out = np.empty((n_rows, outputs), x.dtype) if out is None else out
    lanes = lane_count(x.dtype)
    scratch = _arena(x, panels(inputs, lanes) * n_rows, inputs, n_rows, 1)
    forward_product(
        uniform(x), uniform(w), _vector(b, x), ACTIVATIONS[activation].code, out, scratch
    )
    return out


def bias_act_forward(
    z: Array, b: Array | None, activation: str = "identity", out: Array | None = None
) -> Array:
    """Row by row: the row is still in the first-level cache when f comes over it."""
    out = np.empty_like(z) if out is None else out
    bias_act(uniform(z), _vector(b, z), ACTIVATIONS[activation].code, out)
    return out


def act_bias_backward(
    da: Array, saved: Array, activation: str, bias: bool = True, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Row by row, db summing rows in ascending order."""
    out = np.empty_like(da) if out is None else out
    db = np.zeros(da.shape[1] if bias else 0, da.dtype)
    gate_reduce(uniform(da), uniform(saved), ACTIVATIONS[activation].code, out, db)
    return out, db if bias else None


def dense_backward(
    dy: Array,
    x: Array,
    w: Array,
    saved: Array,
    activation: str = "identity",
    bias: bool = True,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array | None]:
    """Tiles again: dx ascending over O, dw over B with db as the row whose input is always 1."""
    (n_rows, inputs), outputs = x.shape, w.shape[1]
    lanes = lane_count(x.dtype)
    dx = np.empty((n_rows if need_dx else 0, inputs), x.dtype)
    dw = np.empty_like(w)
    db = np.empty(outputs if bias else 0, x.dtype)
    over_in, over_out = panels(inputs, lanes) * n_rows, panels(outputs, lanes) * n_rows
    scratch = _arena(x, 2, over_in, over_out, max(outputs + n_rows, lanes))
    given = [uniform(array) for array in (dy, x, w, saved)]
    backward_products(*given, ACTIVATIONS[activation].code, dx, dw, db, scratch)
    return dx if need_dx else None, dw, db if bias else None


def _loss_slot(name: str, code: int) -> Callable[..., tuple[Array, Array]]:
    def loss(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
        n_rows, outputs = out.shape
        rows, dout = np.empty(n_rows, out.dtype), np.empty_like(out)
        labels, targets = (y, out[:0]) if y.ndim == 1 else (_NO_LABELS, y)
        given = [uniform(array) for array in (out, labels, targets)]
        scratch = _arena(out, 2 * panels(outputs, lane_count(out.dtype)))
        loss_rows(code, *given, _vector(weight, out), rows, dout, scratch)
        return rows, dout

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = "Row by row, sums ascending over the outputs; loss and gradient in one visit."
    return loss


def _update_slot(name: str, kind: int) -> Callable[..., None]:
    def update(
        p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
    ) -> None:
        first, second = (*moments, p, p)[:2]  # a kind without moments never looks at them
        scratch = _arena(p, 4)
        given = uniform(g), first, second, uniform(scalars)
        update_run(int(kind), p, *given, float(clip_scale), scratch)

    update.__name__ = update.__qualname__ = name
    update.__doc__ = (
        "Vectors over the run, its tail through a scratch row; every element on its own."
    )
    return update


#: Slot name -> function; all of them.
SLOTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        dense_forward,
        bias_act_forward,
        _loss_slot("mse", MSE),
        _loss_slot("mae", MAE),
        _loss_slot("huber", HUBER),
        _loss_slot("softmax_cross_entropy", CROSS_ENTROPY),
        _loss_slot("binary_cross_entropy", BINARY_CROSS_ENTROPY),
        _loss_slot("poisson", POISSON),
        act_bias_backward,
        dense_backward,
        _update_slot("sgd_update", PLAIN),
        _update_slot("momentum_update", MOMENTUM),
        _update_slot("nesterov_update", NESTEROV),
        _update_slot("adam_update", ADAM),
        _update_slot("rmsprop_update", RMSPROP),
    )
}
