"""The one border where users' arrays come in: what passes here, an engine can trust.

Everything below this file takes C-contiguous, aligned, native rows of the network's dtype and
checks nothing again. Anything accepted here gives the bits of its converted contiguous copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastneuron.device_arrays import lies_on_device
from fastneuron.errors import DataError, DataWarning

Array: TypeAlias = NDArray[Any]

_INT64 = np.dtype(np.int64)
# Looked up here once: a step of a small network takes a microsecond.
_ndarray, _vdot = np.ndarray, np.vdot
_TARGET_KINDS = ("values", "classes", "binary", "counts")


def as_rows(x: Any, name: str, dtype: Any, features: int | None = None) -> Array:
    """Return `x` as C-contiguous native rows (n, features) of `dtype`.

    An array that fits already is returned as it is, without a copy. Integers, booleans, float16,
    byte-swapped, Fortran-ordered, strided, unaligned and read-only arrays are accepted.

    Parameters
    ----------
    x : array_like (n, features)
    name : str
        What messages call the argument.
    dtype : dtype_like
        float32 or float64.
    features : int, optional
        The number of columns wanted.

    Raises
    ------
    DataError
        Where `x` is not two-dimensional, has no rows or no columns or the wrong number of columns,
        is not numeric, holds NaN or infinity, or holds a number too large for `dtype`.
    """
    dtype = np.dtype(dtype)
    array = x if type(x) is np.ndarray else as_array(x, name)
    if array.ndim != 2:
        raise DataError(_not_rows(array, name, features))
    n, columns = array.shape
    if features is not None and columns != features:
        raise DataError(
            f"{name} has shape ({n}, {columns}): {columns} features a row, "
            f"but the network takes ({n}, {features})"
        )
    if n == 0 or columns == 0:
        empty = "rows" if n == 0 else "features"
        raise DataError(f"{name} has zero {empty}: its shape is ({n}, {columns})")
    return _convert(array, name, dtype)


def as_targets(y: Any, kind: str, n: int, out_features: int, dtype: Any) -> Array:
    """Return the targets `y` of `n` rows in the form that the loss's kernels take.

    Parameters
    ----------
    y : array_like
        kind "classes": class numbers (n,), or one-hot rows or probabilities (n, out_features).
        Else: (n, out_features), or (n,) where the network has one output.
    kind : {"values", "classes", "binary", "counts"}
        `Loss.targets`: what the loss can be asked to fit.
    n, out_features : int
    dtype : dtype_like
        The network's dtype.

    Returns
    -------
    ndarray
        (n,) int64 class numbers, or (n, out_features) of `dtype`.

    Raises
    ------
    DataError
        Where shapes do not fit (nothing is ever broadcast), or a value is outside what the loss
        can fit: an unknown class, a probability outside 0..1, a negative count.

    Warns
    -----
    DataWarning
        Where class numbers come as a column (n, 1): they are flattened.
    """
    if kind not in _TARGET_KINDS:
        raise ValueError(f"unknown kind of targets {kind!r}")
    dtype = np.dtype(dtype)
    array = y if type(y) is np.ndarray else as_array(y, "y")
    if array.ndim == 0 or array.shape[0] != n:
        raise DataError(
            f"y has shape {array.shape}, but X has {n} rows: one target a row is needed"
        )
    if kind == "classes":
        if array.ndim == 1:
            return _as_classes(array, out_features)
        if array.shape == (n, 1) and (out_features > 1 or array.dtype.kind in "biu"):
            warnings.warn(
                f"y has shape ({n}, 1): taken as class numbers of shape ({n},); "
                "pass y.ravel() to say so",
                DataWarning,
                stacklevel=3,
            )
            return _as_classes(array.reshape(-1), out_features)
    if array.shape != (n, out_features):
        if not (array.ndim == 1 and out_features == 1):
            numbers = f" or class numbers ({n},)" if kind == "classes" else ""
            raise DataError(
                f"y has shape {array.shape}, but the network's output is "
                f"({n}, {out_features}): y must be that{numbers}; nothing is broadcast"
            )
        array = array.reshape(n, 1)
    array = _convert(array, "y", dtype)
    if kind == "binary":
        _check_between(array, 0.0, 1.0, "binary_cross_entropy needs targets from 0 to 1")
    elif kind == "counts":
        _check_between(array, 0.0, np.inf, "poisson needs counts of at least 0")
    elif kind == "classes":
        _check_between(array, 0.0, np.inf, "class probabilities must be at least 0")
    return array


def as_weights(weight: Any, n: int, dtype: Any = np.float64) -> Array:
    """Return the sample weights (n,) of `dtype`, scaled to mean 1 over the `n` rows.

    Weight k then equals k repeats of the row, and weight 0 its removal.

    Raises
    ------
    DataError
        Where the shape is not (n,), or a weight is negative or not finite, or all are zero.
    """
    array = weight if type(weight) is np.ndarray else as_array(weight, "sample_weight")
    if array.shape != (n,):
        raise DataError(f"sample_weight has shape {array.shape}, but X has {n} rows: give ({n},)")
    array = _convert(array.reshape(n, 1), "sample_weight", np.dtype(np.float64)).reshape(n)
    if float(array.min()) < 0.0:
        i = int(np.argmax(array < 0.0))
        raise DataError(f"sample_weight must not be negative: row {i} has {array[i]:g}")
    # Scaling by the largest first keeps the sum of huge weights finite.
    largest = float(array.max())
    if largest == 0.0:
        raise DataError("sample_weight is zero for every row: nothing would be trained")
    array = array / largest
    return np.ascontiguousarray(array / array.mean(), dtype=dtype)


def as_class_weights(class_weight: Any, shares: Array, n_classes: int) -> NDArray[np.float64]:
    """Return each row's weight (n,) from the weights of the classes.

    Parameters
    ----------
    class_weight : mapping of class number to weight, or "balanced"
        A class that is not named has weight 1. "balanced" gives class c the weight
        ``n / (n_classes * rows of c)``, so that all classes weigh the same.
    shares : (n,) int64 class numbers, or (n, n_classes)
        Each row's class, or its shares of the classes.

    Raises
    ------
    DataError
        Where a class does not exist, or a weight is negative or not finite.
    """
    if isinstance(class_weight, Mapping):
        by_class = np.ones(n_classes)
        for label, value in class_weight.items():
            if label not in range(n_classes):
                raise DataError(
                    f"class_weight names the class {label!r}: the classes are 0 to {n_classes - 1}"
                )
            if not (isinstance(value, (int, float, np.number)) and 0 <= value < np.inf):
                raise DataError(
                    f"class_weight of class {label} must be finite and at least 0, got {value!r}"
                )
            by_class[int(label)] = value
    elif isinstance(class_weight, str) and class_weight == "balanced":
        one_a_row = shares.ndim == 1
        counts = np.bincount(shares, minlength=n_classes) if one_a_row else shares.sum(axis=0)
        by_class = np.zeros(n_classes)  # a class without rows needs no weight
        np.divide(len(shares) / n_classes, counts, out=by_class, where=counts > 0)
    else:
        raise DataError(f"class_weight must be a mapping or 'balanced', got {class_weight!r}")
    return by_class[shares] if shares.ndim == 1 else shares @ by_class


def fits_rows(x: Any, features: int, dtype: np.dtype[Any]) -> bool:
    """Return whether `as_rows` would return `x` itself, its values left aside; costs 0.1 us."""
    if type(x) is not _ndarray or x.dtype != dtype:
        return False
    shape, flags = x.shape, x.flags
    return (
        len(shape) == 2
        and shape[1] == features
        and shape[0] > 0
        and (flags.carray or (flags.c_contiguous and flags.aligned))
    )


def fits_finite_rows(x: Any, features: int, dtype: np.dtype[Any]) -> bool:
    """Return whether `as_rows` would return `x` itself; 0.5 us and a pass over the numbers.

    False also where finite numbers are so large that their squares are not: ask `as_rows` then.
    """
    # Not x.dot, which begins sooner: it warns of what overflows.
    return fits_rows(x, features, dtype) and isfinite(_vdot(x, x))


def fits_targets(y: Any, kind: str, n: int, out_features: int, dtype: np.dtype[Any]) -> bool:
    """Return whether `as_targets` would return `y` itself; costs a microsecond or two at most.

    For targets of kind "values", NaN and infinity are left to the engine.
    """
    if type(y) is not _ndarray:
        return False
    flags = y.flags
    if not (flags.c_contiguous and flags.aligned):
        return False
    if kind == "values":
        return bool(y.dtype == dtype and y.shape == (n, out_features))
    if kind == "classes" and y.dtype == _INT64 and y.shape == (n,):
        # As unsigned numbers negative classes are huge: one comparison sees both ends.
        return bool(y.view(np.uint64).max() < out_features)
    return False


def as_array(x: Any, name: str) -> Array:
    """Return an ndarray of anything array-like, refusing what NumPy would take by guessing.

    Raises
    ------
    DataError
        Where it is masked, lies on a device, or is no rectangular array.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(f"{name} is a masked array with masked values: fill or drop them first")
    if lies_on_device(x):
        raise DataError(
            f"{name} lies on a device, which is not read here: copy it to the host. fit, Trainer "
            "and forward take rows on a CUDA device with device='cuda'"
        )
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except BufferError as error:
        raise DataError(f"{name} is not handed over by its library: {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is no rectangular array of numbers: {error}") from None


