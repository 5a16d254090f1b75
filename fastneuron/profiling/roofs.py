"""The roofline of this machine, and where the parts of a training step stand beneath it.

Operations a second over operations a byte: a part can be no higher than the flat roof, the peak of
multiply-adds, nor than the slope of the memory it is fed from (Williams, Waterman & Patterson 2009,
"Roofline", Communications of the ACM 52). All of it is measured, nothing is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron.profiling.machine_ceilings import MachineCeilings
from fastneuron.profiling.step_profile import Part, StepProfile

__all__ = ["Point", "Roofline", "roofline"]

_HEADER = ("part", "layer", "FLOP/byte", "GFLOP/s", "roof", "of roof/%", "fed from")


@dataclass(frozen=True)
class Point:
    """A part of a step under the roof.

    Attributes
    ----------
    part : Part
    intensity : float
        Operations a byte.
    roof : float
        Operations a second that it could reach at most.
    level : str
        The memory that holds what it works on: "L1", "L2", "L3" or "memory".
    """

    part: Part
    intensity: float
    roof: float
    level: str

    @property
    def name(self) -> str:
        """Part and layer."""
        return self.part.name + ("" if self.part.layer is None else f" {self.part.layer}")


@dataclass(frozen=True)
class Roofline:
    """The machine's roofs and the points beneath them; `print` it, or draw `figure`.

    Attributes
    ----------
    step : StepProfile
    points : tuple of Point
        Of the parts that multiply and add.
    """

    step: StepProfile
    points: tuple[Point, ...]

    @property
    def machine(self) -> MachineCeilings:
        """The roofs."""
        return self.step.ceilings

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "step": self.step.to_json(),
            "points": [
                {
                    "part": point.part.name,
                    "layer": point.part.layer,
                    "operations_a_byte": point.intensity,
                    "operations_a_second": 1e9 * point.part.gflops,
                    "roof": point.roof,
                    "fed_from": point.level,
                }
                for point in self.points
            ],
        }

    def __str__(self) -> str:
        return "\n".join([str(self.machine), "", _row(_HEADER), *map(_line, self.points)])

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def figure(self) -> Any:
        """Return a matplotlib figure of roofs and points; needs the extra ``plots``."""
        from fastneuron.plots import COLOURS, INK, dress, sheet

        figure, grid = sheet((8.0, 5.0), 1, 1)
        from matplotlib.ticker import LogLocator  # there is matplotlib: sheet would have raised

        axes = grid[0][0]
        dtype, machine = self.step.dtype, self.machine
        peak = machine.gflops[dtype]
        slopes = {level.name: level.pace / 1e9 for level in machine.levels}
        ends = [point.intensity for point in self.points] + [peak / min(slopes.values())]
        x = np.geomspace(min(ends) / 4, max(*ends, peak / min(slopes.values())) * 2, 200)
        for i, (name, slope) in enumerate(slopes.items()):
            dashes = ("-", "--", "-.", ":")[i % 4]
            label = f"{name}: {slope:.0f} GB/s"
            axes.plot(x, np.minimum(peak, slope * x), dashes, color=INK, linewidth=1.5, label=label)
        marker_of = {"forward": "o", "backward": "s", "gradient": "^"}
        for i, (name, marker) in enumerate(marker_of.items()):
            own = [point for point in self.points if point.part.name == name]
            axes.plot(
                [point.intensity for point in own],
                [point.part.gflops for point in own],
                marker,
                color=COLOURS[i],
                markersize=8,
                label=name,
            )
            for point in own:
                axes.annotate(
                    str(point.part.layer),
                    (point.intensity, point.part.gflops),
                    xytext=(6, -10),
                    textcoords="offset points",
                    color=INK,
                    fontsize=8,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        title = f"{self.step.network}, batch {self.step.batch_size}: {peak:.0f} GFLOP/s at most"
        dress(axes, "operations a byte (FLOP/byte)", "GFLOP/s", title)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        return figure


def roofline(step: StepProfile) -> Roofline:
    """Return where the parts of a profiled step stand beneath this machine's roofs."""
    machine = step.ceilings
    points = []
    for part in step.parts:
        operations = 2.0 * part.work.multiply_adds
        if not operations:
            continue
        level = machine.level(part.work.held)
        intensity = operations / part.work.moved
        roof = min(machine.flops[step.dtype], intensity * level.pace)
        points.append(Point(part, intensity, roof, level.name))
    return Roofline(step, tuple(points))


def _line(point: Point) -> str:
    part = point.part
    return _row(
        (
            part.name,
            "" if part.layer is None else str(part.layer),
            f"{point.intensity:.3g}",
            f"{part.gflops:.0f}",
            f"{point.roof / 1e9:.0f}",
            f"{100e9 * part.gflops / point.roof:.0f}",
            point.level,
        )
    )


def _row(cells: tuple[str, ...]) -> str:
    widths = (5, 11, 10, 8, 11, 10)
    rest = "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))
    return f"{cells[0]:<10}{rest}"
