"""How many kernels a training step launches on a card, counted from shapes as the engines build it.

`kernels` is whose they are: both train a small network in one fused kernel, the compiled ones up to
so many layers.
"""

from __future__ import annotations

from fastneuron.kernels.device_fused import takes
from fastneuron.kernels.device_plan import flat_size, slices_of, tile_of
from fastneuron.kernels.fused_plan import FusedPlan, fused_plan
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.spec import NetworkSpec

__all__ = ["COMPILED", "NUMBA", "fused_for", "launches_of"]

#: Whose kernels, as `device_supply` names them.
NUMBA, COMPILED = "numba-cuda", "compiled"


def fused_for(spec: NetworkSpec, batch: int, kernels: str = NUMBA) -> FusedPlan | None:
    """Return how blocks train the whole network, or None where it goes layer by layer."""
    plan = fused_plan(spec)
    if plan is None or not (kernels == NUMBA or takes(plan)):
        return None
    return plan if plan.partials(batch, spec) <= plan.most_partials(spec) else None


def launches_of(
    spec: NetworkSpec, batch: int, kernels: str = NUMBA, *, weighted: bool = False
) -> int:
    """Return how many kernels a step of `batch` rows launches.

    What it does not know: cuBLASLt's epilogues, which take launches away where they win, and the
    small tile of the compiled kernels, by which they may cut a batch for its weight gradient where
    this does not: one launch a layer.

    Parameters
    ----------
    weighted : bool
        Whether rows have weights, which are gathered too.
    """
    if fused_for(spec, batch, kernels):
        # The fused kernel and the sum of its blocks' gradients.
        return 2 + _MEAN_LOSS + _end(spec, batch, kernels)
    gather = 2 + weighted
    forward = sum(_forward(layer, kernels) for layer in spec.layers)
    backward = _backward(spec, batch)
    return gather + forward + 1 + _MEAN_LOSS + backward + _end(spec, batch, kernels)


_MEAN_LOSS = 1


def _forward(layer: Layer, kernels: str) -> int:
    if isinstance(layer, BatchNorm) and layer.uses_batch:
        # Two column sums in two stages, the compiled ones with the inverse root by itself.
        return 5 if kernels == NUMBA else 6
    if isinstance(layer, LayerNorm):
        return 1 if kernels == NUMBA else 2
    return 2 if isinstance(layer, BatchNorm) else 1


def _backward(spec: NetworkSpec, batch: int) -> int:
    layers = spec.layers
    trained = [i for i, each in enumerate(layers) if each.trains_weight or each.trains_bias]
    first = min(trained, default=len(layers))
    count = 0
    gated = False  # by the product above, up to the second stage of the bias gradient
    for index in reversed(range(first, len(layers))):
        layer, goes_on = layers[index], index > first
        sums = isinstance(layer, Dense) and layer.trains_bias
        gate = not gated and (sums or layer.activation != "identity")
        count += gate + sums
        gated = isinstance(layer, Dense)
        if isinstance(layer, Dense):
            if layer.trains_weight:
                inputs, outputs = layer.weight_shape
                slices, _ = slices_of(batch, inputs, outputs, tile_of(spec.dtype))
                count += 1 + (slices > 1)
        elif not isinstance(layer, Dropout):
            uses_batch = isinstance(layer, BatchNorm) and layer.uses_batch
            count += 3 * (layer.trains_weight or layer.trains_bias or uses_batch)
        count += goes_on
    return count


def _end(spec: NetworkSpec, batch: int, kernels: str) -> int:
    """Squares, judge and update, statistics, and the step's number."""
    statistics = sum(isinstance(each, BatchNorm) and each.uses_batch for each in spec.layers)
    has_numbers = flat_size(spec) > 0
    if kernels == NUMBA:
        return 2 * has_numbers + 1 + statistics * (batch > 1) + 1
    return 3 * has_numbers + statistics + 1
