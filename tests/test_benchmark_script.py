"""benchmarks/engine.py: what it reports, and that it finds wrong, failing and missing peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron.peers import engines, judging, problems, roster
from fastneuron.peers.plain_numpy import PlainNumpy
from fastneuron.testing import central_differences


@pytest.fixture
def engine(rooms: dict[str, ModuleType]) -> Any:
    """What the script is made of: its own names, and those of the rooms that it stands on."""
    names: dict[str, Any] = {}
    for room in (
        problems,
        roster,
        engines,
        judging,
        *map(rooms.get, ("racing", "pinned", "engine")),
    ):
        names |= vars(room)
    return SimpleNamespace(**names)


@pytest.fixture
def plain(rooms: dict[str, ModuleType]) -> Any:
    """The plain NumPy peer: one that is installed everywhere."""
    return PlainNumpy


def quiet(text: str) -> None:
    pass


def measured(engine: Any, kinds: list[Any], row: str = "5-6-3 b8 adam") -> dict[str, Any]:
    return engine.measure_row(engine.Row.parse(row), kinds, 1, 0.001, quiet)


def test_the_command_prints_a_table_and_writes_json(
    benchmarks_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    rows = ["3-4-2 b4 adam", "2-3-1 b2 sgd float64"]
    done = subprocess.run(
        [sys.executable, "engine.py", "--rows", ",".join(rows), "--cores", "1"]
        + ["--seconds", "0.01", "--peers", "fastneuron-numpy,numpy", "--json", str(file)],
        cwd=benchmarks_folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(file.read_text("utf-8"))
    want = {"platform", "python", "numba_cpu_name", "seconds_a_row", "tolerance", "runs"}
    assert set(found) == want
    (run,) = found["runs"]
    want = {"cores", "pinned_to", "peak_gflops_a_core", "versions", "missing", "rows"}
    assert set(run) == want
    assert run["cores"] == 1
    if hasattr(os, "sched_getaffinity"):
        assert len(run["pinned_to"]) == 1
    assert [row["row"] for row in run["rows"]] == rows
    for row in run["rows"]:
        assert row["best_peer"] == "numpy"
        assert set(row["peers"]) == {"fastneuron-numpy", "numpy"}
        for name, peer in row["peers"].items():
            assert peer["status"] == "ok"
            low, high = peer["quartiles"]
            assert 0 < low <= peer["microseconds"] <= high
            assert name in run["versions"]
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(row in line for line in lines) for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        "5-6-3 b8 adam",
        "5-6-3 b8 adam nobias",
        "5-6-4-1 b8 momentum",
        "7-3 b1 sgd",
        "5-6-2 b8 momentum tanh float64",
        "5-6-6-2 b8 sgd sigmoid",
        "5-6-3 b8 nesterov elu mae",
        "5-6-3 b8 adamw softplus huber",
        "5-6-3 b8 rmsprop leaky_relu poisson",
        "5-6-3 b8 sgd silu binary_cross_entropy nobias",
    ],
)
@pytest.mark.parametrize(
    "name",
    ["fastneuron-numba", "fastneuron-cython", "fastneuron-numpy", "torch", "jax-scan", "numpy"],
)
def test_peers_agree_with_the_reference(engine: Any, name: str, row: str) -> None:
    kind = engine.PEERS[name]
    if kind.missing():
        pytest.skip(kind.missing())
    got = measured(engine, [kind], row)[name]
    if got["status"] == "unsupported":
        pytest.skip(got["reason"])
    assert got["status"] == "ok", got
    # Far inside the tolerance: the units here are too few for a ReLU at zero. Ten roundings of a
    # parameter are 1e-3 of the way where it moves by 1e-4 of its size.
    u = np.finfo("float64" if "float64" in row else "float32").eps / 2
    assert got["loss_error"] < 20 * u
    assert got["way_error"] < 10 * u / 1e-4


def test_the_reference_descends_the_loss_that_it_reports(engine: Any) -> None:
    """An SGD step is minus rate times the gradient, here by central differences."""
    row = engine.Row.parse("3-4-2 b4 sgd tanh float64")
    problem = engine.problem_of(row)
    order = np.arange(row.batch)[None]
    reference = engine.Reference(problem)

    def loss(flat: np.ndarray) -> float:
        parameters, at = [], 0
        for w, b in problem.parameters:
            pair = []
            for array in (w, b):
                pair.append(flat[at : at + array.size].reshape(array.shape))
                at += array.size
            parameters.append(tuple(pair))
        reference.engine.load(parameters)
        return float(reference.advance(order)[0])

    start = np.concatenate([array.ravel() for pair in problem.parameters for array in pair])
    want = -problem.learning_rate * central_differences(loss, start)
    reference.reset()
    reference.advance(order)
    got = np.concatenate(
        [way.ravel() for way in engine.ways(reference.export(), problem.parameters)]
    )
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-10)


def wrong_peers(plain: Any) -> dict[str, Any]:
    class Fast(plain):  # a learning rate that is 2 % off
        def _update(self, gradients: list[Any]) -> None:
            super()._update([1.02 * g for g in gradients])

    class Biasless(plain):  # forgets the last bias
        def _update(self, gradients: list[Any]) -> None:
            super()._update([*gradients[:-1], 0 * gradients[-1]])

    class Late(plain):  # reports the loss of the step before
        def advance(self, order: Any) -> Any:
            return np.roll(super().advance(order), 1)

    class Idle(plain):  # trains one step less than it is asked for
        def advance(self, order: Any) -> Any:
            losses = super().advance(order[:-1])
            return np.append(losses, losses[-1:])

    class Broken(plain):
        def advance(self, order: Any) -> Any:
            return np.nan * super().advance(order)

    return {kind.__name__: kind for kind in (Fast, Biasless, Late, Idle, Broken)}


@pytest.mark.parametrize("fault", ["Fast", "Biasless", "Late", "Idle", "Broken"])
def test_a_wrong_result_is_found_and_fails_the_run(engine: Any, plain: Any, fault: str) -> None:
    kind = wrong_peers(plain)[fault]
    kind.name = "numpy"
    got = measured(engine, [kind], "5-6-3 b8 sgd")["numpy"]
    assert got["status"] == "wrong"
    assert "is off by" in got["reason"]
    assert "microseconds" not in got
    assert engine.faults({"rows": [{"peers": {"numpy": got}}]})


def test_a_loss_that_stops_being_finite_later_is_wrong(engine: Any, plain: Any) -> None:
    class Diverging(plain):
        def advance(self, order: Any) -> Any:
            losses = super().advance(order)
            return losses if self.step <= 10 else losses + np.inf

    got = measured(engine, [Diverging])["numpy"]
    assert (got["status"], got["reason"]) == ("wrong", "the loss is no longer finite")


def test_a_failing_peer_is_listed_with_its_reason_and_stops_nobody(engine: Any, plain: Any) -> None:
    class Failing(plain):
        name = "torch"

        def advance(self, order: Any) -> Any:
            raise MemoryError("no room\nfor this")

    got = measured(engine, [Failing, plain])
    assert got["torch"] == {"status": "failed", "reason": "MemoryError: no room"}
    assert got["numpy"]["status"] == "ok"
    assert not engine.faults({"rows": [{"peers": got}]})


def test_what_a_peer_cannot_express_is_listed(engine: Any, plain: Any) -> None:
    got = measured(engine, [plain], "5-6-3 b8 sgd gelu")["numpy"]
    assert got == {"status": "unsupported", "reason": "not written out for gelu"}


def test_a_missing_peer_is_listed_with_its_reason(
    engine: Any, plain: Any, rooms: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent(plain):
        name = "jax-scan"
        module = "no_such_module"

    monkeypatch.setitem(engine.PEERS, "jax-scan", Absent)
    monkeypatch.setattr(rooms["engine"], "try_peak", lambda dtype, bursts=0: None)
    options = SimpleNamespace(
        peers=["jax-scan", "numpy"], rows=[engine.Row.parse("2-3-1 b2 sgd")], seconds=0.001
    )
    run = engine.measure(options, 1, quiet)
    assert run["missing"] == {"jax-scan": "no_such_module is not installed (pip install numpy)"}
    (row,) = run["rows"]
    assert set(row["peers"]) == {"numpy"}
    # No peak is known either: what needs it is left out, not made up.
    assert (row["floor_microseconds"], row["efficiency"]) == (None, None)
    text = "\n".join(rooms["report"].table(run))
    assert "jax-scan: missing: no_such_module is not installed" in text


def test_efficiency_and_the_best_peer(engine: Any) -> None:
    times = {"fastneuron-numba": 50.0, "fastneuron-cython": 1.0, "torch": 90.0, "jax-scan": 75.0}
    peers = {name: {"status": "ok", "microseconds": t} for name, t in times.items()}
    row = engine.TABLE[4]
    got = engine.judged(row, peers, 100.0, 2)
    # 32 rows x (3 x (784 x 128 + 128 x 10) - 784 x 128), two operations each, 200 per nanosecond.
    want = 2 * 32 * (3 * (784 * 128 + 1280) - 784 * 128) / 200e3
    assert got["floor_microseconds"] == pytest.approx(want, rel=1e-12)
    assert got["efficiency"] == pytest.approx(want / 50, rel=1e-12)
    assert got["goal"] == 0.62
    assert (got["best_peer"], got["ratio_to_best_peer"]) == ("jax-scan", 1.5)


def test_multiply_adds_are_those_of_the_specification(engine: Any) -> None:
    for row in engine.TABLE:
        want = engine.problem_of(row).spec("float32").multiply_adds * row.batch
        assert row.multiply_adds == want


def test_rows_are_read_back_from_their_labels(engine: Any) -> None:
    for text in (
        "784-128-10 b32 sgd",
        "2-8-1 b4 momentum gelu float64 nobias",
        "3-64*5-7-7-7-2 b4 adamw elu poisson",
    ):
        assert engine.Row.parse(text).label == text
    assert engine.Row.parse("3-64*2-1 b4 sgd").sizes == (3, 64, 64, 1)
    assert engine.parse_rows("8, 2-8-1 b4 sgd") == [engine.TABLE[7]] * 2


@pytest.mark.parametrize(
    "text", ["", "0", "9", "784", "784-10 b32", "784-10 b32 lion", "7-0 b1 sgd", "7-3 b1 sgd cubic"]
)
def test_a_row_that_is_none_says_what_is(engine: Any, text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"rows are 1 to 8|is no row: want '784-128-10"):
        engine.parse_rows(text)


def test_every_epoch_is_a_fresh_shuffle_without_repeats(engine: Any) -> None:
    order = engine.draw_order(np.random.default_rng(0), 64, 6, 25)
    assert order.shape == (25, 6)
    epochs = [order[:10].ravel(), order[10:20].ravel()]
    for rows in epochs:
        assert len(np.unique(rows)) == 60
        assert rows.min() >= 0
        assert rows.max() < 64
    assert not np.array_equal(*epochs)


def test_the_table_keeps_to_100_columns(engine: Any, rooms: dict[str, ModuleType]) -> None:
    ok = {"status": "ok", "microseconds": 1234567.8}
    peers = dict.fromkeys(engine.PEERS, ok) | {
        "sklearn": {"status": "failed", "reason": "word " * 60},
        "torch": {"status": "wrong", "reason": "off"},
    }
    row = engine.Row.parse("1024-2048-2048-1024-512-256 b8192 momentum float64 nobias")
    run = {
        "cores": 2,
        "peak_gflops_a_core": {"float32": 1234.56, "float64": None},
        "versions": dict.fromkeys(engine.PEERS, "1.0"),
        "missing": {"extra": "is not installed"},
        "rows": [engine.judged(row, peers, 1234.56, 2)],
    }
    lines = rooms["report"].table(run, single=run)
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(word in text for word in ("WRONG", "failed", "extra: missing", "1234568"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peak_does_all_of_its_multiply_adds(rooms: dict[str, ModuleType], dtype: str) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    peak = rooms["peak"]
    burst = peak._burst(dtype, 4)
    start = np.arange(peak.CHAINS * 4, dtype=dtype)
    out = start.copy()
    burst(out, 0.5, 1.0, 7)
    # x <- x / 2 + 1 seven times: 2 + (x - 2) / 128, exact in either dtype.
    np.testing.assert_array_equal(out, 2 + (start - 2) / 128)


def test_libraries_are_told_their_threads_before_they_load(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTNEURON_NUM_THREADS", "7")
    one, two = engine.environment(1), engine.environment(2)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert (one[name], two[name]) == ("1", "2")
    assert one["FASTNEURON_NUM_THREADS"] == "1"
    assert "FASTNEURON_NUM_THREADS" not in two  # the engine's own choice
    assert "intra_op_parallelism_threads=1" in one["XLA_FLAGS"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cannot pin a process here")
def test_too_few_cores_are_said_to_be(
    engine: Any, rooms: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    run = engine.run_pinned("engine.py", [], 2)
    assert run == {"cores": 2, "skipped": "1 usable cores only"}
    assert rooms["report"].table(run) == ["2 cores: not measured, 1 usable cores only"]
    assert engine.faults(run)
