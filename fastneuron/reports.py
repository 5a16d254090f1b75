"""The health of a network as text: aligned tables and findings, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fastneuron.findings import Finding, is_saturated
from fastneuron.health import FLAT, QUANTILES, LayerHealth

__all__ = ["gradients", "mean", "named", "neurons", "number", "table", "told", "used", "wrapped"]

_WIDTH = 80  # columns
_NAMED = 10  # neurons, or unbroken runs of them, that a finding names


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def number(value: float | None) -> str:
    """Return two digits of a number, which is what a sample of rows is good for; - for None."""
    if value is None or not np.isfinite(value):
        return "-"
    size = abs(value)
    if size == 0:
        return "0"
    if not 1e-3 <= size < 9999.5:
        return f"{value:.1e}"
    return f"{value:#.2g}" if size < 0.1 else f"{value:.2f}" if size < 10 else f"{value:.0f}"


def mean(values: NDArray[np.float64] | None) -> float | None:
    """Return the mean magnitude over the neurons, or None."""
    return None if values is None else float(np.abs(values).mean())


def neurons(layers: Sequence[LayerHealth]) -> Iterator[str]:
    """Yield how many neurons of each layer are what."""
    yield "dead: f' near 0 on every row; saturated: on 9 rows of 10, of an f that is flat"
    yield "at both ends; twins: copies of others; silent: learns nothing from rows of zeros"
    if any(layer.normalised for layer in layers):
        yield "-: no activation; its neurons are judged at the normalisation after it"
    yield ""
    head = ("layer", "activation", "neurons", "dead", "saturated", "twins", "silent", "flat")
    units = ("", "", "", "", "", "", "", "[% of z]")
    rows = []
    for layer in layers:
        told: tuple[str, ...] = ("-",) * 5  # at the normalisation after it
        if not layer.normalised:
            told = (
                str(np.count_nonzero(layer.dead)),
                str(np.count_nonzero(is_saturated(layer))),
                str(np.count_nonzero(layer.twin >= 0)),
                str(np.count_nonzero(layer.silent_on_zero)),
                f"{100 * layer.flat_share.mean():.0f}",
            )
        rows.append((named(layer), layer.activation, str(layer.out_features), *told))
    yield from table(head, [units, *rows])


def named(layer: LayerHealth) -> str:
    """Return a layer's number, and its kind where it is a normalisation."""
    return f"{layer.index} {layer.kind}" if layer.factor is not None else str(layer.index)


def used(layers: Sequence[LayerHealth]) -> Iterator[str]:
    """Yield where in z each layer's activation is used."""
    yield f"Where f is used: quantiles of z (flat: f' below {FLAT:g} of its largest)"
    names = ["least", *(f"{100 * q:.0f} %" for q in QUANTILES[1:-1]), "largest"]
    rows = [(str(layer.index), *map(number, layer.z_quantiles.tolist())) for layer in layers]
    yield from table(("layer", *names), rows)


def gradients(layers: Sequence[LayerHealth]) -> Iterator[str]:
    """Yield delta's two factors and what they do to biases and weights."""
    yield "Means over neurons and rows: delta = dL/da * f'(z); b: gradient of the bias,"
    yield "w: of a neuron's weights (length); drift: |b - b at the start|, in units of z"
    head = ("layer", "|dL/da|", "|f'(z)|", "|delta|", "|dL/db|", "|dL/dw|", "b / w", "drift")
    rows = []
    for layer in layers:
        b, w = mean(layer.bias_gradient), mean(layer.weight_gradient)
        shown = (
            mean(layer.contribution),
            mean(layer.liveliness),
            mean(layer.delta),
            b,
            w,
            b / w if b is not None and w else None,
            mean(layer.bias_drift),
        )
        rows.append((str(layer.index), *map(number, shown)))
    yield from table(head, rows)


def told(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings, each with what to do about it."""
    if not findings:
        yield "No findings: nothing here asks to be changed."
        return
    yield f"{len(findings)} finding{'s' * (len(findings) > 1)}"
    for i, finding in enumerate(findings, 1):
        name = finding.kind.replace("_", " ")
        yield from wrapped(f"{i}. ", f"Layer {finding.layer}, {name}: {finding.what}.")
        if finding.neurons:
            yield from wrapped("   ", f"Neurons {_listed(finding.neurons)}.")
        yield from wrapped("   ", f"To do: {finding.advice}.")


def wrapped(lead: str, text: str) -> list[str]:
    """Return the text in lines of the width, `lead` before the first and as much room on others."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_on_hyphens=False,
    )


def _listed(numbers: Sequence[int]) -> str:
    """Return ascending numbers with unbroken runs as ranges: 0-4, 7, 9-11."""
    parts = np.split(np.array(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
    runs = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts]
    left = sum(len(part) for part in parts[_NAMED:])
    return ", ".join(runs[:_NAMED]) + (f" and {left} more" if left else "")
