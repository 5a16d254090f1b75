"""Losses: the loss of every row and dL/d(output), a group of lanes to a row of the batch.

Order: a lane adds up every `lanes`-th output, then lanes meet in halves: that of O alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastneuron.kernels.numba_cuda.driver import cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.sums import largest_of_lanes, sum_of_lanes

__all__ = ["loss_rows", "pair_of"]


def _mse(T: Any) -> Callable[..., Any]:
    two = T(2)

    def pair(o, y):
        r = o - y
        return r * r, two * r

    return pair


def _mae(T: Any) -> Callable[..., Any]:
    zero, one = T(0), T(1)

    def pair(o, y):
        r = o - y
        # NaN stays in both.
        return abs(r), (one if r > zero else (-one if r < zero else r))

    return pair


def _huber(T: Any) -> Callable[..., Any]:
    half, one = T(0.5), T(1)

    def pair(o, y):
        r = o - y
        if abs(r) > one:
            return abs(r) - half, math.copysign(one, r)
        return half * r * r, r

    return pair


def _binary_cross_entropy(T: Any) -> Callable[..., Any]:
    zero, one = T(0), T(1)

    def pair(o, y):
        t = T(math.exp(-abs(o)))
        above = zero if o < zero else o
        logistic = (t if o < zero else one) / (one + t)
        return above - o * y + T(math.log1p(t)), logistic - y

    return pair


def _poisson(T: Any) -> Callable[..., Any]:
    def pair(o, y):
        e = T(math.exp(o))
        return e - y * o, e - y

    return pair


#: Of an output and its target: l and dl/do, before the mean over outputs.
_PAIRS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "mse": _mse,
    "mae": _mae,
    "huber": _huber,
    "binary_cross_entropy": _binary_cross_entropy,
    "poisson": _poisson,
}


@cache
def pair_of(loss: str, dtype: str) -> Any:
    """Return a function: output, target -> l and dl/do, of a loss that is a mean over outputs."""
    return device_function(_PAIRS[loss](np.dtype(dtype).type))


@cache
def loss_rows(
    loss: str, dtype: str, lanes: int, rows: int, weighted: bool, classes: bool = False
) -> Any:
    """Return the kernel of a loss; blocks of (lanes, rows) threads.

    Its arguments: out (B, O), y (B, O) or (B,) int64 class numbers, weight (B,) IN where
    `weighted`; losses (B,) OUT, each times its weight; dout (B, O) OUT, ``weight dloss / B``; B, O.
    """
    T = np.dtype(dtype).type
    if loss == "cross_entropy":
        return kernel(_cross_entropy(T, lanes, rows, weighted, classes))
    return kernel(_of_values(T, pair_of(loss, dtype), lanes, rows, weighted))


def _of_values(T: Any, pair: Any, lanes: int, rows: int, weighted: bool) -> Callable[..., Any]:
    total_of = sum_of_lanes(lanes)
    zero, one = T(0), T(1)
    size = lanes * rows  # a name: of an expression Numba makes no constant

    def loss_of_values(out, y, weight, losses, dout, batch, outputs):
        shared = cuda.shared.array(size, T)
        lane = cuda.threadIdx.x
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        counts, share, own = one, one / T(outputs), zero
        if row < batch:
            if weighted:
                counts = weight[row]
            for j in range(lane, outputs, lanes):
                at = row * outputs + j
                each, slope = pair(out[at], y[at])
                own += each
                dout[at] = counts * (slope * share) / T(batch)
        total = total_of(shared, cuda.threadIdx.y * lanes, lane, own)
        if row < batch and lane == 0:
            losses[row] = counts * (total * share)

    return loss_of_values


def _cross_entropy(
    T: Any, lanes: int, rows: int, weighted: bool, classes: bool
) -> Callable[..., Any]:
    total_of, largest_of = sum_of_lanes(lanes), largest_of_lanes(lanes)
    zero, one, least = T(0), T(1), T(-np.inf)
    size = lanes * rows  # a name: of an expression Numba makes no constant

    def loss_of_classes(out, y, weight, losses, dout, batch, outputs):
        shared = cuda.shared.array(size, T)
        lane, first = cuda.threadIdx.x, cuda.threadIdx.y * lanes
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        last = outputs if row < batch else 0  # rows past the batch have no outputs, and wait
        start = row * outputs
        own = least
        for j in range(lane, last, lanes):
            if out[start + j] > own:
                own = out[start + j]
        top = largest_of(shared, first, lane, own)
        own = zero
        for j in range(lane, last, lanes):
            own += T(math.exp(out[start + j] - top))
        total = total_of(shared, first, lane, own)
        log_total = zero
        if row < batch:
            log_total = T(math.log(total))
        share = one
        if not classes:
            own = zero
            for j in range(lane, last, lanes):
                own += y[start + j]
            share = total_of(shared, first, lane, own)
        counts = one
        if weighted and row < batch:
            counts = weight[row]
        own = zero
        for j in range(lane, last, lanes):
            log_p = (out[start + j] - top) - log_total
            if classes:
                target = one if y[row] == j else zero
                if y[row] == j:
                    own -= log_p
            else:
                target = y[start + j]
                own -= target * log_p
            dout[start + j] = counts * (T(math.exp(log_p)) * share - target) / T(batch)
        loss = total_of(shared, first, lane, own)
        if row < batch and lane == 0:
            losses[row] = counts * loss

    return loss_of_classes
