"""The engine of many small networks at once: a block of the device trains one of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import BackendUnavailable, SpecError
from fastneuron.kernels.contract import Array, Parameters, Statistics, Status
from fastneuron.kernels.device_faults import faults_told
from fastneuron.kernels.device_plan import blocks_of
from fastneuron.kernels.ensemble_contract import EnsembleEngine, EnsembleOutcome
from fastneuron.kernels.fused_plan import (
    FusedPlan,
    ensemble_marks,
    ensemble_plan,
    ensemble_threads,
)
from fastneuron.kernels.numba_cuda import missing
from fastneuron.kernels.numba_cuda.driver import allow_shared, empty, new_stream, put, zeros
from fastneuron.kernels.numba_cuda.ensemble_kernel import ensemble_steps, shared_bytes
from fastneuron.kernels.numba_cuda.fused import fused_forward
from fastneuron.kernels.numba_cuda.launches import Launch, prepared, run_all
from fastneuron.kernels.numba_cuda.outcome import STATUS, STEP
from fastneuron.kernels.numba_cuda.state import Vector
from fastneuron.kernels.numba_cuda.updates import table_of
from fastneuron.losses import Loss
from fastneuron.optimizers import CLIP_NORM, N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CudaEnsembleEngine"]

# Multiply-adds of a launch, a model: a display's watchdog ends kernels of some 2 s, and a block
# does 5e9 a second on any card that there is (a tenth of what its multiprocessor could).
_LAUNCH_WORK = 2e9
# Models that run at once on the smallest card at least.
_MODELS_TOGETHER = 16
# Multiply-adds that a parameter's update takes as long as.
_UPDATE_WORK = 16
# Bytes of inputs and outputs of a prediction that are on the device at a time.
_PREDICTED_BYTES = 256 * 1024**2
# Blocks of a grid along its second axis, at most (CUDA C programming guide, table of technical
# specifications).
_MOST_MODELS = 65535


class CudaEnsembleEngine(EnsembleEngine):
    """Many models in flat vectors, one behind the other, and their steps as few launches.

    Parameters
    ----------
    spec, loss, optimizers, n_threads, batch_size
        See `EnsembleEngine`. n_threads is of no effect.
    plan, threads : optional
        How a block is cut; tests cut it small.

    Raises
    ------
    BackendUnavailable
        Where there is no driver or no card.
    SpecError
        Where a block cannot train the network: see `ensemble_plan`.
    DeviceError
        From here and every method, where the device fails.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizers: Sequence[Optimizer],
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        plan: FusedPlan | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(spec, loss, optimizers, n_threads=n_threads, batch_size=batch_size)
        problem = missing()
        if problem:
            raise BackendUnavailable(problem)
        plan = plan or ensemble_plan(spec)
        if plan is None:
            raise SpecError("a block of the device cannot train this network by itself")
        self._plan, self._dtype = plan, np.dtype(spec.dtype)
        self._threads = threads or ensemble_threads(plan)
        self._held: tuple[Array, Array, Array | None] | None = None
        self._queued = False  # whether anything of a step was given to the device
        with self._watched():
            self._make_state()

    def load(self, parameters: Parameters) -> None:
        with self._watched():
            self._load(self._p, parameters)

    def export(self) -> Parameters:
        with self._watched():
            return self._export(self._p)

    def load_statistics(self, statistics: Statistics) -> None:
        """Do nothing: dense layers keep none."""

    def export_statistics(self) -> Statistics:
        return [None] * len(self.spec.layers)

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        with self._watched():
            for vector, moment in zip(self._moments, moments, strict=True):
                self._load(vector, moment)

    def export_moments(self) -> list[Parameters]:
        with self._watched():
            return [self._export(vector) for vector in self._moments]

    def hold(self, x: Array, y: Array, weight: Array | None) -> None:
        """Copy a data set to the device, where `run` finds it when it is given these very arrays.

        They must not be written to until others are held.
        """
        self._held = None
        with self._watched():
            self._put_data(x, y, weight)
        self._held = (x, y, weight)

    def let_go(self) -> None:
        """Forget the data that `hold` had."""
        self._held = None

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> EnsembleOutcome:
        count = len(bounds) - 1
        if not count or not self.n_models:
            return EnsembleOutcome(*np.zeros((2, self.n_models), np.int64))
        order, bounds = order[:, bounds[0] : bounds[-1]], bounds - bounds[0]
        with self._watched():
            held = self._held
            if held is None or any(a is not b for a, b in zip(held, (x, y, weight), strict=True)):
                self._held = None
                if len(order) == 1 and order.shape[1] < x.shape[-2]:  # as they are met
                    x, y, weight = self._rows_of(x, y, weight, order[0])
                    order = np.arange(order.shape[1])[None]
                self._put_data(x, y, weight)
            tables = self._put_steps(order, bounds, scalars)
            for launch in self._launches(x, y, weight, order, np.diff(bounds), tables):
                self._queued = True
                run_all(prepared([launch], self._stream))
            return self._outcome(losses)

    def forward(self, x: Array) -> Array:
        own = x.ndim == 3
        count, inputs = x.shape[-2:]
        outputs, models = self.spec.out_features, self.n_models
        out = np.empty((models, count, outputs), self._dtype)
        each = (models * outputs + (models if own else 1) * inputs) * self._dtype.itemsize
        most = max(1, min(_PREDICTED_BYTES // each, count))
        with self._watched():
            if out.size:
                self._inputs.make_room((models if own else 1) * most * inputs)
                self._outputs.make_room(models * most * outputs)
            for first in range(0, count if models else 0, most):
                part = x[..., first : first + most, :]
                out[:, first : first + most] = self._predicted(part, own)
        return out

    def plan(self) -> dict[str, Any]:
        plan, models = self._plan, self.n_models
        each = plan.flat * self._dtype.itemsize * models
        data = self._data, self._labels, self._inputs, self._outputs
        return {
            "backend": "cuda",
            "n_threads": None,
            "threads_reason": "the device runs as many as there are",
            "n_models": models,
            "buffer_bytes": {
                "parameters": each,
                "gradients": each if plan.gradient_at is None else 0,
                "moments": each * len(self._moments),
                "data": sum(vector.nbytes for vector in (*data[0], *data[1:])),
                "steps": sum(vector.nbytes for vector in self._of_steps),
            },
            "phases": ["gather", "forward", "loss", "backward", "update"],
            "fused": f"all steps of a model in one block of {self._threads} threads, "
            f"{plan.rows} rows at a time",
            "weights": "in shared memory from step to step"
            if plan.holds
            else "copied to shared memory layer by layer: all together do not fit",
            "gradient": "in global memory" if plan.gradient_at is None else "in shared memory",
            "shared_bytes": shared_bytes(plan, self.spec.dtype, self._threads),
        }

    def _make_state(self) -> None:
        dtype, models, plan = self._dtype, self.n_models, self._plan
        self._stream = new_stream()
        kinds = {each.kind for each in self.optimizers}
        assert len(kinds) <= 1, "the optimizers of an ensemble are of one kind"
        n_moments = self.optimizers[0].n_moments if models else 0
        vectors = [zeros(models * plan.flat, dtype, self._stream) for _ in range(1 + n_moments)]
        self._p, self._moments = vectors[0], vectors[1:]
        away = 0 if plan.gradient_at is not None else models * plan.flat
        self._g = zeros(away, dtype, self._stream)
        marks = [ensemble_marks(self.spec, plan, each.decay_bias) for each in self.optimizers]
        self._marks = zeros(models * plan.flat // 16, np.uint8, self._stream)
        if models:
            put(self._marks, np.concatenate(marks), self._stream)
        of_data = [Vector(dtype, self._stream) for _ in range(7)]
        self._data = of_data[0], of_data[1], of_data[2]
        self._inputs, self._outputs, self._table, self._rows = of_data[3:]
        of_rows = [Vector(np.int64, self._stream) for _ in range(3)]
        self._labels, self._order, self._bounds = of_rows
        self._limits, self._losses = (Vector(np.float64, self._stream) for _ in range(2))
        self._rows.make_room(models * self.batch_size)
        self._of_steps = [
            self._order, self._bounds, self._table, self._rows, self._limits, self._losses
        ]  # fmt: skip
        self._state = zeros(2 * models, np.int64, self._stream)
        self._none = empty(1, dtype)

    def _parts(self, flat: Array) -> list[tuple[Array, Array | None]]:
        """Return views (M, I, O) and (M, O) of the flat vectors (M, n) of all models."""
        found: list[tuple[Array, Array | None]] = []
        for at in self._plan.layers:
            rows = flat[:, at.weight_at : at.weight_at + at.inputs * at.row]
            weight = rows.reshape(len(flat), at.inputs, at.row)[:, :, : at.outputs]
            bias = flat[:, at.bias_at : at.bias_at + at.outputs] if at.bias else None
            found.append((weight, bias))
        return found

    def _load(self, vector: Any, parameters: Parameters) -> None:
        flat = np.zeros((self.n_models, self._plan.flat), self._dtype)
        for views, arrays in zip(self._parts(flat), parameters, strict=True):
            for view, array in zip(views, arrays, strict=True):
                if view is not None and array is not None:
                    view[...] = array
        put(vector, flat.reshape(-1), self._stream)
        self._stream.synchronize()

    def _export(self, vector: Any) -> Parameters:
        flat = vector.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        views = self._parts(flat[: self.n_models * self._plan.flat].reshape(self.n_models, -1))
        return [(weight.copy(), None if bias is None else bias.copy()) for weight, bias in views]

    def _put_data(self, x: Array, y: Array, weight: Array | None) -> None:
        self._data[0].put(x)
        (self._labels if y.dtype.kind == "i" else self._data[1]).put(y)
        if weight is not None:
            self._data[2].put(weight)

    def _rows_of(
        self, x: Array, y: Array, weight: Array | None, rows: NDArray[np.int64]
    ) -> tuple[Array, Array, Array | None]:
        """Return the same rows of all data, whether of all models or each its own."""
        y_axis = y.ndim - (1 if y.dtype.kind == "i" else 2)
        some = None if weight is None else np.take(weight, rows, axis=-1)
        return np.take(x, rows, axis=-2), np.take(y, rows, axis=y_axis), some

    def _put_steps(
        self, order: NDArray[np.int64], bounds: NDArray[np.int64], scalars: NDArray[np.float64]
    ) -> int:
        """Copy in what steps need beside data; return the models that the table has, M or 1."""
        if scalars.strides[1] == 0:  # all models share their scalars, which are copied once
            scalars = scalars[:, :1]
        flat = scalars.reshape(-1, N_SCALARS)
        self._order.put(order)
        self._bounds.put(bounds)
        self._table.put(table_of(flat, self.spec.dtype))
        self._limits.put(flat[:, CLIP_NORM])
        self._losses.make_room(len(scalars) * self.n_models)
        put(self._state, np.zeros(2 * self.n_models, np.int64), self._stream)
        return scalars.shape[1]

    def _launches(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        sizes: NDArray[np.int64],
        tables: int,
    ) -> list[Launch]:
        """All steps of all models, cut into launches of bounded time."""
        assert self.loss is not None
        plan, models, most = self._plan, self.n_models, int(sizes.max())
        self._rows.make_room(models * most)
        classes, optimizer = y.dtype.kind == "i", self.optimizers[0]
        what = optimizer.kind, optimizer.n_moments, self.spec.dtype, self._threads
        kernel = ensemble_steps(plan, self.loss.name, *what, weight is not None, classes)
        target = self._labels if classes else self._data[1]
        first, second = [*self._moments, self._none, self._none][:2]
        vectors = [
            each.array
            for each in (
                self._data[0], target, self._data[2], self._order, self._bounds, self._table,
                self._limits,
            )
        ]  # fmt: skip
        vectors += [self._marks, self._p, self._g, first, second, self._rows.array]
        vectors += [self._losses.array, self._state]
        apart = [
            array[0].size if array is not None and array.ndim == own else 0
            for array, own in ((x, 3), (y, 2 if classes else 3), (weight, 2))
        ]
        apart.append(order.shape[1] if len(order) > 1 else 0)
        work = np.cumsum(plan.flat * (3.0 * sizes + _UPDATE_WORK))
        part = work * max(1.0, models / _MODELS_TOGETHER) // _LAUNCH_WORK
        ends = [*(np.flatnonzero(np.diff(part)) + 1).tolist(), len(sizes)]
        shared = plan.numbers * self._dtype.itemsize
        beside = shared_bytes(plan, self.spec.dtype, self._threads) - shared
        launches = [
            Launch(kernel, models, self._threads, (*vectors, *apart, tables, most, end), shared)
            for end in ends
        ]
        allow_shared(kernel, launches[0].arguments, shared, beside=beside)
        return launches

    def _outcome(self, losses: NDArray[np.float64]) -> EnsembleOutcome:
        """Wait for the device; write the losses of the steps that were taken or failed."""
        state = self._state.copy_to_host(stream=self._stream)
        kept = self._losses.array[: losses.size].copy_to_host(stream=self._stream)
        self._stream.synchronize()
        state = state[: 2 * self.n_models].reshape(-1, 2)
        status, steps = state[:, STATUS].copy(), state[:, STEP].copy()
        met = np.arange(len(losses))[:, None] < steps + (status != Status.OK)
        np.copyto(losses, kept.reshape(losses.shape), where=met)
        return EnsembleOutcome(status, steps)

    def _predicted(self, x: Array, own: bool) -> Array:
        """Return the outputs (M, B, O) of a part of the rows."""
        plan, (count, inputs) = self._plan, x.shape[-2:]
        outputs, shared = self.spec.out_features, plan.forward_numbers * self._dtype.itemsize
        self._inputs.put(x)
        kernel = fused_forward(plan, self.spec.dtype, self._threads)
        apart = count * inputs if own else 0
        launches = []
        for first in range(0, self.n_models, _MOST_MODELS):
            models = min(_MOST_MODELS, self.n_models - first)
            x_of = self._inputs.array[first * apart :]
            p = self._p[first * plan.flat :]
            out = self._outputs.array[first * count * outputs :]
            grid = blocks_of(count, plan.rows), models
            arguments = x_of, p, out, count, apart, plan.flat
            launches.append(Launch(kernel, grid, self._threads, arguments, shared))
        allow_shared(kernel, launches[0].arguments, shared)
        run_all(prepared(launches, self._stream))
        size = self.n_models * count * outputs
        numbers: Array = self._outputs.array[:size].copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return numbers.reshape(self.n_models, count, outputs)

    def _watched(self) -> AbstractContextManager[None]:
        """Make a driver's error one of ours."""
        self._queued = False
        return faults_told(lambda: not self._queued, self.let_go)
