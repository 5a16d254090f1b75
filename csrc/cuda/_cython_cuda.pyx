# cython: language_level=3
"""Binds csrc/cuda/kernels.h; fastneuron/kernels/cython_cuda.py is its face.

Arrays are addresses, of the device but for those that `copy` takes: whole numbers, 0 for none. What
a function does is said in kernels.h. What CUDA refuses raises RuntimeError with CUDA's words; the
lock of the interpreter is released meanwhile.
"""

from libc.stdint cimport int64_t, uintptr_t

cdef extern from "constants.h" nogil:
    const char *FN_CONSTANTS

cdef extern from "kernels.h" nogil:
    int fn_cuda_tile(int dtype, int tile, int *sizes)
    int fn_cuda_forward(
        int dtype, int tile, int activation, const void *x, const void *w, const void *bias,
        void *a, void *z, int rows, int inputs, int outputs, void *stream,
    )
    int fn_cuda_data_gradient(
        int dtype, int tile, int activation, const void *dz_above, const void *w,
        const void *saved, void *dz, void *partial, int rows, int inputs, int outputs,
        void *stream,
    )
    int fn_cuda_weight_gradient(
        int dtype, int tile, const void *x, const void *dz, void *dw, int rows, int inputs,
        int outputs, int rows_of_slice, void *stream,
    )
    int fn_cuda_gather(
        int dtype, const void *x, const void *order, const void *bounds, const void *state,
        void *out, int n, int rows, int width, void *stream,
    )
    int fn_cuda_bias_act_forward(
        int dtype, int activation, const void *z, const void *bias, void *a, int rows,
        int outputs, void *stream,
    )
    int fn_cuda_act_bias_backward(
        int dtype, int activation, const void *da, const void *saved, void *dz, void *partial,
        int rows, int outputs, int rows_of_group, void *stream,
    )
    int fn_cuda_sum_parts(
        int dtype, const void *parts, double factor, void *sums, int count, int n, void *stream,
    )
    int fn_cuda_dropout(
        int dtype, const void *x, const void *scalars, const void *state, unsigned layer,
        unsigned dropped, double rate, void *y, int rows, int columns, void *stream,
    )
    int fn_cuda_loss_rows(
        int dtype, int loss, const void *out, const void *targets, const void *labels,
        const void *weight, void *row_losses, void *dout, int rows, int outputs, void *stream,
    )
    int fn_cuda_batch_loss(
        int dtype, const void *row_losses, void *losses, void *state, int rows, void *stream,
    )
    int fn_cuda_norm_parts(int64_t n)
    int fn_cuda_clip(
        int dtype, const void *g, const void *marks, void *partial, const void *scalars,
        void *state, int64_t n, void *stream,
    )
    int fn_cuda_update(
        int dtype, int kind, void *p, const void *g, void *m, void *v, const void *marks,
        const void *scalars, const void *state, int64_t n, void *stream,
    )
    int fn_cuda_advance(void *state, void *stream)
    int fn_cuda_spread(
        int dtype, const void *x, const void *mean, void *partial, int rows, int columns,
        int rows_of_group, void *stream,
    )
    int fn_cuda_inverse_root(
        int dtype, const void *variance, double epsilon, void *inverse, int n, void *stream,
    )
    int fn_cuda_row_moments(
        int dtype, const void *x, double epsilon, void *mean, void *inverse, int rows,
        int columns, void *stream,
    )
    int fn_cuda_norm_forward(
        int dtype, int activation, const void *x, const void *mean, const void *inverse,
        int of_rows, const void *weight, const void *bias, void *a, void *z, int rows,
        int columns, void *stream,
    )
    int fn_cuda_norm_sums(
        int dtype, const void *x, const void *mean, const void *inverse, int of_rows,
        const void *dy, void *partial, int rows, int columns, int rows_of_group, void *stream,
    )
    int fn_cuda_batch_backward(
        int dtype, const void *x, const void *mean, const void *inverse, const void *weight,
        const void *dy, const void *dweight, const void *dbias, void *dx, int rows, int columns,
        void *stream,
    )
    int fn_cuda_layer_backward(
        int dtype, const void *x, const void *mean, const void *inverse, const void *weight,
        const void *dy, void *dx, int rows, int columns, void *stream,
    )
    int fn_cuda_move_statistics(
        int dtype, const void *mean, const void *variance, void *running_mean,
        void *running_variance, double momentum, int rows, int n, const void *state,
        void *stream,
    )
    int fn_cuda_devices(int *count)
    const char *fn_cuda_error(int error)
    int fn_cuda_allocate(void **place, size_t bytes)
    int fn_cuda_release(void *place)
    int fn_cuda_clear(void *place, size_t bytes, void *stream)
    int fn_cuda_copy(void *to, const void *source, size_t bytes, void *stream)
    int fn_cuda_wait(void *stream)


