"""Networks that are in no table: a seeded sample of widths, depths and batches, against the peers.

``python benchmarks/sweep.py --help``; README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measure the clone it lies in

from peak import try_peak
from pinned import machine, run_pinned, teller, usable_cores, write_json
from points import CORNERS, Limits, draw_points
from racing import Say, faults, judged, measure_row
from report import number

from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Row, parse_rows
from fastneuron.peers.roster import PEERS, parse_peers

#: Who was the fastest other library wherever all were measured.
BEST_PEERS = ["fastneuron-numba", "torch", "jax-scan"]
#: Ratio to the best peer that every row of the engine's table is asked for.
CLEAR = 1.15
FIRST = Row.parse("2-3-1 b2 sgd")
QUANTILES = (0, 10, 25, 50, 75, 90, 100)


class Starts:
    """What starting a peer (compiling, mostly) cost so far; says where it would cost too much."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._pace: dict[str, float] = {}

    def refusal(self, kind: type[Peer], row: Row) -> str:
        """Return why the peer is not started on this row, or nothing."""
        expected = self._pace.get(kind.name, 0.0) * self._size(row)
        if expected <= self.limit:
            return ""
        return f"would start in some {expected:.0f} s, --start-seconds is {self.limit:g}"

    def learn(self, row: Row, peers: dict[str, dict[str, Any]]) -> None:
        for name, peer in peers.items():
            pace = peer.get("start_seconds", 0.0) / self._size(row)
            self._pace[name] = max(self._pace.get(name, 0.0), pace)

    @staticmethod
    def _size(row: Row) -> int:
        """Layers, and as many as the smallest program costs beside them (4 with XLA)."""
        return len(row.sizes) + 3


def measure_point(
    row: Row, kinds: Sequence[type[Peer]], cores: int, seconds: float, starts: Starts, say: Say
) -> dict[str, dict[str, Any]]:
    """Return a point's results by peer; one whose start does not fit says so."""
    refused = {kind.name: reason for kind in kinds if (reason := starts.refusal(kind, row))}
    found = measure_row(
        row, [kind for kind in kinds if kind.name not in refused], cores, seconds, say
    )
    starts.learn(row, found)
    skipped = {name: {"status": "skipped", "reason": why} for name, why in refused.items()}
    return {kind.name: (found | skipped)[kind.name] for kind in kinds}


HEAD = f"{'':3} {'step':43}{'ours us':>10}{'effic.':>7}{'best peer':>14}{'its us':>10}{'ratio':>8}"


def lines_of(i: int, row: dict[str, Any]) -> list[str]:
    """Return a point as lines of at most 100 columns: its figures, then who was not measured."""
    ours = row["peers"].get("fastneuron-numba", {}).get("microseconds")
    its = row["peers"][row["best_peer"]]["microseconds"] if row["best_peer"] else None
    figures = (
        f"{number(ours):>10}{number(row['efficiency'], '.3f'):>7}{row['best_peer'] or '-':>14}"
        f"{number(its):>10}{number(row['ratio_to_best_peer'], '.2f'):>8}"
    )
    *before, last = wrap(row["row"], 42, break_on_hyphens=True)
    lines = [f"{i if k == 0 else '':>3} {part}" for k, part in enumerate(before)]
    lines.append(f"{i if not before else '':>3} {last:43}{figures}")
    for name, peer in row["peers"].items():
        if "reason" in peer and peer["status"] != "unsupported":
            note = f"{name}: {peer['status']}: {peer['reason']}"
            lines += wrap(note, 100, initial_indent="    ", subsequent_indent="      ")
    return lines


def rows_of(options: argparse.Namespace) -> list[Row]:
    if options.rows:
        return list(options.rows)
    limits = Limits(work=options.work)
    corners = [row for row in CORNERS if limits.allow(row)] if options.corners else []
    return corners + list(draw_points(options.seed, options.points, limits))


