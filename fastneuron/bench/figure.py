"""The figure of a run: backends beside NumPy, and other libraries beside fastneuron."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.bench.results import Result
from fastneuron.errors import DataError
from fastneuron.peers import NAMES
from fastneuron.plots import COLOURS, INK, require
from fastneuron.profiling.pairs import Ratio

__all__ = ["speeds"]

#: Marker, colour and place of a backend, in lines from the middle of its own.
_BACKENDS = {"numba": ("o", COLOURS[0], -0.17), "cython": ("D", COLOURS[1], 0.17)}
#: A colour for each library, a marker for each of its ways: told apart without colours too.
_PEERS = {
    "fastneuron-numba": ("*", COLOURS[0]),
    "fastneuron-cython": ("D", COLOURS[0]),
    "fastneuron-numpy": ("o", COLOURS[0]),
    "torch": ("s", COLOURS[1]),
    "torch-compile": ("v", COLOURS[1]),
    "jax-jit": ("^", COLOURS[2]),
    "jax-scan": ("X", COLOURS[2]),
    "sklearn": ("p", COLOURS[3]),
    "numpy": ("<", INK),
}
#: Inches: width of a panel, height of a line of backends, of a peer's, of all around a panel.
_WIDTH, _BACKEND, _PEER, _AROUND = 7.0, 0.26, 0.08, 1.6


def speeds(result: Result) -> Any:
    """Return a figure with a panel for backends and one for peers, whichever the run has.

    Backends have a line for each name: a mark for each workload, a bar at the median. Peers have a
    line for each workload: a mark with its interval.

    Raises
    ------
    DataError
        Where no row can be put beside another's.
    ExtraMissing
        Where matplotlib is not installed.
    """
    require()
    from matplotlib.figure import Figure

    of_backends, of_peers = _backends(result), _peers(result)
    shown = [name for name in NAMES if any(name in one for one in of_peers.values())]
    panels: list[tuple[float, Any, Any]] = []
    if of_backends:
        panels.append((_AROUND + _BACKEND * len(of_backends), _draw_backends, of_backends))
    if of_peers:
        a_line = 0.12 + _PEER * len(shown)
        panels.append((_AROUND + a_line * len(of_peers), _draw_peers, of_peers))
    if not panels:
        raise DataError(
            "no row can be put beside NumPy's, or beside fastneuron's: there is nothing to draw"
        )
    heights = [height for height, _, _ in panels]
    # Side by side: one below the other they would be taller than any screen.
    figure = Figure((_WIDTH * len(panels), max(heights)), 120, layout="constrained")
    figure.patch.set_alpha(0.0)
    parts = figure.subfigures(1, len(panels), squeeze=False)[0]
    for part, (_, draw, found) in zip(parts, panels, strict=True):
        part.patch.set_alpha(0.0)
        axes = part.subplots()
        draw(axes, found, result)
        _dress(axes, list(found))
        part.legend(
            loc="outside lower center", ncols=4, labelcolor=INK, framealpha=0.0, fontsize="small"
        )
    figure.suptitle(f"{result.machine['processor']}, {result.team}", color=INK, fontsize=10)
    return figure


def _backends(result: Result) -> dict[str, dict[str, list[float]]]:
    """Return, by name and backend, how many times as fast as NumPy each workload is."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in result.rows:
        against = None if row.key.of_peers else result.against_numpy(row)
        if against is not None:
            by_backend = found.setdefault(row.key.name, {})
            by_backend.setdefault(row.key.backend, []).append(against.value)
    return found


def _peers(result: Result) -> dict[str, dict[str, Ratio]]:
    """Return, by workload and peer, how many times fastneuron's time it takes."""
    found: dict[str, dict[str, Ratio]] = {}
    for row in result.rows:
        against = result.against_ours(row)
        if against is not None:
            workload = f"{row.key.name}\n{row.key.label}"
            found.setdefault(workload, {})[row.key.backend] = against
    return found


def _draw_backends(axes: Any, found: dict[str, dict[str, list[float]]], _: Result) -> None:
    for backend, (marker, colour, lane) in _BACKENDS.items():
        labelled = f"{backend}; bar: median"
        for line, by_backend in enumerate(found.values()):
            values = by_backend.get(backend)
            if not values:
                continue
            at = line + lane
            axes.plot(
                values, [at] * len(values), marker, color=colour, alpha=0.8, markersize=4,
                markeredgewidth=0, label=labelled,
            )  # fmt: skip
            if len(values) > 2:
                axes.plot([np.median(values)], [at], "|", color=colour, markersize=9, mew=2)
            labelled = "_"
    axes.set_xlabel("times as fast as NumPy in the same rounds (no unit)", color=INK)


def _draw_peers(axes: Any, found: dict[str, dict[str, Ratio]], result: Result) -> None:
    shown = [name for name in NAMES if any(name in one for one in found.values())]
    for i, name in enumerate(shown):
        marker, colour = _PEERS[name]
        at = [line for line, one in enumerate(found.values()) if name in one]
        ratios = [one[name] for one in found.values() if name in one]
        values = np.array([ratio.value for ratio in ratios])
        # A median of a few rounds may lie at the very end of its interval.
        ends = [values - [r.low for r in ratios], np.subtract([r.high for r in ratios], values)]
        axes.errorbar(
            values, np.add(at, 0.8 * ((i + 0.5) / len(shown) - 0.5)), xerr=np.maximum(ends, 0),
            fmt=marker, color=colour, markersize=5.5, markeredgewidth=0, elinewidth=1.2,
            label=name,
        )  # fmt: skip
    for line in range(len(found) - 1):
        axes.axhline(line + 0.5, color=INK, linewidth=0.5, alpha=0.5)
    axes.set_xlabel(f"time over that of {result.base}, 95 % interval (no unit)", color=INK)


def _dress(axes: Any, lines: list[str]) -> None:
    """Set the lines' names, the line at 1, and all that is no data in ink."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.patch.set_alpha(0.0)
    axes.axvline(1.0, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    axes.grid(True, axis="x", color=INK, alpha=0.2)
