"""Machine code kept between processes: Numba's compile results in files of our own.

Numba's default cache stands beside the source, does not notice an edit in another file of the
package, lets a truncated file or a read-only folder stop the program, and can mix up two processes
that write at once, since one index names the files of all signatures. Here the folder is per user
and named after a digest of all kernel sources; each compiled signature is one file, named after all
that it depends on (the CPU's name and features among it) and written whole or not at all. Any fault
of the cache costs a compilation, never an exception.

A kept kernel is a pickle, as in Numba's cache, and machine code besides: whoever can write it can
do whatever the user can. So nothing is read or written where others could have put it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import time
import uuid
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba import types
from numba.core import caching, compiler
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from fastneuron.kernels.numba_cpu.announce import PATIENCE, Announcer
from fastneuron.places import KERNEL_SUFFIX, distrust, foreign, kernel_digest, kernel_folder

# Now, as the kernels are about to be imported: what is edited later is not what they are.
kernel_digest()

# Folders of other versions are removed when they are neither among the newest nor used lately.
_KEPT_FOLDERS = 3
_STALE_SECONDS = 30 * 24 * 3600
_FOLDER_NAME = re.compile(r"numba[^-/]+-py\d+-[0-9a-f]{16}")
# A folder's time says when it was last used; it is set at most this often.
_TOUCH_SECONDS = 24 * 3600


class Record(NamedTuple):
    """A kernel that was found or compiled in this process.

    Attributes
    ----------
    kernel, dtype : str
    found : bool
        Whether it came from the cache.
    kept : bool
        Whether the cache has it now.
    seconds : float
        Spent loading or compiling it.
    """

    kernel: str
    dtype: str
    found: bool
    kept: bool
    seconds: float


#: Every kernel of this process, in the order of their first use.
records: list[Record] = []
_announcer = Announcer(PATIENCE)
_warned = False


class _Refused(Exception):
    """The folder cannot be trusted."""


@cache
def _folder() -> Path:
    return kernel_folder(numba.__version__)


@cache
def _refusal() -> str | None:
    """Return why the cache is not used in this process, or None."""
    return distrust(_folder())


def _warn_once(fault: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        what = str(fault) if isinstance(fault, _Refused) else f"{type(fault).__name__}: {fault}"
        warnings.warn(
            f"fastneuron cannot keep its compiled kernels in {_folder()} ({what}); they are "
            "compiled anew in every process. Set FASTNEURON_CACHE_DIR to a folder that only you "
            "can write.",
            RuntimeWarning,
            stacklevel=2,
        )


class KernelCache(caching._Cache):
    """What Numba asks for compiled kernels; every fault is a miss.

    Parameters
    ----------
    dispatcher
        The Numba function whose kernels are kept.
    """

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        code = dispatcher.py_func.__code__
        self._kernel = dispatcher.py_func.__name__
        # The name alone may be another function's, of a test for example.
        self._function = (dispatcher.py_func.__module__, self._kernel, code.co_firstlineno)
        self._code = hashlib.sha256(code.co_code).hexdigest()
        self._enabled = True
        self._start = 0.0

    @property
    def cache_path(self) -> str:
        """The folder of the kernels."""
        return str(_folder())

    def enable(self) -> None:
        """Use the cache."""
        self._enabled = True

    def disable(self) -> None:
        """Leave the cache alone."""
        self._enabled = False

    def flush(self) -> None:
        """Do nothing: a file that does not fit is a miss, and is replaced."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None where there is none that can be used."""
        self._start = time.perf_counter()
        result = None
        if self._enabled and _refusal() is None:
            with contextlib.suppress(Exception):
                result = self._load(sig, target_context)
        if result is None:
            self._start = time.perf_counter()
            kept = self._enabled and _refusal() is None
            _announcer.begin(lambda: self._dispatcher.is_compiling, kept)
        else:
            self._note(sig, time.perf_counter() - self._start, found=True, kept=True)
        return result

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel that was just compiled; warn once where that cannot be done."""
        _announcer.end()
        seconds = time.perf_counter() - self._start
        kept = False
        if self._enabled and not data.library.has_dynamic_globals:
            try:
                self._save(sig, data)
                kept = True
            except Exception as fault:
                _warn_once(fault)
        self._note(sig, seconds, found=False, kept=kept)

    def _note(self, sig: Any, seconds: float, found: bool, kept: bool) -> None:
        records.append(Record(self._kernel, _dtype(sig), found, kept, seconds))

    def _load(self, sig: Any, target_context: Any) -> Any:
        key = self._key(sig, target_context.codegen())
        try:
            file = self._path(sig, key).open("rb")
        except FileNotFoundError:
            return None
        with file:
            if foreign(os.fstat(file.fileno())) is not None:
                return None
            header = json.loads(file.readline(4096))
            payload = file.read()
        if header["key"] != key or header["sha256"] != hashlib.sha256(payload).hexdigest():
            return None
        # Numba would import all that it can compile, for 0.1 to 0.4 s; finished code needs only
        # the runtime's symbols.
        rtsys.initialize(target_context)
        result = compiler.CompileResult._rebuild(target_context, *pickle.loads(payload))
        _touch(_folder())
        return result

    def _save(self, sig: Any, data: Any) -> None:
        folder = _folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o755)
        reason = _refusal() or distrust(folder)
        if reason is not None:
            raise _Refused(reason)
        payload = dumps(data._reduce())
        key = self._key(sig, data.codegen)
        header = {
            "kernel": self._kernel,
            "dtype": _dtype(sig),
            "cpu": data.codegen.magic_tuple()[1],
            "key": key,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        _write(self._path(sig, key), json.dumps(header).encode() + b"\n" + payload)
        _remove_stale(folder)

    def _path(self, sig: Any, key: str) -> Path:
        parts = [part for part in (self._kernel, _dtype(sig), key[:24]) if part]
        return _folder() / f"{'-'.join(parts)}{KERNEL_SUFFIX}"

    def _key(self, sig: Any, codegen: Any) -> str:
        """Return a digest of everything but the sources, which the folder stands for."""
        parts = (self._function, self._code, repr(sig), codegen.magic_tuple())
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _dtype(sig: Any) -> str:
    """Return the name of the numbers that a kernel of this signature works on."""
    for argument in getattr(sig, "args", sig):
        if isinstance(argument, types.Array) and isinstance(argument.dtype, types.Float):
            return str(argument.dtype)
    return ""


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; only its owner may change it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o644), "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # Windows does not replace a file that another process reads: that one is as good.
        if not (isinstance(fault, PermissionError) and os.name == "nt" and path.exists()):
            raise


def _touch(folder: Path) -> None:
    """Note that the folder is in use."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > _TOUCH_SECONDS:
            os.utime(folder)


@cache
def _remove_stale(folder: Path) -> None:
    """Remove the folders of other versions that nobody has used for long; once a process."""
    with contextlib.suppress(OSError):
        found = [
            (path.stat().st_mtime, path)
            for path in folder.parent.iterdir()
            if path != folder
            and _FOLDER_NAME.fullmatch(path.name)
            and path.is_dir()
            and not path.is_symlink()
        ]
        found.sort(reverse=True)
        for used, path in found[_KEPT_FOLDERS - 1 :]:
            if time.time() - used > _STALE_SECONDS:
                _remove(path)


def _remove(folder: Path) -> None:
    """Remove a folder of kernels; one that holds anything else stays."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (KERNEL_SUFFIX, ".tmp", ".nbi", ".nbc"):
                path.unlink()
        folder.rmdir()


def enable_cache(dispatcher: Any) -> Any:
    """Give a Numba dispatcher the cache of this module; return it."""
    dispatcher._cache = KernelCache(dispatcher)
    return dispatcher
