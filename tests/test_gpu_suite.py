"""The GPU suite as a command, without a card: its budget, its table, its JSON, how it ends."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite import building, command, report, sanitizing
from fastneuron.gpu_suite.card import card
from fastneuron.gpu_suite.parts import Suite, in_parts
from fastneuron.gpu_suite.running import (
    CUT,
    MISSING,
    OK,
    SKIPPED,
    WRONG,
    Budget,
    Finding,
    NotBuiltYet,
    OutOfTime,
    Run,
    Stage,
)

ROOT = Path(__file__).parents[1]
CARD = {
    "name": "A Card", "bytes": 80 << 30, "multiprocessors": 132, "major": 9, "minor": 0,
    "driver": "580.1", "cuda": "13.0", "l2_bytes": 50 << 20,
}  # fmt: skip
posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stage(name: str, clock: Clock | None = None, seconds: float = 0.0, **given: Any) -> Stage:
    def work(budget: Budget) -> Finding:
        if clock:
            clock.now += seconds
        return Finding("", OK, "fine")

    return Stage(name, work, **given)


# The budget


def test_stages_run_until_the_budget_ends_and_the_others_are_named() -> None:
    clock = Clock()
    names = "abcd"
    run = Run([stage(name, clock, 4.0) for name in names], Budget(9.0, clock))
    got = [(each.stage, each.status, each.seconds) for each in run.run()]
    assert got == [("a", OK, 4.0), ("b", OK, 4.0), ("c", OK, 4.0), ("d", CUT, 0.0)]
    assert run.findings[-1].said == "no time was left for it"
    assert run.code == 0


def test_a_stage_has_its_share_of_the_budget_at_most() -> None:
    clock, left = Clock(), []

    def work(budget: Budget) -> Finding:
        left.append(budget.left)
        clock.now += 70.0
        return Finding("", OK, "")

    Run([Stage("a", work, 0.2), Stage("b", work, 0.5)], Budget(100.0, clock)).run()
    assert left == [20.0, 30.0]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("planted"), WRONG, "ValueError: planted"),
        (AssertionError("3 is not 4"), WRONG, "AssertionError: 3 is not 4"),
        (MemoryError(), WRONG, "MemoryError: "),
        (BackendUnavailable("no card"), SKIPPED, "no card"),
        (NotBuiltYet("later"), MISSING, "later"),
        (OutOfTime(), CUT, "its time ended before anything was found"),
    ],
)
def test_a_stage_that_raises_is_told_and_the_next_runs(
    error: Exception, status: str, said: str
) -> None:
    def work(budget: Budget) -> Finding:
        raise error

    run = Run([Stage("a", work), stage("b")], Budget(9.0))
    first, second = run.run()
    assert (first.stage, first.status, first.said) == ("a", status, said)
    assert ("traceback" in first.details) == (status == WRONG)
    assert second.status == OK
    assert run.code == (status == WRONG)


def test_what_has_not_come_back_is_given_up() -> None:
    stages = [stage("a"), stage("b", checks=False), stage("c")]
    run = Run(stages, Budget(9.0))
    run.findings.append(Finding("a", OK, ""))
    assert [each.status for each in run.give_up()] == [OK, CUT, CUT]
    run = Run(stages, Budget(9.0))
    got = run.give_up()
    assert [each.status for each in got] == [WRONG, CUT, CUT]
    assert got[0].said == "did not come back before 9 s of budget had ended"
    assert run.code == 1


def session(tmp_path: Path, *findings: Finding, checks: bool = True) -> tuple[int, dict[str, Any]]:
    stages = [Stage(f.stage, lambda budget, f=f: f, checks=checks) for f in findings]
    run = Run(stages, Budget(60.0))
    code = command.Session(run, CARD, 60.0, tmp_path / "out").run()
    return code, json.loads((tmp_path / "out" / "gpu_suite.json").read_text("utf-8"))


NEVER_ENDS = """
import time, sys
from pathlib import Path
from fastneuron.gpu_suite.command import Session
from fastneuron.gpu_suite.running import Budget, Finding, OK, Run, Stage
def never(budget):
    time.sleep(600)
