# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, nonecheck=False, embedsignature=False
"""Binds the kernels in C to NumPy arrays; fastneuron/kernels/cython_cpu.py is its face.

Every array is C-contiguous, of the dtype that the first array of numbers has, int64 or float64; the
face and its callers have seen to that. An empty array stands for what is left out. Functions and
arguments are those of the compiled kernels of fastneuron/kernels/numba_cpu. The lock of the
interpreter is released while a kernel runs.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t

cnp.import_array()

cdef extern from "kernels.h" nogil:
    ctypedef struct fn_training:
        int64_t stages
        void *arena
        int64_t *head
        const int64_t *layers
        const int64_t *tiles
        const void *x
        int64_t x_columns
        const int64_t *labels
        const void *targets
        int64_t target_columns
        const void *weight
        const int64_t *order
        const int64_t *bounds
        int64_t n_steps
        const double *scalars
        double *losses
        int64_t *words
        int64_t tid
        int64_t n_threads

    ctypedef struct fn_inference:
        void *arena
        const int64_t *head
        const int64_t *layers
        const void *x
        int64_t n_rows
        int64_t x_columns
        void *out
        int64_t *words
        int64_t tid
        int64_t n_threads

    ctypedef struct fn_kernels:
        int64_t vector_bytes
        void (*train)(const fn_training *) noexcept nogil
        void (*infer)(const fn_inference *) noexcept nogil
        void (*dense_forward)(
            const void *, const void *, const void *, int64_t, int64_t, int64_t, int64_t, void *,
            void *,
        ) noexcept nogil
        void (*bias_act_forward)(
            const void *, const void *, int64_t, int64_t, int64_t, void *
        ) noexcept nogil
        void (*act_bias_backward)(
            const void *, const void *, int64_t, int64_t, int64_t, void *, void *
        ) noexcept nogil
        void (*dense_backward)(
            const void *, const void *, const void *, const void *, int64_t, int64_t, int64_t,
            int64_t, void *, void *, void *, void *,
        ) noexcept nogil
        void (*loss_rows)(
            int64_t, const void *, const int64_t *, const void *, const void *, int64_t, int64_t,
            void *, void *, void *,
        ) noexcept nogil
        void (*update_run)(
            int64_t, void *, const void *, void *, void *, int64_t, const double *, double, void *
        ) noexcept nogil
        void (*multiply_adds)(void *, int64_t) noexcept nogil
        void (*read_all)(const void *, int64_t, int64_t, void *) noexcept nogil
        void (*copy_all)(const void *, void *, int64_t, int64_t) noexcept nogil

cdef extern from "constants.h" nogil:
    const char *FN_CONSTANTS

cdef extern from "choose.h" nogil:
    const char *const *fn_names
    int fn_supported(const char *)
    const fn_kernels *fn_kernels_of(const char *, int)

# The kernels in use, of float32 and of float64.
cdef const fn_kernels *_kernels[2]
cdef str _chosen = ""


def constants():
    """Name of the tables and codes that the kernels were built with."""
    return FN_CONSTANTS.decode()


def instruction_sets():
    """Names of those that were built and that this processor runs, the best last."""
    cdef int i = 0
    cdef list found = []
    while fn_names[i] != NULL:
        if fn_supported(fn_names[i]):
            found.append(fn_names[i].decode())
        i += 1
    return found


def choose(str name not None):
    """Use the kernels of an instruction set out of `instruction_sets`."""
    global _chosen
    if name not in instruction_sets():
        raise ValueError(name)
    cdef bytes encoded = name.encode()
    _kernels[0] = fn_kernels_of(encoded, 0)
    _kernels[1] = fn_kernels_of(encoded, 1)
    _chosen = name


def chosen():
    """Name of the instruction set in use."""
    return _chosen


def vector_bytes():
    """Bytes of a register of the instruction set in use."""
    return _kernels[0].vector_bytes


cdef inline const fn_kernels *_of(cnp.ndarray like) noexcept:
    return _kernels[cnp.PyArray_ITEMSIZE(like) == 8]


cdef inline void *_data(cnp.ndarray array) noexcept:
    """Address of an array's numbers, NULL where it has none."""
    return cnp.PyArray_DATA(array) if cnp.PyArray_SIZE(array) > 0 else NULL


