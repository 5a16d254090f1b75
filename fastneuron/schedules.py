"""Learning-rate schedules: the rate of every optimizer step, known before the step.

Steps are zero-based and counted over a trainer's life.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.descriptions import (
    checked_count,
    checked_number,
    from_description,
    to_description,
)
from fastneuron.errors import SpecError
from fastneuron.registry import Registry

__all__ = [
    "MAX_RATE",
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Horizon",
    "OneCycle",
    "Plateau",
    "PlateauState",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "as_schedule",
]

#: Largest learning rate accepted: beyond it one step overflows float32 on gradients that do not.
MAX_RATE = 1e10


@dataclass(frozen=True)
class Horizon:
    """What a trainer knows of the training ahead; None where it does not.

    Attributes
    ----------
    total_steps : int or None
        Optimizer steps from the trainer's first to its last.
    steps_per_epoch : int or None
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None


class Schedule(ABC):
    """Base of the schedules. All are frozen: what training changes is in `state`."""

    kind: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        """Return the learning rates of the steps first, ..., first + count - 1.

        Raises
        ------
        SpecError
            Where the schedule needs a length that neither it nor the horizon knows.
        """
        return self._rates(first, count, horizon)

    @abstractmethod
    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]: ...

    def state(self) -> PlateauState | None:
        """Return what a trainer feeds with metrics and multiplies the rates by; None if nothing."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return a closed JSON description that `from_json` reads back."""
        return to_description(self, self.kind)

    @staticmethod
    def from_json(description: object) -> Schedule:
        """Rebuild a schedule; anything missing, unknown or of a wrong type is a SpecError."""
        return from_description(SCHEDULES, description, SCHEDULES)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step.

    Parameters
    ----------
    learning_rate : float
        From 0 to 1e10.
    """

    learning_rate: float

    kind: ClassVar[str] = "constant"
    formula: ClassVar[str] = "learning_rate"
    source: ClassVar[str] = "Robbins & Monro 1951, with a fixed step"

    def __post_init__(self) -> None:
        _check(self, learning_rate=_rate)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        return np.full(count, self.learning_rate)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `learning_rate` down to `final`, which it then keeps.

    Parameters
    ----------
    learning_rate, final : float
        From 0 to 1e10.
    total_steps : int, optional
        Steps of the descent; left out, the length of the training.
    """

    learning_rate: float
    final: float = 0.0
    total_steps: int | None = None

    kind: ClassVar[str] = "cosine"
    formula: ClassVar[str] = (
        "final + (learning_rate - final) (1 + cos(pi min(step / total_steps, 1))) / 2"
    )
    source: ClassVar[str] = "Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5, no restart"

    def __post_init__(self) -> None:
        _check(self, learning_rate=_rate, final=_rate, total_steps=_optional_count)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        total = _total_steps(self, self.total_steps, horizon)
        return _half_cosine(self.learning_rate, self.final, _steps(first, count) / total)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A straight line up to the first rate of another schedule, which then starts.

    Parameters
    ----------
    after : float or Schedule
        What follows. It counts its steps, and the steps left, from the end of the warm-up.
    steps : int
        Length of the warm-up, at least 1. Its last step has the full rate.
    """

    after: float | Schedule
    steps: int

    kind: ClassVar[str] = "warm_up"
    formula: ClassVar[str] = (
        "after(0) (step + 1) / steps where step < steps, else after(step - steps)"
    )
    source: ClassVar[str] = "Goyal et al. 2017, arXiv:1706.02677, section 2.2"

    def __post_init__(self) -> None:
        if isinstance(self.after, WarmUp):
            raise SpecError("WarmUp: after cannot be another WarmUp")
        object.__setattr__(self, "after", as_schedule(self.after, "WarmUp: after"))
        _check(self, steps=checked_count)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        after = as_schedule(self.after)
        left = horizon.total_steps
        rest = Horizon(None if left is None else max(1, left - self.steps), horizon.steps_per_epoch)
        climbing = min(count, max(0, self.steps - first))
        line = (_steps(first, climbing) + 1) / self.steps
        start = max(0, first - self.steps)
        return np.concatenate(
            [after.rates(0, 1, rest) * line, after.rates(start, count - climbing, rest)]
        )

    def state(self) -> PlateauState | None:
        """Return the state of the schedule that follows."""
        return as_schedule(self.after).state()


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to `max_rate` and down far below the start, in half cosines, over one training.

    Parameters
    ----------
    max_rate : float
        From 0 to 1e10.
    warm_fraction : float
        Share of the training that climbs, within (0, 1).
    start_divisor, final_divisor : float
        At least 1: the start is ``max_rate / start_divisor``, the end is that by `final_divisor`.
    total_steps : int, optional
        Steps of the cycle; left out, the length of the training.
    """

    max_rate: float
    warm_fraction: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4
    total_steps: int | None = None

    kind: ClassVar[str] = "one_cycle"
    formula: ClassVar[str] = (
        "with t = min(step / (total_steps - 1), 1): half a cosine from max_rate / start_divisor to "
        "max_rate while t < warm_fraction, then to max_rate / (start_divisor final_divisor)"
    )
    source: ClassVar[str] = "Smith & Topin 2017, arXiv:1708.07120, with cosines for lines"

    def __post_init__(self) -> None:
        _check(self, max_rate=_rate, warm_fraction=_inner_fraction, start_divisor=_divisor)
        _check(self, final_divisor=_divisor, total_steps=_optional_count)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        total = _total_steps(self, self.total_steps, horizon)
        start = self.max_rate / self.start_divisor
        t = np.minimum(_steps(first, count) / max(1, total - 1), 1)
        up = _half_cosine(start, self.max_rate, t / self.warm_fraction)
        down = _half_cosine(
            self.max_rate,
            start / self.final_divisor,
            np.maximum(t - self.warm_fraction, 0) / (1 - self.warm_fraction),
        )
        return np.where(t < self.warm_fraction, up, down)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """The rate times `factor` after every `every` epochs.

    Parameters
    ----------
    learning_rate : float
        From 0 to 1e10.
    factor : float
        From 0 to 1.
    every : int
        Epochs between two drops, at least 1.
    """

    learning_rate: float
    factor: float = 0.1
    every: int = 10

    kind: ClassVar[str] = "step_decay"
    formula: ClassVar[str] = "learning_rate factor^floor(epoch / every)"
    source: ClassVar[str] = (
        "Krizhevsky, Sutskever & Hinton 2012, NIPS 25, section 5, at fixed epochs"
    )

    def __post_init__(self) -> None:
        _check(self, learning_rate=_rate, factor=_fraction, every=checked_count)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        if horizon.steps_per_epoch is None:
            raise SpecError(
                "StepDecay counts epochs and their length is not known here: train with fit() or "
                "run(), or use a schedule that counts steps"
            )
        epochs = np.arange(first, first + count) // horizon.steps_per_epoch
        return self.learning_rate * np.power(self.factor, (epochs // self.every).astype(float))


@dataclass(frozen=True)
class Plateau(Schedule):
    """The rate times `factor` whenever the watched metric has stopped falling.

    Parameters
    ----------
    learning_rate : float
        From 0 to 1e10.
    factor : float
        From 0 to 1.
    patience : int
        Observations in a row (epochs in `fit`) without improvement before a drop, at least 1.
    minimum : float
        The rate never drops below it; from 0 to 1e10.
    min_delta : float
        The metric must fall by more than this to count as improved; at least 0.
    """

    learning_rate: float
    factor: float = 0.5
    patience: int = 5
    minimum: float = 0.0
    min_delta: float = 0.0

    kind: ClassVar[str] = "plateau"
    formula: ClassVar[str] = (
        "max(minimum, learning_rate factor^k), k the times that the metric's best stood still for "
        "patience observations"
    )
    source: ClassVar[str] = "common practice; He et al. 2015, arXiv:1512.03385, section 3.4"

    def __post_init__(self) -> None:
        _check(self, learning_rate=_rate, factor=_fraction, patience=checked_count)
        _check(self, minimum=_rate, min_delta=checked_number)

    def _rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        # The undiminished rates: the trainer multiplies them by its state's scale.
        return np.full(count, self.learning_rate)

    def state(self) -> PlateauState:
        """Return a fresh state, which has observed nothing."""
        floor = min(1.0, self.minimum / self.learning_rate) if self.learning_rate > 0 else 1.0
        return PlateauState(self.factor, self.patience, floor, self.min_delta)


class PlateauState:
    """What a `Plateau` remembers while training.

    Attributes
    ----------
    scale : float
        What the rates are to be multiplied by.
    best : float
        Lowest metric so far, infinity before the first.
    waited : int
        Observations since then, or since the last drop.
    """

    def __init__(self, factor: float, patience: int, floor: float, min_delta: float) -> None:
        self._factor = factor
        self._patience = patience
        self._floor = floor
        self._min_delta = min_delta
        self.scale = 1.0
        self.best = math.inf
        self.waited = 0

    def observe(self, metric: float) -> float:
        """Take one value of the metric (lower is better, NaN never) and return the scale."""
        if metric < self.best - self._min_delta:
            self.best = float(metric)
            self.waited = 0
            return self.scale
        self.waited += 1
        if self.waited >= self._patience:
            self.scale = max(self._floor, self.scale * self._factor)
            self.waited = 0
        return self.scale


#: Every schedule class by the name that files use.
SCHEDULES: Registry[type[Schedule]] = Registry("schedule")
for _schedule in (Constant, Cosine, WarmUp, OneCycle, StepDecay, Plateau):
    SCHEDULES.register(_schedule.kind, _schedule)


def as_schedule(x: float | Schedule, name: str = "learning_rate") -> Schedule:
    """Return x if it is a schedule, else the constant schedule of that rate (from 0 to 1e10)."""
    if isinstance(x, Schedule):
        return x
    return Constant(_rate("", name, x))


def _rate(owner: str, name: str, value: object) -> float:
    return checked_number(owner, name, value, 0.0, MAX_RATE)


def _fraction(owner: str, name: str, value: object) -> float:
    return checked_number(owner, name, value, 0.0, 1.0)


def _inner_fraction(owner: str, name: str, value: object) -> float:
    return checked_number(owner, name, value, 0.0, 1.0, open_low=True, open_high=True)


def _divisor(owner: str, name: str, value: object) -> float:
    return checked_number(owner, name, value, 1.0)


def _optional_count(owner: str, name: str, value: object) -> int | None:
    return None if value is None else checked_count(owner, name, value)


def _check(schedule: Schedule, **checks: Any) -> None:
    """Replace each named field by what its check makes of it."""
    owner = type(schedule).__name__
    for name, check in checks.items():
        object.__setattr__(schedule, name, check(owner, name, getattr(schedule, name)))


def _steps(first: int, count: int) -> NDArray[np.float64]:
    return np.arange(first, first + count, dtype=np.float64)


def _half_cosine(start: float, end: float, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """From start at t = 0 to end at t = 1 and beyond, along half a period of a cosine."""
    return end + (start - end) * (1 + np.cos(math.pi * np.minimum(t, 1))) / 2


def _total_steps(schedule: Schedule, own: int | None, horizon: Horizon) -> int:
    total = own if own is not None else horizon.total_steps
    if total is None:
        name = type(schedule).__name__
        raise SpecError(
            f"{name} needs the length of the training, which is not known here: give "
            f"{name}(..., total_steps=...)"
        )
    return total
