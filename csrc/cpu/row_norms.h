/* Layer normalisation: rows by the statistics of their own features.

   A row's sum goes lane by lane over its panels, in ascending order, and then over the lanes in
   halves: its order is a function of the features alone. Some rows go side by side, so that sums do
   not wait for each other. The lanes that fill up a last panel count for nothing, and have deltas
   of zero before and behind. */

#ifndef FN_ROW_NORMS_H
#define FN_ROW_NORMS_H

#include "norms.h"

/* Rows that go side by side, forward, and back, where each has two pairs of sums. */
#define NORM_ROWS 4
#define NORM_ROWS_BACK (VECTOR_BYTES < 64 ? 2 : 4)

/* The lanes that count of a panel of so many features. */
typedef struct {
    mask half[2];
} Lanes;

INLINE Lanes lanes_of(int64_t features, int64_t panel)
{
    const int64_t left = features - panel * PANEL;
    return (Lanes){{below(left), below(left - LANES)}};
}

/* The sum over both registers of a row's sums, in every lane. */
INLINE vec sum_of_row(const vec *sums) { return every(sum_of_lanes(sums[0] + sums[1])); }

/* A register of a row around the row's mean; 0 where no lane counts. */
INLINE vec centred(const real *place, vec mean, mask there)
{
    return choose(there, load(place) - mean, zeros());
}

/* Mean and variance of neighbouring rows, in every lane. */
INLINE void moments_of_rows(const int rows, const real *x, int64_t stride, int64_t features,
                            vec *mean, vec *variance)
{
    const vec share = every(share_of(features));
    vec sums[NORM_ROWS][2], squared[NORM_ROWS][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = squared[r][0] = squared[r][1] = zeros();
    for (int64_t q = 0; q < panels(features); q++) {
        const Lanes there = lanes_of(features, q);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++)
                sums[r][i] += centred(x + q * stride + r * PANEL + i * LANES, zeros(),
                                      there.half[i]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        mean[r] = sum_of_row(sums[r]) * share;
    for (int64_t q = 0; q < panels(features); q++) {
        const Lanes there = lanes_of(features, q);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const vec c =
                    centred(x + q * stride + r * PANEL + i * LANES, mean[r], there.half[i]);
                squared[r][i] = fused(c, c, squared[r][i]);
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        variance[r] = sum_of_row(squared[r]) * share;
}

/* Where a block of rows stands, and what its layer is. */
typedef struct {
    const real *arena;
    const int64_t *head, *layer;
    int64_t stride;
    real *most;
} Rows;

/* y = (x - mean) (weight inverse) + bias of neighbouring rows, and f(y) where `code` is done in
   passing. Means and inverse roots go to `kept`, unless NULL. */
INLINE void layer_norm_rows(const int rows, const int code, const Rows *b, const real *x, real *out,
                            real *kept)
{
    const int64_t *layer = b->layer, features = layer[AT_OUTPUTS];
    const real epsilon = b->arena[layer[AT_NUMBERS] + AT_EPSILON];
    vec mean[NORM_ROWS], variance[NORM_ROWS], inverse[NORM_ROWS], largest[2] = {zeros(), zeros()};
    moments_of_rows(rows, x, b->stride, features, mean, variance);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        inverse[r] = inverse_root(variance[r], epsilon);
        if (kept) {
            kept[r] = mean[r][0];
            kept[b->head[AT_CAPACITY] + r] = inverse[r][0];
        }
    }
    for (int64_t q = 0; q < panels(features); q++) {
        const Lanes there = lanes_of(features, q);
        const real *weight = weights_of(b->arena, b->head, layer, q);
        const real *bias = biases_of(b->arena, layer, q);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const vec w = load(weight + i * LANES), shift = load(bias + i * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const int64_t place = q * b->stride + r * PANEL + i * LANES;
                const vec c = centred(x + place, mean[r], there.half[i]);
                const vec y = activated(code, fused(c, w * inverse[r], shift));
                store(out + place, y);
                largest[i] = raised(largest[i], y);
            }
        }
    }
    if (b->most)
        note(b->most, largest[0], largest[1]);
}

INLINE void layer_norm_block(const int code, const Rows *b, const real *x, real *out,
                             int64_t n_rows, real *kept)
{
    int64_t r = 0;
    for (; n_rows - r >= NORM_ROWS; r += NORM_ROWS)
        layer_norm_rows(NORM_ROWS, code, b, x + r * PANEL, out + r * PANEL, kept ? kept + r : NULL);
    for (; r < n_rows; r++)
        layer_norm_rows(1, code, b, x + r * PANEL, out + r * PANEL, kept ? kept + r : NULL);
}

/* Normalise a block of rows; as `layer_forward`, of all panels. What the way back needs is kept
   from `kept` on, unless that is NULL. */
static void layer_norm_forward(const real *arena, const int64_t *head, const int64_t *layer,
                               const real *x, real *pre, real *out, int64_t stride, int64_t n_rows,
                               real *kept, real *most)
{
    const int64_t code = layer[AT_ACTIVATION];
    const Rows block = {arena, head, layer, stride, is_in_passing(code) ? most : NULL};
    FN_IN_PASSING(code, layer_norm_block, &block, x, pre, n_rows, kept);
    if (!is_in_passing(code))
        for (int64_t q = 0; q < panels(layer[AT_OUTPUTS]); q++)
            activate_run(code, pre + q * stride, out + q * stride, n_rows * PANEL, most);
}

/* dx = inverse (g - mean(g) - xhat mean(g xhat)) of neighbouring rows, with g = weight d and
   xhat = (x - mean) inverse, gated with `code` where that is done in passing. */
INLINE void layer_norm_deltas(const int rows, const int code, const Rows *b, const real *x,
                              const real *d, const real *saved, real *out, const real *kept)
{
    const int64_t features = b->layer[AT_OUTPUTS], stride = b->stride;
    const vec share = every(share_of(features));
    vec mean[NORM_ROWS_BACK], inverse[NORM_ROWS_BACK], largest[2] = {zeros(), zeros()};
    vec sums[NORM_ROWS_BACK][2], products[NORM_ROWS_BACK][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        mean[r] = every(kept[r]);
        inverse[r] = every(kept[b->head[AT_CAPACITY] + r]);
        sums[r][0] = sums[r][1] = products[r][0] = products[r][1] = zeros();
    }
    for (int64_t q = 0; q < panels(features); q++) {
        const Lanes there = lanes_of(features, q);
        const real *weight = weights_of(b->arena, b->head, b->layer, q);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const vec w = load(weight + i * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const int64_t place = q * stride + r * PANEL + i * LANES;
                const vec xhat = centred(x + place, mean[r], there.half[i]) * inverse[r];
                const vec g = w * load(d + place);
                sums[r][i] += g;
                products[r][i] = fused(g, xhat, products[r][i]);
            }
        }
    }
    vec mean_g[NORM_ROWS_BACK], mean_gx[NORM_ROWS_BACK];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        mean_g[r] = sum_of_row(sums[r]) * share;
        mean_gx[r] = sum_of_row(products[r]) * share;
    }
    for (int64_t q = 0; q < panels(features); q++) {
        const Lanes there = lanes_of(features, q);
        const real *weight = weights_of(b->arena, b->head, b->layer, q);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const vec w = load(weight + i * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const int64_t place = q * stride + r * PANEL + i * LANES;
                const vec xhat = centred(x + place, mean[r], there.half[i]) * inverse[r];
                const vec rest = fused(-xhat, mean_gx[r], w * load(d + place) - mean_g[r]);
                const vec delta = choose(there.half[i], inverse[r] * rest, zeros());
                const vec value = gated(code, delta, load(saved + place));
                store(out + place, value);
                largest[i] = raised(largest[i], value);
            }
        }
    }
    if (b->most)
        note(b->most, largest[0], largest[1]);
}

