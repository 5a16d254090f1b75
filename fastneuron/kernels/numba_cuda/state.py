"""What lives on the device from step to step: the flat vectors, and the tables of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Status
from fastneuron.kernels.device_state import DeviceState
from fastneuron.kernels.numba_cuda.driver import empty, put, zeros
from fastneuron.kernels.numba_cuda.outcome import STATUS, STEP
from fastneuron.kernels.numba_cuda.updates import table_of
from fastneuron.optimizers import CLIP_NORM, KEY_HIGH, KEY_LOW, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["Chunk", "State", "Vector"]


class Vector:
    """A vector on the device that keeps its place until something longer comes."""

    def __init__(self, dtype: Any, stream: Any) -> None:
        self.dtype, self._stream = np.dtype(dtype), stream
        self.array = empty(1, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(self.array.size) * self.dtype.itemsize

    def make_room(self, count: int) -> bool:
        """Return whether the vector had to move to hold `count` numbers; what it held is lost."""
        if count <= self.array.size:
            return False
        self.array = empty(count, self.dtype)
        return True

    def put(self, numbers: NDArray[Any]) -> bool:
        """Copy numbers in; return whether the vector had to move."""
        moved = self.make_room(numbers.size)
        put(self.array, np.ascontiguousarray(numbers, self.dtype).reshape(-1), self._stream)
        return moved

    def get(self, count: int) -> NDArray[Any]:
        """Return a copy of the first numbers, once what was queued is done."""
        numbers: NDArray[Any] = np.empty(count, self.dtype)
        if count:
            self.array[:count].copy_to_host(numbers, stream=self._stream)
            self._stream.synchronize()
        return numbers


class State(DeviceState):
    """See `DeviceState`."""

    def __init__(self, spec: NetworkSpec, optimizer: Optimizer | None, stream: Any) -> None:
        self._stream = stream
        super().__init__(spec, optimizer)

    def _make(self, count: int, dtype: np.dtype[Any]) -> Any:
        return zeros(count, dtype, self._stream)

    def _write(self, vector: Any, numbers: NDArray[Any]) -> None:
        put(vector, numbers, self._stream)

    def _read(self, vector: Any, count: int) -> Array:
        numbers: Array = vector[:count].copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return numbers

    def of(self, vector: Any, layer: int, name: str) -> Any:
        """Return a layer's weight or bias in a flat vector; where it has none, the first number."""
        part = self.part(layer, name)
        return vector[:1] if part is None else vector[part.offset : part.end]


class Chunk:
    """What the steps of a chunk need beside data, found by the step's number on the device.

    Attributes
    ----------
    table : (steps, COLUMNS), keys : (steps, 2) uint64, limits : (steps,) float64
        The optimizer's numbers, the keys of random numbers, the largest norms.
    order, bounds : int64
        The rows of each step.
    losses : (steps,) float64
    state : (2,) int64
        See `outcome`.
    clip : (1,)
    """

    def __init__(self, dtype: str, stream: Any) -> None:
        self._dtype, self._stream = dtype, stream
        self.table, self.clip = (Vector(dtype, stream) for _ in range(2))
        self.keys = Vector(np.uint64, stream)
        self.limits, self.losses = (Vector(np.float64, stream) for _ in range(2))
        self.order, self.bounds = (Vector(np.int64, stream) for _ in range(2))
        self.state = zeros(2, np.int64, stream)

    def begin(
        self,
        scalars: NDArray[np.float64],
        order: NDArray[np.int64] | None = None,
        bounds: NDArray[np.int64] | None = None,
    ) -> bool:
        """Put the tables in and start at step 0; return whether vectors moved."""
        keys = scalars[:, [KEY_LOW, KEY_HIGH]].astype(np.uint64)
        moved = [
            self.table.put(table_of(scalars, self._dtype)),
            self.limits.put(scalars[:, CLIP_NORM]),
            self.keys.put(keys),
            self.losses.make_room(len(scalars)),
        ]
        if order is not None and bounds is not None:
            moved += [self.order.put(order), self.bounds.put(bounds)]
        put(self.state, np.zeros(2, np.int64), self._stream)
        return any(moved)

    def end(self) -> tuple[Status, int, NDArray[np.float64]]:
        """Wait for the device; return how the chunk ended, its whole steps, and its losses."""
        state = self.state.copy_to_host(stream=self._stream)
        losses = self.losses.array.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return Status(int(state[STATUS])), int(state[STEP]), losses
