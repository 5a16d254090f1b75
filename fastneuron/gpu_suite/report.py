"""What is printed and what is written: a table of at most 80 columns, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

from fastneuron.gpu_suite.running import Finding

__all__ = ["FORMAT", "WIDTH", "head", "line", "result", "tables", "wrapped", "write"]

#: Of the JSON; a change of what is there raises it.
FORMAT = 1
WIDTH = 80
_NAME, _STATUS, _SECONDS = 18, 13, 7


def head(card: Mapping[str, Any], versions: Mapping[str, str | None]) -> list[str]:
    """Return the lines that say where this runs."""
    lines = []
    if card.get("simulated"):
        lines += _item("card", "none: SIMULATED, so that no time here means anything")
    else:
        size, cores = card["bytes"] / 2**30, card["multiprocessors"]
        capability = f"{card['major']}.{card['minor']}"
        what = f"{card['name']}, {size:.1f} GiB, {cores} multiprocessors, capability {capability}"
        lines += _item("card", what)
        lines += _item("driver", f"{card['driver'] or 'release unknown'}, CUDA {card['cuda']}")
    lines += _item("versions", ", ".join(f"{k} {v or 'missing'}" for k, v in versions.items()))
    title = f"{'stage':{_NAME}} {'result':{_STATUS}} {'s':>{_SECONDS}}  what was found"
    return [*lines, "", title]


def wrapped(text: str) -> list[str]:
    """Return a text in lines."""
    return wrap(text, WIDTH)


def _item(name: str, text: str) -> list[str]:
    return _hung(f"{name:10}", text)


def _hung(start: str, text: str) -> list[str]:
    """Return text whose lines begin behind `start`."""
    room = WIDTH - len(start)
    lines = wrap(" ".join(text.split()), room, break_long_words=True) or [""]
    return [(start if i == 0 else " " * len(start)) + part for i, part in enumerate(lines)]


def line(finding: Finding) -> list[str]:
    """Return the lines of a stage."""
    start = f"{finding.stage:{_NAME}} {finding.status:{_STATUS}} {finding.seconds:{_SECONDS}.1f}  "
    if len(start) > _NAME + _STATUS + _SECONDS + 4:  # a long name has a line of its own
        start = f"{'':{_NAME}} {finding.status:{_STATUS}} {finding.seconds:{_SECONDS}.1f}  "
        return [f"{finding.stage:.{WIDTH}}", *_hung(start, finding.said)]
    return _hung(start, finding.said)


def tables(findings: Sequence[Finding]) -> list[str]:
    """Return the tables: named checks; constants, measured and in use; who was timed."""
    lines: list[str] = []
    for finding in findings:
        found = finding.details
        if "each" in found:
            lines += ["", finding.stage, *_each(found["each"])]
        if "costs" in found:
            lines += ["", *_costs(finding)]
        if "contestants" not in found:
            continue
        lines += ["", *wrapped(found["workload"])]
        lines.append(f"  {'':18} {'us a step':>11} {'x ours':>7} {'start s':>8}  clock, or why not")
        ours = found["contestants"].get(found["fastest_of_ours"], {}).get("step_seconds")
        for name, entry in found["contestants"].items():
            if "step_seconds" not in entry:
                lines += _hung(f"  {name:18} {'-':>11} {'':7} {'':8}  ", _why(entry))
                continue
            step = entry["step_seconds"]
            times = f"{step / ours:.2f}" if ours else "-"
            figures = f"{step * 1e6:11.4g} {times:>7} {entry['start_seconds']:8.1f}"
            lines += _hung(f"  {name:18} {figures}  ", entry["clock"])
        for name, entry in found["contestants"].items():
            if entry.get("predicted_seconds"):
                step, said = entry["step_seconds"], entry["predicted_seconds"]
                text = f"{said * 1e6:.4g} us predicted, {said / step:.2f} of what was measured"
                lines += _hung(f"  {name:18} ", text)
    return lines


def _each(checks: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line a check."""
    lines = []
    for name, entry in checks.items():
        text = f"{name}: {entry['said']}" if entry["said"] else name
        lines += _hung(f"  {entry['status']:{_STATUS}} ", text)
    return lines


def _costs(finding: Finding) -> list[str]:
    """Return the table of constants of the cost model."""
    title = f"{finding.stage}: the constants of kernels/device_cost.py"
    if finding.details["simulated"]:
        title += " (SIMULATED: no figure means anything)"
    lines = [*wrapped(title), f"  {'':14} {'in use':>10} {'measured':>10}  {'':4} how"]
    for name, entry in finding.details["costs"].items():
        measured = f"{entry['measured']:.3g}" if "measured" in entry else "-"
        how = entry["how"] if "measured" in entry else entry["said"]
        start = f"  {name:14} {entry['in_use']:10.3g} {measured:>10}  {entry['unit']:4} "
        lines += _hung(start, how)
    return lines


def _why(entry: Mapping[str, Any]) -> str:
    return f"{entry['status']}: {entry['said']}" if entry["said"] else str(entry["status"])


def result(
    findings: Sequence[Finding],
    card: Mapping[str, Any],
    versions: Mapping[str, str | None],
    *,
    budget: float,
    seconds: float,
    code: int,
) -> dict[str, Any]:
    """Return all that was found as plain values."""
    return {
        "format": FORMAT,
        "simulated": bool(card.get("simulated")),
        "budget_seconds": budget,
        "seconds": seconds,
        "exit_code": code,
        "card": dict(card),
        "versions": dict(versions),
        "stages": [asdict(finding) for finding in findings],
    }


def write(folder: Path, found: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write ``gpu_suite.json`` and the printed lines, ``gpu_suite.txt``, to a folder.

    A file is there as a whole or not at all, whatever ends this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "gpu_suite.json": json.dumps(_plain(found), indent=1, allow_nan=False) + "\n",
        "gpu_suite.txt": "\n".join(lines) + "\n",
    }
    for name, text in texts.items():
        new = folder / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(folder / name)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, which knows neither NaN nor infinities: those are null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
