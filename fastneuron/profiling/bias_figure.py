"""Figures of bias profiles and sweeps, in the style of `fastneuron.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastneuron.plots import COLOURS, INK, require

if TYPE_CHECKING:
    from fastneuron.profiling.bias_profile import BiasProfile, Comparison, PartCost

__all__ = ["heat_map", "profile"]

_DPI = 120
#: Of a heat map's colours: a ratio this far from 1 has the full colour.
_FULL = 0.25
#: Of a cell without difference: a light grey.
_EQUAL = "#f0f0f0"


def profile(found: BiasProfile) -> Any:
    """Draw every ratio with its interval, and every cost with its prediction."""
    require()
    from matplotlib.figure import Figure

    costs: list[Comparison | PartCost] = [*found.comparisons, *found.parts]
    height = 1.8 + 0.26 * max(len(found.comparisons), len(costs))
    figure = Figure((11.0, height), _DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    left, right = figure.subplots(1, 2)
    _ratios(left, found.comparisons)
    _costs(right, costs)
    figure.suptitle(found.setting.label, color=INK, fontsize=10)
    return figure


def _ratios(axes: Any, rows: Sequence[Comparison]) -> None:
    axes.axvline(1, color=INK, linewidth=1)
    for y, row in enumerate(rows):
        ratio = row.ratio
        colour = COLOURS[1] if ratio.differs else COLOURS[0]
        axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        marker = "o" if ratio.differs else "D"
        axes.plot(ratio.value, y, marker, color=colour, markersize=6)
    axes.plot([], [], "D-", color=COLOURS[0], label="no measurable difference (95 %)")
    axes.plot([], [], "o-", color=COLOURS[1], label="differs")
    names = [f"{row.group}: {row.name} / {row.against}" for row in rows]
    _dress(axes, names, "ratio of times (no unit)", "Ratios with 95 % intervals")


def _costs(axes: Any, rows: Sequence[Comparison | PartCost]) -> None:
    from matplotlib.ticker import NullLocator

    axes.axvline(0, color=INK, linewidth=1)
    least = [abs(1e6 * v) for row in rows for v in (row.predicted_seconds, row.cost.value) if v]
    for y, row in enumerate(rows):
        cost = row.cost
        ends = [1e6 * cost.low, 1e6 * cost.high]
        axes.plot(ends, [y, y], color=COLOURS[0], linewidth=2, solid_capstyle="butt")
        axes.plot(1e6 * cost.value, y, "o", color=COLOURS[0], markersize=5)
        axes.plot(1e6 * row.predicted_seconds, y, "x", color=COLOURS[1], markersize=7, mew=2)
    axes.plot([], [], "o-", color=COLOURS[0], label="measured, with interval")
    axes.plot([], [], "x", color=COLOURS[1], mew=2, label="predicted")
    # Costs go from nanoseconds to milliseconds, and may be less than nothing by chance.
    exponent = math.floor(math.log10(np.median(least) / 10)) if least else 0
    axes.set_xscale("symlog", linthresh=10.0**exponent)
    top = math.ceil(math.log10(max(abs(end) for end in axes.get_xlim())))
    decades = [10.0**k for k in range(exponent + 1, top + 1)]
    low, high = axes.get_xlim()
    ticks = [t for t in (*(-d for d in decades), 0.0, *decades) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _dress(axes, [_short(row) for row in rows], "cost a step (us)", "Costs beside predictions")


def _short(row: Comparison | PartCost) -> str:
    part = getattr(row, "part", None)
    if part is None:
        return f"{row.group}: {row.name} - {row.against}"  # type: ignore[union-attr]
    return f"layer {row.layer}: {part}, {'fused' if row.fused else 'own pass'}"  # type: ignore[union-attr]


def heat_map(
    ratios: dict[str, Any], rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str]
) -> Any:
    """Draw a panel of coloured ratios for each title; None is an empty cell.

    Parameters
    ----------
    ratios : dict of str to sequence (rows) of sequences (columns) of Ratio or None
    rows, columns : sequence of str
    labels : (str, str)
        What is down and what is across, with its unit.
    """
    require()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    width = 2.0 + max(2.2, 0.85 * len(columns)) * len(ratios)
    figure = Figure((width, 2.2 + 0.5 * len(rows)), _DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    panels = figure.subplots(1, len(ratios), squeeze=False)[0]
    # Faster is blue, slower vermillion. Cells are opaque, so that black is readable on all of them
    # (contrast 4 or more), on white pages and on black ones.
    colours = LinearSegmentedColormap.from_list("ratios", [COLOURS[0], _EQUAL, COLOURS[1]])
    norm = Normalize(-100 * _FULL, 100 * _FULL, clip=True)
    for axes, (title, cells) in zip(panels, ratios.items(), strict=True):
        axes.patch.set_alpha(0.0)
        for i, line in enumerate(cells):
            for j, ratio in enumerate(line):
                if ratio is None:
                    axes.text(j, i, "-", ha="center", va="center", color=INK, fontsize=8)
                    continue
                percent = 100 * (ratio.value - 1)
                colour = colours(norm(percent)) if ratio.differs else _EQUAL
                axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=colour))
                text = f"{percent:+.0f}" if abs(percent) >= 10 else f"{percent:+.1f}"
                shown = text if ratio.differs else f"({text})"
                axes.text(j, i, shown, ha="center", va="center", color="black", fontsize=8)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows if axes is panels[0] else [""] * len(rows))
        axes.tick_params(which="both", colors=INK, labelsize=8)
        axes.set_xlabel(labels[1], color=INK)
        axes.set_title(title, color=INK, fontsize=9)
        for spine in axes.spines.values():
            spine.set_color(INK)
    panels[0].set_ylabel(labels[0], color=INK)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), extend="both")
    bar.set_label("slower [%]; in brackets: no measurable difference", color=INK, fontsize=8)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.ax.patch.set_alpha(0.0)
    bar.outline.set_edgecolor(INK)
    return figure


def _dress(axes: Any, names: Sequence[str], xlabel: str, title: str) -> None:
    axes.patch.set_alpha(0.0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_title(title, color=INK, fontsize=10)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(True, axis="x", color=INK, alpha=0.2)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.9 / axes.figure.get_figheight()),
        ncols=2,
        labelcolor=INK,
        framealpha=0.0,
        fontsize="small",
    )
