"""Rounding bounds of the losses: rows and gradients of a batch from bounded outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastneuron.losses import HUBER_DELTA, Loss
from fastneuron.testing.bounds import EXP_ULP, Array, Bounded, Precision

__all__ = ["loss_of_batch"]


def loss_of_batch(
    loss: Loss, out: Bounded, y: Array, weight: Array | None, p: Precision
) -> tuple[Bounded, Bounded, Bounded]:
    """Return weighted row losses (n,), dL/d(out) (n, O) and the mean loss () of a batch.

    The row losses are ``weight_i rows_i``, the gradient ``weight_i grad_i / n``: at most four
    roundings more than the unweighted ones. The mean adds ``g(n + 2) sum (|rows| + E) / n``.
    """
    n, columns = out.value.shape
    if loss.name == "cross_entropy":
        row_error, grad_error = _cross_entropy(out, y, p)
    else:
        term_error, slope_error = _TERMS[loss.name](out, y.astype(np.float64), p)
        row_error, grad_error = term_error.mean(1), slope_error / columns
    y = y.astype(np.float64) if y.ndim == 2 else y
    rows = Bounded(loss.rows(out.value, y), row_error)
    # Division by the columns: two roundings at most.
    grad = Bounded(loss.grad(out.value, y), grad_error).scaled(1.0, p.g(2))
    factor = np.ones(n) if weight is None else weight.astype(np.float64)
    rows = rows.scaled(factor, p.g(1))
    mean = Bounded(rows.value.sum() / n, (rows.bound.sum() + p.g(n + 2) * rows.size.sum()) / n)
    return rows, grad.scaled(factor[:, None] / n, p.g(3)) + p.normal, mean


def _sum_rounding(columns: int, p: Precision) -> float:
    # The sum over columns, the mean's factor, and up to six roundings inside a term.
    return p.g(columns + 8)


def _mse(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    r, e = np.abs(out.value - y), out.bound
    grad = 2 * (e + p.g(2) * (r + e))
    return (2 * r + e) * e + _sum_rounding(r.shape[1], p) * (r + e) ** 2, grad


def _mae(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    r, e = np.abs(out.value - y), out.bound
    # The sign may legally flip where the residual is within its error.
    grad = np.where((r <= e) & (e > 0), 2.0, 0.0)
    return e + _sum_rounding(r.shape[1], p) * (r + e), grad


def _huber(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    r, e = np.abs(out.value - y), out.bound
    size = np.where(r + e <= 0.9 * HUBER_DELTA, (r + e) ** 2 / 2, HUBER_DELTA * (r + e) + 0.5)
    slope = np.minimum(r + e, HUBER_DELTA)  # of the loss; the gradient's own slope is at most 1
    return slope * e + _sum_rounding(r.shape[1], p) * size, e + p.g(2) * slope


def _binary_cross_entropy(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    o, e = out.value, out.bound
    t = np.exp(-np.abs(o))
    logistic = np.where(o >= 0, 1, t) / (1 + t)
    slope = np.abs(logistic - y) + e / 4
    own = 2 * p.u * EXP_ULP * 3  # exp, log1p, and exp's argument below
    size = np.abs(o) * (1 + np.abs(y)) + e * (1 + np.abs(y)) + 1
    row = slope * e + (_sum_rounding(o.shape[1], p) + own) * size
    return row, e / 4 + (own + p.u * (np.abs(o) + e) * t) * logistic + p.g(4) * (1 + np.abs(y))


def _poisson(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    o, e = out.value, out.bound
    rate = np.exp(o)
    relative = np.expm1(e) + (2 * p.u * EXP_ULP + p.u * (np.abs(o) + e)) * np.exp(e)
    terms = rate * (1 + relative) + np.abs(y) * (np.abs(o) + e)
    row = rate * relative + np.abs(y) * e + _sum_rounding(o.shape[1], p) * terms + p.normal
    return row, rate * relative + p.g(2) * (rate * (1 + relative) + np.abs(y)) + p.normal


_TERMS: dict[str, Callable[[Bounded, Array, Precision], tuple[Array, Array]]] = {
    "mse": _mse,
    "mae": _mae,
    "huber": _huber,
    "binary_cross_entropy": _binary_cross_entropy,
    "poisson": _poisson,
}


def _cross_entropy(out: Bounded, y: Array, p: Precision) -> tuple[Array, Array]:
    """Softmax from t = o - max(o), t off by at most `eta`: a sum's log is off by log sum p e^eta.

    sum_j p_j e^(-eta_j) >= 1 / sum_j p_j e^eta_j (Jensen), so that one bound serves both signs.
    """
    n, columns = out.value.shape
    target = np.zeros((n, columns))
    if y.ndim == 1:
        target[np.arange(n), y] = 1
    else:
        target[...] = y
    top = out.value.max(1, keepdims=True)
    t = out.value - top
    prob = np.exp(t)
    total = prob.sum(1, keepdims=True)
    prob /= total
    widest = out.bound.max(1, keepdims=True)
    eta = out.bound + widest + p.u * (np.abs(t) + out.bound + widest)
    # exp's argument may be rounded once more, and exp itself errs by EXP_ULP ulps.
    eta = eta + p.u * np.abs(t) + np.log1p(2 * p.u * EXP_ULP)
    log_total = np.log((prob * np.exp(eta)).sum(1, keepdims=True)) + p.g(columns + 2)
    # Where the softmax is written as exp(t - log(total)), the log rounds and joins the argument.
    log_own = 2 * p.u * EXP_ULP * (np.log(total) + log_total) + p.u * (np.abs(t) + np.log(total))
    relative = np.expm1(eta + log_total + log_own) + p.g(4)
    share = np.abs(target).sum(1, keepdims=True)
    grad = prob * relative * share * (1 + p.g(columns + 2))
    grad += p.g(columns + 2) * (prob * share + np.abs(target)) + (share + 1) * 2 * p.normal
    # rows = sum_j y_j (log total + max - o_j)
    sizes = np.abs(out.value) + np.abs(t) + np.abs(top) + np.log(total) + 2 * widest
    term = 2 * widest + log_total + log_own + p.g(columns + 6) * sizes
    return (np.abs(target) * term).sum(1), grad
