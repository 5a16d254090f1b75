"""Steps of fastneuron against its own: activations, biases, float64, AVX2, kernels in C."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from figures import Figure, Goal, at_least, at_most, quotient, report, unmeasured
from peak import try_peak
from racing import Contestant, Say, floor_microseconds, race

from fastneuron.peers.engines import FastneuronCython, FastneuronNumba
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import ACTIVATIONS, TABLE, Row

#: Rounds of a comparison, the fewest and the most: differences here are of one in a hundred.
ROUNDS = (9, 41)
LARGE, SMALL = Row.parse("784-512-512-10 b256 adam"), Row.parse("20-64-64-2 b32 adam")
#: A step at most so many times that of ReLU, for the activations that a goal is set for.
ACTIVATION_GOALS = ((LARGE, 1.10), (SMALL, 1.6))
ASKED = ("tanh", "sigmoid", "gelu", "silu")
#: With biases at most so many times without; the rows of the table.
BIAS_GOALS = tuple(zip(TABLE, (1.01,) * 4 + (1.05,) * 4, strict=True))
FLOAT64_GOAL, AVX2_GOAL = 0.85, 0.80
#: A step of the kernels in C at most so many times that of Numba's, on every row of the table.
CYTHON_GOAL = 1.10
AVX2 = (
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "avx2", "fma", "f16c", "bmi",
    "bmi2", "lzcnt", "movbe",
)  # fmt: skip


def compare(
    entered: Sequence[Contestant], cores: int, seconds: float, say: Say
) -> dict[str, dict[str, Any]]:
    """Race for differences of one in a hundred; `seconds` are for two contestants."""
    return race(entered, cores, seconds * len(entered) / 2, say, ROUNDS)


def _figures(
    results: dict[str, dict[str, Any]], base: str, goals: dict[str, Goal], label: str
) -> list[Figure]:
    return [
        quotient(f"{label}: {name} over {base}", results, name, base, goal)
        for name, goal in goals.items()
    ]


def activations(
    seconds: float,
    say: Say,
    rows: Sequence[tuple[Row, float | None]] = ACTIVATION_GOALS,
    kind: type[Peer] = FastneuronNumba,
) -> dict[str, Any]:
    """Compare every activation's step with ReLU's."""
    figures = []
    for row, bound in rows:
        versions = {name: replace(row, activation=name) for name in ACTIVATIONS}
        entered = [Contestant(name, kind, version) for name, version in versions.items()]
        results = compare(entered, 1, seconds, say)
        goals = {name: at_most(bound if name in ASKED else None) for name in ACTIVATIONS[1:]}
        figures += _figures(results, "relu", goals, row.label)
    return report(figures)


def biases(
    seconds: float,
    say: Say,
    rows: Sequence[tuple[Row, float | None]] = BIAS_GOALS,
    kind: type[Peer] = FastneuronNumba,
) -> dict[str, Any]:
    """Compare steps with and without biases."""
    figures = []
    for row, bound in rows:
        without = replace(row, bias=False)
        entered = [Contestant("bias", kind, row), Contestant("nobias", kind, without)]
        results = compare(entered, 1, seconds, say)
        figures += _figures(results, "nobias", {"bias": at_most(bound)}, row.label)
    return report(figures)


def cython(
    seconds: float,
    say: Say,
    rows: Sequence[Row] = tuple(TABLE),
    kinds: tuple[type[Peer], type[Peer]] = (FastneuronCython, FastneuronNumba),
    cores: int = 1,
) -> dict[str, Any]:
    """Compare steps of the kernels in C with those of Numba's."""
    figures = []
    for row in rows:
        pairs = zip(("cython", "numba"), kinds, strict=True)
        entered = [Contestant(name, kind, row) for name, kind in pairs]
        results = compare(entered, cores, seconds, say)
        figures += _figures(results, "numba", {"cython": at_most(CYTHON_GOAL)}, row.label)
    return report(figures)


def efficiencies(
    seconds: float, say: Say, rows: Sequence[tuple[Row, float | None]], kind: type[Peer]
) -> dict[str, Any]:
    """Measure steps on one core against the peak of the same run."""
    peaks = {row.dtype: try_peak(row.dtype) for row, _ in rows}
    measured = []
    for row, bound in rows:
        result = race([Contestant("ours", kind, row)], 1, seconds, say)["ours"]
        peaks[row.dtype] = max(peaks[row.dtype] or 0, try_peak(row.dtype, 3) or 0) or None
        measured.append((row, at_least(bound), result))
    figures = []
    for row, goal, result in measured:
        what, peak = f"{row.label}: efficiency", peaks[row.dtype]
        if "reason" in result:
            figures.append(unmeasured(what, result, goal))
        elif peak is None:
            reason = "numba, which the peak is compiled by, is not installed"
            figures.append(Figure(what, None, "", goal, "missing", reason))
        else:
            floor = floor_microseconds(row, peak, 1)
            detail = {"floor_microseconds": floor, "ours": result}
            figures.append(Figure(what, floor / result["microseconds"], "", goal, detail=detail))
    return report(figures, peak_gflops_a_core=peaks)


def float64(seconds: float, say: Say, kind: type[Peer] = FastneuronNumba) -> dict[str, Any]:
    rows = [(replace(LARGE, dtype="float64"), FLOAT64_GOAL)]
    return efficiencies(seconds, say, rows, kind)


def avx2_environment() -> dict[str, str]:
    """Return the variables by which Numba compiles for AVX2: a name alone changes no features."""
    features = ",".join(f"+{feature}" for feature in AVX2)
    return {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}


def avx2(seconds: float, say: Say, kind: type[Peer] = FastneuronNumba) -> dict[str, Any]:
    """Measure AVX2 code, in a process that was told `avx2_environment`."""
    what, goal = f"{LARGE.label}: efficiency", at_least(AVX2_GOAL)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        reason = f"AVX2 is of x86-64, this is {platform.machine()}"
        return report([Figure(what, None, "", goal, "missing", reason)])
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    if lacking := [feature for feature in AVX2 if not host.get(feature)]:
        reason = f"this processor has no {', '.join(lacking)}"
        return report([Figure(what, None, "", goal, "missing", reason)])
    from fastneuron.kernels.numba_cpu.tile import VECTOR_BYTES

    if VECTOR_BYTES != 32:
        reason = f"compiled for vectors of {VECTOR_BYTES} bytes, AVX2 has 32"
        return report([Figure(what, None, "", goal, "failed", reason)])
    return efficiencies(seconds, say, [(LARGE, AVX2_GOAL)], kind)
