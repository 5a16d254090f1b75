/* Softmax and cross-entropy: of rows side by side up to one panel of classes, else row by row.

   A row of ten classes fills a third of a vector register and its sums are chains of dependent
   adds, so rows are turned into lanes: one register holds one class of as many rows as it has
   lanes. Lanes never meet: the bits of a row do not depend on which rows share a register. */

#ifndef FN_SOFTMAX_H
#define FN_SOFTMAX_H

#include "losses.h"
#include "shuffles.h"

/* Cross-entropy of one register of rows, side by side. Turns `logits` [class][row] into their
   deltas and returns the row losses. The targets are `wanted` [class][row] where `dense`, else
   `labels`. */
INLINE vec softmax_lanes(const bool dense, real *logits, int64_t classes, ivec labels,
                         const real *wanted, vec scale)
{
    vec best = load(logits), total = zeros(), picked = zeros(), mass = zeros(), mean = zeros();
    for (int64_t j = 1; j < classes; j++)
        best = larger(load(logits + j * LANES), best); /* a NaN is left to the sums that follow */
    for (int64_t j = 0; j < classes; j++) {
        real *here = logits + j * LANES;
        const vec shifted = load(here) - best;
        if (dense) {
            const vec target = load(wanted + j * LANES);
            mass += target;
            mean += target * shifted;
        } else {
            picked = choose(whole_equal(labels, every_whole((whole)j)), shifted, picked);
        }
        const vec power = exp_of(shifted);
        total += power;
        store(here, power);
    }
    const vec share = (dense ? scale * mass : scale) / total;
    for (int64_t j = 0; j < classes; j++) {
        real *here = logits + j * LANES;
        const vec target =
            dense ? scale * load(wanted + j * LANES)
                  : choose(whole_equal(labels, every_whole((whole)j)), scale, zeros());
        store(here, load(here) * share - target);
    }
    return dense ? scale * (mass * log_of(total) - mean) : scale * (log_of(total) - picked);
}

/* Cross-entropy of up to one register of rows, one panel wide: row losses and dL/d(logits),
   weighted.

   `samples` are the rows' numbers in the data, `losses` is where the row losses go, and `share` is
   what a row of weight 1 counts. `scratch` has room for a square of panels. `delta` may be `out`.
   Lanes without a row of their own repeat the last one's work, so that nothing else is read or
   written. */
NOINLINE void softmax_group(const real *out, real *delta, real *scratch, int64_t classes,
                            const int64_t *labels, const real *targets, const real *weight,
                            const int64_t *samples, int64_t n_rows, real *losses, real share)
{
    real *const logits = scratch, *const wanted = scratch + PANEL * LANES; /* [class][row] */
    const int64_t filled = (classes + LANES - 1) & -LANES;
    int64_t held[LANES];
    vec rows[LANES], scale = every(share);
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        held[r] = least(r, n_rows - 1);

    for (int64_t first = 0; first < filled; first += LANES) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
            rows[r] = load(out + held[r] * PANEL + first);
        transposed(rows);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++)
            store(logits + (first + j) * LANES, rows[j]);
    }
    if (targets)
        for (int64_t first = 0; first < filled; first += LANES) {
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                rows[r] = load_first(targets + samples[held[r]] * classes + first, classes - first);
            transposed(rows);
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++)
                store(wanted + (first + j) * LANES, rows[j]);
        }
    if (weight) {
#define FN_WEIGHT(lane, x, y) weight[samples[held[lane]]]
        scale *= (vec){EACH_LANE(FN_WEIGHT, 0, 0)};
    }
    vec loss;
    if (targets) {
        loss = softmax_lanes(true, logits, classes, (ivec){}, wanted, scale);
    } else {
#define FN_LABEL(lane, x, y) (whole)labels[samples[held[lane]]]
        const ivec chosen = {EACH_LANE(FN_LABEL, 0, 0)};
        loss = softmax_lanes(false, logits, classes, chosen, wanted, scale);
    }

    for (int64_t j = classes; j < filled; j++)
        store(logits + j * LANES, zeros());
    for (int64_t first = 0; first < filled; first += LANES) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++)
            rows[j] = load(logits + (first + j) * LANES);
        transposed(rows);
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
            store(delta + held[r] * PANEL + first, rows[r]);
    }
    if (filled <= LANES)
        for (int64_t r = 0; r < n_rows; r++)
            store(delta + r * PANEL + LANES, zeros());
    store_some(losses, loss, below(n_rows));
}

