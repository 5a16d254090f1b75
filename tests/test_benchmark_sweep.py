"""benchmarks/sweep.py: its points keep their limits, and it finds the slow and the wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastneuron.peers import judging, problems
from fastneuron.peers.plain_numpy import PlainNumpy


@pytest.fixture
def points(rooms: dict[str, ModuleType]) -> Any:
    return rooms["points"]


@pytest.fixture
def sweep(rooms: dict[str, ModuleType]) -> Any:
    return rooms["sweep"]


@pytest.fixture
def row(rooms: dict[str, ModuleType]) -> Any:
    return problems.Row.parse("5-6-3 b8 adam")


def quiet(text: str) -> None:
    pass


def test_points_keep_their_limits(points: Any) -> None:
    limits = points.Limits(work=1e8, parameters=100_000, values=1_000_000)
    rows = list(points.draw_points(0, 300, limits))
    assert len(rows) == 300
    for row in rows:
        weights = sum(a * b for a, b in zip(row.sizes, row.sizes[1:], strict=False))
        assert row.multiply_adds <= 1e8
        assert weights + sum(row.sizes[1:]) <= 100_000
        assert row.batch * sum(row.sizes) <= 1_000_000


def test_points_reach_all_that_is_swept(points: Any) -> None:
    limits = points.Limits(np.inf, 10**12, 10**12)
    rows = list(points.draw_points(1, 2000, limits))
    widths = [size for row in rows for size in row.sizes]
    depths = [len(row.sizes) - 1 for row in rows]
    batches = [row.batch for row in rows]
    for values, most in ((widths, 4096), (depths, 20), (batches, 8192)):
        assert min(values) == 1
        # Every octave is as likely: the last one has a share of 1 / log2(most).
        assert most / 2 < max(values) <= most
    assert {row.optimizer for row in rows} == {
        "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"
    }  # fmt: skip
    assert {row.activation for row in rows} == set(points.ACTIVATIONS)
    assert {row.loss for row in rows} == set(points.LOSSES)
    assert {row.bias for row in rows} == {True, False}
    assert {row.dtype for row in rows} == {"float32"}
    assert not any(row.loss == "cross_entropy" and row.sizes[-1] == 1 for row in rows)


def test_points_are_decided_by_the_seed(points: Any) -> None:
    limits = points.Limits()
    first = list(points.draw_points(3, 20, limits))
    assert list(points.draw_points(3, 20, limits)) == first
    assert list(points.draw_points(3, 8, limits)) == first[:8]  # a longer sweep goes on
    assert list(points.draw_points(4, 20, limits)) != first


def test_corners_are_inside_the_limits_and_the_option_leaves_them_out(
    points: Any, sweep: Any
) -> None:
    assert all(points.Limits().allow(row) for row in points.CORNERS)
    options = sweep.parser().parse_args(["--points", "2"])
    assert sweep.rows_of(options)[:-2] == list(points.CORNERS)
    options = sweep.parser().parse_args(["--points", "2", "--no-corners", "--work", "1e5"])
    rows = sweep.rows_of(options)
    assert len(rows) == 2
    assert max(row.multiply_adds for row in rows) <= 1e5


def test_labels_say_all_of_a_point(points: Any, rooms: dict[str, ModuleType]) -> None:
    """A point is measured again by its label: ``sweep.py --rows LABEL``."""
    for row in points.draw_points(5, 100, points.Limits()):
        assert problems.Row.parse(row.label) == row


def test_the_command_sweeps_and_writes_json(benchmarks_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "sweep.py", "--points", "3", "--no-corners", "--work", "1e5"]
        + ["--peers", "fastneuron-numpy,numpy", "--cores", "1", "--seconds", "0.01"]
        + ["--json", str(file)],
        cwd=benchmarks_folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(file.read_text("utf-8"))
    (run,) = found["runs"]
    assert len(run["rows"]) == 3
    for row in run["rows"]:
        assert row["peers"]["fastneuron-numpy"]["status"] == "ok"
        assert row["row"].split()[0].split("-")[0] in done.stdout
    assert run["summary"]["points"] == 3
    assert max(map(len, done.stdout.splitlines())) <= 100


def entry(label: str, ratio: float | None, peer: str = "torch") -> dict[str, Any]:
    return {"row": label, "ratio_to_best_peer": ratio, "best_peer": peer}


def test_points_that_a_peer_wins_are_counted_and_listed(sweep: Any) -> None:
    rows = [
        entry("3-2 b1 sgd", 0.5, "jax-scan"),
        entry("4-2 b1 sgd", 1.1),
        entry("5-2 b1 sgd", 2.0),
        entry("6-2 b1 sgd", None),
    ]
    data, lines = sweep.summary({"cores": 1, "rows": rows, "not_measured": ["7-2 b1 sgd"]}, 3.0)
    assert (data["points"], data["compared"], data["slower"]) == (4, 3, 1)
    assert [found["row"] for found in data["below_1.15"]] == ["3-2 b1 sgd", "4-2 b1 sgd"]
    assert data["ratio_quantiles"]["50"] == 1.1
    text = "\n".join(lines)
    assert "slower than the best peer: 1 of 3 points compared; below 1.15: 2" in text
    assert "0.50  3-2 b1 sgd (jax-scan)" in text
    assert "the 3 minutes were over: 1 points" in text
    assert max(map(len, lines)) <= 100


def test_a_peer_whose_start_does_not_fit_is_left_out_with_the_reason(
    sweep: Any, rooms: dict[str, ModuleType], row: Any
) -> None:
    kind = PlainNumpy
    starts = sweep.Starts(10.0)
    assert starts.refusal(kind, row) == ""  # nothing is known yet
    starts.learn(row, {"numpy": {"start_seconds": 6.0}})  # 2 layers, and 4 beside them
    assert starts.refusal(kind, row) == ""
    deep = problems.Row.parse("5*22 b8 sgd")  # 21 layers, and 4
    assert starts.refusal(kind, deep) == "would start in some 25 s, --start-seconds is 10"
    got = sweep.measure_point(deep, [kind], 1, 0.001, starts, quiet)
    assert got["numpy"]["status"] == "skipped"
    assert "would start" in got["numpy"]["reason"]


def test_the_minutes_of_a_run_are_kept(sweep: Any, tmp_path: Path, capsys: Any) -> None:
    file = str(tmp_path / "run.json")
    given = ["--points", "2", "--no-corners", "--minutes", "0", "--json", file, "--peers", "numpy"]
    run = sweep.measure(sweep.parser().parse_args(given), 1, quiet)
    assert run["rows"] == []
    assert len(run["not_measured"]) == 2
    assert "2 points" in capsys.readouterr().out


def test_a_wrong_point_is_shown_and_fails_the_run(
    sweep: Any, rooms: dict[str, ModuleType], row: Any
) -> None:
    class Fast(PlainNumpy):
        name = "torch"

        def _update(self, gradients: list[Any]) -> None:  # a learning rate that is 2 % off
            super()._update([1.02 * g for g in gradients])
            for p, old in zip(self.flat, self.kept, strict=True):
                p += 0.02 * (p - old)

        def advance(self, order: Any) -> Any:
            self.kept = [p.copy() for p in self.flat]
            return super().advance(order)

    racing = rooms["racing"]
    peers = sweep.measure_point(row, [Fast], 1, 0.001, sweep.Starts(1.0), quiet)
    assert peers["torch"]["status"] == "wrong"
    shown = racing.judged(row, peers, None, 1)
    assert any("torch: wrong: after" in line for line in sweep.lines_of(1, shown))
    assert rooms["sweep"].faults({"rows": [shown]})


def test_long_points_keep_to_100_columns(sweep: Any) -> None:
    label = "-".join(str(4096 - i) for i in range(21)) + " b8192 nesterov leaky_relu nobias"
    peers = {
        "fastneuron-numba": {"status": "ok", "microseconds": 1234567.8},
        "jax-scan": {"status": "failed", "reason": "word " * 50},
        "torch-compile": {"status": "ok", "microseconds": 7654321.0},
    }
    shown = {
        "row": label, "efficiency": 0.123, "best_peer": "torch-compile", "peers": peers,
        "ratio_to_best_peer": 6.2,
    }  # fmt: skip
    lines = sweep.lines_of(123, shown)
    assert max(map(len, lines)) <= 100
    assert "".join(line[4:46].strip() for line in lines if "word" not in line).startswith("4096-")


def test_rounding_excuses_what_it_hides_and_no_more(rooms: dict[str, ModuleType]) -> None:
    """Where a gradient is below half an ulp of every parameter, staying is right; a jump is not."""
    deep = problems.Row.parse("3-4*19-2 b4 sgd sigmoid")
    judge = judging.Judge(deep, np.random.default_rng(0))
    problem = problems.problem_of(deep)

    class Still(PlainNumpy):
        jump = 0.0

        def export(self) -> Any:
            ((w, b), *_) = self.problem.parameters
            return [(w + np.float32(self.jump), b), *super().export()[1:]]

    peer = Still(problem, 1)
    judge.errors(peer, peer.advance(judge.order))
    peer.jump = 1e-3
    with pytest.raises(judging.WrongResult, match="an array's way by"):
        judge.errors(peer, peer.advance(judge.order) * 0 + judge._want[problem][0])
