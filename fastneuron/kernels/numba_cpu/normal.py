"""The normal distribution's bell and upper tail, for GELU; made like `exponentials`."""

from __future__ import annotations

from fastneuron.kernels.numba_cpu.emit import (
    Number,
    function,
    horner,
    power_of_two,
    square_error,
)
from fastneuron.kernels.numba_cpu.exponentials import LOG2E, constants

# M(t) = e^(t^2/2) Q(t), Q the normal distribution's upper tail, falls from 1/2 as slowly as 1/t:
# (t + 4) M(t) is a smooth function of u = t / (t + 4), in powers of u - 1/2. Fit: 2^-30.2 for
# t <= 13.1 and 2^-55.6 for t <= 37.7, which is as far as t Q(t) is a normal number.
_SHIFT = 4.0
_MILLS_SINGLE = (
    0.7552851308, -1.2157933, 1.548549425, -1.492172285, 0.9663606559, -0.2413909927,
    -0.2232489032, 0.2100827229, 0.04279669713, -0.1181425819, -0.05126838129,
)  # fmt: skip
_MILLS_DOUBLE = (
    0.755285130415751479, -1.21579328394378406, 1.54854960296887654, -1.49217486367734141,
    0.966345198250942888, -0.241286046923589857, -0.222700311165009843, 0.208744761878360347,
    0.034136128485443578, -0.11832058590993635, -0.0019536509748039689, 0.0719759797836148242,
    0.00292877602120270794, -0.0484954412545283724, -0.0102454131977837984, 0.0334735138660772627,
    0.0173168829196294279, -0.0204702649079291403, -0.0202344017803451075, 0.00826896785231040418,
    0.0152422873634637599, -0.000520051644870117401, -0.0048468352299645505,
)  # fmt: skip
# Past this e^(-t^2/2) rounds to zero, and its exponent still fits power_of_two's.
_END_SINGLE, _END_DOUBLE = 14.5, 38.7


def _mills_polynomial(u: Number) -> Number:
    return horner(u, _MILLS_SINGLE if u.single else _MILLS_DOUBLE)


def _bell_parts(x: Number) -> tuple[Number, Number]:
    """Return 2^n, moved up, and what is to be added to 1, of e^(-x^2/2)."""
    # Half an ulp of x^2 would be x^2 / 4 ulps of the result. All sums up to r are exact. The
    # reduction is of -x^2 = 2 (r - n ln 2): the polynomial takes 2 r.
    c = constants(x)
    square = x * x
    rounded = square.times(-0.5 * LOG2E, c.up)
    n = c.up - rounded
    r = n.times(2.0 * c.low, n.times(2.0 * c.high, -square)) - square_error(x, square)
    halved = tuple(k * 0.5**i for i, k in enumerate(c.exp) if i > 0)
    return power_of_two(rounded), r * horner(r, halved)


def emit_tail_size(x: Number) -> Number:
    """|x|, held at where bell(x) is 0: an argument for bell and mills."""
    size, end = abs(x), _END_SINGLE if x.single else _END_DOUBLE
    return x.constant(end).where(size > end, size)


def emit_bell(x: Number) -> Number:
    """e^(-x^2/2) for x out of tail_size; the relative error does not grow with x."""
    power, more = _bell_parts(x)
    return (1.0 + more) * power * constants(x).tiny


def emit_mills(x: Number) -> Number:
    """e^(x^2/2) Q(x) for x out of tail_size, Q the normal distribution's upper tail."""
    w = 1.0 / (x + _SHIFT)
    return w * _mills_polynomial(x.times(w, -0.5))


def emit_tail_moment(x: Number) -> Number:
    """x Q(x) for x out of tail_size."""
    # Near 4 ulps if put together from bell and mills: this has three roundings less.
    u = x / (x + _SHIFT)
    m = u * _mills_polynomial(u - 0.5)
    power, more = _bell_parts(x)
    return m.times(more, m) * power * constants(x).tiny


tail_size = function(emit_tail_size)
bell = function(emit_bell)
mills = function(emit_mills)
tail_moment = function(emit_tail_moment)
