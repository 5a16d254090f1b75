/* Dropout: what a step keeps is a function of place and key alone, computed again on the way back.

   Feature j and rows 4 f to 4 f + 3 of the batch have the four words of 32 bits that Philox4x32-10
   makes of the counter (j, f, layer, 0) and the step's key (Salmon, Moraes, Dror & Shaw 2011,
   "Parallel random numbers: as easy as 1, 2, 3", SC11). A number is kept where its word is at least
   AT_DROPPED. */

#ifndef FN_DROPOUT_H
#define FN_DROPOUT_H

#include "constants.h"
#include "elementwise.h"
#include "rows.h"

#define PHILOX_ROUNDS 10
#define PHILOX_LOW 0xD2511F53u
#define PHILOX_HIGH 0xCD9E8D57u
#define PHILOX_STEP_LOW 0x9E3779B9u
#define PHILOX_STEP_HIGH 0xBB67AE85u

/* Words of 32 bits, each in the lower half of its lane; in the upper stands whatever. */
typedef uint64_t words __attribute__((vector_size(VECTOR_BYTES)));
/* Registers of words for one of numbers: those of its even lanes, and of its odd ones. */
#define PARITIES (8 / (int)sizeof(real))

INLINE words every_word(uint64_t number) { return number - (words){}; }

/* All 64 bits of the products of words. */
INLINE words product_of_words(words a, words b)
{
#if VECTOR_BYTES == 64
    return (words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 32
    return (words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    return (words)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
    return (a & every_word(UINT32_MAX)) * (b & every_word(UINT32_MAX));
#endif
}

/* The lanes whose word, of 32 bits in all of the lane or its lower half, is below `limit`. */
INLINE mask word_below(ivec word, uint32_t limit)
{
#ifdef FN_DOUBLE
    return whole_greater(every_whole((whole)limit), word);
#elif VECTOR_BYTES == 64
    return _mm512_cmplt_epu32_mask((__m512i)word, _mm512_set1_epi32((int)limit));
#else
    typedef uint32_t unsigned_words __attribute__((vector_size(VECTOR_BYTES)));
    return (mask)((unsigned_words)word < limit - (unsigned_words){});
#endif
}

/* What decides the numbers of one layer in one step. */
typedef struct {
    uint64_t keys[PHILOX_ROUNDS][2];
    uint64_t layer;
    uint32_t dropped;
    real scale; /* of what is kept */
} Draw;

INLINE Draw draw_of_layer(uint32_t low, uint32_t high, int64_t index, int64_t dropped, real scale)
{
    Draw d = {.layer = (uint64_t)index, .dropped = (uint32_t)dropped, .scale = scale};
    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        d.keys[i][0] = low;
        d.keys[i][1] = high;
        low += PHILOX_STEP_LOW;
        high += PHILOX_STEP_HIGH;
    }
    return d;
}

/* What the first three rounds come to for one register of features whatever the row: of the
   counter's words c[2] of round 1, c[0] and c[2] of round 2, to be joined with words of the rows,
   and the low product of round 2. */
typedef struct {
    words before, c0, c2, low;
} Feature;

INLINE void feature_words(const Draw *d, int64_t first, Feature *features)
{
    const uint64_t of_layer = PHILOX_HIGH * d->layer;
    for (int i = 0; i < PARITIES; i++) {
        words j = every_word((uint64_t)first + (uint64_t)i);
        for (int lane = 0; lane < VECTOR_BYTES / 8; lane++)
            j[lane] += (uint64_t)(lane * PARITIES);
        const words low = product_of_words(j, every_word(PHILOX_LOW));
        const words c2 = low >> 32 ^ every_word(d->keys[0][1]);
        const words high = product_of_words(c2, every_word(PHILOX_HIGH));
        const words c0 = high >> 32 ^ every_word((uint32_t)of_layer ^ d->keys[1][0]);
        features[i].before = low ^ every_word(d->keys[1][1]);
        features[i].c0 = high ^ every_word(d->keys[2][0]);
        features[i].low = product_of_words(c0, every_word(PHILOX_LOW));
        features[i].c2 = features[i].low >> 32 ^ every_word(d->keys[2][1]);
    }
}

/* The words of four rows, the first of which is number 4 `four`. */
INLINE void random_words(const Draw *d, const Feature *features, uint64_t four, ivec *random)
{
    const uint64_t of_layer = PHILOX_HIGH * d->layer;
    const uint32_t c0 = (uint32_t)(of_layer >> 32 ^ four ^ d->keys[0][0]); /* of round 1 */
    const uint64_t of_rows = PHILOX_LOW * (uint64_t)c0;
    words c[PARITIES][4];
#pragma GCC unroll 2
    for (int i = 0; i < PARITIES; i++) {
        const words joined = features[i].before ^ every_word(of_rows >> 32);
        const words high = product_of_words(joined, every_word(PHILOX_HIGH));
        c[i][0] = high >> 32 ^ features[i].c0;
        c[i][1] = high;
        c[i][2] = features[i].c2 ^ every_word(of_rows);
        c[i][3] = features[i].low;
    }
#pragma GCC unroll 10
    for (int round = 3; round < PHILOX_ROUNDS; round++)
#pragma GCC unroll 2
        for (int i = 0; i < PARITIES; i++) {
            const words low = product_of_words(c[i][0], every_word(PHILOX_LOW));
            const words high = product_of_words(c[i][2], every_word(PHILOX_HIGH));
            c[i][0] = high >> 32 ^ c[i][1] ^ every_word(d->keys[round][0]);
            c[i][1] = high;
            c[i][2] = low >> 32 ^ c[i][3] ^ every_word(d->keys[round][1]);
            c[i][3] = low;
        }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        words both = c[0][k] & every_word(UINT32_MAX);
        if (PARITIES > 1)
            both |= c[PARITIES - 1][k] << 32;
        random[k] = (ivec)both;
    }
}

