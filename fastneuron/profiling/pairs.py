"""Measurements side by side: interleaved rounds, and ratios with the interval they may lie in.

Whoever is timed alone is timed together with the machine's mood. So contestants take turns, in
another order each round; what is compared is the ratio within a round, and what is reported is the
median of these ratios with a bootstrap interval.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "Ratio", "Series", "interleaved", "ratio", "resampled_medians"]

#: Share of repetitions whose interval holds the true ratio.
CONFIDENCE = 0.95
#: Resamples of the bootstrap: the ends of a 95 % interval then err by some 2 % of its width.
RESAMPLES = 4000
#: Rounds below which the median's bootstrap interval is too narrow: of 6 ratios all six lie on one
#: side of the truth once in 32 times.
LEAST_ROUNDS = 9
#: Seconds of one timed block: long against a clock's resolution and a call, short against moods.
BLOCK_SECONDS = 0.02


@dataclass(frozen=True)
class Series:
    """The seconds of one contestant's unit of work, round by round.

    Attributes
    ----------
    seconds : (rounds,) float64
        Of one unit, such as a step.
    first_seconds : float
        Of its very first call: compiling, and touching memory for the first time.
    units : int
        Units of a timed block.
    """

    seconds: NDArray[np.float64]
    first_seconds: float
    units: int

    @property
    def median(self) -> float:
        """Median seconds of a unit."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times, and the interval that it lies in with the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if not self.differs:
            return "no measurable difference"
        return f"{abs(self.value - 1):.1%} {'slower' if self.value > 1 else 'faster'}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures and the verdict as plain values."""
        return {
            "ratio": self.value,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved(
    contestants: Mapping[str, Callable[[int], object]],
    seconds: float,
    *,
    rounds: int | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Series]:
    """Time contestants by turns and return each one's rounds.

    Parameters
    ----------
    contestants : mapping of name to callable
        Called with a number of units, it does them. What it does may go on where it stopped.
    seconds : float
        For all of them together, first calls left out.
    rounds : int, optional
        At least 1; left out, as many as there is time for, at least `LEAST_ROUNDS`.
    seed : int
        Decides the order within each round.
    """
    first: dict[str, float] = {}
    units: dict[str, int] = {}
    for name, work in contestants.items():
        first[name] = _timed(work, 1, clock)
        units[name] = _block(work, clock, min(BLOCK_SECONDS, seconds / (4 * LEAST_ROUNDS)))
    if rounds is None:
        a_round = sum(
            max(_timed(work, units[name], clock), 1e-9) for name, work in contestants.items()
        )
        rounds = max(LEAST_ROUNDS, int(seconds / a_round))
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    shuffled = random.Random(seed)
    for _ in range(rounds):
        # In another order each time, so that nobody always follows the same neighbour.
        for name in shuffled.sample(list(contestants), len(contestants)):
            measured[name].append(_timed(contestants[name], units[name], clock) / units[name])
    return {
        name: Series(np.array(measured[name]), first[name], units[name]) for name in contestants
    }


def ratio(
    one: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio:
    """Return the median of ``one / other``, round by round, and its bootstrap interval.

    Both met the same conditions in a round: what changes from round to round drops out. The
    interval is the percentile bootstrap of the median (Efron & Tibshirani 1993, An Introduction to
    the Bootstrap, chapter 13).

    Parameters
    ----------
    one, other : (rounds,) float64
        Seconds of the same rounds.
    confidence : float
    seed : int
        Of the resampling.
    """
    shares = np.divide(one, other)
    medians = resampled_medians(shares, seed)
    rest = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, (rest, 100 - rest))
    return Ratio(float(np.median(shares)), float(low), float(high), confidence)


def resampled_medians(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Return the medians (RESAMPLES,) of samples with replacement."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(values), (RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(values[picked], axis=1)
    return medians


def _timed(work: Callable[[int], object], units: int, clock: Callable[[], float]) -> float:
    start = clock()
    work(units)
    return clock() - start


def _block(work: Callable[[int], object], clock: Callable[[], float], target: float) -> int:
    """Return how many units make a block of `target` seconds."""
    units = 1
    while True:
        seconds = max(_timed(work, units, clock), 1e-9)
        if seconds >= target / 2 or units >= 1 << 20:
            return max(1, int(units * min(target / seconds, 16)))
        units = int(units * min(16.0, max(2.0, target / seconds)))
