"""Machine code kept between processes: Numba's own disk cache, moved and made fault tolerant.

Numba's default cache stands beside the source, does not notice an edit in another file of the
package, and lets a truncated file or a read-only folder stop the program. Here the folder is per
user, named after a digest of all kernel sources (the CPU's name and features are part of Numba's
own key), and any fault of the cache costs a compilation, never an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

from fastneuron.places import cache_directory


@cache
def kernel_digest() -> str:
    """Digest of every source file that shapes the machine code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _folder() -> Path:
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    return cache_directory() / f"numba{numba.__version__}-{python}-{kernel_digest()}"


class _Locator(caching._CacheLocator):
    def __init__(self, line: int) -> None:
        self._line = line

    def get_cache_path(self) -> str:
        return str(_folder())

    def get_source_stamp(self) -> str:
        return kernel_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func.__code__.co_firstlineno)


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 (as the base class declares it)


_warned = False


def _warn_once(doing: str, fault: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"fastneuron could not {doing} its kernel cache in {_folder()} "
            f"({type(fault).__name__}: {fault}); kernels are compiled anew in every process. "
            "Set FASTNEURON_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )


class KernelCache(caching.FunctionCache):
    """Numba's function cache in our folder; every fault is a miss."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None where there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # A truncated or foreign file: forget the index, so that saving starts it afresh.
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled kernel where possible; warn once where not."""
        try:
            super().save_overload(sig, data)
        except Exception as fault:
            _warn_once("write", fault)


def enable_cache(dispatcher: Any) -> Any:
    """Give a Numba dispatcher the cache of this module; return it."""
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher
