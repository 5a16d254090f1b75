"""What a network's neurons do on some rows: numbers for each neuron, no judgement of them.

One NumPy pass forward and, where there are targets, one back, over the parameters alone: every
backend gives the same numbers. Shapes: n rows, I inputs and O neurons of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS, Activation
from fastneuron.arrays import Array
from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.losses import Loss
from fastneuron.spec import NetworkSpec

__all__ = ["FLAT", "QUANTILES", "LayerHealth", "measure"]

#: |f'(z)| below this share of its largest value is "flat": half of leaky_relu's slope, which is
#: there to learn by. sigmoid is flat from |z| = 6.7 on, tanh from 3.3, relu at 0 and below.
FLAT = 0.005
#: Shares of a layer's z whose bounds are given.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
#: Chance, for a whole layer, that two neurons drawn at random would be called twins.
TWIN_CHANCE = 1e-6
#: Twins differ by at most this share of their weights' length, where TWIN_CHANCE allows as much:
#: rounding that has grown over a training, far below any difference that training aims at.
TWIN_DISTANCE = 1e-4

# Rows of one pass: bounds the memory at some five arrays (256, O) a layer, 5 MiB for O = 1024.
_CHUNK = 256
# Values of z of one layer, taken evenly, that quantiles and histogram are made of: a quantile is
# then right to 0.6 % of the values (two standard errors at the median), for 1 ms.
_USED = 1 << 15
_BINS = 40
# Where an activation's ends are looked at: every activation of the table is flat from |z| = 10 on,
# if ever.
_FAR = 30.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerHealth:
    """One layer on some rows. Arrays are (O,), one value a neuron, unless said otherwise.

    What needs targets is None where there were none.

    Attributes
    ----------
    index : int
    activation : str
    in_features, out_features : int
    last : bool
        Whether it is the network's output.
    flat_ends : tuple of bool
        Whether f is flat far below zero, and far above: (True, False) for relu, (True, True) for
        sigmoid and tanh, (False, False) for identity.
    flat_share : float64
        Share of the rows with |f'(z)| below `FLAT` of its largest value.
    dead : bool
        No row has it active: flat in all of them, for an f that is flat at one end.
    liveliness : float64
        Mean of |f'(z)|: how much of the error that reaches the output comes through to z.
    contribution, delta : float64 or None
        Mean of |dL/da| and of |delta|, ``delta = dL/dz = dL/da f'(z)``, L being a row's own loss.
    bias_gradient, weight_gradient : float64 or None
        |dL/db| and the length of dL/dw (I,), L being the mean over the rows:
        ``dL/db = mean of delta``, ``dL/dw = mean of delta x``. For a single row their ratio is
        exactly ``1 / |x|``.
    bias : float64 or None
        None for a layer without biases.
    bias_drift : float64 or None
        Bias less what it was when the network was made or loaded.
    silent_on_zero : bool
        Fed with zeros only, it answers ``f(b) = 0`` and learns nothing: it has no bias, or
        ``f'(b) = 0``.
    twin : int64
        The least index of the neurons that have the same weights and bias; -1 where it is alone.
    z_mean, z_std, z_low, z_high : float64
        Mean, standard deviation, least and largest z.
    zero_weights : bool
        Every weight is zero.
    input_size : float
        Root mean square of |x|, the length of the layer's input row.
    input_scale : float
        Root mean square of the layer's inputs.
    zero_rows : float
        Share of the rows whose input to this layer is zeros only.
    z_quantiles : (7,) float64
        Bounds of the shares `QUANTILES` of z, over rows and neurons.
    z_edges, z_counts : (41,) float64, (40,) int64
        Histogram of z, at most 32768 values, or one row, taken evenly.
    z_flat : (40,) bool
        Whether f is flat in the middle of each bin.
    """

    index: int
    activation: str
    in_features: int
    out_features: int
    last: bool
    flat_ends: tuple[bool, bool]
    flat_share: Floats
    dead: NDArray[np.bool_]
    liveliness: Floats
    contribution: Floats | None
    delta: Floats | None
    bias_gradient: Floats | None
    weight_gradient: Floats | None
    bias: Floats | None
    bias_drift: Floats | None
    silent_on_zero: NDArray[np.bool_]
    twin: NDArray[np.int64]
    z_mean: Floats
    z_std: Floats
    z_low: Floats
    z_high: Floats
    zero_weights: bool
    input_size: float
    input_scale: float
    zero_rows: float
    z_quantiles: Floats
    z_edges: Floats
    z_counts: NDArray[np.int64]
    z_flat: NDArray[np.bool_]

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute as what JSON knows; what is not finite is None."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def measure(
    spec: NetworkSpec,
    parameters: Parameters,
    initial_biases: list[Array | None],
    x: Array,
    y: Array | None = None,
    loss: Loss | None = None,
) -> tuple[list[LayerHealth], float | None]:
    """Return each layer's health on rows x (n, I), and the mean loss where there are targets.

    Parameters
    ----------
    spec, parameters
        The network.
    initial_biases : list of (O,) or None
    x, y
        As `as_rows` and `as_targets` return them; y may be None.
    loss : Loss or None
        Needed with y.
    """
    sums = [
        _Sums(layer, weight) for layer, (weight, _) in zip(spec.layers, parameters, strict=True)
    ]
    stride = -(-len(x) * max(spec.sizes[1:]) // _USED)  # rows: whole ones are taken
    total = 0.0
    with np.errstate(all="ignore"):  # what overflows is told by a finding
        for start in range(0, len(x), _CHUNK):
            a = x[start : start + _CHUNK]
            used = slice(-start % stride, None, stride)
            for layer, (_, bias) in zip(sums, parameters, strict=True):
                a = layer.forward(a, bias, used)
            if y is None or loss is None:
                continue
            rows = y[start : start + _CHUNK]
            total += float(loss.rows(a, rows).sum(dtype=np.float64))
            da = loss.grad(a, rows)
            for layer in reversed(sums):
                da = layer.backward(da, first=layer is sums[0])
        measured = y is not None
        layers = [
            layer.health(i, i == len(sums) - 1, len(x), bias, initial, measured)
            for i, (layer, (_, bias), initial) in enumerate(
                zip(sums, parameters, initial_biases, strict=True)
            )
        ]
    return layers, total / len(x) if measured else None


class _Sums:
    """Sums over the rows met so far of one layer, and what its backward pass needs of a chunk."""

    def __init__(self, layer: Dense, weight: Array) -> None:
        self.weight = weight
        self.entry: Activation = ACTIVATIONS[layer.activation]
        self.flat_below = FLAT * self.entry.lipschitz
        width = weight.shape[1]
        self.flat = np.zeros(width, np.int64)
        self.liveliness, self.contribution, self.delta, self.db = np.zeros((4, width))
        self.dw = np.zeros((1, 1), weight.dtype)
        self.z_sum, self.z_squares = np.zeros((2, width))
        self.z_low, self.z_high = np.full(width, np.inf), np.full(width, -np.inf)
        self.input_squares = 0.0
        self.zero_rows = 0
        self.used: list[Array] = []
        self._x = self._slope = weight[:0]  # of the chunk under way

    def forward(self, x: Array, bias: Array | None, used: slice) -> Array:
        """Take a chunk's inputs (n, I) in and return its outputs (n, O)."""
        n = len(x)
        squares = np.einsum("ij,ij->i", x, x)
        self.input_squares += float(squares.sum(dtype=np.float64))
        # A row whose squares underflow counts as zeros: what it adds to a gradient is nothing too.
        self.zero_rows += n - int(np.count_nonzero(squares))
        z = x @ self.weight
        if bias is not None:
            z += bias
        mean = z.mean(axis=0)
        self.z_sum += n * mean.astype(np.float64)
        spread = np.square(z - mean).sum(axis=0)
        self.z_squares += spread + n * np.square(mean.astype(np.float64))
        np.minimum(self.z_low, z.min(axis=0), out=self.z_low)
        np.maximum(self.z_high, z.max(axis=0), out=self.z_high)
        self.used.append(z[used])
        a = self.entry.f(z)
        self._x, self._slope = x, self.entry.df(a if self.entry.saves == "a" else z)
        slope = np.abs(self._slope)
        self.liveliness += slope.sum(axis=0)
        self.flat += np.count_nonzero(slope < self.flat_below, axis=0)
        return a

    def backward(self, da: Array, *, first: bool) -> Array:
        """Take dL/da (n, O) of the chunk just forwarded in; return dL/dx, or `da` at the first."""
        self.contribution += np.abs(da).sum(axis=0)
        delta = da * self._slope
        self.delta += np.abs(delta).sum(axis=0)
        self.db += delta.sum(axis=0)
        self.dw = self._x.T @ delta + self.dw
        return da if first else delta @ self.weight.T

    def health(
        self,
        index: int,
        last: bool,
        n: int,
        bias: Array | None,
        initial: Array | None,
        measured: bool,
    ) -> LayerHealth:
        """Return what the sums over n rows amount to."""
        fan_in, width = self.weight.shape
        entry = self.entry
        below, above = (bool(flat) for flat in _is_flat(entry, np.array([-_FAR, _FAR])))
        at_zero = np.zeros(width, self.weight.dtype) if bias is None else bias
        silent = entry.f(at_zero) == 0
        if bias is not None:
            silent &= _slope(entry, at_zero) == 0
        z = np.concatenate(self.used).ravel().astype(np.float64)
        if not np.isfinite(z).all():
            z = np.zeros(1)  # a layer that overflows is told by a finding; nothing to draw
        counts, edges = np.histogram(z, _BINS)
        mean = self.z_sum / n
        variance = np.maximum(self.z_squares / n - np.square(mean), 0)
        return LayerHealth(
            index=index,
            activation=entry.name,
            in_features=fan_in,
            out_features=width,
            last=last,
            flat_ends=(below, above),
            flat_share=self.flat / n,
            dead=(self.flat == n) & (below != above),
            liveliness=self.liveliness / n,
            contribution=self.contribution / n if measured else None,
            delta=self.delta / n if measured else None,
            bias_gradient=np.abs(self.db) / n if measured and bias is not None else None,
            weight_gradient=_lengths(self.dw) / n if measured else None,
            bias=None if bias is None else bias.astype(np.float64),
            bias_drift=_drift(bias, initial),
            silent_on_zero=silent,
            twin=_twins(self.weight, bias),
            z_mean=mean,
            z_std=np.sqrt(variance),
            z_low=self.z_low,
            z_high=self.z_high,
            zero_weights=not self.weight.any(),
            input_size=float(np.sqrt(self.input_squares / n)),
            input_scale=float(np.sqrt(self.input_squares / n / fan_in)),
            zero_rows=self.zero_rows / n,
            z_quantiles=np.quantile(z, QUANTILES),
            z_edges=edges,
            z_counts=counts.astype(np.int64),
            z_flat=_is_flat(entry, (edges[:-1] + edges[1:]) / 2),
        )


