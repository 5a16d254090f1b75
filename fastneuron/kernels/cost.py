"""How many threads a call should use: the fastest by prediction, corrected by what was measured.

Results never depend on the answer. A prediction is a matter of shapes alone; the calls themselves
then show whether the team keeps what it promises here and now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.speeds import TYPICAL, Speeds, copy_seconds
from fastneuron.plans import duration

#: Multiply-adds of one call below which no prediction is asked for: 8 microseconds at the peak of a
#: fast core, of which helpers can save less than it costs to wake them.
WORK_TO_WAKE = 1_000_000
#: A team must be predicted to take at most this share of one thread's time: predictions are off by
#: a tenth, and a team keeps cores busy that others may want.
WORTH = 0.9
#: Predictions within this factor are equal: the fewer threads win.
TIE = 1.05
#: Choices that are kept: batch sizes and chunk lengths repeat.
_KEPT = 64


@dataclass(frozen=True)
class ThreadChoice:
    """A thread count and the reason for it."""

    threads: int
    why: str


def thread_counts(limit: int) -> list[int]:
    """Return the counts worth a prediction: all up to 16, then steps of an eighth, and `limit`."""
    counts = [1]
    while counts[-1] < limit:
        counts.append(min(limit, counts[-1] + max(1, counts[-1] // 8)))
    return counts


def choose_threads(
    step_seconds: Mapping[int, float], steps: int, wake: float, requested: int | None
) -> ThreadChoice:
    """Return the thread count for a call of `steps` steps.

    Parameters
    ----------
    step_seconds : mapping of int to float
        Predicted seconds of a step for thread counts, 1 among them.
    wake : float
        Seconds until a team works.
    requested : int or None
        The user's own choice, which is followed as it is.
    """
    if requested is not None:
        return ThreadChoice(requested, "as requested")
    if len(step_seconds) == 1:
        return ThreadChoice(1, "one usable core")
    alone = step_seconds[1]
    calls = {
        threads: steps * seconds + (wake if threads > 1 else 0.0)
        for threads, seconds in step_seconds.items()
    }
    enough = TIE * min(calls.values())
    threads = min(threads for threads, seconds in calls.items() if seconds <= enough)
    if threads > 1 and calls[threads] <= WORTH * calls[1]:
        team = step_seconds[threads]
        return ThreadChoice(
            threads, f"predicted {duration(team)} a step, {duration(alone)} on one thread"
        )
    best = min((n for n in step_seconds if n > 1), key=step_seconds.__getitem__)
    team = step_seconds[best]
    if team <= WORTH * alone:
        return ThreadChoice(1, f"predicted {duration(calls[1])} a call: too short to wake helpers")
    return ThreadChoice(
        1, f"predicted {duration(alone)} a step, {duration(team)} on {best} threads"
    )


#: Calls between two trials of the thread count that is not in use: from the first to at most the
#: second, doubled by every trial that changes nothing (at worst 1 call in 256 runs slower).
FIRST_TRIAL, LAST_TRIAL = 4, 256
#: A pace this many times the best seen says that the machine has changed: try again soon.
CHANGED = 1.5


class Pace:
    """Learns from the calls themselves whether a team beats one thread here and now.

    Shapes cannot tell that another process keeps a core busy, or that the scheduler leaves two
    threads on one core; then a team is several times slower than one thread. Results are the same
    bits either way, so the engine is free to take what is faster.
    """

    def __init__(self) -> None:
        self._pace: dict[int, float] = {}  # threads -> seconds a multiply-add, lately
        self._best: dict[int, float] = {}  # threads -> the lowest seen
        self._interval = FIRST_TRIAL
        self._left = FIRST_TRIAL  # calls until the next trial

    def pick(self, planned: int) -> int:
        """Return the thread count for the next call: `planned`, or 1 where that goes faster."""
        if planned == 1 or planned not in self._pace:
            return planned
        if 1 not in self._pace:
            return 1
        ahead, behind = sorted((1, planned), key=self._pace.__getitem__)
        self._left -= 1
        if self._left > 0:
            return ahead
        self._left = self._interval = min(2 * self._interval, LAST_TRIAL)
        return behind

    def record(self, planned: int, threads: int, work: int, seconds: float) -> None:
        """Note what a call of `work` multiply-adds on `threads` threads took."""
        if planned == 1 or work == 0:
            return
        now = seconds / work
        leader = self._leader(planned)
        # A call can be disturbed, it cannot be lucky: a faster one counts whole, a slower one half.
        old = self._pace.get(threads, now)
        self._pace[threads] = now if now < old else 0.5 * (now + old)
        best = self._best[threads] = min(now, self._best.get(threads, now))
        if self._leader(planned) != leader or (threads == leader and now > CHANGED * best):
            self._interval = FIRST_TRIAL
            # A team that fell behind at one call gets the next one to show that it was chance.
            fell = leader == planned and self._leader(planned) == 1
            self._left = 1 if fell else min(self._left, FIRST_TRIAL)

    def _leader(self, planned: int) -> int:
        """Return the faster of the two counts; `planned` until both are known."""
        one = self._pace.get(1, float("inf"))
        return 1 if one < self._pace.get(planned, 0.0) else planned

    def outrun(self, planned: int) -> bool:
        """Return whether one thread has been faster than the planned team lately."""
        return planned > 1 and self._leader(planned) == 1


class Clock:
    """What steps took so far, for each thread count; steps on another number of rows begin anew."""

    def __init__(self) -> None:
        self.rows = 0
        self._steps: dict[int, int] = {}
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, threads: int, steps: int, seconds: float) -> None:
        """Note a call of `steps` steps on `rows` rows."""
        if rows != self.rows:
            self.rows = rows
            self._steps.clear()
            self._seconds.clear()
        self._steps[threads] = self._steps.get(threads, 0) + steps
        self._seconds[threads] = self._seconds.get(threads, 0.0) + seconds

    def a_step(self) -> dict[int, float]:
        """Return threads -> seconds of a step, the mean of all that were counted."""
        return {n: self._seconds[n] / steps for n, steps in sorted(self._steps.items())}


class Course:
    """How one worker of an engine is run: the predicted choice, the pace and the clock.

    Parameters
    ----------
    limit : int
        Cores that may be used.
    requested : int or None
        The user's own thread count.

    Attributes
    ----------
    warm : bool
        Whether a call was made: the first may compile, and is not timed.
    """

    def __init__(self, limit: int, requested: int | None) -> None:
        self.limit, self.requested = limit, requested
        self.pace, self.clock = Pace(), Clock()
        self.warm = False
        self._choices: dict[tuple[int, int], ThreadChoice] = {}

    def choice(self, rows: int, steps: int, predict: Callable[[int, int], float]) -> ThreadChoice:
        """Return the thread count for `steps` steps on `rows` rows, and why.

        ``predict(rows, threads)`` returns the seconds of a step; it is asked once.
        """
        known = self._choices.get((rows, steps))
        if known is not None:
            return known
        seconds = {1: 0.0}
        if self.requested is None and self.limit > 1:
            seconds = {n: predict(rows, n) for n in thread_counts(self.limit)}
        choice = choose_threads(seconds, steps, TYPICAL.wake, self.requested)
        if len(self._choices) >= _KEPT:
            self._choices.clear()
        self._choices[rows, steps] = choice
        return choice

    def forget(self) -> None:
        """Choose anew: the speeds that predictions rest on have been measured."""
        self._choices.clear()


#: Rows and calls of the forward pass that a core's speed is read off: 2 milliseconds.
PROBE_ROWS, _PROBES = 256, 20


def measured_speeds(forward: Callable[[], object], model: StepModel) -> Speeds:
    """Measure this machine: `forward` does what `model` predicts for `PROBE_ROWS` rows.

    The fastest of some calls counts: a call can be disturbed, it cannot be lucky.
    """
    byte = copy_seconds()
    forward()  # may compile
    best = float("inf")
    for _ in range(_PROBES):
        start = time.perf_counter()
        forward()
        best = min(best, time.perf_counter() - start)
    slots = model.inference(PROBE_ROWS, 1, replace(TYPICAL, slot=1.0, byte=0.0))
    moved = model.inference(PROBE_ROWS, 1, replace(TYPICAL, slot=0.0, byte=byte))
    # Where copies were disturbed, the rest could come out as nothing.
    slot = max(best - moved, 0.5 * best) / slots
    return replace(TYPICAL, slot=slot, byte=byte, measured=True)
