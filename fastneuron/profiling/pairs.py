"""Measurements side by side: interleaved rounds, and ratios with the interval they may lie in.

Whoever is timed alone is timed together with the machine's mood. So contestants take turns, in
another order each round; what is compared is the ratio within a round, and what is reported is the
median of these ratios with a bootstrap interval.

Where in memory a contestant's arrays happen to lie changes its speed too, by a percent here and
there, for as long as they lie there. No number of rounds averages that out, so `in_sittings` builds
all contestants anew several times, and what varies from sitting to sitting is in the interval.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "SITTINGS",
    "Difference",
    "Ratio",
    "Series",
    "agree",
    "difference",
    "in_sittings",
    "interleaved",
    "ratio",
    "ratio_of",
    "resampled_medians",
]

#: Share of repetitions whose interval holds the true ratio.
CONFIDENCE = 0.95
#: Resamples of the bootstrap: the ends of a 95 % interval then err by some 2 % of its width.
RESAMPLES = 4000
#: Part of the misses that the percentiles are taken at. A resampled median is one of few values, so
#: that plain percentiles end a value too early: they held the truth in 91 to 96 % of 3000
#: simulations with 9 to 60 values, these in 95 to 98 % (92 % with 11 values). Calibration as in
#: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 18.
CALIBRATION = 0.4
#: Rounds below which the median's bootstrap interval is too narrow: of 6 ratios all six lie on one
#: side of the truth once in 32 times.
LEAST_ROUNDS = 9
#: Times that contestants are built anew, and the fewest rounds of each: with 15 medians the
#: interval is from the fourth to the twelfth, and misses 4 times in 100.
SITTINGS, LEAST_ROUNDS_A_SITTING = 15, 3
#: Numbers of units within this factor, one after the other, become one.
_ALIKE = 1.25
#: Bytes that contestants are shifted by, at most.
_APART = 64 << 10
#: Seconds of rounds from which on there are fewer of them: two seconds show the same mood as ten.
LONGEST = 3.0
#: Seconds of one timed block: long against a clock's resolution and a call, short against moods.
BLOCK_SECONDS = 0.02

Work = Callable[[int], object]
Clock = Callable[[], float]


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
    sittings : int
        Times that it was built anew; the rounds are shared evenly among them, in order.
    """

    seconds: NDArray[np.float64]
    first_seconds: float
    units: int
    sittings: int = 1

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


@dataclass(frozen=True)
class Difference:
    """A difference of two times in seconds, and the interval that it lies in."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "seconds": self.value,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
        }


def interleaved(
    contestants: Mapping[str, Work],
    seconds: float,
    *,
    rounds: int | None = None,
    fewest: int | None = None,
    pause: float = 0.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
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
    fewest : int, optional
        Rounds, where so many as `rounds` would take more than `LONGEST` seconds.
    pause : float
        Seconds of rest before each timed block: threads of the one before spin on for a while.
    seed : int
        Decides the order within each round.
    """
    least = LEAST_ROUNDS if rounds is None else rounds
    return in_sittings(
        lambda _: contestants,
        seconds,
        sittings=1,
        rounds=rounds,
        least_rounds=least,
        fewest=fewest,
        pause=pause,
        seed=seed,
        clock=clock,
    )


