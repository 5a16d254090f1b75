"""fastneuron bench: all workloads are there, what is wrong has no time, a run can be resumed."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron import backends, ops
from fastneuron.activations import ACTIVATIONS
from fastneuron.bench import arguments, running
from fastneuron.bench.results import Key, Result, Row
from fastneuron.bench.suites import SUITES, workloads
from fastneuron.bench.workloads import BACKENDS, NotItsOwn, Prepare, Prepared, Workload
from fastneuron.bench.writing import digits
from fastneuron.cli import main
from fastneuron.errors import BackendUnavailable, DataError, SpecError, UnknownNameError
from fastneuron.kernels.contract import SLOTS
from fastneuron.profiling.machine_ceilings import Level, MachineCeilings

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed (the extra plots)",
)

LEVELS = (Level("memory", 1 << 20, 1e12, 1e12),)

#: The cheapest real workload, of one backend.
SMALL = ["slots", "--only", "dense_forward 32x64x64 f32 bias", "--backend", "numpy"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rounds last next to nothing: no test looks at what they say."""
    monkeypatch.setattr(running, "SECONDS", (0.002, 0.002))
    monkeypatch.setattr(running, "ROUNDS", (3, 2))


def simulated(
    monkeypatch: pytest.MonkeyPatch, costs: dict[str, float]
) -> tuple[Workload, Callable[[], float]]:
    """A workload whose backends take what `costs` says, on a clock that only work moves."""
    now = [0.0]

    def spend(seconds: float) -> Callable[[int], None]:
        def work(units: int) -> None:
            now[0] += units * seconds

        return work

    def build() -> Prepare:
        return lambda name: Prepared(spend(costs[name]), 0.25, 0.5, {"threads": 1})

    monkeypatch.setattr(running, "yardsticks", lambda: [spend(2e-6), spend(3e-6)])
    workload = Workload(
        "slots", "sum", "4", "float32", True, build, 1e3, 2e3, 4, True, tuple(costs)
    )
    return workload, lambda: now[0]


# The registry


def test_every_slot_is_there_in_both_dtypes_with_and_without_bias() -> None:
    found = {(w.name, w.dtype, w.bias) for w in workloads("slots")}
    for slot in SLOTS:
        sides = (True, False) if "bias" in slot or "dense" in slot else (None,)
        for dtype in ("float32", "float64"):
            for bias in sides:
                assert (slot, dtype, bias) in found


def test_every_activation_has_its_passes() -> None:
    shapes = {w.shape for w in workloads("slots") if w.name == "bias_act_forward"}
    assert shapes == {f"256x512 {name}" for name in ACTIVATIONS}


def test_every_function_of_ops_is_there() -> None:
    assert {w.name for w in workloads("ops")} == {f"ops.{name}" for name in ops.__all__}


def test_workloads_are_told_apart_and_every_suite_has_a_quick_part() -> None:
    everything = workloads()
    keys = [(w.suite, w.name, w.label) for w in everything]
    assert len(set(keys)) == len(keys)
    assert {w.suite for w in everything if w.quick} == set(SUITES)
    for suite in ("steps", "inference"):
        assert {w.bias for w in workloads(suite)} == {True, False}


def test_the_commands_lists_are_the_tables() -> None:
    assert set(arguments.SUITES) == {"all", *SUITES}
    assert arguments.BACKENDS == BACKENDS


def test_an_unknown_suite_lists_those_that_are() -> None:
    with pytest.raises(UnknownNameError, match="available: all, slots, ops"):
        workloads("slot")


CHEAP = {
    w.name: w for w in reversed(workloads()) if w.flop < 1e9 and "784-512" not in w.name
}.values()


@pytest.mark.parametrize("workload", CHEAP, ids=str)
def test_a_workload_of_each_name_is_right_and_can_be_timed(workload: Workload) -> None:
    prepare = workload.build()
    for name in workload.backends:
        try:
            prepared = prepare(name)
        except (BackendUnavailable, NotItsOwn):
            continue
        assert 0 <= prepared.error_over_bound <= 1
        prepared.work(1)
        prepared.work(3)


# Running


