"""The engine as the package uses it, with arrays that lie on the device.

Data on the device are bound, not copied: the gather reads them where they are. Rows of `forward`
are read and written in place likewise; those of `forward_keep` and `update`, which must outlast the
call, are copied on the device.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.device_arrays import DeviceArray
from fastneuron.kernels.contract import Array, Outcome
from fastneuron.kernels.device_engine import watched
from fastneuron.kernels.numba_cuda import engine
from fastneuron.kernels.numba_cuda.driver import SIMULATED, cuda, empty
from fastneuron.kernels.numba_cuda.launches import prepared, run_all
from fastneuron.kernels.numba_cuda.state import Vector

__all__ = ["CudaEngine"]


class _Source(Vector):
    """A vector of data: the engine's own, or for a while somebody else's, bound without a copy."""

    def __init__(self, dtype: Any, stream: Any) -> None:
        super().__init__(dtype, stream)
        self._own: Any = None  # while another's is bound

    @property
    def nbytes(self) -> int:
        own = self.array if self._own is None else self._own
        return int(own.size) * self.dtype.itemsize

    def put(self, numbers: Any) -> bool:
        """Copy host numbers in, or bind those on the device; return whether the vector moved."""
        if isinstance(numbers, DeviceArray):
            if self._own is None:
                self._own = self.array
            self.array = _view(numbers)
            return True
        moved = self.let_go()
        return super().put(numbers) or moved

    def let_go(self) -> bool:
        """Go back to the own vector; return whether another's was bound."""
        if self._own is None:
            return False
        self.array, self._own = self._own, None
        return True


class CudaEngine(engine.CudaEngine):
    """See `engine.CudaEngine`; data may be bound."""

    takes_device_arrays = True
    _vector = _Source
    _gives_device = False

    def let_go(self) -> None:
        super().let_go()
        bound = [source.let_go() for source in self._data]
        if any(bound):
            self._forget()

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
        given = x, y, weight
        held = self._held
        if any(isinstance(array, DeviceArray) for array in given) and (
            held is None or any(a is not b for a, b in zip(held, given, strict=True))
        ):
            self.hold(x, y, weight)
        return super().run(x, y, weight, order, bounds, scalars, losses)

    @watched
    def forward(self, x: Any) -> Any:
        if not isinstance(x, DeviceArray):
            return super().forward(x)
        return self._forward_in_place(x)

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        self._gives_device = isinstance(x, DeviceArray)
        try:
            return super().forward_keep(x, scalars)
        finally:
            self._gives_device = False

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        self._gives_device = isinstance(dout, DeviceArray)
        try:
            return super().update(dout, scalars)
        finally:
            self._gives_device = False

    @watched
    def fetch(self, array: DeviceArray) -> NDArray[Any]:
        """Return a copy of an array on the device."""
        numbers: NDArray[Any] = _view(array).copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return numbers.reshape(array.shape)

    def _take(self, vector: Any, array: Any) -> None:
        if not isinstance(array, DeviceArray):
            super()._take(vector, array)
        elif array.size:
            vector[: array.size].copy_to_device(_view(array), stream=self._stream)

    def _get(self, vector: Any, count: int, width: int) -> Any:
        if not self._gives_device:
            return super()._get(vector, count, width)
        out = empty(count * width, self.spec.dtype)
        out[: count * width].copy_to_device(vector[: count * width], stream=self._stream)
        self._stream.synchronize()
        return self._given(out, count, width)

    def _given(self, vector: Any, count: int, width: int) -> DeviceArray:
        fetch = _Fetch(self)
        return DeviceArray(
            _pointer_of(vector), (count, width), self.spec.dtype, vector, fetch=fetch
        )

    def _forward_in_place(self, x: DeviceArray) -> DeviceArray:
        count, inputs = x.shape
        outputs = self.spec.out_features
        out, source = empty(count * outputs, self.spec.dtype), _view(x)
        rows = self._predicted_rows(count)
        own = list(rows.a)
        try:
            for first in range(0, count, rows.count):
                last = min(first + rows.count, count)
                part = source[first * inputs : last * inputs]
                result = out[first * outputs : last * outputs]
                if own[-1] is own[0]:  # dropouts alone: nothing is done to a row
                    result.copy_to_device(part, stream=self._stream)
                    continue
                # A dropout has its input's vector for its output: all of one vector are replaced.
                rows.a[:] = [part if a is own[0] else result if a is own[-1] else a for a in own]
                run_all(prepared(self._predict(rows, last - first), self._stream))
        finally:
            rows.a[:] = own
        self._stream.synchronize()
        return self._given(out, count, outputs)


class _Fetch:
    """Copies an engine's results to the host."""

    def __init__(self, of: CudaEngine) -> None:
        self._engine = of

    def __call__(self, array: DeviceArray) -> NDArray[Any]:
        return self._engine.fetch(array)


def _view(array: DeviceArray) -> Any:
    """Return the numbers as one of numba's vectors, which keeps their owner alive."""
    flat = array.reshape(array.size)
    if not SIMULATED:
        return cuda.from_cuda_array_interface(flat.__cuda_array_interface__, owner=flat)
    bytes_of = ctypes.c_ubyte * (array.size * array.dtype.itemsize)
    memory = bytes_of.from_address(array.pointer)
    memory._owner = flat  # the simulator's memory is the host's
    return type(cuda.device_array(1, array.dtype))(np.frombuffer(memory, array.dtype))


def _pointer_of(vector: Any) -> int:
    if SIMULATED:
        return int(np.asarray(vector._ary).ctypes.data)
    return int(vector.__cuda_array_interface__["data"][0])
