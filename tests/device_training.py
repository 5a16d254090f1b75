"""A small training for the simulated device, and arrays that say they lie there."""

from __future__ import annotations

import numpy as np

import fastneuron as fn
from fastneuron import dlpack

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype("float32")
Y = RNG.normal(size=(10, 2)).astype("float32")
LABELS = RNG.integers(0, 2, 10)
SGD = {"optimizer": fn.SGD(0.1), "batch_size": 5}


def network(**given) -> fn.Sequential:
    return fn.mlp([4, 3, 2], seed=0, **given)


def numbers(net: fn.Sequential) -> list[np.ndarray]:
    return [array for layer in net.layers for array in (layer.weight, layer.bias)]


def same(got: fn.Sequential, want: fn.Sequential) -> None:
    for one, other in zip(numbers(got), numbers(want), strict=True):
        np.testing.assert_array_equal(one, other)


class Producer:
    """Another library's array: host memory that says it lies on a device, as the simulator's."""

    def __init__(self, array: np.ndarray) -> None:
        room = np.empty(array.nbytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        self.numbers = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.numbers[...] = array

    def __len__(self) -> int:
        return len(self.numbers)


class ByInterface(Producer):
    @property
    def __cuda_array_interface__(self):
        a = self.numbers
        data = (a.ctypes.data, False)
        return {"shape": a.shape, "typestr": a.dtype.str, "data": data, "version": 2}


class ByDlpack(Producer):
    def __dlpack_device__(self):
        return dlpack.CUDA, 0

    def __dlpack__(self, stream=None):
        assert stream == 1, "the legacy default stream, which the engine's own waits for"
        a = self.numbers
        return dlpack.export(a.ctypes.data, a.shape, a.dtype, 0, self)


PRODUCERS = [ByInterface, ByDlpack]
