"""The functions of csrc/cuda/kernels.h on a stream, and lists of them that are run from C.

`Calls` is the compiled extension, or in tests the same kernels made for the processor.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Call", "Calls", "Device", "Graph", "Program"]

#: What binds kernels.h.
Calls: TypeAlias = Any
#: A function of kernels.h without its prefix, and its arguments but for the stream.
Call: TypeAlias = tuple[str, tuple[float, ...]]

#: FN_ARGUMENTS and fn_cuda_call of kernels.h: each argument is there as either kind of number.
_ARGUMENTS = 28
_CALL = struct.Struct("@q" + "qd" * _ARGUMENTS)


class Device:
    """Memory of a device and a stream on it, in whose order everything is done."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.stream: int = calls.stream()
        self._functions: dict[tuple[str, int], int] = {}

    def __del__(self) -> None:
        if getattr(self, "stream", 0):
            self.calls.end_stream(self.stream)

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes, all 0."""
        place: int = self.calls.allocate(size)
        self.calls.clear(place, size, self.stream)
        return place

    def release(self, place: int) -> None:
        """Give back what was allocated."""
        self.calls.release(place)

    def put(self, place: int, array: NDArray[Any]) -> None:
        """Copy an array to the device."""
        self.calls.copy(place, array.ctypes.data, array.nbytes, self.stream)
        self.wait()  # the array may be gone after this

    def get(self, array: NDArray[Any], place: int) -> None:
        """Copy from the device into an array, once what was queued is done."""
        self.calls.copy(array.ctypes.data, place, array.nbytes, self.stream)
        self.wait()

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self.calls.wait(self.stream)

    def program(self, launches: list[Call]) -> Program:
        """Return launches as kernels.h takes them."""
        packed = []
        for name, arguments in launches:
            key = name, len(arguments)
            if key not in self._functions:
                self._functions[key] = self.calls.function(*key)
            given = [number for each in arguments for number in (int(each), float(each))]
            given += [0, 0.0] * (_ARGUMENTS - len(arguments))
            packed.append(_CALL.pack(self._functions[key], *given))
        return Program(self, b"".join(packed), len(launches))


class Program:
    """Launches in order, which the interpreter is not asked for one by one."""

    def __init__(self, device: Device, packed: bytes, count: int) -> None:
        self._device, self._packed, self._count = device, np.frombuffer(packed, np.uint8), count

    def run(self, times: int = 1) -> None:
        """Queue all of them, `times` times."""
        device = self._device
        device.calls.run(self._packed.ctypes.data, self._count, times, device.stream)

    def record(self, times: int) -> Graph:
        """Return a graph of what `run` would queue; nothing is run."""
        device = self._device
        place = device.calls.record(self._packed.ctypes.data, self._count, times, device.stream)
        return Graph(device, place)


class Graph:
    """Launches that were recorded once and are repeated as one."""

    def __init__(self, device: Device, place: int) -> None:
        self._device, self._place = device, place

    def __del__(self) -> None:
        self._device.calls.forget(self._place)

    def replay(self, times: int = 1) -> None:
        """Queue all of it, `times` times."""
        self._device.calls.replay(self._place, times, self._device.stream)
