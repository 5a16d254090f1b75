"""The tables of initialisers: how weights and biases are drawn before training.

All draws are float64, whatever the network's dtype, so that float32 and float64 networks of one
seed start from the same numbers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastneuron.registry import Registry

__all__ = ["BIAS_INITIALIZERS", "WEIGHT_INITIALIZERS", "Initializer"]

#: (random generator, fan_in, fan_out, activation name) -> float64 array.
Draw = Callable[[np.random.Generator, int, int, str], NDArray[np.float64]]

# Standard deviation of the initialisers called "normal": small beside activations of order 1.
_SMALL = 0.01

# Activations that let about half of the variance through, which He's factor 2 makes up for.
_RECTIFIERS = frozenset({"relu", "leaky_relu", "elu", "gelu", "silu", "softplus"})


@dataclass(frozen=True)
class Initializer:
    """One way to draw a layer's weight (fan_in, fan_out) or bias (fan_out,).

    Attributes
    ----------
    name, formula, source : str
    draw : callable
        ``draw(rng, fan_in, fan_out, activation)`` -> float64 array. Constants take nothing
        from `rng`.
    from_labels : bool
        Whether the first `fit` replaces what was drawn by what the labels say: see
        `fastneuron.initial.prior_bias`.
    """

    name: str
    formula: str
    source: str
    draw: Draw
    from_labels: bool = False


def _uniform(variance: Callable[[int, int], float]) -> Draw:
    """Weights uniform within ``sqrt(3 variance)`` of zero."""

    def draw(
        rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
    ) -> NDArray[np.float64]:
        limit = math.sqrt(3 * variance(fan_in, fan_out))
        return rng.uniform(-limit, limit, (fan_in, fan_out))

    return draw


def _normal(variance: Callable[[int, int], float]) -> Draw:
    """Weights normal about zero, not truncated."""

    def draw(
        rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
    ) -> NDArray[np.float64]:
        return math.sqrt(variance(fan_in, fan_out)) * rng.standard_normal((fan_in, fan_out))

    return draw


def _glorot(fan_in: int, fan_out: int) -> float:
    return 2 / (fan_in + fan_out)


def _he(fan_in: int, fan_out: int) -> float:
    return 2 / fan_in


def _lecun(fan_in: int, fan_out: int) -> float:
    return 1 / fan_in


def _auto(
    rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
) -> NDArray[np.float64]:
    name = "he_uniform" if activation in _RECTIFIERS else "glorot_uniform"
    return WEIGHT_INITIALIZERS[name].draw(rng, fan_in, fan_out, activation)


def _zero_weights(
    rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
) -> NDArray[np.float64]:
    return np.zeros((fan_in, fan_out))


def _zero_biases(
    rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
) -> NDArray[np.float64]:
    return np.zeros(fan_out)


def _uniform_biases(
    rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
) -> NDArray[np.float64]:
    limit = 1 / math.sqrt(fan_in)
    return rng.uniform(-limit, limit, fan_out)


def _normal_biases(
    rng: np.random.Generator, fan_in: int, fan_out: int, activation: str
) -> NDArray[np.float64]:
    return _SMALL * rng.standard_normal(fan_out)


_GLOROT = "Glorot & Bengio 2010, AISTATS"
_HE = "He, Zhang, Ren & Sun 2015, arXiv:1502.01852"
_LECUN = "LeCun et al. 1998, Efficient BackProp, section 4.6"

#: Every weight initialiser by name.
WEIGHT_INITIALIZERS: Registry[Initializer] = Registry("weight initializer")
for _entry in (
    Initializer(
        "auto",
        "he_uniform before relu, leaky_relu, elu, gelu, silu and softplus, else glorot_uniform",
        f"{_HE}; {_GLOROT}",
        _auto,
    ),
    Initializer(
        "glorot_uniform", "U(-l, l), l = sqrt(6 / (fan_in + fan_out))", _GLOROT, _uniform(_glorot)
    ),
    Initializer("glorot_normal", "N(0, 2 / (fan_in + fan_out))", _GLOROT, _normal(_glorot)),
    Initializer("he_uniform", "U(-l, l), l = sqrt(6 / fan_in)", _HE, _uniform(_he)),
    Initializer("he_normal", "N(0, 2 / fan_in)", _HE, _normal(_he)),
    Initializer("lecun_uniform", "U(-l, l), l = sqrt(3 / fan_in)", _LECUN, _uniform(_lecun)),
    Initializer("lecun_normal", "N(0, 1 / fan_in)", _LECUN, _normal(_lecun)),
    Initializer(
        "uniform",
        "U(-l, l), l = 1 / sqrt(fan_in)",
        f"the standard heuristic named in {_GLOROT}, equation 1",
        _uniform(lambda fan_in, fan_out: 1 / (3 * fan_in)),
    ),
    Initializer(
        "normal",
        "N(0, 0.01^2)",
        "Krizhevsky, Sutskever & Hinton 2012, NIPS 25, section 5",
        _normal(lambda fan_in, fan_out: _SMALL**2),
    ),
    Initializer(
        "zeros",
        "0",
        "for linear models only: zero weights leave hidden neurons equal for ever",
        _zero_weights,
    ),
):
    WEIGHT_INITIALIZERS.register(_entry.name, _entry)

#: Every bias initialiser by name.
BIAS_INITIALIZERS: Registry[Initializer] = Registry("bias initializer")
for _entry in (
    Initializer("zeros", "0", f"{_GLOROT}, section 2.3; {_HE}, section 2.2", _zero_biases),
    Initializer(
        "uniform",
        "U(-l, l), l = 1 / sqrt(fan_in)",
        "spreads the kinks of first-layer neurons over the data; the weights' uniform rule",
        _uniform_biases,
    ),
    Initializer("normal", "N(0, 0.01^2)", "small random, the weights' normal rule", _normal_biases),
    Initializer(
        "class_prior",
        "log p_k of class k (log p / (1 - p) for binary targets), p the labels' frequencies",
        "Lin, Goyal, Girshick, He & Dollar 2017, arXiv:1708.02002, section 3.3, for one rare class",
        _zero_biases,
        from_labels=True,
    ),
):
    BIAS_INITIALIZERS.register(_entry.name, _entry)
