/* Exponentials and logarithms of whole vectors.

   exp(x) is 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2 (reduction and scaling as in
   J.-M. Muller, Elementary Functions, 3rd ed., chapter 11). No table, no branch; NaN falls through.

   Every polynomial is the minimax one of its interval, found by Remez exchange in 40 digits and
   then rounded coefficient by coefficient; "fit" is its largest error before that, relative to the
   value that it becomes part of (half an ulp is 2^-24 in float32 and 2^-53 in float64 at most).
   What the functions as a whole err by is in docs/accuracy.md. */

#ifndef FN_EXPONENTIALS_H
#define FN_EXPONENTIALS_H

#include "vectors.h"

#define LOG2E 1.4426950408889634
/* 1 + e^x is kept times this, so that it overflows only where x e^-x is no normal number. */
#define SMALL 0x1p-16

#ifdef FN_DOUBLE
enum { MANTISSA_BITS = 52, BIAS = 1023 };
#define ROOT_HALF 0x3FE6A09E667F3BCD /* the bits of the number next to sqrt(1/2) */
/* ln 2 in two parts, the first with so few bits that n times it is exact. */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
/* 2^n itself is no normal number where e^x is subnormal, or next to overflow: there n is moved by
   this much towards 0, and the product moved back. */
#define MOVE 64
#define MOVED 0x1p64
/* Beyond these e^x overflows, or rounds to zero. */
#define EXP_MOST 710.0
#define EXP_LEAST -746.0
/* Of 1 + e^x: from the first on e^x adds nothing to 1; at the second 2^(n - 16) has the bits of
   infinity. */
#define SOFT_LEAST -600.0
#define SOFT_MOST 720.9
/* (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, lowest power first. Fit: 2^-57.9 of e^r. */
#define EXPM1_TERMS                                                                                \
    0.500000000000001059, 0.166666666666664095, 0.0416666666665304074, 0.00833333333349630467,     \
        0.00138888889435824798, 0.0001984126950293693, 2.48014931348708348e-5,                     \
        2.75575893193335213e-6, 2.76302390516939272e-7, 2.49992167872492205e-8
enum { EXPM1_COUNT = 10 };
/* (artanh(s) / s - 1) / s^2 in powers of s^2, |s| <= 1/3. Fit: 2^-59.4 of artanh(s). */
static const real ARTANH[] = {
    0.333333333333331548,  0.200000000000775596,  0.142857142740589811,  0.111111119768182402,
    0.0909087223985879552, 0.0769327418734305568, 0.0665056082738710999, 0.0605247125251327141,
    0.0417249132281384821, 0.0850486756320843018,
};
/* (tanh(x) / x - 1) / x^2 in powers of x^2, up to where tanh x is 1/2. Fit: 2^-60.5. */
static const real TANH[] = {
    -0.333333333333332971,  0.133333333333263899,    -0.053968253963622734,  0.0218694883818000006,
    -0.00886323253319633899, 0.00359209132301452651, -0.00145553817464811968,
    0.000588424792973428517, -0.000233330257143564999, 0.0000832412000536692669,
    -0.000019447189485654878,
};
#else
enum { MANTISSA_BITS = 23, BIAS = 127 };
#define ROOT_HALF 0x3F3504F3
#define LN2_HIGH 0.693359375
#define LN2_LOW -2.12194440054690583e-4
#define MOVE 32
#define MOVED 0x1p32
#define EXP_MOST 89.0
#define EXP_LEAST -104.0
#define SOFT_LEAST -60.0
#define SOFT_MOST 100.0
/* Fits: 2^-28.3, 2^-27.7 and 2^-29.8. */
#define EXPM1_TERMS 0.49999993448, 0.16666520632, 0.04166838805, 0.00836871688, 0.00138145985
enum { EXPM1_COUNT = 5 };
static const real ARTANH[] = {0.3333320823, 0.2001076058, 0.1400092604, 0.1400596991};
static const real TANH[] = {
    -0.3333331731, 0.1333257663, -0.05385120789, 0.02106675357, -0.006266774858,
};
#endif
static const real EXPM1[] = {EXPM1_TERMS};
static const real EXP[] = {1.0, 1.0, EXPM1_TERMS}; /* of e^r */

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits of the sum. With
   the exponent's bias added these are the bits of 2^n, once moved: see power_of_two. */
#define WHOLE_NUMBER (1.5 * (double)((int64_t)1 << MANTISSA_BITS))
#define ONE (WHOLE_NUMBER + BIAS)

/* The polynomial of x whose coefficients lie `step` apart, lowest power first. */
INLINE vec chain(vec x, const real *coefficients, const int count, const int step)
{
    vec result = every(coefficients[(count - 1) * step]);
#pragma GCC unroll 32
    for (int i = count - 2; i >= 0; i--)
        result = fused(x, result, every(coefficients[i * step]));
    return result;
}

/* The polynomial of x with these coefficients, lowest power first. From twelve on, past the first
   two terms, where every rounding counts, two chains: a processor cannot look far enough ahead to
   fill the waits of a long one. */
