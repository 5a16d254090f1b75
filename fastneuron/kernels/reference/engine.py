"""The reference engine: a training step composed of slots, as plainly as it can be said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Status
from fastneuron.kernels.reference.dense import quiet
from fastneuron.kernels.reference.slots import SLOTS
from fastneuron.losses import Loss
from fastneuron.optimizers import CLIP_NORM, L2, SHRINK, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["ReferenceEngine"]

#: What the backward pass needs of each layer: its input, and a or z as `Activation.saves` says.
Kept = list[tuple[Array, Array]]


class ReferenceEngine(Engine):
    """Training state in row-major NumPy arrays, and the step on it, slot by slot.

    The contract of `Engine` holds but for two promises that only the BLAS could keep: `forward` may
    give a row other last bits in another batch, and results may depend on the BLAS's threads. Its
    steps allocate as they go.

    A batch's loss is summed in float64, in row order. A gradient whose square overflows the dtype
    counts as non-finite (its squared norm, summed in float64, exceeds the dtype's largest number),
    even where each of its entries is finite: the running squares of Adam and RMSprop could not hold
    it. Both are looked at before the first parameter is touched, so a failing step is never half
    applied.

    Parameters
    ----------
    spec, loss, optimizer, n_threads, batch_size
        See `Engine`. n_threads is of no effect: the BLAS has its own.
    slots : mapping of str to callable, optional
        Slots to use in place of the reference's, so that a backend can train with those it has.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        slots: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(spec, loss, optimizer, n_threads=n_threads, batch_size=batch_size)
        self._slots = {**SLOTS, **(slots or {})}
        self._dtype = np.dtype(spec.dtype)
        self._parameters = self._zeros()
        n_moments = 0 if optimizer is None else optimizer.n_moments
        self._moments = [self._zeros() for _ in range(n_moments)]
        self._kept: Kept = []

    def load(self, parameters: Parameters) -> None:
        """Copy `parameters` in."""
        self._parameters = self._copy(parameters)

    def export(self) -> Parameters:
        """Return copies of the parameters."""
        return self._copy(self._parameters)

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        """Copy the optimizer's moments in."""
        self._moments = [self._copy(moment) for moment in moments]

    def export_moments(self) -> list[Parameters]:
        """Return copies of the optimizer's moments."""
        return [self._copy(moment) for moment in self._moments]

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> Outcome:
        """Train on the batches that `bounds` cuts out of `order`."""
        for step in range(len(bounds) - 1):
            rows = order[bounds[step] : bounds[step + 1]]
            out, kept = self._forward(x[rows])
            losses[step], dout = self._loss(out, y[rows], None if weight is None else weight[rows])
            if not math.isfinite(losses[step]):
                return Outcome(Status.LOSS_NOT_FINITE, step)
            _, gradients = self._backward(dout, kept, need_dx=False)
            status = self._apply(gradients, scalars[step])
            if status is not Status.OK:
                return Outcome(status, step)
        return Outcome(Status.OK, len(bounds) - 1)

    def forward(self, x: Array) -> Array:
        """Return the network's output (n, O) for x (n, I)."""
        return self._forward(x)[0]

    def forward_keep(self, x: Array) -> Array:
        """Return the output and keep what `update` needs."""
        # Copies, since the caller may write to its x and to what it gets before it calls update.
        out, self._kept = self._forward(x.copy())
        return out.copy()

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        """Apply one step for the rows of the last `forward_keep` and return dL/dx."""
        dx, gradients = self._backward(dout, self._kept, need_dx=True)
        status = self._apply(gradients, scalars)
        return dx, Outcome(status, 1 if status is Status.OK else 0)

    def gradients(self, x: Array, y: Array, weight: Array | None) -> tuple[float, Parameters]:
        """Return the mean loss of the batch and its gradient; nothing is updated."""
        out, kept = self._forward(x)
        loss, dout = self._loss(out, y, weight)
        return loss, self._backward(dout, kept, need_dx=False)[1]

    def plan(self) -> dict[str, Any]:
        """Explain the engine."""
        size = self._dtype.itemsize * self.spec.n_parameters
        return {
            "engine": "reference",
            "n_threads": None,
            "threads_reason": "the BLAS that NumPy was built with decides",
            "buffer_bytes": {"parameters": size, "moments": size * len(self._moments)},
            "phases": ["gather", "forward", "loss", "backward", "update"],
        }

    def _forward(self, x: Array) -> tuple[Array, Kept]:
        kept: Kept = []
        a = x
        for layer, (w, b) in zip(self.spec.layers, self._parameters, strict=True):
            x = a
            if ACTIVATIONS[layer.activation].saves == "z":
                saved = self._slots["dense_forward"](x, w, b)
                a = self._slots["bias_act_forward"](saved, None, layer.activation)
            else:
                saved = a = self._slots["dense_forward"](x, w, b, layer.activation)
            kept.append((x, saved))
        return a, kept

    def _loss(self, out: Array, y: Array, weight: Array | None) -> tuple[float, Array]:
        assert self.loss is not None
        rows, dout = self._slots[self.loss.slot](out, y, weight)
        # An accumulation is strictly one after the other, where a sum may go pairwise.
        total = np.add.accumulate(rows, dtype=np.float64)[-1]
        return float(total) / len(rows), dout

    def _backward(self, dout: Array, kept: Kept, need_dx: bool) -> tuple[Array, Parameters]:
        gradients: Parameters = []
        da = dout
        for i in reversed(range(len(self.spec.layers))):
            layer, (x, saved) = self.spec.layers[i], kept[i]
            w = self._parameters[i][0]
            da, dw, db = self._slots["dense_backward"](
                da, x, w, saved, layer.activation, layer.bias, need_dx or i > 0
            )
            gradients.insert(0, (dw, db))
        return da, gradients

    @quiet
    def _apply(self, gradients: Parameters, scalars: NDArray[np.float64]) -> Status:
        """Update every parameter, or none where the gradient is not finite."""
        assert self.optimizer is not None
        update = self._slots[self.optimizer.slot]
        squared = sum(float(np.square(g, dtype=np.float64).sum()) for g in _arrays(gradients))
        if not squared <= np.finfo(self._dtype).max:
            return Status.GRADIENT_NOT_FINITE
        limit, norm = float(scalars[CLIP_NORM]), math.sqrt(squared)
        clip_scale = limit / norm if 0 < limit < norm else 1.0
        bias_scalars = scalars.copy()
        if not self.optimizer.decay_bias:
            bias_scalars[[L2, SHRINK]] = 0
        for p, g, *moments in zip(
            _arrays(self._parameters), _arrays(gradients), *map(_arrays, self._moments), strict=True
        ):
            flat = tuple(moment.reshape(-1) for moment in moments)
            row = bias_scalars if p.ndim == 1 else scalars
            update(p.reshape(-1), g.reshape(-1), flat, row, clip_scale)
        return Status.OK

    def _zeros(self) -> Parameters:
        return [
            (
                np.zeros((layer.in_features or 0, layer.out_features or 0), self._dtype),
                np.zeros(layer.out_features or 0, self._dtype) if layer.bias else None,
            )
            for layer in self.spec.layers
        ]

    def _copy(self, parameters: Parameters) -> Parameters:
        return [
            (
                np.array(w, self._dtype, order="C"),
                None if b is None else np.array(b, self._dtype, order="C"),
            )
            for w, b in parameters
        ]


def _arrays(parameters: Parameters) -> list[Array]:
    """Return the weights and biases that there are, in the order of the layers."""
    return [array for pair in parameters for array in pair if array is not None]
