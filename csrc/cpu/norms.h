/* Batch normalisation: by the batch's statistics, or by running ones.

   A thread takes a panel of columns through all rows of the batch at once. A sum over the rows is
   four, of every fourth row each, so that additions do not wait for each other; lanes never meet.
   The lanes that fill up a last panel have weights, biases and deltas of zero. */

#ifndef FN_NORMS_H
#define FN_NORMS_H

#include "constants.h"
#include "elementwise.h"
#include "rows.h"
#include "sums.h"

/* 1 / sqrt(variance + epsilon); NaN where the variance is not finite: a quotient of 0 would hide
   it. */
INLINE vec inverse_root(vec variance, real epsilon)
{
    return every(1) / root(variance + every(epsilon)) + (variance - variance);
}

INLINE real share_of(int64_t count) { return (real)(1.0 / (double)count); }

/* The four sums of one register of columns. */
typedef struct {
    vec sum[4];
} Fours;

INLINE vec total(const Fours *s) { return (s->sum[0] + s->sum[1]) + (s->sum[2] + s->sum[3]); }

/* Calls each(k, place of row r + k) for all rows, row r + k being one of sum k. */
#define FN_FOURS(n_rows, each)                                                                     \
    do {                                                                                           \
        int64_t at = 0;                                                                            \
        for (; at + 4 <= (n_rows); at += 4) {                                                      \
            _Pragma("GCC unroll 4")                                                                \
            for (int k = 0; k < 4; k++)                                                            \
                each(k, (at + k) * PANEL);                                                         \
        }                                                                                          \
        _Pragma("GCC unroll 4")                                                                    \
        for (int k = 0; k < 3; k++)                                                                \
            if (at + k < (n_rows))                                                                 \
                each(k, (at + k) * PANEL);                                                         \
    } while (0)

/* Mean and variance of a panel's columns over all rows. */
INLINE void moments_of_panel(const real *x, int64_t n_rows, vec *mean, vec *variance)
{
    const vec share = every(share_of(n_rows));
    Fours sums[2] = {0}, squared[2] = {0};
#define EACH(k, place)                                                                             \
    _Pragma("GCC unroll 2")                                                                        \
    for (int i = 0; i < 2; i++)                                                                    \
        sums[i].sum[k] += load(x + (place) + i * LANES)
    FN_FOURS(n_rows, EACH);
#undef EACH
    for (int i = 0; i < 2; i++)
        mean[i] = total(&sums[i]) * share;
#define EACH(k, place)                                                                             \
    _Pragma("GCC unroll 2")                                                                        \
    for (int i = 0; i < 2; i++) {                                                                  \
        const vec c = load(x + (place) + i * LANES) - mean[i];                                     \
        squared[i].sum[k] = fused(c, c, squared[i].sum[k]);                                        \
    }
    FN_FOURS(n_rows, EACH);
#undef EACH
    for (int i = 0; i < 2; i++)
        variance[i] = total(&squared[i]) * share;
}

/* y = (x - mean) factor + bias of a panel's rows, and f(y) where `code` is done in passing. */
INLINE void scaled_rows(const int code, const real *x, real *out, int64_t n_rows, const vec *mean,
                        const vec *factor, const real *bias, real *most)
{
    const vec shift[2] = {load(bias), load(bias + LANES)};
    vec largest[2] = {zeros(), zeros()};
    for (int64_t at = 0; at < n_rows * PANEL; at += PANEL)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const vec c = load(x + at + i * LANES) - mean[i];
            const vec y = activated(code, fused(c, factor[i], shift[i]));
            store(out + at + i * LANES, y);
            largest[i] = raised(largest[i], y);
        }
    if (most)
        note(most, largest[0], largest[1]);
}

/* f((x - mean) factor + bias) of a panel's rows; y stays at `pre` where that is not `out`. `most`
   is where the largest |output| of each lane is noted, or NULL. */
static void normalise(int64_t code, const real *x, real *pre, real *out, int64_t n_rows,
                      const vec *mean, const vec *factor, const real *bias, real *most)
{
    real *own = is_in_passing(code) ? most : NULL;
    FN_IN_PASSING(code, scaled_rows, x, pre, n_rows, mean, factor, bias, own);
    if (!is_in_passing(code))
        activate_run(code, pre, out, n_rows * PANEL, most);
}