/* The largest of a vector's lanes, in halves; what a NaN stands beside may win or not. */
INLINE real largest_lane(vec most)
{
    if (LANES > 8)
        most = larger(PICKED(most, most, EACH_LANE(FN_ROTATED, 8, 0)), most);
    if (LANES > 4)
        most = larger(PICKED(most, most, EACH_LANE(FN_ROTATED, 4, 0)), most);
    if (LANES > 2)
        most = larger(PICKED(most, most, EACH_LANE(FN_ROTATED, 2, 0)), most);
    return larger(PICKED(most, most, EACH_LANE(FN_ROTATED, 1, 0)), most)[0];
}

INLINE real cross_entropy_registers(const bool dense, const real *out, real *delta, int64_t stride,
                                    int64_t classes, int64_t label, const real *target, real scale)
{
    vec most = every(REAL(-INFINITY)), total = zeros(), mass = zeros(), mean = zeros();
    for (int64_t at = 0; at < classes; at += LANES) {
        const vec o = load(out + panel_place(at, stride)), lowest = every(REAL(-INFINITY));
        /* A NaN is left to the sums that follow. */
        most = larger(choose(below(classes - at), o, lowest), most);
    }
    const real best = largest_lane(most);
    /* Deltas may go where logits stand. */
    const real logit = dense ? 0 : out[panel_place(label, stride)];

    for (int64_t at = 0; at < classes; at += LANES) {
        const mask some = below(classes - at);
        const vec shifted = load(out + panel_place(at, stride)) - every(best);
        const vec power = choose(some, exp_of(shifted), zeros());
        store(delta + panel_place(at, stride), power);
        total += power;
        if (dense) {
            const vec t = load_first(target + at, classes - at);
            mass += t;
            mean += choose(some, t * shifted, zeros());
        }
    }
    const real whole_total = sum_of_lanes(total), whole_mass = sum_of_lanes(mass);
    const real log_total = log_of(every(whole_total))[0];
    const real share = (dense ? scale * whole_mass : scale) / whole_total;
    const real loss = dense ? scale * (whole_mass * log_total - sum_of_lanes(mean))
                            : scale * (log_total - (logit - best));
    for (int64_t at = 0; at < panels(classes) * PANEL; at += LANES) {
        real *here = delta + panel_place(at, stride);
        if (at < classes) {
            const vec d = choose(below(classes - at), load(here) * every(share), zeros());
            store(here, dense ? d - every(scale) * load_first(target + at, classes - at) : d);
        } else {
            store(here, zeros());
        }
    }
    if (!dense)
        delta[panel_place(label, stride)] -= scale;
    return loss;
}

/* Softmax and cross-entropy of one row of any length; returns scale * loss.

   The targets are the run `target` of class probabilities, or class `label` where that is NULL. The
   row stands in panels `stride` apart; scale * dL/d(logits) is written to those at `delta`, which
   may be the same, with zeros up to the end of the last. Sums go over registers, and then over
   lanes in halves. */
NOINLINE real cross_entropy_row(const real *out, real *delta, int64_t stride, int64_t classes,
                                int64_t label, const real *target, real scale)
{
    if (target)
        return cross_entropy_registers(true, out, delta, stride, classes, label, target, scale);
    return cross_entropy_registers(false, out, delta, stride, classes, label, target, scale);
}

#endif
