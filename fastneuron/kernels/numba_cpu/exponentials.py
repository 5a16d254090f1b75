"""Exponentials and logarithms, so emitted that they serve vectors and loops that LLVM vectorises.

Numba ships no vector math library, so `math.exp` is a call, one an element. Here exp(x) is 2^n e^r
with n = round(x / ln 2) and |r| <= ln(2) / 2 (reduction and scaling as in J.-M. Muller, Elementary
Functions, 3rd ed., chapter 11). No table, no branch; NaN falls through.

Every polynomial is the minimax one of its interval, found by Remez exchange in 40 digits and then
rounded coefficient by coefficient; "fit" is its largest error before that, relative to the value
that it becomes part of (half an ulp is 2^-24 in float32 and 2^-53 in float64 at most). What the
functions as a whole err by is in docs/accuracy.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastneuron.kernels.numba_cpu.emit import Number, function, horner, power_of_two

LOG2E = math.log2(math.e)
#: 1 + e^x is kept times this, so that it overflows only where x e^-x is no normal number.
_SMALL = 2.0**-16
_HALF_AT = 0.5 * math.log(3.0)
# Below this e^x - 1 is -1.
_FLAT = -40.0


@dataclass(frozen=True)
class Constants:
    """What one dtype's functions are made of; numbers are rounded to it where they are used."""

    # ln 2 in two parts, the first with so few bits that n times it is exact.
    high: float
    low: float
    # Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits of the sum.
    # With the exponent's bias added these are the bits of 2^n, once moved: see power_of_two.
    one: float
    # 2^n itself is no normal number where e^x is subnormal, or next to overflow: there n is moved
    # by this much towards 0, and the product moved back.
    move: int
    # Beyond these e^x overflows, or rounds to zero.
    most: float
    least: float
    # Of 1 + e^x: from the first on e^x adds nothing to 1; at the second 2^(n - 16) has the bits of
    # infinity.
    soft_least: float
    soft_most: float
    # (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, lowest power first. Fit: 2^-28.3 and 2^-57.9 of e^r.
    expm1: tuple[float, ...]
    # (artanh(s) / s - 1) / s^2 in powers of s^2, |s| <= 1/3. Fit: 2^-27.7 and 2^-59.4 of artanh(s).
    artanh: tuple[float, ...]
    # (tanh(x) / x - 1) / x^2 in powers of x^2, up to where tanh x is 1/2. Fit: 2^-29.8, 2^-60.5.
    tanh: tuple[float, ...]
    # Bits of the mantissa, and the bits of the number next to sqrt(1/2).
    mantissa: int
    root_half: int

    @property
    def exp(self) -> tuple[float, ...]:
        """The polynomial of e^r."""
        return (1.0, 1.0, *self.expm1)

    @property
    def up(self) -> float:
        """`one`, moved towards zero from below."""
        return self.one + self.move

    @property
    def tiny(self) -> float:
        """What moves the product back down."""
        return 2.0**-self.move


SINGLE = Constants(
    high=0.693359375,
    low=-2.12194440054690583e-4,
    one=12582912.0 + 127,
    move=32,
    most=89.0,
    least=-104.0,
    soft_least=-60.0,
    soft_most=100.0,
    expm1=(0.49999993448, 0.16666520632, 0.04166838805, 0.00836871688, 0.00138145985),
    artanh=(0.3333320823, 0.2001076058, 0.1400092604, 0.1400596991),
    tanh=(-0.3333331731, 0.1333257663, -0.05385120789, 0.02106675357, -0.006266774858),
    mantissa=23,
    root_half=0x3F3504F3,
)
DOUBLE = Constants(
    high=6.93147180369123816490e-01,
    low=1.90821492927058770002e-10,
    one=6755399441055744.0 + 1023,
    move=64,
    most=710.0,
    least=-746.0,
    soft_least=-600.0,
    soft_most=720.9,
    expm1=(
        0.500000000000001059, 0.166666666666664095, 0.0416666666665304074,
        0.00833333333349630467, 0.00138888889435824798, 0.0001984126950293693,
        2.48014931348708348e-5, 2.75575893193335213e-6, 2.76302390516939272e-7,
        2.49992167872492205e-8,
    ),
    artanh=(
        0.333333333333331548, 0.200000000000775596, 0.142857142740589811, 0.111111119768182402,
        0.0909087223985879552, 0.0769327418734305568, 0.0665056082738710999, 0.0605247125251327141,
        0.0417249132281384821, 0.0850486756320843018,
    ),
    tanh=(
        -0.333333333333332971, 0.133333333333263899, -0.053968253963622734, 0.0218694883818000006,
        -0.00886323253319633899, 0.00359209132301452651, -0.00145553817464811968,
        0.000588424792973428517, -0.000233330257143564999, 0.0000832412000536692669,
        -0.000019447189485654878,
    ),
    mantissa=52,
    root_half=0x3FE6A09E667F3BCD,
)  # fmt: skip


