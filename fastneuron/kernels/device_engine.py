"""What engines on a device have in common: in which order things are done, not how one is started.

A step is a fixed list of launches: what changes from step to step is found through the step's
number on the device. So steps are queued without a look back, and many are recorded as one graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import groupby
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics, Status
from fastneuron.kernels.device_faults import faults_told
from fastneuron.losses import Loss
from fastneuron.optimizers import KEY_HIGH, KEY_LOW, N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["REPEATS", "DeviceEngine", "watched"]

#: Steps of a recording, longest first. Recording takes the launches that its steps would take one
#: by one, and is done where as many are to run: at worst it doubles that price once. The longest
#: divides what a launch costs the host by 64, and is some thousand nodes of a graph; those between
#: leave at most 14 launches for the rest of a chunk.
REPEATS = (64, 8, 1)
# Rows of a prediction that are on the device at a time, where the batches are smaller.
_PREDICTED_ROWS = 8192
# Kinds of steps, and lengths of predictions, whose launches are kept.
_PREPARED = 64

_Engine = TypeVar("_Engine", bound="DeviceEngine")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def watched(
    method: Callable[Concatenate[_Engine, _Given], _Result],
) -> Callable[Concatenate[_Engine, _Given], _Result]:
    """Make a driver's error a `DeviceError`; what was recorded on moved vectors is forgotten."""

    @wraps(method)
    def call(self: _Engine, *arguments: _Given.args, **options: _Given.kwargs) -> _Result:
        self._queued = False
        with faults_told(lambda: not self._queued, self._drop):
            return method(self, *arguments, **options)

    return call


