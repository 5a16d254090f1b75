"""Every error fastneuron raises on purpose: what was wrong, where, and what to do."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "DataError",
    "DataWarning",
    "DeviceError",
    "DeviceMemoryError",
    "DivergenceWarning",
    "ExtraMissing",
    "FastneuronError",
    "ModelFileError",
    "NonFiniteError",
    "SpecError",
    "UnknownNameError",
]


class FastneuronError(Exception):
    """Base of all errors that fastneuron raises on purpose."""


class SpecError(FastneuronError, ValueError):
    """A description (layer, network, optimizer, schedule) contradicts itself."""


class DataError(FastneuronError, ValueError):
    """An array that came in cannot be used; the message names the argument and the position."""


class UnknownNameError(FastneuronError, ValueError):
    """A name is in no table; the message lists the names that are."""


class ModelFileError(FastneuronError, ValueError):
    """A model file is damaged, hostile, or written by a newer version."""


class BackendUnavailable(FastneuronError, RuntimeError):
    """A backend exists by name but cannot run here; the message is the reason."""


class DeviceError(FastneuronError, RuntimeError):
    """A device failed; the network's parameters on the host are whole.

    Attributes
    ----------
    whole : bool
        Whether the state on the device is that after the last whole step, too.
    """

    def __init__(self, message: str, *, whole: bool = False) -> None:
        super().__init__(message)
        self.whole = whole


class DeviceMemoryError(DeviceError, MemoryError):
    """A device has too little memory for what was asked of it."""


class ExtraMissing(FastneuronError, ImportError):
    """Something optional was asked for that is not installed; the message names the extra."""


class NonFiniteError(FastneuronError, ArithmeticError):
    """Training produced a NaN or an infinity and stopped before applying that step.

    The parameters are those after the last whole step, all of them finite.

    Attributes
    ----------
    epoch, step : int
        Zero-based position: the epoch of this call, and the optimizer step counted over the
        trainer's life.
    layer : int or None
        First layer whose output is not finite on that batch; None where every layer's output is
        finite and the loss or a gradient is not.
    learning_rate : float
        The learning rate of that step.
    """

    def __init__(
        self, message: str, *, epoch: int, step: int, layer: int | None, learning_rate: float
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.layer = layer
        self.learning_rate = learning_rate


class DataWarning(UserWarning):
    """Data was accepted after a conversion that the caller may not have meant."""


class DivergenceWarning(UserWarning):
    """Some networks of an ensemble diverged and were stopped; the others go on."""