def train(
    int64_t stages, cnp.ndarray arena not None, cnp.ndarray head not None,
    cnp.ndarray layers not None, cnp.ndarray tiles not None, cnp.ndarray x not None,
    cnp.ndarray labels not None, cnp.ndarray targets not None, cnp.ndarray weight not None,
    cnp.ndarray order not None, cnp.ndarray bounds not None, cnp.ndarray scalars not None,
    cnp.ndarray losses not None, cnp.ndarray words not None, int64_t tid, int64_t n_threads,
):
    """Run a chunk of steps as thread `tid` of `n_threads`."""
    cdef fn_training work
    work.stages = stages
    work.arena = _data(arena)
    work.head = <int64_t *>_data(head)
    work.layers = <const int64_t *>_data(layers)
    work.tiles = <const int64_t *>_data(tiles)
    work.x = _data(x)
    work.x_columns = cnp.PyArray_DIM(x, 1)
    work.labels = <const int64_t *>_data(labels)
    work.targets = _data(targets)
    work.target_columns = cnp.PyArray_DIM(targets, 1)
    work.weight = _data(weight)
    work.order = <const int64_t *>_data(order)
    work.bounds = <const int64_t *>_data(bounds)
    work.n_steps = cnp.PyArray_SIZE(bounds) - 1
    work.scalars = <const double *>_data(scalars)
    work.losses = <double *>_data(losses)
    work.words = <int64_t *>_data(words)
    work.tid = tid
    work.n_threads = n_threads
    cdef const fn_kernels *kernels = _of(arena)
    with nogil:
        kernels.train(&work)


def infer(
    cnp.ndarray arena not None, cnp.ndarray head not None, cnp.ndarray layers not None,
    cnp.ndarray x not None, cnp.ndarray out not None, cnp.ndarray words not None, int64_t tid,
    int64_t n_threads,
):
    """Forward alone, as thread `tid` of `n_threads`."""
    cdef fn_inference work
    work.arena = _data(arena)
    work.head = <const int64_t *>_data(head)
    work.layers = <const int64_t *>_data(layers)
    work.x = _data(x)
    work.n_rows = cnp.PyArray_DIM(x, 0)
    work.x_columns = cnp.PyArray_DIM(x, 1)
    work.out = _data(out)
    work.words = <int64_t *>_data(words)
    work.tid = tid
    work.n_threads = n_threads
    cdef const fn_kernels *kernels = _of(arena)
    with nogil:
        kernels.infer(&work)


def forward_product(
    cnp.ndarray x not None, cnp.ndarray w not None, cnp.ndarray b not None, int64_t code,
    cnp.ndarray out not None, cnp.ndarray arena not None,
):
    """Compute f(x w + b)."""
    cdef const fn_kernels *kernels = _of(x)
    cdef void *bx = _data(x)
    cdef void *bw = _data(w)
    cdef void *bb = _data(b)
    cdef void *result = _data(out)
    cdef void *scratch = _data(arena)
    cdef int64_t rows = cnp.PyArray_DIM(x, 0), inputs = cnp.PyArray_DIM(w, 0)
    cdef int64_t outputs = cnp.PyArray_DIM(w, 1)
    with nogil:
        kernels.dense_forward(bx, bw, bb, code, rows, inputs, outputs, result, scratch)


def bias_act(
    cnp.ndarray z not None, cnp.ndarray b not None, int64_t code, cnp.ndarray out not None
):
    """Compute f(z + b)."""
    cdef const fn_kernels *kernels = _of(z)
    cdef void *bz = _data(z)
    cdef void *bb = _data(b)
    cdef void *result = _data(out)
    cdef int64_t rows = cnp.PyArray_DIM(z, 0), outputs = cnp.PyArray_DIM(z, 1)
    with nogil:
        kernels.bias_act_forward(bz, bb, code, rows, outputs, result)


def gate_reduce(
    cnp.ndarray da not None, cnp.ndarray saved not None, int64_t code, cnp.ndarray out not None,
    cnp.ndarray db not None,
):
    """Dz = da * f', db = sums of dz."""
    cdef const fn_kernels *kernels = _of(da)
    cdef void *delta = _data(da)
    cdef void *kept = _data(saved)
    cdef void *result = _data(out)
    cdef void *sums = _data(db)
    cdef int64_t rows = cnp.PyArray_DIM(da, 0), outputs = cnp.PyArray_DIM(da, 1)
    with nogil:
        kernels.act_bias_backward(delta, kept, code, rows, outputs, result, sums)


