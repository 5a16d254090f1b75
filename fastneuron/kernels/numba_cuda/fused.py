"""A small network in one kernel: a block takes some rows of the batch through all layers and back.

The rows' activations stay in shared memory, feature by feature, so that a thread reads four rows of
a feature at a time; a layer's weight is copied there while it is needed, or all parameters lie
there from the start (`FusedPlan.holds`). A delta takes the place of the activation that it belongs
to. Idea: Mueller, Rousselle, Novak & Keller 2021, "Real-time neural radiance caching for path
tracing", ACM TOG 40 (fully fused networks); here with biases, any width and float32 sums.

Order: that of `fused_layers` in a tile of rows, then over the tiles: here over the blocks' partial
sums (`columns.sum_partials`), in `ensemble_kernel` as they come.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.fused_plan import FusedPlan, whole
from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.driver import ALIGNED, cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.fused_layers import all_backward, all_forward
from fastneuron.kernels.numba_cuda.losses import pair_of
from fastneuron.kernels.numba_cuda.outcome import STEP
from fastneuron.kernels.numba_cuda.vectors import load4, store4_shared, thread_anew

__all__ = [
    "fused_forward",
    "fused_step",
    "hold_parameters",
    "loss_of_rows",
    "take_rows",
]


@cache
def hold_parameters(plan: FusedPlan, threads: int) -> Any:
    """Return a function that copies the flat vector to where a plan holds it."""
    size, step = plan.flat, 4 * threads

    @device_function
    def hold(near, p, start):
        for q in range(4 * thread_anew(), size, step):
            store4_shared(near, q, load4(p, start + q))

    return hold


@cache
def take_rows(plan: FusedPlan, dtype: str, threads: int, ordered: bool) -> Any:
    """Return a function: rows of x as the input's tile, with zeros in rows past `count`.

    The rows are order[first], order[first + 1], ... where `ordered`, else first, first + 1, ...
    """
    zero = np.dtype(dtype).type(0)
    rows, stride, inputs = plan.rows, plan.row_stride, plan.layers[0].inputs
    across, at_in = whole(inputs), plan.tile_at[0]
    size = across * rows
    row_of = device_function((lambda order, i: order[i]) if ordered else (lambda order, i: i))

    @device_function
    def take(near, x, start, order, first, count):
        for q in range(thread_anew(), size, threads):
            r, k = q // across, q % across
            number = zero
            if r < count and k < inputs:
                number = x[start + row_of(order, first + r) * inputs + k]
            near[at_in + k * stride + r] = number
        cuda.syncthreads()

    return take


@cache
def loss_of_rows(
    plan: FusedPlan, loss: str, dtype: str, threads: int, weighted: bool, classes: bool
) -> Any:
    """Return a function: the losses of the rows, and dL/dz in the place of the output.

    Its arguments: near; y, weight, order and losses, each followed by where the model's begin, or
    the tile's; the tile's rows, the batch's.
    """
    layer, T = plan.layers[-1], np.dtype(dtype).type
    outputs, stride, rows = layer.outputs, plan.row_stride, plan.rows
    at_out = plan.tile_at[-1]
    at_saved = plan.z_at[-1] if layer.saves_z else at_out
    zero, one = T(0), T(1)
    share = T(1 / outputs)
    slope = activations.derivative(layer.activation, dtype)
    if loss == "cross_entropy":

        @device_function
        def of_row(near, y, start, sample, counts, batch, r):
            top = near[at_out + r]
            for o in range(1, outputs):
                if near[at_out + o * stride + r] > top:
                    top = near[at_out + o * stride + r]
            total, share_of_y = zero, one
            if not classes:
                share_of_y = zero
            for o in range(outputs):
                total += T(math.exp(near[at_out + o * stride + r] - top))
                if not classes:
                    share_of_y += y[start + sample * outputs + o]
            log_total, result = T(math.log(total)), zero
            for o in range(outputs):
                at = o * stride + r
                log_p = (near[at_out + at] - top) - log_total
                if classes:
                    target = one if y[start + sample] == o else zero
                    if y[start + sample] == o:
                        result -= log_p
                else:
                    target = y[start + sample * outputs + o]
                    result -= target * log_p
                d = counts * (T(math.exp(log_p)) * share_of_y - target) / T(batch)
                near[at_out + at] = d * slope(near[at_saved + at])
            return counts * result
    else:
        pair = pair_of(loss, dtype)

        @device_function
        def of_row(near, y, start, sample, counts, batch, r):
            result = zero
            for o in range(outputs):
                at = o * stride + r
                each, steep = pair(near[at_out + at], y[start + sample * outputs + o])
                result += each
                d = counts * (steep * share) / T(batch)
                near[at_out + at] = d * slope(near[at_saved + at])
            return counts * (result * share)

    @device_function
    def of_rows(near, y, y_at, weight, weight_at, order, first, losses, at, count, batch):
        for r in range(thread_anew(), rows, threads):
            if r < count:
                sample, counts = order[first + r], one
                if weighted:
                    counts = weight[weight_at + sample]
                losses[at + r] = of_row(near, y, y_at, sample, counts, batch, r)
        cuda.syncthreads()

    return of_rows


@cache
def fused_step(
    plan: FusedPlan, loss: str, dtype: str, threads: int, weighted: bool, classes: bool
) -> Any:
    """Return the kernel of a step up to the partial sums of its gradient.

    Its arguments: x (n, I), y, weight, the data set; order, bounds, state; p (n,) IN; losses (B,),
    partials (blocks, n) OUT; B, n. blockIdx.y counts models: each has its own p, losses and
    partials, which follow each other, and all share the data. Shared memory: `plan.numbers`.
    """
    kind = np.dtype(dtype)
    zero, rows = kind.type(0), plan.rows
    take = take_rows(plan, dtype, threads, True)
    forward, backward = (make(plan, dtype, threads) for make in (all_forward, all_backward))
    loss_of = loss_of_rows(plan, loss, dtype, threads, weighted, classes)

    def fused_training(x, y, weight, order, bounds, state, p, losses, partials, batch, numbers):
        near = cuda.shared.array(0, kind, ALIGNED)
        model, blocks = cuda.blockIdx.y, cuda.gridDim.x
        start = model * numbers
        base = (model * blocks + cuda.blockIdx.x) * numbers
        for i in range(thread_anew(), numbers, threads):  # the gaps between arrays
            partials[base + i] = zero
        row = cuda.blockIdx.x * rows
        first, count = bounds[state[STEP]] + row, min(rows, batch - row)
        take(near, x, 0, order, first, count)
        forward(near, p, start, count)
        at = model * batch + row
        loss_of(near, y, 0, weight, 0, order, first, losses, at, count, batch)
        backward(near, p, start, partials, base, count, False)

    # Two blocks a multiprocessor: 128 registers, which it keeps to without spilling.
    return kernel(fused_training, launch_bounds=(threads, 2))


@cache
def fused_forward(plan: FusedPlan, dtype: str, threads: int) -> Any:
    """Return the kernel of a prediction; a block takes `plan.rows` rows, blockIdx.y counts models.

    Its arguments: x (B, I), or (models, B, I) that many numbers apart; p (n,) IN; out (models, B,
    O) OUT; B, numbers from model to model of x, n.
    """
    kind = np.dtype(dtype)
    rows, stride, outputs = plan.rows, plan.row_stride, plan.layers[-1].outputs
    at_out, holds = plan.tile_at[-1], plan.holds
    take, hold = take_rows(plan, dtype, threads, False), hold_parameters(plan, threads)
    forward = all_forward(plan, dtype, threads)

    def fused_prediction(x, p, out, batch, apart, numbers):
        near = cuda.shared.array(0, kind, ALIGNED)
        model, row = cuda.blockIdx.y, cuda.blockIdx.x * rows
        count = min(rows, batch - row)
        if holds:
            hold(near, p, model * numbers)
        take(near, x, model * apart, x, row, count)
        if holds:
            forward(near, near, 0, count)
        else:
            forward(near, p, model * numbers, count)
        first = (model * batch + row) * outputs
        for q in range(thread_anew(), count * outputs, threads):
            out[first + q] = near[at_out + q % outputs * stride + q // outputs]

    return kernel(fused_prediction, launch_bounds=(threads, 2))
