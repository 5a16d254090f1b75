/* Products of few rows: several panels side by side, and the weights as they lie.

   A tile of one row has two chains of sums, and a fused multiply-add waits four cycles for the one
   before it: one row alone would run at a quarter of the speed. `low_product` gives a core eight
   chains or more by taking 4 or 2 panels at once; each sum keeps its order, and the bits it has in
   `product_rows`. `low_back` is the data gradient from the weights themselves: the transposed copy
   that tall tiles need costs one row more memory traffic than everything else. */

#ifndef FN_LOW_H
#define FN_LOW_H

#include "tile.h"

/* Panels that are computed side by side, at most: two vectors each, they fill both multipliers of a
   core through the four cycles that each multiply-add takes. */
#define GROUP 4
/* Rows that `low_back` takes at most: the sums of one register must be of whole inputs. */
#define BACK_ROWS (VECTOR_BYTES >= 32 ? 4 : 2)

/* Compute what `product_rows` does for whole neighbouring panels, to the same bits: `rows` and
   `count` of panels are constants, and of the last panel, too, all columns are computed.

   out_panel, start_panel, b_panel : elements from one panel to the next, of `out` and `extra`, of
       `start`, and of B. */
INLINE void low_product(int rows, int count, int epilogue, real *out, int64_t out_panel,
                        const real *start, int64_t start_step, int64_t start_panel, const real *a,
                        int64_t a_panel, const real *b, int64_t b_panel, int64_t depth,
                        const real *extra, real *most)
{
    vec sums[GROUP][4][2];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                sums[i][r][h] = load(start + i * start_panel + r * start_step + h * LANES);
#pragma GCC unroll 1
    for (int64_t left = depth; left > 0; left -= PANEL, a += a_panel) {
        const int64_t steps = least(left, PANEL);
#pragma GCC unroll 1
        for (int64_t k = 0; k < steps; k++, b += PANEL) {
            vec values[4];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                values[r] = every(a[r * PANEL + k]);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    const vec factor = load(b + i * b_panel + h * LANES);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++)
                        sums[i][r][h] = added(sums[i][r][h], values[r], factor);
                }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        finish_rows(rows, 2, sums[i], epilogue, out + i * out_panel, extra + i * out_panel, most);
}

/* Add a panel of outputs to the sums of `low_back`; `there` of its halves' lanes count. */
INLINE void back_step(int rows, bool all, const mask *there, const real *delta, const real *w,
                      int64_t ahead, vec *sums)
{
    const int block = LANES / rows;
    if (ahead != 0) {
#pragma GCC unroll 16
        for (int i = 0; i < block; i++) {
            __builtin_prefetch(w + i * PANEL + ahead, 0, 2);
            __builtin_prefetch(w + i * PANEL + LANES + ahead, 0, 2);
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        vec deltas[4];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const real *place = delta + r * PANEL + h * LANES;
            deltas[r] = all ? load(place) : load_some(place, there[h]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < block; i++) {
            const vec weights = load(w + i * PANEL + h * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sums[r * block + i] = added(sums[r * block + i], deltas[r], weights);
        }
    }
}

/* Compute out[r, i] = sum_o delta[r, o] W[i, o] for as many i as sums fit. Each register has the
   sums of one row and input, lane by lane over the panels of outputs; at the end neighbouring lanes
   are added, then pairs of them, and so on. L sums fill one register of L.

   rows : a constant. 1: L inputs. 2 or BACK_ROWS: L/2, L/4 inputs. The order of a sum is the same.
   delta, w : dL/dz, and the first input's weights; panels of outputs are `delta_panel` and
       `w_panel` elements apart.
   inputs : that count; zeros are stored for the others, whose weights are read.
   outputs : columns that count: no delta after them is read.
   ahead : elements after its own weights of the cache lines that are asked for, or 0. */
INLINE void low_back(int rows, real *out, const real *delta, int64_t delta_panel, const real *w,
                     int64_t w_panel, int64_t inputs, int64_t outputs, int64_t ahead)
{
    const int block = LANES / rows;
    vec sums[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        sums[i] = zeros();
#pragma GCC unroll 1
    for (; outputs >= PANEL; outputs -= PANEL) {
        back_step(rows, true, NULL, delta, w, ahead, sums);
        delta += delta_panel;
        w += w_panel;
    }
    if (outputs > 0) {
        const mask there[2] = {below(outputs), below(outputs - LANES)};
        back_step(rows, false, there, delta, w, ahead, sums);
    }
    real totals[LANES];
    store(totals, lane_sums(sums));
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < block; i++)
            out[r * PANEL + i] = i < inputs ? totals[r * block + i] : 0;
}

#endif
