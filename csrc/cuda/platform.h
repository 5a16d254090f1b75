/* What nvcc and a C++ compiler with emulation.h call by different names. */

#ifndef FN_PLATFORM_H
#define FN_PLATFORM_H

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
/* An array of the block, its start fit for 16-byte access. */
#define FN_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#else
#include "emulation.h"
#define FN_SHARED(T, name, count) T *const name = emulated::shared<T>(count)
#endif

/* A template's function for the dtype that C code names. */
#ifdef FN_ONLY_SINGLE /* for tests that compile often */
#define FN_OF(dtype, name) ((dtype) == FN_DOUBLE ? name<float> : name<float>)
#else
#define FN_OF(dtype, name) ((dtype) == FN_DOUBLE ? name<double> : name<float>)
#endif

#define FN_DEVICE __device__ __forceinline__

/* Start a kernel; returns 0, or the error of CUDA. */
template <class... Parameters, class... Args>
int launch(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), Args... args)
{
#ifdef __CUDACC__
    kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(args)...);
#else
    emulated::start(stream, [=] {
        emulated::run(grid, block, kernel, static_cast<Parameters>(args)...);
    });
#endif
    return static_cast<int>(cudaGetLastError());
}

/* What a call but a launch returned, as a number. CUDA remembers an error until it is asked: it
   would be the next launch's, long after whoever ran out of memory found another way. */
inline int told(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return static_cast<int>(error);
}

constexpr int ceiling(int64_t n, int64_t by) { return static_cast<int>((n + by - 1) / by); }

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
