"""What engines keep on a device: flat vectors of parameters, and the numbers of a batch.

Neither knows how memory is had: who does says how to make a vector, to write to it and to read it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Parameters, Statistics
from fastneuron.kernels.device_plan import Part, flat_parts, flat_size, marks_of, saves_z, widest
from fastneuron.layers import BatchNorm, Dropout, LayerNorm
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["DeviceRows", "DeviceState"]


class DeviceState(ABC):
    """Parameters, gradient, moments (flat vectors of one layout) and running statistics.

    Attributes
    ----------
    size : int
        Numbers of a flat vector.
    parts : list of Part
        Where each array lies in it.
    p, g : (n,)
    moments : list of (n,)
    marks : (n / 16,) uint8
    statistics : a layer, running mean and variance (O,), or None
    """

    def __init__(self, spec: NetworkSpec, optimizer: Optimizer | None) -> None:
        self._spec, self._dtype = spec, np.dtype(spec.dtype)
        self.size, self.parts = flat_size(spec), flat_parts(spec)
        self._places = {(part.layer, part.name): part for part in self.parts}
        n_moments = 0 if optimizer is None else optimizer.n_moments
        self.p, self.g, *self.moments = (
            self._make(self.size, self._dtype) for _ in range(2 + n_moments)
        )
        marks = marks_of(spec, optimizer is not None and optimizer.decay_bias)
        self.marks = self._make(len(marks), np.dtype(np.uint8))
        self._write(self.marks, np.frombuffer(marks, np.uint8))
        self.statistics: list[tuple[Any, Any] | None] = [
            (
                self._make(layer.out_features, self._dtype),
                self._make(layer.out_features, self._dtype),
            )
            if layer.has_statistics
            else None
            for layer in spec.layers
        ]
        self.knows_statistics = False

    @abstractmethod
    def _make(self, count: int, dtype: np.dtype[Any]) -> Any:
        """Return a vector of zeros."""

    @abstractmethod
    def _write(self, vector: Any, numbers: NDArray[Any]) -> None:
        """Copy numbers of the vector's dtype to its start."""

    @abstractmethod
    def _read(self, vector: Any, count: int) -> Array:
        """Return a copy of its first numbers."""

    def part(self, layer: int, name: str) -> Part | None:
        """Return where a layer's weight or bias lies, or None where it has none."""
        return self._places.get((layer, name))

    def load(self, vector: Any, parameters: Parameters) -> None:
        """Copy parameters, or what is shaped like them, into a flat vector."""
        flat = np.zeros(max(self.size, 1), self._dtype)
        for part in self.parts:
            array = parameters[part.layer][part.name == "bias"]
            assert array is not None
            flat[part.offset : part.end] = np.asarray(array).reshape(-1)
        self._write(vector, flat)

    def export(self, vector: Any) -> Parameters:
        """Return copies of the arrays of a flat vector."""
        flat = self._read(vector, self.size)
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
                    self._write(vector, np.ascontiguousarray(array, self._dtype))

    def export_statistics(self) -> Statistics:
        """Return copies of the running statistics."""
        found: Statistics = []
        for layer, pair in zip(self._spec.layers, self.statistics, strict=True):
            if pair is None or not self.knows_statistics:
                found.append(None)
            else:
                width = int(layer.out_features)
                found.append((self._read(pair[0], width), self._read(pair[1], width)))
        return found

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes on the device."""
        each = self.size * self._dtype.itemsize
        return {"parameters": each, "gradients": each, "moments": each * len(self.moments)}


class DeviceRows:
    """Vectors for batches of up to `count` rows, row-major, for each layer.

    Parameters
    ----------
    make : callable (count, dtype)
    scratch : int
        In training, the numbers that first stages of sums take.
    none
        What stands where a layer keeps nothing.

    Attributes
    ----------
    a : list of (count, width)
        ``a[0]`` is the input and ``a[i + 1]`` what layer i gives; in inference a dropout gives what
        it got.
    z : list of (count, O)
        Of the layers that save it.
    moments : list of (mean, variance, inverse)
        Of a normalisation: over the batch, running ones, or those of each row.
    nbytes : int
        On the device.

    In training alone:

    d : list of (count, width)
        ``d[i + 1]`` is dL/dz of layer i, ``d[0]`` is dL/dx.
    y, classes, weight, losses
        The batch's targets of either kind, its weights, the loss of each row.
    scratch
        First stages of sums, each read before the next is written.
    sums : (2, widest)
        Sums over the batch that are no gradients.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        count: int,
        make: Callable[[int, np.dtype[Any]], Any],
        *,
        training: bool,
        scratch: int = 0,
        none: Any = None,
    ) -> None:
        self.count, self.training, self.none = count, training, none
        self.nbytes = 0

        def new(size: int, dtype: Any = spec.dtype) -> Any:
            self.nbytes += max(size, 1) * np.dtype(dtype).itemsize
            return make(size, np.dtype(dtype))

        self.a = [new(count * spec.in_features)]
        self.z: list[Any] = []
        self.moments: list[tuple[Any, Any, Any] | None] = []
        for layer in spec.layers:
            width = int(layer.out_features)
            passes = isinstance(layer, Dropout) and not training
            self.a.append(self.a[-1] if passes else new(count * width))
            self.z.append(new(count * width) if training and saves_z(layer) else none)
            size = count if isinstance(layer, LayerNorm) else width
            is_norm = isinstance(layer, (BatchNorm, LayerNorm))
            self.moments.append((new(size), new(size), new(size)) if is_norm else None)
        if not training:
            return
        self.d = [new(count * width) for width in spec.sizes]
        self.y, self.classes = new(count * spec.out_features), new(count, np.int64)
        self.weight, self.losses = new(count), new(count)
        self.scratch = new(scratch)
        self.sums = [new(widest(spec)) for _ in range(2)]

    def keeps_z(self, index: int) -> bool:
        """Whether a layer's z is kept."""
        return self.z[index] is not self.none

    def saved(self, index: int) -> Any:
        """Return what the gate of a layer is made of."""
        return self.z[index] if self.keeps_z(index) else self.a[index + 1]
