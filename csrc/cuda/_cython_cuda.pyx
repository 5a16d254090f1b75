# cython: language_level=3
"""Binds csrc/cuda/kernels.h; fastneuron/kernels/device_calls.py and cython_cuda.py are its face.

Addresses are whole numbers: of the device, but for those of the host that `copy` takes and for the
lists of calls. What a function does is said in kernels.h. What CUDA refuses raises DriverError with
CUDA's words, but where something is given back: a device that failed takes it with it. The lock of
the interpreter is released meanwhile.
"""

from libc.stdint cimport int64_t, uintptr_t

from fastneuron.kernels.device_faults import DriverError

cdef extern from "constants.h" nogil:
    const char *FN_CONSTANTS

cdef extern from "kernels.h" nogil:
    ctypedef struct fn_cuda_call:
        int64_t function
    int fn_cuda_tile(int dtype, int tile, int *sizes)
    int fn_cuda_norm_parts(int64_t n)
    int fn_cuda_devices(int *count)
    const char *fn_cuda_error(int error)
    int fn_cuda_allocate(void **place, size_t bytes)
    int fn_cuda_release(void *place)
    int fn_cuda_clear(void *place, size_t bytes, void *stream)
    int fn_cuda_copy(void *to, const void *source, size_t bytes, void *stream)
    int fn_cuda_wait(void *stream)
    int fn_cuda_stream(void **stream)
    int fn_cuda_end_stream(void *stream)
    int fn_cuda_function(const char *name, int count)
    const char *fn_cuda_name(int64_t function)
    int fn_cuda_run(const fn_cuda_call *calls, int count, int64_t times, void *stream, int *at)
    int fn_cuda_record(
        const fn_cuda_call *calls, int count, int64_t times, void *stream, void **graph, int *at,
    )
    int fn_cuda_replay(void *graph, int64_t times, void *stream)
    int fn_cuda_forget(void *graph)


cdef int _check(int error, str name) except -1:
    if error != 0:
        raise DriverError(error, f"CUDA, {name}: {fn_cuda_error(error).decode()}")
    return 0


cdef str _name(const fn_cuda_call *calls, int at):
    return fn_cuda_name(calls[at].function).decode() if at >= 0 else "record"


def constants():
    """Name of the tables and codes that the kernels were built with."""
    return FN_CONSTANTS.decode()


def devices():
    """How many cards there are, and why none can be had."""
    cdef int count = 0
    cdef int error = fn_cuda_devices(&count)
    return (0, fn_cuda_error(error).decode()) if error else (count, "")


def tile(int dtype, int which):
    """Rows, columns and depth of a tile of products."""
    cdef int sizes[3]
    if fn_cuda_tile(dtype, which, sizes) == 0:
        raise ValueError(which)
    return sizes[0], sizes[1], sizes[2]


def norm_parts(int64_t n):
    """Numbers of `partial` that `clip` needs."""
    return fn_cuda_norm_parts(n)


def function(str name, int count):
    """Number of a function that takes so many arguments, and a stream."""
    cdef bytes coded = name.encode()
    cdef int found = fn_cuda_function(coded, count)
    if found < 0:
        raise LookupError(f"kernels.h has no {name} of {count} arguments and a stream")
    return found


def run(uintptr_t calls, int count, int64_t times, uintptr_t stream):
    cdef int error, at = 0
    with nogil:
        error = fn_cuda_run(<const fn_cuda_call *>calls, count, times, <void *>stream, &at)
    if error != 0:
        _check(error, _name(<const fn_cuda_call *>calls, at))


def record(uintptr_t calls, int count, int64_t times, uintptr_t stream):
    """Address of a graph."""
    cdef int error, at = -1
    cdef void *graph = NULL
    with nogil:
        error = fn_cuda_record(
            <const fn_cuda_call *>calls, count, times, <void *>stream, &graph, &at,
        )
    if error != 0:
        _check(error, _name(<const fn_cuda_call *>calls, at if at < count else -1))
    return <uintptr_t>graph


def replay(uintptr_t graph, int64_t times, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_replay(<void *>graph, times, <void *>stream)
    _check(error, "replay")


def forget(uintptr_t graph):
    with nogil:
        fn_cuda_forget(<void *>graph)


def allocate(size_t size):
    """Address of that many bytes of the device."""
    cdef void *place = NULL
    cdef int error
    with nogil:
        error = fn_cuda_allocate(&place, size)
    _check(error, f"allocate {size} bytes")
    return <uintptr_t>place


def release(uintptr_t place):
    with nogil:
        fn_cuda_release(<void *>place)


def clear(uintptr_t place, size_t size, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_clear(<void *>place, size, <void *>stream)
    _check(error, "clear")


def copy(uintptr_t to, uintptr_t source, size_t size, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_copy(<void *>to, <const void *>source, size, <void *>stream)
    _check(error, "copy")


def wait(uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_wait(<void *>stream)
    _check(error, "wait")


def stream():
    """Address of a new stream."""
    cdef void *made = NULL
    cdef int error
    with nogil:
        error = fn_cuda_stream(&made)
    _check(error, "stream")
    return <uintptr_t>made


def end_stream(uintptr_t stream):
    with nogil:
        fn_cuda_end_stream(<void *>stream)
