/* What this core can do at most: multiply-adds in registers, and bytes from each level of memory.

   Measured, never looked up: a kernel is judged by what the machine does beside it. */

#ifndef FN_CEILINGS_H
#define FN_CEILINGS_H

#include "vectors.h"

/* Independent sums: above latency times units of any processor (4 x 2), below 16 registers. */
#define CHAINS 12

/* CHAINS x LANES x turns multiply-adds on the numbers at `out`, which stay within 1 to 2. */
static void multiply_adds(real *out, int64_t turns)
{
    const vec factor = every(REAL(0.5)), summand = every(REAL(0.75));
    vec sums[CHAINS];
    for (int i = 0; i < CHAINS; i++) /* each starts elsewhere: equal ones would be computed once */
        sums[i] = load(out + i * LANES);
    for (int64_t turn = 0; turn < turns; turn++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sums[i] = fused(sums[i], factor, summand);
    for (int i = 0; i < CHAINS; i++)
        store(out + i * LANES, sums[i]);
}

/* Sums that one pass over memory adds up side by side. */
#define STREAMS 8

/* Read `size` numbers `turns` times, whole multiples of STREAMS vectors, and leave their sums. */
static void read_all(const real *x, int64_t size, int64_t turns, real *out)
{
    vec sums[STREAMS] = {{0}};
    for (int64_t turn = 0; turn < turns; turn++)
        for (int64_t at = 0; at + STREAMS * LANES <= size; at += STREAMS * LANES)
#pragma GCC unroll 8
            for (int i = 0; i < STREAMS; i++)
                sums[i] += load(x + at + i * LANES);
    for (int i = 0; i < STREAMS; i++)
        store(out + i * LANES, sums[i]);
}

/* y = x `turns` times, whole multiples of STREAMS vectors. */
static void copy_all(const real *x, real *y, int64_t size, int64_t turns)
{
    for (int64_t turn = 0; turn < turns; turn++) {
        for (int64_t at = 0; at + STREAMS * LANES <= size; at += STREAMS * LANES)
#pragma GCC unroll 8
            for (int i = 0; i < STREAMS; i++)
                store(y + at + i * LANES, load(x + at + i * LANES));
        __asm__ volatile("" : : "r"(y) : "memory"); /* what is copied once would be enough */
    }
}

#endif