/* A panel's biases, or zeros. */
INLINE const real *biases_of(const real *arena, const int64_t *layer, int64_t panel)
{
    return arena + layer[AT_START] + (layer[AT_BIAS] >= 0 ? panel * PANEL : 0);
}
/* A panel's weights. */
INLINE const real *weights_of(const real *arena, const int64_t *head, const int64_t *layer,
                              int64_t panel)
{
    return arena + head[AT_PARAMETERS] + layer[AT_WEIGHT] + panel * PANEL;
}
/* What a batch normalisation keeps of a panel, a panel row each. */
enum { KEPT_MEAN, KEPT_VARIANCE, KEPT_INVERSE, KEPT_DWEIGHT, KEPT_DBIAS };
INLINE real *kept_of(real *arena, const int64_t *layer, int which, int64_t panel)
{
    return arena + layer[AT_KEPT] + (which * panels(layer[AT_OUTPUTS]) + panel) * PANEL;
}

/* Batch normalisation of one panel, all rows. */
static void batch_norm_forward(real *arena, const int64_t *head, const int64_t *layer,
                               int64_t panel, int64_t stride, int64_t batch, real *most)
{
    const int64_t here = panel * stride;
    const real *x = arena + layer[AT_IN_ROWS] + here;
    const real epsilon = arena[layer[AT_NUMBERS] + AT_EPSILON];
    const real *weight = weights_of(arena, head, layer, panel);
    vec mean[2], variance[2], factor[2];
    moments_of_panel(x, batch, mean, variance);
    for (int i = 0; i < 2; i++) {
        const vec inverse = inverse_root(variance[i], epsilon);
        factor[i] = load(weight + i * LANES) * inverse;
        store(kept_of(arena, layer, KEPT_MEAN, panel) + i * LANES, mean[i]);
        store(kept_of(arena, layer, KEPT_VARIANCE, panel) + i * LANES, variance[i]);
        store(kept_of(arena, layer, KEPT_INVERSE, panel) + i * LANES, inverse);
    }
    normalise(layer[AT_ACTIVATION], x, arena + layer[AT_PRE_ROWS] + here,
              arena + layer[AT_OUT_ROWS] + here, batch, mean, factor,
              biases_of(arena, layer, panel), most);
}

/* Factors of a panel that is normalised by running statistics. */
INLINE void running_factors(const real *arena, const int64_t *head, const int64_t *layer,
                            int64_t panel, vec *mean, vec *factor)
{
    const real *running = arena + layer[AT_RUNNING] + panel * PANEL;
    const real *variance = running + panels(layer[AT_OUTPUTS]) * PANEL;
    const real *weight = weights_of(arena, head, layer, panel);
    const real epsilon = arena[layer[AT_NUMBERS] + AT_EPSILON];
    for (int i = 0; i < 2; i++) {
        mean[i] = load(running + i * LANES);
        factor[i] = load(weight + i * LANES) *
                    inverse_root(load(variance + i * LANES), epsilon);
    }
}

/* Normalise a block of rows by running statistics; as `layer_forward`. */
static void running_norm_forward(const real *arena, const int64_t *head, const int64_t *layer,
                                 int64_t first_panel, int64_t end_panel, const real *x, real *pre,
                                 real *out, int64_t stride, int64_t n_rows, real *most)
{
    for (int64_t q = first_panel; q < end_panel; q++) {
        vec mean[2], factor[2];
        running_factors(arena, head, layer, q, mean, factor);
        normalise(layer[AT_ACTIVATION], x + q * stride, pre + q * stride, out + q * stride, n_rows,
                  mean, factor, biases_of(arena, layer, q), most);
    }
}

/* dL/d(weight) inverse and dL/d(bias) of one register of columns, over all rows. */
INLINE void norm_sums(const real *x, const real *d, int64_t batch, vec mean, vec *by_weight,
                      vec *by_bias)
{
    Fours products = {0}, sums = {0};
#define EACH(k, place)                                                                             \
    do {                                                                                           \
        const vec delta = load(d + (place));                                                       \
        sums.sum[k] += delta;                                                                      \
        products.sum[k] = fused(delta, load(x + (place)) - mean, products.sum[k]);                 \
    } while (0)
    FN_FOURS(batch, EACH);
#undef EACH
    *by_weight = total(&products);
    *by_bias = total(&sums);
}

/* What a register of deltas becomes behind a batch normalisation. */
typedef struct {
    vec mean, factor, by_weight, by_bias;
} Column;

/* Turn a panel's deltas into those of its inputs, in place, gated with `code` where that is done in
   passing. */
