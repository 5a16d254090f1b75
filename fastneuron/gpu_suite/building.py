"""Builds the engine in CUDA C++ where it runs: another machine has another Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite.card import tool
from fastneuron.gpu_suite.running import OK, WRONG, Budget, Finding, NotBuiltYet, OutOfTime

__all__ = ["PLACE", "build", "buildable"]

#: The checkout that this package lies in.
PLACE = Path(__file__).parents[2]


def buildable(place: Path = PLACE) -> str:
    """Return why the extension cannot be built here, or nothing where it can."""
    setup = place / "setup.py"
    if not setup.exists():
        return f"{place} is no checkout: there is no setup.py to build with"
    if nvcc() is None:
        return "nvcc is not found: it comes with the CUDA toolkit"
    absent = [name for name in ("setuptools", "Cython") if not find_spec(name)]
    return f"{absent[0]} is not installed (pip install {absent[0]})" if absent else ""


def nvcc() -> str | None:
    """Return where nvcc is."""
    return os.environ.get("CUDACXX") or tool("nvcc")


def build(budget: Budget, card: Mapping[str, Any], place: Path = PLACE) -> Finding:
    """Build the extension in place, for this card alone.

    Parameters
    ----------
    budget : Budget
    card : dict
        As `card.card` returns it.
    place : Path
        Where setup.py is.
    """
    problem = buildable(place)
    if problem:
        raise BackendUnavailable(problem)
    setup, compiler = place / "setup.py", str(nvcc())
    if "_cython_cuda" not in setup.read_text(encoding="utf-8"):
        raise NotBuiltYet("the extension in CUDA C++ is not part of this version")
    architecture = f"{card['major']}{card['minor']}"
    told = {
        **os.environ,
        "CUDACXX": compiler,
        "FASTNEURON_CUDA": "1",
        "FASTNEURON_CUDA_ARCHITECTURES": architecture,
    }
    try:
        made = subprocess.run(
            [sys.executable, str(setup), "build_ext", "--inplace"],
            cwd=place,
            env=told,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(budget.left, 1),
        )
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    printed = (made.stdout + made.stderr)[-4000:]
    if made.returncode:
        last = (made.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return Finding("", WRONG, f"building failed: {last}", 0.0, {"printed": printed})
    said = f"built for sm_{architecture} by {compiler}"
    return Finding("", OK, said, 0.0, {"printed": printed})
