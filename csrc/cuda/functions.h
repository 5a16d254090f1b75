/* Activations and their gates, of one number; formulas: fastneuron/activations.py. */

#ifndef FN_FUNCTIONS_H
#define FN_FUNCTIONS_H

#include "constants.h"
#include "platform.h"

/* The C library's functions by one name for both types: nothing in float32 passes through float64. */
FN_DEVICE float exp_of(float x) { return expf(x); }
FN_DEVICE double exp_of(double x) { return exp(x); }
FN_DEVICE float expm1_of(float x) { return expm1f(x); }
FN_DEVICE double expm1_of(double x) { return expm1(x); }
FN_DEVICE float log_of(float x) { return logf(x); }
FN_DEVICE double log_of(double x) { return log(x); }
FN_DEVICE float log1p_of(float x) { return log1pf(x); }
FN_DEVICE double log1p_of(double x) { return log1p(x); }
FN_DEVICE float erfc_of(float x) { return erfcf(x); }
FN_DEVICE double erfc_of(double x) { return erfc(x); }
FN_DEVICE float tanh_of(float x) { return tanhf(x); }
FN_DEVICE double tanh_of(double x) { return tanh(x); }
FN_DEVICE float root_of(float x) { return sqrtf(x); }
FN_DEVICE double root_of(double x) { return sqrt(x); }
FN_DEVICE float size_of(float x) { return fabsf(x); }
FN_DEVICE double size_of(double x) { return fabs(x); }

/* max(x, least) and min(x, most), which keep NaN. */
template <class T> FN_DEVICE T not_below(T x, T least) { return x < least ? least : x; }
template <class T> FN_DEVICE T not_above(T x, T most) { return x > most ? most : x; }

/* 1 / (1 + e^-x): only exp of something negative, so that both tails are relatively accurate. */
template <class T> FN_DEVICE T logistic(T x)
{
    const T t = exp_of(-size_of(x));
    return (x < 0 ? t : T(1)) / (1 + t);
}

/* Beyond these the functions have come to their limits, which infinity times zero would miss. */
template <class T> FN_DEVICE T gelu_tail(T x) { return not_below(not_above(x, T(40)), T(-40)); }
template <class T> FN_DEVICE T silu_tail(T x) { return not_below(not_above(x, T(800)), T(-800)); }

constexpr double ROOT_HALF = 0.70710678118654752440, DENSITY = 0.39894228040143267794;

/* f(z). */
template <class T> FN_DEVICE T activated(int code, T z)
{
    switch (code) {
    case ACTIVATION_RELU:
        return not_below(z, T(0));
    case ACTIVATION_LEAKY_RELU:
        return z > 0 ? z : T(0.01) * z;
    case ACTIVATION_ELU:
        return z > 0 ? z : expm1_of(z);
    case ACTIVATION_GELU: {
        const T c = not_below(z, T(-40));
        return T(0.5) * c * erfc_of(-c * T(ROOT_HALF));
    }
    case ACTIVATION_SILU: {
        const T c = not_below(z, T(-800));
        return c * logistic(c);
    }
    case ACTIVATION_SOFTPLUS:
        return not_below(z, T(0)) + log1p_of(exp_of(-size_of(z)));
    case ACTIVATION_SIGMOID:
        return logistic(z);
    case ACTIVATION_TANH:
        return tanh_of(z);
    default:
        return z;
    }
}

/* d f'(z), f' from `saved`, which is a, or z of GELU and SiLU. */
template <class T> FN_DEVICE T gated(int code, T d, T saved)
{
    switch (code) {
    case ACTIVATION_RELU:
        return d * (saved > 0 ? T(1) : T(0));
    case ACTIVATION_LEAKY_RELU:
        return d * (saved > 0 ? T(1) : T(0.01));
    case ACTIVATION_ELU:
        return d * (saved > 0 ? T(1) : saved + 1);
    case ACTIVATION_GELU: {
        const T c = gelu_tail(saved);
        const T below = T(0.5) * erfc_of(-c * T(ROOT_HALF));
        return d * fused(c, T(DENSITY) * exp_of(T(-0.5) * c * c), below);
    }
    case ACTIVATION_SILU: {
        const T c = silu_tail(saved);
        return d * (logistic(c) * fused(c, logistic(-c), T(1)));
    }
    case ACTIVATION_SOFTPLUS:
        return d * -expm1_of(-saved);
    case ACTIVATION_SIGMOID:
        return d * (saved * (1 - saved));
    case ACTIVATION_TANH:
        return d * (1 - saved * saved);
    default:
        return d;
    }
}

#endif
