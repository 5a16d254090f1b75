"""What a bias does in one layer, part by part: the forward add, the backward reduction, the update.

Fused, a part is what its slot takes with the bias over what it takes without. In a pass of its own
it is that pass: ``z + b`` read and written, ``db`` summed over the rows, ``b`` updated by a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array
from fastneuron.profiling.pairs import Work
from fastneuron.profiling.workload import Workload, within
from fastneuron.testing import (
    Bounded,
    Precision,
    activate,
    column_sum,
    dense,
    exact,
    gate,
    matmul,
    updated_vector,
)

__all__ = ["ADD", "PARTS", "REDUCE", "UPDATE", "LayerParts", "Pair"]

ADD, REDUCE, UPDATE = "forward add", "backward reduction", "update"
PARTS = (ADD, REDUCE, UPDATE)


class Pair(NamedTuple):
    """Names of the contestants of a part: what it takes is the first's time less the second's."""

    part: str
    fused: bool
    with_it: str
    without: str | None


class LayerParts:
    """The contestants of one layer, alone.

    Attributes
    ----------
    pairs : tuple of Pair
    """

    def __init__(self, workload: Workload, index: int) -> None:
        setting = workload.setting
        self.workload, self.index = workload, index
        self._slots = backends.get(setting.backend, setting.dtype).slots
        self._layer = workload.spec.layers[index]
        rng = np.random.default_rng(index)
        rows, dtype = setting.batch_size, setting.dtype
        self._x = rng.normal(size=(rows, self._layer.in_features)).astype(dtype)
        self._dy = rng.normal(size=(rows, self._layer.out_features)).astype(dtype)
        self._weight, self._bias = (np.array(p) for p in workload.parameters[index])
        self._slope = rng.normal(size=self._weight.size + self._bias.size).astype(dtype)
        p, f = Precision.of(dtype), ACTIVATIONS[self._layer.activation]
        self._z = dense(exact(self._x), exact(self._weight), exact(self._bias), p)
        self._a = activate(self._z, f, p)
        self._saved = (self._z if f.saves == "z" else self._a).value.astype(dtype)
        self.pairs = tuple(
            pair
            for part in PARTS
            for pair in (
                Pair(part, True, f"{part}, with", f"{part}, without"),
                Pair(part, False, f"{part}, alone", None),
            )
        )

    def check(self) -> float:
        """Compare what every contestant computes with the reference; raise where wrong."""
        worst = 0.0
        for name, wanted in self._wanted().items():
            arrays = self._arrays()
            self._calls(arrays)[name]()
            who = f"{self.workload.setting.backend}, slots, layer {self.index}, {name}"
            worst = max(
                worst, *(within(who, what, getattr(arrays, what), want) for what, want in wanted)
            )
        return worst

    def build(self, sitting: int) -> dict[str, Work]:
        """Return all contestants, on arrays that they have in common: none has the better place."""
        return {name: _repeated(call) for name, call in self._calls(self._arrays()).items()}

    def _arrays(self) -> _Arrays:
        return _Arrays(
            self._x.copy(),
            self._dy.copy(),
            self._saved.copy(),
            self._weight.copy(),
            self._bias.copy(),
            self._slope.copy(),
            self.workload.optimizer.n_moments,
        )

    def _calls(self, arrays: _Arrays) -> dict[str, Callable[[], object]]:
        f, need_dx, a = self._layer.activation, self.index > 0, arrays
        optimizer, scalars = self.workload.optimizer, self.workload.scalars[0]
        forward, backward = self._slots["dense_forward"], self._slots["dense_backward"]
        add, update = self._slots["bias_act_forward"], self._slots[optimizer.slot]
        size = a.weight.size

        def cut(at: slice) -> tuple[Any, ...]:
            return a.parameters[at], a.slope[at], tuple(moment[at] for moment in a.moments)

        whole, weights, biases = cut(slice(None)), cut(slice(size)), cut(slice(size, None))

        def backward_with() -> None:
            _, a.dw, a.db = backward(a.dy, a.x, a.weight, a.saved, f, True, need_dx)

        def backward_without() -> None:
            _, a.dw, _ = backward(a.dy, a.x, a.weight, a.saved, f, False, need_dx)

        return {
            f"{ADD}, with": lambda: forward(a.x, a.weight, a.bias, f, a.out),
            f"{ADD}, without": lambda: forward(a.x, a.weight, None, f, a.out),
            f"{ADD}, alone": lambda: add(a.dy, a.bias, "identity", a.out),
            f"{REDUCE}, with": backward_with,
            f"{REDUCE}, without": backward_without,
            f"{REDUCE}, alone": lambda: np.add.reduce(a.dy, axis=0, out=a.db),
            f"{UPDATE}, with": lambda: update(*whole, scalars, 1.0),
            f"{UPDATE}, without": lambda: update(*weights, scalars, 1.0),
            f"{UPDATE}, alone": lambda: update(*biases, scalars, 1.0),
        }

    def _wanted(self) -> dict[str, list[tuple[str, Bounded]]]:
        """Return what each call must leave in which array."""
        setting, optimizer = self.workload.setting, self.workload.optimizer
        p, f = Precision.of(setting.dtype), ACTIVATIONS[self._layer.activation]
        x, dy, weight = exact(self._x), exact(self._dy), exact(self._weight)
        dz = gate(dy, exact(self._saved), f, p)
        dw = "dw", matmul(x.T, dz, p)
        shifted = dy.value + self._bias.astype(np.float64)
        start = np.concatenate([self._weight.reshape(-1), self._bias])
        new = updated_vector(
            optimizer.kind,
            exact(start),
            exact(self._slope),
            [exact(np.zeros(start.size))] * optimizer.n_moments,
            self.workload.scalars[0],
            exact(1.0),
            p,
        )[0]

        def only(at: slice) -> list[tuple[str, Bounded]]:
            """Outside of `at` nothing may change."""
            value, bound = start.astype(np.float64), np.zeros(start.size)
            value[at], bound[at] = new.value[at], new.bound[at]
            return [("parameters", Bounded(value, bound))]

        size = weight.value.size
        return {
            f"{ADD}, with": [("out", self._a)],
            f"{ADD}, without": [("out", activate(matmul(x, weight, p), f, p))],
            f"{ADD}, alone": [("out", Bounded(shifted, 2 * p.u * np.abs(shifted)))],
            f"{REDUCE}, with": [dw, ("db", column_sum(dz, p))],
            f"{REDUCE}, without": [dw],
            f"{REDUCE}, alone": [("db", column_sum(dy, p))],
            f"{UPDATE}, with": only(slice(None)),
            f"{UPDATE}, without": only(slice(size)),
            f"{UPDATE}, alone": only(slice(size, None)),
        }


class _Arrays:
    """What the contestants of a layer read and write."""

    def __init__(
        self,
        x: Array,
        dy: Array,
        saved: Array,
        weight: Array,
        bias: Array,
        slope: Array,
        n_moments: int,
    ) -> None:
        self.x, self.dy, self.saved, self.slope = x, dy, saved, slope
        self.weight, self.bias = weight, bias
        self.out, self.dw, self.db = np.empty_like(dy), weight, np.empty_like(bias)
        # W and b in one run of memory, as an engine holds them.
        self.parameters = np.concatenate([weight.reshape(-1), bias])
        self.moments = [np.zeros_like(self.parameters) for _ in range(n_moments)]


def _repeated(call: Callable[[], object]) -> Work:
    def work(units: int) -> None:
        for _ in range(units):
            call()

    return work
