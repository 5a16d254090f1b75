"""The GPU suite's benchmarks without a card: who is judged, who is timed, what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite import benchmarks, gpu_peers
from fastneuron.gpu_suite.benchmarks import Contestant, benchmark, contestants
from fastneuron.gpu_suite.engines import Kind
from fastneuron.gpu_suite.gpu_peers import Ours, many_starts
from fastneuron.gpu_suite.racing import Racer, by_host, by_numba_events, by_torch_events, race
from fastneuron.gpu_suite.running import CUT, MISSING, OK, SKIPPED, WRONG, Budget, Finding
from fastneuron.gpu_suite.workloads import WORKLOADS, Workload
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.peers.judging import Judge
from fastneuron.peers.plain_numpy import PlainNumpy
from fastneuron.peers.problems import Problem, Row, problem_of

SMALL = Workload(Row((3, 5, 2), 8, "adam"), 2, 2.0, rounds=(3, 3))
KIND = Kind("own", ReferenceEngine)


def ours(problem: Problem) -> Ours:
    return Ours(problem, 1, KIND, "float32")


def theirs(problem: Problem) -> PlainNumpy:
    return PlainNumpy(problem, 1)


def lasting(seconds: float) -> Callable[[], Any]:
    """A timer by which each unit takes so long."""

    def timer(work: Callable[[int], object], units: int) -> float:
        work(1)
        return seconds * units

    return lambda: (timer, "a planted clock")


def contestant(name: str, build: Any, seconds: float = 1e-3, **given: Any) -> Contestant:
    own = name.startswith("fastneuron")
    options = {"missing": "", "unbuilt": False, **given}
    return Contestant(name, own, build=build, timer=lasting(seconds), **options)


def run(*racers: Contestant, of: Workload = SMALL, seconds: float = 30.0, **given: Any) -> Finding:
    return benchmark(of, racers, Budget(seconds), **given)


def broken(problem: Problem) -> Any:
    raise RuntimeError("CUDA error:\n  out of memory")


class WrongRate(PlainNumpy):
    """Learns at another rate than it is told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, 1)

    def advance(self, order: Any) -> Any:
        super().advance(order)
        return super().advance(order)


def test_ours_stands_beside_the_fastest_other() -> None:
    found = run(
        contestant("fastneuron own", ours, 2e-3),
        contestant("slow", theirs, 9e-3),
        contestant("fast", theirs, 5e-3),
    )
    assert found.status == OK
    assert found.details["fastest_other"] == "fast"
    assert found.details["times_as_fast"]["ratio"] == pytest.approx(2.5)
    assert found.details["contestants"]["slow"]["step_seconds"] == pytest.approx(4.5e-3)
    assert len(found.details["contestants"]["slow"]["rounds"]) == 3
    assert found.said == (
        "1000 us a step by fastneuron own; 2.50 [2.50, 2.50] times as fast as fast, the fastest "
        "other; goal 2: met"
    )
    found = run(contestant("fastneuron own", ours, 4e-3), contestant("fast", theirs, 5e-3))
    assert found.said.endswith("goal 2: MISSED")
    assert found.status == OK


def test_a_missing_peer_is_said_and_the_others_are_timed() -> None:
    gone = contestant("jax scan", broken, missing="jax is not installed")
    found = run(contestant("fastneuron own", ours), gone)
    entry = found.details["contestants"]["jax scan"]
    assert (entry["status"], entry["said"]) == ("not here", "jax is not installed")
    assert found.said.endswith("no other library is here to compare with")


def test_a_peer_that_fails_or_is_wrong_is_left_out() -> None:
    found = run(
        contestant("fastneuron own", ours),
        contestant("broken", broken),
        contestant("wrong", WrongRate),
        contestant("right", theirs),
    )
    entries = found.details["contestants"]
    assert found.status == OK
    assert entries["broken"]["said"] == "RuntimeError: CUDA error: out of memory"
    assert entries["wrong"]["status"] == "failed"
    assert "the loss is off by" in entries["wrong"]["said"]
    assert found.details["fastest_other"] == "right"