def _slope(entry: Activation, z: Array) -> Array:
    """Return |f'(z)|."""
    return np.abs(entry.df(entry.f(z) if entry.saves == "a" else z))


def _is_flat(entry: Activation, z: Array) -> NDArray[np.bool_]:
    return _slope(entry, z) < FLAT * entry.lipschitz


def _lengths(w: Array) -> Floats:
    """Return the length of each column, (O,), of float32 gradients whose squares underflow, too."""
    largest = float(np.abs(w).max()) or 1.0
    scaled = w / w.dtype.type(largest)
    return largest * np.sqrt(np.einsum("ij,ij->j", scaled, scaled).astype(np.float64))


def _drift(bias: Array | None, initial: Array | None) -> Floats | None:
    if bias is None or initial is None:
        return None
    return bias.astype(np.float64) - initial


def _twins(weight: Array, bias: Array | None) -> NDArray[np.int64]:
    """Return for each neuron the least index of its twins, -1 where it has none.

    Random neurons of I weights and a bias lie within a share t of their length with a chance of
    about t**I, so that few inputs ask for a nearness that grows with the number of pairs.

    Neurons are sorted by their product with a fixed random vector: twins come to lie side by side,
    in O(I O) instead of the O(I O^2) of all pairs. Three vectors more keep others out.
    """
    fan_in, width = weight.shape
    twin = np.full(width, -1, np.int64)
    if width < 2:
        return twin
    pairs = width * (width - 1) / 2
    near = min(TWIN_DISTANCE, (TWIN_CHANCE / pairs) ** (1 / fan_in))
    probes = np.random.default_rng(0).standard_normal((4, fan_in + 1)).astype(weight.dtype)
    places = (probes[:, :-1] @ weight).astype(np.float64)
    squares = np.einsum("ij,ij->j", weight, weight).astype(np.float64)
    if bias is not None:
        places += probes[:, -1:] * bias
        squares += np.square(bias.astype(np.float64))
    order = np.argsort(places[0], kind="stable")
    size = np.sqrt(squares)[order]
    size = np.maximum(size[1:], size[:-1])
    # The products of twins differ by a normal deviate times their distance, and by rounding.
    same = (np.abs(np.diff(places[:, order])) <= (8 * near + 1e-4) * size).all(axis=0)
    for i in np.flatnonzero(same):
        pair = order[i : i + 2]
        gap = float(np.square(np.diff(weight[:, pair].astype(np.float64))).sum())
        gap += 0.0 if bias is None else float(np.diff(bias[pair].astype(np.float64))[0] ** 2)
        same[i] = gap <= (near * size[i]) ** 2
    group = np.concatenate([[0], np.cumsum(~same)])
    for number in np.unique(group[1:][same]):
        members = order[group == number]
        twin[members] = members.min()
    return twin


def _plain(value: Any) -> Any:
    """Return an array or number as JSON has it."""
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
