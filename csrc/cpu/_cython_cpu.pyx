# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, nonecheck=False, embedsignature=False
"""Elementwise slots of the compiled CPU backend; fastneuron/kernels/cython_cpu.py is their face.

Shapes: B batch rows, O outputs, N parameters. Every loop works row by row over contiguous memory and
visits each word once. Indices are Py_ssize_t, so more than 2^31 words are fine. The lock of the
interpreter is released for the whole loop. Nothing here raises: the face has checked dtypes already.
"""

from cython cimport floating
from libc.math cimport erfc, exp, expf, expm1, expm1f, fabs, log1p, log1pf, sqrt, sqrtf, tanh, tanhf

# The codes of fastneuron.activations.
cdef enum:
    IDENTITY = 0
    RELU = 1
    LEAKY_RELU = 2
    ELU = 3
    GELU = 4
    SILU = 5
    SOFTPLUS = 6
    SIGMOID = 7
    TANH = 8

# The columns of fastneuron.optimizers.
cdef enum:
    RATE = 0
    L2 = 1
    SHRINK = 2
    BETA1 = 3
    BETA2 = 4
    EPSILON = 5
    CORRECTION = 6

cdef double SQRT_HALF = 0.70710678118654752440
cdef double INV_SQRT_2PI = 0.39894228040143267794


cdef inline floating _exp(floating x) noexcept nogil:
    if floating is float:
        return expf(x)
    else:
        return exp(x)


cdef inline floating _expm1(floating x) noexcept nogil:
    if floating is float:
        return expm1f(x)
    else:
        return expm1(x)


cdef inline floating _log1p(floating x) noexcept nogil:
    if floating is float:
        return log1pf(x)
    else:
        return log1p(x)


cdef inline floating _tanh(floating x) noexcept nogil:
    if floating is float:
        return tanhf(x)
    else:
        return tanh(x)


