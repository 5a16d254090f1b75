"""The error for a step that was not applied because something in it was not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.errors import NonFiniteError
from fastneuron.kernels.contract import Array, Parameters, Statistics, Status
from fastneuron.layers import Dense, Layer
from fastneuron.parameters import ParameterStore
from fastneuron.spec import NetworkSpec


def diverged(
    store: ParameterStore,
    status: Status,
    x: Array | None,
    scalars: NDArray[np.float64],
    epoch: int,
    step: int,
    learning_rate: float,
) -> NonFiniteError:
    """Return the error that names epoch, step, layer and learning rate.

    Parameters
    ----------
    store : ParameterStore
        The network as it was before the step.
    status : Status
    x : (B, I) or None
        The rows of the failing batch, to find the layer.
    scalars : (N_SCALARS,)
        Those of the failing step: they hold the key of the numbers it dropped.
    epoch, step, learning_rate
        See `NonFiniteError`.
    """
    spec, parameters, statistics = store.spec, store.pull(), store.pull_statistics()
    layer = None if x is None else first_not_finite(spec, parameters, statistics, x, scalars)
    what = "loss" if status == Status.LOSS_NOT_FINITE else "gradient"
    if layer is not None:
        where = (
            f"the output of layer {layer} ({_named(spec.layers[layer])}) is the first that is "
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


def first_not_finite(
    spec: NetworkSpec,
    parameters: Parameters,
    statistics: Statistics,
    x: Array,
    scalars: NDArray[np.float64],
) -> int | None:
    """Return the first layer whose output on x (B, I) in training is not finite, or None."""
    engine: Any = backends.get("numpy").engine(spec)
    engine.load(parameters)
    engine.load_statistics(statistics)
    with np.errstate(all="ignore"):
        for i, trace in enumerate(engine.trace(x, scalars)):
            if not np.isfinite(trace.a).all():
                return i
    return None


def _named(layer: Layer) -> str:
    return layer.activation if isinstance(layer, Dense) else f"{layer.kind}, {layer.activation}"
