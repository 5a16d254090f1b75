"""Activation functions and their gates over runs of numbers, in place.

One loop an activation and one integer code a run, so that each loop vectorises. Constants are made
with the array's own dtype: a Python literal would carry float32 work over to float64.
"""

from __future__ import annotations

import math

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.scalar import exp, expm1, log1p_unit

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
_ROOT_HALF = math.sqrt(0.5)
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
# tanh is 1 to the last bit of float64 from 19.1 on; the clamp keeps exp(2x) finite.
_TANH_FLAT = 20.0
# Beyond these GELU and SiLU are 0 or z to the last bit and their slopes 0 or 1: the clamp keeps
# infinity times zero from making a NaN of the limit.
_GELU_FLAT, _SILU_FLAT = 40.0, 800.0


@inner
def clamp(x, limit):
    """Return x within +-limit; NaN falls through."""
    x = limit if x > limit else x
    return -limit if x < -limit else x


@inner
def sigmoid(x, one):
    """Return 1 / (1 + e^-x), from e^-|x| so that neither tail overflows."""
    e = exp(-abs(x))
    return (e if x < 0 else one) / (one + e)


@inner
def tanh(x, two, flat):
    """Return tanh x, odd to the bit: computed from |x|."""
    size = abs(x)
    size = flat if size > flat else size
    e = expm1(two * size)
    t = e / (e + two)
    return -t if x < 0 else t


@inner
def activate(code, v):
    """Apply f in place; NaN stays NaN (each select is written so that NaN falls through)."""
    n = v.shape[0]
    zero, one, two = v.dtype.type(0.0), v.dtype.type(1.0), v.dtype.type(2.0)
    if code == RELU:
        for i in range(n):
            v[i] = zero if v[i] < zero else v[i]
    elif code == LEAKY_RELU:
        leak = v.dtype.type(_LEAK)
        for i in range(n):
            v[i] = leak * v[i] if v[i] < zero else v[i]
    elif code == ELU:
        for i in range(n):
            below = v[i] if v[i] < zero else zero
            v[i] = v[i] if v[i] > zero else (expm1(below) if v[i] <= zero else v[i])
    elif code == GELU:
        half, root_half = v.dtype.type(0.5), v.dtype.type(_ROOT_HALF)
        flat = v.dtype.type(_GELU_FLAT)
        for i in range(n):
            z = -flat if v[i] < -flat else v[i]
            v[i] = half * z * math.erfc(-z * root_half)
    elif code == SILU:
        flat = v.dtype.type(_SILU_FLAT)
        for i in range(n):
            z = -flat if v[i] < -flat else v[i]
            v[i] = z * sigmoid(z, one)
    elif code == SOFTPLUS:
        for i in range(n):
            v[i] = (zero if v[i] < zero else v[i]) + log1p_unit(exp(-abs(v[i])))
    elif code == SIGMOID:
        for i in range(n):
            v[i] = sigmoid(v[i], one)
    elif code == TANH:
        flat = v.dtype.type(_TANH_FLAT)
        for i in range(n):
            v[i] = tanh(v[i], two, flat)


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
        half, root_half = d.dtype.type(0.5), d.dtype.type(_ROOT_HALF)
        density, flat = d.dtype.type(1.0 / _ROOT_TWO_PI), d.dtype.type(_GELU_FLAT)
        for i in range(n):
            z = clamp(saved[i], flat)
            share = half * math.erfc(-z * root_half)
            d[i] = d[i] * (share + z * density * exp(-half * z * z))
    elif code == SILU:
        flat = d.dtype.type(_SILU_FLAT)
        for i in range(n):
            z = clamp(saved[i], flat)
            s = sigmoid(z, one)
            d[i] = d[i] * (s * (one + z * (one - s)))
    elif code == SOFTPLUS:
        for i in range(n):
            d[i] = d[i] * -expm1(-saved[i])
    elif code == SIGMOID:
        for i in range(n):
            d[i] = d[i] * (saved[i] * (one - saved[i]))
    elif code == TANH:
        for i in range(n):
            d[i] = d[i] * (one - saved[i] * saved[i])
