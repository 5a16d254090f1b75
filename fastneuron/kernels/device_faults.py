"""What a CUDA driver's errors mean to whoever trains: out of memory, or a device that failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastneuron.errors import BackendUnavailable, DeviceError, DeviceMemoryError

__all__ = ["DriverError", "fault_of", "faults_told"]

#: CUDA_ERROR_OUT_OF_MEMORY of cuda.h, and cudaErrorMemoryAllocation.
_OUT_OF_MEMORY = 2
#: Errors of the driver's bindings, by name: they are not imported to be recognised.
_CLASSES = {"CudaAPIError", "CudaDriverError", "CUDAError", "CudaSupportError", "DriverError"}
#: What numba-cuda and its finder of libraries raise where there is nothing to compile with.
_NO_COMPILER = {"DynamicLibNotFoundError", "NvvmSupportError", "NvrtcSupportError"}
#: Errors, by name, of a driver or a card that is older than what kernels are compiled for.
_TOO_OLD = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
}
_NAMED = re.compile(r"CUDA_ERROR_[A-Z_]+")


class DriverError(RuntimeError):
    """What CUDA refused to the compiled kernels; `code` is CUDA's."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


def fault_of(error: BaseException, *, whole: bool) -> DeviceError | BackendUnavailable | None:
    """Return the error to raise for what a driver or its compiler raised; None for all others.

    Parameters
    ----------
    error : BaseException
    whole : bool
        Whether nothing of a step had been given to the device yet.
    """
    if isinstance(error, DeviceError):
        return None
    if isinstance(error, MemoryError) and error.__cause__ is not None:  # said in our words already
        cause = fault_of(error.__cause__, whole=whole)
        return None if cause is None else DeviceMemoryError(str(error), whole=whole)
    named, what = _NAMED.search(str(error)), " ".join(str(error).split())
    classes = {each.__name__ for each in type(error).__mro__}
    if classes & _NO_COMPILER:
        return BackendUnavailable(
            f"numba-cuda finds nothing to compile with here ({what}): pip install "
            "fastneuron[cuda] brings NVVM and NVRTC"
        )
    if "CCSupportError" in classes or (named and named[0] in _TOO_OLD):
        return BackendUnavailable(
            f"the driver or the card is too old for the CUDA that kernels are compiled with "
            f"({what}): update the driver (nvidia.com/drivers), or pip install 'numba-cuda[cu12]'"
        )
    if not (classes & _CLASSES or (named and type(error) is RuntimeError)):
        return None
    code = getattr(error, "code", None)
    if (code is not None and int(code) == _OUT_OF_MEMORY) or (
        named and named[0] == "CUDA_ERROR_OUT_OF_MEMORY"
    ):
        return DeviceMemoryError(
            f"the device is out of memory ({what}): use a smaller batch, fewer rows at a time or a "
            "smaller network, or free what other programs hold there (nvidia-smi shows it)",
            whole=whole,
        )
    return DeviceError(
        f"the device failed ({what}): if it keeps failing, start a new process, since a failed "
        "context does not recover, and look at nvidia-smi and dmesg"
    )


@contextmanager
def faults_told(whole: Callable[[], bool], forget: Callable[[], None]) -> Iterator[None]:
    """Make a driver's error one of ours, once `forget` has dropped what rests on the device."""
    try:
        yield
    except Exception as error:
        fault = fault_of(error, whole=whole())
        if fault is None:
            raise
        forget()
        raise fault from error
