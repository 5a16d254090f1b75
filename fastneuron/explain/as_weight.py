"""The bias as one more weight: its gradient in matrix form, and the column of ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from fastneuron import ops
from fastneuron.arrays import Array
from fastneuron.explain.explanation import Explanation, table

__all__ = ["gradient", "ones"]

# Rounds of timing: a tenth of a second at 0.1 ms a layer, and a median that one pause leaves alone.
_ROUNDS = 300


def gradient() -> Explanation:
    """Compute dL/db as a product with ones, a row at a time, and by differences."""
    x = np.array([[1, 2], [3, -1], [0, 2], [-2, 1]], np.float32)
    w = np.array([[1, -1], [2, 1]], np.float32)
    b = np.array([1, -2], np.float32)
    y = np.array([[2, 0], [1, 1], [4, -2], [0, 1]], np.float32)

    def loss(bias: Array) -> float:
        return float(np.mean(ops.mse(ops.dense_forward(x, w, bias), y)[0]))

    out = ops.dense_forward(x, w, b)
    _, delta = ops.mse(out, y)
    _, dw, db = ops.dense_backward(delta, x, w, out)
    one = np.ones((len(x), 1), np.float32)
    by_ones = ops.dense_backward(delta, one, b[None], out)[1][0]
    by_rows = [
        ops.dense_backward(delta[i : i + 1], x[i : i + 1], w, out[i : i + 1])[2]
        for i in range(len(x))
    ]
    summed = np.array(by_rows).sum(axis=0)
    # The loss is a parabola in b, where a central difference of any width is the derivative.
    differences = [(loss(b + e) - loss(b - e)) / 2 for e in np.eye(2, dtype=np.float32)]
    assert db is not None  # asked for
    rows = [(f"{i + 1}", *(f"{value:g}" for value in (*x[i], *delta[i]))) for i in range(len(x))]
    ways = [
        (name, *(f"{value:g}" for value in found))
        for name, found in (
            ("delta^T 1: delta's product with ones", by_ones),
            ("sum of four gradients of one row each", summed),
            ("(L(b + 1) - L(b - 1)) / 2, a difference", differences),
            ("dense_backward, in the same pass as dL/dW", db),
        )
    ]
    lines = (
        "Every row of a batch has its own input but the same b: Z = X W + 1 b, with 1 a",
        "column of ones. With delta = dL/dZ the chain rule gives dL/dW = X^T delta and",
        "dL/db = delta^T 1: the sum of delta over the rows. A batch of four rows:",
        *table(("row", "x1", "x2", "delta1", "delta2"), rows),
        *table(("dL/db", "b1", "b2"), [(row[0].ljust(41), *row[1:]) for row in ways]),
        "(The mean over the batch is in delta already: L is a mean over the rows.)",
    )
    values = {
        "delta": delta.tolist(),
        "dw": dw.tolist(),
        "db": db.tolist(),
        "by_ones": by_ones.tolist(),
        "by_rows": summed.tolist(),
        "by_differences": differences,
    }
    return Explanation(lines, values)


def _layer(x: Array, w: Array, b: Array | None, dy: Array) -> tuple[Array, Array, Array | None]:
    """Return a ReLU layer's output and its weight's and bias's gradients."""
    out = ops.dense_forward(x, w, b, "relu")
    _, dw, db = ops.dense_backward(dy, x, w, out, "relu", bias=b is not None)
    return out, dw, db


def _with_ones(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)


def ones() -> Explanation:
    """Compute a layer with a fused bias and with a column of ones; compare values and time."""
    rng = np.random.default_rng(0)
    # Arrays well below 128 KiB: larger results may be pages fresh from the system at every call, as
    # the allocator decides; with 256 rows one and the same call took 154 us in one run, 281 in the
    # next.
    B, n_in, n_out = 64, 128, 128
    x, w, b, dy = (
        rng.integers(-4, 5, size).astype(np.float32)
        for size in ((B, n_in), (n_in, n_out), (n_out,), (B, n_out))
    )
    out, dw, db = _layer(x, w, b, dy)
    out1, dw1, _ = _layer(_with_ones(x), np.concatenate([w, b[None]]), None, dy)
    assert db is not None  # of a layer with one
    same = {
        "forward": np.array_equal(out, out1),
        "dw": np.array_equal(dw, dw1[:-1]),
        "db": np.array_equal(db, dw1[-1]),
    }

    x, w, b, dy = (
        rng.standard_normal(size).astype(np.float32)
        for size in ((B, n_in), (n_in, n_out), (n_out,), (B, n_out))
    )
    w1, x1 = np.concatenate([w, b[None]]), _with_ones(x)
    z, z1 = ops.dense_forward(x, w, b), ops.dense_forward(x1, w1)
    # Each way errs by at most g(n + 1) (|x| |w| + |b|), g(n) = n u / (1 - n u), u = 2^-24: n
    # products and a bias take n + 1 roundings at most, in any order (Higham 2002, lemma 3.1).
    nu = (n_in + 1) * 2.0**-24
    bound = 2 * nu / (1 - nu) * (np.abs(x).astype(float) @ np.abs(w) + np.abs(b))
    difference = np.abs(z.astype(float) - z1)
    worst = float(np.max(difference / bound))
    equal = float(np.mean(z == z1))

    seconds = _timed(
        {
            "fused": lambda: _layer(x, w, b, dy),
            "ready": lambda: _layer(x1, w1, None, dy),
            "built": lambda: _layer(_with_ones(x), w1, None, dy),
        }
    )
    ratio = {name: seconds[name] / seconds["fused"] for name in ("ready", "built")}
    said = {name: "equal to the bit" if bits else "different" for name, bits in same.items()}
    lines = (
        "x W + b = [x, 1] [W; b]: append a 1 to every input and b as the last row of W.",
        f"A layer {n_in} -> {n_out}, ReLU, {B} rows of whole numbers, where no sum rounds:",
        f"  output {said['forward']}, dL/dW {said['dw']},",
        f"  dL/db and the gradient of the last row of [W; b] {said['db']}",
        f"Random numbers round, and 1 * b is added in another place: {100 * equal:.0f} % of the z",
        f"are equal to the bit, the largest difference is {100 * worst:.1g} % of the proved bound.",
        "Time of forward and backward, medians taken by turns on this machine:",
        f"  fused bias                          {1e6 * seconds['fused']:6.0f} us",
        f"  ones column, kept ready             {1e6 * seconds['ready']:6.0f} us, "
        f"{ratio['ready']:.2f} times",
        f"  ones column, appended each step     {1e6 * seconds['built']:6.0f} us, "
        f"{ratio['built']:.2f} times",
        "Between hidden layers it must be appended each step. The ones column is to think",
        "and to prove with, the fused bias to compute with.",
    )
    values = {"same": same, "worst_of_bound": worst, "equal_share": equal, "seconds": seconds}
    return Explanation(lines, values)


def _timed(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each, called by turns so that a disturbance meets all."""
    for call in ways.values():  # loads or compiles what it uses
        call()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}
