"""cuBLASLt on this engine's device: products that are launched as kernels are, and their clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.cublaslt import Algorithm, CublasLtError, Library, Matmul, load
from fastneuron.kernels.numba_cuda.driver import SIMULATED, cuda, empty
from fastneuron.kernels.numba_cuda.graph import Graph, why_not
from fastneuron.kernels.numba_cuda.launches import Launch, prepared, run_all
from fastneuron.kernels.timed_choice import CHOICES, Choice, Choices, Option

__all__ = ["Provider", "Way", "address_of", "open_library"]

#: Bytes of scratch that the library may use: what NVIDIA recommends for Hopper, and the most.
_WORKSPACE = 32 << 20
#: Algorithms that are timed of a product: the library's own order is by expected time.
_ALGORITHMS = 4
# Repeats of what is timed, so that one record spans more than the clock's half a microsecond;
# from a millisecond on it is timed once.
_REPEATS, _LONG = 16, 1e-3

# Set to 0, our own products do all, whose bits are the same in every process.
_SWITCH = "FASTNEURON_CUBLASLT"


class Way(NamedTuple):
    """One way to do a piece of a step.

    Attributes
    ----------
    name : str
    before, after : launches around the product
    matmul : makes the product, where it is the library's
    then : launches that this way needs later, which count for its time alone
    """

    name: str
    before: Sequence[Launch]
    matmul: Callable[[], Matmul] | None = None
    after: Sequence[Launch] = ()
    then: Sequence[Launch] = ()


class _LibraryProduct:
    """A product with its algorithm, as a kernel: ``product[grid, block, stream, shared]()``."""

    def __init__(self, matmul: Matmul, algorithm: Algorithm, workspace: Any) -> None:
        self._matmul, self._algorithm, self._workspace = matmul, algorithm, workspace

    def __getitem__(self, launch: tuple[Any, ...]) -> Callable[[], None]:
        stream = 0 if SIMULATED else int(launch[2])
        where = address_of(self._workspace)
        return lambda: self._matmul.run(self._algorithm, where, stream)


@dataclass
class Provider:
    """The library's products for one engine, and the choices between them and our own.

    Attributes
    ----------
    library, precision
    clock : callable
        Gets launches ready and returns what times them once, in seconds.
    choices : Choices
        Of the process: see `timed_choice`.
    device : str
        What else a choice depends on.
    """

    library: Library
    precision: str
    clock: Callable[[list[Launch]], Callable[[], float]]
    choices: Choices = field(default_factory=lambda: CHOICES)
    device: str = ""
    workspace_bytes: int = _WORKSPACE

    def __post_init__(self) -> None:
        self._workspace = empty(self.workspace_bytes, np.uint8)
        self._keys: dict[tuple[Hashable, ...], Hashable] = {}

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.workspace_bytes

    @property
    def made(self) -> dict[tuple[Hashable, ...], Choice]:
        """The choices that this engine goes by, by what they were made for."""
        made = self.choices.made
        return {key: made[whole] for key, whole in self._keys.items()}

    def best(
        self, key: tuple[Hashable, ...], ways: list[Way], *, listed: bool = True
    ) -> tuple[str, list[Launch]] | None:
        """Return the name and launches of the way that is taken; None where none can be.

        Those that are `listed` stand in `made`.
        Timing runs every way, on the vectors of the engine: nothing may be in them that a way
        writes and the step does not write again.
        """
        by_name = {way.name: way for way in ways}
        whole = (self.device, self.library.version, self.precision, self.workspace_bytes, *key)
        products: dict[str, Matmul] = {}

        def product(name: str) -> Matmul:
            if name not in products:
                make = by_name[name].matmul
                assert make is not None
                products[name] = make()
            return products[name]

        def options() -> list[Option]:
            found = []
            for name, way in by_name.items():
                if way.matmul is None:
                    found.append(Option(name))
                    continue
                algorithms = product(name).algorithms(self.workspace_bytes, _ALGORITHMS)
                for i, algorithm in enumerate(algorithms):
                    found.append(Option(f"{name} #{i}", (name, algorithm)))
            return found

        def launches(option: Option) -> list[Launch]:
            if option.detail is None:
                return list(by_name[option.name].before)
            name, algorithm = option.detail
            kernel = _LibraryProduct(product(name), algorithm, self._workspace)
            return [*by_name[name].before, Launch(kernel, 0, 0, ()), *by_name[name].after]

        def prepare(option: Option) -> Callable[[], float]:
            way = by_name[option.name if option.detail is None else option.detail[0]]
            try:
                return self.clock([*launches(option), *way.then])
            except CublasLtError:  # the library cannot do after all what it has offered
                return lambda: inf

        taken = self.choices.take(whole, options, prepare)
        if taken is None:
            return None
        if listed:
            self._keys[key] = whole
        return (taken.name if taken.detail is None else taken.detail[0]), launches(taken)


def address_of(vector: Any) -> int:
    """Return where a vector begins on the device."""
    if SIMULATED:
        return int(vector.ctypes.data)
    return int(vector.__cuda_array_interface__["data"][0])


def open_library(precision: str, stream: Any) -> tuple[Provider | None, str]:
    """Return cuBLASLt for that precision, or None and why our own products do all.

    Raises
    ------
    BackendUnavailable
        Where it cannot be had and the precision needs it.
    """
    problem = "the simulator has no cuBLASLt"
    if precision == "float32" and os.environ.get(_SWITCH) == "0":
        problem = f"{_SWITCH}=0 leaves cuBLASLt out"
    elif not SIMULATED:
        try:
            device = cuda.get_current_device()
            name = f"{device.name} {device.id}"
            return Provider(load(device.id), precision, device_clock(stream), device=name), ""
        except BackendUnavailable as error:
            problem = str(error)
    if precision != "float32":
        raise BackendUnavailable(f"precision={precision!r} needs cuBLASLt: {problem}")
    return None, problem


def device_clock(stream: Any) -> Callable[[list[Launch]], Callable[[], float]]:
    """Return a clock by the device's events.

    Launches are recorded as a graph where the driver can, as they run in a step: one by one, a
    short kernel's time would be the interpreter's.
    """

    def seconds(run: Callable[[], None]) -> float:
        start, end = cuda.event(timing=True), cuda.event(timing=True)
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return float(cuda.event_elapsed_time(start, end)) / 1e3

    def prepare(launches: list[Launch]) -> Callable[[], float]:
        calls = prepared(launches, stream)
        run_all(calls)  # compiles and loads: nothing else can be timed or recorded
        once = seconds(lambda: run_all(calls))
        repeats = 1 if once > _LONG else _REPEATS

        def run() -> None:
            for _ in range(repeats):
                run_all(calls)

        replay = run
        if not why_not():
            with suppress(RuntimeError):  # a driver that does not record
                replay = Graph(stream, run).replay
        return lambda: seconds(replay) / repeats

    return prepare
