/* CUDA's runtime on the processor: of its memory, streams, graphs and errors what memory.cu and
   calls.cu ask, by the same names. Launches run at once, or while a stream records when the graph
   is launched. As in CUDA a recording stream refuses all but launches, and a call that fails leaves
   its error to be found by the next cudaGetLastError, which ours must not be a later launch's. */

#ifndef FN_EMULATED_RUNTIME_H
#define FN_EMULATED_RUNTIME_H

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

/* Numbers of driver_types.h. */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum { cudaStreamNonBlocking = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace emulated {

constexpr unsigned char FRESH = 0xFF; /* bytes of new memory */

typedef std::vector<std::function<void()>> Launches;
struct Stream {
    bool recording = false, invalid = false;
    Launches recorded;
};
inline thread_local cudaError_t last_error = cudaSuccess;
/* Of a kernel, the shared memory that its launches may take beyond what all may. */
inline std::map<const void *, size_t> asked_bytes;

inline cudaError_t failed(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

/* Whether a stream can do what is not recorded; a recording ends with that. */
inline cudaError_t asked(Stream *stream)
{
    if (!stream || !stream->recording)
        return cudaSuccess;
    stream->invalid = true;
    return failed(cudaErrorStreamCaptureUnsupported);
}

template <class Work> void start(Stream *stream, Work work)
{
    if (stream && stream->recording)
        stream->recorded.push_back(work);
    else
        work();
}

} // namespace emulated

typedef emulated::Stream *cudaStream_t;
typedef emulated::Launches *cudaGraph_t, *cudaGraphExec_t;

inline cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }

inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "not while a stream records";
}

inline cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel *kernel, cudaFuncAttribute, int bytes)
{
    emulated::asked_bytes[reinterpret_cast<const void *>(kernel)] = static_cast<size_t>(bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMalloc(void **place, size_t bytes)
{
    *place = std::aligned_alloc(256, (bytes + 255) / 256 * 256); /* as cudaMalloc aligns */
    if (!*place)
        return emulated::failed(cudaErrorMemoryAllocation);
    std::memset(*place, emulated::FRESH, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaFree(void *place)
{
    std::free(place);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *place, int value, size_t bytes, cudaStream_t stream)
{
    std::memset(place, value, bytes);
    return emulated::asked(stream);
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream)
{
    std::memcpy(to, from, bytes);
    return emulated::asked(stream);
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return emulated::asked(stream); }

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new emulated::Stream;
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    if (!stream || emulated::asked(stream) != cudaSuccess)
        return emulated::failed(cudaErrorStreamCaptureUnsupported);
    stream->recording = true;
    return cudaSuccess;
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    stream->recording = false;
    const bool invalid = std::exchange(stream->invalid, false);
    emulated::Launches launches = std::exchange(stream->recorded, {});
    *graph = invalid ? nullptr : new emulated::Launches(std::move(launches));
    return emulated::failed(invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long)
{
    *made = new emulated::Launches(*graph);
    return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    delete graph;
    return cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    const cudaError_t refused = emulated::asked(stream);
    if (refused == cudaSuccess)
        for (const auto &launch : *graph)
            launch();
    return refused;
}

#endif
