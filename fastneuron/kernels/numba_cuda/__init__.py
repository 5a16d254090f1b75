"""The engine on a CUDA device, in Numba; importing this imports no numba."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from fastneuron.kernels.device_presence import missing_card
from fastneuron.kernels.ensemble_contract import EnsembleEngine
from fastneuron.kernels.fused_plan import ensemble_plan
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["ensemble_engine", "missing"]


def missing() -> str:
    """Return why this backend cannot run here, and what to do, or nothing where it can."""
    if not find_spec("numba"):
        return "numba is not installed (pip install fastneuron[cuda])"
    if not find_spec("numba_cuda"):
        return "numba-cuda is not installed (pip install fastneuron[cuda])"
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return ""
    return missing_card()


def ensemble_engine(
    spec: NetworkSpec,
    loss: Loss | None,
    optimizers: Sequence[Optimizer],
    *,
    n_threads: int | None = None,
    batch_size: int = 1,
) -> EnsembleEngine | None:
    """Return the engine that trains each of many networks in a block, or None where it cannot.

    It can where all layers are dense and small: see `fused_plan.ensemble_plan`.

    Raises
    ------
    BackendUnavailable
        Where there is no driver or no card.
    DeviceError
        Where the device has no room for so many, or fails.
    """
    if ensemble_plan(spec) is None:
        return None
    room = import_module("fastneuron.kernels.numba_cuda.ensemble")
    engine: EnsembleEngine = room.CudaEnsembleEngine(
        spec, loss, optimizers, n_threads=n_threads, batch_size=batch_size
    )
    return engine
