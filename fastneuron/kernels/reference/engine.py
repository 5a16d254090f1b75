"""The reference engine: a training step composed of slots, as plainly as it can be said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import (
    Array,
    Engine,
    Outcome,
    Parameters,
    Statistics,
    Status,
    clear_untrained,
)
from fastneuron.kernels.reference import dropout, norms
from fastneuron.kernels.reference.dense import quiet
from fastneuron.kernels.reference.slots import SLOTS
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import Loss
from fastneuron.optimizers import CLIP_NORM, KEY_HIGH, KEY_LOW, L2, N_SCALARS, SHRINK, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["ReferenceEngine"]


class Kept(NamedTuple):
    """What the backward pass needs of a layer.

    Attributes
    ----------
    x : (B, I)
        The layer's input.
    saved : (B, O)
        a or z, as `Activation.saves` says.
    extra : tuple
        Mean, variance and inverse root of a normalisation, or the mask of a dropout.
    """

    x: Array
    saved: Array
    extra: tuple[Array, ...] = ()


class Trace(NamedTuple):
    """What one layer made of a batch.

    Attributes
    ----------
    z, a : (B, O)
        Before and after the activation.
    kept : Kept
    """

    z: Array
    a: Array
    kept: Kept


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
        self._statistics: Statistics = [None] * len(spec.layers)
        self._kept: list[Kept] = []

    def load(self, parameters: Parameters) -> None:
        """Copy `parameters` in."""
        self._parameters = self._copy(parameters)

    def export(self) -> Parameters:
        """Return copies of the parameters."""
        return self._copy(self._parameters)

    def load_statistics(self, statistics: Statistics) -> None:
        """Copy the running statistics in."""
        self._statistics = _copied(statistics)

    def export_statistics(self) -> Statistics:
        """Return copies of the running statistics."""
        return _copied(self._statistics)

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
            out, kept = self._forward(x[rows], scalars[step])
            losses[step], dout = self._loss(out, y[rows], None if weight is None else weight[rows])
            if not math.isfinite(losses[step]):
                return Outcome(Status.LOSS_NOT_FINITE, step)
            _, gradients = self._backward(dout, kept, need_dx=False)
            status = self._apply(gradients, kept, scalars[step])
            if status is not Status.OK:
                return Outcome(status, step)
        return Outcome(Status.OK, len(bounds) - 1)

    def forward(self, x: Array) -> Array:
        """Return the network's output (n, O) for x (n, I)."""
        return self._forward(x)[0]

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        """Return the training output and keep what `update` needs."""
        # Copies, since the caller may write to its x and to what it gets before it calls update.
        out, self._kept = self._forward(x.copy(), _key_row(scalars))
        return out.copy()

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        """Apply one step for the rows of the last `forward_keep` and return dL/dx."""
        dx, gradients = self._backward(dout, self._kept, need_dx=True)
        status = self._apply(gradients, self._kept, scalars)
        return dx, Outcome(status, 1 if status is Status.OK else 0)

    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        """Return the mean loss of the batch and its gradient; nothing is updated."""
        out, kept = self._forward(x, _key_row(scalars))
        loss, dout = self._loss(out, y, weight)
        return loss, self._backward(dout, kept, need_dx=False)[1]

    def trace(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Iterator[Trace]:
        """Yield what each layer makes of x (B, I), one after the other; no state is touched.

        With `scalars` (N_SCALARS,), as in a training step; without, as in a prediction.
        """
        for index, layer in enumerate(self.spec.layers):
            z, extra = self._before_activation(index, x, scalars)
            a = self._slots["bias_act_forward"](z, None, layer.activation)
            saves_z = ACTIVATIONS[layer.activation].saves == "z"
            yield Trace(z, a, Kept(x, z if saves_z else a, extra))
            x = a

    def trace_back(
        self, index: int, dz: Array, kept: Kept, need_dx: bool = True
    ) -> tuple[Array, tuple[Array, Array | None]]:
        """Return dL/dx and (dweight, dbias) of one layer for its dz = dL/dz (B, O).

        What is not trained has its gradient here, too. Without `need_dx`, a dense layer's dL/dx is
        None.
        """
        layer, (w, b) = self.spec.layers[index], self._parameters[index]
        x, _, extra = kept
        if isinstance(layer, Dense):
            dx, dw, db = self._slots["dense_backward"](
                dz, x, w, dz, "identity", layer.bias, need_dx
            )
            return dx, (dw, db)
        if isinstance(layer, Dropout):
            return dropout.dropout(dz, extra[0], layer.rate) if extra else dz, (w.copy(), None)
        mean, _, inverse = extra
        dw, db = norms.norm_gradients(x, mean, inverse, dz)
        if isinstance(layer, BatchNorm) and not layer.uses_batch:
            dx = norms.norm_forward(dz, 0 * mean, inverse, w, None)
        else:
            axis = norms.OVER_BATCH if isinstance(layer, BatchNorm) else norms.OVER_FEATURES
            dx = norms.norm_backward(x, mean, inverse, w, dz, axis)
        return dx, (dw, None if b is None else db)

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

    def _forward(
        self, x: Array, scalars: NDArray[np.float64] | None = None
    ) -> tuple[Array, list[Kept]]:
        """Return the output and what is kept a layer: of a training step where it has scalars."""
        kept: list[Kept] = []
        for index in range(len(self.spec.layers)):
            x, what = self._layer_forward(index, x, scalars)
            kept.append(what)
        return x, kept

    def _layer_forward(
        self, index: int, x: Array, scalars: NDArray[np.float64] | None
    ) -> tuple[Array, Kept]:
        layer, (w, b) = self.spec.layers[index], self._parameters[index]
        saves_z = ACTIVATIONS[layer.activation].saves == "z"
        if isinstance(layer, Dense) and not saves_z:
            a = self._slots["dense_forward"](x, w, b, layer.activation)
            return a, Kept(x, a)
        z, extra = self._before_activation(index, x, scalars)
        if isinstance(layer, Dropout):
            return z, Kept(x, z, extra)
        a = self._slots["bias_act_forward"](z, None, layer.activation)
        return a, Kept(x, z if saves_z else a, extra)

    def _before_activation(
        self, index: int, x: Array, scalars: NDArray[np.float64] | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return z (B, O), and what else the backward pass needs of it."""
        layer, (w, b) = self.spec.layers[index], self._parameters[index]
        if isinstance(layer, Dense):
            return self._slots["dense_forward"](x, w, b), ()
        if isinstance(layer, Dropout):
            if scalars is None:
                return x, ()
            key = int(scalars[KEY_LOW]), int(scalars[KEY_HIGH])
            mask = dropout.kept(x.shape[0], x.shape[1], index, key, layer.dropped)
            return dropout.dropout(x, mask, layer.rate), (mask,)
        mean, variance, inverse = self._norm_moments(index, x, in_training=scalars is not None)
        return norms.norm_forward(x, mean, inverse, w, b), (mean, variance, inverse)

    def _norm_moments(self, index: int, x: Array, *, in_training: bool) -> tuple[Array, ...]:
        layer = self.spec.layers[index]
        if isinstance(layer, LayerNorm):
            return norms.moments(x, layer.epsilon, norms.OVER_FEATURES)
        assert isinstance(layer, BatchNorm)
        if in_training and layer.uses_batch:
            return norms.moments(x, layer.epsilon, norms.OVER_BATCH)
        statistics = self._statistics[index]
        assert statistics is not None
        return norms.running_moments(statistics, layer.epsilon)

    def _loss(self, out: Array, y: Array, weight: Array | None) -> tuple[float, Array]:
        assert self.loss is not None
        rows, dout = self._slots[self.loss.slot](out, y, weight)
        # An accumulation is strictly one after the other, where a sum may go pairwise.
        total = np.add.accumulate(rows, dtype=np.float64)[-1]
        return float(total) / len(rows), dout

    def _backward(self, dout: Array, kept: list[Kept], need_dx: bool) -> tuple[Array, Parameters]:
        gradients: Parameters = []
        da = dout
        for index in reversed(range(len(self.spec.layers))):
            da, gradient = self._layer_backward(index, da, kept[index], need_dx or index > 0)
            gradients.insert(0, gradient)
        clear_untrained(self.spec, gradients)
        return da, gradients

    def _layer_backward(
        self, index: int, da: Array, kept: Kept, need_dx: bool
    ) -> tuple[Array, tuple[Array, Array | None]]:
        layer = self.spec.layers[index]
        if isinstance(layer, Dense):
            dx, dw, db = self._slots["dense_backward"](
                da,
                kept.x,
                self._parameters[index][0],
                kept.saved,
                layer.activation,
                layer.bias,
                need_dx,
            )
            return dx, (dw, db)
        if isinstance(layer, Dropout):
            return self.trace_back(index, da, kept)
        dz, _ = self._slots["act_bias_backward"](da, kept.saved, layer.activation, False)
        return self.trace_back(index, dz, kept)

    @quiet
    def _apply(
        self, gradients: Parameters, kept: list[Kept], scalars: NDArray[np.float64]
    ) -> Status:
        """Update every parameter that is trained, or none where the gradient is not finite."""
        assert self.optimizer is not None
        update = self._slots[self.optimizer.slot]
        squared = sum(
            float(np.square(g, dtype=np.float64).sum()) for g, _ in self._trained(gradients)
        )
        if not squared <= np.finfo(self._dtype).max:
            return Status.GRADIENT_NOT_FINITE
        limit, norm = float(scalars[CLIP_NORM]), math.sqrt(squared)
        clip_scale = limit / norm if 0 < limit < norm else 1.0
        bias_scalars = scalars.copy()
        if not self.optimizer.decay_bias:
            bias_scalars[[L2, SHRINK]] = 0
        lists = [self._parameters, gradients, *self._moments]
        for row in zip(*map(self._trained, lists), strict=True):
            (p, decays), (g, _), *moments = row
            flat = tuple(moment.reshape(-1) for moment, _ in moments)
            numbers = scalars if decays else bias_scalars
            update(p.reshape(-1), g.reshape(-1), flat, numbers, clip_scale)
        self._move_statistics(kept)
        return Status.OK

    def _move_statistics(self, kept: list[Kept]) -> None:
        for index, layer in enumerate(self.spec.layers):
            old = self._statistics[index]
            if isinstance(layer, BatchNorm) and layer.uses_batch and old is not None:
                mean, variance, _ = kept[index].extra
                rows = len(kept[index].x)
                self._statistics[index] = norms.moved_statistics(
                    old, mean, variance, layer.momentum, rows
                )

    def _trained(self, parameters: Parameters) -> list[tuple[Array, bool]]:
        """Return the arrays that are trained, in the order of the layers, and which always decay.

        The weight of a normalisation counts as a bias there: it does not make the function steeper.
        """
        arrays: list[tuple[Array, bool]] = []
        for layer, (weight, bias) in zip(self.spec.layers, parameters, strict=True):
            if layer.trains_weight:
                arrays.append((weight, isinstance(layer, Dense)))
            if bias is not None and layer.trains_bias:
                arrays.append((bias, False))
        return arrays

    def _zeros(self) -> Parameters:
        return [
            (
                np.zeros(layer.weight_shape, self._dtype),
                np.zeros(layer.out_features, self._dtype) if layer.bias else None,
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


def _key_row(scalars: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return np.zeros(N_SCALARS) if scalars is None else scalars[0]


def _copied(statistics: Statistics) -> Statistics:
    return [pair and (pair[0].copy(), pair[1].copy()) for pair in statistics]
