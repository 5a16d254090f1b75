"""A step profile as a picture: what each part takes, beside what it would take at the ceiling."""

from __future__ import annotations

from typing import Any

from fastneuron.plots import COLOURS, INK, dress, sheet
from fastneuron.profiling.step_profile import StepProfile

__all__ = ["figure"]


def figure(profile: StepProfile) -> Any:
    """Return a matplotlib figure of a step's parts; needs the extra ``plots``."""
    parts = profile.parts[::-1]
    drawn, grid = sheet((8.0, 1.6 + 0.27 * len(parts)), 1, 1)
    axes = grid[0][0]
    names = [part.name + ("" if part.layer is None else f" {part.layer}") for part in parts]
    rows = range(len(parts))
    axes.barh(rows, [1e6 * part.seconds for part in parts], color=COLOURS[0], label="measured")
    floors = [(row, 1e6 * part.floor) for row, part in zip(rows, parts, strict=True) if part.floor]
    axes.barh(
        [row for row, _ in floors],
        [floor for _, floor in floors],
        height=0.3,
        color=COLOURS[1],
        label="at this machine's ceilings",
    )
    axes.set_yticks(rows, names)
    threads = f"{profile.threads} thread{'s' * (profile.threads > 1)}"
    title = f"{profile.network}, batch {profile.batch_size}, {profile.backend}, {threads}"
    dress(axes, "time of a step (us)", "", title)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    return drawn