cdef int _check(int error, str name) except -1:
    if error != 0:
        raise RuntimeError(f"CUDA, {name}: {fn_cuda_error(error).decode()}")
    return 0


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


def allocate(size_t size):
    """Address of that many bytes of the device; MemoryError where it has no more."""
    cdef void *place = NULL
    cdef int error
    with nogil:
        error = fn_cuda_allocate(&place, size)
    if error != 0:
        raise MemoryError(f"the device has no {size} bytes more: {fn_cuda_error(error).decode()}")
    return <uintptr_t>place


def forward(
    int dtype, int tile, int activation, uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t a,
    uintptr_t z, int rows, int inputs, int outputs, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_forward(
            dtype, tile, activation, <const void *>x, <const void *>w, <const void *>bias,
            <void *>a, <void *>z, rows, inputs, outputs, <void *>stream,
        )
    _check(error, "forward")


def data_gradient(
    int dtype, int tile, int activation, uintptr_t dz_above, uintptr_t w, uintptr_t saved,
    uintptr_t dz, uintptr_t partial, int rows, int inputs, int outputs, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_data_gradient(
            dtype, tile, activation, <const void *>dz_above, <const void *>w, <const void *>saved,
            <void *>dz, <void *>partial, rows, inputs, outputs, <void *>stream,
        )
    _check(error, "data_gradient")


def weight_gradient(
    int dtype, int tile, uintptr_t x, uintptr_t dz, uintptr_t dw, int rows, int inputs,
    int outputs, int rows_of_slice, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_weight_gradient(
            dtype, tile, <const void *>x, <const void *>dz, <void *>dw, rows, inputs, outputs,
            rows_of_slice, <void *>stream,
        )
    _check(error, "weight_gradient")


def gather(
    int dtype, uintptr_t x, uintptr_t order, uintptr_t bounds, uintptr_t state, uintptr_t out,
    int n, int rows, int width, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_gather(
            dtype, <const void *>x, <const void *>order, <const void *>bounds,
            <const void *>state, <void *>out, n, rows, width, <void *>stream,
        )
    _check(error, "gather")


def bias_act_forward(
    int dtype, int activation, uintptr_t z, uintptr_t bias, uintptr_t a, int rows, int outputs,
    uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_bias_act_forward(
            dtype, activation, <const void *>z, <const void *>bias, <void *>a, rows, outputs,
            <void *>stream,
        )
    _check(error, "bias_act_forward")


def act_bias_backward(
    int dtype, int activation, uintptr_t da, uintptr_t saved, uintptr_t dz, uintptr_t partial,
    int rows, int outputs, int rows_of_group, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_act_bias_backward(
            dtype, activation, <const void *>da, <const void *>saved, <void *>dz, <void *>partial,
            rows, outputs, rows_of_group, <void *>stream,
        )
    _check(error, "act_bias_backward")


def sum_parts(
    int dtype, uintptr_t parts, double factor, uintptr_t sums, int count, int n, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_sum_parts(
            dtype, <const void *>parts, factor, <void *>sums, count, n, <void *>stream,
        )
    _check(error, "sum_parts")


def dropout(
    int dtype, uintptr_t x, uintptr_t scalars, uintptr_t state, unsigned layer, unsigned dropped,
    double rate, uintptr_t y, int rows, int columns, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_dropout(
            dtype, <const void *>x, <const void *>scalars, <const void *>state, layer, dropped,
            rate, <void *>y, rows, columns, <void *>stream,
        )
    _check(error, "dropout")


def loss_rows(
    int dtype, int loss, uintptr_t out, uintptr_t targets, uintptr_t labels, uintptr_t weight,
    uintptr_t row_losses, uintptr_t dout, int rows, int outputs, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_loss_rows(
            dtype, loss, <const void *>out, <const void *>targets, <const void *>labels,
            <const void *>weight, <void *>row_losses, <void *>dout, rows, outputs, <void *>stream,
        )
    _check(error, "loss_rows")


def batch_loss(
    int dtype, uintptr_t row_losses, uintptr_t losses, uintptr_t state, int rows,
    uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_batch_loss(
            dtype, <const void *>row_losses, <void *>losses, <void *>state, rows, <void *>stream,
        )
    _check(error, "batch_loss")


def clip(
    int dtype, uintptr_t g, uintptr_t marks, uintptr_t partial, uintptr_t scalars,
    uintptr_t state, int64_t n, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_clip(
            dtype, <const void *>g, <const void *>marks, <void *>partial, <const void *>scalars,
            <void *>state, n, <void *>stream,
        )
    _check(error, "clip")


def update(
    int dtype, int kind, uintptr_t p, uintptr_t g, uintptr_t m, uintptr_t v, uintptr_t marks,
    uintptr_t scalars, uintptr_t state, int64_t n, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_update(
            dtype, kind, <void *>p, <const void *>g, <void *>m, <void *>v, <const void *>marks,
            <const void *>scalars, <const void *>state, n, <void *>stream,
        )
    _check(error, "update")


def advance(uintptr_t state, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_advance(<void *>state, <void *>stream)
    _check(error, "advance")


def spread(
    int dtype, uintptr_t x, uintptr_t mean, uintptr_t partial, int rows, int columns,
    int rows_of_group, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_spread(
            dtype, <const void *>x, <const void *>mean, <void *>partial, rows, columns,
            rows_of_group, <void *>stream,
        )
    _check(error, "spread")


def inverse_root(
    int dtype, uintptr_t variance, double epsilon, uintptr_t inverse, int n, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_inverse_root(
            dtype, <const void *>variance, epsilon, <void *>inverse, n, <void *>stream,
        )
    _check(error, "inverse_root")


def row_moments(
    int dtype, uintptr_t x, double epsilon, uintptr_t mean, uintptr_t inverse, int rows,
    int columns, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_row_moments(
            dtype, <const void *>x, epsilon, <void *>mean, <void *>inverse, rows, columns,
            <void *>stream,
        )
    _check(error, "row_moments")


def norm_forward(
    int dtype, int activation, uintptr_t x, uintptr_t mean, uintptr_t inverse, int of_rows,
    uintptr_t weight, uintptr_t bias, uintptr_t a, uintptr_t z, int rows, int columns,
    uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_norm_forward(
            dtype, activation, <const void *>x, <const void *>mean, <const void *>inverse,
            of_rows, <const void *>weight, <const void *>bias, <void *>a, <void *>z, rows,
            columns, <void *>stream,
        )
    _check(error, "norm_forward")


def norm_sums(
    int dtype, uintptr_t x, uintptr_t mean, uintptr_t inverse, int of_rows, uintptr_t dy,
    uintptr_t partial, int rows, int columns, int rows_of_group, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_norm_sums(
            dtype, <const void *>x, <const void *>mean, <const void *>inverse, of_rows,
            <const void *>dy, <void *>partial, rows, columns, rows_of_group, <void *>stream,
        )
    _check(error, "norm_sums")


def batch_backward(
    int dtype, uintptr_t x, uintptr_t mean, uintptr_t inverse, uintptr_t weight, uintptr_t dy,
    uintptr_t dweight, uintptr_t dbias, uintptr_t dx, int rows, int columns, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_batch_backward(
            dtype, <const void *>x, <const void *>mean, <const void *>inverse,
            <const void *>weight, <const void *>dy, <const void *>dweight, <const void *>dbias,
            <void *>dx, rows, columns, <void *>stream,
        )
    _check(error, "batch_backward")


def layer_backward(
    int dtype, uintptr_t x, uintptr_t mean, uintptr_t inverse, uintptr_t weight, uintptr_t dy,
    uintptr_t dx, int rows, int columns, uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_layer_backward(
            dtype, <const void *>x, <const void *>mean, <const void *>inverse,
            <const void *>weight, <const void *>dy, <void *>dx, rows, columns, <void *>stream,
        )
    _check(error, "layer_backward")


def move_statistics(
    int dtype, uintptr_t mean, uintptr_t variance, uintptr_t running_mean,
    uintptr_t running_variance, double momentum, int rows, int n, uintptr_t state,
    uintptr_t stream,
):
    cdef int error
    with nogil:
        error = fn_cuda_move_statistics(
            dtype, <const void *>mean, <const void *>variance, <void *>running_mean,
            <void *>running_variance, momentum, rows, n, <const void *>state, <void *>stream,
        )
    _check(error, "move_statistics")


def release(uintptr_t place):
    cdef int error
    with nogil:
        error = fn_cuda_release(<void *>place)
    _check(error, "release")


def clear(uintptr_t place, size_t bytes, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_clear(<void *>place, bytes, <void *>stream)
    _check(error, "clear")


def copy(uintptr_t to, uintptr_t source, size_t bytes, uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_copy(<void *>to, <const void *>source, bytes, <void *>stream)
    _check(error, "copy")


def wait(uintptr_t stream):
    cdef int error
    with nogil:
        error = fn_cuda_wait(<void *>stream)
    _check(error, "wait")
