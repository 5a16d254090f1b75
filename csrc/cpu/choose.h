/* Which builds of the kernels this extension holds, and which of them this processor can run. */

#ifndef FN_CHOOSE_H
#define FN_CHOOSE_H

#include <stddef.h>
#include <string.h>

#include "kernels.h"
#include "variants.h"

#define FN_KERNELS(name) extern const fn_kernels fn_##name##_single, fn_##name##_double;
FN_VARIANTS
#undef FN_KERNELS

/* Names of all builds, the best last. */
static const char *const fn_names[] = {
#define FN_KERNELS(name) #name,
    FN_VARIANTS
#undef FN_KERNELS
    NULL};

/* Whether the processor and the operating system support what a build uses. */
static int fn_supported(const char *name)
{
#ifdef __x86_64__
    __builtin_cpu_init();
    if (strcmp(name, "v2") == 0)
        return __builtin_cpu_supports("sse4.2");
    if (strcmp(name, "v3") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi2");
    if (strcmp(name, "v4") == 0)
        return fn_supported("v3") && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
#endif
    (void)name;
    return 1;
}

/* The kernels of a build for one dtype, or NULL where it does not exist. */
static const fn_kernels *fn_kernels_of(const char *name, int is_double)
{
#define FN_KERNELS(known)                                                                          \
    if (strcmp(name, #known) == 0)                                                                 \
        return is_double ? &fn_##known##_double : &fn_##known##_single;
    FN_VARIANTS
#undef FN_KERNELS
    return NULL;
}

#endif
