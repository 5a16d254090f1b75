"""Other libraries in fastneuron bench: shown beside ours, judged by tolerances, never regressed.

Runs are simulated, on a clock that only work moves, or put together by hand: no test looks at a
real clock.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.bench import peers, running
from fastneuron.bench.ceilings import Ceilings
from fastneuron.bench.comparing import compare
from fastneuron.bench.results import Key, Result, Row, Sample
from fastneuron.bench.suites import workloads
from fastneuron.bench.workloads import PEER_SUITES, NotItsOwn, Prepare, Prepared, Workload
from fastneuron.bench.writing import located
from fastneuron.cli import main
from fastneuron.errors import DataError
from fastneuron.peers import NAMES, OURS
from fastneuron.peers.engines import FastneuronNumpy
from fastneuron.peers.plain_numpy import PlainNumpy
from fastneuron.peers.problems import Row as Rows
from fastneuron.peers.roster import PEERS
from fastneuron.profiling.machine_ceilings import Level

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed (the extra plots)",
)

#: Microseconds of a step.
COSTS = dict(zip(NAMES, (10, 12, 70, 50, 40, 30, 20, 90, 80), strict=True))
SMALLEST = "2-8-1 b4 sgd"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rounds last next to nothing, and measure no ceilings: no test looks at them."""
    monkeypatch.setattr(running, "SECONDS", (0.002, 0.002))
    monkeypatch.setattr(running, "ROUNDS", (5, 5))
    levels = (Level("memory", 1024, 5e10, 5e10),)
    ceilings = Ceilings(1, {"float32": 1e11, "float64": 5e10}, levels, "nobody")
    monkeypatch.setattr(running, "measure", lambda _: ceilings)


