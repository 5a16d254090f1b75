"""cuBLASLt behind what a dense layer needs of it: one product of row-major matrices, with epilogue.

The library is loaded when the first product is asked for. It counts columns first, and a row-major
matrix is the transpose of the same numbers read that way; so ``out = left right`` is asked for as
``out' = right' left'``: its A is our right operand, its B our left one, and what it says of the
rows of its result (the length of a bias, of a mask's column) holds for our columns.

Everything here takes addresses as numbers, so either CUDA backend can use it. Names and values are
those of cublasLt.h, which have been the same since CUDA 11.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from fastneuron.errors import BackendUnavailable

__all__ = [
    "ALIGNMENT_BYTES",
    "Algorithm",
    "CublasLtError",
    "Epilogue",
    "Heuristic",
    "Library",
    "Matmul",
    "Product",
    "load",
    "mask_bits",
]

#: What every address must be a multiple of: loads of 16 bytes, the widest that there are, need it.
ALIGNMENT_BYTES = 16


class Epilogue(IntEnum):
    """What is done to the sums before they are written (cublasLtEpilogue_t)."""

    DEFAULT = 1
    RELU = 2
    BIAS = 4
    RELU_BIAS = 6
    RELU_AUX = 130  # and a mask of where the result is above 0
    RELU_AUX_BIAS = 134
    DRELU = 136  # 0 where that mask is
    DRELU_BGRAD = 152  # and the result's sum over our rows
    BGRADA = 256  # the sum over our right operand's rows, beside the product


#: Epilogues that read or write a vector as long as our columns, and those with a mask.
TAKES_VECTOR = frozenset(
    {
        Epilogue.BIAS,
        Epilogue.RELU_BIAS,
        Epilogue.RELU_AUX_BIAS,
        Epilogue.DRELU_BGRAD,
        Epilogue.BGRADA,
    }
)
TAKES_MASK = frozenset(
    {Epilogue.RELU_AUX, Epilogue.RELU_AUX_BIAS, Epilogue.DRELU, Epilogue.DRELU_BGRAD}
)

# cudaDataType_t and cublasComputeType_t. Factors and sums are stored in the network's dtype always;
# the last two let the library round factors on their way into tensor cores.
_TYPES = {"float32": 0, "float64": 1}
_COMPUTE = {
    ("float64", "float32"): 70,  # CUBLAS_COMPUTE_64F
    ("float32", "float32"): 68,  # CUBLAS_COMPUTE_32F
    ("float32", "tf32"): 77,  # CUBLAS_COMPUTE_32F_FAST_TF32
    ("float32", "bfloat16"): 75,  # CUBLAS_COMPUTE_32F_FAST_16BF
}
_TRANSPOSED = 1  # CUBLAS_OP_T
# Attributes: cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t,
# cublasLtMatmulAlgoConfigAttributes_t, cublasLtMatmulAlgoCapAttributes_t.
_TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER, _AUX_POINTER, _AUX_LD = 3, 4, 7, 8, 11, 12
_MAX_WORKSPACE, _REDUCTION_MASK, _MIN_ALIGNMENTS = 1, 3, (5, 6, 7, 8)
_CONFIG_REDUCTION, _CAP_NUMERICS = 3, 15
# Reduction schemes. Of those that cut a sum in parts only this one is allowed: parts are stored,
# and summed in a separate step. "In place" (1) lets blocks take turns at the result; output type
# (4) would round the parts.
_NO_REDUCTION, _SEPARATE_REDUCTION = 0, 2
# CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_*: 16F, 16BF and TF32, and whatever has fewer bits.
_FEWER_BITS = 0x01 << 16 | 0x02 << 16 | 0x04 << 16 | 0x40 << 16 | 0x80 << 16
_NOT_SUPPORTED = 15
# A column of a mask is a multiple of so many bits.
_MASK_BITS = 128


class CublasLtError(RuntimeError):
    """A call of the library failed."""


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, what it needs, whether it can be used."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", ctypes.c_float),
        ("reserved", c_int * 4),
    )


class Algorithm(NamedTuple):
    """An algorithm of the library for one product: its 64 bytes, and the scratch it needs."""

    data: bytes
    workspace: int


@dataclass(frozen=True)
class Product:
    """``out (rows, columns) = left (rows, terms) right (terms, columns)``, row-major.

    A transposed operand lies as (terms, rows) or (columns, terms).
    """

    rows: int
    columns: int
    terms: int
    left_transposed: bool = False
    right_transposed: bool = False
    dtype: str = "float32"
    precision: str = "float32"
    epilogue: Epilogue = Epilogue.DEFAULT


def mask_bits(columns: int) -> int:
    """Return the bits from row to row of a mask of where a result is above 0."""
    return -(-columns // _MASK_BITS) * _MASK_BITS


_POINTER = ctypes.POINTER(c_void_p)
_SIZE = c_size_t
#: Arguments of every function that is called; all but the first three return a status.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtGetVersion": (),
    "cublasLtGetStatusName": (c_int,),
    "cublasLtGetStatusString": (c_int,),
    "cublasLtCreate": (_POINTER,),
    "cublasLtDestroy": (c_void_p,),
    "cublasLtMatmulDescCreate": (_POINTER, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, _SIZE),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatrixLayoutCreate": (_POINTER, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, _SIZE),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    # handle, description, A, B, C, D, preference, how many, results OUT, how many OUT
    "cublasLtMatmulAlgoGetHeuristic": (*[c_void_p] * 7, c_int, c_void_p, ctypes.POINTER(c_int)),
    "cublasLtMatmulAlgoConfigGetAttribute": (
        c_void_p, c_int, c_void_p, _SIZE, ctypes.POINTER(_SIZE),
    ),
    "cublasLtMatmulAlgoCapGetAttribute": (c_void_p, c_int, c_void_p, _SIZE, ctypes.POINTER(_SIZE)),
    # handle, description, alpha, a, A, b, B, beta, c, C, d, D, algorithm, workspace, bytes, stream
    "cublasLtMatmul": (*[c_void_p] * 14, _SIZE, c_void_p),
}  # fmt: skip


class Library:
    """The shared library, with a handle for the device that is current now.

    Parameters
    ----------
    shared : ctypes.CDLL
    path : str
        For messages.

    Raises
    ------
    BackendUnavailable
        Where it lacks a function or does not start.
    """

    def __init__(self, shared: ctypes.CDLL, path: str) -> None:
        self.path = path
        self._functions: dict[str, Callable[..., Any]] = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(shared, name, None)
            if function is None:
                raise BackendUnavailable(f"{path} is no cuBLASLt that is known here: no {name}")
            function.argtypes = arguments
            function.restype = {
                "cublasLtGetVersion": c_size_t,
                "cublasLtGetStatusName": c_char_p,
                "cublasLtGetStatusString": c_char_p,
            }.get(name, c_int)
            self._functions[name] = function
        self.version = int(self._functions["cublasLtGetVersion"]())
        try:
            self.handle = self.make("cublasLtCreate")
        except CublasLtError as error:
            raise BackendUnavailable(
                f"cuBLASLt {self.version} ({path}) does not start: {error}; is there a card, and "
                "a driver as new as the library? (nvidia-smi)"
            ) from error
        _at_end(self, self._functions["cublasLtDestroy"], self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function, and raise `CublasLtError` where it fails."""
        status = self._functions[name](*arguments)
        if status:
            raise CublasLtError(f"{name} failed: {self._explain(status)}")

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function and return its status."""
        return int(self._functions[name](*arguments))

    def make(self, name: str, *arguments: Any, owner: Any = None) -> c_void_p:
        """Return what a function makes; it is destroyed with `owner`."""
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        if owner is not None:
            _at_end(owner, self._functions[name.replace("Create", "Destroy")], made)
        return made

    def _explain(self, status: int) -> str:
        name = self._functions["cublasLtGetStatusName"](status) or b"status"
        what = self._functions["cublasLtGetStatusString"](status) or b"of no description"
        return f"{name.decode()} ({status}): {what.decode()}"


class Matmul:
    """One product on given addresses.

    Parameters
    ----------
    library : Library
    product : Product
    left, right, out : int
        Addresses of the operands and the result.
    vector, mask : int
        Where the epilogue takes them: bias or its gradient (columns,); the mask, a row of
        `mask_bits` bits for each of ours.

    Raises
    ------
    ValueError
        Where an address is missing or not aligned.
    """

    def __init__(
        self,
        library: Library,
        product: Product,
        left: int,
        right: int,
        out: int,
        vector: int = 0,
        mask: int = 0,
    ) -> None:
        p, of = product, _TYPES[product.dtype]
        self.product, self._library = product, library
        addresses = {"left": left, "right": right, "out": out}
        addresses |= {"vector": vector} if p.epilogue in TAKES_VECTOR else {}
        addresses |= {"mask": mask} if p.epilogue in TAKES_MASK else {}
        for name, address in addresses.items():
            if not address or address % ALIGNMENT_BYTES:
                raise ValueError(
                    f"{p}: {name} is at {address:#x}: no multiple of {ALIGNMENT_BYTES} bytes"
                )
        scalar = ctypes.c_double if p.dtype == "float64" else ctypes.c_float
        self._alpha, self._beta = scalar(1), scalar(0)
        self._a, self._b, self._d = c_void_p(right), c_void_p(left), c_void_p(out)
        compute = _COMPUTE[p.dtype, p.precision]
        self._description = library.make("cublasLtMatmulDescCreate", compute, of, owner=self)
        if p.right_transposed:
            self._describe(_TRANSA, c_int32(_TRANSPOSED))
        if p.left_transposed:
            self._describe(_TRANSB, c_int32(_TRANSPOSED))
        self._describe(_EPILOGUE, c_int32(p.epilogue))
        if "vector" in addresses:
            self._describe(_BIAS_POINTER, c_void_p(vector))
        if "mask" in addresses:
            self._describe(_AUX_POINTER, c_void_p(mask))
            self._describe(_AUX_LD, c_int64(mask_bits(p.columns)))
        right_size = (p.terms, p.columns) if p.right_transposed else (p.columns, p.terms)
        left_size = (p.rows, p.terms) if p.left_transposed else (p.terms, p.rows)
        self._layouts = [
            library.make("cublasLtMatrixLayoutCreate", of, *size, size[0], owner=self)
            for size in (right_size, left_size, (p.columns, p.rows))
        ]

    def algorithms(self, workspace: int, most: int) -> list[Algorithm]:
        """Return algorithms that can do it with that many bytes of scratch, the likeliest first.

        None where the library has none, as for an epilogue that it lacks. Each gives the same bits
        at every call, and rounds factors to no less than was asked for.
        """
        preference = self._preference(workspace)
        results, found = (Heuristic * most)(), c_int(0)
        a, b, d = self._layouts
        arguments = self._description, a, b, d, d, preference, most, results, byref(found)
        name = "cublasLtMatmulAlgoGetHeuristic"
        status = self._library.status(name, self._library.handle, *arguments)
        if status == _NOT_SUPPORTED:
            return []
        if status:
            self._library.call(name, self._library.handle, *arguments)  # for its message
        usable = [each for each in results[: found.value] if not each.state and self._keeps(each)]
        return [Algorithm(bytes(each.algorithm), int(each.workspace)) for each in usable]

    def run(self, algorithm: Algorithm, workspace: int, stream: int) -> None:
        """Put the product on a stream; `workspace` is the address of the algorithm's scratch."""
        a, b, d = self._layouts
        self._library.call(
            "cublasLtMatmul", self._library.handle, self._description,
            byref(self._alpha), self._a, a, self._b, b,
            byref(self._beta), self._d, d, self._d, d,
            algorithm.data, c_void_p(workspace), algorithm.workspace, c_void_p(stream),
        )  # fmt: skip

    def _describe(self, attribute: int, value: Any) -> None:
        self._library.call(
            "cublasLtMatmulDescSetAttribute",
            self._description,
            attribute,
            byref(value),
            sizeof(value),
        )

    def _preference(self, workspace: int) -> c_void_p:
        preference = self._library.make("cublasLtMatmulPreferenceCreate", owner=self)
        wanted: list[tuple[int, Any]] = [
            (_MAX_WORKSPACE, c_uint64(workspace)),
            (_REDUCTION_MASK, ctypes.c_uint32(_SEPARATE_REDUCTION)),
        ]
        wanted += [(which, ctypes.c_uint32(ALIGNMENT_BYTES)) for which in _MIN_ALIGNMENTS]
        for attribute, value in wanted:
            self._library.call(
                "cublasLtMatmulPreferenceSetAttribute",
                preference,
                attribute,
                byref(value),
                sizeof(value),
            )
        return preference

    def _keeps(self, found: Heuristic) -> bool:
        """Whether an algorithm keeps the order of sums and the precision, by its own account."""
        reduction = self._ask("Config", found, _CONFIG_REDUCTION, ctypes.c_uint32(0))
        if reduction not in (_NO_REDUCTION, _SEPARATE_REDUCTION):
            return False
        numerics = self._ask("Cap", found, _CAP_NUMERICS, c_uint64(0))
        if numerics is None:
            return False
        return self.product.precision != "float32" or not numerics & _FEWER_BITS

    def _ask(self, what: str, found: Heuristic, attribute: int, value: Any) -> int | None:
        written, name = c_size_t(0), f"cublasLtMatmulAlgo{what}GetAttribute"
        arguments = found.algorithm, attribute, byref(value), sizeof(value), byref(written)
        return None if self._library.status(name, *arguments) else int(value.value)


def _at_end(owner: Any, destroy: Callable[..., Any], made: c_void_p) -> None:
    """Have something destroyed with its owner; not at exit, where the driver may be gone."""
    weakref.finalize(owner, destroy, made).atexit = False


@cache
def load(device: int = 0) -> Library:
    """Return the library of this machine, for that device, which must be the current one.

    Raises
    ------
    BackendUnavailable
        Where it is not installed or does not start.
    """
    names = [f"libcublasLt.so.{n}" for n in (13, 12)]
    if sys.platform == "win32":
        names = [f"cublasLt64_{n}.dll" for n in (13, 12)]
    for name in [*_found_path(), *names]:
        try:
            shared = ctypes.CDLL(name)
        except OSError:
            continue
        return Library(shared, name)
    raise BackendUnavailable(
        f"cuBLASLt is not installed ({' and '.join(names)} are not found): "
        "pip install nvidia-cublas (CUDA 13) or nvidia-cublas-cu12"
    )


def _found_path() -> list[str]:
    """Return the path that NVIDIA's own search finds, which knows its packages and toolkits."""
    try:
        found = import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
    except (ImportError, RuntimeError, OSError):  # no such package; not found; does not load
        return []
    return [found.abs_path] if found.abs_path else []
