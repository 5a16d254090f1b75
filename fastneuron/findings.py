"""What ails a network, by the numbers of `fastneuron.health`, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.health import LayerHealth

__all__ = ["Finding", "find", "is_saturated"]

#: Share of a relu layer that is dead in health. Six networks on digits (no input below 0) and on
#: spirals, 20 seeds each, fresh and after 30 epochs: 11 % of the neurons in the worst layer's mean.
DEAD_BY_CHANCE = 0.1
#: Standard deviations of that chance beyond which the dead are a finding: 27 of 128 neurons, 7 of
#: 16, 3 of 4. Those networks stay below: no layer had more than 5 of 16, 8 of 32 or 12 of 128.
DEAD_DEVIATIONS = 4.0
#: Share of a layer's neurons from which saturated ones are a finding: in health there are none.
SATURATED_SHARE = 0.1
#: Share of the rows on which a neuron must be flat to count as saturated.
SATURATED_ROWS = 0.9
#: Share of all-zero input rows from which it matters what neurons do with them.
ZERO_ROWS = 0.01
#: Share of a layer's neurons that must be silent on zeros: below it, others answer for them.
SILENT_SHARE = 0.9
#: A bias this many times the spread of x W leaves the inputs without a say: z varies by 5 %.
BIAS_DOMINATES = 20.0
#: Share of a layer's neurons from which such biases are a finding: a layer with neurons to spare
#: may turn some into constants.
BIAS_SHARE = 0.25
#: Root mean square from which inputs are large: the bias gradient is 1 / |x| of the weight's.
LARGE_INPUTS = 10.0
#: Length of an input row below which weights learn this much slower than biases.
SMALL_INPUTS = 0.03
#: Mean |delta| of a layer over that of the output below which the error has vanished on the way.
VANISHED = 1e-3
#: Share of a normalisation's features, or rows, from which too little variance is a finding: data
#: have constant features (3 of 64 pixels of the digits, 67 of 784 of MNIST), and where a neuron has
#: a single input, the size of its weight has no effect and wanders off (8 of 32 came near 0).
NARROW_SHARE = 0.5
#: A normalisation's weight, and its gradient over the layer's largest, that count as 0.
OFF = 1e-6
#: A feature's mean is far from the running one by so many running deviations, its variance by this
#: factor: z then has another sign, or size, in predictions than it was trained with.
FAR_MEAN, FAR_VARIANCE = 1.0, 4.0
#: Share of a layer's features from which such distances are a finding.
FAR_SHARE = 0.25


@dataclass(frozen=True)
class Finding:
    """One illness of one layer.

    Attributes
    ----------
    kind : str
        "overflow", "zero_weights", "twins", "dead", "saturated", "bias_dominates",
        "silent_on_zero", "large_inputs", "small_inputs", "vanishing_delta", or of normalisations
        "redundant_bias", "narrow_inputs", "switched_off" or "unlike_statistics".
    layer : int
    neurons : tuple of int
        Those that have it; empty where it is the layer as a whole.
    what, advice : str
        What was found, and what to do about it.
    """

    kind: str
    layer: int
    neurons: tuple[int, ...]
    what: str
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as what JSON knows."""
        return asdict(self) | {"neurons": list(self.neurons)}


def find(layers: Sequence[LayerHealth]) -> list[Finding]:
    """Return what ails the layers, the first layer's illnesses first.

    Of a layer that steps cannot change, only that it overflows is told.
    """
    found: list[Finding] = []
    for position, layer in enumerate(layers):
        if not np.isfinite(layer.z_mean).all():
            found.append(_overflow(layer))
            break  # what comes after is made of infinities
        if layer.frozen:
            continue
        before = layers[position - 1] if position else None
        for look in _LOOKS:
            found += look(layer)
        found += _twins(layer, before)
        if not any(finding.kind in _CONSTANT for finding in found):
            found += _narrow(layer, before)
        found += _vanishing(layer, layers)
    return found


def is_saturated(layer: LayerHealth) -> NDArray[np.bool_]:
    """Return which neurons (O,) are flat on most rows, for an f that is flat at both ends.

    Where one end is flat, as with relu, most rows may well lie there: see `LayerHealth.dead`.
    """
    return (layer.flat_share >= SATURATED_ROWS) & all(layer.flat_ends)


