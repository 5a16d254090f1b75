"""The numbers of a batch on the device, as Numba's vectors."""

from __future__ import annotations

from fastneuron.kernels.device_plan import Blocks, Tile, blocks_of, most_slices, widest
from fastneuron.kernels.device_state import DeviceRows
from fastneuron.kernels.numba_cuda.driver import empty
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec

__all__ = ["Rows"]


class Rows(DeviceRows):
    """See `DeviceRows`; scratch has room for at least `partials` numbers."""

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
        groups = blocks_of(count, min(tile.rows, blocks.group))
        scratch = max(2 * groups * widest(spec), partials)
        for layer in spec.layers:
            if isinstance(layer, Dense):
                inputs, outputs = layer.weight_shape
                slices = most_slices(count, inputs, outputs, tile)
                scratch = max(scratch, slices * inputs * outputs if slices > 1 else 0)
        none = empty(1, spec.dtype)
        super().__init__(spec, count, empty, training=training, scratch=scratch, none=none)
