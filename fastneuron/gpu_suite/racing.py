"""Contestants timed by turns, each by the clock that sees its work on the card."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastneuron.gpu_suite.running import Budget

__all__ = ["Racer", "Times", "by_host", "by_numba_events", "by_torch_events", "race"]

#: Calls of the work, and the seconds that they took on the card.
Timer = Callable[[Callable[[int], object], int], float]

#: Seconds of a timed block: long against a launch and the wait at its end.
BLOCK_SECONDS = 0.02


def by_host(work: Callable[[int], object], units: int) -> float:
    """Time work that ends only when the card has done it, by the host's clock."""
    start = time.perf_counter()
    work(units)
    return time.perf_counter() - start


def by_torch_events(torch: Any) -> Timer:
    """Return a timer by PyTorch's events, on the stream that it works on."""

    def timer(work: Callable[[int], object], units: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(units)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return timer


def by_numba_events(cuda: Any) -> Timer:
    """Return a timer by numba's events, on the default stream, which waits for all others."""

    def timer(work: Callable[[int], object], units: int) -> float:
        start, end = (cuda.event(timing=True) for _ in range(2))
        start.record()
        work(units)
        end.record()
        end.synchronize()
        return float(cuda.event_elapsed_time(start, end)) / 1e3

    return timer


@dataclass(frozen=True)
class Racer:
    """A contestant.

    Attributes
    ----------
    work : callable
        Given a number of units, it does them; all of it is done when it returns.
    timer : callable
    clock : str
        What the timer goes by, in words.
    """

    work: Callable[[int], object]
    timer: Timer = by_host
    clock: str = "host clock"


@dataclass(frozen=True)
class Times:
    """Seconds of a unit, round by round, and of the very first call."""

    first_seconds: float
    clock: str
    seconds: list[float] = field(default_factory=list)


def race(
    racers: Mapping[str, Racer],
    budget: Budget,
    rounds: tuple[int, int],
    *,
    seed: int = 0,
    block: float = BLOCK_SECONDS,
) -> dict[str, Times]:
    """Time all by turns until the budget ends, at least and at most so many rounds.

    In each round each does a block, in an order that is shuffled anew: what changes on the machine
    from round to round drops out of their ratios.
    """
    times: dict[str, Times] = {}
    units: dict[str, int] = {}
    for name, racer in racers.items():
        times[name] = Times(by_host(racer.work, 1), racer.clock)
        by_host(racer.work, 1)  # an engine may record a graph at its second call
        units[name] = max(1, round(block / max(racer.timer(racer.work, 1), 1e-9)))
    shuffled = random.Random(seed)
    for done in range(rounds[1]):
        if done >= rounds[0] and not budget.left:
            break
        for name in shuffled.sample(list(racers), len(racers)):
            racer = racers[name]
            times[name].seconds.append(racer.timer(racer.work, units[name]) / units[name])
    return times
