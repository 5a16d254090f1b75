"""Contestants side by side: each is checked against the float64 reference, then timed by turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ours import Reference
from peers import PEERS
from problems import Peer, Problem, Row, Unsupported, draw_order, problem_of

from fastneuron.kernels.contract import Parameters

Array = Any
Say = Callable[[str], None]

#: A result is wrong where a step's loss is off by this share of the float64 reference's loss, or
#: the way that some array of parameters went by this share of the reference's way (both as sums of
#: absolute values) beyond what rounding the parameters may hide. What is allowed to float32 are the
#: few ReLUs whose input is zero but for its rounding: they send Adam's first steps elsewhere. A
#: learning rate 2 % off is 2e-2 of the way.
LOSS_TOLERANCE, WAY_TOLERANCE = 1e-3, 1e-2
#: Share of the loss, the mean of all compared steps, that may be due to which numbers were dropped,
#: for peers that draw them in a way of their own. A step of 256 rows is off by less than 1e-2.
DRAWN_TOLERANCE = 3e-2
#: Multiply-adds of the steps that are compared: a second of float64 at 50 GFLOP/s.
CHECK_WORK, LEAST_CHECKED, MOST_CHECKED = 25e9, 2, 10
#: Rounds that a row's time is shared among, and the fewest, however little time there is.
ROUNDS, LEAST_ROUNDS = 9, 5
#: Seconds of one timed block, at most, and its steps: the order of a block stays in a cache.
LONGEST_BLOCK, MOST_STEPS = 0.1, 32768
#: Seconds that another library's threads may spin for after their last work (OpenBLAS: 80 ms, 2^26
#: cycles) before they leave the second core to others.
SETTLE = 0.15


def ways(parameters: Parameters, start: Parameters) -> list[Array]:
    """Return how far every parameter has come, a float64 array for each weight and bias."""
    return [
        np.subtract(array, first, dtype=np.float64)
        for pair, origin in zip(parameters, start, strict=True)
        for array, first in zip(pair, origin, strict=True)
        if array is not None
    ]


def unseen(problem: Problem, steps: int) -> list[float]:
    """Return, by array, the way that rounding each step's parameters may hide: half an ulp each."""
    u = float(np.finfo(problem.dtype).eps) / 2
    pairs = problem.parameters + problem.statistics
    arrays = (array for pair in pairs for array in pair if array is not None)
    return [steps * u * float(np.abs(array).sum(dtype=np.float64)) for array in arrays]


class WrongResult(Exception):
    """A peer's steps are not those of the reference; the message says by how much."""


