"""Generated networks with normalisations, dropout and frozen parts, and one on integers."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Parameters, Statistics
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Optimizer
from fastneuron.spec import NetworkSpec
from fastneuron.testing.bounds import Array
from fastneuron.testing.generate import (
    OPTIMIZERS,
    Case,
    draw_inputs,
    draw_parameters,
    draw_targets,
)

__all__ = [
    "EXACT_EPSILON",
    "case_of",
    "draw_statistics",
    "generated_norm_cases",
    "integer_norm_case",
]

#: What stands between two dense layers: B batch, L layer, F frozen batch normalisation, D dropout.
MOTIFS = ("B", "L", "D", "BD", "F", "DL", "BL", "DB", "BB", "FD", "LBF", "LD")
WIDTHS = (17, 64, 5, 130, 32, 1, 9, 300, 2, 48)
BATCHES = (16, 33, 5, 130, 2, 300, 7, 64, 12, 257)
#: Of the dense layers and of the normalisations that train. "bias" makes a layer whose weight is
#: frozen, which has tiles of its own.
TRAINABLE: tuple[bool | str, ...] = (True, True, "bias", True, "weight", False)


def draw_statistics(spec: NetworkSpec, rng: np.random.Generator) -> Statistics:
    """Return normal running means and variances from 0.1 to 2."""
    statistics: Statistics = []
    for layer in spec.layers:
        mean = rng.normal(size=layer.out_features).astype(spec.dtype)
        variance = rng.uniform(0.1, 2, layer.out_features).astype(spec.dtype)
        statistics.append((mean, variance) if layer.has_statistics else None)
    return statistics


def case_of(
    *layers: Layer,
    rows: int = 40,
    batch: int = 13,
    dtype: str = "float32",
    loss: str = "mse",
    optimizer: Optimizer = SGD(0.05),  # noqa: B008 (it is frozen)
    seed: int = 0,
) -> Case:
    """Return a network of these layers with random parameters, statistics and data."""
    rng = np.random.default_rng(seed)
    spec = NetworkSpec.chain(layers, dtype)
    return Case(
        "-".join(layer.kind for layer in spec.layers),
        spec,
        LOSSES[loss],
        optimizer,
        draw_parameters(spec, rng),
        draw_inputs(rng, rows, spec.in_features, dtype),
        draw_targets(LOSSES[loss], rng, rows, spec.out_features, dtype),
        None,
        batch,
        draw_statistics(spec, rng),
    )


def generated_norm_cases(
    count: int = 24,
    seed: int = 0,
    dtype: str = "float32",
    *,
    widest: int = max(WIDTHS),
    longest: int = max(BATCHES),
) -> list[Case]:
    """Return `count` networks of one to three dense layers with all other kinds around them.

    From 12 networks on each motif occurs first, in the middle or last, with each activation, loss
    and optimizer, and all of a layer, its weight, its bias or nothing trained. Batches of two rows
    occur, and last ones of one. No layer is wider than `widest`, no batch longer than `longest`.
    """
    rng = np.random.default_rng(seed)
    activations = cycle(sorted(ACTIVATIONS))
    widths, trainable = cycle(min(n, widest) for n in WIDTHS), cycle(TRAINABLE)

    def motif(letters: str) -> list[Layer]:
        epsilon = float(rng.choice([1e-5, 1e-3, 0.1]))
        made: list[Layer] = []
        for letter in letters:
            name, trains = next(activations), next(trainable)
            bias = bool(rng.random() < 0.7) or trains == "bias"
            if letter == "D":
                made.append(Dropout(float(rng.choice([0.1, 0.5, 0.75]))))
            elif letter == "L":
                made.append(LayerNorm(None, name, epsilon, bias, trains))
            else:
                momentum = float(rng.choice([0.1, 0.5, 1.0]))
                frozen = letter == "F"
                kept = False if frozen else trains or True
                made.append(BatchNorm(None, name, momentum, epsilon, bias, kept))
        return made

    cases = []
    batches = cycle(min(n, longest) for n in BATCHES)
    problems = zip(cycle(sorted(LOSSES)), cycle(OPTIMIZERS), batches, strict=False)
    for i, (loss_name, optimizer, batch) in enumerate(islice(problems, count)):
        loss, letters = LOSSES[loss_name], MOTIFS[i % len(MOTIFS)]
        layers: list[Layer] = []
        if i % 4 == 1:  # what is not dense is the first layer
            layers += motif(letters)
        # Where many normalisations follow each other, bounds soon say little.
        for _ in range(1 + i % 3 if len(letters) == 1 else 1 + i % 2):
            bias = bool(rng.random() < 0.7)
            trains = next(trainable) if layers else True
            trains = trains if bias or trains != "bias" else True
            name = "identity" if rng.random() < 0.5 else next(activations)
            layers.append(Dense(None, next(widths), name, bias, trainable=trains))
            layers += motif(letters)
        outputs = max(2, next(widths) % 40)
        if i % 3:  # a dense layer is the last; in the others what is not
            layers.append(Dense(None, outputs))
        else:
            layers += [Dense(None, outputs), *motif(letters)]
        features = next(widths)
        first = layers[0]
        layers[0] = (
            replace(first, in_features=features)
            if isinstance(first, Dense)
            else first.with_inputs(features)
        )
        spec = NetworkSpec.chain(layers, dtype)
        rows = 2 * batch + max(batch // 3, 1)
        cases.append(
            Case(
                f"{i}-{letters}-{'x'.join(map(str, spec.sizes))}-b{batch}-{loss_name}",
                spec,
                loss,
                optimizer,
                draw_parameters(spec, rng),
                draw_inputs(rng, rows, spec.in_features, dtype),
                draw_targets(loss, rng, rows, spec.out_features, dtype),
                rng.uniform(0, 2, rows).astype(dtype) if i % 3 == 0 else None,
                batch,
                draw_statistics(spec, rng),
            )
        )
    return cases


#: With it, variances of 1 and 13 have roots that are powers of two: of 4 and 16.
EXACT_EPSILON = 3.0
#: Two distances from the mean, each of half of the numbers, whose mean square is such a variance.
_DISTANCES = ((1, 1), (1, 5))


def integer_norm_case(
    kind: str = "batch", seed: int = 0, dtype: str = "float32", bias: bool = True
) -> Case:
    """Return a network with a normalisation whose forward, backward and SGD step are exact.

    Each normalised vector of 16 numbers holds a whole number plus distances of +-a and +-b, four
    times each, so that mean and variance ``(a^2 + b^2) / 2`` are whole numbers, and the inverse of
    ``sqrt(variance + 3)`` is 1/2 or 1/4: IEEE's quotients and roots are exact where they can be.
    With weights that are whole numbers, dropped halves (the rest is doubled), and batch, widths
    and rate that are powers of two, every product and partial sum in any order is a small multiple
    of a power of two: float32 holds each of them. See `test_norm_bounds.py` for the check. Only
    the running variance is not exact: it moves towards 16/15 of the batch's.

    Parameters
    ----------
    kind : {"batch", "layer", "frozen"}
        What normalises: the columns of a dense layer that permutes features (whose bias a batch
        takes away again), the rows of the data, or running statistics.
    seed, dtype
    bias : bool
        Whether layers have biases.
    """
    rng = np.random.default_rng(seed)
    n, outputs = 16, 4

    def whole(most: int, *shape: int) -> Array:
        return rng.integers(-most, most + 1, shape).astype(dtype)

    def vector() -> Array:
        a, b = _DISTANCES[rng.integers(len(_DISTANCES))]
        distances: Array = rng.permutation(np.repeat([a, -a, b, -b], n // 4))
        return distances + rng.integers(-3, 4)

    x = np.stack([vector() for _ in range(n)]).astype(dtype)
    if kind == "layer":
        layers: list[Layer] = [LayerNorm(n, "relu", EXACT_EPSILON, bias)]
    else:
        x = np.ascontiguousarray(x.T) if kind == "batch" else whole(2, n, n)
        norm = BatchNorm(None, "relu", 0.5, EXACT_EPSILON, bias, kind == "batch")
        layers = [Dense(n, n, bias=bias), norm]
    layers += [Dropout(0.5), Dense(None, outputs, bias=bias)]
    spec = NetworkSpec.chain(layers, dtype)
    parameters: Parameters = []
    statistics: Statistics = []
    for layer in spec.layers:
        weight = whole(2 if isinstance(layer, (BatchNorm, LayerNorm)) else 1, *layer.weight_shape)
        if layer.weight_shape == (n, n):
            signs = rng.choice([-1, 1], n)
            weight = (np.eye(n)[rng.permutation(n)] * signs).astype(dtype)
        parameters.append((weight, whole(2, layer.out_features) if layer.bias else None))
        mean, variance = whole(2, n), rng.choice([1, 13], n).astype(dtype)
        statistics.append((mean, variance) if layer.has_statistics else None)
    y = whole(2, n, outputs)
    return Case(
        f"integers-{kind}", spec, LOSSES["mse"], SGD(2.0**-3), parameters, x, y, None, n, statistics
    )
