"""The compiled engines as other processors get them: made for lesser CPUs, and run here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from fastneuron.backends import Backend

TESTS = Path(__file__).parent
AVX2 = [
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "avx2", "fma", "f16c", "bmi",
    "bmi2", "lzcnt", "movbe",
]  # fmt: skip
AVX512 = [*AVX2, "adx", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"]


@dataclass(frozen=True)
class Target:
    """What Numba compiles for, the vector that must come of it, and the C kernels' name for it."""

    name: str
    features: list[str]
    vector_bytes: int
    fuses: bool
    instruction_set: str

    @property
    def environment(self) -> dict[str, str]:
        features = ",".join("+" + feature for feature in self.features)
        return {
            **os.environ,
            "NUMBA_CPU_NAME": self.name,
            "NUMBA_CPU_FEATURES": features,
            "FASTNEURON_INSTRUCTION_SET": self.instruction_set,
        }


TARGETS = [
    Target("x86-64", [], 16, False, "v2"),
    Target("haswell", AVX2, 32, True, "v3"),
    Target("skylake-avx512", AVX512, 64, True, "v4"),
]


def lacking(target: Target) -> list[str]:
    """What the target has and this processor has not."""
    binding = pytest.importorskip("llvmlite.binding", reason="numba is not installed")
    host = binding.get_host_cpu_features()
    return [feature for feature in target.features if not host.get(feature)]


@pytest.fixture(params=TARGETS, ids=lambda target: f"numba-{target.name}")
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
        timeout=600,
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


def test_numba_target_is_what_was_asked_for(target: Target) -> None:
    got = run(target.environment, "-c", DESCRIBE).split()
    assert got == [str(target.vector_bytes), str(target.fuses)]


def test_numba_tiles_and_functions(target: Target) -> None:
    """Exact integers through tiles and transposition, the twin's bits, the published ulps."""
    files = ["test_numba_kernels.py", "test_numba_tile_twin.py", "test_activation_accuracy.py"]
    which = "numba and (exact_on_integers or same_bits or transpose or published)"
    run_tests(target.environment, files, which)


def test_numba_training(target: Target) -> None:
    """Generated networks inside the bounds of the reference step, integers to the bit."""
    if target.vector_bytes == 64:
        pytest.skip("every other test trains with AVX-512 where the processor has it")
    networks = "generated_network and (numba-4- or numba-6-)"
    run_tests(
        target.environment,
        ["test_engine.py", "test_norms.py"],
        f"numba and (integer_step and float32 or {networks})",  # one dtype: it compiles for seconds
    )


@pytest.mark.parametrize("blocked", ["cython"], indirect=True)
def test_numba_and_cython_agree(target: Target, blocked: Backend) -> None:
    """The C kernels of an instruction set have the bits of what Numba compiles for it."""
    if target.vector_bytes == 64:
        pytest.skip("agreement is tested with AVX-512 where the processor has it")
    if not target.fuses:
        pytest.skip("without fused multiply-adds each rounds products and sums in its own way")
    files = ["test_engine_bits.py", "test_few_rows.py", "test_norm_bits.py", "test_slim.py"]
    run_tests(target.environment, files, "agree and float32")


@pytest.mark.parametrize("blocked", ["cython"], indirect=True)
@pytest.mark.parametrize("instruction_set", ["v2", "v3", "v4"])
def test_cython_instruction_sets(blocked: Backend, instruction_set: str) -> None:
    """Exact integers, bounds, ulps, bits, guard pages with what a lesser processor would choose."""
    if instruction_set == blocked.instruction_set:
        pytest.skip("every other test runs with it")
    runs_here = import_module("fastneuron.kernels._cython_cpu").instruction_sets()
    if instruction_set not in runs_here:
        pytest.skip(f"this processor runs {', '.join(runs_here)} of what was built")
    environment = {**os.environ, "FASTNEURON_INSTRUCTION_SET": instruction_set}
    script = "from fastneuron import backends; print(backends.get('cython').instruction_set)"
    assert run(environment, "-c", script).strip() == instruction_set
    files = [
        "test_slots.py",
        "test_slots_memory.py",
        "test_activation_accuracy.py",
        "test_engine.py",
        "test_engine_bits.py",
        "test_few_rows.py",
        "test_fused_step.py",
        "test_slim.py",
        "test_gather.py",
        "test_norms.py",
        "test_norm_bits.py",
        "test_norm_faults.py",
        "test_dropout.py",
        "test_frozen.py",
    ]
    networks = " or ".join(f"cython-{number}-" for number in (1, 4, 6, 19))
    which = f"not agree and not two_to_the_31 and (not generated_network or {networks})"
    run_tests(environment, files, f"cython and {which}")


FORWARD = """
import numpy as np
from fastneuron.kernels.numba_cpu import SLOTS
x, w = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5) - 9
np.testing.assert_array_equal(SLOTS["dense_forward"](x, w, None, "relu"), np.maximum(x @ w, 0))
"""


def test_numba_name_without_features_does_not_abort() -> None:
    """Numba then takes the name with the host's own features: vectors must follow the latter."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"haswell is x86-64, this is {platform.machine()}")
    if missing := lacking(TARGETS[1]):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell"}
    environment.pop("NUMBA_CPU_FEATURES", None)
    run(environment, "-c", FORWARD)
