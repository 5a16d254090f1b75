"""The reference's slots by name: every one that there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastneuron.kernels.reference import dense, losses, updates

__all__ = ["SLOTS"]

#: Slot name -> function, in the order of `fastneuron.kernels.contract.SLOTS`.
SLOTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        dense.dense_forward,
        dense.bias_act_forward,
        losses.mse,
        losses.mae,
        losses.huber,
        losses.softmax_cross_entropy,
        losses.binary_cross_entropy,
        losses.poisson,
        dense.act_bias_backward,
        dense.dense_backward,
        updates.sgd_update,
        updates.momentum_update,
        updates.nesterov_update,
        updates.adam_update,
        updates.rmsprop_update,
    )
}