def _finding(
    kind: str, layer: LayerHealth, ill: NDArray[np.bool_] | None, what: str, advice: str
) -> Finding:
    neurons = () if ill is None else tuple(np.flatnonzero(ill).tolist())
    return Finding(kind, layer.index, neurons, what, advice)


def _count(layer: LayerHealth, ill: NDArray[np.bool_]) -> str:
    return f"{np.count_nonzero(ill)} of {layer.out_features} neurons"


def _weighed(layer: LayerHealth) -> str:
    """Return what a neuron's bias is added to."""
    return "x W" if layer.factor is None else "its normalised inputs"


def _overflow(layer: LayerHealth) -> Finding:
    return _finding(
        "overflow",
        layer,
        None,
        "z is not finite on these rows: the numbers grow beyond the network's dtype",
        "scale the inputs to about 1, or train again with a lower learning rate or clip_norm=1.0",
    )


def _zero_weights(layer: LayerHealth) -> Iterator[Finding]:
    # An output layer of zeros is soon moved: its neurons have targets of their own.
    if layer.zero_weights and not layer.last:
        yield _finding(
            "zero_weights",
            layer,
            None,
            "every weight is 0: no input reaches a neuron, and no error the layers before",
            "draw the weights at random, weight_init='auto'; only biases may start at zero",
        )


def _twins(layer: LayerHealth, before: LayerHealth | None) -> Iterator[Finding]:
    twins = layer.twin >= 0
    of_weights = before if before is not None and before.normalised else layer
    # Equal outputs are told apart by their targets; zero weights are a finding already.
    if layer.last or of_weights.zero_weights or not twins.any():
        return
    groups = len(np.unique(layer.twin[twins]))
    yield _finding(
        "twins",
        layer,
        twins,
        f"{_count(layer, twins)} are copies of one another, in {groups} "
        f"group{'s' * (groups > 1)}: each group computes one number, and while their outgoing "
        "weights are equal too, it always will",
        "draw the weights at random (weight_init='auto'): random weights break the symmetry, "
        "which equal starting values keep; or take fewer neurons",
    )


def _dead(layer: LayerHealth) -> Iterator[Finding]:
    dead, n = layer.dead, layer.out_features
    chance = DEAD_BY_CHANCE * n
    chance += DEAD_DEVIATIONS * math.sqrt(DEAD_BY_CHANCE * (1 - DEAD_BY_CHANCE) * n)
    if not dead.any() or np.count_nonzero(dead) < min(chance, n):
        return
    exact = bool((layer.liveliness[dead] == 0).all())
    learn = "f'(z) = 0, so delta, and with it weight and bias gradient, are exactly 0"
    yield _finding(
        "dead",
        layer,
        dead,
        f"{_count(layer, dead)} are active on no row: "
        + (learn if exact else "f'(z) is near 0, so weights and bias hardly move")
        + _pushed(layer, dead),
        "start the biases at 0 or slightly above (0.01 to 0.1) and lower the learning rate; or "
        "use leaky_relu, which never stops learning"
        + ("; or normalise the inputs" if layer.factor is None else "")
        + ". Dead ones come back to life by setting their bias and weights anew",
    )


def _saturated(layer: LayerHealth) -> Iterator[Finding]:
    ill = is_saturated(layer)
    if ill.mean() < SATURATED_SHARE:
        return
    share = float(layer.flat_share[ill].mean())
    yield _finding(
        "saturated",
        layer,
        ill,
        f"{_count(layer, ill)} lie where {layer.activation} is flat, on {100 * share:.0f} % of "
        "the rows: delta = dL/da f'(z) is near 0 whatever the error is, and the bias hardly moves"
        + _pushed(layer, ill),
        (
            "smaller starting weights (weight_init='auto') and biases at 0; normalise the inputs "
            "to mean 0 and variance 1; "
            if layer.factor is None
            else "the normalisation's weights back to about 1 and its biases to 0; "
        )
        + "lower the learning rate; or use relu, flat on one side only",
    )


def _pushed(layer: LayerHealth, ill: NDArray[np.bool_]) -> str:
    """Return which of bias and weights brought most of the ill neurons where they are."""
    if layer.bias is None:
        return ""
    by_bias = ill & (np.abs(layer.bias) > np.abs(layer.z_mean - layer.bias) + 2 * layer.z_std)
    pushed, n = np.count_nonzero(by_bias), np.count_nonzero(ill)
    if pushed < n / 2:
        return ""
    who = "all" if pushed == n else pushed
    return f". In {who} of them it is the bias, which outweighs {_weighed(layer)}"


