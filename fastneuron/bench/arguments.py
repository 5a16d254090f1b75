"""`fastneuron bench`: its arguments, understood by the standard library alone."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from fastneuron.arguments import DTYPES, count, seconds
from fastneuron.peers import NAMES as PEERS
from fastneuron.peers import environment

__all__ = ["add_parser"]

# Repeated from the tables, which need numpy; a test holds them equal.
SUITES = {
    "all": "all of these",
    "slots": "each kernel of each backend",
    "ops": "the same through fastneuron.ops, which checks its arrays",
    "steps": "whole training steps",
    "inference": "outputs for one row and for many",
    "data": "gathering, shuffling, checking arrays, reading tables",
    "peers": "whole training steps, beside other libraries",
    "accuracy": "whole trainings to a held-out accuracy, beside other libraries",
}
BACKENDS = ("numpy", "numba", "cython")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, its suites, and `compare`."""
    bench = verbs.add_parser(
        "bench",
        help="run benchmark suites, compare two runs",
        description="Check every kernel against the NumPy reference, time the backends by turns, "
        "and show them side by side. What is wrong is reported without a time.",
        epilog="Exit codes: 0 done, 1 a result is wrong (compare: a kernel is slower), 2 wrong "
        "usage. `fastneuron bench compare --help` tells how two runs are compared.",
    )
    _add_options(bench)
    kinds = bench.add_subparsers(metavar="SUITE", dest="suite", title="suites (all)")
    bench.set_defaults(
        verb=_run, suite="all", quick=False, backend=[], peer=[], dtype=[], only=[], threads=1,
        passes=None, one_pass=None, seconds=float("inf"), json=None, csv=None,
        plot=None, resume=None,
    )  # fmt: skip
    for suite, text in SUITES.items():
        # Its defaults would replace what was given before the suite.
        one = kinds.add_parser(suite, help=text, argument_default=argparse.SUPPRESS)
        _add_options(one)
    compare = kinds.add_parser(
        "compare",
        help="compare two runs; 1 where something is slower",
        description="Compare two files that `fastneuron bench --json` wrote. Exit code 1 where a "
        "kernel, or one of its workloads, is slower and the slow-down may reach the threshold: "
        "what has not changed does so in fewer than 1 of 20 comparisons.",
    )
    compare.set_defaults(verb=_compare)
    compare.add_argument("old", type=_result, metavar="OLD", help="the run to compare with")
    compare.add_argument("new", type=_result, metavar="NEW", help="the run that is judged")
    compare.add_argument(
        "--threshold", type=_share, default=0.05, metavar="SHARE",
        help="slow-down that is not let pass (5%%)",
    )  # fmt: skip
    compare.add_argument("--json", metavar="FILE", help="write the comparison as JSON")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two minutes for all, not fifteen")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, metavar="NAME",
        help=f"only this one of {', '.join(BACKENDS)} (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--peer", action="append", choices=PEERS, metavar="NAME",
        help=f"of the peers only this one of {', '.join(PEERS)} (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, metavar="NAME",
        help=f"only this one of {', '.join(DTYPES)} (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", metavar="TEXT",
        help="only workloads with this in their name (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_threads, metavar="N",
        help="of engines and BLAS (1), or auto: as the engines choose",
    )  # fmt: skip
    parser.add_argument(
        "--passes", type=count, metavar="N",
        help="times that each workload is measured (4; peers, accuracy 3, quick 2)",
    )  # fmt: skip
    # How the command starts the process of a pass, which is told its number.
    parser.add_argument("--one-pass", type=count, help=argparse.SUPPRESS)
    parser.add_argument(
        "--seconds", type=seconds, metavar="N", help="begin no workload after so long (no limit)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the run, for `bench compare`")
    parser.add_argument("--csv", metavar="FILE", help="write a line a row")
    parser.add_argument("--plot", metavar="FILE", help="write a figure, such as bench.png")
    parser.add_argument(
        "--resume", metavar="FILE",
        help="go on with the run in FILE where it stopped, or add passes, and write it there",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> None:
    # Before NumPy is imported, which loads its BLAS.
    os.environ.update(environment.told(options.threads))
    if options.one_pass and options.threads:
        environment.pin(options.threads)
    from fastneuron.bench import command

    (command.one_pass if options.one_pass else command.run)(options)


def _compare(options: argparse.Namespace) -> None:
    from fastneuron.bench import command

    command.compare(options)


def _result(path: str) -> tuple[str, Any]:
    """Return the path and what is in the file."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise argparse.ArgumentTypeError(f"{path}: {reason}") from error
    if not str(found.get("format") if isinstance(found, dict) else "").startswith(
        "fastneuron bench"
    ):
        raise argparse.ArgumentTypeError(f"{path}: not written by `fastneuron bench --json`")
    return path, found


def _threads(text: str) -> int | None:
    return None if text == "auto" else count(text)


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 5% or 0.05")
    return value
