"""Why a bias that feeds a batch normalisation has no effect."""

from __future__ import annotations

import numpy as np

from fastneuron import ops
from fastneuron.arrays import Array
from fastneuron.explain.explanation import Explanation

__all__ = ["batchnorm"]


def _normalise(z: Array) -> tuple[Array, Array]:
    """Return (z - mean) / deviation over the batch, and the deviations; no epsilon."""
    centred = z - z.mean(axis=0)
    deviation = np.sqrt(np.square(centred).mean(axis=0))
    return centred / deviation, deviation


def _backward(dout: Array, normal: Array, deviation: Array) -> Array:
    """Return dL/dz of `_normalise`: what is left of dout without its mean and its part along z."""
    part = (dout * normal).mean(axis=0)
    return (dout - dout.mean(axis=0) - normal * part) / deviation


def batchnorm() -> Explanation:
    """Normalise with several biases, and send a gradient back through the normalisation."""
    # Two neurons whose z are 0, 8 and 8, 0, 8, 0: mean 4 and deviation 4, so nothing below rounds.
    x = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 0], [0, 0], [1, 1], [1, 1]], np.float32)
    w = np.array([[8, 0], [0, 8]], np.float32)
    dout = np.array(
        [[1, 2], [3, -1], [-2, 0], [1, 4], [0, -3], [2, 1], [-1, 1], [4, 4]], np.float32
    )
    biases = (0.0, 1.0, -64.0)
    outs, with_norm, without = [], [], []
    for b in biases:
        z = ops.dense_forward(x, w, np.full(2, b, np.float32))
        normal, deviation = _normalise(z)
        outs.append(normal)
        dz = np.ascontiguousarray(_backward(dout, normal, deviation))
        db = ops.dense_backward(dz, x, w, z)[2]
        plain = ops.dense_backward(dout, x, w, z)[2]
        assert db is not None  # asked for
        assert plain is not None
        with_norm.append(db.tolist())
        without.append(plain.tolist())
    difference = float(max(np.abs(out - outs[0]).max() for out in outs))
    beta = np.float32(3)
    shifted = float((outs[1] + beta).mean())
    lines = (
        "Batch normalisation subtracts each neuron's mean over the batch. A bias is in",
        "that mean like in every row: z + b - mean(z + b) = z - mean(z).",
        f"  largest change of the output for b = 1 and b = -64: {difference:g}",
        "Back through the mean, dL/dz has a sum of 0 over the batch, so the bias learns",
        "nothing. dL/db of two neurons, eight rows:",
        f"  without normalisation  {without[0][0]:g}, {without[0][1]:g}",
        f"  with normalisation     {with_norm[0][0]:g}, {with_norm[0][1]:g}",
        "The shift after it, beta, does the bias's work: with beta = 3 the mean output",
        f"is {shifted:g}. Leave the bias out of the layer before: Dense(..., bias=False).",
    )
    values = {
        "difference": difference,
        "db_with": with_norm,
        "db_without": without,
        "mean_with_beta": shifted,
    }
    return Explanation(lines, values)
