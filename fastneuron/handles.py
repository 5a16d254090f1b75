"""One layer of a network as its user holds it: what it is, and its parameters as they are now."""

from __future__ import annotations

from typing import Any

from fastneuron.arrays import Array
from fastneuron.layers import Layer as Description
from fastneuron.parameters import ParameterStore

__all__ = ["Layer"]


class Layer:
    """One layer of a network: its description, and its parameters as they are now."""

    def __init__(self, store: ParameterStore, index: int) -> None:
        self._store = store
        self._index = index

    @property
    def spec(self) -> Description:
        """The description: a Dense, BatchNorm, LayerNorm or Dropout."""
        return self._store.spec.layers[self._index]

    @property
    def weight(self) -> Array:
        """A copy of the weight; assign to change it.

        (in_features, out_features) of a dense layer, (features,) of a normalisation, and (0,) of a
        layer that has none.
        """
        return self._store.pull()[self._index][0].copy()

    @weight.setter
    def weight(self, value: Any) -> None:
        self._store.set_weight(self._index, value)

    @property
    def bias(self) -> Array | None:
        """A copy of the bias (out_features,), or None where there is none; assign to change it."""
        bias = self._store.pull()[self._index][1]
        return None if bias is None else bias.copy()

    @bias.setter
    def bias(self, value: Any) -> None:
        self._store.set_bias(self._index, value)

    @property
    def trainable(self) -> bool | str:
        """What steps change: True, False, "weight" or "bias"; assign to freeze or to thaw.

        Trainers that exist already go on with what they were made for; `fit` makes a new one. A
        `BatchNorm` that is frozen also normalises by its running statistics in training, and keeps
        them.
        """
        trainable: bool | str = self.spec.trainable
        return trainable

    @trainable.setter
    def trainable(self, value: Any) -> None:
        self._store.set_trainable(self._index, value)

    @property
    def running_mean(self) -> Array | None:
        """A copy of a `BatchNorm`'s running mean (features,), else None; assignable."""
        pair = self._store.pull_statistics()[self._index]
        return None if pair is None else pair[0].copy()

    @running_mean.setter
    def running_mean(self, value: Any) -> None:
        self._store.set_statistics(self._index, value, self.running_variance)

    @property
    def running_variance(self) -> Array | None:
        """A copy of a `BatchNorm`'s running variance (features,), else None; assignable."""
        pair = self._store.pull_statistics()[self._index]
        return None if pair is None else pair[1].copy()

    @running_variance.setter
    def running_variance(self, value: Any) -> None:
        self._store.set_statistics(self._index, self.running_mean, value)

    def __repr__(self) -> str:
        return f"Layer({self.spec!r})"
