"""What can be hung into `fit`: callbacks, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastneuron.errors import SpecError

__all__ = ["Callback", "CallbackLike", "EarlyStopping", "FitState"]


@dataclass
class FitState:
    """Where a `fit` stands; callbacks get it, and may set `stop`.

    Attributes
    ----------
    net, trainer
        Weights may be read and assigned: training goes on with what was assigned.
    epoch : int
        Zero-based.
    epochs : int
        Epochs asked for.
    step : int
        Optimizer steps done.
    loss : float
        Mean training loss of the epoch, or of the chunk of steps.
    val_loss : float
        Mean validation loss at the epoch's end; NaN without validation data, and within an epoch.
    learning_rate : float
        That of the last step.
    seconds : float
        Since `fit` began.
    stop : bool
        True ends the training after this callback.
    """

    net: Any
    trainer: Any
    epochs: int
    epoch: int = 0
    step: int = 0
    loss: float = math.nan
    val_loss: float = math.nan
    learning_rate: float = math.nan
    seconds: float = 0.0
    stop: bool = False


class Callback:
    """Base of callbacks: override what is needed; what is not costs nothing.

    Either method may stop the training, by returning True or by ``state.stop = True``.
    """

    def on_epoch_end(self, state: FitState) -> bool | None:
        """Look at an epoch that has ended, validation included."""
        return None

    def on_chunk_end(self, state: FitState) -> bool | None:
        """Look at some steps that have been done: after each 25 ms or so."""
        return None


#: A `Callback`, or a function that is called at the end of each epoch.
CallbackLike: TypeAlias = Callback | Callable[[FitState], bool | None]


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a loss has stopped falling.

    Parameters
    ----------
    patience : int
        Epochs in a row without improvement before the training stops.
    min_delta : float
        The loss must fall by more than this to count as improved.
    monitor : {"auto", "val_loss", "loss"}
        "auto" is the validation loss where there is validation data, else the training loss.
    restore_best : bool
        Whether `fit` ends with the parameters of the best epoch, however it ends by itself.
    """

    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "auto"
    restore_best: bool = True

    def __post_init__(self) -> None:
        patience: object = self.patience
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise SpecError(
                f"EarlyStopping: patience must be a whole number of at least 1, got {patience!r}"
            )
        if not (isinstance(self.min_delta, (int, float)) and 0 <= self.min_delta < math.inf):
            raise SpecError(
                f"EarlyStopping: min_delta must be at least 0 and finite, got {self.min_delta!r}"
            )
        if self.monitor not in ("auto", "val_loss", "loss"):
            raise SpecError(
                f"EarlyStopping: monitor must be auto, val_loss or loss, got {self.monitor!r}"
            )


def epoch_end_of(callback: CallbackLike) -> Callable[[FitState], bool | None] | None:
    """Return what is to be called at an epoch's end, or None."""
    if isinstance(callback, Callback):
        return _overridden(callback, "on_epoch_end")
    if callable(callback):
        return callback
    raise SpecError(f"a callback is a Callback or a function, got {callback!r}")


def chunk_end_of(callback: CallbackLike) -> Callable[[FitState], bool | None] | None:
    """Return what is to be called at a chunk's end, or None."""
    return _overridden(callback, "on_chunk_end") if isinstance(callback, Callback) else None


def _overridden(callback: Callback, name: str) -> Callable[[FitState], bool | None] | None:
    """Return a method that a class, or the callback alone, has put in place of the base's."""
    method: Callable[[FitState], bool | None] = getattr(callback, name)
    base = getattr(method, "__func__", None) is getattr(Callback, name)
    return None if base else method
