"""Where the programs of the CUDA toolkit are: on PATH, in a toolkit's folder or in packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = ["program"]


@cache
def program(name: str) -> str | None:
    """Return the path of nvcc, ptxas or another, or None."""
    found = shutil.which(name)
    if found:
        return found
    folders = [Path("/usr/local/cuda/bin"), *Path("/usr/local").glob("cuda-*/bin")]
    folders += [place for each in sys.path for place in Path(each).glob("nvidia/*/bin")]
    if shutil.which("nvcc"):  # which may be a wrapper, so it is asked
        command = ["nvcc", "--dryrun", "-x", "cu", "/dev/null", "-o", "none"]
        said = subprocess.run(command, text=True, capture_output=True, check=False).stderr
        top = re.search(r"TOP=(\S+)", said)
        folders = [Path(top[1], "bin"), *folders] if top else folders
    return next((str(each / name) for each in folders if (each / name).exists()), None)
