"""Two threads, one of whose cores another process keeps busy: how much slower than alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from figures import Figure, at_most, paired_ratio, report, unmeasured
from pinned import usable_cores
from racing import Entrant, Say, failure

from fastneuron.peers.engines import FastneuronNumba
from fastneuron.peers.judging import Judge
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Row, draw_order, problem_of

ROW = Row.parse("784-512-512-10 b256 adam")
GOAL = 1.7
#: Seconds of a block: many of a scheduler's slices, and of the engine's calls, which learn.
BLOCK, LEAST_ROUNDS, MOST_ROUNDS = 0.4, 3, 15
#: Seconds from the moment that the neighbour wakes or stops until a block is timed.
SETTLE = 0.2


class TwoThreads(FastneuronNumba):
    """Two threads, whatever the engine would have chosen."""

    name = "two threads"
    n_threads = 2


class OwnChoice(FastneuronNumba):
    """As many threads as the engine chooses, now and later."""

    name = "own choice"


class Spinner:
    """A process on one core that does nothing, all of the time that it is let."""

    def __init__(self, core: int) -> None:
        # preexec_fn is safe: whoever makes a spinner has no other Python thread at work.
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", "while True: pass"],
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
        self.stop()

    def go(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self.process.kill()  # reaches a stopped process too
        self.process.wait()


@contextmanager
def spinners(cores: Sequence[int]) -> Iterator[dict[str, Spinner]]:
    """Hold a stopped spinner for each core."""
    made: dict[str, Spinner] = {}
    try:
        for core in cores:
            made[f"core {core} busy"] = Spinner(core)
        yield made
    finally:
        for spinner in made.values():
            spinner.end()


def measure_kind(
    kind: type[Peer], row: Row, cores: Sequence[int], seconds: float, say: Say
) -> dict[str, dict[str, Any]]:
    """Return a peer's times alone and beside a neighbour on each core, by turns."""
    rng = np.random.default_rng(1)
    entrant = Entrant(kind, problem_of(row), Judge(row, rng), len(cores))
    steps = max(1, int(min(BLOCK, seconds) / entrant.step_seconds))
    seconds_a_round = (1 + len(cores)) * (1.5 * min(BLOCK, seconds) + SETTLE)
    rounds = int(np.clip(seconds / seconds_a_round, LEAST_ROUNDS, MOST_ROUNDS))
    shuffled = random.Random(2)
    with spinners(cores) as beside:
        states = ["alone", *beside]
        times: dict[str, list[float]] = {state: [] for state in states}
        for turn in range(rounds):
            say(f"neighbour, {kind.name}: round {turn + 1} of {rounds}")
            for state in shuffled.sample(states, len(states)):
                if state in beside:
                    beside[state].go()
                order = draw_order(rng, row.data_rows, row.batch, steps + -(-steps // 2))
                before, order = order[steps:], order[:steps]
                time.sleep(SETTLE)
                entrant.peer.advance(before)
                entrant.seconds = []
                entrant.time(order[:1], order, 0.0)
                times[state].append(1e6 * entrant.seconds[0])
                if state in beside:
                    beside[state].stop()
    return {
        state: {"microseconds": float(np.median(each)), "each_round": each}
        for state, each in times.items()
    }


def neighbours(
    seconds: float,
    say: Say,
    row: Row = ROW,
    kinds: Sequence[type[Peer]] = (TwoThreads, OwnChoice),
    bound: float | None = GOAL,
) -> dict[str, Any]:
    """Compare a run beside a busy process, on either core, with the same run alone."""
    cores, goal = usable_cores(), at_most(bound)
    if cores is None:
        reason = "a process cannot be pinned to a core here"
        return report([Figure(row.label, None, "", goal, "missing", reason)])
    figures = []
    for kind in kinds:
        try:
            results = measure_kind(kind, row, cores, seconds, say)
        except Exception as error:
            figures.append(unmeasured(f"{row.label}, {kind.name}", failure(error), goal))
            continue
        for state in list(results)[1:]:
            ratio, quartiles = paired_ratio(results[state], results["alone"])
            what = f"{row.label}, {kind.name}: {state} over alone"
            detail = {"ratio_quartiles": quartiles, **results}
            figures.append(Figure(what, ratio, "", goal, detail=detail))
    return report(figures)
