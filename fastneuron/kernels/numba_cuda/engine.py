"""The CUDA engine: the whole step on the device, and many steps without asking it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import Array
from fastneuron.kernels.device_engine import DeviceEngine, watched
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
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CudaEngine"]


class CudaEngine(DeviceEngine):
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

    _vector: ClassVar[type[Vector]] = Vector  # of data

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
        tile: Tile | None = None,
        blocks: Blocks | None = None,
        fused_rows: tuple[int, ...] = FUSED_ROWS,
        library: Provider | None = None,
    ) -> None:
        super().__init__(spec, loss, optimizer, n_threads, batch_size)
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
        dtypes = spec.dtype, spec.dtype, spec.dtype, np.int64
        self._data = [self._vector(dtype, self._stream) for dtype in dtypes]
        self._norms = Vector(np.float64, self._stream)
        self._norms.make_room(blocks_of(self._state.size, self._blocks.chunk))
        self._no_graphs = why_not()

    def plan(self) -> dict[str, Any]:
        plan, tile, fused = super().plan(), self._tile, self._fused
        plan["buffer_bytes"]["library"] = self._library.nbytes if self._library else 0
        return {
            **plan,
            "fused": "layer by layer" if fused is None else f"{fused.rows} rows a block",
            "precision": self._precision,
            "products": self._no_library or self._chosen(),
            "tile": f"{tile.rows}x{tile.columns}x{tile.depth}",
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

    def _step(self, size: int, weighted: bool, classes: bool) -> list[Launch]:
        rows = self._training
        by_layer = self._fused_step(rows, size, weighted, classes) or [
            *self._gather(rows, size, weighted, classes),
            *self._passes.forward(rows, size),
            self._row_losses(rows, size, weighted, classes),
            *self._passes.backward(rows, size, need_dx=False),
        ]
        return [*by_layer, self._mean_loss(rows, size), *self._apply(rows, size)]

    def _gather(self, rows: Rows, size: int, weighted: bool, classes: bool) -> list[Launch]:
        cut = self._blocks.lanes, self._blocks.rows
        grid, kernel = blocks_of(size, cut[1]), gather(*cut)
        chunk = self._chunk
        x, y, weight, labels = (vector.array for vector in self._data)
        data = [(x, rows.a[0], self.spec.in_features)]
        data.append((labels, rows.classes, 1) if classes else (y, rows.y, self.spec.out_features))
        if weighted:
            data.append((weight, rows.weight, 1))
        where = chunk.order.array, chunk.bounds.array, chunk.state
        return [
            Launch(kernel, grid, cut, (source, *where, out, size, width))
            for source, out, width in data
        ]

    def _loss(self, rows: Rows, count: int, weighted: bool, classes: bool) -> list[Launch]:
        return [self._row_losses(rows, count, weighted, classes), self._mean_loss(rows, count)]

    def _row_losses(self, rows: Rows, size: int, weighted: bool, classes: bool) -> Launch:
        assert self.loss is not None
        b, width = self._blocks, self.spec.out_features
        kernel = loss_rows(self.loss.name, self.spec.dtype, b.lanes, b.rows, weighted, classes)
        y = rows.classes if classes else rows.y
        vectors = rows.a[-1], y, rows.weight, rows.losses, rows.d[-1]
        grid, block = blocks_of(size, b.rows), (b.lanes, b.rows)
        return Launch(kernel, grid, block, (*vectors, size, width))

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
        x, y, weight, labels = (vector.array for vector in self._data)
        data = x, labels if classes else y, weight
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

    def _prepared(self, launches: list[Launch]) -> list[Callable[[], None]]:
        return prepared(launches, self._stream)

    def _queue(self, prepared: list[Callable[[], None]], times: int = 1) -> None:
        for _ in range(times):
            run_all(prepared)

    def _record(self, prepared: list[Callable[[], None]], times: int) -> Graph:
        return Graph(self._stream, lambda: self._queue(prepared, times))

    def _take(self, vector: Any, array: Array) -> None:
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

    def _new_rows(self, count: int, *, training: bool) -> Rows:
        plan = self._fused
        partials = 0
        if plan is not None:
            partials = min(plan.partials(count, self.spec), plan.most_partials(self.spec))
        return Rows(
            self.spec, count, self._tile, self._blocks, training=training, partials=partials
        )
