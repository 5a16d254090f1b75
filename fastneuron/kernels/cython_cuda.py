"""The compiled CUDA backend: the engine over the kernels of csrc/cuda, built where nvcc is.

It needs NVIDIA's driver and no other package. Importing this needs neither: `missing` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels import constants
from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics, Status
from fastneuron.kernels.device_memory import Batch, Buffer, Calls, Chunk, State, Work
from fastneuron.kernels.device_passes import Call, Passes, run_all
from fastneuron.kernels.device_presence import missing_card
from fastneuron.kernels.device_slots import DeviceSlots
from fastneuron.losses import Loss
from fastneuron.optimizers import KEY_HIGH, KEY_LOW, N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CythonCudaEngine", "missing", "slots"]

#: Numbers of the large and the small tile in kernels.h.
TILES = (0, 1)
# Rows of a prediction that are on the device at a time, where the batches are smaller.
_PREDICTED_ROWS = 8192


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


def _calls() -> Calls:
    problem = missing()
    if problem:
        raise BackendUnavailable(problem)
    return _extension()


class CythonCudaEngine(Engine):
    """Training state in flat vectors on the device; a step is a fixed list of kernel starts.

    Parameters
    ----------
    spec, loss, optimizer, n_threads, batch_size
        See `Engine`. n_threads is of no effect.
    precision : {"float32"}
    calls, tiles : optional
        The functions of kernels.h and which tiles of products to take, for tests.

    Raises
    ------
    BackendUnavailable
        Where there is no extension, no driver or no card, and for any other precision.
    """

    backend: ClassVar[str] = "cuda"

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
    ) -> None:
        if precision != "float32":
            raise BackendUnavailable(
                f"precision={precision!r} needs cuBLASLt, which the CUDA kernels that came with "
                "the package do without: pip install fastneuron[cuda]"
            )
        super().__init__(spec, loss, optimizer, n_threads=n_threads, batch_size=batch_size)
        self._calls = calls or _calls()
        self._state = State(self._calls, spec, optimizer)
        self._chunk = Chunk(self._calls)
        self._passes = Passes(self._calls, spec, self._state, self._chunk, tiles)
        parts = self._calls.norm_parts(self._state.size)
        self._norms = Buffer(self._calls, np.float64, parts)
        self._x, self._y, self._weight = (Buffer(self._calls, spec.dtype) for _ in range(3))
        self._labels = Buffer(self._calls, np.int64)
        self._batch: Batch | None = None
        self._work: Work | None = None
        self._steps: dict[tuple[Any, ...], list[Call]] = {}
        self._kept = 0, np.zeros(N_SCALARS)

    def load(self, parameters: Parameters) -> None:
        """Copy `parameters` in."""
        self._state.load(self._state.p, parameters)

    def export(self) -> Parameters:
        """Return copies of the parameters."""
        return self._state.export(self._state.p)

    def load_statistics(self, statistics: Statistics) -> None:
        """Copy the running statistics in."""
        self._state.load_statistics(statistics)

    def export_statistics(self) -> Statistics:
        """Return copies of the running statistics."""
        return self._state.export_statistics()

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        """Copy the optimizer's moments in."""
        for vector, moment in zip(self._state.moments, moments, strict=True):
            self._state.load(vector, moment)

    def export_moments(self) -> list[Parameters]:
        """Return copies of the optimizer's moments."""
        return [self._state.export(vector) for vector in self._state.moments]

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> Outcome:
        """Train on the batches that `bounds` cuts out of `order`."""
        sizes = np.diff(bounds).tolist()
        if not sizes:
            return Outcome(Status.OK, 0)
        batch = self._training(max(sizes))
        # Only the rows that are asked for, each once.
        rows, places = np.unique(order[bounds[0] : bounds[-1]], return_inverse=True)
        classes = y.ndim == 1
        targets = self._labels if classes else self._y
        moved = [self._x.put(x[rows]), targets.put(y[rows])]
        if weight is not None:
            moved.append(self._weight.put(weight[rows]))
        moved += [self._chunk.order.put(places), self._chunk.bounds.put(bounds - bounds[0])]
        moved.append(self._chunk.begin(scalars[: len(sizes)]))
        data = self._x, targets, None if weight is None else self._weight
        n = len(rows)
        if any(moved):
            self._steps.clear()
        for size in sizes:
            kind = size, weight is not None, classes, n
            if kind not in self._steps:
                self._steps[kind] = self._step(batch, size, data, n, classes)
            run_all(self._steps[kind])
        end = self._chunk.end()
        status, steps = Status(int(end["status"])), int(end["step"])
        written = min(steps + (status != Status.OK), len(sizes))
        losses[:written] = self._chunk.losses.get(written)
        return Outcome(status, steps)

    def forward(self, x: Array) -> Array:
        """Return the network's output (n, O) for x (n, I)."""
        out = np.empty((len(x), int(self.spec.out_features)), self.spec.dtype)
        most = max(self.batch_size, min(len(x), _PREDICTED_ROWS))
        if len(x) and (self._work is None or self._work.count < most):
            self._work = Work(self._calls, self.spec, most, training=False)
        for first in range(0, len(x), most):
            assert self._work is not None
            part = x[first : first + most]
            out[first : first + most] = self._outputs(self._work, part)
        return out

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        """Return the training output; what `update` needs of these rows stays on the device."""
        row = np.zeros(N_SCALARS) if scalars is None else scalars[0]
        self._chunk.begin(row[None])
        self._kept = len(x), row.copy()
        return self._outputs(self._training(len(x)), x)

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        """Apply one step for the rows of the last `forward_keep` and return dL/dx."""
        assert self.optimizer is not None
        rows, kept = self._kept
        batch = self._training(rows)
        row = scalars.copy()
        row[[KEY_LOW, KEY_HIGH]] = kept[[KEY_LOW, KEY_HIGH]]  # what was dropped stays dropped
        self._chunk.begin(row[None])
        batch.d[-1].put(dout)
        run_all(self._passes.backward(batch, rows, need_dx=True))
        dx = batch.d[0].get(rows, int(self.spec.in_features))
        run_all(self._passes.apply(batch, rows, self.optimizer, self._norms.address))
        end = self._chunk.end()
        return dx, Outcome(Status(int(end["status"])), int(end["step"]))

    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        """Return the mean loss of the batch and its gradient; nothing is updated."""
        assert self.loss is not None
        rows, batch = len(x), self._training(len(x))
        self._chunk.begin(np.zeros((1, N_SCALARS)) if scalars is None else scalars[:1])
        classes, weighted = y.ndim == 1, weight is not None
        batch.a[0].put(x)
        (batch.labels if classes else batch.targets).put(y)
        if weight is not None:
            batch.weight.put(weight)
        calls = self._passes.forward(batch, rows)
        calls += self._passes.loss(batch, rows, self.loss, weighted=weighted, classes=classes)
        calls += self._passes.backward(batch, rows, need_dx=False)
        run_all(calls)
        return float(self._chunk.losses.get(1)[0]), self._state.export(self._state.g)

    def plan(self) -> dict[str, Any]:
        """Explain the engine."""
        size = self._state.size * np.dtype(self.spec.dtype).itemsize
        return {
            "backend": self.backend,
            "n_threads": None,
            "threads_reason": "the device runs as many as there are",
            "buffer_bytes": {
                "parameters": size,
                "gradients": size,
                "moments": size * len(self._state.moments),
            },
            "phases": ["gather", "forward", "loss", "backward", "update"],
        }

    def _step(
        self, batch: Batch, rows: int, data: tuple[Any, Any, Any], n: int, classes: bool
    ) -> list[Call]:
        assert self.loss is not None
        assert self.optimizer is not None
        weighted = data[2] is not None
        return [
            *self._passes.gather(batch, rows, data, n, classes),
            *self._passes.forward(batch, rows),
            *self._passes.loss(batch, rows, self.loss, weighted=weighted, classes=classes),
            *self._passes.backward(batch, rows, need_dx=False),
            *self._passes.apply(batch, rows, self.optimizer, self._norms.address),
        ]

    def _outputs(self, work: Work, x: Array) -> Array:
        work.a[0].put(x)
        run_all(self._passes.forward(work, len(x)))
        return work.a[-1].get(len(x), int(self.spec.out_features))

    def _training(self, rows: int) -> Batch:
        if self._batch is None or self._batch.count < rows:
            count = max(rows, self.batch_size)
            self._batch = Batch(self._calls, self.spec, count, self._passes.scratch(count))
            self._steps.clear()
        return self._batch
