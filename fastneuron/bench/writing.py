"""How numbers are written: no more digits than were measured."""

from __future__ import annotations

from math import floor, log10
from textwrap import wrap

__all__ = ["WIDTH", "digits", "lines", "located"]

WIDTH = 80  # columns


def digits(value: float | None, count: int = 3) -> str:
    """Return so many digits of a number, written out: what a repeated run would confirm."""
    if value is None:
        return "-"
    rounded = float(f"{value:.{count}g}")
    size = abs(rounded)
    whole = 1
    while size >= 10**whole:
        whole += 1
    places = max(0, count - whole)
    while size and size < 1 and size < 10 ** -(places - count + 1):
        places += 1
    return f"{rounded:.{places}f}"


def located(value: float, low: float, high: float) -> tuple[str, str, str]:
    """Return a number above 0 and its interval, all to the place that the interval decides on.

    That is the first digit of half its width; two digits of the number at least, three at most.
    """
    first = floor(log10(value))
    apart = (high - low) / 2
    count = min(3, max(2, first - floor(log10(apart)) + 1)) if apart > 0 else 3
    places = count - 1 - floor(log10(float(f"{value:.{count - 1}e}")))
    one, least, most = (f"{round(x, places):.{max(0, places)}f}" for x in (value, low, high))
    return one, least, most


def lines(text: str, indent: str = "") -> list[str]:
    """Return the text in lines of the width, those after the first further in."""
    return wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
