"""A small network's plan as csrc/cuda/kernels.h takes it, `fn_cuda_network`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.fused_plan import FusedPlan

__all__ = ["MOST_LAYERS", "network_of", "takes"]

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