def in_sittings(
    build: Callable[[int], Mapping[str, Work]],
    seconds: float,
    *,
    sittings: int = SITTINGS,
    rounds: int | None = None,
    least_rounds: int = LEAST_ROUNDS_A_SITTING,
    fewest: int | None = None,
    pause: float = 0.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> dict[str, Series]:
    """Time contestants by turns, all built anew several times, and return each one's rounds.

    Parameters
    ----------
    build : callable
        Given the number of a sitting, returns its contestants by name, as `interleaved` takes them,
        with arrays of their own. They come to lie elsewhere each time.
    seconds : float
        For all sittings together, first calls left out.
    sittings : int
    rounds : int, optional
        Of each sitting; left out, as many as there is time for, at least `least_rounds`.
    fewest, pause
        As `interleaved` takes them.
    seed : int
        Decides the order within each round.
    """
    shuffled = random.Random(seed)
    moved = np.random.default_rng(seed)
    first: dict[str, float] = {}
    units: dict[str, int] = {}
    measured: dict[str, list[float]] = {}
    for sitting in range(sittings):
        # Shifts what is allocated next. The contestants before still hold their memory, too.
        apart = [np.empty(size, np.uint8) for size in moved.integers(1, _APART, 8)]
        start = clock()
        contestants = build(sitting)
        del apart
        built = clock() - start
        if sitting == 0:
            # At least so many rounds, and one to warm up, fit in a half of the time.
            blocks = sittings * (least_rounds + 1) * len(contestants)
            target = min(BLOCK_SECONDS, seconds / (2 * blocks))
            for name, work in contestants.items():
                first[name] = _timed(work, 1, clock)
                units[name] = _block(work, clock, target)
                measured[name] = []
            units = _alike(units)
        # A round that is not kept brings code and arrays into the caches.
        a_round = sum(
            max(_timed(work, units[name] + (units[name] > 1), clock), 1e-9)
            for name, work in contestants.items()
        )
        if rounds is None:
            share = seconds / sittings - (built if sitting else 0.0) - a_round
            rounds = max(least_rounds, int(share / a_round))
        elif fewest is not None and sitting == 0:
            rounds = max(min(fewest, rounds), min(rounds, int(LONGEST / a_round)))
        for _ in range(rounds):
            # In another order each time, so that nobody always follows the same neighbour.
            for name in shuffled.sample(list(contestants), len(contestants)):
                if pause:
                    time.sleep(pause)
                if units[name] > 1:  # the one before has left its own in the caches
                    contestants[name](1)
                measured[name].append(_timed(contestants[name], units[name], clock) / units[name])
    return {
        name: Series(np.array(times), first[name], units[name], sittings)
        for name, times in measured.items()
    }


def ratio(
    one: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
    *,
    sittings: int = 1,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio:
    """Return the median of ``one / other``, round by round, and its bootstrap interval.

    Both met the same conditions in a round: what changes from round to round drops out. The
    interval is the percentile bootstrap of the median (Efron & Tibshirani 1993, An Introduction to
    the Bootstrap, chapter 13). With several sittings it is that of the median of their medians:
    rounds of one sitting have its places in memory in common, so they are no independent evidence.

    Parameters
    ----------
    one, other : (rounds,) float64
        Seconds of the same rounds.
    sittings : int
        That the rounds are evenly shared among, in order.
    confidence : float
    seed : int
        Of the resampling.
    """
    return Ratio(*_located(np.divide(one, other), sittings, confidence, seed), confidence)


def ratio_of(one: Series, other: Series, *, confidence: float = CONFIDENCE, seed: int = 0) -> Ratio:
    """Return `ratio` of two contestants that were timed together."""
    return ratio(
        one.seconds, other.seconds, sittings=one.sittings, confidence=confidence, seed=seed
    )


def difference(
    one: Series, other: Series | None, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Difference:
    """Return the median of ``one - other``, round by round, and its interval: see `ratio`.

    Without another, it is one's own time that is located.
    """
    apart = one.seconds if other is None else one.seconds - other.seconds
    return Difference(*_located(apart, one.sittings, confidence, seed), confidence)


def agree(one: Ratio | Difference, other: Ratio | Difference) -> bool:
    """Return whether two measurements of the same thing agree: their intervals meet."""
    return max(one.low, other.low) <= min(one.high, other.high)


def _located(
    values: NDArray[np.float64], sittings: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """Return the median, over sittings where there are several, and the ends of its interval."""
    if sittings > 1:
        values = np.median(values.reshape(sittings, -1), axis=1)
    rest = 100 * CALIBRATION * (1 - confidence) / 2
    low, high = np.percentile(resampled_medians(values, seed), (rest, 100 - rest))
    return float(np.median(values)), float(low), float(high)


def resampled_medians(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Return the medians (RESAMPLES,) of samples with replacement."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(values), (RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(values[picked], axis=1)
    return medians


def _timed(work: Work, units: int, clock: Clock) -> float:
    start = clock()
    work(units)
    return clock() - start


def _alike(units: Mapping[str, int]) -> dict[str, int]:
    """Return the same number of units for contestants that take about the same time.

    What a block's first unit pays for cold caches is shared among its units: one that has more of
    them would seem faster.
    """
    found: dict[str, int] = {}
    least = before = 0
    for name, count in sorted(units.items(), key=lambda item: item[1]):
        if count > _ALIKE * before:
            least = count
        found[name] = least
        before = count
    return {name: found[name] for name in units}


def _block(work: Work, clock: Clock, target: float) -> int:
    """Return how many units make a block of `target` seconds."""
    units = 1
    while True:
        seconds = max(_timed(work, units, clock), 1e-9)
        if seconds < 4 * target:
            # Of three, as a single one may be disturbed and blocks be too short ever after.
            seconds = min(seconds, *(max(_timed(work, units, clock), 1e-9) for _ in range(2)))
        if seconds >= target / 2 or units >= 1 << 20:
            return max(1, int(units * min(target / seconds, 16)))
        units = int(units * min(16.0, max(2.0, target / seconds)))
