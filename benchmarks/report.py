"""The table of a run, in lines of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from fastneuron.peers.roster import PEERS


def number(value: float | None, pattern: str = "") -> str:
    if value is None:
        return "-"
    if pattern:
        return format(value, pattern)
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def cell(peer: dict[str, Any]) -> str:
    words = {"wrong": "WRONG", "unsupported": "n/a"}
    status = peer["status"]
    return number(peer["microseconds"]) if status == "ok" else words.get(status, status)


def matrix(names: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines of each row's microseconds by peer, under the peers' names."""
    heads = [name.replace("fastneuron-", "f-") for name in names]
    widths = [max(10, len(head) + 1) for head in heads]
    label = max(map(len, rows), default=0)
    lines = [" " * label + "".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
    for row, peers in rows.items():
        cells = [cell(peers[name]) if name in peers else "missing" for name in names]
        of_row = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{row:{label}}{of_row}")
    return lines


def table(run: dict[str, Any], single: dict[str, Any] | None = None) -> list[str]:
    """Return a run as lines of at most 100 columns; `single` is the run on one core, if any."""
    cores = run["cores"]
    if "skipped" in run:
        return [f"{cores} core{'s' * (cores > 1)}: not measured, {run['skipped']}"]
    peaks = run["peak_gflops_a_core"].items()
    peak = ", ".join(f"{d} {number(p, '.1f')}" for d, p in peaks)
    lines = [f"{cores} core{'s' * (cores > 1)}, FMA peak a core in GFLOP/s: {peak}", ""]
    head = f"{'':2} {'step':35}{'floor us':>10}{'ours us':>10}{'effic.':>8}{'goal':>6}"
    lines.append(f"{head}{'best peer':>15}{'ratio':>7}" + ("   1:n" if single else ""))
    notes = [f"{name}: missing: {reason}" for name, reason in run["missing"].items()]
    for i, row in enumerate(run["rows"], 1):
        ours = row["peers"].get("fastneuron-numba", {}).get("microseconds")
        line = (
            f"{i:2} {row['row'][:34]:35}{number(row['floor_microseconds']):>10}{number(ours):>10}"
            f"{number(row['efficiency'], '.3f'):>8}{number(row['goal'], '.2f'):>6}"
            f"{row['best_peer'] or '-':>15}{number(row['ratio_to_best_peer'], '.2f'):>7}"
        )
        if single:  # how many times faster than on one core
            alone = single["rows"][i - 1]["peers"].get("fastneuron-numba", {}).get("microseconds")
            line += f"{number(alone / ours if alone and ours else None, '.2f'):>6}"
        lines.append(line)
        for name, peer in row["peers"].items():
            if "reason" in peer:
                notes.append(f"{name}, row {i}: {peer['status']}: {peer['reason']}")
    names = [name for name in PEERS if name in run["versions"] or name in run["missing"]]
    lines += ["", "microseconds a step (median)"]
    rows = {f"{i:2} ": row["peers"] for i, row in enumerate(run["rows"], 1)}
    lines += matrix(names, rows)
    for note in notes:
        lines += wrap(note, 100, subsequent_indent="    ")
    return lines
