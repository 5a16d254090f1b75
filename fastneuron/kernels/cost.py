"""How many threads a call should use: decided from shapes alone, and explained.

A step on a team costs three barriers (0.1 to 0.2 microseconds each) and the wait for the slowest
block; waking the helpers costs a call once. Results never depend on the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Multiply-adds of one step that are worth a thread of their own: 3 to 5 microseconds of one core,
#: ten times what the thread's barriers cost.
WORK_PER_THREAD = 250_000
#: Multiply-adds of one call that are worth waking helpers: some 40 microseconds of one core,
#: against 10 to 20 for waking them.
WORK_TO_WAKE = 4_000_000


@dataclass(frozen=True)
class ThreadChoice:
    """A thread count and the reason for it."""

    threads: int
    why: str


def choose_threads(step_work: int, steps: int, limit: int, requested: int | None) -> ThreadChoice:
    """Return the thread count for `steps` steps of `step_work` multiply-adds each.

    Parameters
    ----------
    limit : int
        Cores that may be used.
    requested : int or None
        The user's own choice, which is followed as it is.
    """
    if requested is not None:
        return ThreadChoice(requested, "as requested")
    if limit == 1:
        return ThreadChoice(1, "one usable core")
    if step_work * steps < WORK_TO_WAKE:
        return ThreadChoice(
            1, f"call of {step_work * steps:,} multiply-adds: too short to wake helpers"
        )
    threads = max(1, min(limit, step_work // WORK_PER_THREAD))
    if threads == 1:
        return ThreadChoice(1, f"step of {step_work:,} multiply-adds: less than two threads' worth")
    return ThreadChoice(threads, f"step of {step_work:,} multiply-adds on {limit} usable cores")


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

    def explain(self) -> dict[int, float]:
        """Return threads -> nanoseconds a multiply-add, as measured lately."""
        return {threads: 1e9 * pace for threads, pace in sorted(self._pace.items())}
