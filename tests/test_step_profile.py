"""Marks of time in compiled steps, and the profile that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.cli import main
from fastneuron.errors import BackendUnavailable, FastneuronError
from fastneuron.kernels import marks
from fastneuron.network import Sequential
from fastneuron.profiling import step_figure, step_profile
from fastneuron.profiling.machine_ceilings import Level, MachineCeilings
from fastneuron.profiling.pairs import Ratio
from fastneuron.profiling.roofs import roofline
from fastneuron.profiling.step_profile import PART_NAMES, StepProfile, step
from fastneuron.profiling.work import Work, work_of
from fastneuron.rates import Rates
from fastneuron.schedules import Horizon

MACHINE = MachineCeilings(
    1,
    {"float32": 1e11, "float64": 5e10},
    (Level("L1", 16 << 10, 4e11, 4e11), Level("memory", 64 << 20, 2e10, 1e10)),
    "a test",
)


def network(**options: Any) -> Sequential:
    return fn.mlp([12, 40, 24, 3], seed=0, **options)


def marked(
    backend: backends.Backend, net: Sequential, threads: int, steps: int = 3, room: int = 10_000
) -> tuple[list[Any], Any, Any]:
    """Marks of some steps, and the parameters that they and unmarked steps leave."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 12)).astype(np.float32)
    y = rng.integers(0, 3, 96)
    results = []
    for asked in (True, False):
        trainer = fn.Trainer(net, "cross_entropy", "adam", 32, backend, threads)
        engine: Any = backend.engine(net.spec, trainer.loss, trainer.optimizer, n_threads=threads)
        engine.load(net.parameters.pull())
        engine.load_statistics(net.parameters.pull_statistics())
        rates = Rates(trainer.optimizer)
        scalars = rates.scalars(0, rates.rates(0, steps, Horizon(steps, steps)))
        order, bounds = np.arange(32 * steps) % 96, np.arange(steps + 1) * 32
        given = (x, y, None, order, bounds, scalars, np.empty(steps))
        if asked:
            outcome, found = engine.run_marked(*given, room=room)
        else:
            outcome = engine.run(*given)
        assert outcome.steps == steps
        results.append(repr((engine.export(), engine.export_statistics())))
    return found, *results


