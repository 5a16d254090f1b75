/* Activation functions and their gates over runs of numbers, in place. */

#ifndef FN_ELEMENTWISE_H
#define FN_ELEMENTWISE_H

#include "constants.h"
#include "normal.h"

#define LEAK 0.01
#define DENSITY 0.3989422804014327 /* 1 / sqrt(2 pi) */
/* Beyond this SiLU is 0 or z to the last bit and its slope 0 or 1: the clamp keeps infinity times
   zero from making a NaN of the limit. */
#define SILU_FLAT 800.0

/* f(z); NaN stays NaN (each select is written so that NaN falls through). */
INLINE vec activated(const int code, vec z)
{
    switch (code) {
    case ACTIVATION_RELU:
        return not_below(z, 0);
    case ACTIVATION_LEAKY_RELU:
        return choose(less(z, zeros()), every(REAL(LEAK)) * z, z);
    case ACTIVATION_ELU: /* expm1 is of no use above zero, and harmless */
        return choose(greater(z, zeros()), z, expm1_of(z));
    case ACTIVATION_GELU: /* z Phi(z) = max(z, 0) - |z| Q(|z|), Q = 1 - Phi the upper tail */
        return not_below(z, 0) - tail_moment(tail_size(z));
    case ACTIVATION_SILU:
        return silu(not_below(z, -SILU_FLAT));
    case ACTIVATION_SOFTPLUS:
        return not_below(z, 0) + log1p_unit(decay(-absolute(z)));
    case ACTIVATION_SIGMOID:
        return sigmoid(z);
    case ACTIVATION_TANH:
        return tanh_of(z);
    default:
        return z;
    }
}

/* d f'(z), f' computed from `saved`: a, or z for GELU and SiLU. */
INLINE vec gated(const int code, vec d, vec saved)
{
    const mask above = greater(saved, zeros());
    const vec one = every(1);
    switch (code) {
    case ACTIVATION_RELU:
        return d * choose(above, one, zeros());
    case ACTIVATION_LEAKY_RELU:
        return d * choose(above, one, every(REAL(LEAK)));
    case ACTIVATION_ELU:
        return d * choose(above, one, saved + one);
    case ACTIVATION_GELU: {
        const vec t = tail_size(saved);
        const vec slope = (mills(t) - every(REAL(DENSITY)) * t) * bell(t); /* at -t */
        return d * choose(above, one - slope, slope);
    }
    case ACTIVATION_SILU: {
        /* s(|z|) = w, s(-|z|) = e w: one of the two is 1 - s(z), and neither is a difference. */
        const vec size = not_above(absolute(saved), SILU_FLAT);
        const vec e = decay(-size);
        const vec w = one / (one + e);
        const vec share = size * (e * w);
        return d * (w * choose(above, one + share, e - share));
    }
    case ACTIVATION_SOFTPLUS:
        return d * -expm1_of(-saved);
    case ACTIVATION_SIGMOID:
        return d * (saved * (one - saved));
    case ACTIVATION_TANH:
        return d * (one - saved * saved);
    default:
        return d;
    }
}

/* Calls each(ACTIVATION_...) for the code that is given, as a constant. */
#define FN_ACTIVATION(code, each)                                                                  \
    switch (code) {                                                                                \
        FN_CASE(each, ACTIVATION_RELU)                                                             \
        FN_CASE(each, ACTIVATION_LEAKY_RELU)                                                       \
        FN_CASE(each, ACTIVATION_ELU)                                                              \
        FN_CASE(each, ACTIVATION_GELU)                                                             \
        FN_CASE(each, ACTIVATION_SILU)                                                             \
        FN_CASE(each, ACTIVATION_SOFTPLUS)                                                         \
        FN_CASE(each, ACTIVATION_SIGMOID)                                                          \
        FN_CASE(each, ACTIVATION_TANH)                                                             \
    }
#define FN_CASE(each, name)                                                                        \
    case name:                                                                                     \
        each(name);                                                                                \
        break;

/* Apply f to n numbers in place. */
NOINLINE void activate(int64_t code, real *v, int64_t n)
{
    const int64_t even = n & -LANES;
#define EACH(name)                                                                                 \
    _Pragma("GCC unroll 2")                                                                        \
    for (int64_t i = 0; i < even; i += LANES)                                                      \
        store(v + i, activated(name, load(v + i)))
    FN_ACTIVATION(code, EACH)
#undef EACH
    if (even < n && code != ACTIVATION_IDENTITY) {
        const mask rest = below(n - even);
        real last[LANES];
        store(last, load_some(v + even, rest));
        activate(code, last, LANES);
        store_some(v + even, load(last), rest);
    }
}

/* D = d f'(z) of n numbers in place. */
NOINLINE void gate(int64_t code, real *d, const real *saved, int64_t n)
{
    const int64_t even = n & -LANES;
#define EACH(name)                                                                                 \
    _Pragma("GCC unroll 2")                                                                        \
    for (int64_t i = 0; i < even; i += LANES)                                                      \
        store(d + i, gated(name, load(d + i), load(saved + i)))
    FN_ACTIVATION(code, EACH)
#undef EACH
    if (even < n && code != ACTIVATION_IDENTITY) {
        const mask rest = below(n - even);
        real last[LANES], of[LANES];
        store(last, load_some(d + even, rest));
        store(of, load_some(saved + even, rest));
        gate(code, last, of, LANES);
        store_some(d + even, load(last), rest);
    }
}

#endif
