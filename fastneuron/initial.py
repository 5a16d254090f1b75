"""The parameters that a network starts from: drawn by its seed, or told by the labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.arrays import Array
from fastneuron.errors import SpecError
from fastneuron.initializers import BIAS_INITIALIZERS, WEIGHT_INITIALIZERS
from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.losses import Loss
from fastneuron.parameters import ParameterStore
from fastneuron.spec import NetworkSpec

__all__ = ["drawn", "prior_bias", "set_prior", "unset_prior", "wants_prior"]

# Rows that every class, event or count is given beside those that were seen, so that none has the
# frequency 0, whose logarithm is infinite: Krichevsky & Trofimov 1981, IEEE Transactions on
# Information Theory 27; Jeffreys' prior of a proportion.
_UNSEEN = 0.5


def drawn(spec: NetworkSpec, seed: int) -> Parameters:
    """Draw the parameters; key (0, layer, 0) is a weight's stream, (0, layer, 1) a bias's."""

    def stream(layer: int, which: int) -> np.random.Generator:
        key = np.random.SeedSequence(seed, spawn_key=(0, layer, which))
        return np.random.Generator(np.random.PCG64(key))

    def cast(array: NDArray[np.float64]) -> Array:
        return array.astype(spec.dtype)

    parameters: Parameters = []
    for i, layer in enumerate(spec.layers):
        if not isinstance(layer, Dense):
            beta = np.zeros(layer.out_features, spec.dtype) if layer.bias else None
            parameters.append((np.ones(layer.weight_shape, spec.dtype), beta))
            continue
        fan = (layer.in_features or 0, layer.out_features or 0, layer.activation)
        weight = cast(WEIGHT_INITIALIZERS[layer.weight_init].draw(stream(i, 0), *fan))
        bias = cast(BIAS_INITIALIZERS[layer.bias_init].draw(stream(i, 1), *fan))
        parameters.append((weight, bias if layer.bias else None))
    return parameters


def prior_bias(loss: Loss, y: Array, weight: Array | None, outputs: int) -> NDArray[np.float64]:
    """Return the output bias (outputs,) by which a network without weights predicts y's mean.

    The mean of classes are their frequencies. Half a row more is counted for every class (of binary
    targets: for 0 and for 1), and half an event more for counts, so that the bias is finite.

    Parameters
    ----------
    loss : Loss
        What its outputs mean decides: logits of cross-entropy, log-odds of binary targets, the log
        of a rate, or the value itself.
    y : (n,) int64 or (n, outputs)
        From `fastneuron.arrays.as_targets`.
    weight : (n,) or None
        Of mean 1: they count rows.
    outputs : int
    """
    rows = np.ones(len(y)) if weight is None else weight.astype(np.float64)
    sums = np.bincount(y, rows, outputs) if y.ndim == 1 else (rows[:, None] * y).sum(axis=0)
    n = rows.sum()
    if loss.targets == "classes":
        # Rows of probabilities need not sum to 1.
        bias = np.log((sums + _UNSEEN) / (sums.sum() + outputs * _UNSEEN))
    elif loss.targets == "binary":
        bias = np.log((sums + _UNSEEN) / (np.maximum(n - sums, 0) + _UNSEEN))
    elif loss.targets == "counts":
        bias = np.log((sums + _UNSEEN) / n)
    else:
        bias = sums / n
    return np.asarray(bias, np.float64)


def wants_prior(store: ParameterStore) -> bool:
    """Return whether the output bias waits for labels: asked for, never trained, never assigned."""
    layer = store.spec.layers[-1]
    if not (isinstance(layer, Dense) and BIAS_INITIALIZERS[layer.bias_init].from_labels):
        return False
    bias = store.pull()[-1][1]
    return store.loss is None and bias is not None and not bias.any()


def set_prior(store: ParameterStore, loss: Loss, y: Array, weight: Array | None) -> None:
    """Set the output bias to `prior_bias`, as the one that the network starts from."""
    layer, last = store.spec.layers[-1], len(store.spec.layers) - 1
    if not layer.bias or layer.activation != "identity":
        has = "no bias" if not layer.bias else f"activation={layer.activation!r}"
        raise SpecError(
            f"layer {last} has {has}: the class prior needs an output layer that has a bias and no "
            "activation"
        )
    _begin_at(store, prior_bias(loss, y, weight, store.spec.out_features))


def unset_prior(store: ParameterStore) -> None:
    """Undo `set_prior` of a network that is not trained after all."""
    _begin_at(store, np.zeros(store.spec.out_features))


def _begin_at(store: ParameterStore, bias: NDArray[np.float64]) -> None:
    last = len(store.spec.layers) - 1
    with store.lock:
        store.set_bias(last, bias)
        store.initial_biases[last] = store.pull()[last][1]
