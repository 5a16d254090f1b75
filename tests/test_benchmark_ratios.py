"""benchmarks/ratios.py: what it reports, and that it finds what is wrong, failing or missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastneuron.peers import engines, problems


@pytest.fixture
def row(rooms: dict[str, ModuleType]) -> Any:
    return problems.Row.parse("5-6-3 b8 adam")


@pytest.fixture
def plain(rooms: dict[str, ModuleType]) -> Any:
    """fastneuron's NumPy backend: one that runs everywhere, and has all activations."""
    return engines.FastneuronNumpy


@pytest.fixture
def wrong(plain: Any) -> Any:
    class Wrong(plain):
        def advance(self, order: Any) -> Any:
            return super().advance(order) * 1.01

    return Wrong


def quiet(text: str) -> None:
    pass


def statuses(found: dict[str, Any]) -> set[str]:
    return {figure["status"] for figure in found["figures"]}


def test_the_command_prints_its_figures_and_writes_json(
    benchmarks_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    file = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "ratios.py", "--only", "float64", "--seconds", "0.01"]
        + ["--json", str(file)],
        cwd=benchmarks_folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    run = found["parts"]["float64"]
    assert run["cores"] == 1
    assert run["peak_gflops_a_core"]["float64"] > 0
    (figure,) = run["figures"]
    assert (figure["status"], figure["goal"]) == ("ok", ">= 0.85")
    assert 0 < figure["value"] < 1.1
    assert figure["met"] == (figure["value"] >= 0.85)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("float64: efficiency" in line and ">= 0.85" in line for line in lines)


def test_every_goal_of_the_engine_has_its_figure(rooms: dict[str, ModuleType]) -> None:
    steps = rooms["step_ratios"]
    assert [bound for _, bound in steps.ACTIVATION_GOALS] == [1.10, 1.6]
    assert [bound for _, bound in steps.BIAS_GOALS] == [1.01] * 4 + [1.05] * 4
    assert rooms["layer_ratios"].VARIANTS["batch_norm"] == 1.12
    assert [row for row, _ in steps.BIAS_GOALS] == list(problems.TABLE)
    assert set(rooms["ratios"].PARTS) == {
        "activations", "bias", "float64", "avx2", "cython", "cython2", "layers", "layers2",
        "ensembles", "ensembles2", "folding", "forward", "neighbour", "start",
    }  # fmt: skip


def test_activations_are_compared_with_relu(
    rooms: dict[str, ModuleType], row: Any, plain: Any
) -> None:
    steps = rooms["step_ratios"]
    found = steps.activations(0.001, quiet, [(row, 1.10)], plain)
    names = [figure["what"].split(": ")[1] for figure in found["figures"]]
    want = [f"{name} over relu" for name in problems.ACTIVATIONS[1:]]
    assert names == want
    for figure in found["figures"]:
        assert figure["status"] == "ok", figure
        asked = figure["what"].split(": ")[1].split()[0] in steps.ASKED
        assert figure["goal"] == ("<= 1.1" if asked else "-")
        assert figure["value"] > 0


def test_biases_are_compared_with_none(rooms: dict[str, ModuleType], row: Any, plain: Any) -> None:
    found = rooms["step_ratios"].biases(0.001, quiet, [(row, 1.05)], plain)
    (figure,) = found["figures"]
    assert (figure["what"], figure["status"]) == (f"{row.label}: bias over nobias", "ok")
    each = figure["detail"]["bias"]["each_round"], figure["detail"]["nobias"]["each_round"]
    assert figure["value"] == pytest.approx(np.median(np.divide(*each)), rel=1e-12)


def test_kernels_in_c_are_compared_with_numbas(
    rooms: dict[str, ModuleType], row: Any, plain: Any, wrong: Any
) -> None:
    compare = rooms["step_ratios"].cython
    (figure,) = compare(0.001, quiet, [row], (plain, plain))["figures"]
    assert (figure["what"], figure["status"]) == (f"{row.label}: cython over numba", "ok")
    assert figure["goal"] == "<= 1.1"
    assert statuses(compare(0.001, quiet, [row], (wrong, plain))) == {"wrong"}


