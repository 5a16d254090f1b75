"""Why a bias that feeds a batch normalisation has no effect."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.arrays import Array
from fastneuron.datasets import make_spirals
from fastneuron.explain.explanation import Explanation, table
from fastneuron.layers import BatchNorm, Dense, Layer
from fastneuron.network import Sequential
from fastneuron.optimizers import SGD
from fastneuron.trainer import Trainer

__all__ = ["batchnorm"]

_BIASES = (0.0, 1.0, -64.0)
# Two neurons whose z - b are 0, 8 and 8, 0, 8, 0: mean 4 and deviation 4, so nothing rounds.
_X = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 0], [0, 0], [1, 1], [1, 1]], np.float32)
_WEIGHT = np.array([[8, 0], [0, 8]], np.float32)
# dL/da of the mean square of 16 differences from the targets a - 8 dL/da.
_DOUT = np.array([[1, 2], [3, -1], [-2, 0], [1, 4], [0, -3], [2, 1], [-1, 1], [4, 4]], np.float32)
#: Those whose losses are shown.
_EPOCHS = (1, 3, 10)


def _network(bias: float, *after: Layer) -> Sequential:
    """Return two neurons with an explicit bias, and what comes after them."""
    net = Sequential(Dense(2, 2, bias=True), *after, seed=0)
    net.layers[0].weight = _WEIGHT
    net.layers[0].bias = np.full(2, bias)
    return net


def _gradients(net: Sequential) -> tuple[Array, list[Any]]:
    """Return the training output, and what each layer's bias gets of `_DOUT`."""
    trainer = Trainer(net, "mse", SGD(1e-30))
    out = trainer.forward(_X)
    _, found = trainer.gradients(_X, out - 8 * _DOUT)
    return out, [None if db is None else (0 + db).tolist() for _, db in found]


def batchnorm() -> Explanation:
    """Put biases before a BatchNorm, look at outputs and gradients, and train without them."""
    outs, predictions, columns = [], [], []
    for b in _BIASES:
        # Beside a variance of 16 this epsilon is lost; momentum 1 takes the batch's statistics.
        net = _network(b, BatchNorm(epsilon=2.0**-100, momentum=1.0))
        out, (db, dbeta) = _gradients(net)
        _, (plain,) = _gradients(_network(b))
        # A step too small to change a parameter moves the running statistics.
        Trainer(net, "mse", SGD(1e-30)).step(_X, out - 8 * _DOUT)
        mean = net.layers[1].running_mean
        assert mean is not None  # of a BatchNorm
        outs.append(out)
        predictions.append(net.forward(_X))
        columns.append((db, plain, dbeta, mean.tolist()))
    difference = _largest_change(outs)
    predicted = _largest_change(predictions)
    shifted = _network(1.0, BatchNorm(epsilon=2.0**-100))
    shifted.layers[1].bias = np.full(2, 3)
    mean_with_beta = float(_gradients(shifted)[0].mean())

    X, y = make_spirals(300, classes=3, turns=0.5, seed=0)
    losses, biases, kept = {}, {}, 0.0
    for name, bias in (("kept", True), ("left out", False)):
        net = _classifier(bias)
        history = net.fit(
            X,
            y,
            loss="cross_entropy",
            optimizer=SGD(0.1, momentum=0.9),
            batch_size=30,
            epochs=max(_EPOCHS),
        )
        losses[name] = history.loss.tolist()
        biases[name] = net.spec.n_parameters - sum(layer.n_weights for layer in net.spec.layers)
        if (first := net.layers[0].bias) is not None:
            kept = float(np.abs(first).max())

    db, plain, dbeta, means = zip(*columns, strict=True)
    labels = ("dL/db", "dL/db without the BatchNorm", "dL/dbeta", "running mean after a step")
    rows = [
        (label.ljust(27), *(", ".join(f"{v:g}" for v in pair) for pair in values))
        for label, values in zip(labels, (db, plain, dbeta, means), strict=True)
    ]
    trained = [
        (name.ljust(27), str(biases[name]), *(f"{losses[name][i - 1]:.3f}" for i in _EPOCHS))
        for name in losses
    ]
    heads = [f"epoch {i}" for i in _EPOCHS]
    lines = (
        "Batch normalisation subtracts each neuron's mean over the batch. A bias is in",
        "that mean like in every row: z + b - mean(z + b) = z - mean(z). Two neurons",
        "before a BatchNorm, eight rows, three biases:",
        *table(("".ljust(27), *(f"b = {b:g}" for b in _BIASES)), rows),
        f"Largest change of the output: {difference:g}, of later predictions: {predicted:g}.",
        "Back through the mean, delta has a sum of 0 over the batch: the bias learns",
        "nothing. What it would have learnt arrives at beta, the BatchNorm's own bias,",
        "which shifts after the mean is gone: "
        f"with beta = 3 the mean output is {mean_with_beta:g}.",
        "So a network trains alike without such biases (2-32-32-3, spirals, losses):",
        *table(("bias before a BatchNorm".ljust(27), "biases", *heads), trained),
        "Dense(...) before a BatchNorm has no bias; Dense(..., bias=True) keeps one.",
    )
    values = {
        "difference": difference,
        "difference_predicted": predicted,
        "db_with": list(db),
        "db_without": list(plain),
        "dbeta": list(dbeta),
        "running_mean": list(means),
        "mean_with_beta": mean_with_beta,
        "losses": losses,
        "biases": biases,
        "largest_kept": kept,
    }
    return Explanation(lines, values)


def _classifier(bias: bool) -> Sequential:
    """Return a network 2-32-32-3 with or without the biases before its BatchNorms."""
    return Sequential(
        Dense(2, 32, bias=bias),
        BatchNorm(activation="relu"),
        Dense(32, 32, bias=bias),
        BatchNorm(activation="relu"),
        Dense(32, 3),
        seed=0,
    )


def _largest_change(arrays: list[Array]) -> float:
    return float(max(np.abs(array - arrays[0]).max() for array in arrays))