class Judge:
    """Compares a peer's steps with those of the float64 reference on the same batches."""

    def __init__(self, row: Row, rng: np.random.Generator) -> None:
        steps = int(np.clip(CHECK_WORK / row.multiply_adds, LEAST_CHECKED, MOST_CHECKED))
        self.order = draw_order(rng, row.data_rows, row.batch, steps)
        self._want: dict[Problem, tuple[Array, list[Array], list[float]]] = {}

    def errors(self, peer: Peer, losses: Array) -> tuple[float, float]:
        """Return the errors of loss and way after `order` was trained; raise if they are large."""
        problem = peer.problem
        if problem not in self._want:
            reference = Reference(problem)
            want = reference.advance(self.order)
            goals = self._ways(reference)
            self._want[problem] = want, goals, unseen(problem, len(self.order))
        want, goals, hidden = self._want[problem]
        if problem.dropout and not peer.drops_alike:
            return self._drawn_error(losses, want), 0.0
        if not peer.loss_each_step:
            want = np.full(len(want), want.mean())
        gone = self._ways(peer)
        loss_error = float(np.max(np.abs(losses - want) / np.abs(want)))
        # What rounding may hide is granted on top: error <= tolerance means
        # |got - goal| <= tolerance * |goal| + hidden. Where both are 0, so must be the error.
        # np.max, not max: a NaN stays one.
        tiny = np.finfo(np.float64).tiny
        shares = [
            np.abs(got - goal).sum() / (np.abs(goal).sum() + lost / WAY_TOLERANCE + tiny)
            for got, goal, lost in zip(gone, goals, hidden, strict=True)
        ]
        way_error = float(np.max(shares))
        # Not "error > tolerance": a NaN is wrong too.
        if not (loss_error <= LOSS_TOLERANCE and way_error <= WAY_TOLERANCE):
            raise WrongResult(
                f"after {len(want)} steps the loss is off by {loss_error:.1e} (allowed "
                f"{LOSS_TOLERANCE:.0e}), an array's way by {way_error:.1e} ({WAY_TOLERANCE:.0e})"
            )
        return loss_error, way_error

    @staticmethod
    def _ways(peer: Peer) -> list[Array]:
        """Return how far parameters and running statistics have come."""
        start = peer.problem.parameters + peer.problem.statistics
        return ways(peer.export() + peer.statistics(), start)

    @staticmethod
    def _drawn_error(losses: Array, want: Array) -> float:
        """Return the error of the mean loss, where other random numbers were dropped."""
        error = float(abs(losses.mean() / want.mean() - 1))
        if not error <= DRAWN_TOLERANCE:
            raise WrongResult(
                f"the mean loss of {len(want)} steps is off by {error:.1e}, more than what is "
                f"dropped explains ({DRAWN_TOLERANCE:.0e})"
            )
        return error


class Entrant:
    """A peer that was started and checked on a row, with the timings it has so far."""

    def __init__(self, kind: type[Peer], problem: Problem, judge: Judge, cores: int) -> None:
        start = time.perf_counter()
        self.peer = kind(problem, cores)
        losses = self.peer.advance(judge.order)
        first = time.perf_counter() - start
        self.loss_error, self.way_error = judge.errors(self.peer, losses)
        self.peer.reset()
        start = time.perf_counter()
        self.peer.advance(judge.order)
        again = time.perf_counter() - start
        self.start_seconds = max(first - again, 0.0)
        self.step_seconds = again / len(judge.order)  # a guess, for the length of a block
        self.seconds: list[float] = []
        self.block = 1

    def time(self, before: Array, order: Array, settle: float) -> None:
        time.sleep(settle)
        if self.step_seconds < LONGEST_BLOCK / 5:
            self.peer.advance(before)  # brings parameters and code back into the caches
        start = time.perf_counter()
        losses = self.peer.advance(order)
        self.seconds.append((time.perf_counter() - start) / len(order))
        if not np.isfinite(losses).all():
            raise WrongResult("the loss is no longer finite")

    def result(self) -> dict[str, Any]:
        low, middle, high = 1e6 * np.percentile(self.seconds, (25, 50, 75))
        return {
            "status": "ok",
            "microseconds": middle,
            "quartiles": [low, high],
            "rounds": len(self.seconds),
            "each_round": [1e6 * seconds for seconds in self.seconds],
            "steps_a_block": self.block,
            "start_seconds": self.start_seconds,
            "loss_error": self.loss_error,
            "way_error": self.way_error,
        }


def failure(error: Exception) -> dict[str, Any]:
    status = {Unsupported: "unsupported", WrongResult: "wrong"}.get(type(error), "failed")
    lines = str(error).strip().splitlines() or [""]
    reason = lines[0] if status != "failed" else f"{type(error).__name__}: {lines[0]}"
    return {"status": status, "reason": reason[:300]}


@dataclass(frozen=True)
class Contestant:
    """A peer on a row, and the name of its result."""

    name: str
    kind: type[Peer]
    row: Row


