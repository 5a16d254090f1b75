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
