"""Layer 1: runs `tests/cuda_sim` in processes whose numba simulates CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cuda_sim"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_in_the_simulator(name: str) -> None:
    for package in ("numba", "numba_cuda"):
        if not find_spec(package):
            pytest.skip(f"{package.replace('_', '-')} is not installed: its simulator runs these")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
