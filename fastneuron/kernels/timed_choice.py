"""Which of several ways to do the same work is taken: the fastest, found once in a process.

Ways differ in the order of their sums, so a choice made anew could change results by a timing's
noise. It is made once for a key, under a lock, and kept: every engine of the process does the same
work the same way. A way that is only a little faster than one before it in the list is not taken,
so that what is named first, our own, stays where nothing speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
from threading import RLock
from typing import Any, NamedTuple

__all__ = ["CHOICES", "MARGIN", "Choice", "Choices", "Option"]

#: How much faster a way must be than one before it: timings of one kernel differ by a few percent.
MARGIN = 0.05
# Each way's time is the least of so many; ways take turns, so that a slow moment hits all of them.
_TURNS = 5


class Option(NamedTuple):
    """One way: its name, and what tells it apart from others of that name (an algorithm)."""

    name: str
    detail: Any = None


class Choice(NamedTuple):
    """What was taken, and the seconds of every way that was timed, in their order."""

    option: Option
    seconds: dict[str, float]


class Choices:
    """Choices by key."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._made: dict[Hashable, Choice] = {}

    @property
    def made(self) -> dict[Hashable, Choice]:
        """Every choice so far."""
        return dict(self._made)

    def take(
        self,
        key: Hashable,
        options: Callable[[], Sequence[Option]],
        prepare: Callable[[Option], Callable[[], float]],
    ) -> Option | None:
        """Return the option for `key`: what was chosen before, else the fastest of `options`.

        Parameters
        ----------
        key : hashable
            All that the work depends on.
        options : callable
            The ways, the preferred one first; called where the key is new.
        prepare : callable
            Gets one ready and returns what times it once, in seconds; infinite where it fails.

        Returns
        -------
        Option or None
            None where there is no way that works.
        """
        with self._lock:
            if key in self._made:
                return self._made[key].option
            found = list(options())
            if not found:
                return None
            seconds: dict[str, float] = {}
            chosen = found[0]
            if len(found) > 1:
                clocks = [prepare(option) for option in found]
                turns = [[clock() for clock in clocks] for _ in range(_TURNS)]
                least = [min(times) for times in zip(*turns, strict=True)]
                if min(least) == inf:
                    return None
                limit = min(least) * (1 + MARGIN)
                chosen = next(o for o, time in zip(found, least, strict=True) if time <= limit)
                seconds = dict(zip((o.name for o in found), least, strict=True))
            self._made[key] = Choice(chosen, seconds)
            return chosen


#: The choices of this process.
CHOICES = Choices()