INLINE void layer_norm_deltas_block(const int code, const Rows *b, const real *x, const real *d,
                                    const real *saved, real *out, int64_t n_rows, const real *kept)
{
    int64_t r = 0;
    for (; n_rows - r >= NORM_ROWS_BACK; r += NORM_ROWS_BACK)
        layer_norm_deltas(NORM_ROWS_BACK, code, b, x + r * PANEL, d + r * PANEL, saved + r * PANEL,
                          out + r * PANEL, kept + r);
    for (; r < n_rows; r++)
        layer_norm_deltas(1, code, b, x + r * PANEL, d + r * PANEL, saved + r * PANEL,
                          out + r * PANEL, kept + r);
}

/* Carry a block of rows back through a layer normalisation; as `layer_backward`, of all panels. */
static void layer_norm_backward(real *arena, const int64_t *head, const int64_t *layer,
                                int64_t stride, int64_t first, int64_t n_rows, int64_t code,
                                int64_t saved, real *most)
{
    const int64_t offset = first * PANEL;
    const Rows block = {arena, head, layer, stride, is_in_passing(code) ? most : NULL};
    const real *before = arena + saved + offset;
    real *out = arena + layer[AT_IN_DELTA] + offset;
    FN_IN_PASSING(code, layer_norm_deltas_block, &block, arena + layer[AT_IN_ROWS] + offset,
                  arena + layer[AT_OUT_DELTA] + offset, before, out, n_rows,
                  arena + layer[AT_KEPT] + first);
    if (!is_in_passing(code))
        for (int64_t q = 0; q < panels(layer[AT_OUTPUTS]); q++)
            gate_run(code, out + q * stride, before + q * stride, n_rows * PANEL, most);
}

/* Gradients of a panel's weights and biases, four sums over all rows. `columns` count. */
static void layer_norm_gradient(const real *arena, const int64_t *head, const int64_t *layer,
                                const real *x, const real *d, int64_t columns, int64_t batch,
                                real *by_weight, real *by_bias)
{
    const real *means = arena + layer[AT_KEPT], *inverses = means + head[AT_CAPACITY];
    for (int64_t lane = 0; lane < PANEL; lane += LANES) {
        const mask there = below(columns - lane);
        Fours products = {0}, sums = {0};
#define EACH(k, place)                                                                             \
    do {                                                                                           \
        const int64_t row = (place) / PANEL;                                                       \
        const vec delta = load(d + lane + (place));                                                \
        const vec c = centred(x + lane + (place), every(means[row]), there);                       \
        sums.sum[k] += delta;                                                                      \
        products.sum[k] = fused(delta, c * every(inverses[row]), products.sum[k]);                 \
    } while (0)
        FN_FOURS(batch, EACH);
#undef EACH
        if (by_weight)
            store(by_weight + lane, total(&products));
        if (by_bias)
            store(by_bias + lane, total(&sums));
    }
}

#endif
