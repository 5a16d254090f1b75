"""The compiled CPU backend's slots: elementwise passes in C, built where a compiler is.

It has no engine of its own yet: it trains through the reference engine over these slots.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Array

__all__ = ["SLOTS"]


def _extension() -> Any:
    try:
        return import_module("fastneuron.kernels._cython_cpu")
    except ImportError as error:
        note = Path(__file__).with_name("_cython_cpu_missing.txt")
        if note.exists():
            reason = note.read_text(encoding="utf-8").strip()
        elif error.name == "fastneuron.kernels._cython_cpu":
            reason = "this installation was made without it"
        else:
            reason = f"it does not load: {error}"
        raise ImportError(
            f"the compiled extension is not there ({reason}); to build it, install fastneuron "
            "from source with a C compiler, FASTNEURON_REQUIRE_EXT=1 shows the compiler's error"
        ) from error


_c = _extension()


def bias_act_forward(
    z: Array, b: Array | None, activation: str = "identity", out: Array | None = None
) -> Array:
    """One C pass, rows ascending; a missing bias is a row of -0.0, which changes no bit."""
    if b is None:
        b = np.full(z.shape[1], -0.0, z.dtype)
    if out is None:
        out = np.empty(z.shape, z.dtype)
    _c.bias_act_forward(z, b, ACTIVATIONS[activation].code, out)
    return out


def act_bias_backward(
    da: Array, saved: Array, activation: str, bias: bool = True, out: Array | None = None
) -> tuple[Array, Array | None]:
    """One C pass: a row is gated, stored and added to db; db sums the rows in ascending order."""
    if out is None:
        out = np.empty(da.shape, da.dtype)
    db = np.empty(da.shape[1], da.dtype) if bias else None
    _c.act_bias_backward(da, saved, ACTIVATIONS[activation].code, out, db)
    return out, db


def sgd_update(
    p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
) -> None:
    """One C pass over the flat vectors."""
    _c.sgd_update(p, g, scalars, clip_scale)


def momentum_update(
    p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
) -> None:
    """One C pass over the flat vectors."""
    _c.momentum_update(p, g, moments[0], scalars, clip_scale, False)


def nesterov_update(
    p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
) -> None:
    """One C pass over the flat vectors."""
    _c.momentum_update(p, g, moments[0], scalars, clip_scale, True)


def adam_update(
    p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
) -> None:
    """One C pass over the flat vectors."""
    _c.adam_update(p, g, moments[0], moments[1], scalars, clip_scale)


def rmsprop_update(
    p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
) -> None:
    """One C pass over the flat vectors."""
    _c.rmsprop_update(p, g, moments[0], scalars, clip_scale)


SLOTS: dict[str, Callable[..., Any]] = {
    "bias_act_forward": bias_act_forward,
    "act_bias_backward": act_bias_backward,
    "sgd_update": sgd_update,
    "momentum_update": momentum_update,
    "nesterov_update": nesterov_update,
    "adam_update": adam_update,
    "rmsprop_update": rmsprop_update,
}
