"""What a network's neurons do on some rows: numbers for each neuron, no judgement of them.

The rows are taken as one batch of training, with nothing dropped: a batch normalisation goes by
their own mean and variance, since that is what neurons learn by, and dead, saturated or stuck is
about learning. How far predictions are from that, which go by running statistics, is a number of
its own. A single row has no variance and goes by the running statistics.

Shapes: n rows, I inputs and O neurons of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLAT", "QUANTILES", "Floats", "LayerHealth"]

#: |f'(z)| below this share of its largest value is "flat": half of leaky_relu's slope, which is
#: there to learn by. sigmoid is flat from |z| = 6.7 on, tanh from 3.3, relu at 0 and below.
FLAT = 0.005
#: Shares of a layer's z whose bounds are given.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerHealth:
    """One layer on some rows. Arrays are (O,), one value a neuron, unless said otherwise.

    What needs targets is None where there were none. A neuron is judged where its activation is: of
    a dense layer without one that feeds a normalisation, at the normalisation.

    Attributes
    ----------
    index : int
        Its place in the network. `Dropout` layers have no neurons, and no health.
    kind : str
        "dense", "batch_norm" or "layer_norm".
    activation : str
    in_features, out_features : int
    last : bool
        Whether it is the network's output.
    normalised : bool
        Whether it has no activation and feeds a normalisation, where its neurons are judged: here
        `twin` is then -1 and `silent_on_zero` False.
    frozen : bool
        Whether steps change nothing of what makes z: neither its weight and bias nor, of a
        normalisation, those of the dense layer that feeds it.
    trains_bias : bool
    redundant_bias : bool
        Whether it has a bias that the batch normalisation after it takes away.
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
        Mean of |dL/da| and of |delta|, ``delta = dL/dz = dL/da f'(z)``, L being a row's own loss,
        or with a batch normalisation after it, the sum over the rows.
    bias_gradient, weight_gradient : float64 or None
        |dL/db| and the length of dL/dw (I,), L being the mean over the rows:
        ``dL/db = mean of delta``, ``dL/dw = mean of delta x``. For a single row their ratio is
        exactly ``1 / |x|``. The weight of a normalisation is one number, and x what it multiplies.
        None for what is not trained.
    bias : float64 or None
        None for a layer without biases.
    bias_drift : float64 or None
        Bias less what it was when the network was made or loaded.
    factor : float64 or None
        The weight of a normalisation.
    silent_on_zero : bool
        Fed with zeros only, it answers ``f(b) = 0`` and learns nothing: it has no bias, or
        ``f'(b) = 0``. A batch normalisation, which subtracts a mean, answers.
    twin : int64
        The least index of the neurons that have the same weights and bias; -1 where it is alone.
    z_mean, z_std, z_low, z_high : float64
        Mean, standard deviation, least and largest z.
    zero_weights : bool
        Every weight is zero, of a dense layer.
    input_size : float
        Root mean square of |x|, the length of the layer's input row.
    input_scale : float
        Root mean square of the layer's inputs.
    zero_rows : float
        Share of the rows whose input to this layer is zeros only.
    narrow : bool or None
        Of a batch normalisation that goes by the batch: the feature's variance is below epsilon,
        so that it is constant, or nearly so, and stays that.
    narrow_rows : float or None
        Of a layer normalisation: the share of rows whose variance is below epsilon.
    mean_shift, variance_ratio : float64 or None
        Of a batch normalisation: the rows' mean less the running one, in running deviations, and
        the rows' variance over the running one (epsilon added to both). None where it is frozen,
        for less than 64 rows, and until the running statistics have settled.
    dropped : bool
        Whether a `Dropout` comes before it. What that drops widens the spread in training, which
        running variances then hold and predictions lack (Li, Chen, Hu & Yang 2019,
        arXiv:1801.05134): `variance_ratio` is below 1 by as much.
    z_quantiles : (7,) float64
        Bounds of the shares `QUANTILES` of z, over rows and neurons.
    z_edges, z_counts : (41,) float64, (40,) int64
        Histogram of z, at most 32768 values, or one row, taken evenly.
    z_flat : (40,) int64
        How many values of each bin are such that f is flat there.
    """

    index: int
    kind: str
    activation: str
    in_features: int
    out_features: int
    last: bool
    normalised: bool
    frozen: bool
    trains_bias: bool
    redundant_bias: bool
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
    factor: Floats | None
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
    narrow: NDArray[np.bool_] | None
    narrow_rows: float | None
    mean_shift: Floats | None
    variance_ratio: Floats | None
    dropped: bool
    z_quantiles: Floats
    z_edges: Floats
    z_counts: NDArray[np.int64]
    z_flat: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute as what JSON knows; what is not finite is None."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    """Return an array or number as JSON has it."""
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