def install(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Make every library seem to be there, but those that are named."""
    for name, kind in list(PEERS.items()):
        reason = f"{kind.module} is not installed" if name in missing else ""
        fake = {
            "missing": classmethod(lambda _, reason=reason: reason),
            "load": classmethod(lambda _: None),
            "version": classmethod(lambda _: "1.2.3"),
        }
        monkeypatch.setitem(PEERS, name, type(kind.__name__, (kind,), fake))


def simulated(
    monkeypatch: pytest.MonkeyPatch,
    costs: Mapping[str, float] = COSTS,
    trouble: Mapping[str, Exception] | None = None,
    **options: Any,
) -> Result:
    """A run of two steps and a training; `trouble` is what some cannot do at the second step."""
    now = [0.0]
    rng = np.random.default_rng(0)

    def spend(seconds: float) -> Callable[[int], None]:
        def work(units: int) -> None:
            now[0] += units * seconds * np.exp(rng.normal(0, 0.01))

        return work

    def build(scale: float, more: dict[str, Any], troubled: bool) -> Callable[[], Prepare]:
        def prepare(name: str) -> Prepared:
            if troubled and trouble and name in trouble:
                raise trouble[name]
            return Prepared(spend(1e-6 * scale * costs[name]), 0.25, 1.5, more)

        return lambda: prepare

    monkeypatch.setattr(running, "yardsticks", lambda: [spend(2e-6), spend(3e-6)])
    reached = {"epochs": 7, "accuracy": 0.9667}
    listed = [
        Workload(suite, name, shape, "float32", True, build(scale, more, name == "step 3-4-2"),
                 flop, 0.0, 8, True, NAMES)
        for suite, name, shape, scale, more, flop in (
            ("peers", "step 2-8-1", "b4 sgd", 1, {}, 1e3),
            ("peers", "step 3-4-2", "b8 adam", 3, {}, 1e3),
            ("accuracy", "digits 64-128-10", "b32 adam to 96.5%", 1e4, reached, 0.0),
        )
    ]  # fmt: skip
    return running.run(listed=listed, passes=2, clock=lambda: now[0], **options)


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Result:
    install(monkeypatch)
    return simulated(monkeypatch)


def of(result: Result, backend: str, suite: str = "peers") -> Row:
    return next(r for r in result.rows if (r.key.suite, r.key.backend) == (suite, backend))


# The registry


def test_names_are_those_of_the_roster() -> None:
    assert tuple(PEERS) == NAMES
    assert tuple(name for name, kind in PEERS.items() if kind.ours) == OURS


def test_the_suites_of_peers_are_known_by_name() -> None:
    for workload in workloads():
        assert (workload.suite in PEER_SUITES) == (set(workload.backends) <= set(NAMES))


def test_a_backend_and_a_peer_of_one_name_are_told_apart() -> None:
    assert not Key("slots", "mse", "4", "float32", None, "numpy").foreign
    assert Key("peers", "step", "4", "float32", None, "numpy").foreign
    assert not Key("peers", "step", "4", "float32", None, "fastneuron-numba").foreign


# Running


def test_the_real_peers_run_and_stand_beside_ours() -> None:
    names = [*OURS, "numpy"]
    found = fn.bench.run("peers", only=[SMALLEST], names=names, passes=1)
    present = [name for name in names if not PEERS[name].missing()]
    assert [(row.key.backend, row.status) for row in found.rows] == [(n, "ok") for n in present]
    assert set(found.missing) == set(names) - set(present)
    assert found.base == present[0]
    assert all(found.against_ours(row) for row in found.rows if row.key.backend != found.base)
    assert all(0 <= (row.error_over_bound or 0) <= 1 for row in found.rows)


def test_a_wrong_peer_has_no_time_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = PlainNumpy.advance
    monkeypatch.setattr(PlainNumpy, "advance", lambda self, order: 1.01 * right(self, order))
    path = tmp_path / "run.json"
    command = ["bench", "peers", "--only", SMALLEST, "--peer", "numpy", "--passes", "1"]
    assert main([*command, "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert "WRONG" in captured.out
    assert "the loss is off by" in captured.out
    assert "1 of 1 results are wrong" in captured.err
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["status"], row["samples"], row["times_ours"]) == ("wrong", [], None)


def test_who_drops_numbers_of_its_own_has_a_tolerance_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Otherwise(FastneuronNumpy):
        drops_alike = False

        def advance(self, order: Any) -> Any:
            return 1.02 * super().advance(order)

    monkeypatch.setitem(PEERS, "torch", Otherwise)
    prepare = peers._race(Rows.parse("8-16-2 b32 sgd dropout0.1"))
    assert prepare("torch").error_over_bound == pytest.approx(0.02 / 0.03, rel=0.01)


def test_ratios_are_of_the_same_rounds(result: Result) -> None:
    assert result.base == "fastneuron-numba"
    for name, cost in COSTS.items():
        ratio = result.against_ours(of(result, name))
        if name == result.base:
            assert ratio is None
        else:
            assert ratio is not None
            assert ratio.value == pytest.approx(cost / 10, rel=0.02)
            assert ratio.low < ratio.value < ratio.high < 1.05 * ratio.low


def test_the_base_is_the_first_of_ours_that_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "fastneuron-numba")
    found = simulated(monkeypatch)
    assert found.base == "fastneuron-cython"
    ratio = found.against_ours(of(found, "torch"))
    assert ratio is not None
    assert ratio.value == pytest.approx(50 / 12, rel=0.03)
    assert "times the time of fastneuron-cython" in " ".join(str(found).split())


def test_without_one_of_ours_there_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    found = simulated(monkeypatch, names=["torch", "jax-scan"])
    assert found.base is None
    assert found.against_ours(of(found, "torch")) is None
    assert "fastest other" not in str(found)


# What is shown and written


def test_each_workload_has_a_line_a_peer(result: Result) -> None:
    lines = str(result).splitlines()
    head = lines.index(next(line for line in lines if line.startswith("peers, a step")))
    assert lines[head].split() == [
        "peers,",
        "a",
        "step",
        "us",
        "x",
        "from",
        "to",
        "%",
        "start",
        "s",
    ]
    assert lines[head + 1] == "step 2-8-1 b4 sgd f32 bias"
    block = [line.split() for line in lines[head + 2 : head + 2 + len(NAMES)]]
    assert [cells[0] for cells in block] == list(NAMES)
    for cells, (name, cost) in zip(block, COSTS.items(), strict=True):
        assert float(cells[1]) == pytest.approx(cost, rel=0.05)
        x = [1.0] if name == result.base else [float(cell) for cell in cells[2:5]]
        assert x[0] == pytest.approx(cost / 10, rel=0.05)
        assert cells[-1] == "1.5"
    assert lines[head + 2 + len(NAMES)] == "step 3-4-2 b8 adam f32 bias"


def test_a_training_has_its_epochs_and_what_it_reached(result: Result) -> None:
    lines = str(result).splitlines()
    head = lines.index(next(line for line in lines if line.startswith("accuracy, a training")))
    assert lines[head].split()[3:] == [
        "ms",
        "x",
        "from",
        "to",
        "start",
        "s",
        "epochs",
        "%",
        "right",
    ]
    cells = lines[head + 2].split()
    assert cells[0] == "fastneuron-numba"
    assert float(cells[1]) == pytest.approx(100, rel=0.05)
    assert cells[-2:] == ["7", "96.7"]


def test_the_fastest_of_the_others_is_named(result: Result) -> None:
    text = " ".join(str(result).split())
    assert "step 2-8-1 b4 sgd f32 bias jax-scan" in text
    assert "fastneuron-numba is faster than all of them at 3 of 3 workloads; the least:" in text


def test_who_is_faster_than_ours_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    text = " ".join(str(simulated(monkeypatch, {**COSTS, "torch": 8})).split())
    assert "faster than all of them at 0 of 3 workloads, slower than one at 3" in text
    assert "torch is 1.2" in text
    assert "times as fast as it" in text


def test_who_is_as_fast_as_ours_is_no_victory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    text = " ".join(str(simulated(monkeypatch, {**COSTS, "torch": 10})).split())
    assert "faster than all of them at 0 of 3 workloads" in text
    assert "unsure at" in text


def test_peers_are_judged_by_tolerances(result: Result) -> None:
    text = " ".join(str(result).split())
    assert "The first steps of 27 rows of peers were judged by the float64 reference" in text
    assert "the largest error is 0.25 of what is allowed" in text
    assert "9 trainings reached the share of held-out rows" in text
    assert "of its proved bound" not in text
    assert "times as fast as NumPy" not in text


def test_loading_is_told_of_who_took_long(result: Result) -> None:
    starts = {**dict.fromkeys(NAMES, 1e-5), "torch": 3.52, "jax-jit": 0.26}
    text = " ".join(str(replace(result, starts=starts)).split())
    assert "loading torch 3.5 s, jax-jit 0.26 s, the others below 0.01 s; and first" in text
    text = " ".join(str(replace(result, starts={"numpy": 1e-5})).split())
    assert "loading all below 0.01 s; and first" in text


def test_a_missing_library_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "torch", "torch-compile")
    found = simulated(monkeypatch)
    assert {row.key.backend for row in found.rows} == set(NAMES) - {"torch", "torch-compile"}
    assert "Missing: torch: torch is not installed" in str(found)


def test_a_damaged_library_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)

    def load(kind: Any) -> None:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(PEERS["torch"], "load", classmethod(load))
    found = simulated(monkeypatch)
    assert {row.key.backend for row in found.rows} == set(NAMES) - {"torch"}
    assert found.missing == {"torch": "OSError: libtorch_cpu.so: cannot open shared object file"}


def test_what_a_peer_cannot_do_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    reason = "it has dense layers alone, all trained"
    trouble = {name: NotItsOwn(reason) for name in ("sklearn", "numpy")}
    text = str(simulated(monkeypatch, trouble=trouble))
    lines = text.splitlines()
    assert sum(line.split()[1:2] == ["n/a"] for line in lines) == 2
    assert text.count(reason) == 1
    assert f"n/a: sklearn, numpy: {reason}" in lines


def test_a_wrong_peer_is_in_its_line_and_below(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    trouble = {"torch": AssertionError("the loss is off by 2e-2"), "jax-jit": ValueError("odd")}
    found = simulated(monkeypatch, trouble=trouble)
    cells = [line.split() for line in str(found).splitlines()]
    assert ["torch", "WRONG"] in cells
    assert ["jax-jit", "FAILED"] in cells
    assert "WRONG: step 3-4-2 b8 adam f32 bias, torch: the loss is off by 2e-2" in str(found)
    assert [row.key.backend for row in found.wrong] == ["torch", "jax-jit"]


@pytest.mark.parametrize(
    ("more", "seconds"),
    [({}, 0.123456), ({}, 3e-7), ({"epochs": 40, "steps": 12345, "accuracy": 1.0}, 0.05)],
)
def test_the_longest_names_fit_80_columns(
    result: Result, more: dict[str, Any], seconds: float
) -> None:
    row = result.rows[0]
    rng = np.random.default_rng(0)
    rows = []
    for w in workloads("peers"):
        for i, name in enumerate(NAMES):
            key = Key("accuracy" if more else w.suite, w.name, w.shape, w.dtype, w.bias, name)
            times = seconds * 2.5**i * rng.uniform(0.5, 1.5, (2, 5))
            samples = tuple(Sample(one.tolist(), [[1.0] * 5]) for one in times)
            floor = 0.0 if more else 0.1 * seconds
            rows.append(replace(row, key=key, samples=samples, floor_seconds=floor, more=more))
    lines = str(replace(result, rows=tuple(rows))).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith("torch-") for line in lines)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        ((2.34567, 2.30, 2.40), ("2.35", "2.30", "2.40")),
        ((2.34567, 2.0, 2.8), ("2.3", "2.0", "2.8")),
        ((2.34567, 0.9, 8.0), ("2.3", "0.9", "8.0")),
        ((52.46, 50.1, 54.0), ("52", "50", "54")),
        ((1234.5, 1230.0, 1239.0), ("1230", "1230", "1240")),
        ((9.996, 9.99, 10.01), ("10.0", "10.0", "10.0")),
        ((0.01234, 0.0123, 0.0124), ("0.0123", "0.0123", "0.0124")),
        ((4.0, 4.0, 4.0), ("4.00", "4.00", "4.00")),
    ],
)
def test_an_interval_decides_on_the_digits(got: Any, want: tuple[str, str, str]) -> None:
    assert located(*got) == want


def test_json_comes_back_as_it_was(result: Result) -> None:
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))
    again = Result.from_json(written)
    assert str(again) == str(result)
    by_backend = {row["backend"]: row for row in written["rows"] if row["suite"] == "peers"}
    assert by_backend["fastneuron-numba"]["times_ours"] is None
    times = by_backend["torch"]["times_ours"]
    assert times["low"] < times["value"] < times["high"]
    assert by_backend["torch"]["times_numpy"]["value"] == pytest.approx(80 / 50, rel=0.03)


def test_csv_has_ratios_and_what_was_reached(result: Result) -> None:
    lines = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [line["backend"] for line in lines] == [*NAMES] * 3
    assert lines[0]["times_ours"] == ""
    assert float(lines[3]["times_ours"]) == pytest.approx(5, rel=0.03)
    assert (lines[-1]["epochs"], lines[-1]["accuracy"]) == ("7", "0.9667")


@needs_matplotlib
def test_the_figure_has_a_mark_with_its_interval_for_each_peer(result: Result) -> None:
    from fastneuron.bench.figure import speeds

    figure = speeds(result)
    (axes,) = figure.axes
    drawn = {one.get_label(): one for one in axes.containers}
    assert list(drawn) == [name for name in NAMES if name != result.base]
    mark, _, (bars,) = drawn["torch"].lines
    ratios = [result.against_ours(row) for row in result.rows if row.key.backend == "torch"]
    np.testing.assert_allclose(mark.get_xdata(), [ratio.value for ratio in ratios if ratio])
    ends = [segment[:, 0] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [(ratio.low, ratio.high) for ratio in ratios if ratio])
    assert "fastneuron-numba" in axes.get_xlabel()
    looks = {(one.lines[0].get_marker(), one.lines[0].get_color()) for one in drawn.values()}
    assert len({marker for marker, _ in looks}) == len(drawn)
    assert axes.get_yticklabels()[0].get_text() == "step 2-8-1\nb4 sgd f32 bias"
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


@needs_matplotlib
def test_a_run_of_both_has_two_panels(result: Result) -> None:
    from fastneuron.bench.figure import speeds

    backends = [
        replace(row, key=row.key._replace(suite="slots", backend=name))
        for row, name in zip(result.rows, ("numpy", "numba"), strict=False)
    ]
    figure = speeds(replace(result, rows=(*backends, *result.rows)))
    assert len(figure.axes) == 2
    assert "NumPy" in figure.axes[0].get_xlabel()
    with pytest.raises(DataError, match="nothing to draw"):
        speeds(replace(result, rows=tuple(r for r in result.rows if r.key.foreign)))


# Comparing


def timed(seed: int, slow: Mapping[str, float] | None = None) -> Result:
    """A run of six steps by all peers, some of them slower by a factor."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(6):
        yards = np.exp(rng.normal(0, 0.005, (4, 3, 7)))
        for name, cost in COSTS.items():
            times = cost * (slow or {}).get(name, 1.0) * np.exp(rng.normal(0, 0.01, (4, 7)))
            samples = tuple(
                Sample(one.tolist(), yard.tolist())
                for one, yard in zip(1e-6 * times, yards, strict=True)
            )
            key = Key("peers", f"step {step}", "b4 sgd", "float32", True, name)
            rows.append(Row(key, "ok", error_over_bound=0.5, samples=samples))
    settings = {"suite": "peers", "quick": False, "threads": 1, "passes": 4, "rounds": 7}
    return Result({"versions": {}}, settings, {}, {}, {}, tuple(rows))


def test_another_library_is_not_ours_to_regress() -> None:
    found = compare(timed(0), timed(1, {"torch": 1.2}))
    assert found.passed, str(found)
    assert len(found.rows) == 6 * len(OURS)
    assert {change.backend for change in found.rows} == set(OURS)
    assert found.foreign == 6 * (len(NAMES) - len(OURS))
    assert f"Not judged: {found.foreign} rows of other libraries." in str(found)


def test_ours_is() -> None:
    found = compare(timed(0), timed(1, {"fastneuron-cython": 1.2}))
    assert not found.passed
    assert {change.backend for change in found.slower} == {"fastneuron-cython"}


def test_another_library_does_not_change_the_verdict_by_its_scatter() -> None:
    quiet = compare(timed(0), timed(1))
    noisy = compare(timed(0), timed(1, {name: 3.0 for name in NAMES if name not in OURS}))
    assert noisy.rows == quiet.rows
    assert noisy.scatter == quiet.scatter


def test_another_library_that_went_wrong_is_not_ours_either() -> None:
    new = timed(1)
    for name, passed in (("torch", True), ("fastneuron-numba", False)):
        rows = tuple(
            replace(row, status="wrong", reason="off", samples=())
            if row.key.backend == name and row.key.name == "step 0" else row
            for row in new.rows
        )  # fmt: skip
        assert compare(timed(0), replace(new, rows=rows)).passed is passed


def test_ratios_that_agree_are_counted() -> None:
    found = compare(timed(0), timed(1))
    ratios = 6 * (len(NAMES) - 1)
    assert found.agreement.ratios == ratios
    # Two intervals of 95 % that do not meet are rare: 1 of 100 and more.
    assert found.agreement.agree >= ratios - 3
    assert f"Ratios agree in {found.agreement.agree} of {ratios} rows" in str(found)
    assert compare(timed(0), timed(0)).agreement.apart == ()


def test_a_planted_disagreement_is_counted_and_named() -> None:
    found = compare(timed(0), timed(1, {"torch": 1.2}))
    apart = [one.key for one in found.agreement.apart]
    assert {key.backend for key in apart[:6]} == {"torch"}
    assert found.agreement.agree == found.agreement.ratios - len(apart)
    text = str(found)
    assert "the worst first:" in " ".join(text.split())
    assert sum(", torch: " in line for line in text.splitlines()) == 5
    assert f"and {len(apart) - 5} more" in text
    assert max(map(len, text.splitlines())) <= 80
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (written["ratios"], written["not_judged"]) == (48, 36)
    assert written["agree"] == 48 - len(written["apart"])
    worst = written["apart"][0]
    assert worst["backend"] == "torch"
    assert worst["new"][0] == pytest.approx(6, rel=0.03)


def test_ratios_to_another_base_are_not_held_together() -> None:
    new = timed(1)
    rows = tuple(row for row in new.rows if row.key.backend != "fastneuron-numba")
    found = compare(timed(0), replace(new, rows=rows))
    assert found.agreement.ratios == 0
    assert "Ratios agree" not in str(found)
