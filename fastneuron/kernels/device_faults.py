"""What a CUDA driver's errors mean to whoever trains: out of memory, or a device that failed."""

from __future__ import annotations

import re

from fastneuron.errors import DeviceError, DeviceMemoryError

__all__ = ["fault_of"]

#: CUDA_ERROR_OUT_OF_MEMORY of cuda.h.
_OUT_OF_MEMORY = 2
#: Errors of the driver's bindings, by name: they are not imported to be recognised.
_CLASSES = {"CudaAPIError", "CudaDriverError", "CUDAError", "CudaSupportError"}
_NAMED = re.compile(r"CUDA_ERROR_[A-Z_]+")


def fault_of(error: BaseException, *, whole: bool) -> DeviceError | None:
    """Return the error to raise for what a driver raised; None for what came from elsewhere.

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
    named = _NAMED.search(str(error))
    driver = {each.__name__ for each in type(error).__mro__} & _CLASSES
    if not (driver or (named and type(error) is RuntimeError)):
        return None
    what = " ".join(str(error).split())
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