def parts_of(line: Any) -> list[tuple[str, int]]:
    return [(PART_NAMES[code % marks.PARTS], code // marks.PARTS) for code in line[:, 0].tolist()]


def test_marks_name_every_part_in_the_order_of_a_step(blocked: backends.Backend) -> None:
    (line,), *_ = marked(blocked, network(), 1, steps=2)
    forward = [("gather", 0), ("forward", 0), ("forward", 1), ("forward", 2), ("loss", 2)]
    back = [("backward", 2), ("backward", 1), ("check", 0)]
    gradients = [("gradient", 0), ("gradient", 1), ("gradient", 2)]
    assert parts_of(line) == [*forward, *back, *gradients] * 2 + [("call", 0)]
    assert (np.diff(line[:, 1]) >= 0).all(), "time goes on"


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("threads", [1, 3])
def test_marks_change_no_bit(blocked: backends.Backend, norm: str | None, threads: int) -> None:
    lines, got, want = marked(blocked, network(norm=norm, dropout=0.25), threads)
    assert got == want
    assert len(lines) == threads
    seen = {part for line in lines for part, _ in parts_of(line)}
    assert {"gather", "forward", "loss", "backward", "gradient", "call"} <= seen
    assert ("wait" in seen) == (threads > 1)


def test_a_clipped_step_has_its_update_apart(blocked: backends.Backend) -> None:
    net = network()
    optimizer = fn.Adam(clip_norm=1.0)
    found = step(net, batch_size=32, optimizer=optimizer, backend=blocked, n_threads=1,
                 seconds=0.05, machine=MACHINE)  # fmt: skip
    assert {part.layer for part in found.parts if part.name == "update"} == {0, 1, 2}


def test_marks_beyond_the_room_are_left_out(blocked: backends.Backend) -> None:
    (line,), got, want = marked(blocked, network(), 1, room=7)
    assert len(line) == 7
    assert got == want


def profile(blocked: backends.Backend, **options: Any) -> StepProfile:
    given = {"batch_size": 32, "n_threads": 1, "seconds": 0.1, "machine": MACHINE, **options}
    return step(network(norm="batch", dropout=0.2), backend=blocked, **given)


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_sum_up_to_the_step(blocked: backends.Backend, threads: int) -> None:
    found = profile(blocked, n_threads=threads)
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.marked_seconds)
    assert found.threads == threads
    assert all(part.seconds >= 0 for part in found.parts if part.name != "call")
    assert {part.layer for part in found.parts if part.name == "forward"} == set(range(7))


def test_what_it_tells_is_whole(blocked: backends.Backend) -> None:
    found = profile(blocked)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "12-40-bn-do-24-bn-do-3, batch 32" in text
    assert found._repr_html_().count("<tr>") == len(found.parts) + 1
    described = json.loads(json.dumps(found.to_json()))
    assert sum(part["share"] for part in described["parts"]) == pytest.approx(1)
    assert found.allocations < 100_000, "a call of many steps allocates no arrays"


def check_trace(trace: dict[str, Any], threads: int) -> None:
    """What a Chrome trace must be for its readers, by the Trace Event Format's JSON object form."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ns", "ms")
    lines: dict[int, float] = {}
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert event["ph"] in ("M", "X")
        assert event["pid"] == 1
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= lines.get(event["tid"], 0.0) - 1e-6, "events overlap"
            lines[event["tid"]] = event["ts"] + event["dur"]
            assert isinstance(event["cat"], str)
    assert set(lines) == set(range(threads))


def test_the_trace_is_one(blocked: backends.Backend) -> None:
    found = profile(blocked, n_threads=2)
    trace = json.loads(json.dumps(found.trace()))
    check_trace(trace, 2)
    broken = json.loads(json.dumps(found.trace()))
    next(e for e in broken["traceEvents"] if e["ph"] == "X")["dur"] = -1.0
    with pytest.raises(AssertionError):
        check_trace(broken, 2)


def test_the_network_stays_as_it_is(blocked: backends.Backend) -> None:
    net = network(norm="batch")
    before = repr((net.parameters.pull(), net.parameters.pull_statistics()))
    step(net, batch_size=32, backend=blocked, n_threads=1, seconds=0.02, machine=MACHINE)
    assert repr((net.parameters.pull(), net.parameters.pull_statistics())) == before


def test_a_marked_step_that_trains_otherwise_is_found(
    blocked: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = type(blocked.engine(network().spec))
    honest = engine.run_marked

    def crooked(self: Any, *given: Any, room: int) -> Any:
        given[5][:, 0] *= 2  # the learning rate
        return honest(self, *given, room=room)

    monkeypatch.setattr(engine, "run_marked", crooked)
    with pytest.raises(FastneuronError, match="other parameters"):
        profile(blocked)


def test_the_reference_has_no_marks() -> None:
    with pytest.raises(BackendUnavailable, match="compiled engine"):
        step(network(), backend="numpy")


def test_work_is_counted_from_shapes() -> None:
    spec = fn.mlp([5, 7, 3], norm="batch", seed=0).spec
    count = [work_of(spec, fn.Adam(), 4, part, 0, fused=True) for part in range(4)]
    gather, forward, _, backward = count
    assert gather == Work(0, 160, 160)
    assert forward == Work(140, 4 * (20 + 35 + 28), 4 * (20 + 35 + 28)), "no bias before BatchNorm"
    assert backward.multiply_adds == 140
    fused = work_of(spec, fn.SGD(), 4, marks.GRADIENT, 2, fused=True)
    assert fused == Work(4 * 21 + 4 * 3, 4 * (28 + 12 + 3 * 24), 4 * (28 + 12 + 3 * 24))
    assert work_of(spec, fn.SGD(), 4, marks.GRADIENT, 1, fused=True).multiply_adds == 0


def part(name: str, layer: int, seconds: float, work: Work) -> step_profile.Part:
    floor = MACHINE.floor(2 * work.multiply_adds, work.moved, "float32", work.held)
    return step_profile.Part(name, layer, seconds, 1.0, work, floor)


def made_up() -> StepProfile:
    # 10^6 multiply-adds on 8 KiB of the first level: 20 us at the peak. As many bytes of 10 MB of
    # memory as take 500 us there.
    parts = (
        part("forward", 0, 40e-6, Work(1_000_000, 8192, 8192)),
        part("gradient", 0, 1e-3, Work(1_000_000, 10_000_000, 10_000_000)),
        part("loss", 0, 1e-6, Work(0, 400, 400)),
    )
    return StepProfile(
        "5-7", "a test", "float32", 32, 1, parts, 1.041e-3, 1.041e-3, Ratio(1, 1, 1), 0, 1,
        MACHINE, [],
    )  # fmt: skip


def test_the_roofline_places_parts_by_hand() -> None:
    found = roofline(made_up())
    first, second = found.points
    assert first.level == "L1"
    assert first.roof == 1e11
    assert first.part.efficiency == pytest.approx(0.5)
    assert second.level == "memory"
    assert second.roof == pytest.approx(2e10 * 2e6 / 1e7)
    assert second.part.efficiency == pytest.approx(0.5)
    assert max(map(len, str(found).splitlines())) <= 80
    assert len(found.to_json()["points"]) == 2


def test_figures_name_their_axes() -> None:
    pytest.importorskip("matplotlib")
    axes = roofline(made_up()).figure().axes[0]
    assert axes.get_xlabel() == "operations a byte (FLOP/byte)"
    assert axes.get_ylabel() == "GFLOP/s"
    axes = step_figure.figure(made_up()).axes[0]
    assert axes.get_xlabel() == "time of a step (us)"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "loss 0",
        "gradient 0",
        "forward 0",
    ]


def test_the_commands_write_what_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cython", "numba"):
        if name not in {
            n for n, b in backends.available().items() if isinstance(b, backends.Backend)
        }:
            continue
        given = ["--layers", "6,9,3", "--batch", "8", "--seconds", "0.01", "--backend", name]
        files = {kind: str(tmp_path / f"{name}.{kind}") for kind in ("json", "trace")}
        asked = ["--norm", "layer", "--json", files["json"], "--trace", files["trace"]]
        assert main(["profile", "step", *given, *asked]) == 0
        assert "6-9-ln-3, batch 8" in capsys.readouterr().out
        assert json.loads(Path(files["json"]).read_text())["backend"] == name
        check_trace(json.loads(Path(files["trace"]).read_text()), 1)


def test_wrong_usage_is_said_before_anything_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "step", "--dropout", "1"]) == 2
    assert main(["profile", "step", "--trace", "/no/such/folder/file"]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["profile", "step", "--backend", "numpy"]) == 1
    assert "compiled engine" in capsys.readouterr().err
