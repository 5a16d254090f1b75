/* Rows of a user's data on their way into panels.

   The rows of a shuffled batch lie anywhere in memory: copied one after the other, each waits for
   its own cache misses. TOGETHER rows go side by side, panel after panel, so that their misses
   overlap (784 columns, 128 rows from DRAM: 73 us one by one, 35 so; from L3 15 and 10.5). */

#ifndef FN_GATHER_H
#define FN_GATHER_H

#include "shuffles.h"

/* Rows whose panels are copied side by side. */
#define TOGETHER 8

/* Copy `count` rows, a constant; lanes after the last column stay. Whole panels are noted. */
INLINE void rows_from(int count, const real *x, int64_t columns, const int64_t *samples,
                      int64_t first, real *out, int64_t stride, real *most)
{
    const real *starts[TOGETHER];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++)
        starts[r] = x + (samples ? samples[r] : first + r) * columns;
    int64_t column = 0;
    for (; columns - column >= PANEL; column += PANEL, out += stride) {
        vec low[TOGETHER], high[TOGETHER];
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            low[r] = load(starts[r] + column);
            high[r] = load(starts[r] + column + LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            store(out + r * PANEL, low[r]);
            store(out + r * PANEL + LANES, high[r]);
        }
        if (most) {
            vec largest[2] = {load(most), load(most + LANES)};
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) {
                largest[0] = raised(largest[0], low[r]);
                largest[1] = raised(largest[1], high[r]);
            }
            store(most, largest[0]);
            store(most + LANES, largest[1]);
        }
    }
    const int64_t left = columns - column;
    if (left >= LANES) {
#pragma GCC unroll 8
        for (int r = 0; r < count; r++)
            store(out + r * PANEL, load(starts[r] + column));
        column += LANES;
        out += LANES;
    }
    if (left % LANES > 0) {
        const mask there = below(left % LANES);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++)
            store_some(out + r * PANEL, load_some(starts[r] + column, there), there);
    }
}

/* Copy rows `samples` of the C-contiguous x, or without them `n_rows` consecutive ones from `first`
   on, to panels at `out`, panels `stride` apart. `most` is a panel row of maxima to raise, or
   NULL. */
static void gather_rows(const real *x, int64_t columns, const int64_t *samples, int64_t first,
                        int64_t n_rows, real *out, int64_t stride, real *most)
{
    int64_t r = 0;
    for (; n_rows - r >= TOGETHER; r += TOGETHER)
        rows_from(TOGETHER, x, columns, samples ? samples + r : NULL, first + r, out + r * PANEL,
                  stride, most);
    for (; r < n_rows; r++)
        rows_from(1, x, columns, samples ? samples + r : NULL, first + r, out + r * PANEL, stride,
                  most);
    /* A last panel that is not full is noted as it lies, with zeros in its other lanes. */
    if (most && columns % PANEL != 0)
        note_run(most, out + columns / PANEL * stride, n_rows * PANEL);
}

/* Copy one row to its place in panels that stand `stride` apart. The last register is filled up
   with zeros; what is left of the last panel after it stays. */
static void gather(const real *sample, int64_t columns, real *out, int64_t stride)
{
    int64_t column = 0;
    for (; columns - column >= LANES; column += LANES)
        store(out + column / PANEL * stride + column % PANEL, load(sample + column));
    if (column < columns)
        store(out + column / PANEL * stride + column % PANEL,
              load_some(sample + column, below(columns - column)));
}

/* The same, with zeros up to the end of the last panel: deltas there must not count. */
static void scatter_delta(const real *values, int64_t columns, real *out, int64_t stride)
{
    gather(values, columns, out, stride);
    const int64_t tail = columns % PANEL;
    if (tail != 0)
        clear(out + columns / PANEL * stride + tail, PANEL - tail);
}

#endif
