"""Exponentials and the normal tail of one number, so written that LLVM vectorises loops over them.

Numba ships no vector math library, so `math.exp` and `math.erfc` are calls, one an element. Here
exp(x) is 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2 (reduction and scaling as in
J.-M. Muller, Elementary Functions, 3rd ed., chapter 11). No table, no branch; NaN falls through.

Every polynomial is the minimax one of its interval, found by Remez exchange in 40 digits and then
rounded coefficient by coefficient; "fit" is its largest error before that, relative to the value
that it becomes part of (half an ulp is 2^-24 in float32 and 2^-53 in float64 at most). What the
functions as a whole err by is in docs/accuracy.md.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from fastneuron.kernels.numba_cpu.fused import fused, horner, power_of_two, square_error
from fastneuron.kernels.numba_cpu.jit import inner

F = np.float32


def _in_float32(*coefficients: float) -> tuple[np.float32, ...]:
    return tuple(F(c) for c in coefficients)


_LOG2E32, _LOG2E64 = F(math.log2(math.e)), math.log2(math.e)
# ln 2 in two parts, the first with so few bits that n times it is exact.
_HIGH32, _LOW32 = F(0.693359375), F(-2.12194440054690583e-4)
_HIGH64, _LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10

# Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits of the sum. With
# the exponent's bias added these are the bits of 2^n, once moved to their place: see power_of_two.
_ONE32, _ONE64 = F(12582912.0 + 127), 6755399441055744.0 + 1023
# 2^n itself is no normal number where e^x is subnormal, or next to overflow: there n is moved by
# this much towards 0, and the product moved back.
_MOVE32, _MOVE64 = 32, 64
_UP32, _UP64 = F(_ONE32 + _MOVE32), _ONE64 + _MOVE64
_DOWN32, _DOWN64 = F(_ONE32 - _MOVE32), _ONE64 - _MOVE64
_TINY32, _TINY64 = F(2.0**-_MOVE32), 2.0**-_MOVE64
_HUGE32, _HUGE64 = F(2.0**_MOVE32), 2.0**_MOVE64

# 1 + e^x is kept times this, so that it overflows only where x e^-x is no normal number.
_SMALL = 2.0**-16
_SOFT32, _SOFT64 = F(_ONE32 - 16), _ONE64 - 16
# From the first on e^x adds nothing to 1; at the second 2^(n - 16) has the bits of infinity.
_LEAST32, _MOST32, _LEAST64, _MOST64 = F(-60.0), F(100.0), -600.0, 720.9
# Beyond these e^x overflows, or rounds to zero; below _FLAT e^x - 1 is -1.
_MAX32, _MIN32, _MAX64, _MIN64 = F(89.0), F(-104.0), 710.0, -746.0
_FLAT32, _FLAT64 = F(-40.0), -40.0

# (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, lowest power first. Fit: 2^-28.3 and 2^-57.9 of e^r.
_EXPM1_32 = _in_float32(
    0.49999993448, 0.16666520632, 0.04166838805, 0.00836871688, 0.00138145985
)  # fmt: skip
_EXPM1_64 = (
    0.500000000000001059, 0.166666666666664095, 0.0416666666665304074,
    0.00833333333349630467, 0.00138888889435824798, 0.0001984126950293693,
    2.48014931348708348e-5, 2.75575893193335213e-6, 2.76302390516939272e-7,
    2.49992167872492205e-8,
)  # fmt: skip

_EXP32, _EXP64 = (F(1.0), F(1.0), *_EXPM1_32), (1.0, 1.0, *_EXPM1_64)
# e^(-x^2/2) is reduced from -x^2 = 2 (r - n ln 2): the polynomial takes 2 r.
_HALF_LOG2E32, _HALF_LOG2E64 = F(-0.5) * _LOG2E32, -0.5 * _LOG2E64
_TWICE_HIGH32, _TWICE_HIGH64 = F(2.0) * _HIGH32, 2.0 * _HIGH64
_TWICE_LOW32, _TWICE_LOW64 = F(2.0) * _LOW32, 2.0 * _LOW64
_BELL32 = tuple(F(c * F(0.5) ** i) for i, c in enumerate(_EXP32) if i > 0)
_BELL64 = tuple(c * 0.5**i for i, c in enumerate(_EXP64) if i > 0)

# (artanh(s) / s - 1) / s^2 in powers of s^2, 0 <= s <= 1/3. Fit: 2^-27.7 and 2^-59.4 of artanh(s).
_ARTANH32 = _in_float32(0.3333320823, 0.2001076058, 0.1400092604, 0.1400596991)
_ARTANH64 = (
    0.333333333333331548, 0.200000000000775596, 0.142857142740589811, 0.111111119768182402,
    0.0909087223985879552, 0.0769327418734305568, 0.0665056082738710999, 0.0605247125251327141,
    0.0417249132281384821, 0.0850486756320843018,
)  # fmt: skip

# (tanh(x) / x - 1) / x^2 in powers of x^2, up to where tanh x is 1/2. Fit: 2^-29.8 and 2^-60.5.
_HALF_AT = 0.5 * math.log(3.0)
_TANH32 = _in_float32(-0.3333331731, 0.1333257663, -0.05385120789, 0.02106675357, -0.006266774858)
_TANH64 = (
    -0.333333333333332971, 0.133333333333263899, -0.053968253963622734, 0.0218694883818000006,
    -0.00886323253319633899, 0.00359209132301452651, -0.00145553817464811968,
    0.000588424792973428517, -0.000233330257143564999, 0.0000832412000536692669,
    -0.000019447189485654878,
)  # fmt: skip

# M(t) = e^(t^2/2) Q(t), Q the normal distribution's upper tail, falls from 1/2 as slowly as 1/t:
# (t + 4) M(t) is a smooth function of u = t / (t + 4), in powers of u - 1/2. Fit: 2^-30.2 for
# t <= 13.1 and 2^-55.6 for t <= 37.7, which is as far as t Q(t) is a normal number.
_SHIFT = 4.0
_MILLS32 = _in_float32(
    0.7552851308, -1.2157933, 1.548549425, -1.492172285, 0.9663606559, -0.2413909927,
    -0.2232489032, 0.2100827229, 0.04279669713, -0.1181425819, -0.05126838129,
)  # fmt: skip
_MILLS64 = (
    0.755285130415751479, -1.21579328394378406, 1.54854960296887654, -1.49217486367734141,
    0.966345198250942888, -0.241286046923589857, -0.222700311165009843, 0.208744761878360347,
    0.034136128485443578, -0.11832058590993635, -0.0019536509748039689, 0.0719759797836148242,
    0.00292877602120270794, -0.0484954412545283724, -0.0102454131977837984, 0.0334735138660772627,
    0.0173168829196294279, -0.0204702649079291403, -0.0202344017803451075, 0.00826896785231040418,
    0.0152422873634637599, -0.000520051644870117401, -0.0048468352299645505,
)  # fmt: skip
# Past this e^(-t^2/2) rounds to zero, and its exponent still fits power_of_two's.
_END32, _END64 = F(14.5), 38.7


@inner
def _reduce32(x, one):
    """Return n + one, and r."""
    rounded = fused(x, _LOG2E32, one)
    n = one - rounded
    return rounded, fused(n, _LOW32, fused(n, _HIGH32, x))


@inner
def _reduce64(x, one):
    rounded = fused(x, _LOG2E64, one)
    n = one - rounded
    return rounded, fused(n, _LOW64, fused(n, _HIGH64, x))


def _exp32(x):
    # Written so that a NaN falls through both selects.
    x = _MAX32 if x > _MAX32 else x
    x = _MIN32 if x < _MIN32 else x
    rounded, r = _reduce32(x, _UP32 if x < F(0.0) else _DOWN32)
    return horner(r, _EXP32) * power_of_two(rounded) * (_TINY32 if x < F(0.0) else _HUGE32)


def _exp64(x):
    x = _MAX64 if x > _MAX64 else x
    x = _MIN64 if x < _MIN64 else x
    rounded, r = _reduce64(x, _UP64 if x < 0.0 else _DOWN64)
    return horner(r, _EXP64) * power_of_two(rounded) * (_TINY64 if x < 0.0 else _HUGE64)


def _decay32(x):
    x = _MIN32 if x < _MIN32 else x
    rounded, r = _reduce32(x, _UP32)
    return horner(r, _EXP32) * power_of_two(rounded) * _TINY32


def _decay64(x):
    x = _MIN64 if x < _MIN64 else x
    rounded, r = _reduce64(x, _UP64)
    return horner(r, _EXP64) * power_of_two(rounded) * _TINY64


def _one_plus_exp32(x):
    x = _MOST32 if x > _MOST32 else x
    x = _LEAST32 if x < _LEAST32 else x
    rounded, r = _reduce32(x, _SOFT32)
    return fused(horner(r, _EXP32), power_of_two(rounded), F(_SMALL))


def _one_plus_exp64(x):
    x = _MOST64 if x > _MOST64 else x
    x = _LEAST64 if x < _LEAST64 else x
    rounded, r = _reduce64(x, _SOFT64)
    return fused(horner(r, _EXP64), power_of_two(rounded), _SMALL)


def _sigmoid32(x):
    return F(_SMALL) / one_plus_exp(-x)


def _sigmoid64(x):
    return _SMALL / one_plus_exp(-x)


def _silu32(x):
    return (F(_SMALL) * x) / one_plus_exp(-x)


def _silu64(x):
    return (_SMALL * x) / one_plus_exp(-x)


def _tanh32(x):
    size = abs(x)
    square = size * size
    near = fused(size * square, horner(square, _TANH32), size)
    far = F(1.0) - F(2.0 * _SMALL) / one_plus_exp(size + size)
    t = near if size < F(_HALF_AT) else far
    return -t if x < F(0.0) else t


def _tanh64(x):
    size = abs(x)
    square = size * size
    near = fused(size * square, horner(square, _TANH64), size)
    far = 1.0 - 2.0 * _SMALL / one_plus_exp(size + size)
    t = near if size < _HALF_AT else far
    return -t if x < 0.0 else t


def _expm1_32(x):
    x = _FLAT32 if x < _FLAT32 else x
    rounded, r = _reduce32(x, _ONE32)
    power = power_of_two(rounded)
    return fused(power * (r * r), horner(r, _EXPM1_32), fused(power, r, power - F(1.0)))


def _expm1_64(x):
    x = _FLAT64 if x < _FLAT64 else x
    rounded, r = _reduce64(x, _ONE64)
    power = power_of_two(rounded)
    return fused(power * (r * r), horner(r, _EXPM1_64), fused(power, r, power - 1.0))


def _log1p_unit32(x):
    s = x / (x + F(2.0))
    q = s * s
    return F(2.0) * fused(s, q * horner(q, _ARTANH32), s)


def _log1p_unit64(x):
    s = x / (x + 2.0)
    q = s * s
    return 2.0 * fused(s, q * horner(q, _ARTANH64), s)


def _tail_size32(x):
    size = abs(x)
    return _END32 if size > _END32 else size


def _tail_size64(x):
    size = abs(x)
    return _END64 if size > _END64 else size


@inner
def _reduce_square32(x):
    """Return n + one, and 2 r, of -x^2/2."""
    # Half an ulp of x^2 would be x^2 / 4 ulps of the result. All sums up to r are exact.
    square = x * x
    rounded = fused(square, _HALF_LOG2E32, _UP32)
    n = _UP32 - rounded
    r = fused(n, _TWICE_LOW32, fused(n, _TWICE_HIGH32, -square)) - square_error(x, square)
    return rounded, r


@inner
def _reduce_square64(x):
    square = x * x
    rounded = fused(square, _HALF_LOG2E64, _UP64)
    n = _UP64 - rounded
    r = fused(n, _TWICE_LOW64, fused(n, _TWICE_HIGH64, -square)) - square_error(x, square)
    return rounded, r


def _bell32(x):
    rounded, r = _reduce_square32(x)
    return (F(1.0) + r * horner(r, _BELL32)) * power_of_two(rounded) * _TINY32


def _bell64(x):
    rounded, r = _reduce_square64(x)
    return (1.0 + r * horner(r, _BELL64)) * power_of_two(rounded) * _TINY64


def _mills32(x):
    w = F(1.0) / (x + F(_SHIFT))
    return w * horner(fused(x, w, -F(0.5)), _MILLS32)


def _mills64(x):
    w = 1.0 / (x + _SHIFT)
    return w * horner(fused(x, w, -0.5), _MILLS64)


def _tail_moment32(x):
    # Near 4 ulps if put together from bell and mills: this has three roundings less.
    u = x / (x + F(_SHIFT))
    m = u * horner(u - F(0.5), _MILLS32)
    rounded, r = _reduce_square32(x)
    return fused(m, r * horner(r, _BELL32), m) * power_of_two(rounded) * _TINY32


def _tail_moment64(x):
    # Near 4 ulps if put together from bell and mills: this has three roundings less.
    u = x / (x + _SHIFT)
    m = u * horner(u - 0.5, _MILLS64)
    rounded, r = _reduce_square64(x)
    return fused(m, r * horner(r, _BELL64), m) * power_of_two(rounded) * _TINY64


def exp(x):
    """Return e^x, NaN, infinities and subnormal results as IEEE has them."""
    return math.exp(x)


def decay(x):
    """Return e^x for x <= 0, a little cheaper than exp."""
    return math.exp(x)


def one_plus_exp(x):
    """Return (1 + e^x) / 2^16; infinity from about x = 100 on in float32, 720 in float64."""
    return (1.0 + math.exp(x)) * _SMALL


def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    return 1.0 / (1.0 + math.exp(-x))


def silu(x):
    """Return x / (1 + e^-x) for x above minus infinity."""
    return x / (1.0 + math.exp(-x))


def tanh(x):
    """Return tanh x, odd to the bit."""
    return math.tanh(x)


def expm1(x):
    """Return e^x - 1 for x <= 80."""
    return math.expm1(x)


def log1p_unit(x):
    """Return log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (x + 2))."""
    return math.log1p(x)


def tail_size(x):
    """Return |x|, held at where bell(x) is 0: an argument for bell and mills."""
    return abs(x)


def bell(x):
    """Return e^(-x^2/2) for x out of tail_size; the relative error does not grow with x."""
    return math.exp(-0.5 * x * x)


def mills(x):
    """Return e^(x^2/2) Q(x) for x out of tail_size, Q the normal distribution's upper tail."""
    return math.exp(0.5 * x * x) * math.erfc(x * math.sqrt(0.5)) / 2


