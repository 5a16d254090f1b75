"""The loss slots: the loss of every row and the gradient of the batch's loss, in one pass.

What all of them share. Formulas: `fastneuron.losses`.

Arrays: out (B, O) IN; y IN, (B, O), for cross-entropy also (B,) int64 class numbers; weight (B,) or
None IN, None standing for ones; rows (B,) OUT: ``weight_i loss_i``; dout (B, O) OUT:
``weight_i dloss_i / dout_i / B``, the gradient of ``sum(rows) / B``.

Cost: reads 2 B O + B, writes B O + B.

Order: the sum over the O outputs of a row is NumPy's; fast kernels fix it by O alone. The sum over
the rows is the engine's: float64, in an order fixed by B alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

from fastneuron.kernels.reference.dense import quiet
from fastneuron.losses import LOSSES

__all__ = [
    "binary_cross_entropy",
    "huber",
    "mae",
    "mse",
    "poisson",
    "softmax_cross_entropy",
]

Array: TypeAlias = NDArray[Any]


def mse(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Squared error.

    Formula
    -------
    ``loss_i = sum_j (out_ij - y_ij)^2 / O``; ``dloss_ij = 2 (out_ij - y_ij) / O``.

    Source
    ------
    Gauss 1809.
    """
    return _weighted("mse", out, y, weight)


def mae(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Absolute error.

    Formula
    -------
    ``loss_i = sum_j |out_ij - y_ij| / O``; ``dloss_ij = sign(out_ij - y_ij) / O``, 0 at equality.

    Source
    ------
    Laplace 1793.
    """
    return _weighted("mae", out, y, weight)


def huber(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Squared error near zero, absolute error beyond 1.

    Formula
    -------
    ``loss_i = sum_j h(out_ij - y_ij) / O``, ``h(r) = r^2 / 2`` where ``|r| <= 1``, else
    ``|r| - 1/2``; ``dloss_ij = clip(out_ij - y_ij, -1, 1) / O``.

    Source
    ------
    Huber 1964.
    """
    return _weighted("huber", out, y, weight)


def softmax_cross_entropy(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Cross-entropy of the softmax of logits; y holds class numbers or rows of probabilities.

    Formula
    -------
    ``loss_i = sum_j y_ij (lse_i - out_ij)``, ``lse_i = m_i + log sum_j exp(out_ij - m_i)``,
    ``m_i = max_j out_ij``; ``dloss_ij = exp(out_ij - lse_i) sum_k y_ik - y_ij``. A class number c
    stands for the row that is 1 at c.

    Source
    ------
    Bridle 1990; the shift by the maximum: Blanchard, Higham & Higham 2021, IMA J. Numer. Anal. 41.
    """
    return _weighted("cross_entropy", out, y, weight)


def binary_cross_entropy(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Cross-entropy of the logistic of each logit, averaged over the outputs.

    Formula
    -------
    ``loss_i = sum_j (max(out_ij, 0) - out_ij y_ij + log1p(exp(-|out_ij|))) / O``;
    ``dloss_ij = (1 / (1 + exp(-out_ij)) - y_ij) / O``.

    Source
    ------
    Cox 1958.
    """
    return _weighted("binary_cross_entropy", out, y, weight)


def poisson(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Negative log-likelihood of counts whose log rate is the output, without log(y!).

    Formula
    -------
    ``loss_i = sum_j (exp(out_ij) - y_ij out_ij) / O``; ``dloss_ij = (exp(out_ij) - y_ij) / O``.

    Source
    ------
    Nelder & Wedderburn 1972.
    """
    return _weighted("poisson", out, y, weight)


@quiet
def _weighted(name: str, out: Array, y: Array, weight: Array | None) -> tuple[Array, Array]:
    loss = LOSSES[name]
    rows, dloss = loss.rows(out, y), loss.grad(out, y)
    if weight is not None:
        rows, dloss = weight * rows, weight[:, None] * dloss
    return rows, dloss / len(out)
