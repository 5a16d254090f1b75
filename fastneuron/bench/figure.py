"""The figure of a run: how many times as fast as NumPy each backend is, by what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.bench.results import Result, Row
from fastneuron.errors import DataError
from fastneuron.plots import COLOURS, INK, require

__all__ = ["speeds"]

_MARKERS = {"numba": "o", "cython": "D"}
_LANES = {"numba": -0.17, "cython": 0.17}  # rows apart from the middle of their line


def speeds(result: Result) -> Any:
    """Return a figure with a line for each name: a mark for each workload, a bar at the median.

    Raises
    ------
    DataError
        Where no row can be put beside NumPy's.
    ExtraMissing
        Where matplotlib is not installed.
    """
    require()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found: dict[str, dict[str, list[tuple[Row, float]]]] = {}
    for row in result.rows:
        against = result.against_numpy(row)
        if against is not None:
            by_backend = found.setdefault(row.key.name, {})
            by_backend.setdefault(row.key.backend, []).append((row, against.value))
    if not found:
        raise DataError("no row can be put beside NumPy's: there is nothing to draw")
    figure = Figure((7.0, 1.6 + 0.26 * len(found)), 120, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    for i, (backend, marker) in enumerate(_MARKERS.items()):
        labelled = f"{backend}; bar: median"
        for line, by_backend in enumerate(found.values()):
            values = [value for _, value in by_backend.get(backend, [])]
            if not values:
                continue
            at = line + _LANES[backend]
            axes.plot(
                values, [at] * len(values), marker, color=COLOURS[i], alpha=0.55, markersize=4,
                markeredgewidth=0, label=labelled,
            )  # fmt: skip
            if len(values) > 2:
                axes.plot([np.median(values)], [at], "|", color=COLOURS[i], markersize=9, mew=2)
            labelled = "_"
    axes.axvline(1.0, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("times as fast as NumPy in the same rounds (no unit)", color=INK)
    axes.set_title(f"{result.machine['processor']}, {result.team}", color=INK, fontsize=10)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    axes.grid(True, axis="x", color=INK, alpha=0.2)
    figure.legend(
        loc="outside lower center", ncols=2, labelcolor=INK, framealpha=0.0, fontsize="small"
    )
    return figure
