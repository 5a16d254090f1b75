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
        arrays = self._arrays()
        for call in self._calls(arrays).values():
            call()
        return self._compared(arrays)

    def build(self, sitting: int) -> dict[str, Work]:
        """Return all contestants, with arrays of their own."""
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
        slots, f, need_dx = self._slots, self._layer.activation, self.index > 0
        optimizer, scalars = self.workload.optimizer, self.workload.scalars[0]
        x, dy, saved, weight, bias = arrays.x, arrays.dy, arrays.saved, arrays.weight, arrays.bias
        out, plain, added, sums = arrays.out, arrays.plain, arrays.added, arrays.sums
        joined, apart, alone = arrays.joined, arrays.apart, arrays.alone
        slope, moments, results = arrays.slope, arrays.moments, arrays.results
        slope_apart, slope_alone = slope[: apart.size].copy(), slope[apart.size :].copy()
        forward, backward = slots["dense_forward"], slots["dense_backward"]
        add, update = slots["bias_act_forward"], slots[optimizer.slot]

        def forward_with() -> None:
            forward(x, weight, bias, f, out)

        def forward_without() -> None:
            forward(x, weight, None, f, plain)

        def add_alone() -> None:
            add(dy, bias, "identity", added)

        def backward_with() -> None:
            results["with"] = backward(dy, x, weight, saved, f, True, need_dx)

        def backward_without() -> None:
            results["without"] = backward(dy, x, weight, saved, f, False, need_dx)

        def reduce_alone() -> None:
            np.add.reduce(dy, axis=0, out=sums)

        def update_with() -> None:
            update(joined, slope, moments[joined.size], scalars, 1.0)

        def update_without() -> None:
            update(apart, slope_apart, moments[apart.size], scalars, 1.0)

        def update_alone() -> None:
            update(alone, slope_alone, moments[alone.size], scalars, 1.0)

        return {
            f"{ADD}, with": forward_with,
            f"{ADD}, without": forward_without,
            f"{ADD}, alone": add_alone,
            f"{REDUCE}, with": backward_with,
            f"{REDUCE}, without": backward_without,
            f"{REDUCE}, alone": reduce_alone,
            f"{UPDATE}, with": update_with,
            f"{UPDATE}, without": update_without,
            f"{UPDATE}, alone": update_alone,
        }

    def _compared(self, arrays: _Arrays) -> float:
        """Compare what the calls left with the reference; return the largest share of a bound."""
        setting, optimizer = self.workload.setting, self.workload.optimizer
        p, f = Precision.of(setting.dtype), ACTIVATIONS[self._layer.activation]
        x, dy, weight = exact(self._x), exact(self._dy), exact(self._weight)
        start = np.concatenate([self._weight.reshape(-1), self._bias])
        zero = [exact(np.zeros(start.size))] * optimizer.n_moments
        scalars = self.workload.scalars[0]
        slope = exact(self._slope)
        new = updated_vector(optimizer.kind, exact(start), slope, zero, scalars, exact(1.0), p)[0]
        dz = gate(dy, exact(self._saved), f, p)
        want_dw = matmul(x.T, dz, p)
        shifted = dy.value + self._bias.astype(np.float64)
        size = self._weight.size
        wanted = {
            "f(x W + b)": (arrays.out, self._a),
            "f(x W)": (arrays.plain, activate(matmul(x, weight, p), f, p)),
            "z + b": (arrays.added, Bounded(shifted, 2 * p.u * np.abs(shifted))),
            "dW": (arrays.results["with"][1], want_dw),
            "dW without bias": (arrays.results["without"][1], want_dw),
            "db": (arrays.results["with"][2], column_sum(dz, p)),
            "the sum of dz": (arrays.sums, column_sum(dy, p)),
            "the update of W and b": (arrays.joined, new),
            "the update of W": (arrays.apart, Bounded(new.value[:size], new.bound[:size])),
            "the update of b": (arrays.alone, Bounded(new.value[size:], new.bound[size:])),
        }
        who = f"{setting.backend}, slots, layer {self.index}"
        return max(within(who, what, *pair) for what, pair in wanted.items())


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
        self.out, self.plain, self.added = (np.empty_like(dy) for _ in range(3))
        self.sums = np.empty_like(bias)
        # One run of memory, as an engine holds them; and each alone.
        self.joined = np.concatenate([weight.reshape(-1), bias])
        self.apart, self.alone = weight.reshape(-1).copy(), bias.copy()
        self.moments = {
            size: tuple(np.zeros(size, bias.dtype) for _ in range(n_moments))
            for size in (self.joined.size, self.apart.size, self.alone.size)
        }
        self.results: dict[str, Any] = {}


def _repeated(call: Callable[[], object]) -> Work:
    def work(units: int) -> None:
        for _ in range(units):
            call()

    return work
