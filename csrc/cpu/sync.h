/* Barrier, work tickets and abort flag for the thread team, on one small array of words.

   Words stand 64 bytes apart, one cache line each. The waiting thread spins for a few
   microseconds, since a barrier of running threads takes 0.1, and then yields its core at every
   look, so that more threads than cores, or a busy neighbour, slow a step down but never stall
   it. */

#ifndef FN_SYNC_H
#define FN_SYNC_H

#include "constants.h"
#include "vectors.h"

#ifdef _WIN32
__declspec(dllimport) int __stdcall SwitchToThread(void);
#define yield_core SwitchToThread
#else
#include <sched.h>
#define yield_core sched_yield
#endif

/* Looks at the generation before yielding: 3 microseconds, 20 times an undisturbed barrier.
   Where two threads of a team share a core, each barrier wastes this time before the other may
   run. */
#define SPINS 100

/* Read a word that other threads write; what they wrote before it is visible after. */
INLINE int64_t load_word(const int64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

/* Write a word that other threads read; what this thread wrote before is visible with it. */
INLINE void store_word(int64_t *word, int64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Add to a word in one indivisible step; its value before. */
INLINE int64_t fetch_add(int64_t *word, int64_t amount)
{
    return __atomic_fetch_add(word, amount, __ATOMIC_ACQ_REL);
}

/* Tell the core that this is a spin loop. */
INLINE void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait for all threads; false where the team was told to give up.

   The last to arrive rewinds the tickets for the next phase: nobody draws one while all wait. */
static bool barrier(int64_t *words, int64_t n_threads)
{
    if (n_threads == 1) {
        words[STAGES_TICKETS] = 0;
        return true;
    }
    const int64_t generation = load_word(words + STAGES_GENERATION);
    if (fetch_add(words + STAGES_ARRIVED, 1) == n_threads - 1) {
        store_word(words + STAGES_ARRIVED, 0);
        for (int64_t tid = 0; tid < n_threads; tid++)
            store_word(words + STAGES_TICKETS + 8 * tid, 0);
        store_word(words + STAGES_GENERATION, generation + 1);
        return true;
    }
    for (int spins = 0; load_word(words + STAGES_GENERATION) == generation;) {
        if (load_word(words + STAGES_ABORTED) != 0)
            return false;
        if (spins < SPINS) {
            spins++;
            relax();
        } else {
            yield_core();
        }
    }
    return true;
}

/* One of `total` work items of a phase, each to one thread only; `total` when all went.

   A thread draws from its own share first, the same at every step, and finds in its caches what it
   left there; then it helps the others. */
static int64_t draw(int64_t *words, int64_t tid, int64_t n_threads, int64_t total)
{
    if (n_threads == 1)
        return least(words[STAGES_TICKETS]++, total);
    for (int64_t turn = 0; turn < n_threads; turn++) {
        const int64_t owner = tid + turn < n_threads ? tid + turn : tid + turn - n_threads;
        const int64_t first = owner * total / n_threads;
        const int64_t size = (owner + 1) * total / n_threads - first;
        int64_t *counter = words + STAGES_TICKETS + 8 * owner;
        /* Look first: what is used up shall not be pulled to and fro among the caches. */
        if (load_word(counter) < size) {
            const int64_t ticket = fetch_add(counter, 1);
            if (ticket < size)
                return first + ticket;
        }
    }
    return total;
}

#endif
