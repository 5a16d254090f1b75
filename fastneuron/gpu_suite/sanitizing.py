"""The suite's own checks on small shapes, once more under compute-sanitizer."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fastneuron.gpu_suite.card import tool
from fastneuron.gpu_suite.parts import Suite, printed_by, start, wait
from fastneuron.gpu_suite.running import OK, SKIPPED, WRONG, Budget, Finding

__all__ = ["TOOLS", "sanitize"]

#: Accesses out of bounds or of what was never allocated; races in shared memory.
TOOLS = ("memcheck", "racecheck")
#: What the sanitizer says on machines whose runtime does not let it near the card.
_REFUSED = ("Device not supported", "Unable to find injection library")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def sanitize(name: str, kind: str, budget: Budget, program: str | None = None) -> Finding:
    """Run this suite's checks of slots, networks and ensembles under a tool of compute-sanitizer.

    Parameters
    ----------
    name : {"memcheck", "racecheck"}
    kind : str
        The engine.
    budget : Budget
        What has found nothing at its end is cut off.
    program : str, optional
        Where compute-sanitizer is.
    """
    program = program or tool("compute-sanitizer")
    if program is None:
        said = "compute-sanitizer is not found: it comes with the CUDA toolkit"
        return Finding("", SKIPPED, said)
    suite = Suite("slots", kind, ("--small", "--only", "networks", "--only", "ensembles"))
    with TemporaryDirectory() as folder:
        place = Path(folder, "suite")
        command = [program, "--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
        process = start([*command, *suite.command(budget.left, place)], printed_by(place))
        code = wait(process, budget)
        printed = printed_by(place).read_text(encoding="utf-8", errors="replace")
    summary = _SUMMARY.findall(printed)
    details = {"code": code, "printed": printed[-4000:]}
    if any(words in printed for words in _REFUSED):
        return Finding("", SKIPPED, "compute-sanitizer cannot reach this card", 0.0, details)
    found = int(summary[-1]) if summary else 0
    if code == 0 and summary and not found:
        return Finding("", OK, f"{name} found nothing", 0.0, details)
    said = f"{name} found {found} errors" if found else f"{name} ended with {code}"
    return Finding("", WRONG, said, 0.0, details)
