"""The compiled CUDA backend: the engine over the kernels of csrc/cuda, built where nvcc is.

It needs NVIDIA's driver and no other package. Importing this needs neither: `missing` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels import constants
from fastneuron.kernels.contract import Array
from fastneuron.kernels.cython_cuda_ensemble import CythonCudaEnsembleEngine
from fastneuron.kernels.device_calls import Call, Calls, Device, Graph, Program
from fastneuron.kernels.device_engine import DeviceEngine, watched
from fastneuron.kernels.device_fused import FusedPasses, takes
from fastneuron.kernels.device_memory import Buffer, Chunk, State
from fastneuron.kernels.device_passes import Passes
from fastneuron.kernels.device_presence import missing_card
from fastneuron.kernels.device_slots import DeviceSlots
from fastneuron.kernels.device_state import DeviceRows
from fastneuron.kernels.ensemble_contract import EnsembleEngine
from fastneuron.kernels.fused_plan import FUSED_ROWS, ensemble_plan, fused_plan
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CythonCudaEngine", "ensemble_engine", "missing", "slots"]

#: Numbers of the large and the small tile in kernels.h.
TILES = (0, 1)


@cache
def _extension() -> Calls:
    """Return the extension, or the reason why there is none."""
    try:
        extension: Any = import_module("fastneuron.kernels._cython_cuda")
    except ImportError as error:
        note = Path(__file__).with_name("_cython_cuda_missing.txt")
        reason = "this installation was made without it"
        if note.exists():
            reason = note.read_text(encoding="utf-8").strip()
        elif error.name != "fastneuron.kernels._cython_cuda":
            reason = f"it does not load: {error}"
        return (
            f"the compiled CUDA extension is not there ({reason}); to build it, install fastneuron "
            "from source where nvcc is, FASTNEURON_CUDA=1 shows its errors"
        )
    if extension.constants() != constants.digest():
        return (
            "the compiled CUDA extension was built for other tables than this Python code has: "
            "install fastneuron again, from the same source"
        )
    return extension


def missing() -> str:
    """Return why this backend cannot run here, and what to do, or nothing where it can."""
    extension = _extension()
    if isinstance(extension, str):
        return extension
    problem = missing_card()
    if problem:
        return problem
    count, reason = extension.devices()
    return "" if count else f"CUDA finds no card: {reason}"


def slots() -> dict[str, Callable[..., Any]]:
    """Return the slots by name: all of them. BackendUnavailable where there is no card."""
    return DeviceSlots(_calls(), TILES[1]).table()


def ensemble_engine(
    spec: NetworkSpec, loss: Loss | None, optimizers: Sequence[Optimizer], **given: Any
) -> EnsembleEngine | None:
    """Return the engine that trains each of many networks in a block, or None where it cannot.

    `given`: n_threads and batch_size, as in `EnsembleEngine`. It can where all layers are dense and
    small, and not too many: see `fused_plan.ensemble_plan` and `device_fused.takes`.

    Raises
    ------
    BackendUnavailable
        Where there is no extension, no driver or no card.
    DeviceError
        Where the device has no room for so many, or fails.
    """
    plan = ensemble_plan(spec)
    if plan is None or not takes(plan):
        return None
    return CythonCudaEnsembleEngine(spec, loss, optimizers, calls=_calls(), **given)


def _calls() -> Calls:
    problem = missing()
    if problem:
        raise BackendUnavailable(problem)
    return _extension()


class CythonCudaEngine(DeviceEngine):
    """Training state in flat vectors on the device; a step is a list of calls that C goes through.

    Parameters
    ----------
    spec, loss, optimizer, n_threads, batch_size
        See `Engine`. n_threads is of no effect.
    precision : {"float32"}
    calls, tiles : optional
        The functions of kernels.h and which tiles of products to take, for tests.
    fused_rows, fused_threads : optional
        Rows that a block takes of a small network, the most first, and its threads, for tests:
        without rows every network goes layer by layer.

    Raises
    ------
    BackendUnavailable
        Where there is no extension, no driver or no card, and for any other precision.
    """

    @watched
    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        precision: str = "float32",
        calls: Calls | None = None,
        tiles: tuple[int, int] = TILES,
        fused_rows: tuple[int, ...] = FUSED_ROWS,
        fused_threads: int = 256,
    ) -> None:
        if precision != "float32":
            raise BackendUnavailable(
                f"precision={precision!r} needs cuBLASLt, which the CUDA kernels that came with "
                "the package do without: pip install fastneuron[cuda]"
            )
        super().__init__(spec, loss, optimizer, n_threads, batch_size)
        self._device = Device(calls or _calls())
        self._state = State(self._device, spec, optimizer)
        self._chunk = Chunk(self._device)
        self._passes = Passes(self._device, spec, self._state, self._chunk, tiles)
        plan = fused_plan(spec, fused_rows)
        self._fused: FusedPasses | None = None
        if plan is not None and takes(plan):
            self._fused = FusedPasses(spec, plan, fused_threads, self._state, self._chunk)
        parts = self._device.calls.norm_parts(self._state.size)
        self._norms = Buffer(self._device, np.float64, parts)
        dtypes = spec.dtype, spec.dtype, spec.dtype, np.int64
        self._data = [Buffer(self._device, dtype) for dtype in dtypes]

    def plan(self) -> dict[str, Any]:
        """Explain the engine."""
        rows = self._fused.rows if self._fused else 0
        return {**super().plan(), "fused": f"{rows} rows a block" if rows else "layer by layer"}

    def _new_rows(self, count: int, *, training: bool) -> DeviceRows:
        device, scratch = self._device, self._passes.scratch(count) if training else 0
        if training and self._fused:
            scratch = max(scratch, self._fused.scratch(count))
        return DeviceRows(
            self.spec,
            count,
            lambda size, dtype: Buffer(device, dtype, size),
            training=training,
            scratch=scratch,
        )

    def _step(self, size: int, weighted: bool, classes: bool) -> list[Call]:
        batch, passes = self._training, self._passes
        assert self.loss is not None
        if self._fused:
            given = {"weighted": weighted, "classes": classes}
            fused = self._fused.step(batch, size, self._data, self.loss, **given)
            if fused:
                return [*fused, passes.mean_loss(batch, size), *self._apply(batch, size)]
        return [
            *passes.gather(batch, size, self._data, weighted=weighted, classes=classes),
            *passes.forward(batch, size),
            *self._loss(batch, size, weighted, classes),
            *passes.backward(batch, size, need_dx=False),
            *self._apply(batch, size),
        ]

    def _loss(self, rows: DeviceRows, count: int, weighted: bool, classes: bool) -> list[Call]:
        assert self.loss is not None
        return self._passes.loss(rows, count, self.loss, weighted=weighted, classes=classes)

    def _apply(self, rows: DeviceRows, count: int) -> list[Call]:
        assert self.optimizer is not None
        return self._passes.apply(rows, count, self.optimizer, self._norms.address)

    def _predict(self, rows: DeviceRows, count: int) -> list[Call]:
        return (self._fused or self._passes).forward(rows, count)

    def _prepared(self, launches: list[Call]) -> Program:
        return self._device.program(launches)

    def _queue(self, prepared: Program, times: int = 1) -> None:
        prepared.run(times)

    def _record(self, prepared: Program, times: int) -> Graph:
        return prepared.record(times)

    def _take(self, vector: Buffer, array: Array) -> None:
        vector.put(array)

    def _get(self, vector: Buffer, count: int, width: int) -> Array:
        return vector.get(count, width)