def measure(options: argparse.Namespace, cores: int, say: Say) -> dict[str, Any]:
    """Do one run on the cores that this process may use; print and keep point after point."""
    begun = time.monotonic()
    kinds = [PEERS[name] for name in options.peers]
    missing = {kind.name: reason for kind in kinds if (reason := kind.missing())}
    present = [kind for kind in kinds if kind.name not in missing]
    measure_row(FIRST, present, cores, 0.001, say)  # what loading a library costs is not a start
    peak = try_peak("float32")
    starts = Starts(options.start_seconds)
    rows = rows_of(options)
    run: dict[str, Any] = {
        "cores": cores,
        "pinned_to": usable_cores(),
        "versions": {kind.name: kind.version() for kind in present},
        "missing": missing,
        "not_measured": [],
        "rows": [],
    }
    print(
        f"{cores} core{'s' * (cores > 1)}, {len(rows)} points, "
        f"FMA peak a core in GFLOP/s: {number(peak, '.1f')}\n\n{HEAD}",
        flush=True,
    )
    for i, row in enumerate(rows, 1):
        if time.monotonic() - begun > 60 * options.minutes:
            run["not_measured"] = [late.label for late in rows[i - 1 :]]
            break
        peers = measure_point(row, present, cores, options.seconds, starts, say)
        peak = max(peak or 0, try_peak("float32", 3) or 0) or None
        run["peak_gflops_a_core"] = {"float32": peak}
        run["rows"].append(judged(row, peers, peak, cores))
        say("")
        print("\n".join(lines_of(i, run["rows"][-1])), flush=True)
        write_json(options.json, run)
    write_json(options.json, run)
    return run


def summary(run: dict[str, Any], minutes: float) -> tuple[dict[str, Any], list[str]]:
    """Return what the sweep says as a whole, as data and in lines of at most 100 columns."""
    rows = run.get("rows", [])
    known = [(row["ratio_to_best_peer"], row["row"], row["best_peer"]) for row in rows]
    ratios = sorted((ratio, row, peer) for ratio, row, peer in known if ratio is not None)
    below = [entry for entry in ratios if entry[0] < CLEAR]
    slower = [entry for entry in below if entry[0] < 1]
    data: dict[str, Any] = {"points": len(rows), "compared": len(ratios), "slower": len(slower)}
    data[f"below_{CLEAR}"] = [{"row": row, "best_peer": p, "ratio": r} for r, row, p in below]
    lines = [""]
    if "skipped" in run:
        lines.append(f"{run['cores']} core(s): {run['skipped']}")
    if ratios:
        values = np.percentile([ratio for ratio, _, _ in ratios], QUANTILES)
        data["ratio_quantiles"] = dict(zip(map(str, QUANTILES), values.tolist(), strict=True))
        cells = [f"{q} %: {value:.2f}" for q, value in zip(QUANTILES, values, strict=True)]
        lines.append("ratio, quantiles: " + ", ".join(cells))
    lines.append(
        f"slower than the best peer: {len(slower)} of {len(ratios)} points compared; "
        f"below {CLEAR}: {len(below)}"
    )
    for ratio, row, peer in below:
        lines += wrap(f"{ratio:7.2f}  {row} ({peer})", 100, subsequent_indent=" " * 9)
    if late := run.get("not_measured"):
        lines.append(f"not measured, the {minutes:g} minutes were over: {len(late)} points")
    for name, reason in run.get("missing", {}).items():
        lines += wrap(f"{name}: missing: {reason}", 100, subsequent_indent="    ")
    return data, lines


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--points", type=int, default=40, help="drawn, beside the corners (40)")
    p.add_argument("--seed", type=int, default=0, help="of the drawn points (0)")
    p.add_argument("--corners", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--rows", type=parse_rows, metavar="ROW,...", help="these points and no others")
    p.add_argument("--cores", type=int, choices=(1, 2), help="default: 1, then 2")
    p.add_argument(
        "--seconds", type=float, default=2.0, help="measuring a point, all peers together (2)"
    )
    p.add_argument(
        "--minutes", type=float, default=60.0,
        help="begin no further point after so many, on each number of cores (60)",
    )  # fmt: skip
    p.add_argument(
        "--start-seconds", type=float, default=30.0,
        help="leave a peer out where starting it, judged by its starts before, takes longer (30)",
    )  # fmt: skip
    p.add_argument(
        "--work", type=float, default=Limits.work, help="multiply-adds of a step, at most (12e9)"
    )
    p.add_argument(
        "--peers", type=parse_peers, default=BEST_PEERS,
        help=f"all, or some of {', '.join(PEERS)} (default: {', '.join(BEST_PEERS)})",
    )  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    p.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Sweep in one process for each number of cores, and sum up what they found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    if options.worker:
        measure(options, options.worker, teller())
        return 0
    runs = []
    for cores in (options.cores,) if options.cores else (1, 2):
        run = run_pinned(__file__, arguments, cores)
        run["summary"], lines = summary(run, options.minutes)
        runs.append(run)
        print("\n".join([*lines, ""]), flush=True)
    if options.json:
        asked = {"seed": options.seed, "seconds_a_point": options.seconds}
        write_json(options.json, machine() | asked | {"runs": runs})
    return int(any(faults(run) for run in runs))


if __name__ == "__main__":
    sys.exit(main())
