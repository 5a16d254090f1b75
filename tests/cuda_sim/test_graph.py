"""How launches are recorded, against a driver that writes down what it is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron.kernels.device_plan import Blocks, Tile
from fastneuron.kernels.numba_cuda import engine as engine_room
from fastneuron.kernels.numba_cuda.engine import CudaEngine
from fastneuron.kernels.numba_cuda.graph import Graph
from fastneuron.layers import Dense
from fastneuron.testing import Case, case_of, loaded, run_steps, scalars_of, state_of


class Driver:
    """Stands for `cuda.bindings.driver`: every call returns a status and what it makes."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.fails = fails

    def CUstream(self, handle: int) -> str:
        return f"stream {handle}"

    def __getattr__(self, name: str):
        made = {"cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("program",)}

        def call(*arguments):
            self.calls.append(" ".join(map(str, [name, *arguments])))
            return (int(name == self.fails), *made.get(name, ()))

        return call


def test_launches_are_recorded_once_and_repeated() -> None:
    driver = Driver()
    graph = Graph(7, lambda: driver.calls.append("launches"), driver)
    assert driver.calls == [
        "cuStreamBeginCapture stream 7 relaxed",
        "launches",
        "cuStreamEndCapture stream 7",
        "cuGraphInstantiate graph 0",
        "cuGraphDestroy graph",
    ]
    del driver.calls[:]
    graph.replay()
    graph.replay(2)
    assert driver.calls == ["cuGraphLaunch program stream 7"] * 3
    del driver.calls[:], graph
    assert driver.calls == ["cuGraphExecDestroy program"]


def test_a_launch_that_fails_ends_the_recording() -> None:
    driver = Driver()

    def launch() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Graph(7, launch, driver)
    assert driver.calls[-1] == "cuStreamEndCapture stream 7"


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture"])
def test_a_driver_that_refuses_is_named(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} failed"):
        Graph(7, lambda: None, Driver(fails=name))


class Recorded:
    """Stands for a graph: what is launched while it is made is not run, but at each replay."""

    made: list[Recorded]
    runs = True  # or counts alone

    def __init__(self, stream: Any, launch: Any) -> None:
        self.launches: list[Any] = []
        self.replays: list[int] = []
        Recorder.into = self.launches
        try:
            launch()
        finally:
            Recorder.into = None
        Recorded.made.append(self)

    def replay(self, times: int = 1) -> None:
        self.replays.append(times)
        for _ in range(times if self.runs else 0):
            for call in self.launches:
                call()


class Recorder:
    into: list[Any] | None = None


def _queue(calls: list[Any]) -> None:
    if Recorder.into is not None:
        Recorder.into += calls
        return
    alone.append(len(calls))
    for call in calls:
        call()


alone: list[int] = []  # launches of each list that was run one by one


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """The engine as with a driver that records."""
    monkeypatch.setattr(engine_room, "Graph", Recorded)
    monkeypatch.setattr(engine_room, "why_not", lambda: "")
    monkeypatch.setattr(engine_room, "run_all", _queue)
    Recorded.made = []
    alone.clear()
    return Recorded


OF = case_of(Dense(2, 1), rows=7, batch=2)
# One thread a block does: what is tested is who is launched how often.
ONE = {"tile": Tile(4, 4, 4, 4, 4), "blocks": Blocks(1, 1, 1, 1, 1, 1, 100), "fused_rows": ()}


def engine_of(case: Case) -> Any:
    engine = CudaEngine(case.spec, case.loss, case.optimizer, batch_size=2, **ONE)
    return loaded(engine, case)


def steps_of(sizes: list[int]) -> tuple[Any, Any]:
    bounds = np.cumsum([0, *sizes])
    return np.random.default_rng(0).integers(0, 7, bounds[-1]), bounds


def trained(sizes: list[int]) -> tuple[bytes, bytes]:
    engine = engine_of(OF)
    order, bounds = steps_of(sizes)
    losses = np.full(len(sizes), np.nan)
    engine.run(OF.x, OF.y, None, order, bounds, scalars_of(OF, len(sizes)), losses)
    return losses.tobytes(), state_of(engine)


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ([2], {}),
        ([2] * 7, {1: 6}),
        ([2] * 8, {1: 7}),
        ([2] * 9, {8: 1}),
        ([2] * 65, {64: 1}),
        ([2] * 200, {64: 3, 1: 7}),
        ([2] * 9 + [1] + [2] * 9, {8: 2, 1: 1}),
        ([2, 2, 1] * 3, {1: 7}),
    ],
    ids=["1", "7", "8", "9", "65", "200", "another in the middle", "three epochs, last not full"],
)
def test_many_steps_are_one_launch(graphs, monkeypatch, sizes, want) -> None:
    short = len(sizes) < 20
    monkeypatch.setattr(graphs, "runs", short)
    got = trained(sizes)
    count = len(alone) and alone[0]
    steps: dict[int, int] = {}
    for graph in graphs.made:
        repeats = len(graph.launches) // count
        assert repeats * count == len(graph.launches), "whole steps"
        steps[repeats] = steps.get(repeats, 0) + sum(graph.replays)
    assert len(alone) == len(set(sizes)), "the first of each kind by itself"
    assert steps == want
    if short:  # a simulated step takes 0.1 s
        monkeypatch.setattr(engine_room, "why_not", lambda: "no graphs here")
        assert trained(sizes) == got


def test_recordings_are_kept_and_forgotten_where_vectors_move(graphs) -> None:
    engine, scalars = engine_of(OF), scalars_of(OF, 9)
    order, bounds = steps_of([2] * 9)
    for _ in range(3):
        run_steps(engine, OF, order, bounds, scalars)
    assert [graph.replays for graph in graphs.made] == [[1, 1, 1], [1, 1]], "8 and 1"
    order, bounds = steps_of([3] * 2)  # larger batches
    run_steps(engine, OF, order, bounds, scalars[:2])
    assert not any(kind[0] == 2 for kind in engine._steps)
    want = engine_of(OF)
    for _ in range(3):
        run_steps(want, OF, *steps_of([2] * 9), scalars)
    run_steps(want, OF, order, bounds, scalars[:2])
    assert state_of(engine) == state_of(want)


def test_the_plan_says_how_steps_are_queued(graphs, monkeypatch) -> None:
    said = "64 or 8 or 1 equal steps are one launch of a recorded graph"
    assert engine_of(OF).plan()["graph"] == said

    def refuse(*_: Any) -> None:
        raise RuntimeError("cuStreamBeginCapture failed: not supported")

    monkeypatch.setattr(engine_room, "Graph", refuse)
    engine = engine_of(OF)
    run_steps(engine, OF, *steps_of([2] * 9), scalars_of(OF, 9))
    want = "the driver cannot record launches: cuStreamBeginCapture failed: not supported"
    assert engine.plan()["graph"] == want
    assert len(alone) == 9
