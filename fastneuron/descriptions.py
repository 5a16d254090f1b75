"""Closed JSON descriptions of frozen dataclasses, and the checks of the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from fastneuron.errors import SpecError
from fastneuron.registry import Registry

__all__ = ["checked_count", "checked_number", "from_description", "to_description"]

# An optimizer, its schedule and the schedule within that are three levels; files may be hostile.
_MAX_DEPTH = 8

Described = TypeVar("Described")


def to_description(item: Any, kind: str) -> dict[str, Any]:
    """Return {"kind": kind, field: value, ...} of a dataclass; a field with a `to_json` by that."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return {"kind": kind} | {
        name: value.to_json() if hasattr(value, "to_json") else value
        for name, value in values.items()
    }


def from_description(
    registry: Registry[type[Described]],
    description: object,
    nested: Registry[type[Any]],
    depth: int = 0,
) -> Described:
    """Rebuild what `to_description` described: a class of `registry`, its parts of `nested`.

    Raises
    ------
    SpecError
        Where the description lacks a field, has one too many, or a field has a bad value.
    UnknownNameError
        Where its kind is not in the registry.
    """
    what = registry.kind
    if depth > _MAX_DEPTH:
        raise SpecError(f"{what}: the description is nested too deeply")
    if not isinstance(description, Mapping) or not isinstance(description.get("kind"), str):
        raise SpecError(
            f"{what}: a description is an object with a 'kind', got {type(description).__name__}"
        )
    cls: Any = registry[description["kind"]]
    wanted = {field.name for field in fields(cls)} | {"kind"}
    if set(description) != wanted:
        odd = ", ".join(sorted(map(repr, set(description) ^ wanted)))
        raise SpecError(f"{what} {description['kind']!r}: missing or unknown keys {odd:.200}")
    arguments = {
        name: from_description(nested, value, nested, depth + 1)
        if isinstance(value, Mapping)
        else value
        for name, value in description.items()
        if name != "kind"
    }
    item: Described = cls(**arguments)
    return item


def checked_number(
    owner: str,
    name: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return `value` as a float within the interval; otherwise a SpecError that names it.

    The interval has both its ends unless `open_low` or `open_high` leaves one out. An empty `owner`
    stands for an argument that belongs to no class.
    """
    where = f"{owner}: {name}" if owner else name
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SpecError(f"{where} must be a number, got {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64
        number = math.inf
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        lowest = f"above {low:g}" if open_low else f"at least {low:g}"
        highest = "" if high == math.inf else f" and {'below' if open_high else 'at most'} {high:g}"
        raise SpecError(f"{where} must be finite, {lowest}{highest}, got {number:g}")
    return number


def checked_count(owner: str, name: str, value: object) -> int:
    """Return `value` as an int of at least 1; otherwise a SpecError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SpecError(f"{owner}: {name} must be a whole number, got {value!r:.80}")
    if not 1 <= value < 2**53:
        raise SpecError(f"{owner}: {name} must be from 1 to 2**53, got {value!r:.80}")
    return int(value)
