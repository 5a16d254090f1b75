"""Activation functions and their gates over runs of numbers, in place.

One loop an activation and one integer code a run, so that each loop vectorises. Constants are made
with the array's own dtype: a Python literal would carry float32 work over to float64.
"""

from __future__ import annotations

import math

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.numba_cpu.exponentials import (
    decay,
    expm1,
    log1p_unit,
    sigmoid,
    silu,
    tanh,
)
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.normal import bell, mills, tail_moment, tail_size
from fastneuron.kernels.numba_cpu.panels import note_run
from fastneuron.kernels.numba_cpu.views import copy, run

IDENTITY = ACTIVATIONS["identity"].code
RELU = ACTIVATIONS["relu"].code
LEAKY_RELU = ACTIVATIONS["leaky_relu"].code
ELU = ACTIVATIONS["elu"].code
GELU = ACTIVATIONS["gelu"].code
SILU = ACTIVATIONS["silu"].code
SOFTPLUS = ACTIVATIONS["softplus"].code
SIGMOID = ACTIVATIONS["sigmoid"].code
TANH = ACTIVATIONS["tanh"].code

_LEAK = float(ACTIVATIONS["leaky_relu"].f(np.array([-1.0]))[0]) * -1.0
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
# Beyond this SiLU is 0 or z to the last bit and its slope 0 or 1: the clamp keeps infinity times
# zero from making a NaN of the limit.
_SILU_FLAT = 800.0


@inner
def clamp(x, limit):
    """Return x within +-limit; NaN falls through."""
    x = limit if x > limit else x
    return -limit if x < -limit else x


@inner
def activate(code, v):
    """Apply f in place; NaN stays NaN (each select is written so that NaN falls through)."""
    n = v.shape[0]
    zero = v.dtype.type(0.0)
    if code == RELU:
        for i in range(n):
            v[i] = zero if v[i] < zero else v[i]
    elif code == LEAKY_RELU:
        leak = v.dtype.type(_LEAK)
        for i in range(n):
            v[i] = leak * v[i] if v[i] < zero else v[i]
    elif code == ELU:
        for i in range(n):
            below = expm1(v[i])  # of no use above zero, and harmless
            v[i] = v[i] if v[i] > zero else below
    elif code == GELU:
        # z Phi(z) = max(z, 0) - |z| Q(|z|), Q = 1 - Phi the upper tail.
        for i in range(n):
            moment = tail_moment(tail_size(v[i]))
            v[i] = (zero if v[i] < zero else v[i]) - moment
    elif code == SILU:
        flat = v.dtype.type(_SILU_FLAT)
        for i in range(n):
            v[i] = silu(-flat if v[i] < -flat else v[i])
    elif code == SOFTPLUS:
        for i in range(n):
            v[i] = (zero if v[i] < zero else v[i]) + log1p_unit(decay(-abs(v[i])))
    elif code == SIGMOID:
        for i in range(n):
            v[i] = sigmoid(v[i])
    elif code == TANH:
        for i in range(n):
            v[i] = tanh(v[i])


@inner
def gate(code, d, saved):
    """D = d * f'(z), f' computed from `saved`: a, or z for GELU and SiLU."""
    n = d.shape[0]
    zero, one = d.dtype.type(0.0), d.dtype.type(1.0)
    if code == RELU:
        for i in range(n):
            d[i] = d[i] * (one if saved[i] > zero else zero)
    elif code == LEAKY_RELU:
        leak = d.dtype.type(_LEAK)
        for i in range(n):
            d[i] = d[i] * (one if saved[i] > zero else leak)
    elif code == ELU:
        for i in range(n):
            d[i] = d[i] * (one if saved[i] > zero else saved[i] + one)
    elif code == GELU:
        density = d.dtype.type(_DENSITY)
        for i in range(n):
            t = tail_size(saved[i])
            slope = (mills(t) - density * t) * bell(t)  # at -t
            d[i] = d[i] * (one - slope if saved[i] > zero else slope)
    elif code == SILU:
        # s(|z|) = w, s(-|z|) = e w: one of the two is 1 - s(z), and neither is a difference.
        flat = d.dtype.type(_SILU_FLAT)
        for i in range(n):
            z = clamp(saved[i], flat)
            size = abs(z)
            e = decay(-size)
            w = one / (one + e)
            share = size * (e * w)
            d[i] = d[i] * (w * (one + share if z > zero else e - share))
    elif code == SOFTPLUS:
        for i in range(n):
            d[i] = d[i] * -expm1(-saved[i])
    elif code == SIGMOID:
        for i in range(n):
            d[i] = d[i] * (saved[i] * (one - saved[i]))
    elif code == TANH:
        for i in range(n):
            d[i] = d[i] * (one - saved[i] * saved[i])


@inner
def activate_rest(arena, code, pre, out, size, most):
    """Do what a pass that knows ReLU alone left of f: z stands at `pre`, f(z) belongs at `out`.

    `most` is a panel row of maxima to raise, or -1; what the pass finished, it noted.
    """
    if pre != out:
        copy(run(arena, out, size), run(arena, pre, size))
    if code != IDENTITY and code != RELU:
        activate(code, run(arena, out, size))
        if most >= 0:
            note_run(arena, most, out, size)


@inner
def gate_rest(arena, code, delta, saved, size, most):
    """Do the same of f', for the deltas at `delta`."""
    if code != IDENTITY and code != RELU:
        gate(code, run(arena, delta, size), run(arena, saved, size))
        if most >= 0:
            note_run(arena, most, delta, size)
