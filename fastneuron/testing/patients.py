"""Networks and rows to diagnose: small ones that fall ill, and healthy ones of every layer kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron.diagnostics import Diagnosis
from fastneuron.findings import Finding
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.network import Sequential, mlp

__all__ = ["NORMS", "SEEDS", "X", "Y", "ask", "found", "ill_of_all", "normalised", "small"]

#: Seeds of each illness and of each healthy network.
SEEDS = range(20)
_rng = np.random.default_rng(5)
#: Rows (300, 8) and classes (300,) that have nothing to do with each other.
X, Y = _rng.normal(size=(300, 8)), _rng.integers(0, 3, 300)
#: The normalisations by name.
NORMS: dict[str, Callable[..., Layer]] = {"batch_norm": BatchNorm, "layer_norm": LayerNorm}


def small(activation: str = "relu", seed: int = 0, **options: Any) -> Sequential:
    """Return a network 8-32-16-3 for X and Y."""
    return mlp([8, 32, 16, 3], activation=activation, seed=seed, **options)


def normalised(
    norm: str,
    activation: str = "relu",
    seed: int = 0,
    *,
    sizes: tuple[int, ...] = (8, 32, 16, 3),
    first: dict[str, Any] | None = None,
    dropout: float = 0.0,
    activation_first: bool = False,
    dtype: str = "float32",
    **options: Any,
) -> Sequential:
    """Return a network with a normalisation after each hidden dense layer.

    Parameters
    ----------
    norm : str
        A name of `NORMS`.
    activation : str
        Of the normalisations; with `activation_first`, of the dense layers.
    seed : int
    sizes : tuple of int
    first : dict, optional
        Options of the first dense layer.
    dropout : float
        Rate of a dropout after each normalisation; 0 for none.
    activation_first : bool
    dtype : str
    **options
        Of every normalisation.
    """
    of_dense, of_norm = (activation, "identity") if activation_first else ("identity", activation)
    layers: list[Layer] = []
    for i in range(len(sizes) - 2):
        extra = (first or {}) if i == 0 else {}
        layers.append(Dense(sizes[i], sizes[i + 1], of_dense, **extra))
        layers.append(NORMS[norm](activation=of_norm, **options))
        if dropout:
            layers.append(Dropout(dropout))
    layers.append(Dense(sizes[-2], sizes[-1]))
    return Sequential(*layers, dtype=dtype, seed=seed)


def ill_of_all(seed: int = 0, norm: str | None = None) -> tuple[Sequential, dict[str, int]]:
    """Return a network for X with four illnesses, and in which layer each is to be found.

    Dead ReLUs, saturated sigmoids, twin neurons, and weights that are all zero; with `norm`, each
    dense layer but the last feeds that normalisation.
    """
    layers: list[Layer] = []
    activations = ("relu", "sigmoid", "tanh", "tanh")
    for i, activation in enumerate(activations):
        size = (8 if i == 0 else 32, 32)
        init = "zeros" if i == 3 else "auto"
        dense = Dense(*size, "identity" if norm else activation, weight_init=init)
        layers += [dense, NORMS[norm](activation=activation)] if norm else [dense]
    net = Sequential(*layers, Dense(32, 3), seed=seed)
    apart = 2 if norm else 1  # layers from one illness to the next
    judged = apart - 1  # the layer that has the activation
    net.layers[judged].bias = np.where(np.arange(32) % 2, -60.0, 0.0)
    net.layers[apart + judged].bias = np.full(32, -60.0)
    weight = net.layers[2 * apart].weight
    weight[:, 20:] = weight[:, :12]
    net.layers[2 * apart].weight = weight
    at = {"dead": judged, "saturated": apart + judged, "twins": 2 * apart + judged}
    return net, at | {"zero_weights": 3 * apart}


def ask(net: Sequential, x: Any = X, y: Any = Y) -> Diagnosis:
    """Return what a network does on rows with classes."""
    return net.diagnose(x, y, loss="cross_entropy")


def found(diagnosis: Diagnosis, kind: str) -> list[Finding]:
    """Return the findings of one kind."""
    return [finding for finding in diagnosis.findings if finding.kind == kind]
