"""Checks shared among processes on one card: compiling kernels takes longer than running them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastneuron.gpu_suite.running import Budget, Finding, OutOfTime, summed

__all__ = ["Suite", "in_parts", "printed_by", "start", "wait"]

#: Seconds before the end of the budget by which a suite that was started by this one ends itself.
AHEAD = 5.0


@dataclass(frozen=True)
class Suite:
    """The command of another suite, for one stage of one engine.

    Attributes
    ----------
    stage, engine : str
    options : sequence of str
        As this one's.
    """

    stage: str
    engine: str
    options: Sequence[str] = ()

    def command(self, seconds: float, out: Path, *more: str) -> list[str]:
        """Return its words."""
        return [
            *(sys.executable, "-m", "fastneuron.gpu_suite", "--jobs", "1"),
            *("--only", self.stage, "--engine", self.engine, *self.options, *more),
            *("--budget", f"{max(seconds - AHEAD, 1):.1f}", "--out", str(out)),
        ]


def in_parts(suite: Suite, jobs: int, budget: Budget) -> Finding:
    """Run a stage's checks in so many processes; what is common to all details stays a list."""
    with TemporaryDirectory() as folder:
        places = [Path(folder, str(i)) for i in range(jobs)]
        started = [
            start(suite.command(budget.left, place, "--part", f"{i}/{jobs}"), printed_by(place))
            for i, place in enumerate(places)
        ]
        try:
            codes = [wait(process, budget) for process in started]
        finally:
            for process in started:
                end(process)
        parts = [_details(place, code) for place, code in zip(places, codes, strict=True)]
    found = summed(parts)
    idle = [set(part.get("unlaunched", ())) for part in parts]
    found.details["unlaunched"] = sorted(set.intersection(*idle))
    return found


def printed_by(place: Path) -> Path:
    """Return where what a suite prints goes that leaves its results in `place`."""
    return place.with_suffix(".txt")


def start(command: Sequence[str], printed: Path) -> subprocess.Popen[bytes]:
    """Start a program that leads a session; all that it prints goes to a file."""
    with printed.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait(process: subprocess.Popen[bytes], budget: Budget) -> int:
    """Return how a process ended, or end it with the budget and raise OutOfTime."""
    try:
        return process.wait(max(budget.left, 1))
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all of that, where it has not ended."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _details(place: Path, code: int) -> Mapping[str, Any]:
    """Return what a part found; that it left nothing is wrong."""
    printed = printed_by(place).read_text(encoding="utf-8", errors="replace")
    try:
        text = (place / "gpu_suite.json").read_text(encoding="utf-8")
        (stage,) = json.loads(text)["stages"]
        details: dict[str, Any] = stage["details"]
        if "checks" in details:
            return details
        last = stage["said"]
    except (OSError, ValueError):
        last = (printed.strip().splitlines() or ["it printed nothing"])[-1]
    said = f"it ended with {code}: {last}"
    wrong = [{"check": f"part {place.name}", "said": said, "traceback": printed[-4000:]}]
    return {"checks": 1, "of": 1, "worst": 0.0, "worst_at": "", "wrong": wrong}
