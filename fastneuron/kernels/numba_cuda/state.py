"""What lives on the device from step to step: the flat vectors, and the tables of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Parameters, Statistics, Status
from fastneuron.kernels.device_plan import Part, flat_parts, flat_size, marks_of
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


class State:
    """Parameters, gradient, moments and statistics.

    Attributes
    ----------
    parts : list of Part
        Where each array lies in the flat vectors.
    p, g : (n,)
    moments : list of (n,)
    marks : (n / 16,) uint8
    statistics : a layer, running mean and variance (O,), or None
    """

    def __init__(self, spec: NetworkSpec, optimizer: Optimizer | None, stream: Any) -> None:
        self._spec, self._stream = spec, stream
        self._dtype = np.dtype(spec.dtype)
        self.size = flat_size(spec)
        self.parts = flat_parts(spec)
        self._places = {(part.layer, part.name): part for part in self.parts}
        self.p = zeros(self.size, self._dtype, stream)
        self.g = zeros(self.size, self._dtype, stream)
        n_moments = 0 if optimizer is None else optimizer.n_moments
        self.moments = [zeros(self.size, self._dtype, stream) for _ in range(n_moments)]
        marks = marks_of(spec, optimizer is not None and optimizer.decay_bias)
        self.marks = zeros(len(marks), np.uint8, stream)
        if marks:
            put(self.marks, np.frombuffer(marks, np.uint8), stream)
        self.statistics: list[tuple[Any, Any] | None] = [
            (empty(layer.out_features, self._dtype), empty(layer.out_features, self._dtype))
            if layer.has_statistics
            else None
            for layer in spec.layers
        ]
        self.knows_statistics = False

    def part(self, layer: int, name: str) -> Part | None:
        """Return where a layer's weight or bias lies, or None where it has none."""
        return self._places.get((layer, name))

    def of(self, vector: Any, layer: int, name: str) -> Any:
        """Return a layer's weight or bias in a flat vector; where it has none, the first number."""
        part = self.part(layer, name)
        return vector[:1] if part is None else vector[part.offset : part.end]

    def load(self, vector: Any, parameters: Parameters) -> None:
        """Copy parameters, or what is shaped like them, into a flat vector."""
        flat = np.zeros(max(self.size, 1), self._dtype)
        for part in self.parts:
            weight, bias = parameters[part.layer]
            array = weight if part.name == "weight" else bias
            assert array is not None
            flat[part.offset : part.end] = np.asarray(array).reshape(-1)
        put(vector, flat, self._stream)

    def export(self, vector: Any) -> Parameters:
        """Return the arrays of a flat vector."""
        flat = vector.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        found: Parameters = []
        for index, layer in enumerate(self._spec.layers):
            arrays = [
                None if part is None else flat[part.offset : part.end].reshape(part.shape).copy()
                for part in (self.part(index, "weight"), self.part(index, "bias"))
            ]
            weight = np.zeros(layer.weight_shape, self._dtype) if arrays[0] is None else arrays[0]
            found.append((weight, arrays[1]))
        return found

    def load_statistics(self, statistics: Statistics) -> None:
        """Copy running statistics in."""
        self.knows_statistics = any(pair is not None for pair in statistics)
        for pair, given in zip(self.statistics, statistics, strict=True):
            if pair is not None and given is not None:
                for vector, array in zip(pair, given, strict=True):
                    put(vector, np.ascontiguousarray(array, self._dtype), self._stream)

    def export_statistics(self) -> Statistics:
        """Return copies of the running statistics."""
        if not self.knows_statistics:
            return [None] * len(self.statistics)
        copies: Statistics = []
        for pair in self.statistics:
            if pair is None:
                copies.append(None)
                continue
            mean, variance = (each.copy_to_host(stream=self._stream) for each in pair)
            copies.append((mean, variance))
        self._stream.synchronize()
        return copies

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes on the device."""
        each = self.size * self._dtype.itemsize
        return {"parameters": each, "gradients": each, "moments": each * len(self.moments)}


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