def test_figures_follow_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6, "cython": 2e-6})
    result = running.run(names=["numpy"], listed=[workload], passes=2, clock=clock)
    (row,) = result.rows
    assert row.key == Key("slots", "sum", "4", "float32", True, "numpy")
    assert len(row.samples) == 2
    np.testing.assert_allclose(row.seconds, 8e-6, rtol=1e-9)
    figures = row.figures()
    assert figures["microseconds"] == pytest.approx(8)
    assert figures["gflop_s"] == pytest.approx(1e3 / 8e-6 / 1e9)
    assert figures["gbyte_s"] == pytest.approx(2e3 / 8e-6 / 1e9)
    assert figures["rows_s"] == pytest.approx(4 / 8e-6)
    assert figures["percent_of_ceiling"] == pytest.approx(100 * row.floor_seconds / 8e-6, rel=1e-4)
    assert row.error_over_bound == 0.25
    assert row.start_seconds == 0.5
    np.testing.assert_allclose([s.yardsticks for s in row.samples], [[[2e-6] * 3, [3e-6] * 3]] * 2)


def test_backends_take_turns_and_are_put_beside_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "get", lambda *_, **__: backends.Backend("numpy"))
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6, "cython": 2e-6})
    result = running.run(names=["numpy", "cython"], listed=[workload], passes=1, clock=clock)
    of_numpy, of_cython = result.rows
    assert result.against_numpy(of_numpy) is None
    ratio = result.against_numpy(of_cython)
    assert ratio is not None
    assert ratio.value == pytest.approx(4)


def plant(monkeypatch: pytest.MonkeyPatch, slot: str, fault: Callable[[Any], Any]) -> None:
    slots: Any = backends.get("numpy").slots
    right = slots[slot]
    monkeypatch.setitem(slots, slot, lambda *arguments: fault(right(*arguments)))


def test_a_wrong_result_has_no_time_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plant(monkeypatch, "dense_forward", lambda y: y * np.float32(1.001))
    path = tmp_path / "run.json"
    assert main(["bench", *SMALL, "--passes", "1", "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert "WRONG" in captured.out
    assert "outside the bound" in captured.out
    assert captured.err.count("\n") == 1
    assert "1 of 1 results are wrong" in captured.err
    (row,) = json.loads(path.read_text())["rows"]
    assert row["status"] == "wrong"
    assert "microseconds" not in row
    assert row["samples"] == []


def test_a_missing_bias_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "dense_backward", lambda got: (got[0], got[1], None))
    result = running.run(
        "slots", quick=True, names=["numpy"], only=["dense_backward 32x64x64 f32"], passes=1
    )
    assert [row.status for row in result.rows] == ["wrong"]
    assert "db" in result.rows[0].reason


def test_what_fails_while_it_is_timed_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "get", lambda *_, **__: backends.Backend("numpy"))
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6, "cython": 2e-6})
    build = workload.build

    def broken() -> Prepare:
        def prepare(name: str) -> Prepared:
            prepared = build()(name)
            calls = iter(range(3))

            def work(units: int) -> None:
                if name == "cython" and next(calls, None) is None:
                    raise ValueError("a loss is not finite")
                prepared.work(units)

            return replace(prepared, work=work)

        return prepare

    listed = [replace(workload, build=broken)]
    result = running.run(names=["numpy", "cython"], listed=listed, passes=1, clock=clock)
    assert [row.status for row in result.rows] == ["ok", "failed"]
    assert "a loss is not finite" in result.rows[1].reason
    assert result.wrong == [result.rows[1]]


def test_a_missing_backend_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backends.get

    def get(name: Any = "auto", *arguments: Any, **options: Any) -> backends.Backend:
        if name == "cython":
            raise BackendUnavailable("the extension is not built")
        return real(name, *arguments, **options)

    monkeypatch.setattr(backends, "get", get)
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6, "cython": 2e-6})
    result = running.run(names=["numpy", "cython"], listed=[workload], passes=1, clock=clock)
    assert result.missing == {"cython": "the extension is not built"}
    assert [row.key.backend for row in result.rows] == ["numpy"]
    assert "Missing: cython: the extension is not built" in str(result)


def test_a_run_that_stopped_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6})
    listed = [workload, replace(workload, shape="5"), replace(workload, shape="6")]
    options: dict[str, Any] = {"names": ["numpy"], "listed": listed, "passes": 2, "clock": clock}
    whole = running.run(**options)
    spent = 0.5 * (clock() if clock() else 1.0)
    part = running.run(seconds=spent / 2, **options)
    assert part.not_measured > 0
    assert "not measured, for lack of time" in str(part)
    again = running.run(earlier=Result.from_json(part.to_json()), **options)
    assert again.not_measured == 0
    assert [row.key for row in again.rows] == [row.key for row in whole.rows]
    assert [len(row.samples) for row in again.rows] == [2, 2, 2]
    more = running.run(earlier=again, **{**options, "passes": 3})
    assert [len(row.samples) for row in more.rows] == [3, 3, 3]


