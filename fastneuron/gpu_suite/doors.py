"""Ways in: the backend "cuda" with an engine of this suite behind it, and arrays on the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends, dlpack, loading
from fastneuron.device_arrays import DeviceArray
from fastneuron.gpu_suite.engines import CPP, NUMBA, Kind
from fastneuron.gpu_suite.running import NotHere
from fastneuron.kernels.device_launches import COMPILED
from fastneuron.kernels.device_launches import NUMBA as BY_NUMBA

__all__ = ["KERNELS", "ByDlpack", "ByInterface", "behind_the_door", "lenders", "takes_arrays"]

#: What `device_supply` calls the kernels of an engine.
KERNELS = {NUMBA: BY_NUMBA, CPP: COMPILED}
#: Bytes that an array which is lent starts at a multiple of.
_ALIGNMENT = 64


@contextmanager
def behind_the_door(kind: Kind) -> Iterator[backends.Backend]:
    """Let device="cuda" run this engine, cut as the suite's, whichever is supplied otherwise."""
    before = loading.load("cuda")
    loading.loaded["cuda"] = before._replace(engine=_engine(kind))
    try:
        yield backends.on_device("cuda")
    finally:
        loading.loaded["cuda"] = before


def _engine(kind: Kind) -> Callable[..., Any]:
    """Return what makes a kind's engines as `fit` has them."""
    if kind.name != NUMBA:
        return kind.new
    room = import_module("fastneuron.kernels.numba_cuda.resident")
    return partial(room.CudaEngine, **getattr(kind.new, "keywords", {}))


def takes_arrays(kind: Kind) -> bool:
    """Return whether a kind's engines take arrays on the card."""
    made = _engine(kind)
    return bool(getattr(getattr(made, "func", made), "takes_device_arrays", False))


class ByInterface:
    """An array on the card that offers `__cuda_array_interface__` alone."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._array.__cuda_array_interface__


class ByDlpack:
    """An array on the card that offers DLPack alone."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **given: Any) -> Any:
        return self._array.__dlpack__(**given)


#: Puts an array on the card; and returns the numbers of an engine's result, taken without a copy.
Lender = tuple[Callable[[NDArray[Any]], Any], Callable[[DeviceArray], NDArray[Any]]]


def lenders(*, simulated: bool) -> dict[str, Callable[[], Lender]]:
    """Return whose arrays are lent and taken, by name; NotHere where that library has no card."""
    own = partial(_own, simulated)
    return {
        "own arrays by __cuda_array_interface__": lambda: (_through(ByInterface, own), _by_pointer),
        "own arrays by DLPack": lambda: (_through(ByDlpack, own), _by_dlpack),
        "PyTorch": partial(_torch, simulated),
        "JAX": partial(_jax, simulated),
    }


def _through(way: Callable[[DeviceArray], Any], own: Callable[..., DeviceArray]) -> Any:
    return lambda array: way(own(array))


def _own(simulated: bool, array: NDArray[Any]) -> DeviceArray:
    """Put an array on the card with no library but numba's; the simulator's card is the host."""
    if simulated:
        room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        there = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        there[...] = array
        return DeviceArray(there.ctypes.data, array.shape, array.dtype, there)
    there = import_module("fastneuron.kernels.numba_cuda.driver").cuda.to_device(array)
    pointer = int(there.__cuda_array_interface__["data"][0])
    return DeviceArray(pointer, array.shape, array.dtype, there)


def _by_pointer(out: DeviceArray) -> NDArray[Any]:
    assert out.__cuda_array_interface__["data"] == (out.pointer, False), "another place"
    assert tuple(out.__cuda_array_interface__["shape"]) == out.shape, "another shape"
    return out.copy_to_host()


def _by_dlpack(out: DeviceArray) -> NDArray[Any]:
    assert out.__dlpack_device__() == (dlpack.CUDA, out.device), "another device"
    taken = dlpack.take(out.__dlpack__())
    got, want = (taken.pointer, taken.shape, taken.dtype), (out.pointer, out.shape, out.dtype)
    assert got == want, f"the capsule holds {got}, want {want}"
    return out.copy_to_host()


def _torch(simulated: bool) -> Lender:
    torch = _library("torch", simulated)
    if not torch.cuda.is_available():
        raise NotHere("this PyTorch sees no card")

    def taken(out: DeviceArray) -> NDArray[Any]:
        by_dlpack, by_interface = torch.from_dlpack(out), torch.as_tensor(out, device="cuda")
        places = {each.data_ptr() for each in (by_dlpack, by_interface)}
        assert places == {out.pointer}, "PyTorch took a copy"
        numbers: NDArray[Any] = by_dlpack.cpu().numpy()
        assert np.array_equal(numbers, by_interface.cpu().numpy()), "two ways, two results"
        return numbers

    return lambda array: torch.from_numpy(array).cuda(), taken


def _jax(simulated: bool) -> Lender:
    jax = _library("jax", simulated)
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        raise NotHere("this JAX sees no card")

    def taken(out: DeviceArray) -> NDArray[Any]:
        array = import_module("jax.dlpack").from_dlpack(out)
        assert array.unsafe_buffer_pointer() == out.pointer, "JAX took a copy"
        return np.asarray(array)

    return lambda array: jax.device_put(array, device).block_until_ready(), taken


def _library(name: str, simulated: bool) -> Any:
    if simulated:
        raise NotHere("it knows nothing of a simulated card")
    if not find_spec(name):
        raise NotHere(f"{name} is not installed")
    return import_module(name)