def test_wrong_steps_are_found_and_fail_the_run(
    rooms: dict[str, ModuleType], row: Any, wrong: Any
) -> None:
    steps, figures = rooms["step_ratios"], rooms["figures"]
    for found in (
        steps.activations(0.001, quiet, [(row, 1.10)], wrong),
        steps.biases(0.001, quiet, [(row, 1.05)], wrong),
        steps.efficiencies(0.001, quiet, [(row, 0.8)], wrong),
    ):
        assert statuses(found) == {"wrong"}
        assert figures.faulty({"cores": 1, **found})
        text = "\n".join(figures.table("part", {"cores": 1, **found}))
        assert "WRONG" in text
        assert "the loss is off by" in text


def test_one_wrong_activation_leaves_the_others(
    rooms: dict[str, ModuleType], row: Any, plain: Any
) -> None:
    class WrongTanh(plain):
        def advance(self, order: Any) -> Any:
            factor = 1.01 if self.problem.activation == "tanh" else 1.0
            return super().advance(order) * factor

    found = rooms["step_ratios"].activations(0.001, quiet, [(row, 1.10)], WrongTanh)
    got = {figure["what"].split(": ")[1]: figure["status"] for figure in found["figures"]}
    assert got.pop("tanh over relu") == "wrong"
    assert set(got.values()) == {"ok"}


