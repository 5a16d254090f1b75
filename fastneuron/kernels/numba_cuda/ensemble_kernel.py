"""Many steps of many small networks in one kernel: a block is a model from first step to last.

Nothing waits between steps but a block for its own threads: no launch, no barrier of the grid, no
interpreter. Parameters lie in shared memory from step to step where they fit (`FusedPlan.holds`),
and the gradient too; moments stay in global memory, of which those of the blocks at work at a time
fit into the L2 cache of a large card.

Order: that of `fused` in a tile; a batch's tiles one after the other; the loss and the squares of
the gradient as in `outcome`. So a model's bits are those of its own shape and data.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import ALIGNMENT, TRAINS
from fastneuron.kernels.fused_plan import KIBIBYTES, FusedPlan, blocks_together
from fastneuron.kernels.numba_cuda.driver import ALIGNED, cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.fused import hold_parameters, loss_of_rows, take_rows
from fastneuron.kernels.numba_cuda.fused_layers import all_backward, all_forward
from fastneuron.kernels.numba_cuda.outcome import (
    STATUS,
    STEP,
    clip_of,
    is_finite,
    mean_of,
    squares_of,
)
from fastneuron.kernels.numba_cuda.updates import COLUMNS, updated
from fastneuron.kernels.numba_cuda.vectors import (
    load4,
    load4_shared,
    store4,
    store4_shared,
    thread_anew,
)
from fastneuron.optimizers import UpdateKind

__all__ = ["ensemble_steps", "shared_bytes"]

_OK = int(Status.OK)
_LOSS, _GRADIENT = int(Status.LOSS_NOT_FINITE), int(Status.GRADIENT_NOT_FINITE)


@cache
def _gradient_of(
    plan: FusedPlan, loss: str, dtype: str, threads: int, weighted: bool, classes: bool
) -> Any:
    """Return a function: the gradient of a batch and the losses of its rows, tile by tile."""
    rows = plan.rows
    take = take_rows(plan, dtype, threads, True)
    forward, backward = (make(plan, dtype, threads) for make in (all_forward, all_backward))
    loss_of = loss_of_rows(plan, loss, dtype, threads, weighted, classes)

    @device_function
    def gradient_of(
        near, x, x_at, y, y_at, weight, weight_at, order, first, batch, p, p_at, gradient,
        gradient_at, losses, losses_at,
    ):  # fmt: skip
        for row in range(0, batch, rows):
            count = min(rows, batch - row)
            take(near, x, x_at, order, first + row, count)
            forward(near, p, p_at, count)
            at = losses_at + row
            loss_of(near, y, y_at, weight, weight_at, order, first + row, losses, at, count, batch)
            backward(near, p, p_at, gradient, gradient_at, count, row > 0)

    return gradient_of


@cache
def _update_of(plan: FusedPlan, kind: UpdateKind, n_moments: int, dtype: str, threads: int) -> Any:
    """Return a function: all parameters of a model and their moments, four at a time.

    Its arguments: p, the gradient, each with where it begins, in shared memory where the plan has
    them there; moments, marks likewise; the table and where the step's row begins; clip.
    """
    T = np.dtype(dtype).type
    zero, size, step = T(0), plan.flat, 4 * threads
    step_of = updated(kind, dtype)
    load, store = (load4_shared, store4_shared) if plan.holds else (load4, store4)
    load_gradient = load4 if plan.gradient_at is None else load4_shared

    @device_function
    def update(
        p, p_at, gradient, gradient_at, first, second, start, marks, marks_at, table, at, clip
    ):
        for q in range(4 * thread_anew(), size, step):
            mark = marks[marks_at + q // ALIGNMENT]
            if mark & TRAINS:
                ps, gs = load(p, p_at + q), load_gradient(gradient, gradient_at + q)
                ms, vs = (zero, zero, zero, zero), (zero, zero, zero, zero)
                if n_moments > 0:
                    ms = load4(first, start + q)
                if n_moments > 1:
                    vs = load4(second, start + q)
                p0, m0, v0 = step_of(ps[0], clip * gs[0], ms[0], vs[0], mark, table, at)
                p1, m1, v1 = step_of(ps[1], clip * gs[1], ms[1], vs[1], mark, table, at)
                p2, m2, v2 = step_of(ps[2], clip * gs[2], ms[2], vs[2], mark, table, at)
                p3, m3, v3 = step_of(ps[3], clip * gs[3], ms[3], vs[3], mark, table, at)
                store(p, p_at + q, (p0, p1, p2, p3))
                if n_moments > 0:
                    store4(first, start + q, (m0, m1, m2, m3))
                if n_moments > 1:
                    store4(second, start + q, (v0, v1, v2, v3))

    return update


@cache
def _let_go(plan: FusedPlan, threads: int) -> Any:
    """Return a function that copies held parameters back."""
    size, step = plan.flat, 4 * threads

    @device_function
    def let_go(near, p, start):
        for q in range(4 * thread_anew(), size, step):
            store4(p, start + q, load4_shared(near, q))

    return let_go


def shared_bytes(plan: FusedPlan, dtype: str, threads: int) -> int:
    """Return the shared memory of a block of `ensemble_steps`: the plan's, and that of its sums."""
    return plan.numbers * np.dtype(dtype).itemsize + threads * np.dtype(np.float64).itemsize


