/* The matrix product of the engine: one register tile.

   Everything the engine multiplies is C[r, :] = start + sum_k A[r, k] * B[k, :] for a few rows r
   and one panel of columns. The accumulators live in vector registers for the whole sum and start
   from a vector in memory: the bias in a forward product, zeros elsewhere. Sums run over k in
   ascending order, one fused multiply-add each, whatever the number of rows in a tile, so a row's
   result has the same bits in any tile. */

#ifndef FN_TILE_H
#define FN_TILE_H

#include "shuffles.h"

/* What happens to a tile between its sums and memory. Rows: plain, ReLU, or times ReLU's derivative
   at saved outputs. Batch: plain, or a step of gradient descent from the parameters in memory. */
enum { TILE_PLAIN, TILE_RELU_OUTPUT, TILE_RELU_GATE, TILE_DESCENT };
/* Where the rows of A and the steps of k lie. ROWS: A is blocked [panel][row][lane], k runs along
   lanes and then to the next panel (forward, data gradient). BATCH: rows are lanes of one panel and
   k runs down its rows (weight gradient: A is x transposed, read in place). */
enum { WALK_ROWS, WALK_BATCH };

/* Steps of k between two loop branches. */
#define UNROLL 4
/* Rows of the tallest tile: two accumulators a row, and registers left for B and A's element. x86
   before AVX-512 has 16 registers (8 rows there spill: 4 times slower; 4 rows are 9 % slower than
   6), the others 32. */
#if VECTOR_BYTES < 64 && (defined(__x86_64__) || defined(__i386__))
#define TALL 6
#define TALL_WITH_ONES 4 /* the always-on row needs two more */
#else
#define TALL 8
#define TALL_WITH_ONES 8
#endif
/* Tall tiles of a whole weight tile; the places that it can ask for ahead; how many of those each
   tall tile asks for, side by side. */
#define TALLS (PANEL / TALL > 0 ? PANEL / TALL : 1)
#define AHEAD 4
#define BESIDE ((AHEAD + TALLS - 1) / TALLS)

/* Memory that is needed after a batch product: while it computes, a tall tile asks for cache lines
   every UNROLL steps of k. Tall tile i starts from place i, or where there are fewer tall tiles
   from several, and goes `step` elements on each time; beside it they ask from `soon` on,
   `soon_step` elements further each time, one tile after the other. A step of 0: for nothing. */
typedef struct {
    int64_t step;
    const real *place[AHEAD];
    const real *soon;
    int64_t soon_step;
} Ahead;
#define NOTHING_AHEAD ((Ahead){0})

/* How far a product is with what it asks for; rows have the first place only. */
typedef struct {
    const real *ahead[BESIDE], *soon;
} Lines;

/* The run-time arguments of a product. */
typedef struct {
    int epilogue;
    real *out;
    const real *start;
    int64_t start_step;
    const real *a;
    int64_t a_panel;
    const real *b;
    int64_t depth;
    const real *gate; /* ROWS: outputs, laid out like `out`, whose ReLU the gate is of */
    real *ones;       /* BATCH: where the sums of B go */
    real *most;       /* ROWS: a panel row of maxima, or NULL */
    const real *rates;
    int64_t ahead_step, soon_step;
} Product;

/* Nothing, but the compiler must have the value in a register here. */
#if defined(__SSE2__)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define IN_REGISTER(value) (void)(value)
#endif

/* Nothing, but the compiler must take the integer or pointer as it stands here: it would otherwise
   compute what loops leave behind, and addresses, ahead of time, in more instructions than it
   saves. */
#define AS_IT_STANDS(value) __asm__("" : "+r"(value))

/* sum + x y, for a sum that stays where it is. Left to itself GCC mixes steps of k and takes turns
   with the three forms of the instruction: more values than 16 registers hold, and moves. */
