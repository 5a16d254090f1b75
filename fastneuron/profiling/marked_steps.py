"""Chunks of training steps with marks of time and without, by turns."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.arrays import Array
from fastneuron.errors import BackendUnavailable, FastneuronError
from fastneuron.parameters import ParameterStore
from fastneuron.rates import Rates
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

    def __init__(self, trainer: Trainer, start: ParameterStore, x: Array, y: Array) -> None:
        self.batch = min(trainer.batch_size, len(x))
        self.found: list[list[NDArray[np.int64]]] = []
        self.ticks_a_second = 0.0
        self._trainer, self._start = trainer, start
        self._x, self._y = x, y
        self._scalars = Rates(trainer.optimizer).row(0)
        self._rng = np.random.default_rng(1)
        self._engine = self._new_engine()
        layers = len(trainer.spec.layers)
        blocks = -(-self.batch // 8) + layers
        self._room = 2 * len(self._engine.tiles) + blocks * (2 * layers + 3) + 16  # marks a step
        self.steps = 1
        self._run(1, marked=False)
        begun = time.perf_counter()
        self._run(2, marked=False)
        pace = (time.perf_counter() - begun) / 2
        self.steps = int(np.clip(_CHUNK_SECONDS / pace, 2, 4096))

    def check(self) -> None:
        """Raise where a chunk with marks does not leave what one without leaves."""
        results = []
        for marked in (False, True):
            self._engine = self._new_engine()
            self._rng = np.random.default_rng(2)
            self._run(3, marked=marked)
            arrays = [pair for pair in self._engine.export_statistics() if pair is not None]
            arrays += self._engine.export()
            results.append([a.tobytes() for pair in arrays for a in pair if a is not None])
        if results[0] != results[1]:
            raise FastneuronError("a step with marks trained other parameters: a fault of ours")

    def _new_engine(self) -> Any:
        """Return an engine that begins where the network stands."""
        made = self._trainer
        engine: Any = made.backend.engine(
            made.spec, made.loss, made.optimizer, n_threads=made.n_threads, batch_size=self.batch
        )
        if not hasattr(engine, "run_marked"):
            raise BackendUnavailable(
                f"a step profile needs a compiled engine; {made.backend.name} has none that notes "
                "marks: use backend='cython' or 'numba'"
            )
        engine.load(self._start.pull())
        engine.load_statistics(self._start.pull_statistics())
        return engine

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
        scalars = np.repeat(self._scalars, steps, axis=0)
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
