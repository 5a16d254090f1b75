"""An optimizer's numbers ahead of its steps: learning rates, and the scalars that engines take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.keys import StepKeys
from fastneuron.optimizers import Optimizer
from fastneuron.schedules import Horizon

# Steps whose scalars are computed at once for single steps: one costs 10 us, 256 cost 20 us.
_AHEAD = 256


class Rates:
    """The learning rates of one training, and what a plateau schedule remembers of it.

    Parameters
    ----------
    optimizer : Optimizer
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._keys: StepKeys | None = None
        self._schedule = optimizer.schedule
        self._plateau = self._schedule.state()
        self._table: list[NDArray[np.float64]] = []  # scalars of the steps from _first on
        self._first = 0

    @property
    def watches(self) -> bool:
        """Whether the schedule wants a metric at every epoch's end."""
        return self._plateau is not None

    def use_keys(self, keys: StepKeys) -> None:
        """Give each step from now on its key."""
        self._keys, self._table = keys, []

    def observe(self, metric: float) -> None:
        """Take the metric (lower is better) that a `Plateau` schedule watches."""
        if self._plateau is not None:
            self._plateau.observe(metric)
            self._table = []

    def rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        """Return the learning rates (count,) of the steps from `first` on."""
        rates = self._schedule.rates(first, count, horizon)
        return rates if self._plateau is None else rates * self._plateau.scale

    def scalars(self, first: int, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scalars (count, N_SCALARS) of the steps from `first` on."""
        table = self._optimizer.scalars(first, rates)
        if self._keys is not None:
            self._keys.fill(table, first)
        return table

    def row(self, step: int) -> NDArray[np.float64]:
        """Return the scalars (1, N_SCALARS) of a single step, its training's length unknown."""
        i = step - self._first
        if not 0 <= i < len(self._table):
            i = 0
            table = self.scalars(step, self.rates(step, _AHEAD, Horizon()))
            self._table = list(table[:, None])
            self._first = step
        return self._table[i]

    def rate(self, step: int) -> float:
        """Return the learning rate of a single step, its training's length unknown."""
        return float(self.rates(step, 1, Horizon())[0])
