"""Dense neural networks trained near the limit of the hardware.

Names are imported when they are first used, so that importing the package costs little and brings
in neither a compiler nor anything optional.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastneuron import backends, bench, datasets, explain, ops, plots, profiling
    from fastneuron.callbacks import Callback, EarlyStopping
    from fastneuron.device_arrays import DeviceArray
    from fastneuron.diagnostics import Diagnosis, HealthRecorder
    from fastneuron.ensemble import Ensemble
    from fastneuron.errors import (
        BackendUnavailable,
        DataError,
        DataWarning,
        DeviceError,
        DeviceMemoryError,
        DivergenceWarning,
        ExtraMissing,
        FastneuronError,
        ModelFileError,
        NonFiniteError,
        SpecError,
        UnknownNameError,
    )
    from fastneuron.fitting import History
    from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
    from fastneuron.network import Sequential, load, mlp
    from fastneuron.optimizers import SGD, Adam, AdamW, RMSprop
    from fastneuron.schedules import Constant, Cosine, OneCycle, Plateau, StepDecay, WarmUp
    from fastneuron.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BackendUnavailable",
    "BatchNorm",
    "Callback",
    "Constant",
    "Cosine",
    "DataError",
    "DataWarning",
    "Dense",
    "DeviceArray",
    "DeviceError",
    "DeviceMemoryError",
    "Diagnosis",
    "DivergenceWarning",
    "Dropout",
    "EarlyStopping",
    "Ensemble",
    "ExtraMissing",
    "FastneuronError",
    "HealthRecorder",
    "History",
    "LayerNorm",
    "ModelFileError",
    "NonFiniteError",
    "OneCycle",
    "Plateau",
    "RMSprop",
    "Sequential",
    "SpecError",
    "StepDecay",
    "Trainer",
    "UnknownNameError",
    "WarmUp",
    "backends",
    "bench",
    "datasets",
    "explain",
    "load",
    "mlp",
    "ops",
    "plots",
    "profiling",
]

_ROOMS = {
    "callbacks": ("Callback", "EarlyStopping"),
    "device_arrays": ("DeviceArray",),
    "diagnostics": ("Diagnosis", "HealthRecorder"),
    "ensemble": ("Ensemble",),
    "errors": (
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
    ),
    "fitting": ("History",),
    "layers": ("BatchNorm", "Dense", "Dropout", "LayerNorm"),
    "network": ("Sequential", "load", "mlp"),
    "optimizers": ("SGD", "Adam", "AdamW", "RMSprop"),
    "schedules": ("Constant", "Cosine", "OneCycle", "Plateau", "StepDecay", "WarmUp"),
    "trainer": ("Trainer",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is not None:
        value = getattr(import_module(f"fastneuron.{room}"), name)
    elif name in __all__:
        value = import_module(f"fastneuron.{name}")
    else:
        raise AttributeError(f"module 'fastneuron' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
