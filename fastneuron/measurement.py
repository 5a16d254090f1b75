"""What `LayerHealth` holds, measured: one pass forward and, where there are targets, one back.

The reference engine computes both, so that every backend gives the same numbers. Memory: some six
arrays (n, O) a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS, Activation
from fastneuron.arrays import Array
from fastneuron.errors import SpecError
from fastneuron.health import FLAT, QUANTILES, Floats, LayerHealth
from fastneuron.kernels.contract import Parameters, Statistics
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import Loss
from fastneuron.optimizers import N_SCALARS
from fastneuron.spec import NetworkSpec, bias_is_redundant
from fastneuron.twins import twins

__all__ = ["measure"]

#: Rows from which their own mean and variance say enough to hold running statistics against them: a
#: mean is then right to an eighth of a deviation.
ENOUGH = 64
#: Running statistics have settled once so many times 1 / momentum steps were done: 0.1 % is left of
#: what they held before (a variance of 1, where one of 0.01 may be right). Or after so many steps,
#: whatever the momentum.
SETTLED, SETTLED_STEPS = 7.0, 1000.0

# Values of z of one layer, taken evenly, that quantiles and histogram are made of: a quantile is
# then right to 0.6 % of the values (two standard errors at the median).
_USED = 1 << 15
_BINS = 40
# Where an activation's ends are looked at: every activation of the table is flat from |z| = 10 on,
# if ever.
_FAR = 30.0
# Rows whose z tells twins after a normalisation apart: neurons of equal weights differ, if at all,
# by what the normalisation adds and multiplies, which shows on any row.
_TWIN_ROWS = 32


def measure(
    spec: NetworkSpec,
    parameters: Parameters,
    statistics: Statistics,
    initial_biases: list[Array | None],
    x: Array,
    y: Array | None = None,
    loss: Loss | None = None,
    steps: float = np.inf,
) -> tuple[list[LayerHealth], float | None]:
    """Return each layer's health on rows x (n, I), and the mean loss where there are targets.

    Parameters
    ----------
    spec, parameters, statistics
        The network.
    initial_biases : list of (O,) or None
    x, y
        As `as_rows` and `as_targets` return them; y may be None.
    loss : Loss or None
        Needed with y.
    steps : float
        Training steps that moved the running statistics.
    """
    at = [i for i, layer in enumerate(spec.layers) if not isinstance(layer, Dropout)]
    if not at:
        raise SpecError("this network has Dropout layers only: there is no neuron to diagnose")
    # Without the dropouts: what they drop by chance is no trait of a neuron.
    shown = NetworkSpec(tuple(spec.layers[i] for i in at), spec.dtype)
    engine: Any = backends.get("numpy").engine(shown)
    engine.load([parameters[i] for i in at])
    engine.load_statistics([statistics[i] for i in at])
    n = len(x)
    with np.errstate(all="ignore"):  # what overflows is told by a finding
        traces = list(engine.trace(x, None if n < 2 else np.zeros(N_SCALARS)))
        seen = [
            _Seen(i, spec.layers, parameters[i], statistics[i], trace, steps)
            for i, trace in zip(at, traces, strict=True)
        ]
        _join(seen)
        mean_loss = None
        if y is not None and loss is not None:
            mean_loss = float(loss.rows(traces[-1].a, y).sum(dtype=np.float64)) / n
            da = loss.grad(traces[-1].a, y)
            for number in reversed(range(len(at))):
                delta = seen[number].gate(da)
                da, gradients = engine.trace_back(number, delta, traces[number].kept, number > 0)
                seen[number].gradients = gradients
        layers = [each.health(initial_biases[each.index]) for each in seen]
    return layers, mean_loss


class _Seen:
    """One layer, what it made of the rows, and the gradients by it once they are known."""

    def __init__(
        self,
        index: int,
        layers: Sequence[Layer],
        parameters: tuple[Array, Array | None],
        statistics: tuple[Array, Array] | None,
        trace: Any,
        steps: float,
    ) -> None:
        self.index = index
        self.layer = layers[index]
        self.last = all(isinstance(layer, Dropout) for layer in layers[index + 1 :])
        self.dropped = any(isinstance(layer, Dropout) for layer in layers[:index])
        self.redundant_bias = bool(self.layer.bias) and bias_is_redundant(layers, index)
        self.weight, self.bias = parameters
        self.statistics = statistics
        self.steps = steps
        self.z, (self.x, saved, self.moments) = trace.z, trace.kept
        self.entry: Activation = ACTIVATIONS[self.layer.activation]
        self.slope = self.entry.df(saved)
        self.feeding: _Seen | None = None  # the dense layer whose neurons are judged here
        self.normalised = False
        self.da: Array | None = None
        self.delta: Array | None = None
        self.gradients: tuple[Array, Array | None] | None = None

    def gate(self, da: Array) -> Array:
        """Take dL/da (n, O) and return dL/dz."""
        self.da, self.delta = da, da * self.slope
        return self.delta

    @property
    def frozen(self) -> bool:
        """Whether steps change nothing of what makes z."""
        own = not (self.layer.trains_weight or self.layer.trains_bias)
        return own and (self.feeding is None or self.feeding.frozen)

    def health(self, initial: Array | None) -> LayerHealth:
        """Return what is known as numbers."""
        layer, entry, n, bias = self.layer, self.entry, len(self.z), self.bias
        below, above = (bool(flat) for flat in _is_flat(entry, np.array([-_FAR, _FAR])))
        slope = np.abs(self.slope)
        is_flat = slope < FLAT * entry.lipschitz
        flat = np.count_nonzero(is_flat, axis=0)
        mean = self.z.mean(axis=0)
        squares = np.einsum("ij,ij->i", self.x, self.x)
        size = float(squares.mean(dtype=np.float64))
        # A row whose squares underflow counts as zeros: what it adds to a gradient is nothing too.
        zero_rows = 1 - np.count_nonzero(squares) / n
        dw, db = self.gradients or (None, None)
        edges, counts, counts_flat, quantiles = _spread(self.z, is_flat)
        shift, ratio = self._against_running()
        return LayerHealth(
            index=self.index,
            kind=layer.kind,
            activation=entry.name,
            in_features=layer.in_features,
            out_features=layer.out_features,
            last=self.last,
            normalised=self.normalised,
            frozen=self.frozen,
            trains_bias=layer.trains_bias,
            redundant_bias=self.redundant_bias,
            flat_ends=(below, above),
            flat_share=flat / n,
            dead=(flat == n) & (below != above),
            liveliness=_mean(slope),
            contribution=None if self.da is None else _mean(np.abs(self.da)),
            delta=None if self.delta is None else _mean(np.abs(self.delta)),
            bias_gradient=np.abs(_float64(db)) / n
            if db is not None and layer.trains_bias
            else None,
            weight_gradient=_lengths(dw) / n if dw is not None and layer.trains_weight else None,
            bias=None if bias is None else _float64(bias),
            bias_drift=_drift(bias, initial),
            factor=None if isinstance(layer, Dense) else _float64(self.weight),
            silent_on_zero=self._silent(),
            twin=self._twins(),
            z_mean=_float64(mean),
            z_std=np.sqrt(_mean(np.square(self.z - mean))),
            z_low=_float64(self.z.min(axis=0)),
            z_high=_float64(self.z.max(axis=0)),
            zero_weights=isinstance(layer, Dense) and not self.weight.any(),
            input_size=float(np.sqrt(size)),
            input_scale=float(np.sqrt(size / self.x.shape[1])),
            zero_rows=zero_rows,
            narrow=self._narrow()[0] if isinstance(layer, BatchNorm) and layer.uses_batch else None,
            narrow_rows=float(self._narrow().mean()) if isinstance(layer, LayerNorm) else None,
            mean_shift=shift,
            variance_ratio=ratio,
            dropped=self.dropped,
            z_quantiles=quantiles,
            z_edges=edges,
            z_counts=counts,
            z_flat=counts_flat,
        )

    def _silent(self) -> NDArray[np.bool_]:
        none = np.zeros(self.layer.out_features, np.bool_)
        if self.normalised or isinstance(self.layer, BatchNorm):
            return none
        at_zero = np.zeros(none.shape, self.z.dtype) if self.bias is None else self.bias
        silent: NDArray[np.bool_] = self.entry.f(at_zero) == 0
        if self.bias is not None:
            silent &= _slope(self.entry, at_zero) == 0
        return silent

    def _twins(self) -> NDArray[np.int64]:
        width = self.layer.out_features
        if isinstance(self.layer, Dense) and not self.normalised:
            blocks = [self.weight] if self.bias is None else [self.weight, self.bias[None]]
            return twins(blocks, len(self.weight))
        if self.feeding is None:
            return np.full(width, -1, np.int64)
        # A bias may have no effect, and a normalisation evens out lengths: twins have equal weights
        # and do the same on the rows.
        weight, z = self.feeding.weight, self.z[:: -(-len(self.z) // _TWIN_ROWS)]
        return twins([_scaled(weight), _scaled(z)], len(weight))

    def _narrow(self) -> NDArray[np.bool_]:
        """Return where the variance that a normalisation went by is below epsilon."""
        _, variance, _ = self.moments
        narrow: NDArray[np.bool_] = variance < getattr(self.layer, "epsilon", 0.0)
        return narrow

    def _against_running(self) -> tuple[Floats | None, Floats | None]:
        """Return the mean's shift and the variances' ratio to the running ones."""
        layer, steps = self.layer, self.steps
        if not isinstance(layer, BatchNorm) or not layer.uses_batch or len(self.z) < ENOUGH:
            return None, None
        if steps * layer.momentum < SETTLED and steps < SETTLED_STEPS:
            return None, None
        assert self.statistics is not None
        (running_mean, running_variance) = map(_float64, self.statistics)
        mean, variance, _ = (_float64(each[0]) for each in self.moments)
        width = running_variance + layer.epsilon
        return (mean - running_mean) / np.sqrt(width), (variance + layer.epsilon) / width


def _join(seen: Sequence[_Seen]) -> None:
    """Let dense layers without an activation be judged at the normalisations that they feed."""
    for one, after in pairwise(seen):
        carries = isinstance(one.layer, Dense) or one.feeding is not None
        if carries and one.entry.name == "identity" and not isinstance(after.layer, Dense):
            one.normalised = True
            after.feeding = one if one.feeding is None else one.feeding


def _spread(
    z: Array, is_flat: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return edges of a histogram of z (n, O), counts, those of them that are flat, quantiles."""
    every = -(-z.size // _USED)  # rows: whole ones are taken
    used, flat = z[::every].ravel(), is_flat[::every].ravel()
    if not np.isfinite(used).all():
        used, flat = np.zeros(1, z.dtype), np.zeros(1, np.bool_)  # told by a finding; nothing drawn
    ordered = np.sort(used)
    low, high = float(ordered[0]), float(ordered[-1])
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # too narrow for edges that differ
        reach = max(0.5, 1e-3 * abs(high))
        low, high = low - reach, high + reach
    edges = np.linspace(low, high, _BINS + 1)
    quantiles = np.interp(np.array(QUANTILES) * (used.size - 1), np.arange(used.size), ordered)
    return edges, _counts(ordered, edges), _counts(np.sort(used[flat]), edges), quantiles


def _counts(ordered: Array, edges: Floats) -> NDArray[np.int64]:
    """Return how many of the ascending values lie in each bin; the last one has both its edges."""
    # Edges in the values' dtype: else all values were converted.
    begins = np.searchsorted(ordered, edges[1:-1].astype(ordered.dtype))
    return np.diff(begins, prepend=0, append=ordered.size).astype(np.int64)


def _slope(entry: Activation, z: Array) -> Array:
    """Return |f'(z)|."""
    return np.abs(entry.df(entry.f(z) if entry.saves == "a" else z))


def _is_flat(entry: Activation, z: Array) -> NDArray[np.bool_]:
    return _slope(entry, z) < FLAT * entry.lipschitz


def _mean(values: Array) -> Floats:
    return _float64(values.mean(axis=0))


def _float64(values: Array) -> Floats:
    return values.astype(np.float64)


def _scaled(values: Array) -> Array:
    """Return values (k, O) over their root mean square, so that two kinds of them weigh alike."""
    size = np.sqrt(np.square(values).mean())
    return values if size == 0 else values / size


def _lengths(w: Array) -> Floats:
    """Return the length of each column, (O,), of float32 gradients whose squares underflow, too."""
    if w.ndim == 1:
        return np.abs(_float64(w))
    largest = float(np.abs(w).max()) or 1.0
    scaled = w / w.dtype.type(largest)
    return largest * np.sqrt(_float64(np.einsum("ij,ij->j", scaled, scaled)))


def _drift(bias: Array | None, initial: Array | None) -> Floats | None:
    if bias is None or initial is None:
        return None
    return _float64(bias) - initial