@pytest.mark.parametrize("fault", [broken, WrongRate])
def test_ours_that_fails_or_is_wrong_is_wrong(fault: Any) -> None:
    found = run(contestant("fastneuron own", fault), contestant("right", theirs))
    assert found.status == WRONG
    assert found.said.startswith("fastneuron own: ")


def test_what_is_not_built_yet_is_said_and_the_others_are_timed() -> None:
    unbuilt = contestant("fastneuron own", broken, missing="not yet", unbuilt=True)
    found = run(unbuilt, contestant("right", theirs))
    assert (found.status, found.said) == (MISSING, "not yet")
    assert found.details["contestants"]["right"]["step_seconds"] > 0


def test_ours_that_this_machine_cannot_run_is_skipped_with_its_reason() -> None:
    def gone(problem: Problem) -> Any:
        raise BackendUnavailable("precision='tf32' needs cuBLASLt")

    found = run(contestant("fastneuron own", gone), contestant("right", theirs))
    assert (found.status, found.said) == (SKIPPED, "precision='tf32' needs cuBLASLt")


def test_who_would_start_too_late_is_cut_off() -> None:
    found = run(contestant("fastneuron own", ours), contestant("late", theirs), seconds=0.0)
    assert found.status == OK
    assert found.details["contestants"]["late"]["status"] == CUT


def test_the_share_of_a_products_rate() -> None:
    of = Workload(SMALL.row, 2, 1.0, gemm_goal=0.7, rounds=(3, 3))
    adds = SMALL.row.multiply_adds

    def rate_of(workload: Workload) -> float:
        return 2 * adds / 1e-3

    found = run(contestant("fastneuron own", ours, 2e-3), of=of, rate_of=rate_of)
    assert found.details["gemm_share"] == pytest.approx(0.5)
    assert found.said.endswith("50% of a product's rate; goal 70%: MISSED")


def test_our_engines_have_what_a_workload_needs_or_are_not_built_yet() -> None:
    by_name = {workload.name: workload for workload in WORKLOADS}
    reasons = {
        name: contestants(workload, [KIND], simulated=True)[0].missing
        for name, workload in by_name.items()
    }
    assert list(reasons.values()) == [
        "",
        "",
        "precision 'tf32' is not built yet",
        "",
    ]

    def precise(*arguments: Any, precision: str = "float32", **given: Any) -> Any:
        return ReferenceEngine(*arguments, **given)

    tf32 = WORKLOADS[2]
    assert contestants(tf32, [Kind("own", precise)], simulated=True)[0].missing == ""


def test_every_peer_of_a_workload_is_named_though_none_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_peers, "find_spec", lambda name: None)
    names = [c.name for c in contestants(WORKLOADS[0], [KIND], simulated=False)]
    assert names == [
        *("fastneuron own", "torch", "torch graph", "torch compile", "jax scan", "jax jit"),
    ]
    many = contestants(WORKLOADS[3], [KIND], simulated=False)
    assert [c.name for c in many[1:]] == ["torch vmap", "torch vmap graph", "jax vmap scan"]
    assert {c.missing for c in many[1:]} == {"torch is not installed", "jax is not installed"}


class Held(ReferenceEngine):
    """Knows its data again, as engines on a card do."""

    held: Any = None
    seen = 0

    def hold(self, x: Any, y: Any, weight: Any) -> None:
        self.held = x, y

    def run(self, x: Any, y: Any, *rest: Any) -> Any:
        assert self.held[0] is x
        assert self.held[1] is y
        self.seen += 1
        return super().run(x, y, *rest)


def test_our_data_is_held_and_a_call_is_one_chunk() -> None:
    problem = problem_of(SMALL.row)
    peer = Ours(problem, 1, Kind("held", Held), "float32")
    peer.advance(np.arange(24).reshape(3, 8))
    peer.advance(np.arange(24).reshape(3, 8))
    assert peer.engine.seen == 2