def test_the_best_ceilings_of_all_passes_count_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workload, clock = simulated(monkeypatch, {"numpy": 4e-6})
    paces = iter((1e9, 4e9, 2e9))

    def measure(threads: int) -> MachineCeilings:
        return MachineCeilings(threads, {"float32": next(paces)}, LEVELS, "a test")

    monkeypatch.setattr(running, "measure", measure)
    found = None
    for turn in (1, 2, 3):
        found = running.run(listed=[workload], last_pass=turn, earlier=found, clock=clock)
    assert found is not None
    (row,) = found.rows
    assert len(row.samples) == 3
    assert row.floor_seconds == 1e3 / 4e9


def test_a_run_of_another_machine_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, clock = simulated(monkeypatch, {"numpy": 8e-6})
    options: dict[str, Any] = {"names": ["numpy"], "listed": [workload], "clock": clock}
    found = running.run(**options, passes=1)
    other = replace(found, machine={**found.machine, "processor": "abacus"})
    with pytest.raises(DataError, match="processor abacus"):
        running.run(**options, earlier=other)


def test_nothing_left_to_run_is_an_error() -> None:
    with pytest.raises(SpecError, match="no workload is left"):
        running.run("slots", only=["no such name"])


# What is shown and written


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(backends, "get", lambda *_, **__: backends.Backend("numpy"))
    costs = {"numpy": 8e-6, "numba": 4e-6, "cython": 2e-6}
    workload, clock = simulated(monkeypatch, costs)
    listed = [workload, replace(workload, shape="256x512 leaky_relu", bias=False)]
    found = running.run(names=list(costs), listed=listed, passes=2, clock=clock)
    monkeypatch.undo()
    return found


def test_json_comes_back_as_it_was(result: Result) -> None:
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))
    again = Result.from_json(written)  # its times have the file's six digits
    assert json.loads(json.dumps(Result.from_json(again.to_json()).to_json())) == json.loads(
        json.dumps(again.to_json())
    )
    for got, want in zip(again.rows, result.rows, strict=True):
        assert replace(got, samples=()) == replace(
            want, samples=(), floor_seconds=got.floor_seconds
        )
        np.testing.assert_allclose(got.seconds, want.seconds, rtol=1e-5)
    assert {*written} == {
        "format", "machine", "settings", "ceilings", "starts", "missing", "rows", "not_measured",
    }  # fmt: skip
    assert {*written["rows"][0]} == {
        "suite", "name", "shape", "dtype", "bias", "backend", "status", "reason", "flop", "nbytes",
        "rows", "floor_microseconds", "error_over_bound", "start_seconds", "more", "microseconds",
        "low_microseconds", "high_microseconds", "gflop_s", "gbyte_s", "rows_s",
        "percent_of_ceiling", "samples", "times_numpy", "times_ours",
    }  # fmt: skip
    assert written["rows"][1]["times_numpy"]["value"] == pytest.approx(2)


@pytest.mark.parametrize("damage", [{}, {"format": "something else"}, {"rows": [{}]}, []])
def test_what_is_no_result_is_refused(result: Result, damage: Any) -> None:
    found = {**result.to_json(), **damage} if isinstance(damage, dict) and damage else damage
    with pytest.raises(DataError, match=r"not a result|a damaged result"):
        Result.from_json(found)


def test_csv_has_a_line_a_row(result: Result) -> None:
    lines = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [line["backend"] for line in lines] == ["numpy", "numba", "cython"] * 2
    assert [float(line["microseconds"]) for line in lines[:3]] == [8, 4, 2]
    assert float(lines[2]["times_numpy"]) == 4


