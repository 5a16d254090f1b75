"""Where a bias stops moving, and which of all-zero starts can train."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron import ops, plots
from fastneuron.arrays import Array
from fastneuron.datasets import make_spirals
from fastneuron.explain.explanation import Explanation, table
from fastneuron.fitting import History
from fastneuron.layers import Dense
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import SGD, Adam

__all__ = ["RUNS", "saturation", "symmetry"]

#: Activation, loss, target and first bias of the neurons whose biases are watched.
RUNS = {
    "relu": ("relu", "mse", 0.0, 8.0),
    "sigmoid": ("sigmoid", "mse", 0.0, 8.0),
    "sigmoid on logits": ("identity", "binary_cross_entropy", 0.0, 8.0),
    "dead relu": ("relu", "mse", 1.0, -8.0),
}
_STEPS = 100
_RATE = 0.1


def _watch(activation: str, loss: str, target: float, start: float) -> tuple[float, Array]:
    """Return dL/db at the start, and the bias before the first step and after each."""
    net = Sequential(Dense(1, 1, activation), seed=0)
    net.layers[0].bias = np.array([start])
    # An input of 0 leaves all to the bias: z is b, and the weight's gradient is 0.
    x, y = np.zeros((1, 1), np.float32), np.full((1, 1), target, np.float32)
    path = [start]

    def note(state: Any) -> None:
        path.append(state.net.layers[0].bias.item())

    net.fit(x, y, loss=loss, optimizer=SGD(_RATE), batch_size=1, epochs=_STEPS, callbacks=[note])
    first = (path[0] - path[1]) / _RATE
    return first, np.array(path)


def saturation() -> Explanation:
    """Compute slopes along z, and follow four biases through 100 steps of descent."""
    z = np.array([[-8.0], [0.0], [2.0], [8.0], [16.0]], np.float32)
    one = np.ones((1, 1), np.float32)
    slopes: dict[str, list[float]] = {}
    for name in ("sigmoid", "relu"):
        a = ops.bias_act_forward(z, None, name)
        slopes[name] = [ops.act_bias_backward(one, row[None], name)[0].item() for row in a]
    rows = [
        (f"{z[i, 0]:g}", f"{slopes['sigmoid'][i]:.2g}", f"{slopes['relu'][i]:g}") for i in range(5)
    ]
    paths = {name: _watch(*run) for name, run in RUNS.items()}
    labels = {
        "relu": "ReLU, squared error, target 0",
        "sigmoid": "sigmoid, squared error, target 0",
        "sigmoid on logits": "sigmoid in the loss (cross entropy)",
        "dead relu": "ReLU, squared error, target 1",
    }
    moved = [
        (labels[name].ljust(35), f"{path[0]:g}", f"{first:.2g}", f"{0 + path[-1]:.3f}")
        for name, (first, path) in paths.items()
    ]
    lines = (
        "dL/db = delta = dL/da f'(z): where f is flat, the bias stops with the weights.",
        *table(("z", "slope of sigmoid", "slope of ReLU"), rows),
        f"Biases of four neurons, {_STEPS} steps of descent (rate {_RATE:g}), input 0, so z = b:",
        *table(("".ljust(35), "b at first", "dL/db", "b at last"), moved),
        "The saturated sigmoid is wrong by all it can be and hardly moves; ReLU's slope",
        "stays 1, and it arrives. Cross entropy on the logits cancels f'(z) in delta: it",
        "moves too. Below zero a ReLU is worse off: dead, its gradient is exactly 0.",
    )

    def figures() -> dict[str, Any]:
        steps = np.arange(_STEPS + 1)
        series = {labels[name]: (steps, path) for name, (_, path) in paths.items()}
        used = {
            "sigmoid": ("sigmoid", paths["sigmoid"][1]),
            "relu": ("relu", paths["relu"][1]),
        }
        return {
            "saturation": plots.curves(
                series, "optimizer step (count)", "bias b (no unit)", "Biases that move and stay"
            ),
            "saturation-activations": plots.activation_curves(used),
        }

    values = {
        "slopes": slopes,
        "first": {name: first for name, (first, _) in paths.items()},
        "last": {name: float(path[-1]) for name, (_, path) in paths.items()},
    }
    return Explanation(lines, values, figures)


def symmetry() -> Explanation:
    """Train from random, zero and equal weights, all with zero biases."""
    X, y = make_spirals(300, classes=3, turns=0.5, seed=0)
    starts = {"random": "auto", "zero": "zeros", "equal": "auto"}
    nets: dict[str, Sequential] = {}
    histories: dict[str, History] = {}
    biases: list[Array] = []
    for name, start in starts.items():
        net = mlp([2, 32, 3], weight_init=start, bias_init="zeros", seed=0)
        if name == "equal":
            for layer in net.layers:
                layer.weight = np.full(layer.weight.shape, 0.5)
        nets[name] = net

        def note(state: Any) -> None:
            bias = state.net.layers[0].bias
            biases.append(bias)

        histories[name] = net.fit(
            X,
            y,
            loss="cross_entropy",
            optimizer=Adam(0.02),
            batch_size=30,
            epochs=60,
            callbacks=[note] if name == "random" else [],
        )
    first = {name: net.layers[0].weight for name, net in nets.items()}
    accuracy = {name: net.score(X, y) for name, net in nets.items()}
    # Distinct columns: neurons that do not compute the same as another.
    distinct = {name: len(np.unique(w, axis=1).T) for name, w in first.items()}
    largest = {name: float(np.abs(w).max()) for name, w in first.items()}
    rows = [
        (
            f"{name} weights".ljust(14),
            f"{100 * accuracy[name]:.0f} %",
            f"{distinct[name]}",
            f"{largest[name]:.2f}",
        )
        for name in starts
    ]
    lines = (
        "Three spiral arms of 100 points, a network 2-32-3 with ReLU, 60 epochs of Adam;",
        "every bias starts at 0:",
        *table(("".ljust(14), "right", "distinct neurons", "largest |weight|"), rows),
        "Random weights break the symmetry, so all biases may start at 0. Zero weights",
        "make every hidden output 0, and with it every gradient but the output bias's:",
        "the weights stay exactly 0 and all answers are alike. Equal weights move, but",
        "neurons that start equal get equal gradients and stay copies of one neuron.",
    )

    def figures() -> dict[str, Any]:
        named = {f"{name} weights": history for name, history in histories.items()}
        return {
            "symmetry": plots.learning_curves(named, "cross entropy (nats)"),
            "symmetry-biases": plots.bias_histograms(np.array([np.zeros(32), *biases])),
            "symmetry-boundary": plots.decision_boundary(
                {f"{name} weights": net for name, net in nets.items()}, X, y
            ),
        }

    values = {
        "accuracy": accuracy,
        "distinct": distinct,
        "largest": largest,
        "zero_loss": float(histories["zero"].loss[-1]),
    }
    return Explanation(lines, values, figures)
