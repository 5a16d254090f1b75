"""A workload by every library that is there: judged, then timed by turns in the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite.engines import NUMBA, Kind
from fastneuron.gpu_suite.gpu_peers import MANY_PEERS, PEERS, Ours, OursMany
from fastneuron.gpu_suite.racing import (
    Racer,
    Timer,
    Times,
    by_host,
    by_numba_events,
    by_torch_events,
    race,
)
from fastneuron.gpu_suite.running import CUT, MISSING, OK, SKIPPED, WRONG, Budget, Finding
from fastneuron.gpu_suite.workloads import Workload
from fastneuron.peers.judging import Judge, WrongResult
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Problem, draw_order, problem_of
from fastneuron.profiling.pairs import ratio

__all__ = ["NOT_HERE", "Contestant", "benchmark", "contestants"]

#: What becomes of a contestant that this machine has not.
NOT_HERE = "not here"
#: Orders of batches that calls take in turns.
ORDERS = 4
#: Seconds that a contestant's start takes at most, as a rule: it is not begun with less.
LEAST_START = 5.0


@dataclass(frozen=True)
class Contestant:
    """Who may train a workload.

    Attributes
    ----------
    name : str
    ours : bool
    missing : str
        Why it cannot, or nothing.
    unbuilt : bool
        Whether that is because nobody has written it yet.
    build : callable (Problem) -> Peer
    timer : callable () -> (Timer, str)
        What to time it by, and what that is in words.
    """

    name: str
    ours: bool
    missing: str
    unbuilt: bool
    build: Callable[[Problem], Peer]
    timer: Callable[[], tuple[Timer, str]] = lambda: (by_host, "host clock")


def contestants(workload: Workload, kinds: Sequence[Kind], *, simulated: bool) -> list[Contestant]:
    """Return who may train a workload: our engines, then the others."""
    found = [_ours(workload, kind, simulated=simulated) for kind in kinds]
    if simulated:
        return found
    threads = os.cpu_count() or 1
    for peer in MANY_PEERS if workload.models > 1 else PEERS:
        more: dict[str, Any] = {"models": workload.models} if workload.models > 1 else {}
        found.append(
            Contestant(
                peer.name,
                False,
                peer.missing(),
                False,
                partial(_precise, peer, workload.precision, threads=threads, **more),
                partial(_timer_of, peer.module),
            )
        )
    return found


def _ours(workload: Workload, kind: Kind, *, simulated: bool) -> Contestant:
    missing = ""
    if workload.precision != "float32" and not kind.takes("precision"):
        missing = f"precision {workload.precision!r} is not built yet"
    build: Callable[[Problem], Peer]
    build = partial(Ours, threads=1, kind=kind, precision=workload.precision)
    if workload.models > 1:
        build = partial(OursMany, threads=1, kind=kind, models=workload.models)
    timed_by = (by_host, "host clock")
    timer = partial(_timer_of, "numba") if kind.name == NUMBA and not simulated else None
    return Contestant(
        f"fastneuron {kind.name}", True, missing, bool(missing), build, timer or (lambda: timed_by)
    )


def _precise(peer: type[Peer], precision: str, problem: Problem, **more: Any) -> Peer:
    """Make a peer whose library multiplies in that precision: both have others by default."""
    library = import_module(peer.module)
    if peer.module == "torch":
        library.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    else:
        name = "tensorfloat32" if precision == "tf32" else "highest"
        library.config.update("jax_default_matmul_precision", name)
    return peer(problem, **more)


def _timer_of(module: str) -> tuple[Timer, str]:
    """Return events where the library has them. What waits for its results may go by the host."""
    if module == "torch":
        return by_torch_events(import_module("torch")), "CUDA events"
    if module == "numba":
        driver = import_module("fastneuron.kernels.numba_cuda.driver")
        return by_numba_events(driver.cuda), "CUDA events"
    return by_host, "host clock"


def gemm_rate(workload: Workload) -> float:
    """Return the multiply-adds a second of the widest product of the network, by PyTorch."""
    torch = import_module("torch")
    torch.set_float32_matmul_precision("high" if workload.precision == "tf32" else "highest")
    wide = max(workload.row.sizes)
    shapes = (workload.row.batch, wide), (wide, wide)
    one, other = (torch.randn(shape, device="cuda") for shape in shapes)

    def products(units: int) -> None:
        for _ in range(units):
            torch.mm(one, other)

    products(3)
    timer = by_torch_events(torch)
    seconds = sorted(timer(products, 10) / 10 for _ in range(5))[2]
    return workload.row.batch * wide * wide / seconds


def benchmark(
    workload: Workload,
    racers: Sequence[Contestant],
    budget: Budget,
    *,
    rate_of: Callable[[Workload], float] | None = None,
) -> Finding:
    """Judge and time a workload.

    Parameters
    ----------
    workload : Workload
    racers : sequence of Contestant
    budget : Budget
        Who has not started at its half is left out, and said to be.
    rate_of : callable, optional
        Measures the rate of one large product, where there is a goal for its share.
    """
    row = workload.row
    problem, rng = problem_of(row), np.random.default_rng(0)
    judge = Judge(row, rng)
    orders = [draw_order(rng, row.data_rows, row.batch, workload.steps) for _ in range(ORDERS)]
    entries: dict[str, dict[str, Any]] = {}
    started: dict[str, Racer] = {}
    for each in racers:
        entry: dict[str, Any] = {"ours": each.ours, "status": OK, "said": ""}
        entries[each.name] = entry
        if each.missing:
            entry["status"] = MISSING if each.unbuilt else NOT_HERE
            entry["said"] = each.missing
            continue
        if budget.left < LEAST_START and started:
            entry["status"], entry["said"] = CUT, "no time was left for it"
            continue
        try:
            peer = each.build(problem)
            errors = judge.errors(peer, peer.advance(judge.order))
            timer, clock = each.timer()
            racer = Racer(_work(peer, orders), timer, clock)
            racer.work(1)
        except BackendUnavailable as error:
            entry["status"], entry["said"] = NOT_HERE, str(error)
            continue
        except Exception as error:
            entry["status"] = WRONG if each.ours else "failed"
            kind = "" if isinstance(error, WrongResult) else f"{type(error).__name__}: "
            entry["said"] = " ".join(f"{kind}{error}".split())[:400]
            continue
        entry["loss_error"], entry["way_error"] = errors
        started[each.name] = racer
    times = race(started, budget, workload.rounds) if started else {}
    details = _results(workload, entries, times)
    if rate_of and workload.gemm_goal and any(e["ours"] for e in entries.values()):
        details["gemm_rate"] = rate_of(workload)
    return _finding(workload, details)


def _work(peer: Peer, orders: list[Any]) -> Callable[[int], object]:
    turn = 0

    def work(units: int) -> None:
        nonlocal turn
        for _ in range(units):
            peer.advance(orders[turn % len(orders)])
            turn += 1

    return work


def _results(
    workload: Workload, entries: dict[str, dict[str, Any]], times: dict[str, Times]
) -> dict[str, Any]:
    """Return every contestant's figures, and ours beside the fastest other."""
    for name, found in times.items():
        steps = [seconds / workload.steps for seconds in found.seconds]
        entries[name].update(
            step_seconds=float(np.median(steps)),
            rounds=steps,
            start_seconds=found.first_seconds,
            clock=found.clock,
        )
    ours = [name for name in times if entries[name]["ours"]]
    others = [name for name in times if not entries[name]["ours"]]
    details: dict[str, Any] = {
        "workload": workload.name,
        "precision": workload.precision,
        "models": workload.models,
        "steps": workload.steps,
        "multiply_adds": workload.models * workload.row.multiply_adds,
        "goal": workload.goal,
        "gemm_goal": workload.gemm_goal,
        "contestants": entries,
    }

    def fastest(names: list[str]) -> str | None:
        return min(names, key=lambda name: float(entries[name]["step_seconds"]), default=None)

    details["fastest_of_ours"], details["fastest_other"] = fastest(ours), fastest(others)
    if ours and others:
        one, other = times[str(fastest(others))], times[str(fastest(ours))]
        details["times_as_fast"] = ratio(one.seconds, other.seconds).to_json()
    return details