# Racing


class Event:
    """An event of a card whose clock the work sets."""

    now = 0.0

    def __init__(self, **options: Any) -> None:
        self.time = -1.0

    def record(self) -> None:
        self.time = Event.now

    def synchronize(self) -> None:
        assert self.time >= 0

    def elapsed_time(self, other: Event) -> float:
        return other.time - self.time


class Library:
    """PyTorch's or numba's events."""

    Event = Event

    @staticmethod
    def event(timing: bool) -> Event:
        assert timing
        return Event()

    @staticmethod
    def event_elapsed_time(one: Event, other: Event) -> float:
        return one.elapsed_time(other)


def test_events_are_read_in_milliseconds() -> None:
    def work(units: int) -> None:
        Event.now += 5.0 * units

    library: Any = Library
    library.cuda = Library
    for timer in (by_torch_events(library), by_numba_events(Library)):
        assert timer(work, 3) == pytest.approx(0.015)
    assert by_host(lambda units: None, 3) >= 0


def test_a_race_has_its_least_rounds_whatever_the_budget() -> None:
    done: list[str] = []

    def racer(name: str, seconds: float) -> Racer:
        timer, clock = lasting(seconds)()
        return Racer(lambda units: done.append(name), timer, clock)

    racers = {"a": racer("a", 1.0), "b": racer("b", 0.004)}
    times = race(racers, Budget(0.0), (4, 50))
    assert [len(found.seconds) for found in times.values()] == [4, 4]
    assert times["b"].seconds == [0.004] * 4
    assert times["a"].clock == "a planted clock"
    assert len(race(racers, Budget(60.0), (4, 7))["a"].seconds) == 7
    assert set(done) == {"a", "b"}


# Many models at once


def test_models_start_apart_and_the_first_from_the_problem() -> None:
    problem = problem_of(SMALL.row)
    for (w, b), (first, bias) in zip(many_starts(problem, 4), problem.parameters, strict=True):
        assert w.shape == (4, *first.shape)
        np.testing.assert_array_equal(w[0], first)
        np.testing.assert_array_equal(b[0], bias)
        assert len({model.tobytes() for model in w}) == 4
        np.testing.assert_array_equal(np.sort(w[3], axis=None), np.sort(first, axis=None))


@pytest.mark.parametrize("name", ["TorchCuda", "TorchVmap", "JaxCudaScan", "JaxVmap"])
def test_peers_of_the_card_train_what_they_should(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = getattr(gpu_peers, name)
    if not find_spec(peer.module):
        pytest.skip(f"{peer.module} is not installed: it trains here, on the CPU")
    monkeypatch.setattr(gpu_peers.TorchCuda, "device", "cpu")
    more = {"models": 3} if "Vmap" in name else {}
    judge = Judge(SMALL.row, np.random.default_rng(0))
    made = peer(problem_of(SMALL.row), 1, **more)
    for _ in range(2):
        judge.errors(made, made.advance(judge.order))
        made.reset()


def test_a_library_is_told_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Torch:
        set_float32_matmul_precision = staticmethod(told.append)

    class Jax:
        class config:
            update = staticmethod(lambda name, value: told.append((name, value)))

    monkeypatch.setattr(benchmarks, "import_module", {"torch": Torch, "jax": Jax}.__getitem__)

    class Peer:
        def __init__(self, problem: Any, threads: int) -> None: ...

    for module in ("torch", "jax"):
        peer: Any = type("Named", (Peer,), {"module": module})
        for precision in ("float32", "tf32"):
            benchmarks._precise(peer, precision, problem_of(SMALL.row), threads=1)
    assert told == [
        "highest",
        "high",
        ("jax_default_matmul_precision", "highest"),
        ("jax_default_matmul_precision", "tensorfloat32"),
    ]