def race(
    contestants: Sequence[Contestant],
    cores: int,
    seconds: float,
    say: Say,
    rounds: tuple[int, int] = (LEAST_ROUNDS, ROUNDS),
    settle: float = SETTLE,
) -> dict[str, dict[str, Any]]:
    """Return, by name, the median of interleaved rounds, or why there is none.

    Contestants of one row share its data, its parameters and the batches that are checked.
    `seconds` are for measuring, all of them together; `rounds` are the fewest and the most.
    """
    rng = np.random.default_rng(1)
    prepared: dict[Row, tuple[Problem, Judge]] = {}
    results: dict[str, dict[str, Any]] = {}
    entrants: dict[str, tuple[Entrant, Row]] = {}
    for one in contestants:
        say(f"{cores} core(s), {one.row.label}: starting {one.kind.name}")
        if one.row not in prepared:
            prepared[one.row] = problem_of(one.row), Judge(one.row, rng)
        try:
            entrants[one.name] = Entrant(one.kind, *prepared[one.row], cores), one.row
        except Exception as error:  # whatever a peer does, the others are measured
            results[one.name] = failure(error)
    target = min(LONGEST_BLOCK, seconds / (rounds[1] * max(1, len(entrants))))
    for entrant, _ in entrants.values():
        entrant.block = int(np.clip(target / entrant.step_seconds, 1, MOST_STEPS))
    a_round = sum(max(target, entrant.step_seconds) for entrant, _ in entrants.values())
    count = int(np.clip(seconds / max(a_round, 1e-9), *rounds))
    shuffled = random.Random(2)
    for turn in range(count + 1):
        # In another order each time, so that nobody always follows the same neighbour.
        for name in shuffled.sample(list(entrants), len(entrants)):
            entrant, row = entrants[name]
            say(f"{cores} core(s), {row.label}: round {turn} of {count}")
            order = draw_order(rng, row.data_rows, row.batch, 2 * entrant.block)
            before, order = order[: entrant.block], order[entrant.block :]
            try:
                if turn == 0:  # unmeasured: jax-scan compiles for the block's length
                    entrant.peer.advance(order)
                else:
                    entrant.time(before, order, settle if cores > 1 else 0.0)
            except Exception as error:
                results[name] = failure(error)
                del entrants[name]
    results.update({name: entrant.result() for name, (entrant, _) in entrants.items()})
    return {one.name: results[one.name] for one in contestants}


def measure_row(
    row: Row, kinds: Sequence[type[Peer]], cores: int, seconds: float, say: Say
) -> dict[str, dict[str, Any]]:
    """Return a row's results by peer, see `race`."""
    return race([Contestant(kind.name, kind, row) for kind in kinds], cores, seconds, say)


def floor_microseconds(row: Row, peak: float, cores: int) -> float:
    """Return what the step's multiply-adds take at `peak` GFLOP/s a core."""
    return 2e-3 * row.multiply_adds / (peak * cores)


def judged(row: Row, peers: dict[str, Any], peak: float | None, cores: int) -> dict[str, Any]:
    """Return a row's entry in the JSON: medians, floor, efficiency, and the best peer."""
    timed = {name: peer["microseconds"] for name, peer in peers.items() if "microseconds" in peer}
    ours = timed.get("fastneuron-numba")
    others = {name: t for name, t in timed.items() if not PEERS[name].ours}
    best = min(others, key=others.__getitem__, default=None)
    floor = None if peak is None else floor_microseconds(row, peak, cores)
    return {
        "row": row.label,
        "loss": row.loss,
        "multiply_adds": row.multiply_adds,
        "floor_microseconds": floor,
        "efficiency": floor / ours if floor and ours else None,
        "goal": row.goals[cores - 1] if cores <= len(row.goals) else None,
        "best_peer": best,
        "ratio_to_best_peer": others[best] / ours if best and ours else None,
        "peers": peers,
    }


def faults(run: dict[str, Any]) -> bool:
    """Whether a result was wrong, or one of ours could not be measured."""
    rows = run.get("rows", [])
    return "skipped" in run or any(
        peer["status"] == "wrong" or (PEERS[name].ours and peer["status"] == "failed")
        for row in rows
        for name, peer in row["peers"].items()
    )
