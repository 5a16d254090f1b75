"""Layer 1: runs `tests/cuda_sim` in processes whose numba simulates CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cuda_kernels import LAUNCHED, factories

FOLDER = Path(__file__).parent / "cuda_sim"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where each process leaves which kernels it launched."""
    return tmp_path_factory.mktemp("launched")


@pytest.mark.parametrize("name", FILES)
def test_in_the_simulator(name: str, launched: Path) -> None:
    for package in ("numba", "numba_cuda"):
        if not find_spec(package):
            pytest.skip(f"{package.replace('_', '-')} is not installed: its simulator runs these")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", LAUNCHED: str(launched)},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_every_kernel_is_launched_there(launched: Path) -> None:
    notes = list(launched.glob("*.json"))
    if len(notes) < len(FILES):
        pytest.skip(f"{len(notes)} of {len(FILES)} files ran: together they launch every kernel")
    names = {name for note in notes for name in json.loads(note.read_text("utf-8"))}
    assert factories() - names == set(), "no test in the simulator launches these"
