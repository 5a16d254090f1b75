"""The engine on a CUDA device, in Numba; importing this imports no numba."""

from __future__ import annotations

import os
from importlib.util import find_spec

from fastneuron.kernels.device_presence import missing_card

__all__ = ["missing"]


def missing() -> str:
    """Return why this backend cannot run here, and what to do, or nothing where it can."""
    if not find_spec("numba"):
        return "numba is not installed (pip install fastneuron[cuda])"
    if not find_spec("numba_cuda"):
        return "numba-cuda is not installed (pip install fastneuron[cuda])"
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return ""
    return missing_card()
