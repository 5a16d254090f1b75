"""Says once, on stderr, that a network leaves biases out which could have no effect."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from fastneuron.layers import Layer
from fastneuron.spec import NetworkSpec

__all__ = ["ELISION", "Elision"]


class Elision:
    """Says once a process which layers train without the bias that "auto" left open."""

    def __init__(self) -> None:
        self._said = False

    def silence(self) -> None:
        """Say nothing in this process: somebody else does."""
        self._said = True

    def note(self, given: Sequence[Layer], spec: NetworkSpec) -> None:
        """Say it, where `spec` lacks a bias that the `given` layers had left to it."""
        left_out = [
            i
            for i, (before, after) in enumerate(zip(given, spec.layers, strict=True))
            if before.bias == "auto" and not after.bias
        ]
        if self._said or not left_out:
            return
        self._said = True
        # The stream may be None, closed, or a pipe without a reader.
        with contextlib.suppress(Exception):
            print(f"fastneuron: {_text(left_out, spec)}", file=sys.stderr, flush=True)


#: The one of this process.
ELISION = Elision()


def _text(layers: Sequence[int], spec: NetworkSpec) -> str:
    *most, last = map(str, layers)
    who = f"layers {', '.join(most)} and {last} train" if most else f"layer {last} trains"
    each = " each" if most else " it"
    own = ", and has one of its own" if all(spec.layers[i + 1].bias for i in layers) else ""
    return (
        f"{who} without a bias: the BatchNorm after{each} would take it away{own} "
        "(Dense(..., bias=True) keeps it)"
    )
