"""What engines of many small networks on a device have in common: a block trains one of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import SpecError
from fastneuron.kernels.contract import Array, Parameters, Statistics, Status
from fastneuron.kernels.device_faults import faults_told
from fastneuron.kernels.ensemble_contract import EnsembleEngine, EnsembleOutcome
from fastneuron.kernels.fused_plan import (
    FusedPlan,
    ensemble_marks,
    ensemble_plan,
    ensemble_threads,
)
from fastneuron.losses import Loss
from fastneuron.optimizers import N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["DeviceEnsembleEngine", "Steps"]

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
# Places in a model's state, whose numbers are int64.
_STEP, _STATUS = 0, 1


class Steps(NamedTuple):
    """What a call's steps are started with, beside the vectors of the engine.

    Attributes
    ----------
    classes, weighted : bool
    apart : tuple of int
        Numbers from model to model of x, y, weight and order; 0 where all share them.
    tables : int
        Models that the table of scalars has, M or 1 for all.
    most : int
        Rows of the largest batch.
    """

    classes: bool
    weighted: bool
    apart: tuple[int, int, int, int]
    tables: int
    most: int


class DeviceEnsembleEngine(EnsembleEngine):
    """Many models in flat vectors, one behind the other, and their steps as few launches.

    A subclass says how a launch is made and what a vector is: it has `put`, `make_room`, `get` and
    `nbytes`.

    Parameters
    ----------
    spec, loss, optimizers, n_threads, batch_size
        See `EnsembleEngine`. n_threads is of no effect.
    plan, threads : optional
        How a block is cut; tests cut it small.

    Raises
    ------
    SpecError
        Where a block cannot train the network: see `ensemble_plan`.
    DeviceError
        From here and every method, where the device fails.
    """

    #: Numbers of a model's state.
    _state_numbers: ClassVar[int]

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
        plan = plan or ensemble_plan(spec)
        if plan is None:
            raise SpecError("a block of the device cannot train this network by itself")
        self._plan, self._dtype = plan, np.dtype(spec.dtype)
        self._threads = threads or ensemble_threads(plan)
        self._held: tuple[Array, Array, Array | None] | None = None
        self._queued = False  # whether anything of a step was given to the device
        with self._watched():
            self._open()
            self._make_state()

    @abstractmethod
    def _open(self) -> None:
        """Make what vectors and launches need."""

    @abstractmethod
    def _vector(self, dtype: Any) -> Any:
        """Return a vector on the device, of one number for now."""

    @abstractmethod
    def _put_scalars(self, scalars: NDArray[np.float64]) -> None:
        """Copy in the optimizers' scalars (steps x tables, N_SCALARS)."""

    @abstractmethod
    def _training(self, steps: Steps, ends: list[int]) -> list[Callable[[], None]]:
        """Return what queues the steps up to each of `ends`."""

    @abstractmethod
    def _prediction(
        self, first: int, models: int, count: int, apart: int
    ) -> list[Callable[[], None]]:
        """Return what queues the outputs of some models, for the rows in `_inputs`.

        `apart`: numbers from model to model of the rows, 0 where all share them.
        """

    @abstractmethod
    def _shared_bytes(self) -> int:
        """Return the shared memory of a block in training."""

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
                    x, y, weight = _rows_of(x, y, weight, order[0])
                    order = np.arange(order.shape[1])[None]
                self._put_data(x, y, weight)
            tables = self._put_steps(order, bounds, scalars)
            sizes = np.diff(bounds)
            classes, most = y.dtype.kind == "i", int(sizes.max())
            self._rows.make_room(self.n_models * most)
            apart = (
                _apart(x, 3), _apart(y, 2 if classes else 3), _apart(weight, 2),
                order.shape[1] if len(order) > 1 else 0,
            )  # fmt: skip
            steps = Steps(classes, weight is not None, apart, tables, most)
            for start in self._training(steps, self._ends(sizes)):
                self._queued = True
                start()
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
        plan, near = self._plan, self._plan.gradient_at is not None
        data = *self._data, self._labels, self._inputs, self._outputs
        return {
            "backend": "cuda",
            "n_threads": None,
            "threads_reason": "the device runs as many as there are",
            "n_models": self.n_models,
            "buffer_bytes": {
                "parameters": self._p.nbytes,
                "gradients": 0 if near else self._g.nbytes,
                "moments": sum(vector.nbytes for vector in self._moments),
                "data": sum(vector.nbytes for vector in data),
                "steps": sum(vector.nbytes for vector in self._of_steps),
            },
            "phases": ["gather", "forward", "loss", "backward", "update"],
            "fused": f"all steps of a model in one block of {self._threads} threads, "
            f"{plan.rows} rows at a time",
            "weights": "in shared memory from step to step"
            if plan.holds
            else "copied to shared memory layer by layer: all together do not fit",
            "gradient": "in shared memory" if near else "in global memory",
            "shared_bytes": self._shared_bytes(),
        }

    def _make_state(self) -> None:
        dtype, models, plan = self._dtype, self.n_models, self._plan
        kinds = {each.kind for each in self.optimizers}
        assert len(kinds) <= 1, "the optimizers of an ensemble are of one kind"
        n_moments = self.optimizers[0].n_moments if models else 0
        self._p, self._g, *self._moments = (self._vector(dtype) for _ in range(2 + n_moments))
        for vector in (self._p, self._g, *self._moments):
            away = vector is not self._g or plan.gradient_at is None
            vector.put(np.zeros(models * plan.flat * away, dtype))
        self._marks = self._vector(np.uint8)
        for_each = [ensemble_marks(self.spec, plan, each.decay_bias) for each in self.optimizers]
        self._marks.put(np.concatenate([np.empty(0, np.uint8), *for_each]))
        self._data = self._vector(dtype), self._vector(dtype), self._vector(dtype)
        self._inputs, self._outputs, self._rows = (self._vector(dtype) for _ in range(3))
        self._labels, self._order, self._bounds, self._state = (
            self._vector(np.int64) for _ in range(4)
        )
        self._losses = self._vector(np.float64)
        self._rows.make_room(models * self.batch_size)
        #: Of the memory, what steps need beside data; subclasses have more.
        self._of_steps = [self._order, self._bounds, self._rows, self._losses]

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
        vector.put(flat)

    def _export(self, vector: Any) -> Parameters:
        views = self._parts(self._flat(vector))
        return [(weight.copy(), None if bias is None else bias.copy()) for weight, bias in views]

    def _flat(self, vector: Any) -> Array:
        """Return a copy of the flat vectors (M, n) of all models."""
        flat: Array = vector.get(self.n_models * self._plan.flat)
        return flat.reshape(self.n_models, self._plan.flat)

    def _put_data(self, x: Array, y: Array, weight: Array | None) -> None:
        self._data[0].put(x)
        (self._labels if y.dtype.kind == "i" else self._data[1]).put(y)
        if weight is not None:
            self._data[2].put(weight)

    def _put_steps(
        self, order: NDArray[np.int64], bounds: NDArray[np.int64], scalars: NDArray[np.float64]
    ) -> int:
        """Copy in what steps need beside data; return the models that the table has, M or 1."""
        if scalars.strides[1] == 0:  # all models share their scalars, which are copied once
            scalars = scalars[:, :1]
        self._order.put(order)
        self._bounds.put(bounds)
        self._put_scalars(scalars.reshape(-1, N_SCALARS))
        self._losses.make_room(len(scalars) * self.n_models)
        self._state.put(np.zeros(self._state_numbers * self.n_models, np.int64))
        return scalars.shape[1]

    def _ends(self, sizes: NDArray[np.int64]) -> list[int]:
        """Return where launches of bounded time end, given the rows of each step's batch."""
        work = np.cumsum(self._plan.flat * (3.0 * sizes + _UPDATE_WORK))
        part = work * max(1.0, self.n_models / _MODELS_TOGETHER) // _LAUNCH_WORK
        return [*(np.flatnonzero(np.diff(part)) + 1).tolist(), len(sizes)]

    def _outcome(self, losses: NDArray[np.float64]) -> EnsembleOutcome:
        """Wait for the device; write the losses of the steps that were taken or failed."""
        state = self._state.get(self._state_numbers * self.n_models)
        state = state.reshape(-1, self._state_numbers)
        status, steps = state[:, _STATUS].copy(), state[:, _STEP].copy()
        met = np.arange(len(losses))[:, None] < steps + (status != Status.OK)
        np.copyto(losses, self._losses.get(losses.size).reshape(losses.shape), where=met)
        return EnsembleOutcome(status, steps)

    def _predicted(self, x: Array, own: bool) -> Array:
        """Return the outputs (M, B, O) of a part of the rows."""
        count, inputs = x.shape[-2:]
        self._inputs.put(x)
        for first in range(0, self.n_models, _MOST_MODELS):
            models = min(_MOST_MODELS, self.n_models - first)
            for start in self._prediction(first, models, count, count * inputs if own else 0):
                start()
        shape = self.n_models, count, self.spec.out_features
        numbers: Array = self._outputs.get(int(np.prod(shape)))
        return numbers.reshape(shape)

    def _watched(self) -> AbstractContextManager[None]:
        """Make a driver's error one of ours."""
        self._queued = False
        return faults_told(lambda: not self._queued, self.let_go)


def _apart(array: Array | None, own: int) -> int:
    """Return the numbers from model to model of an array; 0 where it has not so many axes."""
    return array[0].size if array is not None and array.ndim == own else 0


def _rows_of(
    x: Array, y: Array, weight: Array | None, rows: NDArray[np.int64]
) -> tuple[Array, Array, Array | None]:
    """Return the same rows of all data, whether of all models or each its own."""
    y_axis = y.ndim - (1 if y.dtype.kind == "i" else 2)
    some = None if weight is None else np.take(weight, rows, axis=-1)
    return np.take(x, rows, axis=-2), np.take(y, rows, axis=y_axis), some
