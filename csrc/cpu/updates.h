/* Optimizer updates over whole panel rows, in place; formulas in fastneuron/optimizers.py. */

#ifndef FN_UPDATES_H
#define FN_UPDATES_H

#include "constants.h"
#include "vectors.h"

/* Rows of deltas that fit in registers beside the constants of an update. */
#define HELD_ROWS 4

/* What one step's formulas take, in every lane. */
typedef struct {
    vec scale, l2, rate, shrink, beta1, rest1, beta2, rest2, correction, epsilon;
} Step;

INLINE Step step_of(const double *scalars, double clip, int64_t decays)
{
    const double beta1 = scalars[OPTIMIZERS_BETA1], beta2 = scalars[OPTIMIZERS_BETA2];
    return (Step){
        .scale = every(REAL(clip)),
        .l2 = every(REAL(decays ? scalars[OPTIMIZERS_L2] : 0)),
        .rate = every(REAL(scalars[OPTIMIZERS_RATE])),
        .shrink = every(REAL(decays ? scalars[OPTIMIZERS_SHRINK] : 0)),
        .beta1 = every(REAL(beta1)),
        .rest1 = every(REAL(1.0 - beta1)),
        .beta2 = every(REAL(beta2)),
        .rest2 = every(REAL(1.0 - beta2)),
        .correction = every(REAL(scalars[OPTIMIZERS_CORRECTION])),
        .epsilon = every(REAL(scalars[OPTIMIZERS_EPSILON])),
    };
}

/* Moments that a kind has: RMSprop's only one, of squares, comes in m. */
INLINE int moments_of(const int kind)
{
    return kind == UPDATE_SGD ? 0 : kind == UPDATE_ADAM ? 2 : 1;
}

/* Update one register of parameters, and of the moments that the kind has, from its gradients. */
INLINE void update_vector(const int kind, const Step *step, real *p_at, vec g, real *m_at,
                          real *v_at)
{
    const vec p = load(p_at);
    const vec slope = step->scale * g + step->l2 * p; /* of clipped gradient and L2 decay */
    switch (kind) {
    case UPDATE_SGD:
        store(p_at, p - step->rate * slope);
        break;
    case UPDATE_MOMENTUM: {
        const vec m = step->beta1 * load(m_at) + slope;
        store(p_at, p - step->rate * m);
        store(m_at, m);
        break;
    }
    case UPDATE_NESTEROV: {
        const vec m = step->beta1 * load(m_at) + slope;
        store(p_at, p - step->rate * (slope + step->beta1 * m));
        store(m_at, m);
        break;
    }
    case UPDATE_ADAM: {
        const vec m = step->beta1 * load(m_at) + step->rest1 * slope;
        const vec v = step->beta2 * load(v_at) + step->rest2 * (slope * slope);
        const vec size = root(v) * step->correction + step->epsilon;
        store(p_at, p - step->shrink * p - step->rate * m / size);
        store(m_at, m);
        store(v_at, v);
        break;
    }
    default: {
        const vec v = step->beta2 * load(m_at) + step->rest2 * (slope * slope);
        store(p_at, p - step->rate * slope / (root(v) + step->epsilon));
        store(m_at, v);
    }
    }
}

/* Calls each(UPDATE_...) for the kind that is given, as a constant. */
#define FN_UPDATE(kind, each)                                                                      \
    switch (kind) {                                                                                \
    case UPDATE_SGD:                                                                               \
        each(UPDATE_SGD);                                                                          \
        break;                                                                                     \
    case UPDATE_MOMENTUM:                                                                          \
        each(UPDATE_MOMENTUM);                                                                     \
        break;                                                                                     \
    case UPDATE_NESTEROV:                                                                          \
        each(UPDATE_NESTEROV);                                                                     \
        break;                                                                                     \
    case UPDATE_ADAM:                                                                              \
        each(UPDATE_ADAM);                                                                         \
        break;                                                                                     \
    case UPDATE_RMSPROP:                                                                           \
        each(UPDATE_RMSPROP);                                                                      \
        break;                                                                                     \
    }