def backward_products(
    cnp.ndarray dy not None, cnp.ndarray x not None, cnp.ndarray w not None,
    cnp.ndarray saved not None, int64_t code, cnp.ndarray dx not None, cnp.ndarray dw not None,
    cnp.ndarray db not None, cnp.ndarray arena not None,
):
    """Dx = dz w^T, dw = x^T dz, db = sums of dz, with dz = dy * f'."""
    cdef const fn_kernels *kernels = _of(x)
    cdef void *delta = _data(dy)
    cdef void *bx = _data(x)
    cdef void *bw = _data(w)
    cdef void *kept = _data(saved)
    cdef void *to_x = _data(dx)
    cdef void *to_w = _data(dw)
    cdef void *to_b = _data(db)
    cdef void *scratch = _data(arena)
    cdef int64_t rows = cnp.PyArray_DIM(x, 0), inputs = cnp.PyArray_DIM(x, 1)
    cdef int64_t outputs = cnp.PyArray_DIM(w, 1)
    with nogil:
        kernels.dense_backward(
            delta, bx, bw, kept, code, rows, inputs, outputs, to_x, to_w, to_b, scratch
        )


def loss_rows(
    int64_t code, cnp.ndarray out not None, cnp.ndarray labels not None,
    cnp.ndarray targets not None, cnp.ndarray weight not None, cnp.ndarray rows not None,
    cnp.ndarray dout not None, cnp.ndarray arena not None,
):
    """Loss times weight of each row, and dL/d(out) of the weighted mean."""
    cdef const fn_kernels *kernels = _of(out)
    cdef void *outputs = _data(out)
    cdef const int64_t *numbers = <const int64_t *>_data(labels)
    cdef void *wanted = _data(targets)
    cdef void *weights = _data(weight)
    cdef void *losses = _data(rows)
    cdef void *delta = _data(dout)
    cdef void *scratch = _data(arena)
    cdef int64_t n_rows = cnp.PyArray_DIM(out, 0), columns = cnp.PyArray_DIM(out, 1)
    with nogil:
        kernels.loss_rows(
            code, outputs, numbers, wanted, weights, n_rows, columns, losses, delta, scratch
        )


def update_run(
    int64_t kind, cnp.ndarray p not None, cnp.ndarray g not None, cnp.ndarray m not None,
    cnp.ndarray v not None, cnp.ndarray scalars not None, double clip, cnp.ndarray arena not None,
):
    """One optimizer update of a run of parameters."""
    cdef const fn_kernels *kernels = _of(p)
    cdef void *parameters = _data(p)
    cdef void *slopes = _data(g)
    cdef void *first = _data(m)
    cdef void *second = _data(v)
    cdef const double *numbers = <const double *>_data(scalars)
    cdef void *scratch = _data(arena)
    cdef int64_t size = cnp.PyArray_SIZE(p)
    with nogil:
        kernels.update_run(
            kind, parameters, slopes, first, second, size, numbers, clip, scratch
        )


def multiply_adds(cnp.ndarray out not None, int64_t turns):
    """Do 12 vectors of multiply-adds, `turns` times, on the numbers of `out`."""
    cdef const fn_kernels *kernels = _of(out)
    cdef void *numbers = _data(out)
    with nogil:
        kernels.multiply_adds(numbers, turns)


def read_all(cnp.ndarray x not None, int64_t turns, cnp.ndarray out not None):
    """Read x, whole multiples of 8 vectors, `turns` times; leave the sums in `out`."""
    cdef const fn_kernels *kernels = _of(x)
    cdef void *numbers = _data(x)
    cdef void *sums = _data(out)
    cdef int64_t size = cnp.PyArray_SIZE(x)
    with nogil:
        kernels.read_all(numbers, size, turns, sums)


def copy_all(cnp.ndarray x not None, cnp.ndarray y not None, int64_t turns):
    """Do ``y = x``, whole multiples of 8 vectors, `turns` times."""
    cdef const fn_kernels *kernels = _of(x)
    cdef void *source = _data(x)
    cdef void *target = _data(y)
    cdef int64_t size = cnp.PyArray_SIZE(x)
    with nogil:
        kernels.copy_all(source, target, size, turns)