@cache
def ensemble_steps(
    plan: FusedPlan,
    loss: str,
    kind: UpdateKind,
    n_moments: int,
    dtype: str,
    threads: int,
    weighted: bool,
    classes: bool,
) -> Any:
    """Return the kernel of steps up to `last`; block m goes on with model m where it stands.

    Its arguments, M models of n numbers: x, y, weight, order, bounds, the data set; table (steps,
    M, COLUMNS), limits (steps, M) float64, marks (M, n / 16) IN; p, gradient, first, second (M, n)
    INOUT, of the moments only `n_moments` are looked at, and the gradient where the plan has no
    place for it; rows (M, most) OUT, the losses of a batch's rows; losses (steps, M) float64 OUT;
    state (M, 2) INOUT, see `outcome`. Then numbers from model to model of x, y, weight and order,
    models in a row of the table (M, or 1 for all), `most`, last. Between the arrays of parameters
    the gradient must be 0. Shared memory: `plan.numbers`.
    """
    kind_of = np.dtype(dtype)
    holds, numbers, groups = plan.holds, plan.flat, plan.flat // ALIGNMENT
    keeps, kept_at, zero = plan.gradient_at is not None, plan.gradient_at or 0, kind_of.type(0)
    hold, let_go = hold_parameters(plan, threads), _let_go(plan, threads)
    gradient_of = _gradient_of(plan, loss, dtype, threads, weighted, classes)
    mean_of_rows, squares = mean_of(threads), squares_of(threads)
    finite, factor = is_finite(dtype), clip_of(dtype)
    update = _update_of(plan, kind, n_moments, dtype, threads)

    def ensemble_training(
        x, y, weight, order, bounds, table, limits, marks, p, gradient, first, second, rows, losses,
        state, x_apart, y_apart, weight_apart, order_apart, tables, most, last,
    ):  # fmt: skip
        near = cuda.shared.array(0, kind_of, ALIGNED)
        sums = cuda.shared.array(threads, np.float64)
        model, models = cuda.blockIdx.x, cuda.gridDim.x
        start, marks_at, rows_at = model * numbers, model * groups, model * most
        step, status = state[2 * model + STEP], state[2 * model + STATUS]
        own, own_at, to, to_at = p, start, gradient, start
        if holds:
            own, own_at = near, 0
            hold(near, p, start)
        if keeps:
            to, to_at = near, kept_at
            for q in range(thread_anew(), numbers, threads):  # the gaps between arrays
                near[kept_at + q] = zero
        cuda.syncthreads()  # all have read the state
        while step < last and status == _OK:
            begin = bounds[step]
            batch = bounds[step + 1] - begin
            gradient_of(
                near, x, model * x_apart, y, model * y_apart, weight, model * weight_apart, order,
                model * order_apart + begin, batch, own, own_at, to, to_at, rows, rows_at,
            )  # fmt: skip
            mean = mean_of_rows(sums, rows, rows_at, batch)
            if thread_anew() == 0:
                losses[step * models + model] = mean
            if math.isfinite(mean):
                squared = squares(sums, to, marks, to_at, marks_at, 0, numbers)
                if finite(squared):
                    at = step * tables + model % tables
                    clip = factor(squared, limits[at])
                    at *= COLUMNS
                    update(
                        own, own_at, to, to_at, first, second, start, marks, marks_at, table, at,
                        clip,
                    )  # fmt: skip
                    step += 1
                else:
                    status = _GRADIENT
            else:
                status = _LOSS
            cuda.syncthreads()  # of the parameters, before they are read
        if holds:
            let_go(near, p, start)
        if thread_anew() == 0:
            state[2 * model + STEP], state[2 * model + STATUS] = step, status

    # On a card with less shared memory fewer blocks run at once, with registers to spare.
    together = blocks_together(plan.numbers * kind_of.itemsize, threads, KIBIBYTES)
    return kernel(ensemble_training, launch_bounds=(threads, together))
