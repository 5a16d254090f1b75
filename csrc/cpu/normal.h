/* The normal distribution's bell and upper tail, for GELU; made like exponentials.h. */

#ifndef FN_NORMAL_H
#define FN_NORMAL_H

#include "exponentials.h"

/* M(t) = e^(t^2/2) Q(t), Q the normal distribution's upper tail, falls from 1/2 as slowly as 1/t:
   (t + 4) M(t) is a smooth function of u = t / (t + 4), in powers of u - 1/2. Fit: 2^-30.2 for
   t <= 13.1 and 2^-55.6 for t <= 37.7, which is as far as t Q(t) is a normal number. */
#define MILLS_SHIFT 4
#ifdef FN_DOUBLE
static const real MILLS[] = {
    0.755285130415751479,   -1.21579328394378406,   1.54854960296887654,   -1.49217486367734141,
    0.966345198250942888,   -0.241286046923589857,  -0.222700311165009843, 0.208744761878360347,
    0.034136128485443578,   -0.11832058590993635,   -0.0019536509748039689, 0.0719759797836148242,
    0.00292877602120270794, -0.0484954412545283724, -0.0102454131977837984, 0.0334735138660772627,
    0.0173168829196294279,  -0.0204702649079291403, -0.0202344017803451075, 0.00826896785231040418,
    0.0152422873634637599,  -0.000520051644870117401, -0.0048468352299645505,
};
/* Past this e^(-t^2/2) rounds to zero, and its exponent still fits power_of_two's. */
#define TAIL_END 38.7
enum { LOW_HALF = 27 }; /* bits of a mantissa that half the digits do without */
#else
static const real MILLS[] = {
    0.7552851308,  -1.2157933,   1.548549425,   -1.492172285,  0.9663606559,   -0.2413909927,
    -0.2232489032, 0.2100827229, 0.04279669713, -0.1181425819, -0.05126838129,
};
#define TAIL_END 14.5
enum { LOW_HALF = 12 };
#endif

/* x^2 - square, exactly but for its last bits, for the rounded square of x. */
INLINE vec square_error(vec x, vec square)
{
#if FUSES
    return fused(x, x, -square);
#else
    /* Without fused multiply-add from a part of x with half the digits (Dekker 1971, Numer. Math.
       18); the library's fma would be a call an element. */
    const vec high = of_bits(bits(x) & every_whole(-((whole)1 << LOW_HALF)));
    const vec low = x - high;
    return (high * high - square) + (high + high) * low + low * low;
#endif
}

INLINE vec mills_polynomial(vec u) { return horner(u, MILLS, COUNT_OF(MILLS)); }

/* Of e^(-x^2/2): 2^n, moved up, and `more`, what is to be added to 1.

   Half an ulp of x^2 would be x^2 / 4 ulps of the result. All sums up to r are exact. The reduction
   is of -x^2 = 2 (r - n ln 2): the polynomial takes 2 r. */
INLINE vec bell_parts(vec x, vec *more)
{
    const vec up = every(REAL(ONE + MOVE));
    const vec square = x * x;
    const vec rounded = fused(square, every(REAL(-0.5 * LOG2E)), up);
    const vec n = up - rounded;
    const vec start = fused(n, every(REAL(2 * LN2_HIGH)), -square);
    const vec twice = fused(n, every(REAL(2 * LN2_LOW)), start) - square_error(x, square);
    real halved[COUNT_OF(EXP) - 1];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT_OF(halved); i++)
        halved[i] = EXP[i + 1] / (real)(2 << i);
    *more = twice * horner(twice, halved, COUNT_OF(halved));
    return power_of_two(rounded);
}

/* |x|, held at where bell(x) is 0: an argument for bell and mills. */
INLINE vec tail_size(vec x) { return not_above(absolute(x), TAIL_END); }

/* e^(-x^2/2) for x out of tail_size; the relative error does not grow with x. */
INLINE vec bell(vec x)
{
    vec more;
    const vec power = bell_parts(x, &more);
    return (every(1) + more) * power * every(REAL(1.0 / MOVED));
}

/* e^(x^2/2) Q(x) for x out of tail_size, Q the normal distribution's upper tail. */
INLINE vec mills(vec x)
{
    const vec w = every(1) / (x + every(MILLS_SHIFT));
    return w * mills_polynomial(fused(x, w, every(REAL(-0.5))));
}

/* x Q(x) for x out of tail_size. */
INLINE vec tail_moment(vec x)
{
    /* Near 4 ulps if put together from bell and mills: this has three roundings less. */
    const vec u = x / (x + every(MILLS_SHIFT));
    const vec m = u * mills_polynomial(u - every(REAL(0.5)));
    vec more;
    const vec power = bell_parts(x, &more);
    return fused(m, more, m) * power * every(REAL(1.0 / MOVED));
}

#endif