def _bias(layer: LayerHealth) -> Iterator[Finding]:
    # Outputs may need it: a target far from 0 with little spread is all bias.
    if layer.bias is None or layer.last or layer.normalised or not layer.trains_bias:
        return
    ill = (np.abs(layer.bias) > BIAS_DOMINATES * layer.z_std) & (layer.z_std > 0)
    ill &= np.abs(layer.bias) > np.abs(layer.z_mean - layer.bias)
    ill &= ~(layer.dead | is_saturated(layer))  # told there
    if ill.mean() < BIAS_SHARE:
        return
    drift = ""
    if layer.bias_drift is not None:
        drift = f"; they moved by {np.abs(layer.bias_drift[ill]).mean():.2g} since the start"
    yield _finding(
        "bias_dominates",
        layer,
        ill,
        f"{_count(layer, ill)} have a bias above {BIAS_DOMINATES:g} times the spread of "
        f"{_weighed(layer)}: their output hardly depends on the input{drift}",
        "start the biases at 0; lower the learning rate where they drifted there"
        + ("; scale small inputs up to about 1" if layer.factor is None else ""),
    )


def _silent(layer: LayerHealth) -> Iterator[Finding]:
    silent = layer.silent_on_zero
    frozen_bias = layer.bias is not None and not layer.trains_bias
    if layer.zero_rows < ZERO_ROWS or silent.mean() < SILENT_SHARE or frozen_bias:
        return
    if layer.bias is None:
        why = f"there is no bias, and {_weighed(layer)} are 0, whatever the weights are"
        advice = "give it a bias"
    else:
        why = "f(b) = 0 and f'(b) = 0: no bias is above 0"
        advice = "start the biases slightly above 0 (0.01 to 0.1), or use leaky_relu"
    yield _finding(
        "silent_on_zero",
        layer,
        silent,
        f"{100 * layer.zero_rows:.2g} % of the rows reach this layer as zeros only, and "
        f"{_count(layer, silent)} answer 0 and learn nothing from them ({why})",
        advice,
    )


def _inputs(layer: LayerHealth) -> Iterator[Finding]:
    # What is normalised right after, or here, may come in any size.
    if layer.normalised or layer.factor is not None:
        return
    if layer.input_scale > LARGE_INPUTS:
        pace = (
            ""
            if not layer.trains_bias
            else f": for one row the bias gradient is 1/{layer.input_size:.2g} of the weights', so "
            "that a rate the weights bear leaves the biases nearly still"
        )
        yield _finding(
            "large_inputs",
            layer,
            None,
            f"its inputs have a root mean square of {layer.input_scale:.2g}{pace}",
            "standardise the inputs to mean 0 and variance 1"
            if layer.index == 0
            else "smaller starting weights in the layers before, a lower learning rate, or "
            "normalisation between the layers",
        )
    elif 0 < layer.input_size < SMALL_INPUTS and layer.zero_rows < 0.5:
        yield _finding(
            "small_inputs",
            layer,
            None,
            f"its input rows have a length of {layer.input_size:.2g}: the weights' gradient is "
            "that share of the bias gradient, so that the biases learn and the weights hardly do",
            "standardise the inputs to mean 0 and variance 1"
            if layer.index == 0
            else "larger starting weights in the layers before (weight_init='auto'), or "
            "normalisation between the layers",
        )


def _vanishing(layer: LayerHealth, layers: Sequence[LayerHealth]) -> Iterator[Finding]:
    # A z that is normalised next has a delta of any size: the larger z, the smaller.
    if layer.delta is None or layer.contribution is None or layer.last or layer.normalised:
        return
    output = layers[-1].delta
    of_output = 0.0 if output is None else float(output.mean())
    share = float(layer.delta.mean()) / of_output if of_output > 0 else math.nan
    # What the next layer passes on tells whether the error was lost here or nearer to the output.
    if not share < VANISHED:
        return
    arrives = float(layer.contribution.mean()) / of_output
    what = f"its delta is {share:.1g} times the output's; "
    if arrives >= VANISHED:
        what += (
            f"the error arrives (dL/da is {arrives:.1g} times the output's), but f'(z), "
            f"{float(layer.liveliness.mean()):.1g} in the mean, lets none through"
        )
        advice = (
            "bring z back to where f is steep: biases at 0, weight_init='auto', inputs scaled to "
            "about 1; or an activation that is flat on one side only (relu)"
        )
    else:
        what += f"little error arrives: dL/da is {arrives:.1g} times the output's delta"
        advice = (
            "mend the layers after it first, if they have findings; else weight_init='auto', an "
            "activation with f' near 1 (relu), fewer layers, or normalisation between them"
        )
    yield _finding("vanishing_delta", layer, None, what, advice)


