"""Chunks of training steps with marks of time and without, by turns."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.arrays import Array
from fastneuron.errors import FastneuronError
from fastneuron.trainer import Trainer

__all__ = ["MarkedSteps", "span"]

#: Seconds of a chunk with marks, and the fewest and the most rounds.
_CHUNK_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.02, 9, 400


class MarkedSteps:
    """Chunks of steps of one trainer, with and without marks.

    Attributes
    ----------
    found : list of marks a thread, a round
    ticks_a_second : float
    """

    def __init__(self, trainer: Trainer, x: Array, y: Array, batch: int) -> None:
        self.batch = batch
        self.found: list[list[NDArray[np.int64]]] = []
        self.ticks_a_second = 0.0
        self._trainer = trainer
        self._x, self._y = x, y
        self._rng = np.random.default_rng(1)
        trainer._live.refresh()
        self._engine: Any = trainer._live.engine
        spec = trainer.spec
        blocks = -(-batch // 8) + len(spec.layers)
        engine: Any = self._engine
        tiles = len(engine.tiles)
        self._room = 2 * tiles + blocks * (2 * len(spec.layers) + 3) + 16  # marks a step
        self.steps = 1
        self._run(1, marked=False)
        start = time.perf_counter()
        self._run(2, marked=False)
        pace = (time.perf_counter() - start) / 2
        self.steps = int(np.clip(_CHUNK_SECONDS / pace, 2, 4096))

    def check(self) -> None:
        """Raise where a chunk with marks does not leave the parameters of one without."""
        results = []
        for marked in (False, True):
            self._engine.load(self._trainer._store.pull())
            moments = self._engine.export_moments()
            self._engine.load_moments([[(0 * w, b if b is None else 0 * b) for w, b in moment]
                                       for moment in moments])  # fmt: skip
            self._rng = np.random.default_rng(2)
            self._run(3, marked=marked)
            results.append([a.tobytes() for pair in self._engine.export() for a in pair
                            if a is not None])  # fmt: skip
        if results[0] != results[1]:
            raise FastneuronError("a step with marks trained other parameters: a fault of ours")

    def measure(self, seconds: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the seconds of a step, round by round: without marks, and with them."""
        plain, marked = [], []
        end = time.perf_counter() + seconds
        self.found = []
        for turn in range(_MOST_ROUNDS):
            pair: dict[bool, float] = {}
            for with_marks in (False, True) if turn % 2 else (True, False):
                pair[with_marks] = self._run(self.steps, marked=with_marks)
            plain.append(pair[False])
            marked.append(pair[True])
            if turn + 1 >= _LEAST_ROUNDS and time.perf_counter() > end:
                break
        return np.array(plain), np.array(marked)

    def allocations(self) -> int:
        """Return the bytes that Python held at most during a call of many steps."""
        given = self._given(self.steps)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            self._engine.run(*given)
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    def timeline(self, steps: int) -> list[NDArray[np.float64]]:
        """Return each thread's microseconds and codes over the last `steps` steps."""
        last = self.found[-1]
        ticks = self.ticks_a_second
        begin = max(float(line[max(0, len(line) - 1 - steps * (len(line) // self.steps)), 1])
                    for line in last)  # fmt: skip
        return [
            np.stack([1e6 * (line[:, 1] - begin) / ticks, line[:, 0]], axis=1)[line[:, 1] >= begin]
            for line in last
        ]

    def _given(self, steps: int) -> tuple[Any, ...]:
        n, batch = len(self._x), self.batch
        passes = -(-steps * batch // (n - n % batch))
        order = np.concatenate([self._rng.permutation(n)[: n - n % batch] for _ in range(passes)])
        rates = self._trainer._rates
        scalars = np.repeat(rates.row(0), steps, axis=0)
        bounds = np.arange(steps + 1, dtype=np.int64) * batch
        return self._x, self._y, None, order, bounds, scalars, np.empty(steps)

    def _run(self, steps: int, *, marked: bool) -> float:
        """Return the seconds of a step."""
        given = self._given(steps)
        start = time.perf_counter()
        if marked:
            outcome, found = self._engine.run_marked(*given, room=self._room * steps)
        else:
            outcome = self._engine.run(*given)
        seconds = time.perf_counter() - start
        if outcome.status:
            raise FastneuronError(
                f"the step that was to be profiled diverges ({outcome.status.name}): give data "
                "scaled to about 1, or a lower learning rate"
            )
        if marked:
            self.found.append(found)
            # The call that had the least beside its steps tells best what a tick is.
            self.ticks_a_second = max(self.ticks_a_second, span(found) / seconds)
        return seconds / steps


def span(found: list[NDArray[np.int64]]) -> float:
    """Return the ticks from a team's first mark to its last."""
    return float(max(line[-1, 1] for line in found) - min(line[0, 1] for line in found))
