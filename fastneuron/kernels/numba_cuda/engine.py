"""The CUDA engine: the whole step on the device, and many steps without asking it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import (
    Array,
    Engine,
    Outcome,
    Parameters,
    Statistics,
    Status,
)
from fastneuron.kernels.device_plan import Blocks, Tile, blocks_of, tile_of
from fastneuron.kernels.fused_plan import FUSED_ROWS, fused_plan
from fastneuron.kernels.numba_cuda import missing, outcome, updates
from fastneuron.kernels.numba_cuda.driver import allow_shared, new_stream, put
from fastneuron.kernels.numba_cuda.fused import fused_forward, fused_step
from fastneuron.kernels.numba_cuda.gather import gather
from fastneuron.kernels.numba_cuda.graph import Graph, why_not
from fastneuron.kernels.numba_cuda.launches import Launch, Passes, prepared, run_all
from fastneuron.kernels.numba_cuda.library import Provider, open_library
from fastneuron.kernels.numba_cuda.library_passes import LibraryPasses
from fastneuron.kernels.numba_cuda.losses import loss_rows
from fastneuron.kernels.numba_cuda.rows import Rows
from fastneuron.kernels.numba_cuda.state import Chunk, State, Vector
from fastneuron.kernels.precision import check_precision
from fastneuron.losses import Loss
from fastneuron.optimizers import N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CudaEngine"]

# Rows of a prediction that are on the device at a time, where the batches are smaller.
_PREDICTED_ROWS = 8192
# Lengths of predictions whose launches are kept.
_PREPARED = 64


class CudaEngine(Engine):
    """Training state in flat vectors on the device, and the step on it as a fixed row of launches.

    Parameters
    ----------
    spec, loss, optimizer, n_threads, batch_size
        See `Engine`. n_threads is of no effect.
    precision : {"float32", "tf32", "bfloat16"}
        What a training step's products may round their factors to, in a float32 network.
    tile, blocks : optional
        How work is cut; tests cut it small.
    fused_rows : tuple of int, optional
        Rows of a block that trains the whole network by itself, the first that fits; none for a
        network that is trained layer by layer in any case.
    library : optional
        Stands for cuBLASLt in tests.

    Raises
    ------
    BackendUnavailable
        Where there is no driver or no card, or no cuBLASLt for a precision that needs it.
    UnknownNameError, SpecError
        Where the precision does not exist, or not for the network's dtype.
    """

    backend = "cuda"

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        precision: str = "float32",
        tile: Tile | None = None,
        blocks: Blocks | None = None,
        fused_rows: tuple[int, ...] = FUSED_ROWS,
        library: Provider | None = None,
    ) -> None:
        super().__init__(spec, loss, optimizer, n_threads=n_threads, batch_size=batch_size)
        check_precision(precision, spec.dtype, self.backend)
        problem = missing()
        if problem:
            raise BackendUnavailable(problem)
        self._tile, self._blocks = tile or tile_of(spec.dtype), blocks or Blocks()
        self._stream = new_stream()
        self._state = State(spec, optimizer, self._stream)
        self._chunk = Chunk(spec.dtype, self._stream)
        self._fused = fused_plan(spec, fused_rows)
        self._library, self._no_library = library, ""
        if library is None:
            self._library, self._no_library = open_library(precision, self._stream)
        of = spec, self._tile, self._blocks, self._state, self._chunk
        self._passes = LibraryPasses(*of, self._library) if self._library else Passes(*of)
        self._precision = precision
        self._data = (Vector(spec.dtype), Vector(spec.dtype), Vector(spec.dtype))
        self._labels = Vector(np.int64)
        self._norms = Vector(np.float64)
        self._norms.make_room(blocks_of(self._state.size, self._blocks.chunk))
        self._training: Rows | None = None
        self._inference: Rows | None = None
        self._steps: dict[tuple[Any, ...], list[Callable[[], None]]] = {}
        self._predictions: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._no_graphs = why_not()
        self._held: tuple[Array, Array, Array | None] | None = None
        self._kept_rows = 0

    def load(self, parameters: Parameters) -> None:
        self._state.load(self._state.p, parameters)

    def export(self) -> Parameters:
        return self._state.export(self._state.p)

    def load_statistics(self, statistics: Statistics) -> None:
        self._state.load_statistics(statistics)

    def export_statistics(self) -> Statistics:
        return self._state.export_statistics()

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        for vector, moment in zip(self._state.moments, moments, strict=True):
            self._state.load(vector, moment)

    def export_moments(self) -> list[Parameters]:
        return [self._state.export(vector) for vector in self._state.moments]

    def hold(self, x: Array, y: Array, weight: Array | None) -> None:
        """Copy a data set to the device, where `run` finds it when it is given these very arrays.

        They must not be written to until others are held.
        """
        self._put_data(x, y, weight)
        self._held = (x, y, weight)

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
        rows = self._training_rows(int(sizes.max()))
        held = self._held
        if held is None or any(a is not b for a, b in zip(held, (x, y, weight), strict=True)):
            # Only the rows that are asked for, in the order in which they are met.
            order = order[bounds[0] : bounds[-1]]
            x, y = x[order], y[order]
            weight = None if weight is None else weight[order]
            order, bounds = np.arange(len(order)), bounds - bounds[0]
            self._held = None
            self._put_data(x, y, weight)
        moved = [
            self._chunk.begin(scalars),
            self._chunk.order.put(order, self._stream),
            self._chunk.bounds.put(bounds, self._stream),
        ]
        if any(moved):
            self._forget()
        for size in sizes.tolist():
            self._step(rows, size, weight is not None, y.ndim == 1)
        status, steps, kept = self._chunk.end()
        written = min(steps + (status != Status.OK), len(sizes))
        losses[:written] = kept[:written]
        return Outcome(status, steps)

    def forward(self, x: Array) -> Array:
        out = np.empty((len(x), self.spec.out_features), self.spec.dtype)
        most = max(self.batch_size, min(len(x), _PREDICTED_ROWS))
        if len(x) and (self._inference is None or self._inference.count < most):
            self._inference = self._new_rows(most, training=False)
            self._predictions.clear()
        for first in range(0, len(x), most):
            assert self._inference is not None
            part = x[first : first + most]
            out[first : first + most] = self._outputs(self._inference, part)
        return out

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        rows = self._training_rows(len(x))
        self._begin(scalars)
        self._kept_rows = len(x)
        return self._outputs(rows, x)

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        count = self._kept_rows
        rows = self._training_rows(count)
        if self._chunk.begin(scalars[None], new_keys=False):
            self._forget()
        self._take(rows.d[-1], dout)
        launches = self._passes.backward(rows, count, need_dx=True) + self._apply(rows, count)
        run_all(prepared(launches, self._stream))
        dx = self._get(rows.d[0], count, self.spec.in_features)
        status, steps, _ = self._chunk.end()
        return dx, Outcome(status, steps)

    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        count = len(x)
        rows = self._training_rows(count)
        self._begin(scalars)
        self._take(rows.a[0], x)
        self._take(rows.classes if y.ndim == 1 else rows.y, y)
        if weight is not None:
            self._take(rows.weight, weight)
        launches = self._passes.forward(rows, count)
        launches += self._loss(rows, count, weight is not None, y.ndim == 1)
        launches.append(self._mean_loss(rows, count))
        launches += self._passes.backward(rows, count, need_dx=False)
        run_all(prepared(launches, self._stream))
        gradient = self._state.export(self._state.g)
        _, _, losses = self._chunk.end()
        return float(losses[0]), gradient

    def plan(self) -> dict[str, Any]:
        rows = [each for each in (self._training, self._inference) if each is not None]
        data = sum(vector.nbytes for vector in (*self._data, self._labels))
        tile = self._tile
        return {
            "backend": self.backend,
            "n_threads": None,
            "threads_reason": "the device runs as many as there are",
            "buffer_bytes": {
                **self._state.nbytes,
                "batches": sum(each.nbytes for each in rows),
                "data": data,
                "library": self._library.nbytes if self._library else 0,
            },
            "phases": ["gather", "forward", "loss", "backward", "update"],
            "fused": "layer by layer"
            if self._fused is None
            else f"{self._fused.rows} rows a block",
            "precision": self._precision,
            "products": self._no_library or self._chosen(),
            "tile": f"{tile.rows}x{tile.columns}x{tile.depth}",
            "graph": self._no_graphs or "each step is one launch of a recorded graph",
        }

    def _chosen(self) -> dict[str, str]:
        """The way of each piece of a step so far, by what it is and its sizes.

        Where "mask" is taken for two layers, it stands for the forward product of the lower and the
        data gradient of the upper one.
        """
        assert self._library is not None
        return {
            " ".join(str(each) for each in key if not isinstance(each, tuple)): choice.option.name
            for key, choice in self._library.made.items()
        }

    def _step(self, rows: Rows, size: int, weighted: bool, classes: bool) -> None:
        """Queue one step: the first of its kind one launch at a time, later ones as a graph."""
        kind = size, weighted, classes
        graph = self._graphs.get(kind)
        if graph is not None:
            graph.replay()
            return
        known = kind in self._steps
        if not known:
            fused = self._fused_step(rows, size, weighted, classes)
            by_layer = fused or [
                *self._gather(rows, size, weighted, classes),
                *self._passes.forward(rows, size),
                *self._loss(rows, size, weighted, classes),
                *self._passes.backward(rows, size, need_dx=False),
            ]
            launches = [*by_layer, self._mean_loss(rows, size), *self._apply(rows, size)]
            self._steps[kind] = prepared(launches, self._stream)
        calls = self._steps[kind]
        if known and not self._no_graphs:
            try:
                graph = Graph(self._stream, lambda: run_all(calls))
            except RuntimeError as error:
                self._no_graphs = f"the driver cannot record launches: {error}"
            else:
                self._graphs[kind] = graph
                graph.replay()
                return
        run_all(calls)

    def _gather(self, rows: Rows, size: int, weighted: bool, classes: bool) -> list[Launch]:
        cut = self._blocks.lanes, self._blocks.rows
        grid, kernel = blocks_of(size, cut[1]), gather(*cut)
        chunk = self._chunk
        data = [(self._data[0].array, rows.a[0], self.spec.in_features)]
        if classes:
            data.append((self._labels.array, rows.classes, 1))
        else:
            data.append((self._data[1].array, rows.y, self.spec.out_features))
        if weighted:
            data.append((self._data[2].array, rows.weight, 1))
        where = chunk.order.array, chunk.bounds.array, chunk.state
        return [
            Launch(kernel, grid, cut, (source, *where, out, size, width))
            for source, out, width in data
        ]

    def _loss(self, rows: Rows, size: int, weighted: bool, classes: bool) -> list[Launch]:
        assert self.loss is not None
        b, width = self._blocks, self.spec.out_features
        kernel = loss_rows(self.loss.name, self.spec.dtype, b.lanes, b.rows, weighted, classes)
        y = rows.classes if classes else rows.y
        vectors = rows.a[-1], y, rows.weight, rows.losses, rows.d[-1]
        grid, block = blocks_of(size, b.rows), (b.lanes, b.rows)
        return [Launch(kernel, grid, block, (*vectors, size, width))]

    def _mean_loss(self, rows: Rows, size: int) -> Launch:
        threads = self._blocks.threads
        arguments = rows.losses, self._chunk.losses.array, self._chunk.state, size
        return Launch(outcome.mean_loss(threads), 1, threads, arguments)

    def _fused_step(self, rows: Rows, size: int, weighted: bool, classes: bool) -> list[Launch]:
        """A step up to its gradient and losses where blocks train it whole, else nothing."""
        plan, chunk, state = self._fused, self._chunk, self._state
        if plan is None or plan.partials(size, self.spec) > plan.most_partials(self.spec):
            return []
        assert self.loss is not None
        dtype, threads, blocks = self.spec.dtype, self._blocks.threads, blocks_of(size, plan.rows)
        kernel = fused_step(plan, self.loss.name, dtype, threads, weighted, classes)
        target = (self._labels if classes else self._data[1]).array
        data = self._data[0].array, target, self._data[2].array
        where = chunk.order.array, chunk.bounds.array, chunk.state
        arguments = (*data, *where, state.p, rows.losses, rows.scratch, size, state.size)
        return [
            self._with_shared(Launch(kernel, (blocks, 1), threads, arguments)),
            self._passes.second_stage(rows.scratch, state.g, blocks, state.size),
        ]

    def _with_shared(self, launch: Launch) -> Launch:
        """A launch of a fused kernel with the shared memory that its plan takes."""
        assert self._fused is not None
        size = self._fused.numbers * np.dtype(self.spec.dtype).itemsize
        allow_shared(launch.kernel, launch.arguments, size)
        return launch._replace(shared=size)

    def _apply(self, rows: Rows, size: int) -> list[Launch]:
        """The update of a step whose gradient stands, and the end of the step."""
        assert self.optimizer is not None
        state, chunk, threads = self._state, self._chunk, self._blocks.threads
        launches: list[Launch] = []
        count, chunks = state.size, blocks_of(state.size, self._blocks.chunk)
        norms, limits, clip = self._norms.array, chunk.limits.array, chunk.clip.array
        if count:
            squares = outcome.squares(threads, self._blocks.chunk)
            launches.append(Launch(squares, chunks, threads, (state.g, state.marks, norms, count)))
        judge = outcome.judge(threads, self.spec.dtype)
        launches.append(Launch(judge, 1, threads, (norms, limits, clip, chunk.state, chunks)))
        if count:
            first, second = ([*state.moments, rows.none, rows.none])[:2]
            update = updates.update(
                self.optimizer.kind, self.optimizer.n_moments, self.spec.dtype, threads
            )
            vectors = state.p, state.g, first, second, state.marks, chunk.table.array, clip
            arguments = (*vectors, chunk.state, count)
            launches.append(Launch(update, blocks_of(count, threads), threads, arguments))
        launches += self._passes.move_statistics(rows, size)
        launches.append(Launch(outcome.advance(), 1, 1, (chunk.state,)))
        return launches

    def _begin(self, scalars: NDArray[np.float64] | None) -> None:
        if self._chunk.begin(np.zeros((1, N_SCALARS)) if scalars is None else scalars[:1]):
            self._forget()

    def _outputs(self, rows: Rows, x: Array) -> Array:
        self._take(rows.a[0], x)
        if rows.training:
            run_all(prepared(self._passes.forward(rows, len(x)), self._stream))
        else:
            if len(x) not in self._predictions:
                if len(self._predictions) >= _PREPARED:
                    self._predictions.clear()
                self._predictions[len(x)] = prepared(self._predict(rows, len(x)), self._stream)
            run_all(self._predictions[len(x)])
        return self._get(rows.a[-1], len(x), self.spec.out_features)

    def _take(self, vector: Any, array: Array) -> None:
        """Copy an array to the start of a vector."""
        put(vector, np.ascontiguousarray(array).reshape(-1), self._stream)

    def _predict(self, rows: Rows, count: int) -> list[Launch]:
        plan, threads = self._fused, self._blocks.threads
        if plan is None:
            return self._passes.forward(rows, count)
        kernel = fused_forward(plan, self.spec.dtype, threads)
        arguments = rows.a[0], self._state.p, rows.a[-1], count, 0, self._state.size
        return [
            self._with_shared(Launch(kernel, (blocks_of(count, plan.rows), 1), threads, arguments))
        ]

    def _get(self, vector: Any, count: int, width: int) -> Array:
        numbers: Array = vector[: count * width].copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return numbers.reshape(count, width)

    def _put_data(self, x: Array, y: Array, weight: Array | None) -> None:
        moved = [
            self._data[0].put(x, self._stream),
            (self._labels if y.ndim == 1 else self._data[1]).put(y, self._stream),
        ]
        if weight is not None:
            moved.append(self._data[2].put(weight, self._stream))
        if any(moved):
            self._forget()

    def _training_rows(self, count: int) -> Rows:
        if self._training is None or self._training.count < count:
            self._training = self._new_rows(max(count, self.batch_size), training=True)
            self._forget()
        return self._training

    def _new_rows(self, count: int, *, training: bool) -> Rows:
        plan = self._fused
        partials = 0
        if plan is not None:
            partials = min(plan.partials(count, self.spec), plan.most_partials(self.spec))
        return Rows(
            self.spec, count, self._tile, self._blocks, training=training, partials=partials
        )

    def _forget(self) -> None:
        """Forget launches on vectors that have moved."""
        self._steps.clear()
        self._graphs.clear()
