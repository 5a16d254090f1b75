"""What of CUDA is missing here, found out without importing anything that needs it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["missing_card", "missing_driver", "open_driver"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def open_driver() -> ctypes.CDLL:
    """Return NVIDIA's driver; an OSError where it is not installed."""
    return ctypes.CDLL(_LIBRARY)


def missing_driver() -> str:
    """Return why NVIDIA's driver cannot be used, and what to do, or nothing where it can."""
    return _missing(_LIBRARY, cards=False)


def missing_card() -> str:
    """Return why no card can be used, and what to do, or nothing where one can."""
    return _missing(_LIBRARY, cards=True)


@cache
def _missing(library: str, cards: bool) -> str:
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"NVIDIA's driver is not installed ({library} is not found): nvidia.com/drivers"
    status = int(driver.cuInit(0))
    if status == _NO_DEVICE:
        return _NO_CARD if cards else ""
    if status:
        return f"NVIDIA's driver does not start (cuInit returned {status}): does nvidia-smi run?"
    count = ctypes.c_int(0)
    status = int(driver.cuDeviceGetCount(ctypes.byref(count)))
    if cards and (status or count.value == 0):
        return _NO_CARD
    return ""


#: CUDA_ERROR_NO_DEVICE of cuda.h: the driver is there and sees no card.
_NO_DEVICE = 100
_NO_CARD = "no NVIDIA card is visible to the driver: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
