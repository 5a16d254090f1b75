"""fastneuron bench compare: finds a planted slow-down through the noise, and nothing where none is.

Runs are simulated: no test looks at a real clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastneuron.bench.comparing import compare
from fastneuron.bench.results import Key, Result, Row, Sample
from fastneuron.cli import main

MACHINE = {
    "versions": {"fastneuron": "0.1.0", "python": "3.12.1", "numpy": "2.4.0", "numba": "0.68.1"},
    "platform": "Linux", "processor": "abacus", "cpu_features": ["AVX2"],
    "cores": {"usable": 2, "present": 2},
}  # fmt: skip
SETTINGS = {"suite": "all", "quick": False, "threads": 1, "passes": 4, "rounds": 7}
CEILINGS = {"gflops": {"float32": 100.0}, "gbytes": [[1024, 50.0]], "threads": 1}
KERNELS = [f"kernel{i}" for i in range(12)]
BACKENDS = ("numpy", "numba", "cython")
SHAPES = ("8", "64", "512", "4096")


def run(
    seed: int,
    slow: Mapping[tuple[str, str], float] | None = None,
    noise: float = 0.01,
    passes: int = 4,
    mood: float | None = None,
) -> Result:
    """A run on a machine with moods: each row goes along with them in its own way.

    `slow` has factors by kernel and backend; a `mood` given is that of all rounds.
    """
    rng = np.random.default_rng(seed)
    rows = []
    rounds = 7
    for k, kernel in enumerate(KERNELS):
        for s, shape in enumerate(SHAPES):
            samples: dict[str, list[Sample]] = {backend: [] for backend in BACKENDS}
            for _ in range(passes):
                # A neighbour on the other half of the core, for part of the rounds.
                moods = rng.uniform(0, 0.35) * (rng.random(rounds) < rng.random())
                moods = moods if mood is None else np.full(rounds, mood)
                # One round in 20 shares the processor with something else altogether.
                shared = np.where(rng.random(rounds) < 0.05, rng.uniform(0.3, 1.2, rounds), 0.0)
                yards = [
                    np.exp(-9 + pull * moods + shared * (rng.random(rounds) < 0.7)
                           + rng.normal(0, noise / 2, rounds))
                    for pull in (0.15, 1.0, 1.2)
                ]  # fmt: skip
                for b, backend in enumerate(BACKENDS):
                    pull = 0.2 + 0.3 * ((k + s + b) % 4)
                    level = -10 + 0.5 * s + (slow or {}).get((kernel, backend), 1.0) - 1
                    seconds = np.exp(
                        level + pull * moods + shared * (rng.random(rounds) < 0.7)
                        + rng.normal(0, noise, rounds) + rng.normal(0, noise / 2)
                    )  # fmt: skip
                    samples[backend].append(
                        Sample(seconds.tolist(), [yard.tolist() for yard in yards])
                    )
            for backend in BACKENDS:
                key = Key("slots", kernel, shape, "float32", None, backend)
                found = tuple(samples[backend])
                rows.append(Row(key, "ok", error_over_bound=0.5, samples=found))
    return Result(MACHINE, SETTINGS, CEILINGS, {}, {}, tuple(rows))


def write(tmp_path: Path, name: str, result: Result) -> str:
    path = tmp_path / name
    result.write_json(str(path))
    return str(path)


def test_no_change_is_no_regression() -> None:
    for seed in range(8):
        found = compare(run(2 * seed), run(2 * seed + 1))
        assert found.passed, (seed, str(found))


@pytest.mark.parametrize("seed", range(5))
def test_five_percent_in_one_kernel_are_found(seed: int) -> None:
    slow = {("kernel3", "numba"): 1.05}
    found = compare(run(2 * seed), run(2 * seed + 1, slow))
    assert not found.passed
    kernels = [c for c in found.slower if not c.label]
    assert [(c.name, c.backend) for c in kernels] == [("kernel3", "numba")]
    assert kernels[0].rows == len(SHAPES)
    assert kernels[0].ratio.low < 1.05 < kernels[0].ratio.high
    assert {(c.name, c.backend) for c in found.slower} == {("kernel3", "numba")}
    assert "kernel3" in found.verdict


@pytest.mark.parametrize("seed", range(4))
def test_what_all_rows_of_a_kernel_have_in_one_pass_is_no_change(seed: int) -> None:
    """Its arrays came to lie well on the pages of one process: all of its rows are fast there."""
    old = run(2 * seed, noise=0.004)

    def lucky(row: Row) -> Row:
        if (row.key.name, row.key.backend) != ("kernel3", "numba"):
            return row
        first, *others = row.samples
        fast = first._replace(seconds=[0.8 * second for second in first.seconds])
        return replace(row, samples=(fast, *others))

    old = replace(old, rows=tuple(map(lucky, old.rows)))
    found = compare(old, run(2 * seed + 1, noise=0.004))
    assert found.passed, str(found)
    (kernel,) = (c for c in found.kernels if (c.name, c.backend) == ("kernel3", "numba"))
    assert kernel.blind(0.05), "it says what it could not have seen"


def test_everything_slower_by_as_much_is_found_too() -> None:
    slow = {(kernel, backend): 1.06 for kernel in KERNELS for backend in BACKENDS}
    found = compare(run(0), run(1, slow))
    assert len([c for c in found.slower if not c.label]) == len(KERNELS) * len(BACKENDS)


def test_what_became_faster_is_no_failure() -> None:
    found = compare(run(0), run(1, {("kernel3", "numba"): 0.8}))
    assert found.passed
    assert "Faster" in str(found)


def test_a_slow_down_below_the_threshold_is_let_pass_and_said() -> None:
    slow = {("kernel3", "numba"): 1.05}
    old, new = run(0, noise=0.002), run(1, slow, noise=0.002)
    assert not compare(old, new, threshold=0.05).passed
    found = compare(old, new, threshold=0.2)
    assert found.passed
    assert "Slower, by less than 20 %" in str(found)


def test_a_noisy_run_says_what_it_could_not_have_seen() -> None:
    text = str(compare(run(0, noise=0.2, passes=2), run(1, noise=0.2, passes=2)))
    assert re.search(r"Too uncertain to be sure of 5 % in (\d+) of \1 rows", " ".join(text.split()))


def test_runs_in_other_moods_are_not_compared() -> None:
    """A neighbour all the time, and never: what it does to a row nobody knows."""
    found = compare(run(0, mood=0.0), run(1, mood=0.35))
    assert found.passed
    assert found.rows == ()
    assert found.other_moods == len(KERNELS) * len(SHAPES) * len(BACKENDS)
    assert "Not compared: 144 rows" in str(found)


def test_another_clock_is_another_pace_of_everything() -> None:
    slower = run(1)
    rows = tuple(
        replace(
            row,
            samples=tuple(
                Sample([1.08 * s for s in sample.seconds],
                       [[1.08 * s for s in yard] for yard in sample.yardsticks])
                for sample in row.samples
            ),
        )
        for row in slower.rows
    )  # fmt: skip
    found = compare(run(0), replace(slower, rows=rows))
    assert found.passed
    assert len(found.rows) > 130
    assert np.median([c.ratio.value for c in found.rows]) == pytest.approx(1, abs=0.01)


def test_ratios_of_known_times_are_exact() -> None:
    def still(factor: float) -> Result:
        base = run(0)
        rows = tuple(
            replace(row, samples=(Sample([factor] * 7, [[1.0] * 7, [2.0] * 7]),) * 2)
            for row in base.rows[:3]
        )
        return replace(base, rows=rows)

    found = compare(still(1.0), still(1.5))
    assert [round(c.ratio.value, 6) for c in found.rows] == [1.5] * 3
    assert not found.passed


def test_a_result_that_went_wrong_fails() -> None:
    old, new = run(0), run(1)
    wrong = replace(new.rows[4], status="wrong", reason="y: 3 of 8 entries", samples=())
    found = compare(old, replace(new, rows=(*new.rows[:4], wrong, *new.rows[5:])))
    assert not found.passed
    assert found.went_wrong == (wrong,)
    assert "y: 3 of 8 entries" in str(found)


def test_rows_of_one_side_are_listed() -> None:
    old, new = run(0), run(1)
    found = compare(replace(old, rows=old.rows[1:]), replace(new, rows=new.rows[:-1]))
    assert found.come == (new.rows[0].key,)
    assert found.gone == (old.rows[-1].key,)
    text = str(found)
    assert "Only the old run has: kernel11 4096 f32, cython" in text
    assert "Only the new run has: kernel0 8 f32, numpy" in text


def test_other_machines_versions_and_settings_are_said() -> None:
    versions = {**MACHINE["versions"], "numpy": "2.5.0"}  # type: ignore[dict-item]
    new = replace(
        run(1),
        machine={**MACHINE, "processor": "slide rule", "versions": versions},
        settings={**SETTINGS, "threads": 2},
    )
    found = compare(run(0), new)
    assert found.differences == (
        "numpy: 2.4.0 -> 2.5.0", "processor: abacus -> slide rule", "threads: 1 -> 2",
    )  # fmt: skip
    assert "Not the same: processor: abacus -> slide rule" in str(found)


def test_runs_without_a_common_row_are_not_called_equal() -> None:
    old = run(0)
    found = compare(replace(old, rows=old.rows[:1]), replace(old, rows=old.rows[1:2]))
    assert "nothing was compared" in str(found)


def test_the_text_fits_80_columns() -> None:
    slow = {("kernel3", "numba"): 1.5, ("kernel4", "cython"): 0.7}
    text = str(compare(run(0), run(1, slow)))
    assert max(map(len, text.splitlines())) <= 80


def test_the_command_fails_on_a_regression_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(tmp_path, "old.json", run(0))
    same = write(tmp_path, "same.json", run(1))
    slow = write(tmp_path, "slow.json", run(1, {("kernel3", "numba"): 1.05}))
    assert main(["bench", "compare", old, same, "--threshold", "5%"]) == 0
    assert "passed: nothing is measurably slower." in capsys.readouterr().out
    path = tmp_path / "comparison.json"
    assert main(["bench", "compare", "--threshold", "0.05", old, slow, "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "kernel3" in captured.err
    assert "kernel3 (4 rows)" in captured.out
    found = json.loads(path.read_text())
    assert found["passed"] is False
    assert [entry["name"] for entry in found["kernels"] if entry["slower"]] == ["kernel3"]
    assert {*found["rows"][0]["ratio"]} == {"ratio", "low", "high", "confidence", "verdict"}


@pytest.mark.parametrize("threshold", ["0", "100%", "-5%", "five", "nan"])
def test_a_threshold_is_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: str
) -> None:
    old = write(tmp_path, "old.json", run(0, passes=1))
    assert main(["bench", "compare", old, old, f"--threshold={threshold}"]) == 2
    assert "5%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", 2, "not JSON"),
        ("[]", 2, "not written by"),
        ('{"format": "fastneuron bench 99"}', 1, "not a result"),
        ('{"format": "fastneuron bench 1"}', 1, "damaged"),
    ],
)
def test_a_file_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, code: int, message: str
) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    assert main(["bench", "compare", str(path), str(path)]) == code
    assert message in capsys.readouterr().err


def test_a_run_compared_with_itself_passes(tmp_path: Path) -> None:
    path = write(tmp_path, "run.json", run(0))
    assert main(["bench", "compare", path, path]) == 0