def _finding(workload: Workload, details: dict[str, Any]) -> Finding:
    entries = details["contestants"]
    wrong = [name for name, entry in entries.items() if entry["status"] == WRONG]
    if wrong:
        return Finding("", WRONG, f"{wrong[0]}: {entries[wrong[0]]['said']}", 0.0, details)
    ours, other = details["fastest_of_ours"], details["fastest_other"]
    if ours is None:
        mine = [entry for entry in entries.values() if entry["ours"]]
        for status, found in ((MISSING, MISSING), (NOT_HERE, SKIPPED), (CUT, CUT)):
            said = [entry["said"] for entry in mine if entry["status"] == status]
            if said:
                return Finding("", found, said[0], 0.0, details)
        return Finding("", SKIPPED, "no engine of ours is here", 0.0, details)
    words = [f"{entries[ours]['step_seconds'] * 1e6:.4g} us a step by {ours}"]
    if other:
        found = details["times_as_fast"]
        met = "met" if found["ratio"] >= workload.goal else "MISSED"
        words.append(
            f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}] times as fast as "
            f"{other}, the fastest other; goal {workload.goal:g}: {met}"
        )
    else:
        words.append("no other library is here to compare with")
    if details.get("gemm_rate"):
        pace = details["multiply_adds"] / entries[ours]["step_seconds"]
        share = details["gemm_share"] = pace / details["gemm_rate"]
        met = "met" if share >= workload.gemm_goal else "MISSED"
        words.append(f"{share:.0%} of a product's rate; goal {workload.gemm_goal:.0%}: {met}")
    return Finding("", OK, "; ".join(words), 0.0, details)
