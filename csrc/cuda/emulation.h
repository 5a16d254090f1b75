/* CUDA on std::thread: a C++20 compiler makes the kernels from the same text, one thread a thread.

   The blocks of a grid run one after the other on one team of threads, in ascending order, or in
   descending order where FN_EMULATED_REVERSED is set: results may not depend on it. What a block
   leaves in shared memory is poisoned before the next. ThreadSanitizer sees every access, and so
   finds a barrier that is missing; a barrier that some threads of a block pass by, a write past a
   shared array and more shared memory than a block has, or was asked for, end the process with a
   message. */

#ifndef FN_EMULATION_H
#define FN_EMULATION_H

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "emulated_runtime.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulated {

constexpr unsigned WARP = 32;
/* What a block can have without being asked for more: 48 KiB on every card from sm_50 on. */
constexpr size_t SHARED_BYTES = 48 << 10;
/* What it can have on request: 99 KiB on the smallest card from sm_80 on. */
constexpr size_t MOST_SHARED_BYTES = 99 << 10;
constexpr size_t GUARD_BYTES = 64;
constexpr unsigned char POISON = 0xFF, GUARD = 0xA5;

[[noreturn]] inline void fail(const char *what)
{
    std::fprintf(stderr, "CUDA emulation: %s\n", what);
    std::abort();
}

/* What the threads of a block share. */
class Block {
public:
    /* `launched` bytes of the array whose size the launch tells; more than usual where `asked`. */
    Block(unsigned threads, size_t launched, size_t asked)
        : threads(threads), lanes(threads), launched_bytes(launched), asked_bytes(asked),
          memory(LAUNCHED_AT / 64 + (launched + GUARD_BYTES + 63) / 64),
          barrier(static_cast<std::ptrdiff_t>(threads), Between{this})
    {
        for (unsigned first = 0; first < threads; first += WARP) {
            const unsigned size = threads - first < WARP ? threads - first : WARP;
            warps.emplace_back(new std::barrier<>(static_cast<std::ptrdiff_t>(size)));
        }
        between();
    }

    void meet() { barrier.arrive_and_wait(); }

    /* The end of the block: no thread begins the next one before all are here. */
    void end()
    {
        ended.fetch_add(1, std::memory_order_relaxed);
        meet();
    }

    void meet_warp(unsigned thread) { warps[thread / WARP]->arrive_and_wait(); }

    /* The shared array that begins at `used`; moves `used` to where the next one does. */
    void *shared(size_t bytes, size_t *used, unsigned thread)
    {
        const size_t start = *used;
        *used += (bytes + 15) / 16 * 16 + GUARD_BYTES;
        check(start + bytes);
        if (thread == 0)
            guard(start + bytes, *used);
        return bytes_at(start);
    }

    void *launched_shared() { return bytes_at(LAUNCHED_AT); }

    const unsigned threads;
    std::vector<uint64_t> lanes; /* what each thread shows to its warp */

private:
    static constexpr size_t LAUNCHED_AT = SHARED_BYTES + 16 * GUARD_BYTES;
    struct alignas(64) Line {
        unsigned char bytes[64];
    };
    struct Between {
        Block *block;
        void operator()() const noexcept { block->arrived(); }
    };
    struct Range {
        size_t start, end;
    };

    /* Runs in one thread when all have come to a barrier. */
    void arrived()
    {
        const unsigned count = ended.load(std::memory_order_relaxed);
        if (count == 0)
            return;
        if (count != threads)
            fail("some threads of a block wait at a barrier that others never come to");
        ended.store(0, std::memory_order_relaxed);
        between();
    }

    void between()
    {
        for (const Range &range : guards)
            for (size_t i = range.start; i < range.end; i++)
                if (*bytes_at(i) != GUARD)
                    fail("a write past the end of a shared array");
        guards.clear();
        std::memset(bytes_at(0), POISON, memory.size() * sizeof(Line));
        check(0);
        guard(LAUNCHED_AT - GUARD_BYTES, LAUNCHED_AT);
        guard(LAUNCHED_AT + launched_bytes, LAUNCHED_AT + launched_bytes + GUARD_BYTES);
    }

    void check(size_t bytes) const
    {
        if (!asked_bytes && bytes + launched_bytes > SHARED_BYTES)
            fail("a block asks for more shared memory than 48 KiB");
        if (asked_bytes && launched_bytes > asked_bytes)
            fail("a launch takes more shared memory than its kernel was given");
        if (bytes + launched_bytes > MOST_SHARED_BYTES)
            fail("a block asks for more shared memory than 99 KiB");
    }

    void guard(size_t start, size_t end)
    {
        std::memset(bytes_at(start), GUARD, end - start);
        guards.push_back({start, end});
    }

    unsigned char *bytes_at(size_t i) { return memory.data()->bytes + i; }

    const size_t launched_bytes, asked_bytes;
    std::vector<Line> memory;
    std::vector<Range> guards;
    std::atomic<unsigned> ended{0};
    std::barrier<Between> barrier;
    std::vector<std::unique_ptr<std::barrier<>>> warps;
};

/* What a thread knows of itself. */
struct Thread {
    dim3 thread, block, block_size, grid;
    unsigned place;
    size_t shared_used;
    Block *team;
};
inline thread_local Thread self;

template <class T> T *shared(size_t count)
{
    return static_cast<T *>(self.team->shared(count * sizeof(T), &self.shared_used, self.place));
}

template <class T> T *launched_shared()
{
    return static_cast<T *>(self.team->launched_shared());
}

template <class T> T of_lane(T value, unsigned lane)
{
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const unsigned first = self.place / WARP * WARP;
    std::memcpy(&self.team->lanes[self.place], &value, sizeof value);
    self.team->meet_warp(self.place);
    if (lane < WARP && first + lane < self.team->threads)
        std::memcpy(&value, &self.team->lanes[first + lane], sizeof value);
    self.team->meet_warp(self.place);
    return value;
}

template <class Kernel, class... Args>
void run(dim3 grid, dim3 block, size_t shared, Kernel kernel, Args... args)
{
    const unsigned threads = block.x * block.y * block.z;
    const unsigned blocks = grid.x * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535)
        fail("no card takes a grid or a block of this size");
    const bool reversed = std::getenv("FN_EMULATED_REVERSED") != nullptr;
    Block team(threads, shared, asked_bytes[reinterpret_cast<const void *>(kernel)]);
    const auto work = [&](unsigned place) {
        const dim3 thread(place % block.x, place / block.x % block.y, place / block.x / block.y);
        for (unsigned i = 0; i < blocks; i++) {
            const unsigned b = reversed ? blocks - 1 - i : i;
            const dim3 index(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
            self = Thread{thread, index, block, grid, place, 0, &team};
            kernel(args...);
            team.end();
        }
    };
    std::vector<std::thread> others;
    for (unsigned place = 1; place < threads; place++)
        others.emplace_back(work, place);
    work(0);
    for (std::thread &other : others)
        other.join();
}

} // namespace emulated

#define threadIdx (emulated::self.thread)
#define blockIdx (emulated::self.block)
#define blockDim (emulated::self.block_size)
#define gridDim (emulated::self.grid)

inline void __syncthreads() { emulated::self.team->meet(); }

template <class T> T __shfl_xor_sync(unsigned, T value, int mask)
{
    return emulated::of_lane(value, (emulated::self.place % emulated::WARP) ^ unsigned(mask));
}

#endif
