"""Where fastneuron keeps files between processes, and whether they can be trusted there."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

# What shapes the machine code beside the kernels themselves: constants that they take from here.
_CONSTANTS = (
    "kernels/columns.py",
    "kernels/contract.py",
    "kernels/marks.py",
    "kernels/stages.py",
    "activations.py",
    "losses.py",
    "optimizers.py",
)
#: How a kept kernel's file is called, after its name.
KERNEL_SUFFIX = ".kernel"


def cache_directory() -> Path:
    """Return the folder of compiled kernels, whether or not it exists.

    ``FASTNEURON_CACHE_DIR`` wins; else the platform's per-user cache folder.
    """
    chosen = os.environ.get("FASTNEURON_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastneuron"


@cache
def kernel_digest() -> str:
    """Return a digest of every source file that shapes the machine code."""
    package = Path(__file__).parent
    kernels = (package / "kernels" / "numba_cpu").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted([*kernels, *map(package.joinpath, _CONSTANTS)]):
        if path.exists():  # an installation of byte code alone has none
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kernel_folder(numba_version: str) -> Path:
    """Return the folder of the kernels of this Python, this Numba and these sources."""
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    return cache_directory() / f"numba{numba_version}-{python}-{kernel_digest()}"


def kept_kernels(folder: Path) -> list[dict[str, Any]]:
    """Return the headers of the kernels kept in `folder`; what cannot be read is left out."""
    headers = []
    for path in sorted(folder.glob(f"*{KERNEL_SUFFIX}")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline(4096))
        except (OSError, ValueError):
            continue
        if isinstance(header, dict) and "kernel" in header:
            headers.append(header)
    return headers


@cache
def _compiled(folder: Path, dtype: str) -> frozenset[str]:
    if distrust(folder):
        return frozenset()
    kept = kept_kernels(folder)
    return frozenset(str(header["kernel"]) for header in kept if header.get("dtype") == dtype)


def compiled_kernels(numba_version: str, dtype: str) -> frozenset[str]:
    """Return the names of the kernels for `dtype` that can be used without compiling.

    What a process finds at first stays its answer: a choice that rests on it does not change while
    others compile.
    """
    return _compiled(kernel_folder(numba_version), dtype)


def distrust(folder: Path) -> str | None:
    """Return why files in `folder` may be another user's work, or None.

    What is kept there is executed. So the folder must be this user's or the administrator's and
    nobody else may write it, nor take it away: of the folders above, one that everybody may write
    must be sticky, as /tmp is. A folder that does not exist yet is judged by those above it.
    """
    if not hasattr(os, "getuid"):  # Windows keeps the user's own folders from others
        return None
    path = Path(os.path.realpath(folder))
    try:
        reason = foreign(os.stat(path))
        if reason is not None:
            return f"{path} {reason}"
    except OSError:
        pass
    for parent in path.parents:
        try:
            mode = os.stat(parent).st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{parent} can be written by every user"
    return None


def foreign(state: os.stat_result) -> str | None:
    """Return why others than this user or the administrator can write what has this state."""
    if not hasattr(os, "getuid"):
        return None
    if state.st_uid not in (os.getuid(), 0):
        return f"belongs to another user (uid {state.st_uid})"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by other users (mode {stat.S_IMODE(state.st_mode):o})"
    return None
