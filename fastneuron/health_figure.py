"""The figure of a diagnosis: dead and saturated neurons, and the part of f that is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.plots import COLOURS, INK, require

__all__ = ["HealthPanel", "health"]

_INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
)


@contextmanager
def _style() -> Iterator[None]:
    """Draw with the house's settings what is drawn inside."""
    require()
    import matplotlib

    settings: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "auto",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    }
    with matplotlib.rc_context(settings):
        yield


class HealthPanel(NamedTuple):
    """What `health` draws of one layer.

    Attributes
    ----------
    title : str
    shares : (T, O)
        Share of the rows on which a neuron's f' is small, at T moments.
    z_edges, z_shares : (K + 1,), (K,)
        Histogram of z: edges of the bins, share of the values in each.
    z_flat : (K,) bool
        Whether f' is small in a bin.
    """

    title: str
    shares: NDArray[Any]
    z_edges: NDArray[Any]
    z_shares: NDArray[Any]
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
    with _style():
        from matplotlib.figure import Figure

        tall = 1.2 if steps is None else 2.0
        figure = Figure(figsize=(9, tall * len(panels) + 1.2), layout="constrained")
        axes = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(3, 2))
        image: Any = None
        for (left, right), panel in zip(axes, panels, strict=True):
            image = _heat(left, panel, steps)
            _histogram(right, panel)
        axes[-1, 0].set_xlabel("neuron")
        axes[-1, 1].set_xlabel("z (input of f)")
        bar = figure.colorbar(image, ax=axes[:, 0].tolist(), location="bottom", aspect=50)
        bar.set_label("rows on which f'(z) is small [%]; all of them: dead or saturated")
        return figure


def _heat(axes: Any, panel: HealthPanel, steps: Sequence[int] | None) -> Any:
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
    axes.set_title(panel.title, loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if steps is None:
        axes.set_yticks([])
    else:
        at = np.unique(np.linspace(0, moments - 1, min(moments, 5)).astype(int))
        axes.set_yticks(at, [f"{steps[i]:,}" for i in at])
        axes.set_ylabel("step")
    return image


def _histogram(axes: Any, panel: HealthPanel) -> None:
    edges, flat = panel.z_edges, panel.z_flat.astype(bool)
    of_flat = 100 * panel.shares[-1].mean()  # exact, where bins may lie across the border
    for which, colour, label in (
        (~flat, COLOURS[0], f"learns: {100 - of_flat:.0f} %"),
        (flat, COLOURS[1], f"f'(z) small: {of_flat:.0f} %"),
    ):
        if not which.any():
            continue
        axes.bar(
            edges[:-1][which],
            100 * panel.z_shares[which],
            np.diff(edges)[which],
            align="edge",
            color=colour,
            label=label,
        )
    axes.set_ylabel("share of z [%]")
    axes.legend(fontsize=8, frameon=False)
