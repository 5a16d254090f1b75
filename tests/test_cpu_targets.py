"""The Numba engine as other processors get it: compiled for lesser CPUs, and run here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from llvmlite import binding

TESTS = Path(__file__).parent
AVX2 = [
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "avx2", "fma", "f16c", "bmi",
    "bmi2", "lzcnt", "movbe",
]  # fmt: skip
AVX512 = [*AVX2, "adx", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"]


@dataclass(frozen=True)
class Target:
    """What Numba compiles for, and the vector that must come of it."""

    name: str
    features: list[str]
    vector_bytes: int
    fuses: bool

    @property
    def environment(self) -> dict[str, str]:
        features = ",".join("+" + feature for feature in self.features)
        return {**os.environ, "NUMBA_CPU_NAME": self.name, "NUMBA_CPU_FEATURES": features}


TARGETS = [
    Target("x86-64", [], 16, False),
    Target("haswell", AVX2, 32, True),
    Target("skylake-avx512", AVX512, 64, True),
]


def lacking(target: Target) -> list[str]:
    """What the target has and this processor has not."""
    host = binding.get_host_cpu_features()
    return [feature for feature in target.features if not host.get(feature)]


@pytest.fixture(params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"{request.param.name} is x86-64, this is {platform.machine()}")
    if missing := lacking(request.param):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    chosen: Target = request.param
    return chosen


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_tests(environment: dict[str, str], files: list[str], which: str) -> None:
    paths = [str(TESTS / name) for name in files]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", which]
    got = run(environment, "-m", "pytest", *options, *paths)
    assert " passed" in got


DESCRIBE = """
from fastneuron.kernels.numba_cpu import emit, target
print(target.VECTOR_BYTES, emit.FUSES)
"""


def test_the_target_is_what_was_asked_for(target: Target) -> None:
    got = run(target.environment, "-c", DESCRIBE).split()
    assert got == [str(target.vector_bytes), str(target.fuses)]


def test_tiles_and_functions(target: Target) -> None:
    """Exact integers through tiles and transposition, the twin's bits, the published ulps."""
    files = ["test_numba_kernels.py", "test_tile_twin.py", "test_activation_accuracy.py"]
    which = "exact_on_integers or same_bits or transpose or functions_keep"
    run_tests(target.environment, files, which)


def test_training(target: Target) -> None:
    """Generated networks inside the bounds of the reference step, integers to the bit."""
    if target.vector_bytes == 64:
        pytest.skip("every other test trains with AVX-512 where the processor has it")
    networks = "generated_network and (numba-4- or numba-6-)"
    run_tests(
        target.environment,
        ["test_engine.py"],
        f"numba and (integer_step and float32 or {networks})",  # one dtype: it compiles for seconds
    )


FORWARD = """
import numpy as np
from fastneuron.kernels.numba_cpu import SLOTS
x, w = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5) - 9
np.testing.assert_array_equal(SLOTS["dense_forward"](x, w, None, "relu"), np.maximum(x @ w, 0))
"""


def test_a_name_without_features_does_not_abort() -> None:
    """Numba then takes the name with the host's own features: vectors must follow the latter."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"haswell is x86-64, this is {platform.machine()}")
    if missing := lacking(TARGETS[1]):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell"}
    environment.pop("NUMBA_CPU_FEATURES", None)
    run(environment, "-c", FORWARD)
