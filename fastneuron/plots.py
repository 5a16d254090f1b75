"""Figures of networks and their training, through matplotlib: ``pip install "fastneuron[plots]"``.

Every function returns a `matplotlib.figure.Figure` and touches no global state: nothing is shown,
and no window system is needed. Save it with ``figure.savefig("name.png")``. The background is
transparent, and ink and colours are readable on white and on black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.arrays import as_rows
from fastneuron.errors import DataError, ExtraMissing
from fastneuron.fitting import History

__all__ = [
    "activation_curves",
    "bias_histograms",
    "curves",
    "decision_boundary",
    "hyperplanes",
    "learning_curves",
    "pre_activations",
]

#: Okabe and Ito's colours for the colour-blind (2008, "Color universal design"), those of them that
#: have a contrast of about 3 or more to white and to black: blue, vermillion, green, purple (2.96).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
#: Of text, axes and data points: a grey with a contrast above 4 to white and to black.
INK = "#777777"
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_DPI = 120
# Points a side of the grid that a boundary is drawn from: finer than the figure's pixels resolve.
_GRID = 201


class Answers(Protocol):
    """What a boundary is drawn of: `Sequential` is one."""

    def predict(self, X: Any) -> NDArray[Any]:
        """Return a class for each row."""
        ...


def require() -> None:
    """Raise ExtraMissing where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ExtraMissing(
            f'figures need matplotlib, which is the extra "plots": '
            f'pip install "fastneuron[plots]" ({error})'
        ) from error


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    points: int = 0,
) -> Any:
    """Draw y over x for each label; the first `points` series as points, the others as lines.

    Parameters
    ----------
    series : dict
        Label to (x, y), both (n,).
    xlabel, ylabel : str
        What is on the axes, with its unit.
    title : str
    points : int
    """
    figure, (axes,) = _figure(1)
    for i, (label, (x, y)) in enumerate(series.items()):
        if i < points:
            axes.plot(x, y, "o", color=INK, markersize=3, label=label)
        else:
            # Two full rounds of colours and dashes before a pair comes again.
            style = {"color": COLOURS[i % 4], "linestyle": _DASHES[(i + i // 4) % 4]}
            axes.plot(x, y, linewidth=2, label=label, **style)
    dress(axes, xlabel, ylabel, title)
    _legend(figure)
    return figure


def learning_curves(
    histories: History | Mapping[str, History], loss: str = "loss (unit of the loss)"
) -> Any:
    """Draw the training loss of each history, and the validation loss where there is one.

    Parameters
    ----------
    histories : History or dict
        What `fit` returned; with several, by label.
    loss : str
        Label of the axis: the loss and its unit.
    """
    named = {"": histories} if isinstance(histories, History) else histories
    series: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    for name, history in named.items():
        start = f"{name}, " if name else ""
        epochs = np.arange(1, len(history) + 1)
        series[f"{start}training"] = (epochs, history.loss)
        if not np.isnan(history.val_loss).all():
            series[f"{start}validation"] = (epochs, history.val_loss)
    figure = curves(series, "epoch (count)", loss, "Learning curves")
    # A loss may be negative or 0 (nothing left to learn): the axis is logarithmic but near 0.
    figure.axes[0].set_yscale("symlog", linthresh=1e-3)
    return figure


def decision_boundary(nets: Mapping[str, Answers], X: ArrayLike, y: ArrayLike) -> Any:
    """Draw which class each network predicts over the plane, a panel a network, and the rows.

    Parameters
    ----------
    nets : dict
        Label to a trained classifier of two inputs.
    X : array_like (n, 2)
    y : array_like (n,)
        The class of each row, from 0.

    Raises
    ------
    DataError
        Where X is not (n, 2) or y not (n,).
    """
    rows, classes = np.asarray(X, np.float64), np.asarray(y)
    if rows.ndim != 2 or rows.shape[1] != 2 or classes.shape != rows.shape[:1]:
        raise DataError(
            "decision_boundary needs X (n, 2) and the class of each row y (n,), got "
            f"{rows.shape} and {classes.shape}"
        )
    figure, panels = _figure(len(nets))
    # The origin belongs into the picture: it is what a boundary without bias cannot leave.
    low, high = np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0)
    margin = 0.1 * (high - low)
    x1, x2 = (
        np.linspace(start, stop, _GRID)
        for start, stop in zip(low - margin, high + margin, strict=True)
    )
    grid = np.stack(np.meshgrid(x1, x2), axis=-1).reshape(-1, 2)
    levels = np.unique(classes)
    for axes, (label, net) in zip(panels, nets.items(), strict=True):
        answer = np.asarray(net.predict(grid)).reshape(_GRID, _GRID)
        for k in levels:
            colour = COLOURS[int(k) % 4]
            # Between 0 and 1, so that a class that is nowhere predicted draws nothing.
            if (answer == k).any():
                axes.contourf(x1, x2, answer == k, levels=[0.5, 1.5], colors=[colour], alpha=0.25)
            mine = rows[classes == k]
            marker = _MARKERS[int(k) % len(_MARKERS)]
            axes.plot(*mine.T, marker, color=colour, markersize=4, label=f"class {k}", mew=0)
        axes.plot(0, 0, "+", color=INK, markersize=12, mew=2, label="origin")
        dress(axes, "input x1 (no unit)", "input x2 (no unit)", label)
    _legend(figure)
    return figure


def hyperplanes(weight: ArrayLike, biases: Sequence[float]) -> Any:
    """Draw the boundary ``w x + b = 0`` of a neuron of two inputs for several biases.

    Parameters
    ----------
    weight : array_like (2,)
    biases : sequence of float
    """
    w = np.asarray(weight, np.float64)
    length = np.hypot(*w)
    if w.shape != (2,) or not length > 0:
        raise DataError(f"hyperplanes needs a weight of two numbers, not both 0, got {weight!r}")
    along = np.array([-w[1], w[0]]) / length
    reach = 1.5 * max(1.0, *(abs(b) / length for b in biases))
    series = {}
    for b in biases:
        foot = -b * w / length**2
        ends = np.stack([foot - reach * along, foot + reach * along])
        series[f"b = {b:g}, distance {0 - b / length:g}"] = (ends[:, 0], ends[:, 1])
    title = f"w x + b = 0 for w = ({w[0]:g}, {w[1]:g})"
    figure = curves(series, "input x1 (no unit)", "input x2 (no unit)", title)
    axes = figure.axes[0]
    axes.plot(0, 0, "+", color=INK, markersize=12, mew=2, label="origin")
    axes.set_aspect("equal", "datalim")
    _legend(figure)
    return figure


def pre_activations(net: Any, X: ArrayLike) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return each layer's activation and its z (n, neurons) for X: what `activation_curves` takes.

    They are those of a prediction, in float64. `Dropout` layers, which have none, are left out.

    Parameters
    ----------
    net : Sequential
    X : array_like (n, in_features)
    """
    spec = replace(net.spec, dtype="float64")
    store = net.parameters
    engine: Any = backends.get("numpy").engine(spec)
    with store.lock:
        engine.load(store.pull())
        engine.load_statistics(
            [pair and tuple(map(np.float64, pair)) for pair in store.pull_statistics()]
        )
    rows = as_rows(X, "X", spec.dtype, spec.in_features)
    return {
        f"layer {i}, {layer.activation}": (layer.activation, trace.z)
        for i, (layer, trace) in enumerate(zip(spec.layers, engine.trace(rows), strict=True))
        if layer.has_parameters
    }


def activation_curves(used: Mapping[str, tuple[str, ArrayLike]]) -> Any:
    """Draw f(z) and its slope f'(z), with the region that is used shaded, a panel an entry.

    Parameters
    ----------
    used : dict
        Label to (name of an activation, the values of z that occurred, of any shape); for a
        network, ``pre_activations(net, X)``. Shaded is where the middle 98 % of them lie.
    """
    figure, panels = _figure(len(used))
    for axes, (label, (name, values)) in zip(panels, used.items(), strict=True):
        activation = ACTIVATIONS[name]
        low, high = np.quantile(np.asarray(values, np.float64), [0.01, 0.99])
        reach = 1.2 * max(4.0, abs(low), abs(high))
        z = np.linspace(-reach, reach, 801)
        a = activation.f(z)
        shade = {"facecolor": COLOURS[2], "edgecolor": COLOURS[2], "linewidth": 2, "alpha": 0.3}
        axes.axvspan(low, high, label="used z, the middle 98 %", **shade)
        axes.plot(z, a, color=COLOURS[0], linewidth=2, label="f(z)")
        slope = activation.df(a if activation.saves == "a" else z)
        axes.plot(z, slope, "--", color=COLOURS[1], linewidth=2, label="slope f'(z)")
        # What a ReLU does beyond the slope's scale is known; the slope is what the picture is for.
        axes.set_ylim(max(-1.5, float(a.min()) - 0.1), min(2.0, float(a.max()) + 0.2))
        title = f"{label}: used from {low:.2g} to {high:.2g}"
        dress(axes, "pre-activation z (no unit)", "f and f' (no unit)", title)
    _legend(figure)
    return figure


def bias_histograms(biases: ArrayLike, bins: int = 24) -> Any:
    """Draw how the biases of a layer spread over the epochs: a histogram a column.

    Parameters
    ----------
    biases : array_like (epochs, neurons)
        A row an epoch, the start included if wanted: a callback may append
        ``state.net.layers[0].bias`` to a list.
    bins : int
    """
    rows = np.asarray(biases, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise DataError(f"bias_histograms needs biases (epochs, neurons), got shape {rows.shape}")
    edges = np.histogram_bin_edges(rows, bins)
    counts = np.stack([np.histogram(row, edges)[0] for row in rows], axis=1)
    figure, (axes,) = _figure(1)
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    at = np.arange(len(rows) + 1) - 0.5
    # One hue, from nearly transparent to opaque: ordered for every eye, on white and on black.
    # Logarithmic, since biases that start equal are a single cell.
    blues = LinearSegmentedColormap.from_list("blues", [COLOURS[0] + "50", COLOURS[0]])
    mesh = axes.pcolormesh(
        at, edges, np.ma.masked_equal(counts, 0), cmap=blues, norm=LogNorm(1, rows.shape[1] + 1)
    )
    axes.plot(np.median(rows, axis=1), color=COLOURS[1], linewidth=2, label="median")
    dress(axes, "epoch (count)", "bias b (no unit)", f"Biases of {rows.shape[1]} neurons")
    _legend(figure)
    bar = figure.colorbar(mesh, ax=axes, ticks=LogLocator(subs=(1, 2, 5)), format="%d")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    dress_bar(bar, "neurons (count)")
    return figure


def sheet(size: tuple[float, float], rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """Return a transparent figure of `size` inches, and its axes (rows, columns).

    Options are those of matplotlib's ``Figure.subplots``.
    """
    require()
    if rows < 1 or columns < 1:
        raise DataError("there is nothing to draw")
    from matplotlib.figure import Figure

    figure = Figure(size, _DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def dress(axes: Any, xlabel: str, ylabel: str, title: str) -> None:
    """Label the axes and set all that is no data in ink."""
    axes.patch.set_alpha(0.0)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set_title(title, color=INK)
    axes.tick_params(which="both", colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(True, color=INK, alpha=0.2)


def dress_bar(bar: Any, label: str) -> None:
    """Label a colour bar likewise."""
    bar.set_label(label, color=INK)
    bar.ax.patch.set_alpha(0.0)
    bar.ax.tick_params(which="both", colors=INK)
    bar.outline.set_edgecolor(INK)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes side by side."""
    figure, axes = sheet((6.0 if panels == 1 else 4.5 * panels, 4.2), 1, panels)
    return figure, list(axes[0])


def _legend(figure: Any) -> None:
    """Name what all panels have in common, below them, where it covers no data."""
    for old in list(figure.legends):
        old.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(figure.axes) == 1 else 4,
        labelcolor=INK,
        framealpha=0.0,
        fontsize="small",
    )