fine = Stage("a", lambda budget: Finding("", OK, "fine"))
stages = [fine, Stage("hangs", never), Stage("c", never)]
Session(Run(stages, Budget(0.5)), {"simulated": True}, 1.0, Path(sys.argv[1])).run()
"""


def test_a_stage_that_never_ends_is_ended_with_what_was_found(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", NEVER_ENDS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert result.returncode == 1, result.stderr
    found = json.loads((tmp_path / "gpu_suite.json").read_text("utf-8"))
    assert [each["status"] for each in found["stages"]] == [OK, WRONG, CUT]
    assert found["exit_code"] == 1
    assert "did not come back" in result.stdout


# How it ends, and what it leaves


def test_a_wrong_result_ends_with_1_and_a_right_one_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Finding("slots numba", OK, "9 checks")
    wrong = Finding("networks numba", WRONG, "1 of 3 checks: x: got 1, want 2")
    assert session(tmp_path, right)[0] == 0
    assert "nothing is wrong" in capsys.readouterr().out
    code, found = session(tmp_path, right, wrong)
    assert (code, found["exit_code"]) == (1, 1)
    assert "something is WRONG" in capsys.readouterr().out


def test_where_no_check_could_run_it_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = Finding("slots c++", SKIPPED, "no compiler")
    assert session(tmp_path, skipped)[0] == 1
    assert "nothing was proved: no check could run" in capsys.readouterr().out
    assert session(tmp_path, skipped, checks=False)[0] == 0
    cut = Finding("slots numba", CUT, "", 0.0, {"checks": 3})
    assert session(tmp_path, skipped, cut)[0] == 0


def test_the_json_has_what_its_documentation_says(tmp_path: Path) -> None:
    _, found = session(tmp_path, Finding("slots numba", OK, "fine", 0.0, {"worst": float("nan")}))
    text = (ROOT / "docs" / "gpu_suite.md").read_text("utf-8")
    named = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    assert set(found) | set(found["stages"][0]) <= named
    assert found["format"] == report.FORMAT
    assert found["card"]["name"] == "A Card"
    assert found["stages"][0]["details"]["worst"] is None
    assert found["versions"]["numpy"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gpu_suite.json",
        "gpu_suite.txt",
    ]


def test_nothing_that_is_printed_is_wider_than_80(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"ours": False, "status": "failed", "said": "RuntimeError: " + "x" * 300}
    details = {
        "workload": "1024-4096-4096-1024 b8192 sgd tf32 and more of it than anybody would want",
        "fastest_of_ours": "fastneuron numba",
        "contestants": {
            "fastneuron numba": {
                "ours": True, "status": OK, "said": "", "step_seconds": 1.23456e-3,
                "start_seconds": 123.4, "clock": "CUDA events",
            },
            "torch vmap graph": entry,
            "jax": {**entry, "status": MISSING, "said": "jax is not installed"},
        },
    }  # fmt: skip
    found = Finding("bench " + details["workload"], OK, "word " * 60, 1234.5, details)
    session(tmp_path, found, Finding("slots numba", WRONG, "y" * 500, 7.0))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    table = "\n".join(lines)
    assert re.search(r"fastneuron numba +1235 +1\.00 +123\.4  CUDA events", table)
    assert re.search(r"jax +- +not built yet: jax is not", table)
    text = (tmp_path / "out" / "gpu_suite.txt").read_text("utf-8")
    assert text.splitlines() == lines


# What must be there


def test_without_a_card_there_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for problem in (
        "NVIDIA's driver is not installed (libcuda.so.1 is not found): nvidia.com/drivers",
        "no NVIDIA card is visible to the driver: look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.setattr(command, "missing_card", lambda problem=problem: problem)
        monkeypatch.setattr(command.numba_cuda, "missing", lambda problem=problem: problem)
        assert command.main([]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"gpu_suite: {problem}\n")


def test_without_any_kernels_the_line_names_the_package_and_nvcc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "missing_card", lambda: "")
    monkeypatch.setattr(command.numba_cuda, "missing", lambda: "numba-cuda is not installed")
    monkeypatch.setattr(command, "buildable", lambda place: "nvcc is not found")
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    want = (
        "numba-cuda is not installed; the kernels in C++ cannot take their place: nvcc is not found"
    )
    assert command.nothing_to_run_on(simulated=False) == want
    monkeypatch.setattr(command, "missing_card", lambda: "no driver")
    assert command.nothing_to_run_on(simulated=False) == f"no driver; {want}"
    monkeypatch.setattr(command, "missing_card", lambda: "")
    monkeypatch.setattr(command, "buildable", lambda place: "")
    assert command.nothing_to_run_on(simulated=False) == ""
    assert command.nothing_to_run_on(simulated=True).startswith("numba is not installed")


class Driver:
    """What stands for NVIDIA's driver."""

    fails = ""

    def __getattr__(self, name: str) -> Any:
        if name == self.fails:
            return lambda *arguments: 999
        return {
            "cuInit": lambda flags: 0,
            "cuDeviceGet": lambda device, number: 0,
            "cuDeviceGetName": self._name,
            "cuDeviceTotalMem_v2": lambda place, device: self._put(place, 80 << 30),
            "cuDeviceGetAttribute": lambda place, what, device: self._put(place, what),
            "cuDriverGetVersion": lambda place: self._put(place, 13000),
        }[name]

    @staticmethod
    def _name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"A Card"
        return 0

    @staticmethod
    def _put(place: Any, number: int) -> int:
        place._obj.value = number
        return 0


