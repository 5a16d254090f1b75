"""Small networks in a block of the emulated kernels: arrays in, arrays out, all between guards."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from emulated_cuda import Array, Kernels, Out, _at, _code

from fastneuron.kernels.device_fused import network_of
from fastneuron.kernels.device_memory import STATE
from fastneuron.kernels.fused_plan import FusedPlan
from fastneuron.losses import Loss

__all__ = ["Data", "predict", "step", "train"]


class Data(NamedTuple):
    """What is trained on: x, y, weight or None, and the order of rows; of many, each or shared."""

    x: Array
    y: Array
    weight: Array | None
    order: Array

    def places(self) -> list[ctypes.c_void_p]:
        """Addresses of x, targets, labels, weight, order."""
        labels = self.y.dtype.kind == "i"
        targets = (None, self.y) if labels else (self.y, None)
        return [_at(each) for each in (self.x, *targets, self.weight, self.order)]


def _filled(array: Array) -> Out:
    out = Out(array.shape, array.dtype, "bytes")
    out.array[...] = array
    return out


def predict(
    kernels: Kernels, plan: FusedPlan, threads: int, p: Array, x: Array, own: bool
) -> Array:
    """Return the outputs (models, B, O); p (models, n)."""
    count, inputs = x.shape[-2:]
    out = Out((len(p), count, plan.layers[-1].outputs), p.dtype, kernels.poison)
    network = network_of(plan)
    apart = ctypes.c_int64(count * inputs if own else 0)
    kernels._call(
        "fused_forward", _code(p.dtype), _at(network), len(p), threads, *map(_at, (x, p, out)),
        count, apart,
    )  # fmt: skip
    return out.taken()


def step(
    kernels: Kernels, plan: FusedPlan, loss: Loss, threads: int, p: Array, data: Data,
    bounds: Array, state: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the row losses and the blocks' partial gradients of the batch of the state's step."""
    at = int(state["step"])
    rows = int(bounds[at + 1] - bounds[at])
    losses = Out((rows,), p.dtype, kernels.poison)
    partial = Out((-(-rows // plan.rows), plan.flat), p.dtype, kernels.poison)
    network = network_of(plan)
    kernels._call(
        "fused_step", _code(p.dtype), loss.code, _at(network), threads, *data.places(),
        *map(_at, (bounds, state, p, losses, partial)), rows,
    )  # fmt: skip
    return losses.taken(), partial.taken()


def train(
    kernels: Kernels, plan: FusedPlan, loss: Loss, kind: int, threads: int, data: Data,
    bounds: Array, scalars: Array, marks: Array, vectors: Sequence[Array],
    state: Array | None = None,
) -> tuple[list[Array], Array, Array]:  # fmt: skip
    """Return p and the moments (M, n) after all steps, the losses (steps, M) and the states (M,).

    scalars (steps, tables, N_SCALARS); `vectors`: p and the moments; the gradient begins at 0.
    """
    p, models, steps = vectors[0], len(vectors[0]), len(bounds) - 1
    most = int(np.diff(bounds).max())
    changed = [_filled(each) for each in vectors]
    gradient = _filled(np.zeros_like(p))
    moments = (*changed[1:], None, None)[:2]
    rows = Out((models, most), p.dtype, kernels.poison)
    losses = Out((steps, models), np.float64, kernels.poison)
    states = _filled(np.zeros(models, STATE) if state is None else state)
    classes = data.y.dtype.kind == "i"
    axes = (data.x, 3), (data.y, 2 if classes else 3), (data.weight, 2)
    apart = [
        ctypes.c_int64(each[0].size if each is not None and each.ndim == own else 0)
        for each, own in axes
    ]
    apart.append(ctypes.c_int64(data.order.shape[1] if len(data.order) > 1 else 0))
    network = network_of(plan)
    kernels._call(
        "ensemble_steps", _code(p.dtype), loss.code, int(kind), _at(network), models, threads,
        *data.places(), *map(_at, (bounds, scalars, marks, changed[0], gradient, *moments)),
        *map(_at, (rows, losses, states)), *apart, scalars.shape[1], most, ctypes.c_int64(steps),
    )  # fmt: skip
    gradient.taken()
    rows.taken()
    return [each.taken() for each in changed], losses.taken(), states.taken()
