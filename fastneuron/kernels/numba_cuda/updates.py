"""The optimizer's step: one kernel over the flat vectors of parameters, gradient and moments.

A step's numbers come from a table on the device, rounded to the dtype, in the columns of
`fastneuron.optimizers` and two more: what must be combined in float64 was combined by the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import ALIGNMENT, DECAYS, TRAINS
from fastneuron.kernels.numba_cuda.driver import cuda, device_function, kernel
from fastneuron.kernels.numba_cuda.outcome import STATUS, STEP
from fastneuron.optimizers import (
    BETA1,
    BETA2,
    CORRECTION,
    EPSILON,
    L2,
    N_SCALARS,
    RATE,
    SHRINK,
    UpdateKind,
)

__all__ = ["COLUMNS", "table_of", "update", "updated"]

#: Further columns: 1 - BETA1 and 1 - BETA2.
REST1, REST2 = N_SCALARS, N_SCALARS + 1
#: Columns of the table on the device.
COLUMNS = N_SCALARS + 2
_OK = int(Status.OK)


def table_of(scalars: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return the table (steps, COLUMNS) of the scalars (steps, N_SCALARS) of a chunk."""
    table = np.empty((len(scalars), COLUMNS), dtype)
    table[:, :N_SCALARS] = scalars
    table[:, REST1] = 1 - scalars[:, BETA1]
    table[:, REST2] = 1 - scalars[:, BETA2]
    return table


# Each returns the new parameter and moments, from g = clip_scale gradient + L2 p.


def _sgd(T: Any) -> Callable[..., Any]:
    def step(p, g, m, v, s, at, shrink):
        return p - s[at + RATE] * g, m, v

    return step


def _momentum(T: Any) -> Callable[..., Any]:
    def step(p, g, m, v, s, at, shrink):
        m = s[at + BETA1] * m + g
        return p - s[at + RATE] * m, m, v

    return step


def _nesterov(T: Any) -> Callable[..., Any]:
    def step(p, g, m, v, s, at, shrink):
        m = s[at + BETA1] * m + g
        return p - s[at + RATE] * (g + s[at + BETA1] * m), m, v

    return step


def _adam(T: Any) -> Callable[..., Any]:
    def step(p, g, m, v, s, at, shrink):
        m = s[at + BETA1] * m + s[at + REST1] * g
        v = s[at + BETA2] * v + s[at + REST2] * (g * g)
        below = T(math.sqrt(v)) * s[at + CORRECTION] + s[at + EPSILON]
        return p - shrink * p - s[at + RATE] * m / below, m, v

    return step


def _rmsprop(T: Any) -> Callable[..., Any]:
    def step(p, g, m, v, s, at, shrink):
        m = s[at + BETA2] * m + s[at + REST2] * (g * g)  # its one moment is a mean square
        return p - s[at + RATE] * g / (T(math.sqrt(m)) + s[at + EPSILON]), m, v

    return step


_STEPS: dict[UpdateKind, Callable[[Any], Callable[..., Any]]] = {
    UpdateKind.SGD: _sgd,
    UpdateKind.MOMENTUM: _momentum,
    UpdateKind.NESTEROV: _nesterov,
    UpdateKind.ADAM: _adam,
    UpdateKind.RMSPROP: _rmsprop,
}


@cache
def updated(kind: UpdateKind, dtype: str) -> Any:
    """Return a function: a number's new p, and its moments, of which a kind knows up to two.

    Its arguments: p, its gradient after clipping, both moments, its mark, the table of scalars and
    where in it the step's row begins.
    """
    T = np.dtype(dtype).type
    zero = T(0)
    step_of = device_function(_STEPS[kind](T))

    @device_function
    def step(p, g, m, v, mark, table, at):
        shrink = zero
        if mark & DECAYS:
            g += table[at + L2] * p
            shrink = table[at + SHRINK]
        return step_of(p, g, m, v, table, at, shrink)

    return step


@cache
def update(kind: UpdateKind, n_moments: int, dtype: str, threads: int) -> Any:
    """Return the kernel of one step, which does nothing where the chunk has failed.

    Its arguments: p (n,) INOUT; gradient (n,) IN; first, second (n,) INOUT, the moments, of which
    only `n_moments` are looked at; marks (n / 16,), table (steps, COLUMNS), clip (1,), state IN; n.
    """
    zero = np.dtype(dtype).type(0)
    step_of = updated(kind, dtype)

    def optimizer_update(p, gradient, first, second, marks, table, clip, state, count):
        i = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if i < count and state[STATUS] == _OK:
            mark = marks[i // ALIGNMENT]
            if mark & TRAINS:
                m = first[i] if n_moments > 0 else zero
                v = second[i] if n_moments > 1 else zero
                at = state[STEP] * COLUMNS
                p[i], m, v = step_of(p[i], clip[0] * gradient[i], m, v, mark, table, at)
                if n_moments > 0:
                    first[i] = m
                if n_moments > 1:
                    second[i] = v

    return kernel(optimizer_update)