INLINE vec horner(vec x, const real *coefficients, const int count)
{
    if (count < 12)
        return chain(x, coefficients, count, 1);
    const vec square = x * x;
    const vec even = chain(square, coefficients + 2, (count - 1) / 2, 2);
    const vec odd = chain(square, coefficients + 3, (count - 2) / 2, 2);
    const vec rest = fused(x, odd, even);
    return fused(x, fused(x, rest, every(coefficients[1])), every(coefficients[0]));
}

/* 2^n for n + ONE, 2^n being a normal number. */
INLINE vec power_of_two(vec rounded) { return of_bits(bits(rounded) << MANTISSA_BITS); }

/* n + one, and r. */
INLINE vec reduced(vec x, vec one, vec *r)
{
    const vec rounded = fused(x, every(REAL(LOG2E)), one);
    const vec n = one - rounded;
    *r = fused(n, every(REAL(LN2_LOW)), fused(n, every(REAL(LN2_HIGH)), x));
    return rounded;
}

INLINE vec not_above(vec x, const double limit) { return lesser(every(REAL(limit)), x); }
INLINE vec not_below(vec x, const double limit) { return larger(every(REAL(limit)), x); }

/* e^x; NaN, infinities and subnormal results as IEEE has them. */
INLINE vec exp_of(vec x)
{
    x = not_below(not_above(x, EXP_MOST), EXP_LEAST);
    const mask falls = less(x, zeros());
    const vec one = choose(falls, every(REAL(ONE + MOVE)), every(REAL(ONE - MOVE)));
    vec r;
    const vec rounded = reduced(x, one, &r);
    const vec back = choose(falls, every(REAL(1.0 / MOVED)), every(REAL(MOVED)));
    return horner(r, EXP, COUNT_OF(EXP)) * power_of_two(rounded) * back;
}

/* e^x for x <= 0, a little cheaper than exp_of. */
INLINE vec decay(vec x)
{
    vec r;
    const vec rounded = reduced(not_below(x, EXP_LEAST), every(REAL(ONE + MOVE)), &r);
    return horner(r, EXP, COUNT_OF(EXP)) * power_of_two(rounded) * every(REAL(1.0 / MOVED));
}

/* (1 + e^x) / 2^16; infinity from about x = 100 on in float32, 720 in float64. */
INLINE vec one_plus_exp(vec x)
{
    vec r;
    x = not_below(not_above(x, SOFT_MOST), SOFT_LEAST);
    const vec rounded = reduced(x, every(REAL(ONE - 16)), &r);
    return fused(horner(r, EXP, COUNT_OF(EXP)), power_of_two(rounded), every(REAL(SMALL)));
}

/* 1 / (1 + e^-x). */
INLINE vec sigmoid(vec x) { return every(REAL(SMALL)) / one_plus_exp(-x); }

/* x / (1 + e^-x) for x above minus infinity. */
INLINE vec silu(vec x) { return (every(REAL(SMALL)) * x) / one_plus_exp(-x); }

/* tanh x, odd to the bit. */
INLINE vec tanh_of(vec x)
{
    const vec half_at = every(REAL(0.5493061443340549)); /* tanh is 1/2 there: log(3) / 2 */
    const vec size = absolute(x);
    const vec square = size * size;
    const vec near = fused(size * square, horner(square, TANH, COUNT_OF(TANH)), size);
    const vec far = every(1) - every(REAL(2 * SMALL)) / one_plus_exp(size + size);
    const vec t = choose(less(size, half_at), near, far);
    return choose(less(x, zeros()), -t, t);
}

/* e^x - 1 for x <= 80. */
INLINE vec expm1_of(vec x)
{
    vec r;
    const vec rounded = reduced(not_below(x, -40.0), every(REAL(ONE)), &r); /* below it is -1 */
    const vec power = power_of_two(rounded);
    const vec start = fused(power, r, power - every(1));
    return fused(power * (r * r), horner(r, EXPM1, COUNT_OF(EXPM1)), start);
}

/* log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (x + 2)). */
INLINE vec log1p_unit(vec x)
{
    const vec s = x / (x + every(2));
    const vec q = s * s;
    return every(2) * fused(s, q * horner(q, ARTANH, COUNT_OF(ARTANH)), s);
}

/* log x for normal numbers above 0, infinity and NaN. x is 2^k (1 + f) with 1 + f between sqrt(1/2)
   and sqrt(2), and log(1 + f) = 2 artanh(s) with s = f / (f + 2); of that 2 s = f - s f, so that f,
   which is exact, counts whole. */
INLINE vec log_of(vec x)
{
    const ivec exponent = (bits(x) - every_whole(ROOT_HALF)) >> MANTISSA_BITS;
    /* As a number without a conversion, which int64 has only on AVX-512. */
    const vec big = every(REAL(WHOLE_NUMBER));
    const vec k = of_bits(exponent + bits(big)) - big;
    const vec f = of_bits(bits(x) - (exponent << MANTISSA_BITS)) - every(1);
    const vec s = f / (f + every(2));
    const vec q = s * s;
    const vec rest = f - every(2) * (q * horner(q, ARTANH, COUNT_OF(ARTANH)));
    const vec near = f - fused(s, rest, k * every(REAL(-LN2_LOW)));
    return choose(less(x, every(REAL(INFINITY))), fused(k, every(REAL(LN2_HIGH)), near), x);
}

#endif