def test_the_table_is_aligned_and_fits_80_columns(result: Result) -> None:
    lines = str(result).splitlines()
    assert max(map(len, lines)) <= 80
    head = next(i for i, line in enumerate(lines) if line.startswith("slots"))
    assert lines[head].split() == ["slots", "numpy", "numba", "cython"]
    assert lines[head + 1].split() == ["us", "%", "us", "x", "%", "us", "x", "%"]
    assert lines[head + 2] == "sum"
    cells = lines[head + 3].split()
    assert cells[:4] == ["4", "f32", "bias", "8.00"]
    assert cells[5:7] == ["4.00", "2.0"]
    ends = {line.index("us") + 2 for line in lines[head + 1 : head + 2]}
    assert {lines[head + 3].index("8.00") + 4} == ends
    assert "<pre>" in result._repr_html_()


def test_the_longest_names_fit_80_columns(result: Result) -> None:
    row = result.rows[0]
    rows = []
    for w in workloads():
        for name in w.backends:
            key = Key(w.suite, w.name, w.shape, w.dtype, w.bias, name)
            samples = tuple(s._replace(seconds=[0.123456] * len(s.seconds)) for s in row.samples)
            rows.append(replace(row, key=key, samples=samples, floor_seconds=0.1))
    lines = str(replace(result, rows=tuple(rows))).splitlines()
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("value", "want"),
    [(8.0, "8.00"), (1234.5, "1230"), (0.012345, "0.0123"), (0.5, "0.500"), (99.96, "100"),
     (9.996, "10.0"), (0.0, "0.00"), (None, "-"), (123456.0, "123000")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, want: str) -> None:
    assert digits(value) == want


@needs_matplotlib
def test_the_figure_has_a_mark_for_each_workload(result: Result) -> None:
    from fastneuron.bench.figure import speeds

    figure = speeds(result)
    (axes,) = figure.axes
    marks = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    np.testing.assert_allclose(marks["numba; bar: median"], [2, 2])
    np.testing.assert_allclose(marks["cython; bar: median"], [4, 4])
    assert axes.get_xlabel().endswith("(no unit)")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


@needs_matplotlib
def test_a_run_of_numpy_alone_cannot_be_drawn(result: Result) -> None:
    from fastneuron.bench.figure import speeds

    with pytest.raises(DataError, match="nothing to draw"):
        speeds(replace(result, rows=result.rows[:1]))


# The command


def test_the_command_writes_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("run.json", "run.csv", "resumed.json")]
    files = [str(path) for path in paths]
    command = ["bench", *SMALL, "--passes", "1", "--json", files[0], "--csv", files[1]]
    assert main([*command, "--resume", files[2]]) == 0
    captured = capsys.readouterr()
    assert "dense_forward" in captured.out
    assert captured.err == ""
    assert paths[0].read_text() == paths[2].read_text()
    assert len(paths[1].read_text().splitlines()) == 2
    assert main(["bench", *SMALL, "--passes", "2", "--resume", files[2]]) == 0
    assert len(json.loads(paths[2].read_text())["rows"][0]["samples"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["peers", "--peer", "thorch"], 2, "invalid choice"),
        (["slot"], 2, "invalid choice"),
        (["slots", "--threads", "0"], 2, "whole number"),
        (["slots", "--seconds", "0"], 2, "above 0"),
        (["slots", "--only", "nothing of the kind"], 1, "no workload is left"),
        (["slots", "--json", "no/such/folder/run.json"], 1, "make it first"),
        (["compare"], 2, "required"),
        (["compare", "no such file", "none"], 2, "No such file"),
    ],
)
def test_what_cannot_be_done_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["bench", *arguments]) == code
    assert message in capsys.readouterr().err


def test_the_command_gives_each_pass_a_process(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "fastneuron", "bench", *SMALL, "--quick", "--passes", "2"]
    done = subprocess.run(
        [*command, "--json", str(path)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 results were checked" in done.stdout
    (row,) = json.loads(path.read_text())["rows"]
    assert [len(sample["microseconds"]) for sample in row["samples"]] == [10, 10]
    assert [len(sample["yardsticks"]) for sample in row["samples"]] == [3, 3]


def test_options_may_stand_before_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    suite, *options = SMALL
    assert main(["bench", *options, "--passes", "1", suite]) == 0
    assert "1 results were checked" in capsys.readouterr().out


def test_help_needs_the_standard_library_alone() -> None:
    program = (
        "import sys\nfrom fastneuron.cli import main\n"
        "assert main(['bench', '--help']) == 0\nassert 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_a_row_that_is_not_ok_is_kept_out_of_figures() -> None:
    row = Row(Key("slots", "a", "1", "float32", None, "numpy"), "wrong", "why")
    assert "microseconds" not in row.to_json()
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