def constants(x: Number) -> Constants:
    """Return the constants of a number's dtype."""
    return SINGLE if x.single else DOUBLE


def _reduce(x: Number, one: Number) -> tuple[Number, Number]:
    """Return n + one, and r."""
    c = constants(x)
    rounded = x.times(LOG2E, one)
    n = one - rounded
    return rounded, n.times(c.low, n.times(c.high, x))


def _not_above(x: Number, limit: float) -> Number:
    return x.constant(limit).where(x > limit, x)


def _not_below(x: Number, limit: float) -> Number:
    return x.constant(limit).where(x < limit, x)


def emit_exp(x: Number) -> Number:
    """e^x; NaN, infinities and subnormal results as IEEE has them."""
    c = constants(x)
    x = _not_below(_not_above(x, c.most), c.least)
    falls = x < 0.0
    rounded, r = _reduce(x, x.constant(c.up).where(falls, c.one - c.move))
    back = x.constant(c.tiny).where(falls, 1.0 / c.tiny)
    return horner(r, c.exp) * power_of_two(rounded) * back


def emit_decay(x: Number) -> Number:
    """e^x for x <= 0, a little cheaper than exp."""
    c = constants(x)
    x = _not_below(x, c.least)
    rounded, r = _reduce(x, x.constant(c.up))
    return horner(r, c.exp) * power_of_two(rounded) * c.tiny


def emit_one_plus_exp(x: Number) -> Number:
    """(1 + e^x) / 2^16; infinity from about x = 100 on in float32, 720 in float64."""
    c = constants(x)
    x = _not_below(_not_above(x, c.soft_most), c.soft_least)
    rounded, r = _reduce(x, x.constant(c.one - 16))
    return horner(r, c.exp).times(power_of_two(rounded), _SMALL)


def emit_sigmoid(x: Number) -> Number:
    """1 / (1 + e^-x)."""
    return _SMALL / emit_one_plus_exp(-x)


def emit_silu(x: Number) -> Number:
    """x / (1 + e^-x) for x above minus infinity."""
    return (_SMALL * x) / emit_one_plus_exp(-x)


def emit_tanh(x: Number) -> Number:
    """tanh x, odd to the bit."""
    size = abs(x)
    square = size * size
    near = (size * square).times(horner(square, constants(x).tanh), size)
    far = 1.0 - 2.0 * _SMALL / emit_one_plus_exp(size + size)
    t = near.where(size < _HALF_AT, far)
    return (-t).where(x < 0.0, t)


def emit_expm1(x: Number) -> Number:
    """e^x - 1 for x <= 80."""
    c = constants(x)
    x = _not_below(x, _FLAT)
    rounded, r = _reduce(x, x.constant(c.one))
    power = power_of_two(rounded)
    return (power * (r * r)).times(horner(r, c.expm1), power.times(r, power - 1.0))


def emit_log1p_unit(x: Number) -> Number:
    """log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (x + 2))."""
    s = x / (x + 2.0)
    q = s * s
    return 2.0 * s.times(q * horner(q, constants(x).artanh), s)


def emit_log(x: Number) -> Number:
    """log x for normal numbers above 0, infinity and NaN.

    x is 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), and log(1 + f) = 2 artanh(s) with
    s = f / (f + 2); of that 2 s = f - s f, so that f, which is exact, counts whole.
    """
    c, builder = constants(x), x.builder
    above = builder.sub(x.bits(), x.integer(c.root_half))
    exponent = builder.ashr(above, x.integer(c.mantissa))
    k = x.of_integer(exponent)
    fraction = x.of_bits(builder.sub(x.bits(), builder.shl(exponent, x.integer(c.mantissa))))
    f = fraction - 1.0
    s = f / (f + 2.0)
    q = s * s
    rest = f - 2.0 * (q * horner(q, c.artanh))
    near = f - s.times(rest, k * -c.low)
    return k.times(c.high, near).where(x < math.inf, x)


exp = function(emit_exp)
decay = function(emit_decay)
one_plus_exp = function(emit_one_plus_exp)
sigmoid = function(emit_sigmoid)
silu = function(emit_silu)
tanh = function(emit_tanh)
expm1 = function(emit_expm1)
log1p_unit = function(emit_log1p_unit)
log = function(emit_log)
