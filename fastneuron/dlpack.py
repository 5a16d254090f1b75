"""Arrays of other libraries by DLPack: where a tensor's numbers lie, and back.

The structures are those of dlpack.h (version 0.8, capsules named "dltensor"), which every library
that speaks DLPack gives and takes. Reached by ctypes, so nothing has to be compiled or installed.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CPU", "CUDA", "CUDA_MANAGED", "Tensor", "export", "take"]

#: Kinds of devices: `DLDeviceType`.
CPU, CUDA, CUDA_MANAGED = 1, 2, 13
_NAME, _USED = b"dltensor", b"used_dltensor"
_KINDS = {"i": 0, "u": 1, "f": 2}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", _api)
)
# In a destructor the capsule has no references left: it goes as an address.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


class Tensor(NamedTuple):
    """What a capsule holds.

    Attributes
    ----------
    pointer : int
    shape : tuple of int
    strides : tuple of int or None
        In bytes; None where rows follow each other.
    dtype : numpy.dtype
    owner : object
        While it lives, so does the memory.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    owner: object


class _Lease:
    """Gives a tensor back to the library that lent it, once nobody needs it."""

    def __init__(self, managed: Any) -> None:
        weakref.finalize(self, _give_back, managed)


def _give_back(managed: Any) -> None:
    if managed.contents.deleter:
        managed.contents.deleter(managed)


def take(capsule: Any) -> Tensor:
    """Take what a capsule holds; it can be taken once.

    Raises
    ------
    ValueError
        Where it is no such capsule, was taken before, or holds numbers that NumPy has no name for.
    """
    address = _pointer(capsule, _NAME)
    managed = ctypes.cast(address, ctypes.POINTER(_Managed))
    tensor = managed.contents.tensor
    kinds = {code: kind for kind, code in _KINDS.items()}
    kind, bits = kinds.get(tensor.dtype.code), tensor.dtype.bits
    if kind is None or bits % 8 or tensor.dtype.lanes != 1:
        raise ValueError(f"numbers of type {tensor.dtype.code} with {bits} bits")
    dtype = np.dtype(f"{kind}{bits // 8}")
    _rename(capsule, _USED)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
    pointer = (tensor.data or 0) + tensor.offset
    return Tensor(pointer, shape, strides, dtype, _Lease(managed))


#: What is lent out, by the address of its description: the taker's deleter ends it.
_lent: dict[int, tuple[Any, ...]] = {}


@_Deleter
def _end(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


@_Destructor
def _drop(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took it
        _lent.pop(_pointer_of(capsule, _NAME), None)


def export(
    pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, owner: object
) -> Any:
    """Return a capsule of rows on a CUDA device; `owner` lives as long as the taker needs it."""
    dimensions = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    managed.tensor = _Tensor(
        pointer,
        _Device(CUDA, device),
        len(shape),
        _Type(_KINDS[dtype.kind], 8 * dtype.itemsize, 1),
        dimensions,
        None,
        0,
    )
    managed.deleter = _end
    address = ctypes.addressof(managed)
    _lent[address] = managed, dimensions, owner
    return _new(address, _NAME, _drop)
