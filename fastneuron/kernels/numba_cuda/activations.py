"""Activations and their derivatives as functions of one number, by name and dtype.

Every constant has the dtype T: a Python number would make the device compute in float64, where the
simulator stays in float32. Functions of `math` give Python numbers in the simulator, so T rounds
them there; on the device that is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastneuron.activations import LEAKY_SLOPE
from fastneuron.kernels.numba_cuda.driver import device_function

__all__ = ["derivative", "value"]

Function = Callable[..., Any]
#: |z| beyond which exp(-z**2 / 2), or exp(-|z|), is zero in float64: see `fastneuron.activations`.
_GELU_TAIL, _SILU_TAIL = 40.0, 800.0


@cache
def value(name: str, dtype: str) -> Any:
    """Return f of one number."""
    return device_function(_VALUES[name](np.dtype(dtype).type))


@cache
def derivative(name: str, dtype: str) -> Any:
    """Return f' of one number, from the output or from z as `Activation.saves` says."""
    return device_function(_DERIVATIVES[name](np.dtype(dtype).type))


def _identity(T: Any) -> Function:
    return lambda z: z


def _identity_slope(T: Any) -> Function:
    one = T(1)
    return lambda a: one


def _relu(T: Any) -> Function:
    zero = T(0)
    return lambda z: zero if z < zero else z  # NaN stays


def _relu_slope(T: Any) -> Function:
    zero, one = T(0), T(1)
    return lambda a: one if a > zero else zero


def _leaky_relu(T: Any) -> Function:
    zero, slope = T(0), T(LEAKY_SLOPE)
    return lambda z: z if z > zero else slope * z


def _leaky_relu_slope(T: Any) -> Function:
    zero, one, slope = T(0), T(1), T(LEAKY_SLOPE)
    return lambda a: one if a > zero else slope


def _elu(T: Any) -> Function:
    zero = T(0)
    return lambda z: z if z > zero else T(math.expm1(z))


def _elu_slope(T: Any) -> Function:
    zero, one = T(0), T(1)
    return lambda a: one if a > zero else a + one


def _gelu(T: Any) -> Function:
    tail, half, root = T(-_GELU_TAIL), T(0.5), T(math.sqrt(0.5))

    def f(z):
        clamped = tail if z < tail else z
        return half * clamped * T(math.erfc(-clamped * root))

    return f


def _gelu_slope(T: Any) -> Function:
    tail, half, root = T(_GELU_TAIL), T(0.5), T(math.sqrt(0.5))
    scale = T(1 / math.sqrt(2 * math.pi))

    def slope(z):
        clamped = -tail if z < -tail else (tail if z > tail else z)
        below = half * T(math.erfc(-clamped * root))
        return below + clamped * (T(math.exp(-half * clamped * clamped)) * scale)

    return slope


def _logistic(T: Any) -> Function:
    zero, one = T(0), T(1)

    def f(z):
        t = T(math.exp(-abs(z)))
        return (t if z < zero else one) / (one + t)

    return f


def _silu(T: Any) -> Function:
    tail, zero, one = T(-_SILU_TAIL), T(0), T(1)

    def f(z):
        clamped = tail if z < tail else z
        t = T(math.exp(-abs(clamped)))
        return clamped * ((t if clamped < zero else one) / (one + t))

    return f


def _silu_slope(T: Any) -> Function:
    tail, zero, one = T(_SILU_TAIL), T(0), T(1)

    def slope(z):
        clamped = -tail if z < -tail else (tail if z > tail else z)
        t = T(math.exp(-abs(clamped)))
        near, far = one / (one + t), t / (one + t)  # s(|z|), s(-|z|)
        if clamped < zero:
            return far * (one + clamped * near)
        return near * (one + clamped * far)

    return slope


def _softplus(T: Any) -> Function:
    zero = T(0)

    def f(z):
        above = zero if z < zero else z
        return above + T(math.log1p(T(math.exp(-abs(z)))))

    return f


def _softplus_slope(T: Any) -> Function:
    return lambda a: -T(math.expm1(-a))


def _logistic_slope(T: Any) -> Function:
    one = T(1)
    return lambda a: a * (one - a)


def _tanh(T: Any) -> Function:
    return lambda z: T(math.tanh(z))


def _tanh_slope(T: Any) -> Function:
    one = T(1)
    return lambda a: one - a * a


_VALUES: dict[str, Callable[[Any], Function]] = {
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "softplus": _softplus,
    "sigmoid": _logistic,
    "tanh": _tanh,
}
_DERIVATIVES: dict[str, Callable[[Any], Function]] = {
    "identity": _identity_slope,
    "relu": _relu_slope,
    "leaky_relu": _leaky_relu_slope,
    "elu": _elu_slope,
    "gelu": _gelu_slope,
    "silu": _silu_slope,
    "softplus": _softplus_slope,
    "sigmoid": _logistic_slope,
    "tanh": _tanh_slope,
}
