"""Fixtures that several test rooms share."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated_cuda
import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec


def available(name: str) -> backends.Backend:
    """The backend of that name; the test is skipped with the reason where it cannot run."""
    try:
        return backends.get(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=("numpy", "numba", "cython"))
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    """Every backend that runs here."""
    return available(request.param)


@pytest.fixture(params=("numba", "cython"))
def blocked(request: pytest.FixtureRequest) -> backends.Backend:
    """The backends with an engine over the blocked layout, which promise bits.

    The reference engine leaves the order of its sums to the BLAS.
    """
    return available(request.param)


@pytest.fixture
def twins() -> tuple[backends.Backend, backends.Backend]:
    """Numba's engine and the one in C, where they compute with the same instructions.

    The same operations in the same order: the same bits.
    """
    pair = available("numba"), available("cython")
    if pair[1].instruction_set == "v2":
        pytest.skip("without fused multiply-adds each rounds products and sums in its own way")
    spec = NetworkSpec.chain([Dense(1, 1)])
    engines: list[Any] = [backend.engine(spec) for backend in pair]
    of_numba, of_cython = (engine._lanes() for engine in engines)
    if of_numba != of_cython:
        pytest.skip(f"numba's panels have {of_numba} columns here, those in C {of_cython}")
    return pair


@pytest.fixture
def slot(backend: backends.Backend) -> Callable[[str], Callable[..., Any]]:
    """The backend's own slot by name; the test is skipped where another backend supplies it."""

    def own(name: str) -> Callable[..., Any]:
        if backend.origin[name] != backend.name:
            pytest.skip(f"{name} of {backend.name} is the one of {backend.origin[name]}")
        return backend.slots[name]

    return own


@pytest.fixture(scope="session")
def cuda_kernels(tmp_path_factory: pytest.TempPathFactory) -> emulated_cuda.Kernels:
    """The kernels of csrc/cuda on this processor."""
    if emulated_cuda.problem():
        pytest.skip(emulated_cuda.problem())
    return emulated_cuda.Kernels(emulated_cuda.build(tmp_path_factory.mktemp("cuda")))


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


@pytest.fixture(scope="session")
def fake_cublaslt(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with cuBLASLt's functions, in host memory, that checks what it is given."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler for the library that stands for cuBLASLt")
    path = tmp_path_factory.mktemp("fake") / "libcublasLt.so"
    source = Path(__file__).with_name("fake_cublaslt.c")
    flags = ("-std=c11", "-O1", "-ffp-contract=off", "-shared", "-fPIC")
    subprocess.run([compiler, *flags, "-o", path, source, "-lm"], check=True)
    shared = ctypes.CDLL(str(path))
    shared.fake_get.argtypes, shared.fake_get.restype = [ctypes.c_char_p], ctypes.c_int64
    shared.fake_set.argtypes, shared.fake_set.restype = [ctypes.c_char_p, ctypes.c_int64], None
    return shared
