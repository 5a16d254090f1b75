"""Tables for people: the same sections as aligned text and as HTML, digits as many as are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fastneuron.reports import table

__all__ = ["Section", "interval", "microseconds", "to_html", "to_text"]


@dataclass(frozen=True)
class Section:
    """A titled table with lines below it.

    Attributes
    ----------
    title : str
    head, units : sequence of str
        Names of the columns, and their units in a line of its own; none where there is no table.
    rows : sequence of sequences of str
    notes : sequence of str
        At most 80 characters each.
    """

    title: str
    head: Sequence[str] = ()
    units: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


def to_text(sections: Sequence[Section]) -> str:
    """Return sections as lines."""
    blocks = []
    for section in sections:
        lines = [section.title] if section.title else []
        if section.rows:
            lines += table(section.head, [section.units, *section.rows])
        blocks.append("\n".join([*lines, *section.notes]))
    return "\n\n".join(blocks)


def to_html(sections: Sequence[Section]) -> str:
    """Return sections as HTML, for notebooks; colours are the notebook's own."""
    parts = []
    for section in sections:
        if section.title:
            parts.append(f"<p><b>{escape(section.title)}</b></p>")
        if section.rows:
            head = "".join(
                f"<th>{escape(name)}<br>{escape(unit)}</th>"
                for name, unit in zip(section.head, section.units, strict=True)
            )
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                for row in section.rows
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        parts += [f"<p>{escape(note)}</p>" for note in section.notes]
    return "".join(parts)


def _decimals(width: float) -> int:
    """Return the decimals that say something of a number known to within `width`."""
    if not width > 0 or not math.isfinite(width):
        return 3
    # Two digits of the width where it begins with 1 or 2, else one.
    return max(0, math.ceil(-math.log10(width) + math.log10(3)))


def interval(value: float, low: float, high: float, most: int = 4) -> str:
    """Return ``value [low, high]`` with the digits that the interval leaves meaningful."""
    decimals = min(most, _decimals((high - low) / 2))
    # Adding 0 turns a -0 into 0.
    shown = [f"{round(number, decimals) + 0.0:.{decimals}f}" for number in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def microseconds(seconds: float) -> str:
    """Return seconds as microseconds, two digits."""
    value = 1e6 * seconds
    if value == 0:
        return "0"
    decimals = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 4)}f}"