def test_avx2_is_not_claimed_of_other_code(
    rooms: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = rooms["step_ratios"]
    told = steps.avx2_environment()
    assert told["NUMBA_CPU_NAME"] == "haswell"
    assert "avx512" not in told["NUMBA_CPU_FEATURES"]
    assert "+avx2" in told["NUMBA_CPU_FEATURES"]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    (figure,) = steps.avx2(0.001, quiet)["figures"]
    assert (figure["status"], figure["reason"]) == (
        "missing",
        "AVX2 is of x86-64, this is riscv64",
    )


def test_many_networks_are_judged_and_timed_in_every_way(
    rooms: dict[str, ModuleType], row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    ensembles = rooms["ensembles"]
    monkeypatch.setattr(ensembles, "MODELS", 3)
    found = ensembles.ensembles(0.001, quiet, row)
    by_name = {figure["what"].split(": ")[1]: figure for figure in found["figures"]}
    for kind in ensembles.KINDS:
        status = "missing" if kind.missing() else "ok"
        assert by_name[f"{kind.name}, a step of all"]["status"] == status
    assert by_name["trainers over ensemble"]["value"] > 0
    assert not rooms["figures"].faulty({"cores": 1, **found})

    class Wrong(ensembles.Ours):  # type: ignore[name-defined, misc]
        name = "trainers"

        def advance(self, order: Any) -> Any:
            return super().advance(order) * 1.01

    class Absent(ensembles.Trainers):  # type: ignore[name-defined, misc]
        name, module = "torch vmap", "no_such_module"
        missing = classmethod(lambda cls: "no_such_module is not installed")

    found = ensembles.ensembles(0.001, quiet, row, kinds=[ensembles.Ours, Wrong, Absent])
    assert [figure["status"] for figure in found["figures"]] == ["ok", "wrong", "missing", "wrong"]


def test_forward_of_every_library_is_checked_and_timed(rooms: dict[str, ModuleType]) -> None:
    forwards = rooms["forwards"]
    kinds = [kind for kind in forwards.KINDS if not kind.missing()]
    got = forwards.race((5, 7, 3), 2, kinds, 0.001, quiet)
    assert list(got) == [kind.name for kind in kinds]
    for result in got.values():
        assert result["status"] == "ok", result
        # Rounding of sums of 7 and 5 terms.
        assert result["error"] < 50 * np.finfo(np.float32).eps
        low, high = result["quartiles"]
        assert 0 < low <= result["microseconds"] <= high


def test_a_wrong_forward_is_found(rooms: dict[str, ModuleType]) -> None:
    forwards, figures = rooms["forwards"], rooms["figures"]

    class Off(forwards.Numpy):  # type: ignore[name-defined, misc]
        name, ours = "fastneuron", True

        def take(self, out: Any) -> Any:
            return super().take(out) * 1.001

    class Broken(forwards.Numpy):  # type: ignore[name-defined, misc]
        name = "torch"

        def take(self, out: Any) -> Any:
            return super().take(out) * np.nan

    got = forwards.race((5, 7, 3), 2, [Off, Broken, forwards.Numpy], 0.001, quiet)
    assert [result["status"] for result in got.values()] == ["wrong", "wrong", "ok"]
    found = forwards.forwards(0.001, quiet, [Off, forwards.Numpy])
    wrong = [figure["what"] for figure in found["figures"] if figure["status"] == "wrong"]
    # Both one-row figures of its own, what is compared with them, and the many rows.
    assert len(wrong) == 5
    assert figures.faulty({"cores": 1, **found})


def test_forward_lists_what_is_not_installed(rooms: dict[str, ModuleType]) -> None:
    forwards = rooms["forwards"]

    class Absent(forwards.Numpy):  # type: ignore[name-defined, misc]
        name, module = "jax", "no_such_module"

    found = forwards.forwards(0.001, quiet, [forwards.Ours, Absent])
    missing = [figure for figure in found["figures"] if figure["status"] == "missing"]
    assert {figure["reason"] for figure in missing} == {"no_such_module is not installed"}
    assert not rooms["figures"].faulty({"cores": 1, **found})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot pin a process here")
def test_a_neighbour_is_there_when_it_should_be_and_ends(
    rooms: dict[str, ModuleType], row: Any, plain: Any
) -> None:
    neighbours = rooms["neighbours"]
    core = min(os.sched_getaffinity(0))
    with neighbours.spinners([core]) as beside:
        (spinner,) = beside.values()
        assert os.sched_getaffinity(spinner.process.pid) == {core}
        assert spinner.process.poll() is None
    assert spinner.process.returncode is not None
    got = neighbours.measure_kind(plain, row, [core], 0.01, quiet)
    assert list(got) == ["alone", f"core {core} busy"]
    assert all(result["microseconds"] > 0 for result in got.values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot pin a process here")
def test_a_wrong_run_beside_a_neighbour_is_found(
    rooms: dict[str, ModuleType], row: Any, wrong: Any
) -> None:
    found = rooms["neighbours"].neighbours(0.001, quiet, row, [wrong])
    assert statuses(found) == {"wrong"}


def test_starts_are_timed_and_their_losses_checked(rooms: dict[str, ModuleType]) -> None:
    starting = rooms["starting"]
    found = starting.starts(0.0, quiet, "numpy", ahead="numpy")
    assert statuses(found) == {"ok"}, found
    cold, warm, ahead = found["figures"]
    assert (cold["goal"], warm["goal"], ahead["goal"]) == ("<= 15", "<= 1.2", "<= 0.35")
    assert len(cold["detail"]["seconds"]) == 1
    assert len(warm["detail"]["seconds"]) == starting.LEAST_STARTS


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("print(0.5); print(0.25)", "wrong", "its losses are"),
        ("print(0.5)", "wrong", "its losses are"),
        ("raise SystemExit('no backend')", "failed", "no backend"),
    ],
)
def test_a_start_that_trains_something_else_is_found(
    rooms: dict[str, ModuleType], program: str, status: str, reason: str
) -> None:
    found = rooms["starting"].starts(0.0, quiet, "numpy", program, ahead="numpy")
    assert statuses(found) == {status}
    assert reason in found["figures"][0]["reason"]


def test_goals_are_met_from_the_right_side(rooms: dict[str, ModuleType]) -> None:
    figures = rooms["figures"]
    met = [figures.at_most(1.1).met(1.1), figures.at_most(1.1).met(1.2)]
    met += [figures.at_least(0.9).met(0.9), figures.at_least(0.9).met(0.8)]
    assert met == [True, False, True, False]
    assert figures.at_most(None).met(5.0) is None


def test_the_figures_keep_to_100_columns(rooms: dict[str, ModuleType]) -> None:
    figures = rooms["figures"]
    long = "1024-2048-2048-1024 b512 sgd float64, own choice: core 127 busy over alone"
    found = figures.report(
        [
            figures.Figure(long, 123456.789, "us", figures.at_least(0.85)),
            figures.Figure(long, None, "us", figures.at_most(1.1), "failed", "word " * 60),
        ],
        peak_gflops_a_core={"float32": 1234.5, "float64": None},
    )
    assert max(map(len, figures.table("part", {"cores": 2, **found}))) <= 100
    assert figures.table("part", {"cores": 2, "skipped": "1 usable cores only"}) == [
        "part: 2 cores",
        "   not measured: 1 usable cores only",
    ]
