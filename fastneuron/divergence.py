"""The error for a step that was not applied because something in it was not finite."""

from __future__ import annotations

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import NonFiniteError
from fastneuron.kernels.contract import Array, Parameters, Status
from fastneuron.spec import NetworkSpec


def diverged(
    spec: NetworkSpec,
    parameters: Parameters,
    status: Status,
    x: Array | None,
    *,
    epoch: int,
    step: int,
    learning_rate: float,
) -> NonFiniteError:
    """Return the error that names epoch, step, layer and learning rate.

    Parameters
    ----------
    spec, parameters
        The network as it was before the step.
    status : Status
    x : (B, I) or None
        The rows of the failing batch, to find the layer.
    epoch, step, learning_rate
        See `NonFiniteError`.
    """
    layer = None if x is None else first_not_finite(spec, parameters, x)
    what = "loss" if status == Status.LOSS_NOT_FINITE else "gradient"
    if layer is not None:
        where = (
            f"the output of layer {layer} ({spec.layers[layer].activation}) is the first that is "
            "not finite"
        )
    else:
        where = "the output of every layer is finite"
    return NonFiniteError(
        f"training stopped at epoch {epoch}, step {step}: the {what} is not finite; {where}; "
        f"learning rate {learning_rate:g}. That step was not applied: the parameters are those "
        "after the last whole step. Try a lower learning rate, clip_norm=1.0 in the optimizer, or "
        "features and targets scaled to about 1",
        epoch=epoch,
        step=step,
        layer=layer,
        learning_rate=learning_rate,
    )


def first_not_finite(spec: NetworkSpec, parameters: Parameters, x: Array) -> int | None:
    """Return the first layer whose output on x (B, I) is not finite, or None."""
    with np.errstate(all="ignore"):
        for i, (layer, (weight, bias)) in enumerate(zip(spec.layers, parameters, strict=True)):
            z = x @ weight
            x = ACTIVATIONS[layer.activation].f(z if bias is None else z + bias)
            if not np.isfinite(x).all():
                return i
    return None
