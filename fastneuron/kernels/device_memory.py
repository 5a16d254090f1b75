"""What an engine keeps on a device behind the calls of csrc/cuda/kernels.h."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Status
from fastneuron.kernels.device_calls import Device
from fastneuron.kernels.device_state import DeviceState
from fastneuron.optimizers import N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["STATE", "Buffer", "Chunk", "State"]

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


class State(DeviceState):
    """See `DeviceState`."""

    def __init__(self, device: Device, spec: NetworkSpec, optimizer: Optimizer | None) -> None:
        self._device = device
        super().__init__(spec, optimizer)

    def _make(self, count: int, dtype: np.dtype[Any]) -> Buffer:
        return Buffer(self._device, dtype, count)

    def _write(self, vector: Buffer, numbers: NDArray[Any]) -> None:
        vector.put(numbers)

    def _read(self, vector: Buffer, count: int) -> Array:
        return vector.get(count)

    def place(self, vector: Buffer, layer: int, name: str) -> int:
        """Return the address of a layer's weight or bias in a flat vector; 0 where it has none."""
        part = self.part(layer, name)
        return 0 if part is None else vector.at(part.offset)


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
