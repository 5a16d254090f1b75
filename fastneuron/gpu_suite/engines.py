"""The engines that the suite proves: both backends on the card, or one of them simulated."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite.running import NotBuiltYet
from fastneuron.kernels import numba_cuda  # which imports no numba
from fastneuron.kernels.contract import Engine
from fastneuron.kernels.device_plan import Blocks, Tile, tile_of
from fastneuron.kernels.each_alone import EachAlone
from fastneuron.kernels.ensemble_contract import EnsembleEngine
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec
from fastneuron.testing import Case, loaded

__all__ = [
    "CPP",
    "NUMBA",
    "SHIPPED",
    "SIMULATED",
    "SMALL",
    "Kind",
    "Sizes",
    "cpp_kind",
    "engine_kinds",
    "numba_kind",
]

NUMBA, CPP = "numba", "c++"
_CPP_ROOM = "fastneuron.kernels.cython_cuda"

#: Set to 0, it leaves products to our own kernels.
LIBRARY_SWITCH = "FASTNEURON_CUBLASLT"

#: What the simulator can do in seconds: it needs milliseconds for every thread.
SIMULATED_TILE = Tile(8, 8, 4, 4, 4)
SIMULATED_BLOCKS = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)


@dataclass(frozen=True)
class Sizes:
    """What is checked, and how much of it.

    Attributes
    ----------
    tile : Tile
        Whose edges the shapes lie around.
    networks : int
        Generated ones.
    widest, longest : int
        Of their layers and batches.
    repeats : int
        Runs that are compared to the bit.
    sliced_rows : int
        Of a batch that a weight gradient is cut into slices for, or 0.
    every : int
        Of the entries of a table, each `every`-th is checked.
    repeated : int
        Networks that are run again and again.
    steps : int
        Of such a run: those of 64, 8 and 1 that an engine may record, and the first by itself.
    complete : bool
        Whether every kernel must have been launched.
    models : int
        Of an ensemble.
    dtypes : tuple of str
        Of slots. In those after the first, each third entry of a table is checked: their kernels
        are made by the same functions.
    """

    tile: Tile
    networks: int = 30
    widest: int = 300
    longest: int = 300
    repeats: int = 100
    sliced_rows: int = 1100
    every: int = 1
    repeated: int = 4
    steps: int = 74
    complete: bool = True
    models: int = 5
    dtypes: tuple[str, ...] = ("float32", "float64")


SHIPPED = Sizes(tile_of("float32"))
#: For compute-sanitizer, under which a kernel takes a hundred times its time.
SMALL = Sizes(tile_of("float32"), 6, 40, 40, 2, 520, 3, steps=10, complete=False, models=3)
SIMULATED = Sizes(SIMULATED_TILE, 3, 6, 4, 2, 0, 5, 1, steps=5, models=2, dtypes=("float32",))


@dataclass(frozen=True)
class Kind:
    """A backend on the card.

    Attributes
    ----------
    name : str
    new : callable
        Takes what an `Engine` takes.
    unlaunched : callable
        The names of its kernels that nothing has asked for in this process, as far as it knows.
    compiles : bool
        Whether its kernels are compiled at their first launch.
    way : str
        What is said of it beside each check.
    many : callable, optional
        Returns its own engine of many networks at once, or None where those are none for it: takes
        what an `EnsembleEngine` takes.
    """

    name: str
    new: Callable[..., Engine]
    unlaunched: Callable[[], list[str]] = list
    compiles: bool = False
    way: str = ""
    many: Callable[..., EnsembleEngine | None] | None = None

    def ways(self) -> list[Kind]:
        """Return this and, where it has shortcuts, one that goes layer by layer by own kernels.

        An engine may train a small network in one kernel, and leave products to a library that
        won where they were timed: the kernels that would not run then are to be proved too.
        """
        if not (self.takes("fused_rows") or self.takes("library")):
            return [self]
        given: dict[str, Any] = {"fused_rows": ()} if self.takes("fused_rows") else {}

        def new(*arguments: Any, **more: Any) -> Engine:
            before = os.environ.get(LIBRARY_SWITCH)
            os.environ[LIBRARY_SWITCH] = "0"
            try:
                return self.new(*arguments, **given, **more)
            finally:
                os.environ.pop(LIBRARY_SWITCH)
                if before is not None:
                    os.environ[LIBRARY_SWITCH] = before

        return [self, replace(self, new=new, way=", layer by layer", many=None)]

    def engine_of(self, case: Case, **given: Any) -> Engine:
        """Return an engine with what the case starts from."""
        options = {"batch_size": case.batch, **given}
        return loaded(self.new(case.spec, case.loss, case.optimizer, **options), case)

    def ensemble(
        self, spec: NetworkSpec, loss: Loss, optimizers: Sequence[Optimizer], batch_size: int
    ) -> EnsembleEngine:
        """Return an engine of many networks at once: its own, else one for each of them."""
        given = spec, loss, optimizers
        engine = self.many(*given, batch_size=batch_size) if self.many else None
        return engine or EachAlone(*given, batch_size=batch_size, make=self.new)

    def takes(self, name: str) -> bool:
        """Whether its engines have an argument of that name."""
        return name in inspect.signature(self.new).parameters


def numba_kind(*, simulated: bool = False) -> Kind:
    """Return numba's engine, with tiny tiles where it is simulated.

    Raises
    ------
    BackendUnavailable
        Where it cannot run here; the message says why.
    """
    if problem := numba_cuda.missing():
        raise BackendUnavailable(problem)
    engine = import_module("fastneuron.kernels.numba_cuda.engine").CudaEngine
    if simulated:
        engine = partial(engine, tile=SIMULATED_TILE, blocks=SIMULATED_BLOCKS)
    many = getattr(numba_cuda, "ensemble_engine", None)
    return Kind(NUMBA, engine, _unlaunched, compiles=True, many=many)


def _unlaunched() -> list[str]:
    """Return the functions that make kernels, and keep them, and were never called."""
    driver = import_module(f"{numba_cuda.__name__}.driver")
    found = []
    for each in iter_modules(numba_cuda.__path__):
        room = import_module(f"{numba_cuda.__name__}.{each.name}")
        if room is driver or getattr(room, "kernel", None) is not driver.kernel:
            continue  # it makes none
        for name in room.__all__:
            made = getattr(room, name)
            if hasattr(made, "cache_info") and not made.cache_info().currsize:
                found.append(f"{each.name}.{name}")
    return found


def cpp_kind() -> Kind:
    """Return the engine in CUDA C++.

    Raises
    ------
    NotBuiltYet, BackendUnavailable
        Where there is none; the message says why.
    """
    if not find_spec(_CPP_ROOM):
        raise NotBuiltYet("an engine in CUDA C++ is not part of this version")
    module = import_module(_CPP_ROOM)
    if problem := module.missing():
        raise BackendUnavailable(problem)
    return Kind(CPP, module.CythonCudaEngine, many=module.ensemble_engine)


def engine_kinds(*, simulated: bool) -> dict[str, Callable[[], Kind]]:
    """Return what makes every engine ready, by name."""
    if simulated:
        return {NUMBA: partial(numba_kind, simulated=True)}
    return {NUMBA: numba_kind, CPP: cpp_kind}