/* Update parameters p from gradients g; m and v are the moments that the kind has, else unused. The
   runs are whole panel rows and do not overlap. `scalars` is one step's row of Optimizer.scalars;
   `decays` is 0 for biases that weight decay leaves alone. Where the panel has at most half its
   `columns`, the other half, all zeros, is left alone.

   Adam takes 12 cycles a vector of AVX-512 for its root and division. */
NOINLINE void update(int64_t kind, real *p, const real *g, real *m, real *v, int64_t size,
                     const double *scalars, double clip, int64_t decays, int64_t columns)
{
    const Step step = step_of(scalars, clip, decays);
    const int64_t stride = columns <= LANES ? PANEL : LANES;
#define EACH(name)                                                                                 \
    _Pragma("GCC unroll 2")                                                                        \
    for (int64_t i = 0; i < size; i += stride)                                                     \
        update_vector(name, &step, p + i, load(g + i), m + i, v + i)
    FN_UPDATE(kind, EACH)
#undef EACH
}

INLINE void ask_ahead(const real *run)
{
#pragma GCC unroll 4
    for (int line = 0; line < PANEL; line += LINE)
        __builtin_prefetch(run + line, 1, 3);
}

/* update_by_rows of one kind, and of `held` rows, which stay in registers, or of n_rows where that
   is 0. */
INLINE void rows_update(const int kind, const int held, real *p, real *m, real *v, int64_t size,
                        const real *a, int64_t a_step, const real *b, int64_t n_rows,
                        const double *scalars, int64_t decays, int64_t columns, int64_t ahead)
{
    const Step step = step_of(scalars, 1.0, decays);
    vec low[HELD_ROWS], high[HELD_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < held; r++) {
        low[r] = load(b + r * PANEL);
        high[r] = load(b + r * PANEL + LANES);
    }
    for (int64_t i = 0; i < size; i += PANEL, a++) {
        vec slope_low = zeros(), slope_high = zeros();
#pragma GCC unroll 4
        for (int r = 0; r < held; r++) {
            const vec x = every(a[r * a_step]);
            slope_low = fused(x, low[r], slope_low);
            slope_high = fused(x, high[r], slope_high);
        }
        if (held == 0)
            for (int64_t r = 0; r < n_rows; r++) {
                const vec x = every(a[r * a_step]);
                slope_low = fused(x, load(b + r * PANEL), slope_low);
                slope_high = fused(x, load(b + r * PANEL + LANES), slope_high);
            }
        if (ahead != 0) {
            ask_ahead(p + i + ahead);
            if (moments_of(kind) > 0)
                ask_ahead(m + i + ahead);
            if (moments_of(kind) > 1)
                ask_ahead(v + i + ahead);
        }
        update_vector(kind, &step, p + i, slope_low, m + i, v + i);
        if (columns > LANES)
            update_vector(kind, &step, p + i + LANES, slope_high, m + i + LANES, v + i + LANES);
    }
}

/* Like `update`, of gradients that are computed on the way and never stored. Row k of the
   parameters has the gradient sum_r a[r * a_step + k] b[r], b panel rows: the sums of a
   product_batch that starts from zeros, to the bit. `ahead` is how many elements further on
   parameters and moments are asked for, or 0. */
NOINLINE void update_by_rows(int64_t kind, real *p, real *m, real *v, int64_t size, const real *a,
                             int64_t a_step, const real *b, int64_t n_rows, const double *scalars,
                             int64_t decays, int64_t columns, int64_t ahead)
{
#define ROWS(name, held)                                                                           \
    rows_update(name, held, p, m, v, size, a, a_step, b, n_rows, scalars, decays, columns, ahead)
#define EACH(name)                                                                                 \
    switch (n_rows) {                                                                              \
    case 1:                                                                                        \
        ROWS(name, 1);                                                                             \
        break;                                                                                     \
    case 2:                                                                                        \
        ROWS(name, 2);                                                                             \
        break;                                                                                     \
    case 3:                                                                                        \
        ROWS(name, 3);                                                                             \
        break;                                                                                     \
    case 4:                                                                                        \
        ROWS(name, 4);                                                                             \
        break;                                                                                     \
    default:                                                                                       \
        ROWS(name, 0);                                                                             \
    }
    FN_UPDATE(kind, EACH)
#undef EACH
#undef ROWS
}

#endif
