"""A step profile for people: a table of at most 80 columns, and its HTML."""

from __future__ import annotations

import html as escaping

from fastneuron.plans import duration
from fastneuron.profiling.step_profile import Part, StepProfile

__all__ = ["html", "table"]

_HEADER = (
    "part", "layer", "time/us", "share/%", "GFLOP/s", "GB/s", "ceiling/%", "busiest",
)  # fmt: skip


def table(profile: StepProfile) -> list[str]:
    """Return the lines of a profile."""
    lines = [*_summary(profile), "", _row(_HEADER)]
    lines += [_row(_cells(part, profile)) for part in profile.parts]
    lines.append(_row(("sum", "", _micro(profile.marked_seconds), "100", "", "", "", "")))
    return lines


def html(profile: StepProfile) -> str:
    """Return the profile as a table for a notebook."""
    head = "".join(f"<th>{escaping.escape(cell)}</th>" for cell in _HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaping.escape(cell)}</td>" for cell in _cells(part, profile))
        + "</tr>"
        for part in profile.parts
    )  # fmt: skip
    said = "<br>".join(map(escaping.escape, _summary(profile)))
    return f"<p>{said}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _summary(profile: StepProfile) -> list[str]:
    threads = f"{profile.threads} thread{'s' * (profile.threads > 1)}"
    peak = profile.ceilings.gflops[profile.dtype]
    return [
        f"{profile.network}, batch {profile.batch_size}, {profile.dtype}, {profile.backend}, "
        f"{threads}",
        f"step {duration(profile.seconds)}; with marks {profile.slowdown} times that; "
        f"{profile.steps:,} steps",
        f"ceiling {peak:.0f} GFLOP/s; Python allocated {profile.allocations:,} bytes at most in a "
        "call",
    ]


def _cells(part: Part, profile: StepProfile) -> tuple[str, ...]:
    efficiency = part.efficiency
    return (
        part.name,
        "" if part.layer is None else str(part.layer),
        _micro(part.seconds),
        f"{100 * part.seconds / profile.marked_seconds:.1f}",
        f"{part.gflops:.0f}" if part.work.multiply_adds else "",
        f"{part.gbytes:.1f}" if part.work.moved else "",
        "" if efficiency is None else f"{100 * efficiency:.0f}",
        f"{part.imbalance:.2f}" if profile.threads > 1 else "",
    )


def _micro(seconds: float) -> str:
    value = 1e6 * seconds
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _row(cells: tuple[str, ...]) -> str:
    widths = (10, 5, 9, 8, 8, 7, 10, 8)
    first = f"{cells[0]:<{widths[0]}}"
    return (
        first + "".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
    ).rstrip()
