"""Which backend a training runs on: the one asked for, or what a cost model says of a card."""

from __future__ import annotations

from typing import Any

from fastneuron import backends
from fastneuron.device_arrays import lies_on_device
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["chosen", "rows_of"]


def chosen(
    spec: NetworkSpec,
    loss: Loss | None,
    optimizer: Optimizer,
    batch_size: int,
    n_threads: int | None,
    backend: str | backends.Backend,
    device: str | None,
    X: Any = None,
    epochs: int = 0,
) -> backends.Backend:
    """Return the backend; `X` and `epochs` where the length of the training is known.

    Raises
    ------
    UnknownNameError, BackendUnavailable, SpecError
        See `backends.on_device`.
    """
    rows = rows_of(X)
    if device == "auto" and lies_on_device(X):
        device = "cuda"

    def weigh(card: backends.Card) -> tuple[bool, str]:
        return backends.predicted(
            card,
            spec=spec,
            loss=loss,
            optimizer=optimizer,
            batch=batch_size,
            rows=rows,
            epochs=epochs,
            n_threads=n_threads,
        )

    work = float(spec.multiply_adds) * rows * epochs
    return backends.on_device(device, backend, spec.dtype, work, weigh)


def rows_of(X: Any) -> int:
    """Return how many rows there are; 0 where that is not known, or X will be refused."""
    try:
        return len(X)
    except TypeError:
        return 0
