"""What an engine keeps on a device behind the calls of csrc/cuda/kernels.h."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Parameters, Statistics, Status
from fastneuron.kernels.device_calls import Device
from fastneuron.kernels.device_plan import Part, flat_parts, flat_size, marks_of, saves_z
from fastneuron.layers import BatchNorm, Dropout, LayerNorm
from fastneuron.optimizers import N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["STATE", "Batch", "Buffer", "Chunk", "State", "Work"]

#: fn_cuda_state of kernels.h.
STATE = np.dtype([("step", np.int64), ("status", np.int64), ("clip_scale", np.float64)])


class Buffer:
    """A vector on the device, given back with the object; it grows, losing what it held.

    Attributes
    ----------
    address : int
    size : int
        Numbers.
    """

    def __init__(self, device: Device, dtype: Any, size: int = 0) -> None:
        self._device, self.dtype = device, np.dtype(dtype)
        self.address, self.size = 0, 0
        self.make_room(max(size, 1))

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self._device.release(self.address)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.size * self.dtype.itemsize

    def make_room(self, size: int) -> bool:
        """Return whether the buffer had to move to hold `size` numbers."""
        if size <= self.size:
            return False
        if self.address:
            self._device.release(self.address)
            self.address, self.size = 0, 0
        self.address = self._device.allocate(size * self.dtype.itemsize)
        self.size = size
        return True

    def at(self, offset: int) -> int:
        """Return the address of a number."""
        return self.address + offset * self.dtype.itemsize

    def put(self, array: NDArray[Any]) -> bool:
        """Copy an array in; return whether the buffer had to move."""
        array = np.ascontiguousarray(array, self.dtype)
        moved = self.make_room(array.size)
        self._device.put(self.address, array)
        return moved

    def get(self, *shape: int) -> Array:
        """Return a copy of the first numbers."""
        array = np.empty(shape, self.dtype)
        self._device.get(array, self.address)
        return array


class State:
    """Parameters, gradient, moments (flat vectors of one layout) and running statistics."""

    def __init__(self, device: Device, spec: NetworkSpec, optimizer: Optimizer | None) -> None:
        self._spec, self._dtype = spec, np.dtype(spec.dtype)
        self.size = flat_size(spec)
        self._parts = {(part.layer, part.name): part for part in flat_parts(spec)}
        n_moments = 0 if optimizer is None else optimizer.n_moments
        self.p, self.g, *self.moments = (
            Buffer(device, self._dtype, self.size) for _ in range(2 + n_moments)
        )
        marks = marks_of(spec, optimizer is not None and optimizer.decay_bias)
        self.marks = Buffer(device, np.uint8)
        self.marks.put(np.frombuffer(marks, np.uint8))
        self.statistics = [
            tuple(Buffer(device, self._dtype, int(layer.out_features)) for _ in range(2))
            if layer.has_statistics
            else None
            for layer in spec.layers
        ]
        self._known = False

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes on the device."""
        moments = sum(vector.nbytes for vector in self.moments)
        return {"parameters": self.p.nbytes, "gradients": self.g.nbytes, "moments": moments}

    def place(self, vector: Buffer, layer: int, name: str) -> int:
        """Return the address of a layer's weight or bias in a flat vector; 0 where it has none."""
        part = self._parts.get((layer, name))
        return 0 if part is None else vector.at(part.offset)

    def load(self, vector: Buffer, parameters: Parameters) -> None:
        """Copy in parameters, or what is shaped like them."""
        flat = np.zeros(max(self.size, 1), self._dtype)
        for part in self._parts.values():
            array = parameters[part.layer][part.name == "bias"]
            assert array is not None
            flat[part.offset : part.end] = array.reshape(-1)
        vector.put(flat)

    def export(self, vector: Buffer) -> Parameters:
        """Return copies of the arrays of a flat vector."""
        flat = vector.get(self.size)

        def array_of(part: Part | None) -> Array | None:
            return None if part is None else flat[part.offset : part.end].reshape(part.shape).copy()

        found: Parameters = []
        for index, layer in enumerate(self._spec.layers):
            weight = array_of(self._parts.get((index, "weight")))
            empty = np.zeros(layer.weight_shape, self._dtype)
            bias = array_of(self._parts.get((index, "bias")))
            found.append((empty if weight is None else weight, bias))
        return found

    def load_statistics(self, statistics: Statistics) -> None:
        """Copy running statistics in."""
        self._known = any(pair is not None for pair in statistics)
        for buffers, pair in zip(self.statistics, statistics, strict=True):
            for buffer, array in zip(buffers or (), pair or (), strict=False):
                buffer.put(array)

    def export_statistics(self) -> Statistics:
        """Return copies of the running statistics."""
        found: Statistics = []
        for pair in self.statistics:
            arrays = [buffer.get(buffer.size) for buffer in pair or ()]
            found.append((arrays[0], arrays[1]) if arrays and self._known else None)
        return found


