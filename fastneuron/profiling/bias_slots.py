"""The same step composed of a backend's slots, so that only where the bias is done differs.

Fused, the sums of the forward product start from b, f comes over them while they are in cache, and
the backward product gates and reduces on its way. In passes of their own, the product comes first,
``f(z + b)`` and ``da f'`` are passes over the batch, and ``db`` is one more. Buffers are made once,
as a careful user of such kernels would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array
from fastneuron.kernels.contract import Parameters
from fastneuron.optimizers import L2, SHRINK
from fastneuron.profiling.pairs import Work
from fastneuron.profiling.workload import Check, Workload

__all__ = [
    "FROZEN_FUSED",
    "FUSED_BIAS",
    "FUSED_NONE",
    "ONES_APPENDED",
    "SEPARATE_BIAS",
    "SEPARATE_NONE",
    "SlotSteps",
]

FUSED_BIAS, FUSED_NONE = "fused bias", "fused without"
SEPARATE_BIAS, SEPARATE_NONE = "separate bias", "separate without"
FROZEN_FUSED, ONES_APPENDED = "frozen bias", "ones column"


class SlotSteps:
    """The contestants over one backend's slots, which run on one thread (NumPy's: the BLAS's)."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        setting = workload.setting
        self._slots = backends.get(setting.backend, setting.dtype).slots
        self._make: dict[str, Callable[[], _Step]] = {
            FUSED_BIAS: lambda: _Fused(self._slots, workload, workload.with_bias),
            FUSED_NONE: lambda: _Fused(self._slots, workload, workload.without_bias),
            SEPARATE_BIAS: lambda: _Separate(self._slots, workload, workload.with_bias),
            SEPARATE_NONE: lambda: _Separate(self._slots, workload, workload.without_bias),
            FROZEN_FUSED: lambda: _Fused(self._slots, workload, workload.frozen),
            ONES_APPENDED: lambda: _Ones(self._slots, workload, workload.with_bias),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Who is timed."""
        return tuple(self._make)

    def check(self) -> float:
        """Compare everyone's gradients and first step with the reference; raise where wrong."""
        worst = 0.0
        for name, make in self._make.items():
            who = f"{self.workload.setting.backend}, slots, {name}"
            step = make()
            loss = step.compute()
            worst = max(worst, step.check.gradients(who, loss, step.gradients()))
            step.apply()
            worst = max(worst, step.check.step(who, step.parameters()))
        return worst

    def build(self, sitting: int) -> dict[str, Work]:
        """Return all contestants, with arrays of their own."""
        return {name: make().work for name, make in self._make.items()}


class _Step:
    """A network's arrays, and one optimizer step on one batch; parts say how a layer is done."""

    def __init__(self, slots: Any, workload: Workload, check: Check) -> None:
        self.check, self.slots = check, slots
        setting = workload.setting
        x, self.y = workload.batch
        dtype, rows = setting.dtype, setting.batch_size
        self.names = [layer.activation for layer in check.spec.layers]
        self.saves_z = [ACTIVATIONS[name].saves == "z" for name in self.names]
        self.frozen = [not layer.trains_bias for layer in check.spec.layers]
        self.weights, self.biases = self._own(check.start)
        self.xs = [x.copy(), *(np.empty((rows, n), dtype) for n in setting.sizes[1:])]
        self.saved = [
            np.empty_like(a) if z else a for a, z in zip(self.xs[1:], self.saves_z, strict=True)
        ]
        self.gradients_of: list[tuple[Array, Array | None]] = [(x, None)] * len(self.names)
        count = workload.optimizer.n_moments
        self.moments = [
            [
                None if p is None else tuple(np.zeros(p.size, p.dtype) for _ in range(count))
                for p in pair
            ]
            for pair in zip(self.weights, self.biases, strict=True)
        ]
        self.loss_slot, self.update = slots[workload.loss.slot], slots[workload.optimizer.slot]
        self.scalars = workload.scalars[0].copy()
        self.bias_scalars = self.scalars.copy()
        self.bias_scalars[[L2, SHRINK]] = 0

    def _own(self, start: Parameters) -> tuple[list[Array], list[Array | None]]:
        return [w.copy() for w, _ in start], [None if b is None else b.copy() for _, b in start]

    def work(self, units: int) -> None:
        for _ in range(units):
            self.compute()
            self.apply()

    def compute(self) -> float:
        """Do everything but the update; return the batch's loss."""
        for i in range(len(self.names)):
            self.forward(i)
        rows, da = self.loss_slot(self.xs[-1], self.y, None)
        for i in reversed(range(len(self.names))):
            da = self.backward(i, da)
        return float(np.mean(rows, dtype=np.float64))

    def forward(self, i: int) -> None:
        raise NotImplementedError

    def backward(self, i: int, da: Array) -> Any:
        raise NotImplementedError

    def apply(self) -> None:
        for w, b, (dw, db), (of_w, of_b) in zip(
            self.weights, self.biases, self.gradients_of, self.moments, strict=True
        ):
            self.update(w.reshape(-1), dw.reshape(-1), of_w, self.scalars, 1.0)
            if b is not None and db is not None:
                self.update(b, db, of_b, self.bias_scalars, 1.0)

    def gradients(self) -> Parameters:
        return self.gradients_of

    def parameters(self) -> Parameters:
        return list(zip(self.weights, self.biases, strict=True))


class _Fused(_Step):
    def forward(self, i: int) -> None:
        x, w, b, out, name = (
            self.xs[i],
            self.weights[i],
            self.biases[i],
            self.xs[i + 1],
            self.names[i],
        )
        if self.saves_z[i]:
            self.slots["dense_forward"](x, w, b, "identity", self.saved[i])
            self.slots["bias_act_forward"](self.saved[i], None, name, out)
        else:
            self.slots["dense_forward"](x, w, b, name, out)

    def backward(self, i: int, da: Array) -> Any:
        dx, dw, db = self.slots["dense_backward"](
            da, self.xs[i], self.weights[i], self.saved[i], self.names[i], not self.frozen[i], i > 0
        )
        self.gradients_of[i] = dw, db
        return dx


class _Separate(_Step):
    def __init__(self, slots: Any, workload: Workload, check: Check) -> None:
        super().__init__(slots, workload, check)
        self.sums = [np.empty(w.shape[1], w.dtype) for w in self.weights]

    def forward(self, i: int) -> None:
        saved, b, name = self.saved[i], self.biases[i], self.names[i]
        self.slots["dense_forward"](self.xs[i], self.weights[i], None, "identity", saved)
        if self.saves_z[i] and b is not None:
            self.slots["bias_act_forward"](saved, b, "identity", saved)
            b = None
        if b is not None or name != "identity":
            self.slots["bias_act_forward"](saved, b, name, self.xs[i + 1])

    def backward(self, i: int, da: Array) -> Any:
        dz, db = da, None
        if self.names[i] != "identity":
            dz = self.slots["act_bias_backward"](da, self.saved[i], self.names[i], False, da)[0]
        if not self.frozen[i]:
            db = np.add.reduce(dz, axis=0, out=self.sums[i])
        dx, dw, _ = self.slots["dense_backward"](
            dz, self.xs[i], self.weights[i], dz, "identity", False, i > 0
        )
        self.gradients_of[i] = dw, db
        return dx


class _Ones(_Step):
    """The bias is the last row of the weight; rows get their one appended before every layer."""

    def _own(self, start: Parameters) -> tuple[list[Array], list[Array | None]]:
        return [np.vstack([w, b]) for w, b in start if b is not None], [None] * len(start)

    def __init__(self, slots: Any, workload: Workload, check: Check) -> None:
        super().__init__(slots, workload, check)
        self.ones = [np.ones((len(x), x.shape[1] + 1), x.dtype) for x in self.xs[:-1]]
        self.ones[0][:, :-1] = self.xs[0]  # the data are kept so
        self.deltas = [np.empty_like(x) for x in self.xs]

    def forward(self, i: int) -> None:
        if i:
            self.ones[i][:, :-1] = self.xs[i]
        x, w, out = self.ones[i], self.weights[i], self.xs[i + 1]
        if self.saves_z[i]:
            self.slots["dense_forward"](x, w, None, "identity", self.saved[i])
            self.slots["bias_act_forward"](self.saved[i], None, self.names[i], out)
        else:
            self.slots["dense_forward"](x, w, None, self.names[i], out)

    def backward(self, i: int, da: Array) -> Any:
        dx, dw, _ = self.slots["dense_backward"](
            da, self.ones[i], self.weights[i], self.saved[i], self.names[i], False, i > 0
        )
        self.gradients_of[i] = dw, None
        if i:
            np.copyto(self.deltas[i], dx[:, :-1])
        return self.deltas[i]

    def gradients(self) -> Parameters:
        return [(dw[:-1], dw[-1]) for dw, _ in self.gradients_of]

    def parameters(self) -> Parameters:
        return [(w[:-1], w[-1]) for w in self.weights]
