"""The kernels alone, on plain NumPy arrays: for programs that bring their own training loop.

Each function runs the current backend's slot (`fastneuron.backends.use` chooses). All arrays of a
call have one dtype, float32 or float64, and are C-contiguous: kernels read them where they lie, so
an array that would need a conversion is an error here, not a hidden copy. Formulas, costs and
sources are in `fastneuron.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array, as_targets, as_weights
from fastneuron.errors import DataError
from fastneuron.losses import LOSSES

__all__ = [
    "act_bias_backward",
    "bias_act_forward",
    "binary_cross_entropy",
    "dense_backward",
    "dense_forward",
    "huber",
    "mae",
    "mse",
    "poisson",
    "softmax_cross_entropy",
]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def dense_forward(
    x: Array, w: Array, b: Array | None = None, activation: str = "identity", *, out: Any = None
) -> Array:
    """Return ``f(x w + b)`` (B, O) for x (B, I), w (I, O) and b (O,) or None.

    Parameters
    ----------
    x, w, b : ndarray
    activation : str
    out : ndarray (B, O), optional
        Where to write the result.

    Raises
    ------
    DataError
        Where shapes, dtypes or layouts do not fit.
    """
    dtype = _checked(x, "x", 2, None)
    _checked(w, "w", 2, dtype, (x.shape[1], None))
    _checked_bias(b, dtype, w.shape[1])
    _checked_out(out, dtype, (x.shape[0], w.shape[1]), (x, w, b))
    ACTIVATIONS[activation]
    return _slot("dense_forward", x)(x, w, b, activation, out)


def bias_act_forward(
    z: Array, b: Array | None = None, activation: str = "identity", *, out: Any = None
) -> Array:
    """Return ``f(z + b)`` for z (B, O) and b (O,) or None, in one pass.

    Parameters
    ----------
    z, b : ndarray
    activation : str
    out : ndarray (B, O), optional
        Where to write the result; z itself will do.

    Raises
    ------
    DataError
        Where shapes, dtypes or layouts do not fit.
    """
    dtype = _checked(z, "z", 2, None)
    _checked_bias(b, dtype, z.shape[1])
    _checked_out(out, dtype, z.shape, (b,))
    ACTIVATIONS[activation]
    return _slot("bias_act_forward", z)(z, b, activation, out)


def act_bias_backward(
    da: Array, z_or_a: Array, activation: str = "identity", *, bias: bool = True, out: Any = None
) -> tuple[Array, Array | None]:
    """Return ``dz = da * f'`` (B, O) and ``db = sum over rows of dz`` (O,), in one pass.

    Parameters
    ----------
    da : ndarray (B, O)
        Gradient by the activation's output.
    z_or_a : ndarray (B, O)
        The pre-activation z for gelu and silu, whose derivative is no function of the output; the
        output a for all others.
    activation : str
    bias : bool
        False leaves db out: None.
    out : ndarray (B, O), optional
        Where to write dz; da itself will do.

    Raises
    ------
    DataError
        Where shapes, dtypes or layouts do not fit.
    """
    dtype = _checked(da, "da", 2, None)
    _checked(z_or_a, "z_or_a", 2, dtype, da.shape)
    _checked_out(out, dtype, da.shape, (z_or_a,))
    ACTIVATIONS[activation]
    dz, db = _slot("act_bias_backward", da)(da, z_or_a, activation, bias, out)
    return dz, db


def dense_backward(
    dy: Array,
    x: Array,
    w: Array,
    y: Array,
    activation: str = "identity",
    *,
    bias: bool = True,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients (dx, dw, db) of a layer ``y = f(x w + b)``.

    Parameters
    ----------
    dy : ndarray (B, O)
        Gradient by the layer's output.
    x : ndarray (B, I)
    w : ndarray (I, O)
    y : ndarray (B, O)
        The layer's output; for gelu and silu the pre-activation ``x w + b`` instead.
    activation : str
    bias : bool
        False for a layer without bias: db is None.
    need_dx : bool
        False for a first layer: dx is None.

    Raises
    ------
    DataError
        Where shapes, dtypes or layouts do not fit.
    """
    dtype = _checked(dy, "dy", 2, None)
    _checked(x, "x", 2, dtype, (dy.shape[0], None))
    _checked(w, "w", 2, dtype, (x.shape[1], dy.shape[1]))
    _checked(y, "y", 2, dtype, dy.shape)
    ACTIVATIONS[activation]
    dx, dw, db = _slot("dense_backward", x)(dy, x, w, y, activation, bias, need_dx)
    return dx, dw, db