def tail_moment(x):
    """Return x Q(x) for x out of tail_size."""
    return 0.5 * x * math.erfc(x * math.sqrt(0.5))


_OPTIONS = {"nogil": True, "error_model": "numpy"}


@overload(exp, jit_options=_OPTIONS)
def _exp(x):
    return _exp32 if x == types.float32 else _exp64


@overload(decay, jit_options=_OPTIONS)
def _decay(x):
    return _decay32 if x == types.float32 else _decay64


@overload(one_plus_exp, jit_options=_OPTIONS)
def _one_plus_exp(x):
    return _one_plus_exp32 if x == types.float32 else _one_plus_exp64


@overload(sigmoid, jit_options=_OPTIONS)
def _sigmoid(x):
    return _sigmoid32 if x == types.float32 else _sigmoid64


@overload(silu, jit_options=_OPTIONS)
def _silu(x):
    return _silu32 if x == types.float32 else _silu64


@overload(tanh, jit_options=_OPTIONS)
def _tanh(x):
    return _tanh32 if x == types.float32 else _tanh64


@overload(expm1, jit_options=_OPTIONS)
def _expm1(x):
    return _expm1_32 if x == types.float32 else _expm1_64


@overload(log1p_unit, jit_options=_OPTIONS)
def _log1p_unit(x):
    return _log1p_unit32 if x == types.float32 else _log1p_unit64


@overload(tail_size, jit_options=_OPTIONS)
def _tail_size(x):
    return _tail_size32 if x == types.float32 else _tail_size64


@overload(bell, jit_options=_OPTIONS)
def _bell(x):
    return _bell32 if x == types.float32 else _bell64


@overload(mills, jit_options=_OPTIONS)
def _mills(x):
    return _mills32 if x == types.float32 else _mills64


@overload(tail_moment, jit_options=_OPTIONS)
def _tail_moment(x):
    return _tail_moment32 if x == types.float32 else _tail_moment64
