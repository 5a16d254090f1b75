"""Memory that shows misuse: poison that must not reach a result, guard pages beside an array."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastneuron.testing.bounds import Array

__all__ = ["POISONS", "guarded", "guards_work", "poisoned"]

#: What outputs and scratch are filled with beforehand; the last is the bit pattern 0xFF...
POISONS: dict[str, float | None] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "huge": 1e38,
    "bytes": None,
}


def poisoned(shape: tuple[int, ...], dtype: Any, poison: str) -> Array:
    """Return an array filled with the poison of that name."""
    value = POISONS[poison]
    array = np.empty(shape, dtype)
    if value is None:
        array.view(np.uint8).fill(0xFF)
    else:
        array.fill(value)
    return array


def guards_work() -> bool:
    """Tell whether `guarded` can protect pages here: on Linux with its C library."""
    return sys.platform == "linux"


@contextmanager
def guarded(source: Array, side: str, read_only: bool = False) -> Iterator[Array]:
    """Lend a copy of `source` that ends (or starts) flush with a page nobody may touch.

    Parameters
    ----------
    source : ndarray
    side : {"after", "before"}
        Where the forbidden page is; a kernel that reads or writes one word beyond that end of the
        array dies of a segmentation fault.
    read_only : bool
        Forbid writing to the array's own pages too: for inputs.

    Notes
    -----
    The array is gone when the block ends; keep copies of results, not views.
    """
    page = mmap.PAGESIZE
    size = max(-(-source.nbytes // page), 1) * page
    region = mmap.mmap(-1, size + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    offset = page + (size - source.nbytes if side == "after" else 0)
    array = np.frombuffer(region, source.dtype, source.size, offset).reshape(source.shape)
    array[...] = source
    _protect(base, page, 0)
    _protect(base + page + size, page, 0)
    if read_only:
        _protect(base + page, size, mmap.PROT_READ)
        array.flags.writeable = False
    try:
        yield array
    finally:
        _protect(base, size + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE)


def _protect(address: int, length: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        raise OSError(ctypes.get_errno(), "mprotect failed")
