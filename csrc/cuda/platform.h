/* What nvcc and a C++ compiler with emulation.h call by different names. */

#ifndef FN_PLATFORM_H
#define FN_PLATFORM_H

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
/* An array of the block, its start fit for 16-byte access. */
#define FN_SHARED(T, name, count) __shared__ __align__(16) T name[count]
/* The array of the block whose size its launch tells; a kernel has one. */
#define FN_LAUNCHED_SHARED(T, name)                                                                \
    extern __shared__ __align__(16) unsigned char launched_shared[];                               \
    T *const name = reinterpret_cast<T *>(launched_shared)
/* A parameter of a kernel that is read in place, wherever in it the reader looks. */
#define FN_GRID_CONSTANT __grid_constant__
#else
#include "emulation.h"
#define FN_GRID_CONSTANT
#define FN_SHARED(T, name, count) T *const name = emulated::shared<T>(count)
#define FN_LAUNCHED_SHARED(T, name) T *const name = emulated::launched_shared<T>()
#endif

/* A template's function for the dtype that C code names. */
#ifdef FN_ONLY_SINGLE /* for tests that compile often */
#define FN_OF(dtype, name) ((dtype) == FN_DOUBLE ? name<float> : name<float>)
#else
#define FN_OF(dtype, name) ((dtype) == FN_DOUBLE ? name<double> : name<float>)
#endif

#define FN_DEVICE __device__ __forceinline__

/* What a call but a launch returned, as a number. CUDA remembers an error until it is asked: it
   would be the next launch's, long after whoever ran out of memory found another way. */
inline int told(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return static_cast<int>(error);
}

template <class... Parameters, class... Args>
int launch_with(size_t shared, cudaStream_t stream, dim3 grid, dim3 block,
                void (*kernel)(Parameters...), Args... args)
{
#ifdef __CUDACC__
    kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(args)...);
#else
    emulated::start(stream, [=] {
        emulated::run(grid, block, shared, kernel, static_cast<Parameters>(args)...);
    });
#endif
    return static_cast<int>(cudaGetLastError());
}

/* Start a kernel; returns 0, or the error of CUDA. */
template <class... Parameters, class... Args>
int launch(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), Args... args)
{
    return launch_with(0, stream, grid, block, kernel, args...);
}

/* The most bytes of a launched array: of the 99 KiB that a block can have on the smallest card from
   sm_80 on, some are left for arrays whose size is known. */
constexpr int LAUNCHED_BYTES = 96 << 10;

/* The same of a kernel with a launched array, of so many bytes. */
template <class... Parameters, class... Args>
int launch_sharing(size_t bytes, cudaStream_t stream, dim3 grid, dim3 block,
                   void (*kernel)(Parameters...), Args... args)
{
    /* More than 48 KiB must be asked for: as much as any launch may take, since another thread's
       launch of the same kernel may come in between. */
    const int wrong = told(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, LAUNCHED_BYTES));
    return wrong ? wrong : launch_with(bytes, stream, grid, block, kernel, args...);
}

constexpr int ceiling(int64_t n, int64_t by) { return static_cast<int>((n + by - 1) / by); }

/* The thread's number in its block, and all that follows from it is found anew: a compiler knows that
   the number never changes, and would find all places that follow from it before a loop over steps,
   for which there are too few registers. */
FN_DEVICE int thread_anew()
{
#ifdef __CUDACC__
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return static_cast<int>(threadIdx.x);
#endif
}

/* 16 bytes, which one instruction loads and stores. */
template <class T> struct alignas(16) Pack {
    static constexpr int SIZE = 16 / static_cast<int>(sizeof(T));
    T at[SIZE];
};

/* Whether rows of that many numbers can be read in packs. */
template <class T> bool whole_packs(const T *start, int64_t width)
{
    return reinterpret_cast<uintptr_t>(start) % 16 == 0 && width % Pack<T>::SIZE == 0;
}

FN_DEVICE float fused(float x, float y, float z) { return fmaf(x, y, z); }
FN_DEVICE double fused(double x, double y, double z) { return fma(x, y, z); }

#endif
