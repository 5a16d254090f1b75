/* Sums and maxima over runs, as vectors.

   A sum goes lane by lane in ascending order, and then over the lanes in halves: its order is a
   function of its length alone. */

#ifndef FN_SUMS_H
#define FN_SUMS_H

#include "shuffles.h"

/* For PICKED: the lane that is `by` lanes further on. */
#define FN_ROTATED(lane, by, x) (((lane) + (by)) % VECTOR_ITEMS)

/* The sum of a vector's lanes: halves are added until one lane is left. */
INLINE real sum_of_lanes(vec total)
{
    if (LANES > 8)
        total += PICKED(total, total, EACH_LANE(FN_ROTATED, 8, 0));
    if (LANES > 4)
        total += PICKED(total, total, EACH_LANE(FN_ROTATED, 4, 0));
    if (LANES > 2)
        total += PICKED(total, total, EACH_LANE(FN_ROTATED, 2, 0));
    total += PICKED(total, total, EACH_LANE(FN_ROTATED, 1, 0));
    return total[0];
}

/* Lanes of the sum of row losses, on every target. */
#define LOSS_LANES 8

/* The float64 sum of `count` numbers: lane k has every 8th from the k-th on. */
NOINLINE double sum_of_rows(const real *first, int64_t count)
{
    double total[LOSS_LANES] = {0};
    int64_t at = 0;
    for (; at + LOSS_LANES <= count; at += LOSS_LANES)
        for (int k = 0; k < LOSS_LANES; k++)
            total[k] += (double)first[at + k];
    for (int k = 0; at + k < count; k++)
        total[k] += (double)first[at + k];
    for (int half = LOSS_LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++)
            total[k] += total[k + half];
    return total[0];
}

/* The sum of the squares of two runs of whole panel rows. */
NOINLINE real squares(const real *first, int64_t size, const real *other, int64_t other_size)
{
    vec low = zeros(), high = zeros();
    for (int run = 0; run < 2; run++) {
        const real *values = run == 0 ? first : other;
        const int64_t count = run == 0 ? size : other_size;
        for (int64_t at = 0; at < count; at += PANEL) {
            const vec a = load(values + at), b = load(values + at + LANES);
            low += a * a;
            high += b * b;
        }
    }
    return sum_of_lanes(low + high);
}

/* The bits of the largest |x| of a run, as an integer. Integers order them like the numbers, with
   infinity and then NaN above. */
NOINLINE whole largest_bits(const real *first, int64_t size)
{
    vec low = zeros(), high = zeros();
    whole largest = 0;
    int64_t at = 0;
    for (; at + PANEL <= size; at += PANEL) {
        low = raised(low, load(first + at));
        high = raised(high, load(first + at + LANES));
    }
    for (; at < size; at += LANES)
        low = raised(low, load_some(first + at, below(size - at)));
    const ivec found = bits(raised(low, high));
    for (int i = 0; i < LANES; i++)
        largest = found[i] > largest ? found[i] : largest;
    return largest;
}

#endif