class Chunk:
    """What the steps of a chunk find by the step's number on the device."""

    def __init__(self, device: Device) -> None:
        self.state = Buffer(device, np.uint8, STATE.itemsize)
        self.scalars, self.losses = (Buffer(device, np.float64, N_SCALARS) for _ in range(2))
        self.order, self.bounds = (Buffer(device, np.int64) for _ in range(2))

    def begin(
        self,
        scalars: NDArray[np.float64],
        order: NDArray[np.int64] | None = None,
        bounds: NDArray[np.int64] | None = None,
    ) -> bool:
        """Put the tables in and start at step 0; return whether buffers moved."""
        self.state.put(np.array((0, 0, 1.0), STATE).reshape(1).view(np.uint8))
        moved = [self.losses.make_room(len(scalars)), self.scalars.put(scalars)]
        if order is not None and bounds is not None:
            moved += [self.order.put(order), self.bounds.put(bounds)]
        return any(moved)

    def end(self) -> tuple[Status, int, NDArray[np.float64]]:
        """Wait for the device; return how the chunk ended, its whole steps, and its losses."""
        state = self.state.get(STATE.itemsize).view(STATE)[0]
        return Status(int(state["status"])), int(state["step"]), self.losses.get(self.losses.size)


class Work:
    """A network's numbers of up to `count` rows, row-major, a buffer for each layer.

    Attributes
    ----------
    a : list of (count, width)
        The input, then what each layer gives; where it passes all on, what it got.
    z : list of (count, O) or None
        Of the layers whose gate needs it.
    moments : list of (mean, variance, inverse) or None
        Of the normalisations.
    nbytes : int
        On the device.
    """

    def __init__(self, device: Device, spec: NetworkSpec, count: int, *, training: bool) -> None:
        self.count, self.training = count, training
        self._device, self._dtype = device, spec.dtype
        self.nbytes = 0
        self.a = [self._make(count * int(spec.in_features))]
        self.z: list[Buffer | None] = []
        self.moments: list[tuple[Buffer, Buffer, Buffer] | None] = []
        for layer in spec.layers:
            width = int(layer.out_features)
            passes = isinstance(layer, Dropout) and not training
            self.a.append(self.a[-1] if passes else self._make(count * width))
            keeps = training and not isinstance(layer, Dropout) and saves_z(layer)
            self.z.append(self._make(count * width) if keeps else None)
            size = count if isinstance(layer, LayerNorm) else width
            is_norm = isinstance(layer, (BatchNorm, LayerNorm))
            self.moments.append(
                (self._make(size), self._make(size), self._make(size)) if is_norm else None
            )

    def _make(self, size: int, dtype: Any = None) -> Buffer:
        buffer = Buffer(self._device, dtype or self._dtype, size)
        self.nbytes += buffer.nbytes
        return buffer

    def saved(self, index: int) -> Buffer:
        """Return what the gate of a layer is made of."""
        return self.z[index] or self.a[index + 1]


class Batch(Work):
    """The same of training, with targets and gradients.

    Attributes
    ----------
    d : list of (count, width)
        ``d[i + 1]`` is the gradient by what layer i gives, ``d[0]`` is dL/dx.
    y, classes, weight : the batch's targets of either kind, its weights.
    scratch : first stages of sums, each read before the next is written.
    sums : two of (width,), sums over the batch that are no gradients.
    """

    def __init__(self, device: Device, spec: NetworkSpec, count: int, scratch: int) -> None:
        super().__init__(device, spec, count, training=True)
        self.d = [self._make(count * width) for width in spec.sizes]
        self.y = self._make(count * int(spec.out_features))
        self.classes = self._make(count, np.int64)
        self.weight, self.row_losses = self._make(count), self._make(count)
        self.scratch = self._make(scratch)
        self.sums = [self._make(max(spec.sizes)) for _ in range(2)]