cdef inline floating _sqrt(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


# Comparisons are written so that a NaN takes the branch that keeps it.

cdef inline floating _relu(floating z) noexcept nogil:
    return <floating>0 if z <= 0 else z


cdef inline floating _leaky_relu(floating z) noexcept nogil:
    return z if z > 0 else <floating>0.01 * z


cdef inline floating _elu(floating z) noexcept nogil:
    return z if z > 0 else _expm1(z)


cdef inline floating _gelu(floating z) noexcept nogil:
    # In double for both: rounding z / sqrt(2) to float32 would cost z^2 ulps in the left tail.
    if z < -1e30:
        return <floating>-0.0  # the limit; -inf * 0 would be NaN
    return <floating>(0.5 * z * erfc(-SQRT_HALF * z))


cdef inline floating _sigmoid(floating z) noexcept nogil:
    cdef floating e = _exp(<floating>-fabs(z))  # in (0, 1]: never overflows
    return e / (1 + e) if z < 0 else 1 / (1 + e)


cdef inline floating _silu(floating z) noexcept nogil:
    if z < -1e30:
        return <floating>-0.0  # the limit; -inf * 0 would be NaN
    return z * _sigmoid(z)


cdef inline floating _softplus(floating z) noexcept nogil:
    return _relu(z) + _log1p(_exp(<floating>-fabs(z)))


cdef inline floating _relu_gate(floating a) noexcept nogil:
    return <floating>1 if a > 0 else <floating>0


cdef inline floating _leaky_relu_gate(floating a) noexcept nogil:
    return <floating>1 if a > 0 else <floating>0.01


cdef inline floating _elu_gate(floating a) noexcept nogil:
    return <floating>1 if a > 0 else a + 1


cdef inline floating _gelu_gate(floating z) noexcept nogil:
    cdef double x = z
    if x > 1e30 or x < -1e30:
        return <floating>1 if x > 0 else <floating>0  # the limits; inf * 0 would be NaN
    return <floating>(0.5 * erfc(-SQRT_HALF * x) + x * INV_SQRT_2PI * exp(-0.5 * x * x))


cdef inline floating _silu_gate(floating z) noexcept nogil:
    cdef floating s = _sigmoid(z)
    if z > 1e30 or z < -1e30:
        return s  # the limits 0 and 1; inf * 0 would be NaN
    return s * (1 + z * _sigmoid(-z))


cdef inline floating _softplus_gate(floating a) noexcept nogil:
    return -_expm1(-a)


cdef inline floating _sigmoid_gate(floating a) noexcept nogil:
    return a * (1 - a)


cdef inline floating _tanh_gate(floating a) noexcept nogil:
    return 1 - a * a


cdef void _forward_row(
    const floating* z, const floating* b, floating* a, Py_ssize_t n, int code
) noexcept nogil:
    """a = f(z + b): one loop an activation, so that the cheap ones become vector code."""
    cdef Py_ssize_t j
    if code == IDENTITY:
        for j in range(n):
            a[j] = z[j] + b[j]
    elif code == RELU:
        for j in range(n):
            a[j] = _relu(z[j] + b[j])
    elif code == LEAKY_RELU:
        for j in range(n):
            a[j] = _leaky_relu(z[j] + b[j])
    elif code == ELU:
        for j in range(n):
            a[j] = _elu(z[j] + b[j])
    elif code == GELU:
        for j in range(n):
            a[j] = _gelu(z[j] + b[j])
    elif code == SILU:
        for j in range(n):
            a[j] = _silu(z[j] + b[j])
    elif code == SOFTPLUS:
        for j in range(n):
            a[j] = _softplus(z[j] + b[j])
    elif code == SIGMOID:
        for j in range(n):
            a[j] = _sigmoid(z[j] + b[j])
    elif code == TANH:
        for j in range(n):
            a[j] = _tanh(z[j] + b[j])


cdef void _backward_row(
    const floating* da, const floating* s, floating* dz, Py_ssize_t n, int code
) noexcept nogil:
    """dz = da * f'(s), s being a or z as the activation table says."""
    cdef Py_ssize_t j
    if code == IDENTITY:
        for j in range(n):
            dz[j] = da[j]
    elif code == RELU:
        for j in range(n):
            dz[j] = da[j] * _relu_gate(s[j])
    elif code == LEAKY_RELU:
        for j in range(n):
            dz[j] = da[j] * _leaky_relu_gate(s[j])
    elif code == ELU:
        for j in range(n):
            dz[j] = da[j] * _elu_gate(s[j])
    elif code == GELU:
        for j in range(n):
            dz[j] = da[j] * _gelu_gate(s[j])
    elif code == SILU:
        for j in range(n):
            dz[j] = da[j] * _silu_gate(s[j])
    elif code == SOFTPLUS:
        for j in range(n):
            dz[j] = da[j] * _softplus_gate(s[j])
    elif code == SIGMOID:
        for j in range(n):
            dz[j] = da[j] * _sigmoid_gate(s[j])
    elif code == TANH:
        for j in range(n):
            dz[j] = da[j] * _tanh_gate(s[j])


def bias_act_forward(
    const floating[:, ::1] z not None,
    const floating[::1] b not None,
    int code,
    floating[:, ::1] a not None,
):
    """Rows ascending, columns ascending; z (B, O) IN, b (O,) IN, a (B, O) OUT, may be z itself."""
    cdef Py_ssize_t i, n = z.shape[1]
    with nogil:
        for i in range(z.shape[0]):
            _forward_row(&z[i, 0], &b[0], &a[i, 0], n, code)


def act_bias_backward(
    const floating[:, ::1] da not None,
    const floating[:, ::1] saved not None,
    int code,
    floating[:, ::1] dz not None,
    floating[::1] db,
):
    """Gate a row and add it to db while it is in the first cache: each db[j] sums rows ascending."""
    cdef Py_ssize_t i, j, n = da.shape[1]
    cdef bint bias = db is not None
    with nogil:
        if bias:
            for j in range(n):
                db[j] = 0
        for i in range(da.shape[0]):
            _backward_row(&da[i, 0], &saved[i, 0], &dz[i, 0], n, code)
            if bias:
                for j in range(n):
                    db[j] += dz[i, j]


def sgd_update(
    floating[::1] p not None, const floating[::1] g not None,
    const double[::1] scalars not None, double clip,
):
    """One pass; p (N,) INOUT, g (N,) IN, scalars (8,) IN."""
    cdef Py_ssize_t i
    cdef floating rate = <floating>scalars[RATE], l2 = <floating>scalars[L2], c = <floating>clip
    with nogil:
        for i in range(p.shape[0]):
            p[i] -= rate * (c * g[i] + l2 * p[i])


def momentum_update(
    floating[::1] p not None, const floating[::1] g not None, floating[::1] v not None,
    const double[::1] scalars not None, double clip, bint nesterov,
):
    """One pass; p and v (N,) INOUT, g (N,) IN, scalars (8,) IN."""
    cdef Py_ssize_t i
    cdef floating rate = <floating>scalars[RATE], l2 = <floating>scalars[L2], c = <floating>clip
    cdef floating beta = <floating>scalars[BETA1], grad
    with nogil:
        if nesterov:
            for i in range(p.shape[0]):
                grad = c * g[i] + l2 * p[i]
                v[i] = beta * v[i] + grad
                p[i] -= rate * (grad + beta * v[i])
        else:
            for i in range(p.shape[0]):
                v[i] = beta * v[i] + (c * g[i] + l2 * p[i])
                p[i] -= rate * v[i]


def adam_update(
    floating[::1] p not None, const floating[::1] g not None,
    floating[::1] m not None, floating[::1] v not None,
    const double[::1] scalars not None, double clip,
):
    """One pass; p, m and v (N,) INOUT, g (N,) IN, scalars (8,) IN."""
    cdef Py_ssize_t i
    cdef floating rate = <floating>scalars[RATE], l2 = <floating>scalars[L2], c = <floating>clip
    cdef floating shrink = <floating>scalars[SHRINK], correction = <floating>scalars[CORRECTION]
    cdef floating beta1 = <floating>scalars[BETA1], rest1 = <floating>(1.0 - scalars[BETA1])
    cdef floating beta2 = <floating>scalars[BETA2], rest2 = <floating>(1.0 - scalars[BETA2])
    cdef floating epsilon = <floating>scalars[EPSILON], grad
    with nogil:
        for i in range(p.shape[0]):
            grad = c * g[i] + l2 * p[i]
            m[i] = beta1 * m[i] + rest1 * grad
            v[i] = beta2 * v[i] + rest2 * grad * grad
            p[i] = (p[i] - shrink * p[i]) - rate * m[i] / (_sqrt(v[i]) * correction + epsilon)


def rmsprop_update(
    floating[::1] p not None, const floating[::1] g not None, floating[::1] v not None,
    const double[::1] scalars not None, double clip,
):
    """One pass; p and v (N,) INOUT, g (N,) IN, scalars (8,) IN."""
    cdef Py_ssize_t i
    cdef floating rate = <floating>scalars[RATE], l2 = <floating>scalars[L2], c = <floating>clip
    cdef floating rho = <floating>scalars[BETA2], rest = <floating>(1.0 - scalars[BETA2])
    cdef floating epsilon = <floating>scalars[EPSILON], grad
    with nogil:
        for i in range(p.shape[0]):
            grad = c * g[i] + l2 * p[i]
            v[i] = rho * v[i] + rest * grad * grad
            p[i] -= rate * grad / (_sqrt(v[i]) + epsilon)