/* Dropout of one register of columns, from `from` to `to`: rows of a panel, of which the first is
   number `first` of the batch, a multiple of 4. */
INLINE void dropout_column(const int code, const Draw *d, int64_t feature, const real *from,
                           real *to, int64_t first, int64_t n_rows, const real *saved, vec *largest)
{
    Feature features[PARITIES];
    feature_words(d, feature, features);
    for (int64_t r = 0; r < n_rows; r += 4) {
        ivec random[4];
        random_words(d, features, (uint64_t)(first + r) / 4, random);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const int64_t place = (r + k) * PANEL;
            if (r + k >= n_rows)
                break;
            const vec share = choose(word_below(random[k], d->dropped), zeros(), every(d->scale));
            const vec value = gated(code, load(from + place) * share, load(saved + place));
            store(to + place, value);
            *largest = raised(*largest, value);
        }
    }
}

INLINE void dropout_panel(const int code, const Draw *d, int64_t feature, const real *from,
                          real *to, int64_t first, int64_t n_rows, const real *saved, real *most)
{
    vec largest[2] = {zeros(), zeros()};
    for (int i = 0; i < 2; i++) {
        const int64_t lane = i * LANES;
        dropout_column(code, d, feature + lane, from + lane, to + lane, first, n_rows, saved + lane,
                       largest + i);
    }
    if (most)
        note(most, largest[0], largest[1]);
}

/* Dropout of a block of rows, of the panels from `first_panel` up to `end_panel`; the rows from
   number `first` on stand at `from` and go to `to`, which may be the same. The way back is this
   too, with the gate that follows: `code` of the activation whose f' is computed from `saved`. */
static void dropout(const Draw *d, int64_t first_panel, int64_t end_panel, const real *from,
                    real *to, int64_t stride, int64_t first, int64_t n_rows, int64_t code,
                    const real *saved, real *most)
{
    real *own = is_in_passing(code) ? most : NULL;
    for (int64_t q = first_panel; q < end_panel; q++) {
        const int64_t here = q * stride;
        FN_IN_PASSING(code, dropout_panel, d, q * PANEL, from + here, to + here, first, n_rows,
                      saved + here, own);
        if (!is_in_passing(code))
            gate_run(code, to + here, saved + here, n_rows * PANEL, most);
    }
}

#endif
