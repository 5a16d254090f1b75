"""A small network as csrc/cuda/kernels.h takes it, and the calls that train it in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.device_calls import Call
from fastneuron.kernels.device_plan import blocks_of
from fastneuron.kernels.device_state import DeviceRows, DeviceState
from fastneuron.kernels.fused_plan import FusedPlan
from fastneuron.losses import Loss
from fastneuron.spec import NetworkSpec

__all__ = ["MOST_LAYERS", "FusedPasses", "network_of", "takes"]

#: FN_FUSED_LAYERS of kernels.h.
MOST_LAYERS = 16


def takes(plan: FusedPlan) -> bool:
    """Return whether the compiled kernels can take a plan."""
    return len(plan.layers) <= MOST_LAYERS


def network_of(plan: FusedPlan) -> NDArray[np.int32]:
    """Return the numbers of `fn_cuda_network`, with room for all layers that it may have."""
    layers = [
        (
            layer.inputs, layer.outputs, ACTIVATIONS[layer.activation].code, layer.weight_at,
            layer.bias_at, layer.row, plan.weight_near(index), layer.stride,
            plan.tile_at[index + 1], plan.z_at[index],
        )
        for index, layer in enumerate(plan.layers)
    ]  # fmt: skip
    all_of_it = (
        len(layers), plan.rows, plan.tile_at[0], plan.numbers, plan.flat, plan.holds,
        plan.gradient_at or 0,
    )  # fmt: skip
    numbers = np.array([*all_of_it, *(number for layer in layers for number in layer)], np.int32)
    missing = max(0, MOST_LAYERS - len(layers)) * len(layers[0])
    return np.concatenate([numbers, np.zeros(missing, np.int32)])


class FusedPasses:
    """Builds a step up to its gradient, and predictions, where blocks keep the whole network.

    Parameters
    ----------
    spec, plan
    threads : int
        Of a block.
    state, chunk
        Of the engine.

    Attributes
    ----------
    rows : int
        Of the batch, a block.
    """

    def __init__(
        self, spec: NetworkSpec, plan: FusedPlan, threads: int, state: DeviceState, chunk: Any
    ) -> None:
        self._spec, self._plan, self._state, self._chunk = spec, plan, state, chunk
        self._dtype, self._threads = int(np.dtype(spec.dtype) == np.float64), threads
        self.rows = plan.rows
        self._network = network_of(plan)  # whose address the calls have

    def scratch(self, rows: int) -> int:
        """Return the numbers of the blocks' gradients for up to so many rows."""
        plan = self._plan
        return min(plan.partials(rows, self._spec), plan.most_partials(self._spec))

    def step(
        self, batch: DeviceRows, rows: int, data: Sequence[Any], loss: Loss, *, weighted: bool,
        classes: bool,
    ) -> list[Call]:  # fmt: skip
        """Return what makes gradient and row losses of a step; nothing for too large a batch."""
        plan, chunk, state = self._plan, self._chunk, self._state
        if plan.partials(rows, self._spec) > plan.most_partials(self._spec):
            return []
        x, y, weight, labels = (vector.address for vector in data)
        given = x, 0 if classes else y, labels if classes else 0, weight if weighted else 0
        where = chunk.order.address, chunk.bounds.address, chunk.state.address, state.p.address
        what = self._dtype, loss.code, self._network.ctypes.data, self._threads
        out, blocks = batch.scratch.address, blocks_of(rows, plan.rows)
        return [
            ("fused_step", (*what, *given, *where, batch.losses.address, out, rows)),
            ("sum_parts", (self._dtype, out, 1.0, state.g.address, blocks, state.size)),
        ]

    def forward(self, work: DeviceRows, rows: int) -> list[Call]:
        """Return a prediction's call."""
        ends = work.a[0].address, self._state.p.address, work.a[-1].address
        block = self._network.ctypes.data, 1, self._threads
        return [("fused_forward", (self._dtype, *block, *ends, rows, 0))]