def _not_rows(array: Array, name: str, features: int | None) -> str:
    if array.ndim == 0 and array.dtype.kind == "O":
        return f"{name} is a {type(array.item()).__name__}: a dense two-dimensional array is needed"
    wanted = f"(n, {features})" if features is not None else "(n, features)"
    text = f"{name} has shape {array.shape}, but rows {wanted} are needed"
    if array.ndim == 1:
        return (
            f"{text}: use {name}.reshape(-1, 1) for one feature a row, "
            f"or {name}.reshape(1, -1) for a single row"
        )
    if array.ndim > 2:
        return f"{text}: use {name}.reshape(len({name}), -1) to flatten each row"
    return text


def _convert(array: Array, name: str, dtype: np.dtype[Any]) -> Array:
    """Return 2-D `array` as contiguous aligned rows of `dtype`; it is `array` where that fits."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        converted = array
    elif array.dtype.kind not in "biuf":
        raise DataError(_not_numbers(array, name))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            converted = np.require(array, dtype, ["C", "A"])
    # One pass over memory: a sum of squares is finite only if every number is. A finite number
    # may still overflow its square, so only the exact search accuses.
    if not np.isfinite(np.vdot(converted, converted)):
        wrong = ~np.isfinite(converted)
        if wrong.any():
            raise DataError(_not_finite(array, wrong, name, dtype))
    return converted


def _not_numbers(array: Array, name: str) -> str:
    kind = array.dtype.kind
    if kind == "c":
        return f"{name} is complex ({array.dtype}): pass its real and imaginary parts as columns"
    if kind in "OSUT":
        position = ""
        for (i, j), value in np.ndenumerate(array):
            if isinstance(value, (str, bytes)) or not np.isscalar(value):
                position = f" ({value!r} at row {i}, column {j})"
                break
        return (
            f"{name} holds text or objects (dtype {array.dtype}){position}: convert it to numbers "
            "first, for example with astype(float) or one-hot columns"
        )
    return f"{name} has dtype {array.dtype}, which is no number"


def _not_finite(array: Array, wrong: NDArray[np.bool_], name: str, dtype: np.dtype[Any]) -> str:
    i, j = (int(k) for k in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    value = array[i, j]
    count = int(np.count_nonzero(wrong))
    if np.isfinite(value):
        return (
            f"{name} overflows {dtype}: {value!s} at row {i}, column {j} is too large for it "
            f"({count} such value{'s' * (count > 1)}); scale {name}, or use a float64 network"
        )
    what = "NaN" if np.isnan(value) else "infinity"
    return (
        f"{name} holds {what} at row {i}, column {j} "
        f"({count} value{'s' * (count > 1)} not finite in all)"
    )


def _as_classes(array: Array, n_classes: int) -> NDArray[np.int64]:
    """Return class numbers (n,) as contiguous int64, each checked to be from 0 to n_classes - 1."""
    valid = f"the classes are 0 to {n_classes - 1}"
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"y holds {array.dtype} labels: {valid}, as whole numbers; "
            "np.unique(y, return_inverse=True) turns labels into them"
        )
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            i = int(np.argmin(whole))
            raise DataError(f"y holds {array[i]!s} at row {i}, which is no class: {valid}")
    outside = (array < 0) | (array >= n_classes) if array.dtype.kind != "b" else array >= n_classes
    if outside.any():
        i = int(np.argmax(outside))
        count = int(np.count_nonzero(outside))
        raise DataError(
            f"y holds {array[i]!s} at row {i}, which is no class: {valid} "
            f"({count} label{'s' * (count > 1)} outside in all)"
        )
    return np.require(array, np.int64, ["C", "A"])


def _check_between(array: Array, low: float, high: float, rule: str) -> None:
    if float(array.min()) >= low and (high == np.inf or float(array.max()) <= high):
        return
    wrong = (array < low) | (array > high)
    i, j = (int(k) for k in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    raise DataError(f"{rule}: y holds {array[i, j]!s} at row {i}, column {j}")
