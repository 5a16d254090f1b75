"""Where arrays for many networks come in: shared by all of them, or each network's own.

What is a network's own has the networks for its first axis. An error in it names the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron.arrays import Array, as_array, as_rows, as_targets, as_weights
from fastneuron.errors import DataError
from fastneuron.spec import NetworkSpec

__all__ = ["EnsembleIntake"]


class EnsembleIntake:
    """Checks arrays for M networks of one architecture.

    Parameters
    ----------
    spec : NetworkSpec
    models : int
    """

    def __init__(self, spec: NetworkSpec, models: int) -> None:
        self._models = models
        self._features, self._outputs = spec.in_features, spec.out_features
        self._dtype = np.dtype(spec.dtype)

    def rows(self, x: Any, name: str) -> Array:
        """Return rows (n, in_features) for all networks, or (M, n, in_features).

        Raises
        ------
        DataError
            As `arrays.as_rows`, or where the first axis is not that of the networks.
        """
        array = as_array(x, name)
        features = self._features
        if array.ndim != 3:
            return as_rows(array, name, self._dtype, features)
        if len(array) != self._models:
            raise DataError(
                f"{name} has shape {array.shape}: of three axes the first is that of the networks, "
                f"of which there are {self._models}: give ({self._models}, n, {features}), or "
                f"(n, {features}) for all of them"
            )
        if array.shape[2] != features or not array.size:
            as_rows(array[0], name, self._dtype, features)  # says what is wrong with the shape
        return self._own(array, lambda rows: as_rows(rows, name, self._dtype, features))

    def targets(self, y: Any, kind: str, n: int) -> Array:
        """Return the targets of n rows, (n, out_features) or class numbers (n,), or each its own.

        Raises
        ------
        DataError
            As `arrays.as_targets`; where the shape could be meant either way, too.
        """
        array = as_array(y, "y")

        def check(of: Array) -> Array:
            return as_targets(of, kind, len(of), self._outputs, self._dtype)

        if not self._is_own(array, kind, n):
            return as_targets(array, kind, n, self._outputs, self._dtype)
        if array.shape[:2] != (self._models, n):
            raise DataError(
                f"y has shape {array.shape}, but {self._models} networks with targets of their own "
                f"for {n} rows take ({self._models}, {n}, {self._outputs})"
            )
        numbers = kind == "classes" and array.shape[2:] == (1,) and self._outputs > 1
        return self._own(array[..., 0] if numbers else array, check)

    def weights(self, weight: Any, n: int) -> Array | None:
        """Return sample weights (n,) or (M, n), each network's scaled to mean 1.

        Raises
        ------
        DataError
            As `arrays.as_weights`.
        """
        if weight is None:
            return None
        array = as_array(weight, "sample_weight")
        if array.ndim != 2:
            return as_weights(array, n, self._dtype)
        if array.shape != (self._models, n):
            raise DataError(
                f"sample_weight has shape {array.shape}, but {self._models} networks with weights "
                f"of their own for {n} rows take ({self._models}, {n}), or ({n},) for all of them"
            )
        return np.stack(self._by_network(array, lambda own: as_weights(own, n, self._dtype)))

    def _is_own(self, array: Array, kind: str, n: int) -> bool:
        """Return whether targets are each network's own."""
        if array.ndim != 2:
            return array.ndim == 3
        shared, own = (n, self._outputs), (self._models, n)
        if array.shape != own or (kind != "classes" and self._outputs > 1):
            return False
        if kind == "classes" and shared == own:
            raise DataError(
                f"y of shape {own} may be class numbers of each network or probabilities for all "
                f"of them: give (M, n, 1) for the former, (M, n, {self._outputs}) for the latter"
            )
        return shared != own

    def _own(self, array: Array, check: Callable[[Array], Array]) -> Array:
        """Return what each network's own array becomes, checked at once, or one by one to accuse.

        The first two axes stay.
        """
        models, n = array.shape[:2]
        try:
            found = check(array.reshape(models * n, *array.shape[2:]))
        except DataError:
            self._by_network(array, check)
            raise
        return found.reshape(models, n, *found.shape[1:])

    def _by_network(self, array: Array, check: Callable[[Array], Array]) -> list[Array]:
        found = []
        for m, own in enumerate(array):
            try:
                found.append(check(own))
            except DataError as error:
                raise DataError(f"network {m}: {error}") from None
        return found
