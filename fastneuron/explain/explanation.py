"""What a topic answers with: lines to read, values to check, figures to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Explanation", "Topic", "table"]


@dataclass(frozen=True)
class Explanation:
    """One topic, computed.

    Attributes
    ----------
    lines : tuple of str
        The text, each line at most 80 characters.
    values : dict
        The numbers of the text and more, at full precision, ready for JSON.
    figures : callable
        () -> matplotlib figures by name; empty for a topic without any. Needs matplotlib.
    topic, title, backend : str
        What was asked, and the backend that computed it.
    """

    lines: tuple[str, ...]
    values: dict[str, Any]
    figures: Callable[[], dict[str, Any]] = dict
    topic: str = ""
    title: str = ""
    backend: str = ""


@dataclass(frozen=True)
class Topic:
    """One entry of the table of topics.

    Attributes
    ----------
    title : str
        What it answers, in one line.
    compute : callable
        () -> Explanation, on the backend that "auto" means when it is called.
    """

    title: str
    compute: Callable[[], Explanation]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column to the right, indented by two."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
