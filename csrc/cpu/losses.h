/* Losses of single rows: loss and dL/d(output) in one visit. */

#ifndef FN_LOSSES_H
#define FN_LOSSES_H

#include "constants.h"
#include "exponentials.h"
#include "sums.h"

/* What a row's loss counts in its batch: weight / B; no weights mean weight 1. `share` is 1 / B. */
INLINE real row_scale(const real *weight, int64_t sample, real share)
{
    return weight ? share * weight[sample] : share;
}

/* Any loss but cross-entropy of outputs o and targets y: l, and dl/do in `slope`. */
INLINE vec loss_of(const int code, vec o, vec y, vec *slope)
{
    const vec one = every(1), two = every(2), half = every(REAL(0.5)), r = o - y;
    switch (code) {
    case LOSS_MSE:
        *slope = two * r;
        return r * r;
    case LOSS_MAE:
        *slope = choose(greater(r, zeros()), one, choose(less(r, zeros()), -one, r));
        return absolute(r);
    case LOSS_HUBER: {
        const vec size = absolute(r);
        const mask outside = greater(size, one);
        *slope = choose(outside, choose(greater(r, zeros()), one, -one), r);
        return choose(outside, size - half, half * r * r);
    }
    case LOSS_BINARY_CROSS_ENTROPY:
        *slope = sigmoid(o) - y;
        return not_below(o, 0) - o * y + log1p_unit(decay(-absolute(o)));
    default: { /* Poisson */
        const vec e = exp_of(o);
        *slope = e - y;
        return e - y * o;
    }
    }
}

/* The first `count` lanes, and zeros in the others, which are not read. */
INLINE vec load_first(const real *place, int64_t count)
{
    return count >= LANES ? load(place) : load_some(place, below(count));
}

/* Where output `at` of a row stands, from the row's start, in panels that are `stride` apart. */
INLINE int64_t panel_place(int64_t at, int64_t stride)
{
    return (int64_t)((uint64_t)at / PANEL) * stride + (at & (PANEL - 1));
}

/* Any loss of one row but cross-entropy, a mean over its outputs; returns scale * loss.

   The outputs stand in panels from `out` on, `stride` apart; scale * dL/d(output) is written to
   those at `delta`, which may be the same, with zeros up to the end of the last. The sum goes over
   registers, and then over lanes in halves: its order is that of the number of outputs. `coming` is
   the target of the row after this one: rows of a shuffled batch lie anywhere, so each is asked for
   a row ahead. */
INLINE real values_of_row(const int code, const real *out, real *delta, int64_t stride,
                          const real *target, const real *coming, int64_t outputs, real scale)
{
    const real factor = scale / (real)outputs;
    const vec factors = every(factor);
    vec total = zeros();
    for (int64_t at = 0; at < outputs; at += LANES) {
        const int64_t place = panel_place(at, stride);
        const mask some = below(outputs - at);
        const vec o = load(out + place), y = load_first(target + at, outputs - at);
        vec slope;
        __builtin_prefetch(coming + at);
        const vec loss = loss_of(code, o, y, &slope);
        store(delta + place, choose(some, factors * slope, zeros()));
        total += choose(some, loss, zeros());
    }
    /* Where the last panel is at most half full, its other half was not visited. */
    const int64_t last = panel_place((outputs - 1) & -LANES, stride);
    if (((outputs - 1) & LANES) == 0)
        store(delta + last + LANES, zeros());
    return factor * sum_of_lanes(total);
}

/* Calls each(LOSS_...) for the code that is given, as a constant. */
#define FN_VALUES(code, each)                                                                      \
    switch (code) {                                                                                \
    case LOSS_MSE:                                                                                 \
        each(LOSS_MSE);                                                                            \
        break;                                                                                     \
    case LOSS_MAE:                                                                                 \
        each(LOSS_MAE);                                                                            \
        break;                                                                                     \
    case LOSS_HUBER:                                                                               \
        each(LOSS_HUBER);                                                                          \
        break;                                                                                     \
    case LOSS_BINARY_CROSS_ENTROPY:                                                                \
        each(LOSS_BINARY_CROSS_ENTROPY);                                                           \
        break;                                                                                     \
    case LOSS_POISSON:                                                                             \
        each(LOSS_POISSON);                                                                        \
        break;                                                                                     \
    }

/* The same of any code. */
NOINLINE real values_row(int64_t code, const real *out, real *delta, int64_t stride,
                         const real *target, int64_t outputs, real scale)
{
#define EACH(name) return values_of_row(name, out, delta, stride, target, target, outputs, scale)
    FN_VALUES(code, EACH)
#undef EACH
    return 0;
}

#endif