INLINE vec added(vec sum, vec x, vec y)
{
#if VECTOR_BYTES == 32 && defined(FN_DOUBLE)
    __asm__("vfmadd231pd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
#elif VECTOR_BYTES == 32
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
#else
    sum = fused(x, y, sum);
    IN_REGISTER(sum);
#endif
    return sum;
}

/* Add one step of k to the sums. */
INLINE void multiply(int rows, int registers, bool ones, int64_t row_step, const real *a,
                     const real *b, vec (*sums)[2])
{
    vec factor[2];
#pragma GCC unroll 2
    for (int i = 0; i < registers; i++)
        factor[i] = load(b + i * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const vec value = every(a[r * row_step]);
#pragma GCC unroll 2
        for (int i = 0; i < registers; i++)
            sums[r][i] = added(sums[r][i], value, factor[i]);
    }
    if (ones) {
#pragma GCC unroll 2
        for (int i = 0; i < registers; i++) {
            sums[rows][i] += factor[i];
            IN_REGISTER(sums[rows][i]);
        }
    }
}

/* Ask for the next of a line of cache lines. */
INLINE void ask(const real **place, int64_t step)
{
    __builtin_prefetch(*place, 0, 2);
    *place += step;
    AS_IT_STANDS(*place);
}

/* Add `count` steps of k; lower tiles are for edges and not unrolled. */
INLINE void run(int rows, int registers, int walk, bool ones, int64_t count, const real *a,
                const real *b, vec (*sums)[2], const Product *p, Lines *lines)
{
    AS_IT_STANDS(count);
    const int64_t row_step = walk == WALK_ROWS ? PANEL : 1, k_step = walk == WALK_ROWS ? 1 : PANEL;
    if (rows == (ones ? TALL_WITH_ONES : TALL))
#pragma GCC unroll 1
        for (; count >= UNROLL; count -= UNROLL) {
            ask(&lines->ahead[0], p->ahead_step);
            if (walk == WALK_BATCH) {
#pragma GCC unroll 4
                for (int i = 1; i < BESIDE; i++)
                    ask(&lines->ahead[i], p->ahead_step);
                ask(&lines->soon, p->soon_step);
            }
#pragma GCC unroll 4
            for (int k = 0; k < UNROLL; k++)
                multiply(rows, registers, ones, row_step, a + k * k_step, b + k * PANEL, sums);
            a += UNROLL * k_step;
            b += UNROLL * PANEL;
            AS_IT_STANDS(a);
            AS_IT_STANDS(b);
        }
#pragma GCC unroll 1
    for (; count > 0; count--) {
        multiply(rows, registers, ones, row_step, a, b, sums);
        a += k_step;
        b += PANEL;
    }
}

/* Store the computed registers of a row, and zeros in the other half where there is one. */
INLINE void store_row(int registers, real *place, const vec *row)
{
    store(place, row[0]);
    store(place + LANES, registers > 1 ? row[1] : zeros());
}

/* Apply the epilogue to rows, store them, and note the largest. */
INLINE void finish_rows(int rows, int registers, vec (*sums)[2], int epilogue, real *out,
                        const real *gate, real *most)
{
    vec zero = zeros(), one = every(1);
    IN_REGISTER(zero); /* not in one of its own through the sums */
    IN_REGISTER(one);
    if (epilogue == TILE_RELU_OUTPUT) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < registers; i++) /* this way round, so that NaN stays */
                sums[r][i] = choose(less(sums[r][i], zero), zero, sums[r][i]);
    } else if (epilogue == TILE_RELU_GATE) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < registers; i++) {
                const vec saved = load(gate + r * PANEL + i * LANES);
                /* A product, as the slot: a NaN passes a closed gate. */
                sums[r][i] *= choose(greater(saved, zero), one, zero);
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        store_row(registers, out + r * PANEL, sums[r]);
    if (most) {
#pragma GCC unroll 2
        for (int i = 0; i < registers; i++) {
            vec largest = load(most + i * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                largest = raised(largest, sums[r][i]);
            store(most + i * LANES, largest);
        }
    }
}

/* Store a gradient, or the parameters that it leads to. */
INLINE void finish_gradient(int rows, int registers, vec (*sums)[2], const Product *p, real *out)
{
    if (p->epilogue == TILE_DESCENT) {
        const vec rate = every(p->rates[0]), decay = every(p->rates[1]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < registers; i++) {
                const vec old = load(out + r * PANEL + i * LANES);
                const vec slope = sums[r][i] + decay * old;
                sums[r][i] = old - rate * slope;
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        store_row(registers, out + r * PANEL, sums[r]);
}

/* Compute the tile that begins `done` rows down. */
INLINE void tile(int rows, int registers, int walk, bool ones, const Product *p, int64_t done,
                 Lines *lines)
{
    real *out = p->out + done * PANEL;
    const real *gate = p->epilogue == TILE_RELU_GATE ? p->gate + done * PANEL : out;
    if (walk == WALK_ROWS && rows == TALL && p->ahead_step != 0) {
#pragma GCC unroll 1
        for (int i = rows * PANEL; i < 2 * rows * PANEL; i += LINE) {
            __builtin_prefetch(out + i, 1, 3);
            __builtin_prefetch(gate + i, 0, 3);
        }
    }

    vec sums[TALL + 1][2];
    const real *start = p->start + done * p->start_step;
    if (p->start_step != 0) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
#pragma GCC unroll 2
            for (int i = 0; i < registers; i++)
                sums[r][i] = load(start + i * LANES);
            start += p->start_step;
            AS_IT_STANDS(start);
        }
        if (ones) {
#pragma GCC unroll 2
            for (int i = 0; i < registers; i++)
                sums[rows][i] = load(p->ones + i * LANES);
        }
    } else {
#pragma GCC unroll 2
        for (int i = 0; i < registers; i++) {
            const vec common = load(start + i * LANES);
#pragma GCC unroll 9
            for (int r = 0; r < rows + ones; r++)
                sums[r][i] = common;
        }
    }

    if (walk == WALK_BATCH) {
        run(rows, registers, walk, ones, p->depth, p->a + done, p->b, sums, p, lines);
        finish_gradient(rows, registers, sums, p, out);
        if (ones)
            store_row(registers, p->ones, sums[rows]);
        return;
    }
    const real *a = p->a + done * PANEL, *b = p->b;
#pragma GCC unroll 1
    for (int64_t left = p->depth; left > 0; left -= PANEL) {
        run(rows, registers, walk, ones, least(left, PANEL), a, b, sums, p, lines);
        a += p->a_panel;
        b += PANEL * PANEL;
    }
    finish_rows(rows, registers, sums, p->epilogue, out, gate, p->most);
}

/* Begin with the places that tall tile `i` asks for. */
INLINE void lines_from(Lines *lines, const real *const *places, int64_t i)
{
#pragma GCC unroll 4
    for (int64_t k = 0, first = i * BESIDE; k < BESIDE; k++)
        lines->ahead[k] = places[least(first + k, AHEAD - 1)];
}

/* Tall tiles as long as they fit, then one each of 4, 2 and 1 rows as needed. `places` are a batch
   product's. */
INLINE void tiles_of(int registers, int walk, const Product *p, int64_t n_rows, Lines lines,
                     const real *const *places)
{
    int64_t done = 0;
    if (walk == WALK_BATCH && p->ones) { /* the first tile carries the always-on row */
        if (n_rows >= TALL_WITH_ONES) {
            tile(TALL_WITH_ONES, registers, walk, true, p, 0, &lines);
            done = TALL_WITH_ONES;
        } else if (TALL_WITH_ONES > 4 && n_rows >= 4) {
            tile(4, registers, walk, true, p, 0, &lines);
            done = 4;
        } else if (n_rows >= 2) {
            tile(2, registers, walk, true, p, 0, &lines);
            done = 2;
        } else if (n_rows >= 1) {
            tile(1, registers, walk, true, p, 0, &lines);
            done = 1;
        }
    }
#pragma GCC unroll 1
    for (; n_rows - done >= TALL; done += TALL) {
        if (walk == WALK_BATCH && p->ahead_step != 0)
            lines_from(&lines, places, done / TALL);
        tile(TALL, registers, walk, false, p, done, &lines);
    }
    if (n_rows - done >= 4) {
        tile(4, registers, walk, false, p, done, &lines);
        done += 4;
    }
    if (n_rows - done >= 2) {
        tile(2, registers, walk, false, p, done, &lines);
        done += 2;
    }
    if (n_rows > done)
        tile(1, registers, walk, false, p, done, &lines);
}

/* Compute rows of one panel: out[r, c] = e(start[r, c] + sum_k A[r, k] B[k, c]).

   columns : of the panel that count. Up to half a panel, only half is computed, and zeros are
       stored in the other half.
   start_step : row r starts from start[r*start_step + c]: 0 for a bias, PANEL with `start` at `out`
       to go on with sums of smaller k, which gives the bits of one longer sum.
   a, a_panel : A's first element, and elements from one panel of A to the next.
   b, depth : contiguous over k with PANEL columns; a depth of 0 stores the start.
   extra : for TILE_RELU_GATE the saved outputs, laid out like `out`.
   most : a panel row of maxima, see `note_run`, that the stored rows raise, or NULL.
   ahead, ahead_step : while it computes, a tall tile asks for one cache line every UNROLL steps of
       k and goes `ahead_step` elements on, and each tile goes on where the one before it ended; a
       step above 0 also makes it ask for what the next tile reads and writes. */
NOINLINE void product_rows(int64_t columns, int epilogue, real *out, const real *start,
                           int64_t start_step, const real *a, int64_t a_panel, const real *b,
                           int64_t depth, int64_t n_rows, const real *extra, real *most,
                           const real *ahead, int64_t ahead_step)
{
    const Product p = {.epilogue = epilogue, .out = out, .start = start, .start_step = start_step,
                       .a = a, .a_panel = a_panel, .b = b, .depth = depth, .gate = extra,
                       .most = most, .ahead_step = ahead_step};
    const Lines lines = {.ahead = {ahead}};
    if (columns <= LANES)
        tiles_of(1, WALK_ROWS, &p, n_rows, lines, NULL);
    else
        tiles_of(2, WALK_ROWS, &p, n_rows, lines, NULL);
}

/* The same of a panel's lanes: out[r, c] = e(start[r, c] + sum_k A[k, r] B[k, c]).

   extra : where the sums of B go, a row whose input is always 1 (the bias gradient), or NULL. It
       starts from the start, or with a `start_step` from itself.
   rates : for TILE_DESCENT rate and decay, e being p - rate (sum + decay p) with p what stands at
       `out`. */
NOINLINE void product_batch(int64_t columns, int epilogue, real *out, const real *start,
                            int64_t start_step, const real *a, const real *b, int64_t depth,
                            int64_t n_rows, real *extra, const real *rates, const Ahead *ahead)
{
    const Product p = {.epilogue = epilogue, .out = out, .start = start, .start_step = start_step,
                       .a = a, .b = b, .depth = depth, .ones = extra, .rates = rates,
                       .ahead_step = ahead->step, .soon_step = ahead->soon_step};
    /* Without steps all lines are the same one: one that is there. */
    Lines lines = {.soon = ahead->step != 0 ? ahead->soon : b};
    for (int k = 0; k < BESIDE; k++)
        lines.ahead[k] = ahead->step != 0 ? ahead->place[k] : b;
    if (columns <= LANES)
        tiles_of(1, WALK_BATCH, &p, n_rows, lines, ahead->place);
    else
        tiles_of(2, WALK_BATCH, &p, n_rows, lines, ahead->place);
}

#endif
