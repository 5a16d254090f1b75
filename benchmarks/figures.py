"""What `ratios.py` finds: single figures with their goals, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
from report import number


@dataclass(frozen=True)
class Goal:
    """What is asked of a figure; a goal without a bound asks for nothing."""

    bound: float | None = None
    least: bool = False

    def __str__(self) -> str:
        return "-" if self.bound is None else f"{'>=' if self.least else '<='} {self.bound:g}"

    def met(self, value: float) -> bool | None:
        if self.bound is None:
            return None
        return bool(value >= self.bound if self.least else value <= self.bound)


def at_most(bound: float | None) -> Goal:
    return Goal(bound)


def at_least(bound: float | None) -> Goal:
    return Goal(bound, least=True)


@dataclass(frozen=True)
class Figure:
    """One measured figure, or why there is none.

    Attributes
    ----------
    what : what was measured, in some 50 characters
    value : in `unit`, which is empty for ratios and efficiencies
    status : "ok", "missing" (cannot be measured here), "failed" or "wrong"
    detail : what the value was made of
    """

    what: str
    value: float | None
    unit: str = ""
    goal: Goal = Goal()
    status: str = "ok"
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        met = None if self.value is None else self.goal.met(self.value)
        return asdict(self) | {"goal": str(self.goal), "met": met}


def unmeasured(what: str, peer: dict[str, Any], goal: Goal = Goal(), unit: str = "") -> Figure:
    """Return the figure of a result that has none: it was wrong, or failed."""
    return Figure(what, None, unit, goal, peer["status"], peer["reason"])


def paired_ratio(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, list[float]]:
    """Return median and quartiles of `one` over `other`, round by round.

    Both met the same conditions in a round: what changes from round to round drops out.
    """
    shares = np.divide(one["each_round"], other["each_round"])
    low, middle, high = np.percentile(shares, (25, 50, 75))
    return float(middle), [float(low), float(high)]


def quotient(
    what: str, results: Mapping[str, dict[str, Any]], one: str, other: str, goal: Goal = Goal()
) -> Figure:
    """Return how many times `other`'s time `one` takes, both of one race, or why nobody knows."""
    for name in (other, one):
        if "reason" in results[name]:
            return unmeasured(what, results[name], goal)
    ratio, quartiles = paired_ratio(results[one], results[other])
    detail = {other: results[other], one: results[one], "quartiles": quartiles}
    return Figure(what, ratio, "", goal, detail=detail)


def table(part: str, run: dict[str, Any]) -> list[str]:
    """Return a part's figures as lines of at most 100 columns."""
    cores = run["cores"]
    peaks = (run.get("peak_gflops_a_core") or {}).items()
    peak = "".join(
        f", {dtype} peak {number(value, '.1f')} GFLOP/s a core" for dtype, value in peaks
    )
    lines = [f"{part}: {cores} core{'s' * (cores > 1)}{peak}"]
    if "skipped" in run:
        lines.append(f"   not measured: {run['skipped']}")
    lines += [f"   {line}".rstrip() for line in run.get("lines", [])]
    words = {True: "met", False: "missed", None: ""}
    for figure in run.get("figures", []):
        value = figure["status"] if figure["value"] is None else number(figure["value"], ".3f")
        value = {"wrong": "WRONG", "missing": "n/a", "unsupported": "n/a"}.get(value, value)
        lines.append(
            f"   {figure['what'][:62]:62}{value:>10} {figure['unit']:3}{figure['goal']:>9}"
            f"  {words[figure['met']]}".rstrip()
        )
        if figure["reason"]:
            lines += wrap(figure["reason"], 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def faulty(run: dict[str, Any]) -> bool:
    """Whether a figure was wrong or could not be measured though it can be here."""
    statuses = [figure["status"] for figure in run.get("figures", [])]
    return "skipped" in run or "wrong" in statuses or "failed" in statuses


def report(figures: Sequence[Figure], **more: Any) -> dict[str, Any]:
    return {"figures": [figure.to_json() for figure in figures], **more}
