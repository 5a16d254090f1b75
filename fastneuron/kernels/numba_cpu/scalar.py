"""Exponentials of one number, written so that LLVM vectorises the loops that call them.

Numba ships no vector math library, so `math.exp` is a call an element. Here exp(x) is 2^n e^r with
n = round(x / ln 2) and |r| <= ln(2) / 2, e^r - 1 a Taylor polynomial whose first left-out term is
below a tenth of an ulp (r^8/8!: 5e-9 in float32; r^14/14!: 4e-18 in float64). No table, no branch.
Reduction and scaling as in J.-M. Muller, Elementary Functions, 3rd ed., chapter 11.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fastneuron.kernels.numba_cpu.jit import inner

F = np.float32
# Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits of the sum.
_ROUND32, _ROUND64 = F(12582912.0), 6755399441055744.0
_LOG2E32, _LOG2E64 = F(math.log2(math.e)), math.log2(math.e)
# ln 2 in two parts, the first with so few bits that n times it is exact.
_HIGH32, _LOW32 = F(0.693359375), F(-2.12194440054690583e-4)
_HIGH64, _LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Beyond these e^x overflows, or rounds to zero.
_MAX32, _MIN32, _MAX64, _MIN64 = F(89.0), F(-104.0), 710.0, -746.0

_C2, _C3, _C4, _C5, _C6, _C7 = (F(1.0 / math.factorial(i)) for i in range(2, 8))
(_D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10, _D11, _D12, _D13) = (
    1.0 / math.factorial(i) for i in range(2, 14)
)


def _times_power_of_two(typingctx: Any, y: Any, rounded: Any) -> Any:
    """Return y * 2^n, n being the low bits of `rounded` (n added to the rounding constant).

    Two factors of half the exponent, so that results in the subnormal range and overflow come out
    right where 2^n itself is no normal number.
    """
    if y == types.float32:
        whole, bias, shift, magic = ir.IntType(32), 127, 23, int(_ROUND32.view(np.int32))
        real: Any = ir.FloatType()
    else:
        whole, bias, shift = ir.IntType(64), 1023, 52
        magic = int(np.float64(_ROUND64).view(np.int64))
        real = ir.DoubleType()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def power(exponent: Any) -> Any:
            biased = builder.add(exponent, ir.Constant(whole, bias))
            return builder.bitcast(builder.shl(biased, ir.Constant(whole, shift)), real)

        n = builder.sub(builder.bitcast(args[1], whole), ir.Constant(whole, magic))
        half = builder.ashr(n, ir.Constant(whole, 1))
        scaled = builder.fmul(args[0], power(half))
        return builder.fmul(scaled, power(builder.sub(n, half)))

    return y(y, y), codegen


times_power_of_two = intrinsic(_times_power_of_two)


@inner
def _reduce32(x):
    rounded = x * _LOG2E32 + _ROUND32
    n = rounded - _ROUND32
    r = (x - n * _HIGH32) - n * _LOW32
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    return rounded, r + r * r * tail


@inner
def _reduce64(x):
    rounded = x * _LOG2E64 + _ROUND64
    n = rounded - _ROUND64
    r = (x - n * _HIGH64) - n * _LOW64
    tail = _D8 + r * (_D9 + r * (_D10 + r * (_D11 + r * (_D12 + r * _D13))))
    tail = _D2 + r * (_D3 + r * (_D4 + r * (_D5 + r * (_D6 + r * (_D7 + r * tail)))))
    return rounded, r + r * r * tail


@inner
def _exp32(x):
    # Written so that a NaN falls through both selects.
    x = _MAX32 if x > _MAX32 else x
    x = _MIN32 if x < _MIN32 else x
    rounded, q = _reduce32(x)
    return times_power_of_two(F(1.0) + q, rounded)


@inner
def _exp64(x):
    x = _MAX64 if x > _MAX64 else x
    x = _MIN64 if x < _MIN64 else x
    rounded, q = _reduce64(x)
    return times_power_of_two(1.0 + q, rounded)


@inner
def _expm1_32(x):
    x = _MIN32 if x < _MIN32 else x
    rounded, q = _reduce32(x)
    power = times_power_of_two(F(1.0), rounded)
    return power * q + (power - F(1.0))


@inner
def _expm1_64(x):
    x = _MIN64 if x < _MIN64 else x
    rounded, q = _reduce64(x)
    power = times_power_of_two(1.0, rounded)
    return power * q + (power - 1.0)


# 1 / (2k + 1): the terms s^(2k) / (2k + 1), s <= 1/3, fall below a tenth of an ulp after k = 8 in
# float32 and k = 17 in float64.
_O1, _O2, _O3, _O4, _O5, _O6, _O7, _O8 = (F(1.0 / (2 * k + 1)) for k in range(1, 9))
(_P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8, _P9, _P10, _P11, _P12, _P13, _P14, _P15, _P16, _P17) = (
    1.0 / (2 * k + 1) for k in range(1, 18)
)


@inner
def _log1p_unit32(x):
    s = x / (x + F(2.0))
    q = s * s
    tail = _O4 + q * (_O5 + q * (_O6 + q * (_O7 + q * _O8)))
    tail = q * (_O1 + q * (_O2 + q * (_O3 + q * tail)))
    return F(2.0) * (s + s * tail)


@inner
def _log1p_unit64(x):
    s = x / (x + 2.0)
    q = s * s
    tail = _P13 + q * (_P14 + q * (_P15 + q * (_P16 + q * _P17)))
    tail = _P8 + q * (_P9 + q * (_P10 + q * (_P11 + q * (_P12 + q * tail))))
    tail = _P4 + q * (_P5 + q * (_P6 + q * (_P7 + q * tail)))
    tail = q * (_P1 + q * (_P2 + q * (_P3 + q * tail)))
    return 2.0 * (s + s * tail)


def exp(x):
    """Return e^x; error below 1.5 ulp, NaN and infinities as IEEE has them."""
    return math.exp(x)


def expm1(x):
    """Return e^x - 1 for x <= 80; error below 2 ulp."""
    return math.expm1(x)


def log1p_unit(x):
    """Return log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (x + 2)); error below 3 ulp."""
    return math.log1p(x)


@overload(exp, jit_options={"nogil": True, "error_model": "numpy"})
def _exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: _exp64(x)


@overload(expm1, jit_options={"nogil": True, "error_model": "numpy"})
def _expm1(x):
    if x == types.float32:
        return lambda x: _expm1_32(x)
    return lambda x: _expm1_64(x)


@overload(log1p_unit, jit_options={"nogil": True, "error_model": "numpy"})
def _log1p_unit(x):
    if x == types.float32:
        return lambda x: _log1p_unit32(x)
    return lambda x: _log1p_unit64(x)
