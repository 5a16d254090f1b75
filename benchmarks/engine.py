"""Training steps of fastneuron and its peers, side by side, against the machine's FMA peak.

``python benchmarks/engine.py --help``; README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measure the clone it lies in

from peak import try_peak
from pinned import machine, run_pinned, teller, usable_cores, write_json
from racing import Say, faults, judged, measure_row
from report import table

from fastneuron.peers.judging import LOSS_TOLERANCE, WAY_TOLERANCE
from fastneuron.peers.problems import TABLE, parse_rows
from fastneuron.peers.roster import PEERS, parse_peers


def measure(options: argparse.Namespace, cores: int, say: Say) -> dict[str, Any]:
    """Do one run on the cores that this process may use."""
    kinds = [PEERS[name] for name in options.peers]
    missing = {kind.name: reason for kind in kinds if (reason := kind.missing())}
    present = [kind for kind in kinds if kind.name not in missing]
    peaks = {dtype: try_peak(dtype) for dtype in ("float32", "float64")}
    measured = []
    for row in options.rows:
        measured.append(measure_row(row, present, cores, options.seconds, say))
        again = try_peak(row.dtype, 3)  # whatever clock the CPU reaches in this run counts
        peaks[row.dtype] = max(peaks[row.dtype] or 0, again or 0) or None
    return {
        "cores": cores,
        "pinned_to": usable_cores(),
        "peak_gflops_a_core": peaks,
        "versions": {kind.name: kind.version() for kind in present},
        "missing": missing,
        "rows": [
            judged(row, peers, peaks[row.dtype], cores)
            for row, peers in zip(options.rows, measured, strict=True)
        ],
    }


def parser() -> argparse.ArgumentParser:
    known = "; ".join(f"{i} {row.label}" for i, row in enumerate(TABLE, 1))
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"rows: {known}")
    p.add_argument(
        "--rows", type=parse_rows, default=list(TABLE), metavar="ROW,...",
        help="numbers of the table, or networks such as '20-64-64-2 b32 adam tanh float64 nobias'",
    )  # fmt: skip
    p.add_argument("--cores", type=int, choices=(1, 2), help="default: 1, then 2")
    p.add_argument(
        "--seconds", type=float, default=5.0, help="measuring a row, all peers together (5)"
    )
    p.add_argument("--peers", type=parse_peers, default=list(PEERS), help=", ".join(PEERS))
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    p.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Measure in one process for each number of cores, and show what they found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    if options.worker:
        say = teller()
        run = measure(options, options.worker, say)
        say("")
        write_json(options.json, run)
        return 0
    runs: list[dict[str, Any]] = []
    for cores in (options.cores,) if options.cores else (1, 2):
        run = run_pinned(__file__, arguments, cores)
        runs.append(run)
        single = runs[0] if len(runs) == 2 and "rows" in runs[0] else None
        print("\n".join([*table(run, single), ""]), flush=True)
    if options.json:
        found = machine() | {
            "seconds_a_row": options.seconds,
            "tolerance": {"loss": LOSS_TOLERANCE, "way": WAY_TOLERANCE},
            "runs": runs,
        }
        write_json(options.json, found)
    return int(any(faults(run) for run in runs))


if __name__ == "__main__":
    sys.exit(main())
