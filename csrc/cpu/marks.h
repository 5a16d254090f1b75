/* Marks of time: which part of a step a thread is at, noted for whoever profiles it.

   A mark says what begins; what was before ends there. Marks of the same part in a row are one. A
   step that nobody looks at pays a comparison for each. */

#ifndef FN_MARKS_H
#define FN_MARKS_H

#include <time.h>

#include "context.h"

/* The processor's clock of constant rate; the reader finds out what a tick is. */
INLINE int64_t ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return (int64_t)__builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    int64_t count;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(count));
    return count;
#else
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

NOINLINE void write_mark(int64_t *marks, int64_t what)
{
    const int64_t count = marks[MARKS_COUNT];
    if (marks[MARKS_LAST] == what || count >= marks[MARKS_ROOM])
        return;
    marks[MARKS_LAST] = what;
    marks[MARKS_COUNT] = count + 1;
    marks[MARKS_FIRST + 2 * count] = what;
    marks[MARKS_FIRST + 2 * count + 1] = ticks();
}

/* Note that this thread begins a part, MARKS_..., of a layer's work. */
INLINE void mark(const TrainingStep *s, int64_t part, int64_t layer)
{
    if (s->marks)
        write_mark(s->marks, part + layer * MARKS_PARTS);
}

#endif
