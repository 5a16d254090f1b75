"""The border where arrays that lie on a CUDA device come in and go out, without a copy.

They come by `__cuda_array_interface__` (versions 2 and 3) or DLPack, and go out as `DeviceArray`,
which offers both. Nothing here needs a driver: it is only said where numbers lie and of what shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import dlpack
from fastneuron.errors import DataError

__all__ = ["ALIGNMENT", "DeviceArray", "as_device_rows", "device_array", "lies_on_device"]

#: Bytes that an array's start must be a multiple of: kernels read four numbers at once.
ALIGNMENT = 16
#: Of `__dlpack__`: the legacy default stream, which all of an engine's work waits for.
_LEGACY_STREAM = 1


class DeviceArray:
    """C-contiguous numbers on a CUDA device, kept alive with whoever owns them.

    `__cuda_array_interface__` and `__dlpack__` hand them to other libraries without a copy. `fit`,
    `Trainer` and `forward` take arrays of any library that offers either, on device="cuda": they
    must be C-contiguous, of the network's dtype, and start at a multiple of 16 bytes. Rows stay on
    the device; targets and sample weights are read back once a call to be checked. The first
    result of `forward`, and dL/dx, are `DeviceArray` then.

    Attributes
    ----------
    pointer : int
    shape : tuple of int
    dtype : numpy.dtype
    owner : object
        Whose memory it is.
    stream : int or None
        The stream after which the numbers are there; None where they are already.
    device : int
        The device's number.
    """

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: Any,
        owner: object,
        *,
        stream: int | None = None,
        device: int = 0,
        fetch: Callable[[DeviceArray], NDArray[Any]] | None = None,
    ) -> None:
        self.pointer, self.shape, self.dtype = pointer, shape, np.dtype(dtype)
        self.owner, self.stream, self.device = owner, stream, device
        self._fetch = fetch

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device})"

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same numbers in another shape."""
        return DeviceArray(
            self.pointer, shape, self.dtype, self, stream=self.stream, device=self.device,
            fetch=self._fetch,
        )  # fmt: skip

    def copy_to_host(self) -> NDArray[Any]:
        """Return a copy as a NumPy array; for what an engine returned."""
        if self._fetch is None:
            raise DataError("this array came from elsewhere: its own library copies it to the host")
        return self._fetch(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule; an engine's result is there before it is returned, on any stream."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array is handed over as it is: without a copy, on its device")
        return dlpack.export(self.pointer, self.shape, self.dtype, self.device, self)


def lies_on_device(x: Any) -> bool:
    """Return whether `device_array` would find something."""
    if isinstance(x, np.ndarray):
        return False
    try:
        if getattr(x, "__cuda_array_interface__", None) is not None:
            return True
        kind = int(x.__dlpack_device__()[0])
    except AttributeError:
        return False
    except Exception:  # PyTorch's interface, where a gradient is wanted
        return True
    return kind in (dlpack.CUDA, dlpack.CUDA_MANAGED)


def device_array(x: Any, name: str) -> DeviceArray | None:
    """Return an array that lies on a device, whichever library's it is; None where it does not.

    Raises
    ------
    DataError
        Where it is not C-contiguous, has a mask, starts at no multiple of `ALIGNMENT` bytes, or
        its library does not hand it over.
    """
    if type(x) is np.ndarray or isinstance(x, np.ndarray):
        return None
    if isinstance(x, DeviceArray):
        return x
    try:
        interface = getattr(x, "__cuda_array_interface__", None)
    except Exception as error:  # PyTorch's, where a gradient is wanted
        raise DataError(f"{name} is not handed over by its library: {error}") from error
    if interface is not None:
        return _of_interface(x, interface, name)
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        return None
    kind, index = x.__dlpack_device__()
    if int(kind) not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        return None
    try:
        tensor = dlpack.take(x.__dlpack__(stream=_LEGACY_STREAM))
    except Exception as error:
        raise DataError(f"{name} is not handed over by its library: {error}") from error
    _check_layout(name, tensor.pointer, tensor.shape, tensor.strides, tensor.dtype)
    return DeviceArray(tensor.pointer, tensor.shape, tensor.dtype, tensor.owner, device=int(index))


def _of_interface(x: Any, interface: dict[str, Any], name: str) -> DeviceArray:
    if interface.get("mask") is not None:
        raise DataError(f"{name} has a mask: fill or drop what is masked first")
    shape = tuple(int(n) for n in interface["shape"])
    dtype, strides = np.dtype(interface["typestr"]), interface.get("strides")
    pointer = int(interface["data"][0] or 0)
    _check_layout(name, pointer, shape, strides, dtype)
    return DeviceArray(pointer, shape, dtype, x, stream=interface.get("stream"))


def _check_layout(
    name: str,
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: np.dtype[Any],
) -> None:
    step = dtype.itemsize
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size > 1 and stride != step:
            raise DataError(
                f"{name} is not C-contiguous on its device (shape {shape}, strides {strides} "
                "bytes): make a contiguous copy there first"
            )
        step *= size
    if pointer % ALIGNMENT:
        raise DataError(
            f"{name} starts at {pointer:#x} on its device, no multiple of {ALIGNMENT} bytes: a "
            "slice of a larger array does; make a copy of its own there first"
        )


def as_device_rows(array: DeviceArray, name: str, dtype: Any, features: int) -> DeviceArray:
    """Return rows (n, features) of `dtype` on a device, checked; their values are not looked at.

    Raises
    ------
    DataError
        Where shape or dtype are others: on a device nothing is converted unasked.
    """
    wanted = np.dtype(dtype)
    if array.ndim != 2 or array.shape[1] != features:
        raise DataError(
            f"{name} has shape {array.shape} on its device, but the network takes (n, {features})"
        )
    if not len(array):
        raise DataError(f"{name} has zero rows: its shape is {array.shape}")
    if array.dtype != wanted:
        raise DataError(
            f"{name} is {array.dtype.name} on its device, but the network computes in "
            f"{wanted.name}: convert it there first"
        )
    return array
