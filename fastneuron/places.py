"""Where fastneuron keeps files between processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
