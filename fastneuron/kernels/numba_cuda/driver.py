"""The one room that imports numba.cuda; all others take `cuda` from here.

The package is numba-cuda: its successor changes the import and drops the simulator, so kernels stay
in the subset that both have, and a change of package is a change of this file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numba import cuda, types
from numpy.typing import NDArray

from fastneuron.errors import BackendUnavailable

__all__ = [
    "ALIGNED",
    "SIMULATED",
    "allow_shared",
    "configured",
    "cuda",
    "device_function",
    "empty",
    "intrinsic",
    "kernel",
    "new_stream",
    "put",
    "types",
    "zeros",
]

if not find_spec("numba_cuda"):  # numba's own, which it no longer maintains, is another dialect
    raise BackendUnavailable("numba-cuda is not installed (pip install fastneuron[cuda])")

#: Whether kernels run in numba's simulator, one Python thread a thread of the device.
SIMULATED = bool(int(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") or 0))

#: Alignment in bytes of shared arrays that are read four numbers at a time; the simulator has none.
ALIGNED = None if SIMULATED else 16

intrinsic: Any = None if SIMULATED else import_module("numba.cuda.extending").intrinsic


def kernel(function: Callable[..., Any], **options: Any) -> Any:
    """Return a kernel, compiled at its first launch; the simulator knows none of the options."""
    return cuda.jit(function) if SIMULATED else cuda.jit(**options)(function)


def device_function(function: Callable[..., Any]) -> Any:
    """Return a function that kernels call; it is inlined, so that its arrays stay registers."""
    if SIMULATED:
        return cuda.jit(function, device=True)
    return cuda.jit(device=True, forceinline=True)(function)


def configured(function: Any, grid: Any, block: Any, stream: Any, shared: int) -> Any:
    """Return what launches a kernel so, given its arguments.

    Numba warns of few blocks whenever it makes one: a small batch has few.
    """
    if SIMULATED:  # whose kernel is changed by its configuration
        return lambda *arguments: function[grid, block, stream, shared](*arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function[grid, block, stream, shared]


def new_stream() -> Any:
    """Return a stream of the current device.

    Raises
    ------
    BackendUnavailable
        Where CUDA does not start; the message is what the driver says.
    """
    try:
        return cuda.stream()
    except Exception as error:  # the driver's errors have no common type
        said = " ".join(str(error).split())
        raise BackendUnavailable(f"CUDA does not start: {said}") from error


def empty(count: int, dtype: Any) -> Any:
    """Return a vector on the device; of no numbers it has room for one, for the driver has none.

    Raises
    ------
    MemoryError
        Where the device has no room for it.
    """
    try:
        return cuda.device_array(max(count, 1), dtype)
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        size = count * np.dtype(dtype).itemsize
        raise MemoryError(
            f"the device has no room for {size:,} bytes more: take smaller batches or less data"
        ) from error


def zeros(count: int, dtype: Any, stream: Any) -> Any:
    """Return a vector of zeros on the device."""
    vector = empty(count, dtype)
    put(vector, np.zeros(max(count, 1), dtype), stream)
    return vector


def put(vector: Any, numbers: NDArray[Any], stream: Any) -> None:
    """Copy contiguous numbers to the start of a vector, in the order of `stream`."""
    if numbers.size:
        vector[: numbers.size].copy_to_device(numbers, stream=stream)


def allow_shared(function: Any, arguments: tuple[Any, ...], size: int, *, beside: int = 0) -> None:
    """Let a kernel's launches with such arguments take `size` bytes of shared memory a block.

    More than 48 KiB, with those `beside` of the kernel's own arrays, must be asked for (CUDA C
    programming guide, "shared memory" of each card from sm_70 on). Numba has no option for it, so
    this asks as its `set_shared_memory_carveout` does.
    """
    if SIMULATED or size + beside <= _UNASKED:
        return
    drive = import_module("numba.cuda.cudadrv.driver")
    compiled = function.compile(tuple(function.typeof_pyval(each) for each in arguments))
    own = compiled._codelibrary.get_cufunc()
    what = drive.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    drive.driver.cuKernelSetAttribute(what, size, own.handle, own.device.id)


#: Bytes of shared memory that a block gets without asking.
_UNASKED = 48 * 1024
