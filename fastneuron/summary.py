"""The table that a network prints: its layers, their parameters, and how many are biases."""

from __future__ import annotations

from fastneuron.layers import Dropout, Layer
from fastneuron.spec import NetworkSpec, bias_is_redundant

__all__ = ["summary"]

_HEAD = ("layer", "kind", "shape", "activation", "weights", "biases")
_FROZEN = {False: ", frozen", "weight": ", bias frozen", "bias": ", weight frozen"}


def summary(spec: NetworkSpec) -> str:
    """Return the table: shapes, parameters, and how many of them are biases."""
    rows = [_HEAD]
    for i, layer in enumerate(spec.layers):
        rows.append(
            (
                str(i),
                _kind(layer),
                f"{layer.in_features} -> {layer.out_features}",
                layer.activation,
                f"{layer.n_weights:,}",
                _biases(spec, i),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    total = spec.n_parameters
    biases = sum(layer.out_features or 0 for layer in spec.layers if layer.bias)
    lines.append(
        f"{total:,} parameters ({spec.dtype}), {biases:,} of them biases "
        f"({100 * biases / max(1, total):.2g} %)"
    )
    return "\n".join(lines)


def _kind(layer: Layer) -> str:
    if isinstance(layer, Dropout):
        return f"{layer.kind} {layer.rate:g}"
    return layer.kind + _FROZEN.get(layer.trainable, "")


def _biases(spec: NetworkSpec, index: int) -> str:
    layer = spec.layers[index]
    if layer.bias:
        return f"{layer.out_features:,}"
    if bias_is_redundant(spec.layers, index) and spec.layers[index + 1].bias:
        return "none: BatchNorm has one"
    return "none"
