"""The card and the versions, by the driver's own library: no package is needed to find them."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fastneuron.kernels import device_card

__all__ = ["PACKAGES", "card", "tool", "versions"]

#: Distributions whose versions are told.
PACKAGES = (
    "fastneuron", "numpy", "numba", "numba-cuda", "cuda-bindings", "torch", "jax", "jaxlib",
    "Cython",
)  # fmt: skip
#: Where a toolkit is that is not on PATH.
TOOLKITS = (Path("/usr/local/cuda/bin"), Path("/opt/cuda/bin"))


def tool(name: str) -> str | None:
    """Return where a program of the CUDA toolkit is, or None."""
    places = [*TOOLKITS, *sorted(Path("/usr/local").glob("cuda-*/bin"), reverse=True)]
    beside = (str(place / name) for place in places if (place / name).exists())
    return shutil.which(name) or next(beside, None)


def card(driver: Any = None) -> dict[str, Any]:
    """Return what the driver says of the first card, which is the one that engines use.

    Parameters
    ----------
    driver : ctypes.CDLL, optional
        The driver's library, or what stands for it.

    Raises
    ------
    OSError
        Where it refuses an answer.
    """
    found = device_card.card(0, driver)
    return {
        "name": found.name,
        "bytes": found.memory,
        "multiprocessors": found.multiprocessors,
        "major": found.capability[0],
        "minor": found.capability[1],
        "l2_bytes": found.cache,
        "clock": found.clock,
        "bandwidth": found.bandwidth,
        "cuda": device_card.driver_version(driver) or "unknown",
        "driver": _driver_release(),
    }


def _driver_release() -> str | None:
    """Return the driver's release, such as 580.159.04."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found.group() if found else None


def said_by(name: str, *arguments: str) -> str:
    """Return what a program of the toolkit prints, or nothing where it is missing or fails."""
    program = tool(name)
    if program is None:
        return ""
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def versions() -> dict[str, str | None]:
    """Return the version of everything that results depend on; None is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["fastneuron"] = found["fastneuron"] or "from source"
    found["numpy"] = np.__version__
    for program in ("nvcc", "compute-sanitizer"):
        text = re.search(r"\b[vV]?(\d+\.\d+(\.\d+)*)\b", said_by(program, "--version"))
        found[program] = text.group(1) if text else None
    return found