def test_the_card_is_described_by_the_driver() -> None:
    found = card(Driver())
    assert (found["name"], found["bytes"], found["cuda"]) == ("A Card", 80 << 30, "13.0")
    assert (found["major"], found["minor"], found["multiprocessors"]) == (75, 76, 16)
    assert (found["l2_bytes"], found["clock"]) == (38, 13e3)
    broken = Driver()
    broken.fails = "cuDeviceTotalMem_v2"
    with pytest.raises(OSError, match="cuDeviceTotalMem_v2 of NVIDIA's driver returned 999"):
        card(broken)


# Other programs


def script(place: Path, text: str) -> Path:
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(place.stat().st_mode | stat.S_IEXEC)
    return place


@posix
@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", OK, "memcheck found nothing"),
        ("echo 'ERROR SUMMARY: 3 errors'; exit 9", WRONG, "memcheck found 3 errors"),
        ("echo 'RACECHECK SUMMARY: 2 hazards displayed'; exit 9", WRONG, "found 2 errors"),
        ("echo 'ERROR SUMMARY: 0 errors'; exit 1", WRONG, "memcheck ended with 1"),
        ("exit 0", WRONG, "memcheck ended with 0"),
        ("echo 'Error: Device not supported'; exit 1", SKIPPED, "cannot reach this card"),
    ],
)
def test_what_a_sanitizer_says(tmp_path: Path, text: str, status: str, said: str) -> None:
    program = script(tmp_path / "sanitizer", f"{text.replace('exit', 'true; exit')}")
    found = sanitizing.sanitize("memcheck", "numba", Budget(30.0), str(program))
    assert found.status == status
    assert said in found.said


@posix
def test_a_sanitizer_gets_the_small_suite_and_is_ended_with_the_budget(tmp_path: Path) -> None:
    program = script(tmp_path / "told", "echo \"$@\"; echo 'ERROR SUMMARY: 0 errors'")
    found = sanitizing.sanitize("racecheck", "c++", Budget(30.0), str(program))
    told = found.details["printed"]
    stages = [f"--only {stage}" for stage in ("slots", "networks", "ensembles")]
    engine = "-m fastneuron.gpu_suite", "--small", "--engine c++"
    for words in ("--tool racecheck", *engine, *stages):
        assert words in told
    command._parser().parse_args(told.split("fastneuron.gpu_suite ")[1].splitlines()[0].split())
    hangs = script(tmp_path / "hangs", "sleep 60")
    with pytest.raises(OutOfTime):
        sanitizing.sanitize("memcheck", "numba", Budget(0.1), str(hangs))


