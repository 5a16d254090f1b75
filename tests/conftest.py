"""Fixtures that several test rooms share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable


@pytest.fixture(params=("numpy", "numba", "cython"))
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    """Every backend that runs here; the others are skipped with their reason."""
    try:
        return backends.get(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def slot(backend: backends.Backend) -> Callable[[str], Callable[..., Any]]:
    """The backend's own slot by name; the test is skipped where another backend supplies it."""

    def own(name: str) -> Callable[..., Any]:
        if backend.origin[name] != backend.name:
            pytest.skip(f"{name} of {backend.name} is the one of {backend.origin[name]}")
        return backend.slots[name]

    return own


@pytest.fixture(scope="session")
def benchmarks_folder() -> Path:
    return Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def rooms(benchmarks_folder: Path) -> Iterator[dict[str, ModuleType]]:
    """The modules of the benchmark scripts, found as a script finds them: in its own folder."""
    kept = list(sys.path)
    sys.path.insert(0, str(benchmarks_folder))
    names = [path.stem for path in sorted(benchmarks_folder.glob("*.py"))]
    names = [name for name in names if name != "conftest" and not name.startswith("test_")]
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = kept
    for name in names:
        del sys.modules[name]