def mse(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the squared error of each row (B,), and the gradient (B, O) of their mean."""
    return _loss("mse", out, y, weight)


def mae(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the absolute error of each row (B,), and the gradient (B, O) of their mean."""
    return _loss("mae", out, y, weight)


def huber(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the Huber loss (delta 1) of each row (B,), and the gradient (B, O) of their mean."""
    return _loss("huber", out, y, weight)


def softmax_cross_entropy(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the cross-entropy of each row of logits (B,), and the gradient (B, O) of their mean.

    y holds class numbers (B,) or rows of probabilities (B, O).
    """
    return _loss("cross_entropy", out, y, weight)


def binary_cross_entropy(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the logistic loss of each row of logits (B,), and the gradient of their mean."""
    return _loss("binary_cross_entropy", out, y, weight)


def poisson(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the Poisson loss of each row of log rates (B,), and the gradient of their mean."""
    return _loss("poisson", out, y, weight)


def _loss(name: str, out: Array, y: Array, weight: Array | None) -> tuple[Array, Array]:
    """Run a loss's slot; weights are taken as they are given, not scaled."""
    dtype = _checked(out, "out", 2, None)
    loss = LOSSES[name]
    targets = as_targets(y, loss.targets, out.shape[0], out.shape[1], dtype)
    if weight is not None:
        as_weights(weight, out.shape[0])
        weight = np.ascontiguousarray(weight, dtype)
    rows, dout = _slot(loss.slot, out)(out, targets, weight)
    return rows, dout


def _slot(name: str, like: Array) -> Callable[..., Any]:
    """Return the slot for arrays of the dtype of `like`."""
    dtype = "float32" if like.itemsize == 4 else "float64"
    return backends.get(dtype=dtype).slots[name]


def _checked(
    array: Any,
    name: str,
    ndim: int,
    dtype: np.dtype[Any] | None,
    shape: tuple[int | None, ...] | None = None,
) -> np.dtype[Any]:
    """Check an array that a kernel reads where it lies, and return its dtype."""
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name} must be a NumPy array, got {type(array).__name__}")
    if array.dtype not in _FLOATS or not array.dtype.isnative:
        raise DataError(f"{name} must be native float32 or float64, got {array.dtype}")
    if dtype is not None and array.dtype != dtype:
        raise DataError(f"{name} is {array.dtype}, but the other arrays are {dtype}")
    if array.ndim != ndim:
        raise DataError(f"{name} must have {ndim} dimensions, got shape {array.shape}")
    if shape is not None and any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise DataError(f"{name} has shape {array.shape}, but ({wanted}) is needed")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise DataError(f"{name} must be C-contiguous: pass np.ascontiguousarray({name})")
    return array.dtype


def _checked_bias(b: Any, dtype: np.dtype[Any], outputs: int) -> None:
    if b is not None:
        _checked(b, "b", 1, dtype, (outputs,))


def _checked_out(
    out: Any, dtype: np.dtype[Any], shape: tuple[int, ...], inputs: tuple[Array | None, ...]
) -> None:
    """Check the array to write to; it may share no memory with `inputs`."""
    if out is None:
        return
    _checked(out, "out", len(shape), dtype, shape)
    if not out.flags.writeable:
        raise DataError("out is read-only")
    if any(array is not None and np.may_share_memory(out, array) for array in inputs):
        raise DataError("out overlaps an input that is still being read")
