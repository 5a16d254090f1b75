"""Runs kernels made under a sanitizer: ``emulated_cuda_races.py LIBRARY ROOM...``.

A process of its own, since the checker's run-time must be there before anything else is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from emulated_cuda import Kernels, state_at
from emulated_fused import Data, predict, step, train

from fastneuron.kernels.device_plan import flat_size
from fastneuron.kernels.fused_plan import FusedPlan, ensemble_plan, fused_plan
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, UpdateKind
from fastneuron.spec import NetworkSpec


def products(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    x, w, b, dz = (
        rng.normal(size=size).astype(np.float32) for size in ((9, 9), (9, 10), 10, (9, 10))
    )
    kernels.forward(x, w, b, "tanh", keep_z=True)
    kernels.data_gradient(dz, w, x, "tanh")
    kernels.weight_gradient(x, dz, 8)


def elementwise(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    z, da, b = (rng.normal(size=size).astype(np.float32) for size in ((9, 35), (9, 35), 35))
    kernels.bias_act_forward(z, b, "tanh")
    kernels.sum_parts(kernels.act_bias_backward(da, z, "tanh", 5)[1])
    kernels.gather(z, rng.permutation(9), np.array([2, 5, 9]), 1, 4)
    kernels.dropout(z, np.ones((2, N_SCALARS)), 1, 3, 2**30, 0.25)


def losses(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    out, y = (rng.normal(size=(5, 35)).astype(np.float32) for _ in range(2))
    for loss in LOSSES.values():
        rows, _ = kernels.loss_rows(loss, out, y, None)
    kernels.batch_loss(rows, np.zeros(1), state_at(0))


def updates(kernels: Kernels) -> None:
    p, g, m, v = (np.full(1000, 0.5, np.float32) for _ in range(4))
    scalars, state, marks = np.full(N_SCALARS, 0.5), state_at(0), np.full(63, 3, np.uint8)
    kernels.clip(g, marks, scalars, state)
    kernels.update(UpdateKind.ADAM, p, g, (m, v), marks, scalars, state)
    kernels.advance(state)


def norms(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(5, 35)).astype(np.float32) for _ in range(2))
    mean, variance, inverse = kernels.column_moments(x, 1e-5, 3)
    sums = kernels.norm_gradients(x, mean, inverse, False, dy, 3)
    kernels.batch_backward(x, mean, inverse, mean, dy, sums)
    kernels.move_statistics(mean, variance, (mean, variance), 0.1, 5, state_at(0))
    middle, inverse = kernels.row_moments(x, 1e-5)
    kernels.norm_forward("relu", x, middle, inverse, True, mean, None)
    kernels.layer_backward(x, middle, inverse, mean, dy)


SMALL = NetworkSpec.chain([Dense(5, 9, "gelu"), Dense(9, 6, "tanh"), Dense(6, 2)])


def data_of(rng: np.random.Generator) -> Data:
    x, y = (rng.normal(size=(11, width)).astype(np.float32) for width in (5, 2))
    return Data(x, y, None, rng.permutation(11)[None])


def fused(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    p, data = rng.normal(size=flat_size(SMALL)).astype(np.float32), data_of(rng)
    given = LOSSES["mse"], 4, p, data, np.array([0, 11]), state_at(0)
    step(kernels, planned(fused_plan(SMALL, (4,))), *given)
    for holds in (True, False):
        plan = planned(ensemble_plan(SMALL, (4,), holds=holds))
        p = rng.normal(size=(2, plan.flat)).astype(np.float32)
        predict(kernels, plan, 4, p, data.x, own=False)


def ensemble(kernels: Kernels) -> None:
    """Two steps of two tiles, then a launch that finds all done."""
    rng = np.random.default_rng(0)
    for holds, keeps in ((True, True), (True, False), (False, False)):
        plan = planned(ensemble_plan(SMALL, (4,), holds=holds, keeps=keeps))
        vectors = [rng.normal(size=(2, plan.flat)).astype(np.float32)]
        vectors += [np.zeros_like(vectors[0])] * 2
        scalars, marks = np.full((2, 1, N_SCALARS), 0.01), np.full(plan.flat // 8, 3, np.uint8)
        given = data_of(rng), np.array([0, 5, 11]), scalars, marks
        what = kernels, plan, LOSSES["mse"], UpdateKind.ADAM, 4, *given
        vectors, _, states = train(*what, vectors)
        train(*what, vectors, states)


def planned(plan: FusedPlan | None) -> FusedPlan:
    assert plan is not None
    return plan


ROOMS = {
    each.__name__: each for each in (products, elementwise, losses, updates, norms, fused, ensemble)
}


def main(library: str, *rooms: str) -> None:
    kernels = Kernels(Path(library))
    for room in rooms:
        if room in ROOMS:
            ROOMS[room](kernels)


if __name__ == "__main__":
    main(*sys.argv[1:])
