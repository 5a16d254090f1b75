"""What the backends are made of: each is imported once, at its first use, or not, for a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from typing import Any, NamedTuple

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import SLOTS, Ceilings, Engine
from fastneuron.kernels.device_supply import supply
from fastneuron.kernels.ensemble_contract import EnsembleEngine

__all__ = ["NAMES", "Parts", "Slot", "failed", "load", "loaded", "problem_of"]

#: Every backend name.
NAMES = ("numpy", "numba", "cython", "cuda")

Slot = Callable[..., Any]


class Parts(NamedTuple):
    """What importing a backend gives.

    Attributes
    ----------
    slots, origin : mapping
        Every slot by name, and the backend that supplies it.
    engine : callable
        See `contract.Engine`.
    has_engine : bool
        Whether the engine is the backend's own.
    instruction_set, ceilings
        See `Backend`.
    ensemble : callable or None
        Takes what an `EnsembleEngine` takes; returns one, or None where it cannot for that network.
    """

    slots: Mapping[str, Slot]
    origin: Mapping[str, str]
    engine: Callable[..., Engine]
    has_engine: bool
    instruction_set: str = ""
    ceilings: Ceilings | None = None
    ensemble: Callable[..., EnsembleEngine | None] | None = None


#: What was imported in this process, and why the rest could not be, by name.
loaded: dict[str, Parts] = {}
failed: dict[str, str] = {}
# The first use of a backend imports it: one thread does, the others wait.
_lock = RLock()


def problem_of(name: str) -> str:
    """Return why a backend cannot run here, or nothing; finds out without importing numba."""
    if name in loaded or name == "numpy":
        return ""
    if name in failed:
        return failed[name]
    if name == "cuda":
        return supply().problem
    if name == "numba":
        return "" if find_spec("numba") else "numba is not installed (pip install numba)"
    try:
        load(name)
    except BackendUnavailable as error:
        return str(error)
    return ""


def load(name: str) -> Parts:
    """Return what a backend gives.

    Raises
    ------
    BackendUnavailable
        Where it cannot run here; the message says why.
    """
    parts = loaded.get(name)
    if parts is not None:
        return parts
    with _lock:
        if name in failed:
            raise BackendUnavailable(failed[name])
        if name not in loaded:
            try:
                loaded[name] = _import(name)
            except BackendUnavailable as error:
                failed[name] = str(error)
                raise
        return loaded[name]


def _import(name: str) -> Parts:
    if name == "numpy":
        reference = import_module("fastneuron.kernels.reference")
        return Parts(reference.SLOTS, dict.fromkeys(SLOTS, name), reference.ReferenceEngine, True)
    if name in ("cuda", "numba") and (problem := problem_of(name)):
        raise BackendUnavailable(problem)
    try:
        if name == "cuda":
            made = supply()
            device = import_module(made.module)
            given: Mapping[str, Slot] = device.slots() if hasattr(device, "slots") else {}
            slots = {**load("numpy").slots, **given}
            origin = {slot: name if slot in given else "numpy" for slot in SLOTS}
            many = getattr(import_module(made.ensemble), "ensemble_engine", None)
            return Parts(slots, origin, getattr(device, made.engine), True, ensemble=many)
        module = import_module(f"fastneuron.kernels.{name}_cpu")
        own: Mapping[str, Slot] = module.SLOTS
        engine = getattr(module, f"{name.title()}Engine", None)
    except ImportError as error:
        raise BackendUnavailable(str(error)) from error
    except Exception as error:  # a broken installation raises whatever it likes
        raise BackendUnavailable(f"does not start: {type(error).__name__}: {error}") from error
    reference_parts = load("numpy")
    slots = {**reference_parts.slots, **own}
    origin = {slot: name if slot in own else "numpy" for slot in SLOTS}
    if engine is None:
        return Parts(slots, origin, partial(reference_parts.engine, slots=slots), False)
    instruction_set: Callable[[], str] = getattr(module, "instruction_set", str)
    return Parts(slots, origin, engine, True, instruction_set(), module.CEILINGS)
