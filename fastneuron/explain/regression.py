"""The bias as the intercept of linear regression, and one for every neuron of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron import ops, plots
from fastneuron.arrays import Array
from fastneuron.datasets import make_linear
from fastneuron.explain.explanation import Explanation, table
from fastneuron.fitting import History
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import SGD

__all__ = ["intercept", "line"]


def _least_squares(X: Array, y: Array, bias: bool, epochs: int) -> tuple[Sequential, History]:
    """Train one linear neuron by whole-batch descent, from zero weights."""
    net = mlp([X.shape[1], 1], bias=bias, seed=0, weight_init="zeros")
    history = net.fit(
        X, y, loss="mse", optimizer=SGD(0.25), batch_size=len(X), epochs=epochs, shuffle=False
    )
    return net, history


def line() -> Explanation:
    """Train one neuron on y = 2x + 3, with and without a bias."""
    X, y = make_linear(256, slope=2.0, intercept=3.0)
    trained = {text: _least_squares(X, y, text == "with", 200) for text in ("with", "without")}
    nets = {text: net for text, (net, _) in trained.items()}
    error = {text: net.evaluate(X, y) for text, net in nets.items()}
    slope = {text: float(net.layers[0].weight[0, 0]) for text, net in nets.items()}
    bias = nets["with"].layers[0].bias
    assert bias is not None  # the network with one
    lines = (
        "One neuron without activation, trained on 256 points of y = 2x + 3, -1 <= x < 1:",
        f"  with bias     y = {slope['with']:.3f} x + {bias[0]:.3f}   "
        f"mean squared error {error['with']:.3f}",
        f"  without bias  y = {slope['without']:.3f} x           "
        f"mean squared error {error['without']:.3f}",
        "Without a bias every line passes through the origin; the best of them has the",
        "slope sum(x y) / sum(x^2), and the 3 stays in the error, nearly all of 3^2.",
    )

    def figures() -> dict[str, Any]:
        grid = np.linspace(-1, 1, 101, dtype=np.float32)[:, None]
        series = {"data: y = 2x + 3": (X[::8, 0], y[::8, 0])}
        for text, net in nets.items():
            series[f"{text} bias"] = (grid[:, 0], net.forward(grid)[:, 0])
        title = "y = 2x + 3, learnt with and without a bias"
        histories = {f"{text} bias": history for text, (_, history) in trained.items()}
        return {
            "line": plots.curves(
                series, "input x (no unit)", "output y (no unit)", title, points=1
            ),
            "line-learning": plots.learning_curves(histories, "mean squared error (unit of y²)"),
        }

    return Explanation(lines, {"slope": slope, "bias": float(bias[0]), "error": error}, figures)


def intercept() -> Explanation:
    """Compare a trained bias with least squares', and let three biases bend a line."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (256, 3)).astype(np.float32)
    noise = 0.1 * rng.standard_normal((256, 1))
    y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 4 + noise).astype(np.float32)
    net, _ = _least_squares(X, y, True, 400)
    bias = net.layers[0].bias
    assert bias is not None  # of a network with one
    got = np.append(net.layers[0].weight[:, 0], bias).astype(float)
    with_ones = np.append(X, np.ones((len(X), 1)), axis=1).astype(float)
    want = np.linalg.lstsq(with_ones, y.astype(float))[0][:, 0]
    residual = float(np.mean(y.astype(float) - net.forward(X)))

    # Weights of 1 into three ReLUs whose thresholds are 0, 1 and 2, summed with slopes 1, -2, 2.
    bends = mlp([1, 3, 1], seed=0)
    bends.layers[0].weight = np.ones((1, 3))
    bends.layers[0].bias = np.array([0.0, -1.0, -2.0])
    bends.layers[1].weight = np.array([[1.0], [-2.0], [2.0]])
    x = np.array([[-1.0], [0.0], [1.0], [2.0], [3.0]])
    bent = bends.forward(x)[:, 0].tolist()

    points = rng.standard_normal((64, 3)).astype(np.float32)
    homogeneous = mlp([3, 16, 16, 1], bias=False, seed=0)
    twice = np.array_equal(homogeneous.forward(2 * points), 2 * homogeneous.forward(points))
    rows = [
        (name, f"{w:.4f}", f"{g:.4f}")
        for name, w, g in zip(("w1", "w2", "w3", "intercept"), want, got, strict=True)
    ]
    lines = (
        "Without a hidden layer, squared loss is linear regression, and the bias is its",
        "intercept. Least squares (on a column of ones) and a trained neuron agree:",
        *table(("", "least squares", "trained"), rows),
        f"The bias takes the mean out of the residuals: what is left of it is {abs(residual):.4f}.",
        "In a network each neuron has an intercept of its own. Three ReLUs with weights 1",
        "and biases 0, -1, -2 have their kinks at x = 0, 1, 2:",
        f"  x     {'  '.join(f'{value:2g}' for value in x[:, 0])}",
        f"  f(x)  {'  '.join(f'{value:2g}' for value in bent)}",
        "Without biases all kinks are at 0: a ReLU network 3-16-16-1 then has",
        f"f(2x) = 2 f(x), on 64 points to the bit: {'true' if twice else 'false'}.",
    )

    def figures() -> dict[str, Any]:
        grid = np.linspace(-1, 3, 401, dtype=np.float32)[:, None]
        hidden = ops.dense_forward(
            grid, bends.layers[0].weight, bends.layers[0].bias, activation="relu"
        )
        series = {f"neuron {i + 1}, b = {0 - i:g}": (grid[:, 0], hidden[:, i]) for i in range(3)}
        series["network: h1 - 2 h2 + 2 h3"] = (grid[:, 0], bends.forward(grid)[:, 0])
        title = "An intercept for every neuron: three kinks"
        return {"intercept": plots.curves(series, "input x (no unit)", "output (no unit)", title)}

    values = {
        "least_squares": want.tolist(),
        "trained": got.tolist(),
        "mean_residual": residual,
        "kinks_x": x[:, 0].tolist(),
        "kinks_f": bent,
        "homogeneous": twice,
    }
    return Explanation(lines, values, figures)
