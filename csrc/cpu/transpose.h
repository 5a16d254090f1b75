/* Transposition of tiles whose rows stand one panel apart. */

#ifndef FN_TRANSPOSE_H
#define FN_TRANSPOSE_H

#include "shuffles.h"

/* Columns up to which a block is copied element by element: 64 lane exchanges take longer. */
#define ONE_BY_ONE 2

/* target[j, i] = source[i, j] of one L x L block, L lanes of one register. */
static void transpose_block(const real *source, real *target)
{
    vec rows[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        rows[r] = load(source + r * PANEL);
    transposed(rows);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++)
        store(target + j * PANEL, rows[j]);
}

/* The same of a smaller one: source rows past `n_rows` are not read and count as zeros; columns
   past `n_columns` are left out. */
static void transpose_edge(const real *source, real *target, int64_t n_rows, int64_t n_columns)
{
    vec rows[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        rows[r] = r < n_rows ? load(source + r * PANEL) : zeros();
    transposed(rows);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++)
        if (j < n_columns)
            store(target + j * PANEL, rows[j]);
}

/* target[j, i] = source[i, j] for at most a panel of rows and columns. Lanes of the target past
   `n_rows` may get zeros, which is what fills up the last panel of a transposed weight. */
static void transpose(const real *source, real *target, int64_t n_rows, int64_t n_columns)
{
    if (n_columns <= ONE_BY_ONE) {
        for (int64_t i = 0; i < n_rows; i++)
            for (int64_t j = 0; j < n_columns; j++)
                target[j * PANEL + i] = source[i * PANEL + j];
        return;
    }
    for (int64_t i = 0; i < n_rows; i += LANES)
        for (int64_t j = 0; j < n_columns; j += LANES) {
            const real *from = source + i * PANEL + j;
            real *to = target + j * PANEL + i;
            if (i + LANES <= n_rows && j + LANES <= n_columns)
                transpose_block(from, to);
            else
                transpose_edge(from, to, n_rows - i, n_columns - j);
        }
}

#endif
