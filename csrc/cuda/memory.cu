/* Memory and streams of the device, and the calls that wait for it. */

#include "kernels.h"
#include "platform.h"

extern "C" int fn_cuda_devices(int *count) { return told(cudaGetDeviceCount(count)); }

extern "C" const char *fn_cuda_error(int error)
{
    return error < 0 ? "the extension has no such tile"
                     : cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int fn_cuda_allocate(void **place, size_t bytes) { return told(cudaMalloc(place, bytes)); }

extern "C" int fn_cuda_release(void *place) { return told(cudaFree(place)); }

extern "C" int fn_cuda_clear(void *place, size_t bytes, void *stream)
{
    return told(cudaMemsetAsync(place, 0, bytes, static_cast<cudaStream_t>(stream)));
}

extern "C" int fn_cuda_copy(void *to, const void *source, size_t bytes, void *stream)
{
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    return told(cudaMemcpyAsync(to, source, bytes, cudaMemcpyDefault, on));
}

extern "C" int fn_cuda_wait(void *stream)
{
    return told(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

extern "C" int fn_cuda_stream(void **stream)
{
    cudaStream_t made = nullptr;
    const int wrong = told(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    *stream = made;
    return wrong;
}

extern "C" int fn_cuda_end_stream(void *stream)
{
    return told(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
}
