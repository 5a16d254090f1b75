"""The optimizers' numbers of many networks ahead of their steps: rates, scalars, keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.keys import StepKeys
from fastneuron.optimizers import Optimizer
from fastneuron.rates import Rates
from fastneuron.schedules import Horizon

__all__ = ["EnsembleRates"]

# Scalars that are computed at once for single steps: 5 MiB of them.
_AHEAD = 1 << 16


class EnsembleRates:
    """The learning rates and scalars of M networks that are at the same step.

    Optimizers that are equal are asked once. Where a schedule watches a metric, each network has
    its own, and so each is asked.

    Parameters
    ----------
    optimizers : sequence of Optimizer
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.watches = any(Rates(optimizer).watches for optimizer in set(optimizers))
        names: Sequence[Any] = range(len(optimizers)) if self.watches else optimizers
        groups: dict[Any, int] = {}
        self._group = np.array([groups.setdefault(name, len(groups)) for name in names])
        firsts = [int(np.argmax(self._group == g)) for g in range(len(groups))]
        self._each = [Rates(optimizers[m]) for m in firsts]
        self._keys: Sequence[StepKeys] = ()
        self._table = np.empty((0, 0, 0))  # scalars of the steps from _first on
        self._first = 0

    def use_keys(self, keys: Sequence[StepKeys]) -> None:
        """Give each network's steps their keys, before the first of them."""
        self._keys = keys

    def observe(self, metrics: NDArray[np.float64]) -> None:
        """Take each network's metric (lower is better) that its `Plateau` schedule watches."""
        if self.watches:
            for rates, metric in zip(self._each, metrics.tolist(), strict=True):
                rates.observe(metric)
            self._table = self._table[:0]

    def rates(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        """Return the learning rates (count, M) of the steps from `first` on."""
        rates = np.stack([each.rates(first, count, horizon) for each in self._each], axis=1)
        return rates[:, self._group]

    def scalars(self, first: int, count: int, horizon: Horizon) -> NDArray[np.float64]:
        """Return the scalars (count, M, N_SCALARS) of the steps from `first` on."""
        tables = [each.scalars(first, each.rates(first, count, horizon)) for each in self._each]
        stacked = np.stack(tables, axis=1)
        if len(tables) == 1 and not self._keys:  # a view, which engines may know by its stride
            return np.broadcast_to(stacked, (count, len(self._group), stacked.shape[2]))
        scalars = stacked[:, self._group]
        for m, keys in enumerate(self._keys):
            keys.fill(scalars[:, m], first)
        return scalars

    def row(self, step: int) -> NDArray[np.float64]:
        """Return the scalars (1, M, N_SCALARS) of a single step, the training's length unknown."""
        i = step - self._first
        if not 0 <= i < len(self._table):
            i, self._first = 0, step
            ahead = max(1, min(256, _AHEAD // len(self._group)))
            self._table = self.scalars(step, ahead, Horizon())
        return self._table[i : i + 1]
