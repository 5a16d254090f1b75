/* Products of a block of rows with neighbouring weight panels, in slices of the sums' length. */

#ifndef FN_PRODUCTS_H
#define FN_PRODUCTS_H

#include "constants.h"
#include "low.h"

/* Length of the partial sums of one pass: chunks of about equal length, in whole panels. Rows that
   go through in one pass take all of it: no panel is read twice. */
INLINE int64_t chunk_depth(int64_t depth, int64_t n_rows)
{
    const int64_t most = AT_CHUNK_BYTES / (int64_t)sizeof(real);
    const bool one_pass = n_rows == 1 || n_rows == 2 || n_rows == 4;
    const int64_t chunks = one_pass ? 1 : (depth + most - 1) / most;
    return panels((depth + chunks - 1) / chunks) * PANEL;
}

/* Elements that a product asks for of the next weight panel, each few steps of k: once through a
   block of rows it has then asked for all of it. 0 for layers that stay in cache. */
INLINE int64_t fetch_step(int64_t inputs, int64_t outputs, int64_t n_rows)
{
    if (inputs * outputs * (int64_t)sizeof(real) < AT_FAR_WEIGHTS)
        return 0;
    return TALL * UNROLL * PANEL / n_rows;
}

/* Panels, of those left, that are computed side by side. */
INLINE int64_t group_of(int64_t left) { return left >= GROUP ? GROUP : left >= 2 ? 2 : 1; }

/* The arguments of `panels_product`, and how far along its rows it is. */
typedef struct {
    int64_t count;
    int epilogue;
    real *out;
    int64_t stride;
    const real *start;
    int64_t start_step, start_panel;
    const real *a, *b;
    int64_t b_panel, depth;
    const real *extra;
    real *most;
} Group;

/* Compute `rows` rows of a group, `side` panels side by side, and go on behind them. */
INLINE void low_rows(int rows, int side, Group *g)
{
    for (int64_t i = 0; i < g->count; i += side)
        low_product(rows, side, g->epilogue, g->out + i * g->stride, g->stride,
                    g->start + i * g->start_panel, g->start_step, g->start_panel, g->a, g->stride,
                    g->b + i * g->b_panel, g->b_panel, g->depth, g->extra + i * g->stride, g->most);
    g->out += rows * PANEL;
    g->extra += rows * PANEL;
    g->a += rows * PANEL;
    g->start += rows * g->start_step;
}

/* Compute `product_rows` of 1, 2 or 4 neighbouring panels, of which `columns` columns count.
   `start`, b and the places at `out` and `extra` go on `start_panel`, `b_panel` and `stride`
   elements a panel. */
NOINLINE void panels_product(int64_t count, int64_t columns, int epilogue, real *out,
                             int64_t stride, const real *start, int64_t start_step,
                             int64_t start_panel, const real *a, const real *b, int64_t b_panel,
                             int64_t depth, int64_t n_rows, const real *extra, real *most,
                             int64_t ahead_step)
{
    const int64_t tall = count > 1 ? n_rows - n_rows % TALL : n_rows;
    if (tall > 0)
        for (int64_t i = 0; i < count; i++)
            product_rows(columns - i * PANEL, epilogue, out + i * stride, start + i * start_panel,
                         start_step, a, stride, b + i * b_panel, depth, tall, extra + i * stride,
                         most, b + (i + 1) * b_panel, ahead_step);
    const int64_t skip = tall * PANEL, left = n_rows - tall;
    Group g = {count, epilogue, out + skip, stride, start + tall * start_step, start_step,
               start_panel, a + skip, b, b_panel, depth, extra + skip, most};
    if (left >= 4) /* 16 registers hold the sums of one panel only */
        low_rows(4, TALL < 8 ? 1 : 2, &g);
    if (left % 4 >= 2)
        low_rows(2, 2, &g);
    if (left % 2 == 1) {
        if (count == GROUP)
            low_rows(1, 4, &g);
        else
            low_rows(1, 2, &g);
    }
}

#endif
