"""`fn.profiling.bias_sweep`: what the bias costs over widths, batches, depths, threads and more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from textwrap import wrap
from typing import Any

from fastneuron.descriptions import checked_number
from fastneuron.errors import BackendUnavailable, SpecError
from fastneuron.profiling import bias_figure
from fastneuron.profiling.bias_engine import BIAS, NONE, ONES
from fastneuron.profiling.bias_profile import BiasProfile, Comparison, profile
from fastneuron.profiling.bias_slots import FUSED_BIAS, SEPARATE_BIAS
from fastneuron.profiling.sections import Section, interval, to_html, to_text
from fastneuron.profiling.workload import Setting
from fastneuron.reports import table

__all__ = ["AXES", "BiasSweep", "bias_sweep"]

#: What a sweep may vary.
AXES = ("width", "batch", "depth", "threads", "dtype", "backend")
#: Times that each point is built anew: fewer than of a single profile, since there are more points.
SITTINGS = 9
_WIDTH = 80  # columns; of many axes the table shows fewer ratios, the JSON all of them
#: What is shown of each point: title, group, name, against.
_SHOWN = (
    ("bias / no bias", "engine", BIAS, NONE),
    ("separate / fused", "slots", SEPARATE_BIAS, FUSED_BIAS),
    ("ones / bias", "engine", ONES, BIAS),
)


@dataclass(frozen=True, repr=False)
class BiasSweep:
    """Profiles of many settings; print it, draw it with `figure`, or look into it.

    Attributes
    ----------
    axes : dict of str to tuple
        What was varied, the first slowest.
    points : tuple of BiasProfile or None
        One for each combination, in the order of the axes; None where it was skipped.
    skipped : dict of str to str
        Combination, as its values joined by commas, to the reason.
    seconds : float
        That the sweep took.
    """

    axes: dict[str, tuple[Any, ...]]
    points: tuple[BiasProfile | None, ...]
    skipped: dict[str, str]
    seconds: float

    @property
    def combinations(self) -> list[tuple[Any, ...]]:
        """The values of the axes at each point."""
        return list(product(*self.axes.values()))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; ``docs/profiling.md`` says what they are."""
        return {
            "profile": "bias sweep",
            "axes": {name: list(values) for name, values in self.axes.items()},
            "points": [
                {
                    "at": dict(zip(self.axes, values, strict=True)),
                    "found": None if point is None else point.to_json(),
                }
                for values, point in zip(self.combinations, self.points, strict=True)
            ],
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def figure(self) -> Any:
        """Return a heat map: the first axis down, all combinations of the others across.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        """
        names, values = list(self.axes), list(self.axes.values())
        across = [", ".join(map(str, rest)) for rest in product(*values[1:])]
        panels = {}
        for title, group, name, against in _SHOWN:
            found = [_ratio(point, group, name, against) for point in self.points]
            ratios = [None if row is None else row.ratio for row in found]
            width = len(across)
            panels[title] = [ratios[i : i + width] for i in range(0, len(ratios), width)]
        label = ", ".join(map(_unit, names[1:]))
        return bias_figure.heat_map(
            panels, [str(value) for value in values[0]], across, (_unit(names[0]), label)
        )

    def __str__(self) -> str:
        return to_text(self._sections())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return to_html(self._sections())

    def _sections(self) -> list[Section]:
        head, units = list(self.axes), [""] * len(self.axes)
        rows = [[str(value) for value in values] for values in self.combinations]
        for title, *which in _SHOWN:
            cells = [_percent(_ratio(point, *which)) for point in self.points]
            wider = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
            if len(head) > len(self.axes) and _width([*head, title], wider) > _WIDTH:
                break
            head, units, rows = [*head, title], [*units, "[%]"], wider
        notes = _wrapped(
            "bias / no bias and ones / bias: whole steps of the engine; separate / fused: steps of "
            "slots, with biases. =: no measurable difference, the interval holds 0."
        )
        first = next((point for point in self.points if point is not None), None)
        if first is not None:
            notes += _wrapped(f"First point: {first.setting.label}.")
        for where, why in self.skipped.items():
            notes += _wrapped(f"Not timed: {where}: {why}.")
        title = "What the bias costs, percent of a step [95 % interval]"
        return [Section(title, head, units, rows, notes)]


def bias_sweep(
    axes: Mapping[str, Sequence[Any]],
    layers: Sequence[int] = (784, 512, 512, 10),
    batch_size: int = 256,
    *,
    seconds: float = 120.0,
    seed: int = 0,
    say: Callable[[str], object] = lambda line: None,
    **setting: Any,
) -> BiasSweep:
    """Measure what the bias costs at every combination of some values.

    Parameters
    ----------
    axes : mapping of str to sequence
        What is varied: "width" (of all hidden layers), "batch", "depth" (hidden layers, as wide as
        the first of `layers`), "threads", "dtype" and "backend".
    layers, batch_size, **setting
        All that is not varied, as for `bias`.
    seconds : float
        For timing all points together; comparing with the reference comes on top.
    seed : int
    say : callable
        Told, in a line, which point comes next.

    Returns
    -------
    BiasSweep

    Raises
    ------
    SpecError, UnknownNameError
        Where an axis is unknown or empty, or a value cannot be.
    WrongResult
        Where a contestant computes something else; nothing is reported then.
    """
    start = time.perf_counter()
    unknown = [name for name in axes if name not in AXES]
    if unknown or not axes or not all(axes.values()):
        raise SpecError(
            f"a sweep needs values for one or more of {', '.join(AXES)}"
            + (f"; there is no {unknown[0]!r}" if unknown else "")
        )
    checked_number("sweep", "seconds", seconds, 0.0, open_low=True)
    varied = {name: tuple(values) for name, values in axes.items()}
    settings: list[Setting | BackendUnavailable] = []
    for values in product(*varied.values()):
        # All of them before the first is timed: what cannot be is said at once.
        try:
            chosen = _placed(dict(zip(varied, values, strict=True)), layers, batch_size, setting)
            settings.append(chosen)
        except BackendUnavailable as error:
            settings.append(error)
    points: list[BiasProfile | None] = []
    skipped = {}
    for i, (values, one) in enumerate(zip(product(*varied.values()), settings, strict=True), 1):
        if isinstance(one, BackendUnavailable):
            skipped[", ".join(map(str, values))] = str(one)
            points.append(None)
            continue
        say(f"{i} of {len(settings)}: {one.label}")
        share = seconds / len(settings)
        points.append(profile(one, share, split=False, seed=seed, sittings=SITTINGS))
    return BiasSweep(varied, tuple(points), skipped, time.perf_counter() - start)


def _placed(
    at: dict[str, Any], layers: Sequence[int], batch_size: int, others: dict[str, Any]
) -> Setting:
    """Return the setting of one point."""
    inputs, *hidden, outputs = layers
    if ("width" in at or "depth" in at) and not hidden:
        raise SpecError("width and depth are of hidden layers; give layers some: 784,512,10")
    width = at.get("width")
    depth = at.get("depth", len(hidden))
    if width is not None:
        hidden = [width] * depth
    elif "depth" in at:
        hidden = [hidden[0]] * depth
    named = {"threads": "n_threads", "dtype": "dtype", "backend": "backend"}
    given = {named[name]: value for name, value in at.items() if name in named}
    return Setting.checked(
        (inputs, *hidden, outputs), at.get("batch", batch_size), **{**others, **given}
    )


def _ratio(point: BiasProfile | None, group: str, name: str, against: str) -> Comparison | None:
    if point is None:
        return None
    wanted = (group, name, against)
    return next((r for r in point.comparisons if (r.group, r.name, r.against) == wanted), None)


def _width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return max(map(len, table(head, rows)))


def _wrapped(text: str) -> list[str]:
    return wrap(text, _WIDTH, break_on_hyphens=False)


def _percent(row: Comparison | None) -> str:
    if row is None:
        return "-"
    value, low, high = (100 * (r - 1) for r in (row.ratio.value, row.ratio.low, row.ratio.high))
    return interval(value, low, high, most=1) + ("  " if row.ratio.differs else " =")


def _unit(name: str) -> str:
    units = {"width": "neurons", "batch": "rows", "depth": "hidden layers", "threads": "count"}
    return f"{name} ({units[name]})" if name in units else name
