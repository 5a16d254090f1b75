"""What a bias shifts: a threshold, a boundary, the answer to an input of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron import ops, plots
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import Array
from fastneuron.explain.explanation import Explanation, table
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import Adam

__all__ = ["hyperplane", "threshold", "two_boxes", "zeros"]


def _column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


def threshold() -> Explanation:
    """Compute ReLU(w x + b) about its threshold -b/w for w = 2 and b = 0, 1."""
    weight, biases = 2.0, (0.0, 1.0)
    w = _column(weight)
    # Float32's neighbours of the threshold: 2 x + 1 is exact there, so its sign is no rounding.
    edge = np.float32(-0.5)
    below, above = (float(np.nextafter(edge, np.float32(to))) for to in (-1, 0))
    xs = (-1.0, -0.75, below, -0.5, above, -0.25, 0.0, 0.25)
    x = _column(*xs)
    z = {b: ops.dense_forward(x, w, np.array([b], np.float32))[:, 0] for b in biases}
    a = {b: ops.dense_forward(x, w, np.array([b], np.float32), "relu")[:, 0] for b in biases}
    names = {below: "just below -0.5", above: "just above -0.5"}
    rows = [
        (
            names.get(xs[i], f"{xs[i]:g}"),
            f"{z[0.0][i]:g}",
            f"{a[0.0][i]:g}",
            f"{z[1.0][i]:.3g}",
            f"{a[1.0][i]:.3g}",
            "yes" if a[1.0][i] > 0 else "no",
        )
        for i in range(len(xs))
    ]
    lines = (
        "A ReLU neuron a = max(0, z), z = w x + b, is active where z > 0. With w = 2 this",
        "is x > -b/2: b = 1 moves the threshold from x = 0 to x = -0.5.",
        *table(("x", "z, b=0", "a, b=0", "z, b=1", "a, b=1", "active, b=1"), rows),
        "At x = -0.5 itself z is exactly 0: the neuron is still silent there, its slope",
        "counts as 0, and it is active from the very next float32 number on.",
    )

    def figures() -> dict[str, Any]:
        grid = np.linspace(-2, 2, 401, dtype=np.float32)
        series = {}
        for b in biases:
            out = ops.dense_forward(grid[:, None], w, np.array([b], np.float32), "relu")
            series[f"b = {b:g}: active for x > {0 - b / weight:g}"] = (grid, out[:, 0])
        title = "A bias moves the threshold: ReLU(2x + b)"
        return {"threshold": plots.curves(series, "input x (no unit)", "output a (no unit)", title)}

    values = {
        "x": list(xs),
        "below": below,
        "above": above,
        "thresholds": [0 - b / weight for b in biases],
        **{f"z_b{b:g}": z[b].tolist() for b in biases},
        **{f"a_b{b:g}": a[b].tolist() for b in biases},
    }
    return Explanation(lines, values, figures)


def hyperplane() -> Explanation:
    """Move the boundary of a neuron of two inputs, and train one with and one without a bias."""
    # |w| = 5, and the foot of each boundary, -b w / |w|^2, is whole: every z below is exact.
    w = np.array([[3.0], [4.0]], np.float32)
    biases = (0.0, -25.0, -50.0)
    feet, distances, on_boundary, rows = [], [], [], []
    along = np.array([-4.0, 3.0], np.float32)  # at right angles to w
    for b in biases:
        foot = (0 - b) * w[:, 0] / np.float32(25)
        points = np.stack([foot - along, foot, foot + along])
        z = ops.dense_forward(points, w, np.array([b], np.float32))[:, 0]
        feet.append(foot.tolist())
        distances.append(0 - b / 5)
        on_boundary.append(z.tolist())
        rows.append(
            (f"{b:g}", f"({foot[0]:g}, {foot[1]:g})", f"{distances[-1]:g}", f"{np.abs(z).max():g}")
        )
    X, y = two_boxes()
    nets = {text: _separate(X, y, bias) for text, bias in (("with", True), ("without", False))}
    score = {text: net.score(X, y) for text, net in nets.items()}
    layer = nets["with"].layers[0]
    slopes, shift = layer.weight[:, 0].astype(float), layer.bias
    assert shift is not None  # the network with one
    learnt = -float(shift[0]) / float(np.hypot(*slopes))
    lines = (
        "A neuron's boundary z = w x + b = 0 is a line (with n inputs, a hyperplane) at",
        "right angles to w, at the distance -b/|w| from the origin. With w = (3, 4):",
        *table(("b", "nearest point to 0", "distance", "largest |z| on it"), rows),
        "Weights turn the boundary; only the bias takes it off the origin. Trained on two",
        "classes of points of which one is the other times 4, on the same rays:",
        f"  with bias     {100 * score['with']:5.1f} % right, "
        f"the boundary is {learnt:.1f} from the origin",
        f"  without bias  {100 * score['without']:5.1f} % right: z(4x) = 4 z(x) has the same sign,",
        "                so of every pair one point is wrong, whatever the weights are",
    )

    def figures() -> dict[str, Any]:
        return {
            "hyperplane": plots.hyperplanes(w[:, 0], biases),
            "hyperplane-trained": plots.decision_boundary(
                {f"{text} bias": net for text, net in nets.items()}, X, y
            ),
        }

    values = {
        "biases": list(biases),
        "feet": feet,
        "distances": distances,
        "z_on_boundary": on_boundary,
        "accuracy": score,
        "weight": slopes.tolist(),
        "bias": float(shift[0]),
        "distance_learnt": learnt,
    }
    return Explanation(lines, values, figures)


def two_boxes(n: int = 200) -> tuple[Array, Array]:
    """Return n points in a small box (class 0) and the same times 4 (class 1).

    Times a power of two, so that z without a bias is four times the other's z to the bit.
    """
    near = np.random.default_rng(0).uniform(0.5, 1.0, (n, 2)).astype(np.float32)
    return np.concatenate([near, 4 * near]), np.repeat([0, 1], n)


def _separate(X: Array, y: Array, bias: bool) -> Sequential:
    net = mlp([2, 1], bias=bias, seed=0)
    net.fit(X, y, loss="binary_cross_entropy", optimizer=Adam(0.1), batch_size=len(X), epochs=400)
    return net


def zeros() -> Explanation:
    """Ask every activation for its answer to zeros, and look at the gradients of such a batch."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 1)).astype(np.float32)
    x, one = np.zeros((1, 5), np.float32), np.ones(1, np.float32)
    f0 = {name: ops.dense_forward(x, weight, None, name).item() for name in ACTIVATIONS}
    fb = {name: ops.dense_forward(x, weight, one, name).item() for name in ACTIVATIONS}
    rows = [(name, f"{f0[name]:.4f}", f"{fb[name]:.4f}") for name in ACTIVATIONS]

    batch, delta = np.zeros((4, 5), np.float32), np.ones((4, 1), np.float32)
    _, dw, db = ops.dense_backward(delta, batch, weight, np.zeros_like(delta))
    assert db is not None  # asked for
    lines = (
        "For x = 0 the product x W is 0 whatever the weights are. Without a bias the",
        "neuron answers f(0), and no weight can change that; with one it answers f(b):",
        *table(("activation", "f(0)", "f(b), b = 1"), rows),
        "Nor do the weights learn from such rows: dL/dW = x^T delta is a product with x.",
        f"Of 4 rows of zeros with delta = 1, the largest |dL/dW| is {np.abs(dw).max():g}, and "
        f"dL/db is {db[0]:g}.",
    )
    values = {"f0": f0, "fb": fb, "dw": dw[:, 0].tolist(), "db": db.tolist()}
    return Explanation(lines, values)
