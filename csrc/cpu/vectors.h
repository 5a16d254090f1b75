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
#elif defined(__AVX2__) && defined(__FMA__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

/* The compiler's own type of a register, and its functions for whole registers: PACKED(sqrt) is
   _mm512_sqrt_ps where floats stand in 64 bytes. */
#ifdef __SSE2__
#include <immintrin.h>
#define FN_X86 1
#ifdef FN_DOUBLE
#define FN_NUMBERS(name) name##_pd
#else
#define FN_NUMBERS(name) name##_ps
#endif
#if VECTOR_BYTES == 64
#define PACKED(name) FN_NUMBERS(_mm512_##name)
#elif VECTOR_BYTES == 32
#define PACKED(name) FN_NUMBERS(_mm256_##name)
#else
#define PACKED(name) FN_NUMBERS(_mm_##name)
#endif
typedef __typeof__(PACKED(setzero)()) native;
#elif defined(__aarch64__)
#include <arm_neon.h>
#ifdef FN_DOUBLE
#define PACKED(name) v##name##q_f64
typedef float64x2_t native;
#else
#define PACKED(name) v##name##q_f32
typedef float32x4_t native;
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
#if VECTOR_BYTES > 16
#define FUSES 1
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)PACKED(fmadd)((native)x, (native)y, (native)z);
}
#elif defined(__aarch64__)
#define FUSES 1
INLINE vec fused(vec x, vec y, vec z)
{
    return (vec)PACKED(fma)((native)z, (native)x, (native)y);
}
#else
#define FUSES 0
INLINE vec fused(vec x, vec y, vec z) { return x * y + z; }
#endif

#ifdef PACKED
INLINE vec root(vec x) { return (vec)PACKED(sqrt)((native)x); }
#else
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
#define COMPARED(name) _mm512_##name##_epi64_mask
#define ORDERED _mm512_cmp_pd_mask
#else
typedef __mmask16 mask;
#define COMPARED(name) _mm512_##name##_epi32_mask
#define ORDERED _mm512_cmp_ps_mask
#endif
INLINE mask less(vec a, vec b) { return ORDERED((native)a, (native)b, _CMP_LT_OQ); }
INLINE mask whole_greater(ivec a, ivec b)
{
    return COMPARED(cmpgt)((__m512i)a, (__m512i)b);
}
INLINE mask whole_equal(ivec a, ivec b) { return COMPARED(cmpeq)((__m512i)a, (__m512i)b); }
INLINE vec choose(mask m, vec a, vec b)
{
    return (vec)PACKED(mask_blend)(m, (native)b, (native)a);
}
INLINE vec load_some(const real *place, mask m) { return (vec)PACKED(maskz_loadu)(m, place); }
INLINE void store_some(real *place, vec value, mask m)
{
    PACKED(mask_storeu)(place, m, (native)value);
}
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
INLINE vec load_some(const real *place, mask m) { return (vec)PACKED(maskload)(place, (__m256i)m); }
INLINE void store_some(real *place, vec value, mask m)
{
    PACKED(maskstore)(place, (__m256i)m, (native)value);
}
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
#ifdef FN_X86
INLINE vec lesser(vec a, vec b) { return (vec)PACKED(min)((native)a, (native)b); }
INLINE vec larger(vec a, vec b) { return (vec)PACKED(max)((native)a, (native)b); }
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
