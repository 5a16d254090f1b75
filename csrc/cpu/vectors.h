/* Vectors of one register, in the compiler's own vector extensions.

   A file of the build is compiled for one dtype and instruction set: FN_DOUBLE picks `real`, the
   compiler's target flags the register. Everything rounds as written: nothing is contracted or
   re-associated by the compiler (-ffp-contract=off), `fused` says where a product and a sum round
   once. */

#ifndef FN_VECTORS_H
#define FN_VECTORS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef FN_DOUBLE
typedef double real;
typedef int64_t whole; /* the integer as wide as a real */
#define REAL(number) (number)
#else
typedef float real;
typedef int32_t whole;
#define REAL(number) ((real)(number))
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define VECTOR_BYTES 64
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define VECTOR_BYTES 32
#include <immintrin.h>
#else
#define VECTOR_BYTES 16
#ifdef __aarch64__
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <immintrin.h>
#endif
#endif

/* Lanes of a register, and columns of a panel: two registers. As in the Numba engine, so that both
   have the same layout and the same sums. */
#define LANES (VECTOR_BYTES / (int)sizeof(real))
#define PANEL (2 * LANES)
/* Elements of a cache line. */
#define LINE (64 / (int)sizeof(real))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef whole ivec __attribute__((vector_size(VECTOR_BYTES)));
/* The same in memory, where only the element's alignment is known. */
typedef real vec_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef whole ivec_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

INLINE vec load(const real *place) { return *(const vec_in_memory *)place; }
INLINE void store(real *place, vec value) { *(vec_in_memory *)place = value; }
INLINE vec every(real number) { return number - (vec){}; }
INLINE vec zeros(void) { return (vec){}; }
INLINE ivec bits(vec value) { return (ivec)value; }
INLINE vec of_bits(ivec value) { return (vec)value; }
INLINE ivec every_whole(whole number) { return number - (ivec){}; }

/* x y + z. FUSES: rounded once, in one instruction; only x86 before AVX2 rounds twice. */
#if VECTOR_BYTES == 64
#define FUSES 1
#ifdef FN_DOUBLE
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
}
INLINE vec root(vec x) { return (vec)_mm512_sqrt_pd((__m512d)x); }
#else
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
}
INLINE vec root(vec x) { return (vec)_mm512_sqrt_ps((__m512)x); }
#endif
#elif VECTOR_BYTES == 32
#define FUSES 1
#ifdef FN_DOUBLE
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
}
INLINE vec root(vec x) { return (vec)_mm256_sqrt_pd((__m256d)x); }
#else
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
}
INLINE vec root(vec x) { return (vec)_mm256_sqrt_ps((__m256)x); }
#endif
#elif defined(__aarch64__)
#define FUSES 1
#ifdef FN_DOUBLE
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)vfmaq_f64((float64x2_t)z, (float64x2_t)x, (float64x2_t)y);
}
INLINE vec root(vec x) { return (vec)vsqrtq_f64((float64x2_t)x); }
#else
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
}
INLINE vec root(vec x) { return (vec)vsqrtq_f32((float32x4_t)x); }
#endif
#else
#define FUSES 0
INLINE vec fused(vec x, vec y, vec z) { return x * y + z; }
INLINE vec root(vec x)
{
    for (int i = 0; i < LANES; i++)
        x[i] = sizeof(real) == 4 ? (real)sqrtf((float)x[i]) : (real)sqrt((double)x[i]);
    return x;
}
#endif

