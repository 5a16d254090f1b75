"""What an output bias that starts at the class frequencies saves where one class is rare."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastneuron import plots
from fastneuron.activations import ACTIVATIONS
from fastneuron.explain.explanation import Explanation, table
from fastneuron.network import mlp
from fastneuron.optimizers import SGD, Adam, Optimizer

__all__ = ["prior"]

_ROWS, _EVERY = 5000, 50  # each 50th row is positive: 2 %
_EPOCHS = 10
#: After which the losses are shown; 0 is before the first step.
_SHOWN = (0, 1, 2, 5, 10)
_OPTIMIZERS: dict[str, Optimizer] = {
    "Adam(0.001)": Adam(0.001),
    "SGD(0.1, momentum=0.9)": SGD(0.1, momentum=0.9),
}
_STARTS = {"bias 0": "zeros", "class prior": "class_prior"}


def _losses(optimizer: Optimizer, start: str) -> tuple[float, float, list[float]]:
    """Return the first output bias, the mean first prediction, and the loss after each epoch."""
    rng = np.random.default_rng(0)
    y = (np.arange(_ROWS) % _EVERY == 0).astype(np.int64)
    # Eight inputs, of which four lie a deviation higher where y is 1.
    X = rng.standard_normal((_ROWS, 8)) + y[:, None] * np.repeat([1.0, 0.0], 4)
    X = X.astype(np.float32)
    loss = "binary_cross_entropy"
    net = mlp([8, 16, 1], bias_init=start, seed=0)
    if start == "class_prior":
        net.set_class_prior(y, loss)  # as the fit below would, for a look before it
    bias = net.layers[-1].bias
    assert bias is not None  # of mlp's
    first = float(ACTIVATIONS["sigmoid"].f(net.forward(X).astype(float)).mean())
    losses = [net.evaluate(X, y, loss)]

    def note(state: Any) -> None:
        losses.append(net.evaluate(X, y))

    net.fit(X, y, loss=loss, optimizer=optimizer, batch_size=100, epochs=_EPOCHS, callbacks=[note])
    return float(bias[0]), first, losses


def prior() -> Explanation:
    """Train on rare events from both starts, by two optimizers."""
    share = 1 / _EVERY
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    found = {
        (name, text): _losses(optimizer, start)
        for name, optimizer in _OPTIMIZERS.items()
        for text, start in _STARTS.items()
    }
    starts = {text: found["Adam(0.001)", text][:2] for text in _STARTS}
    losses = {key: values for key, (_, _, values) in found.items()}
    rows = [
        (f"{name.ljust(23)}{text}".ljust(34), *(f"{values[i]:.3f}" for i in _SHOWN))
        for (name, text), values in losses.items()
    ]
    heads = ("before", "epoch 1", *map(str, _SHOWN[2:]))
    lines = (
        f"{_ROWS:,} rows, of which 2 % are positive; a network 8-16-1, binary cross entropy.",
        "Answering 2 % whatever comes in has a loss of",
        f"-(0.02 log 0.02 + 0.98 log 0.98) = {entropy:.3f}, answering one half log 2 = 0.693.",
        "A bias of 0 begins at the half; log(p / (1 - p)), the log-odds of the labels'",
        "frequency p, begins at p:",
        *table(
            ("".ljust(11), "output bias", "mean first prediction"),
            [(t.ljust(11), f"{b:.3f}", f"{p:.3f}") for t, (b, p) in starts.items()],
        ),
        "Loss over all rows before the first step and after epochs of 50 steps:",
        *table(("".ljust(34), *heads), rows),
        "At Adam's usual rate ten epochs do not bring a bias of 0 to where the class",
        "prior begins; large steps bring it there within one, and both end alike.",
    )

    def figures() -> dict[str, Any]:
        epochs = np.arange(_EPOCHS + 1)
        series: dict[str, Any] = {"the frequency alone": (epochs, np.full(len(epochs), entropy))}
        for (name, text), path in losses.items():
            series[f"{name}, {text}"] = (epochs, path)
        figure = plots.curves(
            series,
            "epoch (count)",
            "binary cross entropy (nats)",
            "2 % positives: two starts",
            points=1,
        )
        axes = figure.axes[0]
        axes.set_yscale("log")
        ticks = [0.06, 0.1, 0.2, 0.4, 0.7]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        return {"prior": figure}

    values = {
        "entropy": entropy,
        "bias": {text: b for text, (b, _) in starts.items()},
        "first": {text: p for text, (_, p) in starts.items()},
        "losses": {f"{name}, {text}": values for (name, text), values in losses.items()},
    }
    return Explanation(lines, values, figures)
