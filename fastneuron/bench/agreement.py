"""Whether two runs tell the same of what stands beside what: the ratios within their own rounds.

A time is one machine's in one mood; a ratio of turns in the same rounds should come again.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

from fastneuron.bench.results import Key, Result, Row
from fastneuron.profiling.pairs import Ratio, agree

__all__ = ["Agreement", "Apart", "agreement"]


class Apart(NamedTuple):
    """A row whose ratio lies in two intervals that do not meet.

    Attributes
    ----------
    key : Key
    old, new : Ratio
        Times as fast as NumPy; of peers, times the time of fastneuron.
    """

    key: Key
    old: Ratio
    new: Ratio

    @property
    def gap(self) -> float:
        """How far the intervals are from each other, as a logarithm."""
        low = max(self.old.low, self.new.low)
        return log(low / min(self.old.high, self.new.high))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            **self.key._asdict(),
            "old": [self.old.value, self.old.low, self.old.high],
            "new": [self.new.value, self.new.low, self.new.high],
        }


class Agreement(NamedTuple):
    """What became of the ratios.

    Attributes
    ----------
    ratios : int
        That both runs have.
    apart : tuple of Apart
        Those whose intervals do not meet, the farthest first.
    """

    ratios: int
    apart: tuple[Apart, ...]

    @property
    def agree(self) -> int:
        """How many meet within their own intervals."""
        return self.ratios - len(self.apart)


def agreement(old: Result, new: Result) -> Agreement:
    """Return in how many rows the ratios of two runs agree, those of other libraries included.

    Peers have none where they stand beside another of ours in each run.
    """
    before = old.by_key()
    both = 0
    apart: list[Apart] = []
    for row in new.rows:
        if row.key not in before or (row.key.of_peers and old.base != new.base):
            continue
        one, other = _ratio(old, before[row.key]), _ratio(new, row)
        if one is None or other is None:
            continue
        both += 1
        if not agree(one, other):
            apart.append(Apart(row.key, one, other))
    return Agreement(both, tuple(sorted(apart, key=lambda one: -one.gap)))


def _ratio(run: Result, row: Row) -> Ratio | None:
    return run.against_ours(row) if row.key.of_peers else run.against_numpy(row)
