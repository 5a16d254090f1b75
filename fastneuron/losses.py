"""The table of losses: a number for every row, and its gradient by the network's output.

A batch's loss is ``sum_i weight_i rows_i / B``; weights and the division by B are not in here.
Shapes: n rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastneuron.registry import Registry

__all__ = ["HUBER_DELTA", "LOSSES", "Loss"]

#: Residual at which huber turns from a parabola into a line, in units of the target.
HUBER_DELTA = 1.0


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes
    ----------
    name : str
    code : int
        Small number by which compiled kernels know it; files store the name.
    slot : str
        The slot (`fastneuron.kernels.contract.SLOTS`) that computes it.
    formula, gradient, source : str
        Loss of a row, its gradient by the output o, and where they come from, as text.
    targets : {"values", "classes", "binary", "counts"}
        What y holds: any numbers; class numbers (n,) int64 or one row of class probabilities a
        sample; numbers from 0 to 1; numbers of at least 0.
    rows : callable
        (out (n, O), y) -> (n,), in the dtype of out.
    grad : callable
        (out (n, O), y) -> (n, O), the gradient of each row's loss by that row's outputs.
    predict : callable
        out (n, O) -> what `predict` hands to the user.
    """

    name: str
    code: int
    slot: str
    formula: str
    gradient: str
    source: str
    targets: Literal["values", "classes", "binary", "counts"]
    rows: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    grad: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    predict: Callable[[NDArray[Any]], NDArray[Any]]

    def mean(self, out: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None = None) -> float:
        """Return the mean over rows of weight * loss, in float64.

        Parameters
        ----------
        out : (n, O)
        y : as `targets` says
        weight : (n,) or None
            Of mean 1.
        """
        y64 = y if y.dtype == np.int64 else y.astype(np.float64)
        rows = self.rows(out.astype(np.float64), y64)
        return float(np.mean(rows if weight is None else rows * weight))


# A diverging network brings infinities and NaN here. They belong in the result, where the engine
# finds them; a warning from the middle of a formula would say nothing more.
_quiet = np.errstate(over="ignore", invalid="ignore")


def _unchanged(out: NDArray[Any]) -> NDArray[Any]:
    return out


@_quiet
def _mse_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return np.square(out - y).mean(axis=1)


@_quiet
def _mse_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return 2 * (out - y) / out.shape[1]


@_quiet
def _mae_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return np.abs(out - y).mean(axis=1)


@_quiet
def _mae_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return np.sign(out - y) / out.shape[1]


@_quiet
def _huber_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    r = np.abs(out - y)
    inner = np.minimum(r, HUBER_DELTA)
    return (inner * (r - inner / 2)).mean(axis=1)


@_quiet
def _huber_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return np.clip(out - y, -HUBER_DELTA, HUBER_DELTA) / out.shape[1]


def _log_softmax(out: NDArray[Any]) -> NDArray[Any]:
    shifted = out - out.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@_quiet
def _cross_entropy_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    log_p = _log_softmax(out)
    if y.ndim == 1:
        return -log_p[np.arange(len(y)), y]
    return -(y * log_p).sum(axis=1)


@_quiet
def _cross_entropy_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    p = np.exp(_log_softmax(out))
    if y.ndim == 1:
        p[np.arange(len(y)), y] -= 1
        return p
    return p * y.sum(axis=1, keepdims=True) - y


def _largest(out: NDArray[Any]) -> NDArray[Any]:
    return out.argmax(axis=1).astype(np.int64)


@_quiet
def _binary_cross_entropy_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    loss = np.maximum(out, 0) - out * y + np.log1p(np.exp(-np.abs(out)))
    return loss.mean(axis=1)


@_quiet
def _binary_cross_entropy_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    t = np.exp(-np.abs(out))
    p = np.where(out >= 0, 1, t) / (1 + t)
    return (p - y) / out.shape[1]


def _above_zero(out: NDArray[Any]) -> NDArray[Any]:
    classes = (out > 0).astype(np.int64)
    return classes[:, 0] if out.shape[1] == 1 else classes


@_quiet
def _poisson_rows(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return (np.exp(out) - y * out).mean(axis=1)


@_quiet
def _poisson_grad(out: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return (np.exp(out) - y) / out.shape[1]


@_quiet
def _rate(out: NDArray[Any]) -> NDArray[Any]:
    return np.exp(out)


#: Every loss by name.
LOSSES: Registry[Loss] = Registry("loss")

for _loss in (
    Loss(
        name="mse",
        code=0,
        slot="mse",
        formula="mean_j (o_j - y_j)^2",
        gradient="2 (o_j - y_j) / O",
        source="least squares; Gauss 1809, Theoria motus",
        targets="values",
        rows=_mse_rows,
        grad=_mse_grad,
        predict=_unchanged,
    ),
    Loss(
        name="mae",
        code=1,
        slot="mae",
        formula="mean_j |o_j - y_j|",
        gradient="sign(o_j - y_j) / O (0 where they are equal)",
        source="least absolute deviations; Laplace 1793",
        targets="values",
        rows=_mae_rows,
        grad=_mae_grad,
        predict=_unchanged,
    ),
    Loss(
        name="huber",
        code=2,
        slot="huber",
        formula="mean_j h(o_j - y_j), h(r) = r^2 / 2 where |r| <= 1, else |r| - 1/2",
        gradient="max(-1, min(1, o_j - y_j)) / O",
        source="Huber 1964, Annals of Mathematical Statistics 35 (delta = 1)",
        targets="values",
        rows=_huber_rows,
        grad=_huber_grad,
        predict=_unchanged,
    ),
    Loss(
        name="cross_entropy",
        code=3,
        slot="softmax_cross_entropy",
        formula="sum_j y_j (logsumexp(o) - o_j); a class number stands for its one-hot row",
        gradient="softmax(o)_j sum_k y_k - y_j",
        source="Bridle 1990, Neurocomputing (NATO ASI F 68); Bishop 2006, section 4.3.4",
        targets="classes",
        rows=_cross_entropy_rows,
        grad=_cross_entropy_grad,
        predict=_largest,
    ),
    Loss(
        name="binary_cross_entropy",
        code=4,
        slot="binary_cross_entropy",
        formula="mean_j max(o_j, 0) - o_j y_j + log1p(exp(-|o_j|))",
        gradient="(1 / (1 + exp(-o_j)) - y_j) / O",
        source="logistic regression; Cox 1958; Bishop 2006, section 4.3.2 (o is the logit)",
        targets="binary",
        rows=_binary_cross_entropy_rows,
        grad=_binary_cross_entropy_grad,
        predict=_above_zero,
    ),
    Loss(
        name="poisson",
        code=5,
        slot="poisson",
        formula="mean_j exp(o_j) - y_j o_j",
        gradient="(exp(o_j) - y_j) / O",
        source="Nelder & Wedderburn 1972, JRSS A 135 (o is the log rate; log(y!) is left out)",
        targets="counts",
        rows=_poisson_rows,
        grad=_poisson_grad,
        predict=_rate,
    ),
):
    LOSSES.register(_loss.name, _loss)