INLINE void batch_norm_deltas(const int code, const real *x, real *d, int64_t batch,
                              const Column *column, const real *saved, real *most)
{
    vec largest[2] = {zeros(), zeros()};
    for (int64_t at = 0; at < batch * PANEL; at += PANEL)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const int64_t place = at + i * LANES;
            const Column *c = column + i;
            const vec centred = load(x + place) - c->mean;
            vec delta = c->factor * fused(-centred, c->by_weight, load(d + place) - c->by_bias);
            delta = gated(code, delta, load(saved + place));
            store(d + place, delta);
            largest[i] = raised(largest[i], delta);
        }
    if (most)
        note(most, largest[0], largest[1]);
}

/* Carry the deltas of one panel back through a batch normalisation, all rows, and keep the
   gradients of its weights and biases. `code`, `saved`, `most` as in `layer_backward`. */
static void batch_norm_backward(real *arena, const int64_t *head, const int64_t *layer,
                                int64_t panel, int64_t stride, int64_t batch, int64_t code,
                                int64_t saved, real *most)
{
    const int64_t here = panel * stride;
    const real *x = arena + layer[AT_IN_ROWS] + here, *before = arena + saved + here;
    const real *weight = weights_of(arena, head, layer, panel);
    real *d = arena + layer[AT_OUT_DELTA] + here;
    const vec share = every(share_of(batch));
    Column column[2];
    for (int i = 0; i < 2; i++) {
        const int64_t lane = i * LANES;
        const vec mean = load(kept_of(arena, layer, KEPT_MEAN, panel) + lane);
        const vec inverse = load(kept_of(arena, layer, KEPT_INVERSE, panel) + lane);
        vec dweight, dbias;
        norm_sums(x + lane, d + lane, batch, mean, &dweight, &dbias);
        dweight *= inverse;
        store(kept_of(arena, layer, KEPT_DWEIGHT, panel) + lane, dweight);
        store(kept_of(arena, layer, KEPT_DBIAS, panel) + lane, dbias);
        column[i] = (Column){.mean = mean, .factor = load(weight + lane) * inverse,
                             .by_weight = (dweight * inverse) * share, .by_bias = dbias * share};
    }
    real *own = is_in_passing(code) ? most : NULL;
    FN_IN_PASSING(code, batch_norm_deltas, x, d, batch, column, before, own);
    if (!is_in_passing(code))
        gate_run(code, d, before, batch * PANEL, most);
}

/* Carry a block of rows back through a normalisation by running statistics, in place. */
static void running_norm_backward(real *arena, const int64_t *head, const int64_t *layer,
                                  int64_t first_panel, int64_t end_panel, int64_t stride,
                                  int64_t first, int64_t n_rows, int64_t code, int64_t saved,
                                  real *most)
{
    for (int64_t q = first_panel; q < end_panel; q++) {
        const int64_t here = q * stride + first * PANEL, size = n_rows * PANEL;
        real *d = arena + layer[AT_OUT_DELTA] + here;
        vec mean[2], factor[2];
        running_factors(arena, head, layer, q, mean, factor);
        for (int64_t at = 0; at < size; at += PANEL)
            for (int i = 0; i < 2; i++)
                store(d + at + i * LANES, factor[i] * load(d + at + i * LANES));
        gate_run(code, d, arena + saved + here, size, most);
    }
}

/* The four sums over all rows of a panel of deltas: the gradient of biases. */
static void bias_gradient(const real *d, int64_t batch, real *out)
{
    for (int i = 0; i < 2; i++, d += LANES, out += LANES) {
        Fours sums = {0};
#define EACH(k, place) sums.sum[k] += load(d + (place))
        FN_FOURS(batch, EACH);
#undef EACH
        store(out, total(&sums));
    }
}

/* Move a panel's running statistics towards those of the batch, which is of 2 rows or more. */
static void move_statistics(real *arena, const int64_t *layer, int64_t panel, int64_t batch)
{
    const vec momentum = every(arena[layer[AT_NUMBERS] + AT_MOMENTUM]);
    const vec wider = every((real)((double)batch / ((double)batch - 1.0)));
    real *running = arena + layer[AT_RUNNING] + panel * PANEL;
    for (int i = 0; i < 2; i++, running += LANES) {
        const vec mean = load(kept_of(arena, layer, KEPT_MEAN, panel) + i * LANES);
        const vec variance = load(kept_of(arena, layer, KEPT_VARIANCE, panel) + i * LANES);
        real *of_variance = running + panels(layer[AT_OUTPUTS]) * PANEL;
        const vec m = load(running), v = load(of_variance);
        store(running, fused(momentum, mean - m, m));
        store(of_variance, fused(momentum, variance * wider - v, v));
    }
}

#endif
