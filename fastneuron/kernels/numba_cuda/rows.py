"""The numbers of a batch on the device, row-major, a vector for each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.kernels.device_plan import Blocks, Tile, blocks_of, most_slices, saves_z, widest
from fastneuron.kernels.numba_cuda.driver import empty
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.spec import NetworkSpec

__all__ = ["Rows"]


class Rows:
    """Vectors for batches of up to `count` rows.

    Attributes
    ----------
    a : list of (count, width)
        ``a[0]`` is the input and ``a[i + 1]`` what layer i gives; in inference a dropout gives what
        it got.
    z : list of (count, O)
        Of the layers that save it.
    moments : list of (mean, variance, inverse)
        Of a normalisation: over the batch, running ones, or those of each row.

    In training alone:

    d : list of (count, width)
        ``d[i + 1]`` is dL/dz of layer i, ``d[0]`` is dL/dx.
    y, classes, weight, losses
        The batch's targets of either kind, its weights, the loss of each row.
    scratch
        First stages of sums, each read before the next is written: at least `partials` numbers.
    sums : (2, widest)
        Sums over the batch that are no gradients.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        count: int,
        tile: Tile,
        blocks: Blocks,
        *,
        training: bool,
        partials: int = 0,
    ) -> None:
        self.count, self.training = count, training
        self._sizes: list[int] = []
        self._dtype = np.dtype(spec.dtype)
        self.none = self._vector(1)
        self.a = [self._vector(count * spec.in_features)]
        self.z: list[Any] = []
        self.moments: list[tuple[Any, Any, Any] | None] = []
        for layer in spec.layers:
            passes = isinstance(layer, Dropout) and not training
            width = int(layer.out_features)
            self.a.append(self.a[-1] if passes else self._vector(count * width))
            keeps = training and saves_z(layer)
            self.z.append(self._vector(count * width) if keeps else self.none)
            of = count if isinstance(layer, LayerNorm) else width
            is_norm = isinstance(layer, (BatchNorm, LayerNorm))
            self.moments.append(
                (self._vector(of), self._vector(of), self._vector(of)) if is_norm else None
            )
        if not training:
            return
        self.d = [self._vector(count * width) for width in spec.sizes]
        self.y, self.weight = self._vector(count * spec.out_features), self._vector(count)
        self.classes = empty(count, np.int64)
        self.losses = self._vector(count)
        self.sums = [self._vector(widest(spec)) for _ in range(2)]
        groups = blocks_of(count, min(tile.rows, blocks.group))
        size = max(2 * groups * widest(spec), partials)
        for layer in spec.layers:
            if isinstance(layer, Dense):
                inputs, outputs = layer.weight_shape
                slices = most_slices(count, inputs, outputs, tile)
                size = max(size, slices * inputs * outputs if slices > 1 else 0)
        self.scratch = self._vector(size)

    def _vector(self, count: int) -> Any:
        self._sizes.append(max(count, 1))
        return empty(count, self._dtype)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(self._sizes) * self._dtype.itemsize
