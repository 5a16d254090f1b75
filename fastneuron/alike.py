"""Whether networks, and their optimizers, are alike enough to be trained at once."""

from __future__ import annotations

from typing import Any

from fastneuron.errors import SpecError
from fastneuron.network import Sequential
from fastneuron.optimizers import Optimizer, as_optimizer

__all__ = ["alike_networks", "alike_optimizers"]


def alike_networks(networks: Any) -> tuple[Sequential, ...]:
    """Return networks of one architecture, none of them twice; anything else is a SpecError."""
    if isinstance(networks, Sequential):
        raise SpecError(
            "networks must be a sequence: Ensemble.of(net, count, ...) makes many of it"
        )
    found = tuple(networks)
    if not found:
        raise SpecError("an ensemble needs at least one network")
    for m, net in enumerate(found):
        if not isinstance(net, Sequential):
            raise SpecError(f"networks[{m}] is {net!r:.80}, not a Sequential")
        spec, want = net.spec, found[0].spec
        if spec == want:
            continue
        if spec.dtype != want.dtype:
            raise SpecError(f"networks[{m}] computes in {spec.dtype}, networks[0] in {want.dtype}")
        pairs = enumerate(zip(want.layers, spec.layers, strict=False))
        differs = next((i for i, (one, other) in pairs if one != other), None)
        if differs is None:
            counts = len(spec.layers), len(want.layers)
            raise SpecError(f"networks[{m}] has {counts[0]} layers, networks[0] has {counts[1]}")
        raise SpecError(
            f"networks[{m}] is not like networks[0]: its layer {differs} is "
            f"{spec.layers[differs]!r}, not {want.layers[differs]!r}"
        )
    first_at: dict[int, int] = {}
    for m, net in enumerate(found):
        before = first_at.setdefault(id(net.parameters), m)
        if before != m:
            raise SpecError(
                f"networks[{m}] is networks[{before}]: each needs parameters of its own"
            )
    return found


def alike_optimizers(given: Any, models: int) -> list[Optimizer]:
    """Return one optimizer for each network, all of one kind; anything else is a SpecError."""
    if isinstance(given, (str, Optimizer)):
        return [as_optimizer(given)] * models
    found = [as_optimizer(each) for each in given]
    if len(found) != models:
        raise SpecError(f"{len(found)} optimizers for {models} networks: give one, or one each")
    for m, each in enumerate(found):
        if type(each) is not type(found[0]) or each.kind != found[0].kind:
            raise SpecError(
                f"optimizers[{m}] is {each!r}, optimizers[0] is {found[0]!r}: they may differ in "
                "numbers, not in kind"
            )
    return found