def _redundant_bias(layer: LayerHealth) -> Iterator[Finding]:
    if not layer.redundant_bias or not layer.trains_bias:
        return
    yield _finding(
        "redundant_bias",
        layer,
        None,
        "its bias has no effect: the batch normalisation after it subtracts the mean, and the bias "
        "with it, so that dL/db = 0",
        "leave it out, Dense(..., bias=False): the normalisation's own bias does the shifting",
    )


def _narrow(layer: LayerHealth, before: LayerHealth | None) -> Iterator[Finding]:
    advice = "scale the inputs up, or lower epsilon, where they vary at all"
    if layer.narrow is not None:
        ill = layer.narrow
        if before is not None:
            ill = ill & ~before.dead
        if ill.mean() < NARROW_SHARE:
            return
        yield _finding(
            "narrow_inputs",
            layer,
            ill,
            f"{np.count_nonzero(ill)} of {layer.out_features} features vary by less than "
            "sqrt(epsilon) over these rows: they are not brought to variance 1, and a prediction "
            "whose inputs differ more is blown up",
            f"{advice}; leave constant ones out",
        )
    elif layer.narrow_rows is not None:
        share = layer.narrow_rows - layer.zero_rows
        if share < NARROW_SHARE:
            return
        yield _finding(
            "narrow_inputs",
            layer,
            None,
            f"{100 * share:.0f} % of the rows have features that differ by less than sqrt(epsilon) "
            "from one another: little more than the bias is left of such a row",
            "normalise layers of several features only" if layer.out_features == 1 else advice,
        )


def _switched_off(layer: LayerHealth) -> Iterator[Finding]:
    if layer.factor is None or layer.weight_gradient is None:
        return
    still = layer.weight_gradient <= OFF * layer.weight_gradient.max()
    ill = (np.abs(layer.factor) <= OFF) & still & ~(layer.dead | is_saturated(layer))
    if ill.any():
        yield _finding(
            "switched_off",
            layer,
            ill,
            f"{np.count_nonzero(ill)} of {layer.out_features} features have weight 0 and no "
            "gradient by it: nothing of the input passes, and nothing brings it back",
            "start a normalisation's weights at 1, and decay them less (decay_bias=False); or take "
            "fewer neurons",
        )


def _unlike_statistics(layer: LayerHealth) -> Iterator[Finding]:
    if layer.mean_shift is None or layer.variance_ratio is None:
        return
    shift, ratio = np.abs(layer.mean_shift), layer.variance_ratio
    ill = (shift > FAR_MEAN) | (ratio > FAR_VARIANCE)
    if not layer.dropped:  # whose noise the running variance holds, and these rows have not
        ill |= ratio < 1 / FAR_VARIANCE
    if ill.mean() < FAR_SHARE:
        return
    yield _finding(
        "unlike_statistics",
        layer,
        ill,
        f"the running mean and variance of {np.count_nonzero(ill)} of {layer.out_features} "
        f"features are far from these rows' (in the median, a mean {np.median(shift[ill]):.2g} "
        f"running deviations away, a variance of {np.median(ratio[ill]):.2g} times the running "
        "one): predictions, which go by them, differ from what was trained",
        "train for more steps; choose momentum, the share that a step replaces, higher where they "
        "lag behind, lower where batches are small; train on rows like these; or use LayerNorm, "
        "which keeps no statistics",
    )


# Illnesses whose neurons are constant: what comes after may be so because of them.
_CONSTANT = ("zero_weights", "dead", "narrow_inputs")
_LOOKS = (
    _redundant_bias,
    _zero_weights,
    _dead,
    _saturated,
    _bias,
    _silent,
    _inputs,
    _switched_off,
    _unlike_statistics,
)
