"""Contestants side by side: each is checked against the float64 reference, then timed by turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron.peers.environment import SETTLE
from fastneuron.peers.judging import Judge, WrongResult
from fastneuron.peers.peer import Peer, Unsupported
from fastneuron.peers.problems import Problem, Row, draw_order, problem_of
from fastneuron.peers.roster import PEERS
from fastneuron.peers.starting import started

Array = Any
Say = Callable[[str], None]

#: Rounds that a row's time is shared among, and the fewest, however little time there is.
ROUNDS, LEAST_ROUNDS = 9, 5
#: Seconds of one timed block, at most, and its steps: the order of a block stays in a cache.
LONGEST_BLOCK, MOST_STEPS = 0.1, 32768


class Entrant:
    """A peer that was started and checked on a row, with the timings it has so far."""

    def __init__(self, kind: type[Peer], problem: Problem, judge: Judge, cores: int) -> None:
        one = started(kind, problem, judge, cores)
        self.peer, self.start_seconds = one.peer, one.start_seconds
        self.step_seconds = one.step_seconds  # a guess, for the length of a block
        self.loss_error, self.way_error = one.loss_error, one.way_error
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
