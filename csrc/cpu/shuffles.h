/* Lanes that change places: square blocks transposed in registers, sums of lanes, largest numbers.

   Element by element, with a stride between stores, a transposed copy of the weights costs
   20 to 40 % of phase B; as log2(L) rounds of lane exchanges on L x L blocks it costs 1 to 2 %. */

#ifndef FN_SHUFFLES_H
#define FN_SHUFFLES_H

#include "vectors.h"

/* Lanes of two vectors, picked by constants: the second's are numbered from LANES on. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICKED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICKED(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* A list of each(lane, x, y), one for every lane of a vector. */
#define FN_TWO(each, i, x, y) each((i), x, y), each((i) + 1, x, y)
#define FN_FOUR(each, i, x, y) FN_TWO(each, i, x, y), FN_TWO(each, (i) + 2, x, y)
#define FN_EIGHT(each, i, x, y) FN_FOUR(each, i, x, y), FN_FOUR(each, (i) + 4, x, y)
#define FN_SIXTEEN(each, i, x, y) FN_EIGHT(each, i, x, y), FN_EIGHT(each, (i) + 8, x, y)
#ifdef FN_DOUBLE
#define VECTOR_ITEMS (VECTOR_BYTES / 8) /* LANES, for #if */
#else
#define VECTOR_ITEMS (VECTOR_BYTES / 4)
#endif
#if VECTOR_ITEMS == 16
#define EACH_LANE(each, x, y) FN_SIXTEEN(each, 0, x, y)
#elif VECTOR_ITEMS == 8
#define EACH_LANE(each, x, y) FN_EIGHT(each, 0, x, y)
#elif VECTOR_ITEMS == 4
#define EACH_LANE(each, x, y) FN_FOUR(each, 0, x, y)
#else
#define EACH_LANE(each, x, y) FN_TWO(each, 0, x, y)
#endif

/* Lanes of rows (a, b) that make their new row when blocks of `step` lanes change sides. The lower
   row keeps a's even blocks and takes b's in place of its odd ones; the upper row the other halves
   (J. O. Eklundh, IEEE Trans. Computers C-21, 1972). */
#define FN_EXCHANGED(lane, step, upper)                                                            \
    (((lane) / (step)) % 2 ? (lane) - (step) + (upper) * (step) + VECTOR_ITEMS                     \
                           : (lane) + (upper) * (step))
#define FN_FITTING(step) ((step) < VECTOR_ITEMS ? (step) : 1)
#define FN_EXCHANGE(a, b, step, upper)                                                             \
    ((upper) ? PICKED(a, b, EACH_LANE(FN_EXCHANGED, FN_FITTING(step), 1))                          \
             : PICKED(a, b, EACH_LANE(FN_EXCHANGED, FN_FITTING(step), 0)))

/* `step` is a constant below LANES once this is inlined. */
INLINE vec exchanged(vec a, vec b, int step, bool upper)
{
    switch (step) {
    case 1:
        return FN_EXCHANGE(a, b, 1, upper);
    case 2:
        return FN_EXCHANGE(a, b, 2, upper);
    case 4:
        return FN_EXCHANGE(a, b, 4, upper);
    default:
        return FN_EXCHANGE(a, b, 8, upper);
    }
}

/* Exchange blocks of `width` lanes between rows that are so far apart. */
INLINE void exchange_round(vec *rows, int n_rows, int width)
{
#pragma GCC unroll 16
    for (int r = 0; r < n_rows; r++)
        if ((r / width) % 2 == 0) {
            const vec a = rows[r], b = rows[r + width];
            rows[r] = exchanged(a, b, width, false);
            rows[r + width] = exchanged(a, b, width, true);
        }
}

INLINE void exchange_rounds(vec *rows, int n_rows, int width)
{
    if (width >= 8)
        exchange_round(rows, n_rows, 8);
    if (width >= 4)
        exchange_round(rows, n_rows, 4);
    if (width >= 2)
        exchange_round(rows, n_rows, 2);
    if (width >= 1)
        exchange_round(rows, n_rows, 1);
}

/* Turn the LANES rows of a square block into its columns. */
INLINE void transposed(vec *rows) { exchange_rounds(rows, LANES, LANES / 2); }

/* The same of LANES rows of which the first LANES / 2 lanes count: the first LANES / 2 vectors
   become the columns. */
INLINE void transposed_pairs(vec *rows)
{
#define FN_JOINED(lane, x, y)                                                                      \
    ((lane) < VECTOR_ITEMS / 2 ? (lane) : (lane) + VECTOR_ITEMS / 2)
#pragma GCC unroll 8
    for (int r = 0; r < LANES / 2; r++)
        rows[r] = PICKED(rows[r], rows[r + LANES / 2], EACH_LANE(FN_JOINED, 0, 0));
    exchange_rounds(rows, LANES / 2, LANES / 4);
}

INLINE void add_neighbours(vec *rows, int n_rows, int step)
{
#pragma GCC unroll 8
    for (int i = 0; i < n_rows / 2; i++) {
        const vec a = rows[2 * i], b = rows[2 * i + 1];
        rows[i] = exchanged(a, b, step, false) + exchanged(a, b, step, true);
    }
}

/* The vector of the sums of LANES rows, neighbouring lanes added first; `rows` is used up. */
INLINE vec lane_sums(vec *rows)
{
    add_neighbours(rows, LANES, 1);
    if (LANES > 2)
        add_neighbours(rows, LANES / 2, 2);
    if (LANES > 4)
        add_neighbours(rows, LANES / 4, 4);
    if (LANES > 8)
        add_neighbours(rows, LANES / 8, 8);
    return rows[0];
}

/* `largest` raised by the bits of |value| as integers, which order like |value|, NaN above
   infinity. */
INLINE vec raised(vec largest, vec value)
{
    return of_bits(whole_larger(bits(absolute(value)), bits(largest)));
}

/* Raise the panel row of maxima at `most` by a panel row. */
INLINE void note(real *most, vec low, vec high)
{
    store(most, raised(load(most), low));
    store(most + LANES, raised(load(most + LANES), high));
}

/* Raise the panel row of maxima at `most` by `size` elements from `start` on, whole panel rows. */
static void note_run(real *most, const real *start, int64_t size)
{
    vec low = load(most), high = load(most + LANES);
    for (int64_t i = 0; i < size; i += PANEL) {
        low = raised(low, load(start + i));
        high = raised(high, load(start + i + LANES));
    }
    store(most, low);
    store(most + LANES, high);
}

#endif