class DeviceEngine(Engine):
    """Flat vectors on the device, and the step on them as a fixed list of launches.

    A subclass makes, in a constructor that is `watched`:

    _state : `p`, `g` and `moments`, and what loads and exports them
    _chunk : the tables of a chunk
    _passes : the passes as lists of launches
    _data : vectors of x, targets, weights and class numbers
    """

    backend: ClassVar[str] = "cuda"
    _state: Any
    _chunk: Any
    _passes: Any
    _data: Sequence[Any] = ()

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizer: Optimizer | None,
        n_threads: int | None,
        batch_size: int,
    ) -> None:
        super().__init__(spec, loss, optimizer, n_threads=n_threads, batch_size=batch_size)
        self._queued = False  # whether anything of a step was given to the device
        self._held: tuple[Array, Array, Array | None] | None = None
        self._training: Any = None  # vectors of batches, and of predictions
        self._inference: Any = None
        self._kept = 0, np.zeros(N_SCALARS)  # rows and scalars of the last `forward_keep`
        self._steps: dict[tuple[Any, ...], Any] = {}
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self._predictions: dict[int, Any] = {}
        self._no_graphs = ""  # why steps are not recorded

    @watched
    def load(self, parameters: Parameters) -> None:
        self._state.load(self._state.p, parameters)

    @watched
    def export(self) -> Parameters:
        found: Parameters = self._state.export(self._state.p)
        return found

    @watched
    def load_statistics(self, statistics: Statistics) -> None:
        self._state.load_statistics(statistics)

    @watched
    def export_statistics(self) -> Statistics:
        found: Statistics = self._state.export_statistics()
        return found

    @watched
    def load_moments(self, moments: Sequence[Parameters]) -> None:
        for vector, moment in zip(self._state.moments, moments, strict=True):
            self._state.load(vector, moment)

    @watched
    def export_moments(self) -> list[Parameters]:
        return [self._state.export(vector) for vector in self._state.moments]

    @watched
    def hold(self, x: Array, y: Array, weight: Array | None) -> None:
        """Copy a data set to the device, where `run` finds it when it is given these very arrays.

        They must not be written to until others are held.
        """
        self._put_data(x, y, weight)
        self._held = (x, y, weight)

    def let_go(self) -> None:
        self._held = None

    @watched
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
        sizes = np.diff(bounds)
        if not len(sizes):
            return Outcome(Status.OK, 0)
        self._training_rows(int(sizes.max()))
        held = self._held
        if held is None or any(a is not b for a, b in zip(held, (x, y, weight), strict=True)):
            # Only the rows that are asked for, in the order in which they are met.
            order = order[bounds[0] : bounds[-1]]
            x, y = x[order], y[order]
            weight = None if weight is None else weight[order]
            order, bounds = np.arange(len(order)), bounds - bounds[0]
            self._held = None
            self._put_data(x, y, weight)
        if self._chunk.begin(scalars, order, bounds):
            self._forget()
        for size, alike in groupby(sizes.tolist()):
            self._repeat((size, weight is not None, y.ndim == 1), len(list(alike)))
        status, steps, kept = self._chunk.end()
        written = min(steps + (status != Status.OK), len(sizes))
        losses[:written] = kept[:written]
        return Outcome(status, steps)

    @watched
    def forward(self, x: Array) -> Array:
        out = np.empty((len(x), self.spec.out_features), self.spec.dtype)
        if not len(x):
            return out
        rows = self._predicted_rows(len(x))
        for first in range(0, len(x), rows.count):
            part = x[first : first + rows.count]
            out[first : first + len(part)] = self._outputs(rows, part)
        return out

    @watched
    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        rows = self._training_rows(len(x))
        self._kept = len(x), self._begin(scalars).copy()
        return self._outputs(rows, x)

    @watched
    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        count, kept = self._kept
        rows = self._training_rows(count)
        row = scalars.copy()
        row[[KEY_LOW, KEY_HIGH]] = kept[[KEY_LOW, KEY_HIGH]]  # what was dropped stays dropped
        self._begin(row[None])
        self._queued = True
        self._take(rows.d[-1], dout)
        launches = self._passes.backward(rows, count, need_dx=True) + self._apply(rows, count)
        self._queue(self._prepared(launches))
        dx = self._get(rows.d[0], count, self.spec.in_features)
        status, steps, _ = self._chunk.end()
        return dx, Outcome(status, steps)

    @watched
    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        count, classes = len(x), y.ndim == 1
        rows = self._training_rows(count)
        self._begin(scalars)
        self._take(rows.a[0], x)
        self._take(rows.classes if classes else rows.y, y)
        if weight is not None:
            self._take(rows.weight, weight)
        launches = self._passes.forward(rows, count)
        launches += self._loss(rows, count, weight is not None, classes)
        launches += self._passes.backward(rows, count, need_dx=False)
        self._queue(self._prepared(launches))
        gradient = self._state.export(self._state.g)
        return float(self._chunk.end()[2][0]), gradient

    def plan(self) -> dict[str, Any]:
        rows = [each for each in (self._training, self._inference) if each is not None]
        sizes = " or ".join(map(str, REPEATS))
        return {
            "backend": self.backend,
            "n_threads": None,
            "threads_reason": "the device runs as many as there are",
            "buffer_bytes": {
                **self._state.nbytes,
                "batches": sum(each.nbytes for each in rows),
                "data": sum(vector.nbytes for vector in self._data),
            },
            "phases": ["gather", "forward", "loss", "backward", "update"],
            "graph": self._no_graphs or f"{sizes} equal steps are one launch of a recorded graph",
        }

    @abstractmethod
    def _new_rows(self, count: int, *, training: bool) -> Any:
        """Return vectors for batches of up to `count` rows."""

    @abstractmethod
    def _step(self, size: int, weighted: bool, classes: bool) -> Any:
        """Return the launches of a step on the batch that the chunk's tables name."""

    @abstractmethod
    def _loss(self, rows: Any, count: int, weighted: bool, classes: bool) -> Any:
        """Return the launches of the batch's loss and its gradient by the output."""

    @abstractmethod
    def _apply(self, rows: Any, count: int) -> Any:
        """Return the update of a step whose gradient stands, and the end of the step."""

    @abstractmethod
    def _prepared(self, launches: Any) -> Any:
        """Return launches so that they can be queued often."""

    @abstractmethod
    def _queue(self, prepared: Any, times: int = 1) -> None:
        """Start prepared launches in order, all of them `times` times."""

    @abstractmethod
    def _record(self, prepared: Any, times: int) -> Any:
        """Return a graph of `times` times the launches, with ``replay(times)``, running nothing.

        RuntimeError where the driver refuses.
        """

    @abstractmethod
    def _take(self, vector: Any, array: Any) -> None:
        """Copy an array to the start of a vector."""

    @abstractmethod
    def _get(self, vector: Any, count: int, width: int) -> Any:
        """Return a copy of the first numbers, (count, width)."""

    def _predict(self, rows: Any, count: int) -> Any:
        """Return the launches of a prediction."""
        return self._passes.forward(rows, count)

    def _repeat(self, kind: tuple[Any, ...], count: int) -> None:
        """Queue steps of a kind: the first by itself, others as graphs of many."""
        self._queued = True
        steps = self._steps.get(kind)
        if steps is None:
            if len(self._steps) >= _PREPARED:
                self._forget()
            steps = self._steps[kind] = self._prepared(self._step(*kind))
            self._queue(steps)  # which loads its kernels: that cannot be recorded
            count -= 1
        for times in REPEATS:
            if count >= times and (graph := self._graph(kind, times)) is not None:
                graph.replay(count // times)
                count %= times
        if count:
            self._queue(steps, count)

    def _graph(self, kind: tuple[Any, ...], times: int) -> Any:
        """Return the graph of so many steps of a kind; None where steps cannot be recorded."""
        if self._no_graphs:
            return None
        if (kind, times) not in self._graphs:
            try:
                self._graphs[kind, times] = self._record(self._steps[kind], times)
            except RuntimeError as error:
                self._no_graphs = f"the driver cannot record launches: {error}"
                return None
        return self._graphs[kind, times]

    def _begin(self, scalars: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Start a chunk of one step, by the first row of scalars, which is returned."""
        rows = np.zeros((1, N_SCALARS)) if scalars is None else scalars[:1]
        if self._chunk.begin(rows):
            self._forget()
        first: NDArray[np.float64] = rows[0]
        return first

    def _outputs(self, rows: Any, x: Array) -> Any:
        count = len(x)
        self._take(rows.a[0], x)
        if rows.training:
            self._queue(self._prepared(self._passes.forward(rows, count)))
        else:
            if count not in self._predictions:
                if len(self._predictions) >= _PREPARED:
                    self._predictions.clear()
                self._predictions[count] = self._prepared(self._predict(rows, count))
            self._queue(self._predictions[count])
        return self._get(rows.a[-1], count, self.spec.out_features)

    def _put_data(self, x: Array, y: Array, weight: Array | None) -> None:
        to_x, to_y, to_weight, to_classes = self._data
        moved = [to_x.put(x), (to_classes if y.ndim == 1 else to_y).put(y)]
        if weight is not None:
            moved.append(to_weight.put(weight))
        if any(moved):
            self._forget()

    def _training_rows(self, count: int) -> Any:
        if self._training is None or self._training.count < count:
            self._training = self._new_rows(max(count, self.batch_size), training=True)
            self._forget()
        return self._training

    def _predicted_rows(self, count: int) -> Any:
        most = max(self.batch_size, min(count, _PREDICTED_ROWS))
        if self._inference is None or self._inference.count < most:
            self._inference = self._new_rows(most, training=False)
            self._predictions.clear()
        return self._inference

    def _forget(self) -> None:
        """Forget launches on vectors that have moved."""
        self._steps.clear()
        self._graphs.clear()

    def _drop(self) -> None:
        """Forget all that rests on the device but parameters."""
        self.let_go()
        self._forget()
