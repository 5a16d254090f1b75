"""The figure of a diagnosis: dead and saturated neurons, and the part of f that is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.plots import COLOURS, INK, dress, dress_bar, sheet

__all__ = ["HealthPanel", "health"]


class HealthPanel(NamedTuple):
    """What `health` draws of one layer.

    Attributes
    ----------
    title : str
    shares : (T, O)
        Share of the rows on which a neuron's f' is small, at T moments.
    z_edges, z_counts, z_flat : (K + 1,), (K,), (K,)
        Histogram of z: edges of the bins, values in each, and those of them where f' is small.
    """

    title: str
    shares: NDArray[Any]
    z_edges: NDArray[Any]
    z_counts: NDArray[Any]
    z_flat: NDArray[Any]


def health(panels: Sequence[HealthPanel], steps: Sequence[int] | None = None) -> Any:
    """Return a figure of dead and saturated neurons, and of the part of f that is used.

    Parameters
    ----------
    panels : sequence of HealthPanel
        One a layer, drawn from the top.
    steps : sequence of int, optional
        The T moments, in optimizer steps; left out where there is one.

    Returns
    -------
    matplotlib.figure.Figure
    """
    tall, thin = 1.25 if steps is None else 1.9, 0.12  # inches, of a panel and of the colour bar
    n = len(panels)
    figure, axes = sheet(
        (9.0, (tall + 0.15) * n + 0.8),
        n + 1,
        2,
        width_ratios=(3, 2),
        height_ratios=(*[tall] * n, thin),
    )
    image: Any = None
    for (left, right), panel in zip(axes[:-1], panels, strict=True):
        last = panel is panels[-1]
        image = _heat(left, panel, steps, "neuron (index)" if last else "")
        _histogram(right, panel, "z, the input of f (no unit)" if last else "")
    below, key = axes[-1]
    bar = figure.colorbar(image, cax=below, orientation="horizontal")
    dress_bar(bar, "rows on which f'(z) is small (%); all of them: dead or saturated")
    bar.ax.tick_params(labelsize=8)
    bar.ax.xaxis.label.set_size(9)
    key.set_axis_off()
    named = {"f'(z) small": COLOURS[1], "learns": COLOURS[0]}
    bars = [key.bar(0, 0, color=colour) for colour in named.values()]
    key.legend(bars, named, loc="upper center", ncols=2, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _heat(axes: Any, panel: HealthPanel, steps: Sequence[int] | None, xlabel: str) -> Any:
    moments, width = panel.shares.shape
    image = axes.imshow(
        100 * panel.shares,
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=0,
        vmax=100,
        extent=(-0.5, width - 0.5, moments - 0.5, -0.5),
    )
    _dress(axes, xlabel, "" if steps is None else "step (count)", panel.title)
    axes.grid(False)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if steps is None:
        axes.set_yticks([])
    else:
        at = np.unique(np.linspace(0, moments - 1, min(moments, 5)).astype(int))
        axes.set_yticks(at, [f"{steps[i]:,}" for i in at])
    return image


def _histogram(axes: Any, panel: HealthPanel, xlabel: str) -> None:
    edges, total = panel.z_edges, panel.z_counts.sum()
    learns, flat = panel.z_counts - panel.z_flat, panel.z_flat
    for counts, below, colour in ((learns, 0 * learns, COLOURS[0]), (flat, learns, COLOURS[1])):
        bars = counts > 0
        axes.bar(
            edges[:-1][bars],
            100 * counts[bars] / total,
            np.diff(edges)[bars],
            bottom=100 * below[bars] / total,
            align="edge",
            color=colour,
        )
    # Of all rows, where the histogram has some.
    title = f"f'(z) small for {100 * panel.shares[-1].mean():.0f} % of z"
    _dress(axes, xlabel, "share of z (%)", title)


def _dress(axes: Any, xlabel: str, ylabel: str, title: str) -> None:
    """Dress one of many small panels: smaller letters, no frame on the open sides."""
    dress(axes, xlabel, ylabel, "")
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.spines[["top", "right"]].set_visible(False)