def test_without_a_sanitizer_the_stage_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizing, "tool", lambda name: None)
    found = sanitizing.sanitize("memcheck", "numba", Budget(9.0))
    assert (found.status, "not found" in found.said) == (SKIPPED, True)


SETUP = """
import os, sys
NAME = "_cython_cuda"
assert sys.argv[1:] == ["build_ext", "--inplace"], sys.argv
assert os.environ["FASTNEURON_CUDA"] == "1"
open("built", "w").write(os.environ["FASTNEURON_CUDA_ARCHITECTURES"])
"""


def test_the_extension_is_built_for_this_card_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDACXX", "/somewhere/nvcc")
    monkeypatch.setattr(building, "find_spec", lambda name: True)
    setup = tmp_path / "setup.py"
    with pytest.raises(BackendUnavailable, match="no checkout"):
        building.build(Budget(60.0), CARD, tmp_path)
    setup.write_text("pass")
    with pytest.raises(NotBuiltYet):
        building.build(Budget(60.0), CARD, tmp_path)
    setup.write_text(SETUP)
    found = building.build(Budget(60.0), CARD, tmp_path)
    assert (found.status, found.said) == (OK, "built for sm_90 by /somewhere/nvcc")
    assert (tmp_path / "built").read_text() == "90"
    setup.write_text(f"{SETUP}\nsys.exit('nvcc fails on sums.cu')")
    found = building.build(Budget(60.0), CARD, tmp_path)
    assert (found.status, found.said) == (WRONG, "building failed: nvcc fails on sums.cu")
    setup.write_text(f"{SETUP}\nimport time\ntime.sleep(60)")
    with pytest.raises(OutOfTime):
        building.build(Budget(0.1), CARD, tmp_path)
    monkeypatch.delenv("CUDACXX")
    monkeypatch.setattr(building, "tool", lambda name: None)
    with pytest.raises(BackendUnavailable, match="nvcc is not found"):
        building.build(Budget(60.0), CARD, tmp_path)


class Planted(Suite):
    """Parts that are another program."""

    program = ""

    def command(self, seconds: float, out: Path, *more: str) -> list[str]:
        return [sys.executable, "-c", self.program, str(out), *more]


PART = """
import json, sys
from pathlib import Path
out, part = Path(sys.argv[1]), int(sys.argv[3][0])
details = {"checks": 4 - part, "of": 4, "worst": part / 10, "worst_at": str(part), "wrong": [],
           "unlaunched": ["a", "b"][part:]}
out.mkdir()
text = json.dumps({"stages": [{"details": details, "said": ""}]})
(out / "gpu_suite.json").write_text(text)
"""


def test_parts_are_one_finding() -> None:
    class Working(Planted):
        program = PART

    found = in_parts(Working("slots", "numba"), 2, Budget(60.0))
    assert found.status == CUT
    assert found.said == "7 of 8 checks, the worst error is 0.10 of its bound"
    assert found.details["unlaunched"] == ["b"]


def test_a_part_that_leaves_nothing_is_wrong() -> None:
    class Dying(Planted):
        program = f"import sys\nif sys.argv[3] == '1/2': sys.exit('illegal address')\n{PART}"

    found = in_parts(Dying("slots", "numba"), 2, Budget(60.0))
    assert found.status == WRONG
    assert "part 1: it ended with 1: illegal address" in found.said

    class Hanging(Planted):
        program = "import time; time.sleep(60)"

    with pytest.raises(OutOfTime):
        in_parts(Hanging("slots", "numba"), 2, Budget(0.1))


def test_a_part_is_what_its_arguments_say() -> None:
    parser = command._parser()
    words = Suite("slots", "c++", ("--small",)).command(60.0, Path("x"), "--part", "3/8")
    args = parser.parse_args(words[3:])
    assert (args.only, args.engine, args.part, args.jobs) == (["slots"], ["c++"], (3, 8), 1)
    assert (args.small, args.budget) == (True, 55.0)
    for wrong in ("8/8", "1", "a/b", "0/0"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--part", wrong])