/* Masks: one truth value a lane. A comparison with a NaN is false. */
#if VECTOR_BYTES == 64
#ifdef FN_DOUBLE
typedef __mmask8 mask;
INLINE mask less(vec a, vec b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ); }
INLINE mask whole_greater(ivec a, ivec b)
{
    return _mm512_cmpgt_epi64_mask((__m512i)a, (__m512i)b);
}
INLINE mask whole_equal(ivec a, ivec b) { return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b); }
INLINE vec choose(mask m, vec a, vec b)
{
    return (vec)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a);
}
INLINE vec load_some(const real *place, mask m) { return (vec)_mm512_maskz_loadu_pd(m, place); }
INLINE void store_some(real *place, vec value, mask m)
{
    _mm512_mask_storeu_pd(place, m, (__m512d)value);
}
#else
typedef __mmask16 mask;
INLINE mask less(vec a, vec b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE mask whole_greater(ivec a, ivec b)
{
    return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
}
INLINE mask whole_equal(ivec a, ivec b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vec choose(mask m, vec a, vec b)
{
    return (vec)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a);
}
INLINE vec load_some(const real *place, mask m) { return (vec)_mm512_maskz_loadu_ps(m, place); }
INLINE void store_some(real *place, vec value, mask m)
{
    _mm512_mask_storeu_ps(place, m, (__m512)value);
}
#endif
/* The first `count` lanes: none up to 0, all from LANES on. */
INLINE mask below(int64_t count)
{
    return (mask)(count >= LANES ? (1u << LANES) - 1 : count > 0 ? (1u << count) - 1 : 0);
}
#else
typedef ivec mask;
INLINE mask less(vec a, vec b) { return a < b; }
INLINE mask whole_greater(ivec a, ivec b) { return a > b; }
INLINE mask whole_equal(ivec a, ivec b) { return a == b; }
INLINE vec choose(mask m, vec a, vec b) { return (vec)(((ivec)a & m) | ((ivec)b & ~m)); }
INLINE mask below(int64_t count)
{
    ivec lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    const whole held = (whole)(count > LANES ? LANES : count < 0 ? 0 : count);
    return lane < every_whole(held);
}
#if VECTOR_BYTES == 32
#ifdef FN_DOUBLE
INLINE vec load_some(const real *place, mask m)
{
    return (vec)_mm256_maskload_pd(place, (__m256i)m);
}
INLINE void store_some(real *place, vec value, mask m)
{
    _mm256_maskstore_pd(place, (__m256i)m, (__m256d)value);
}
#else
INLINE vec load_some(const real *place, mask m)
{
    return (vec)_mm256_maskload_ps(place, (__m256i)m);
}
INLINE void store_some(real *place, vec value, mask m)
{
    _mm256_maskstore_ps(place, (__m256i)m, (__m256)value);
}
#endif
#else
INLINE vec load_some(const real *place, mask m)
{
    vec value = zeros();
    for (int i = 0; i < LANES; i++)
        if (m[i])
            value[i] = place[i];
    return value;
}
INLINE void store_some(real *place, vec value, mask m)
{
    for (int i = 0; i < LANES; i++)
        if (m[i])
            place[i] = value[i];
}
#endif
#endif
INLINE mask greater(vec a, vec b) { return less(b, a); }

/* a where a < b, or a > b, else b: in one instruction on x86. Of a NaN and a number, b. */
#if VECTOR_BYTES == 64 && defined(FN_DOUBLE)
INLINE vec lesser(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)a, (__m512d)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)a, (__m512d)b); }
#elif VECTOR_BYTES == 64
INLINE vec lesser(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif VECTOR_BYTES == 32 && defined(FN_DOUBLE)
INLINE vec lesser(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)a, (__m256d)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)a, (__m256d)b); }
#elif VECTOR_BYTES == 32
INLINE vec lesser(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__) && defined(FN_DOUBLE)
INLINE vec lesser(vec a, vec b) { return (vec)_mm_min_pd((__m128d)a, (__m128d)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm_max_pd((__m128d)a, (__m128d)b); }
#elif defined(__SSE2__)
INLINE vec lesser(vec a, vec b) { return (vec)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm_max_ps((__m128)a, (__m128)b); }
#else
INLINE vec lesser(vec a, vec b) { return choose(less(a, b), a, b); }
INLINE vec larger(vec a, vec b) { return choose(greater(a, b), a, b); }
#endif

/* The larger of whole numbers: a comparison and a choice have five times the latency. */
#if VECTOR_BYTES == 64 && defined(FN_DOUBLE)
INLINE ivec whole_larger(ivec a, ivec b) { return (ivec)_mm512_max_epi64((__m512i)a, (__m512i)b); }
#elif VECTOR_BYTES == 64
INLINE ivec whole_larger(ivec a, ivec b) { return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#elif VECTOR_BYTES == 32 && !defined(FN_DOUBLE)
INLINE ivec whole_larger(ivec a, ivec b) { return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#elif defined(__SSE4_1__) && !defined(FN_DOUBLE)
INLINE ivec whole_larger(ivec a, ivec b) { return (ivec)_mm_max_epi32((__m128i)a, (__m128i)b); }
#elif defined(__aarch64__) && !defined(FN_DOUBLE)
INLINE ivec whole_larger(ivec a, ivec b) { return (ivec)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
#else
INLINE ivec whole_larger(ivec a, ivec b)
{
    return bits(choose(whole_greater(a, b), of_bits(a), of_bits(b)));
}
#endif

INLINE vec absolute(vec x)
{
    return of_bits(bits(x) & every_whole((whole)(sizeof(real) == 4 ? INT32_MAX : INT64_MAX)));
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }
/* Panels that so many columns fill. */
INLINE int64_t panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

INLINE void copy(real *target, const real *source, int64_t size)
{
    memcpy(target, source, sizeof(real) * (size_t)size);
}
INLINE void clear(real *target, int64_t size) { memset(target, 0, sizeof(real) * (size_t)size); }

#endif
