/* Memory of the device, and the calls that wait for it. */

#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "platform.h"

#ifdef __CUDACC__

extern "C" int fn_cuda_devices(int *count)
{
    return static_cast<int>(cudaGetDeviceCount(count));
}

extern "C" const char *fn_cuda_error(int error)
{
    return error < 0 ? "the extension has no such tile"
                     : cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int fn_cuda_allocate(void **place, size_t bytes)
{
    return static_cast<int>(cudaMalloc(place, bytes));
}

extern "C" int fn_cuda_release(void *place) { return static_cast<int>(cudaFree(place)); }

extern "C" int fn_cuda_clear(void *place, size_t bytes, void *stream)
{
    return static_cast<int>(cudaMemsetAsync(place, 0, bytes, static_cast<cudaStream_t>(stream)));
}

extern "C" int fn_cuda_copy(void *to, const void *source, size_t bytes, void *stream)
{
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    return static_cast<int>(cudaMemcpyAsync(to, source, bytes, cudaMemcpyDefault, on));
}

extern "C" int fn_cuda_wait(void *stream)
{
    return static_cast<int>(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

#else

extern "C" int fn_cuda_devices(int *count)
{
    *count = 1;
    return 0;
}

extern "C" const char *fn_cuda_error(int) { return "it is out of memory or has no such tile"; }

extern "C" int fn_cuda_allocate(void **place, size_t bytes)
{
    *place = std::aligned_alloc(256, (bytes + 255) / 256 * 256); /* as cudaMalloc aligns */
    if (*place)
        std::memset(*place, emulated::POISON, bytes);
    return *place ? 0 : -1;
}

extern "C" int fn_cuda_release(void *place)
{
    std::free(place);
    return 0;
}

extern "C" int fn_cuda_clear(void *place, size_t bytes, void *)
{
    std::memset(place, 0, bytes);
    return 0;
}

extern "C" int fn_cuda_copy(void *to, const void *source, size_t bytes, void *)
{
    std::memcpy(to, source, bytes);
    return 0;
}

extern "C" int fn_cuda_wait(void *) { return 0; }

#endif
