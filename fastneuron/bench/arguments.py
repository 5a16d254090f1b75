"""`fastneuron bench`: its arguments, understood by the standard library alone."""

from __future__ import annotations

import argparse
import os

__all__ = ["add_parser"]

# Repeated from the tables, which need numpy; a test holds them equal.
SUITES = ("all", "slots", "ops", "steps", "inference", "data", "peers")
BACKENDS = ("numpy", "numba", "cython")
DTYPES = ("float32", "float64")
#: Variables that tell a BLAS its threads, before NumPy loads it.
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
         "VECLIB_MAXIMUM_THREADS")  # fmt: skip


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, and under it `compare`."""
    bench = verbs.add_parser(
        "bench",
        help="run benchmark suites, compare two runs",
        description="Check every kernel against the NumPy reference, time the backends by turns, "
        "and show them side by side. What is wrong is reported without a time. To compare two "
        "runs: fastneuron bench compare OLD NEW.",
        usage="fastneuron bench [SUITE] [options]\n"
        "       fastneuron bench compare OLD NEW [--threshold PERCENT] [--json FILE]",
        epilog="Exit codes: 0 done, 1 a result is wrong or a kernel slower, 2 wrong usage.",
    )
    bench.set_defaults(verb=_bench)
    bench.add_argument(
        "suite", nargs="?", default="all", choices=(*SUITES, "compare"), metavar="SUITE",
        help=f"(%(default)s): {', '.join(SUITES)}",
    )  # fmt: skip
    bench.add_argument(
        "files", nargs="*", metavar="FILE", help="of compare: the old and the new run"
    )
    run = bench.add_argument_group("a run")
    run.add_argument("--quick", action="store_true", help="two minutes for all suites, not fifteen")
    run.add_argument(
        "--backend", action="append", default=[], choices=BACKENDS, metavar="NAME",
        help=f"only this one of {', '.join(BACKENDS)} (may be repeated)",
    )  # fmt: skip
    run.add_argument(
        "--dtype", action="append", default=[], choices=DTYPES, metavar="NAME",
        help=f"only this one of {', '.join(DTYPES)} (may be repeated)",
    )  # fmt: skip
    run.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="only workloads with this in their name (may be repeated)",
    )  # fmt: skip
    run.add_argument(
        "--threads", type=_threads, default=1, metavar="N",
        help="of engines and BLAS (%(default)s), or auto: as the engines choose",
    )  # fmt: skip
    run.add_argument(
        "--passes", type=_count, metavar="N", help="times that each workload is measured (4; 2)"
    )
    run.add_argument(
        "--seconds", type=_seconds, default=float("inf"), metavar="N",
        help="begin no workload after so long (no limit)",
    )  # fmt: skip
    run.add_argument("--json", metavar="FILE", help="write the run, for `bench compare`")
    run.add_argument("--csv", metavar="FILE", help="write a line a row")
    run.add_argument("--plot", metavar="FILE", help="write a figure, such as bench.png")
    run.add_argument(
        "--resume", metavar="FILE",
        help="go on with the run in FILE where it stopped, or add passes, and write it there",
    )  # fmt: skip
    compared = bench.add_argument_group("compare")
    compared.add_argument(
        "--threshold", type=_percent, default=0.05, metavar="PERCENT",
        help="slow-down that is not let pass (5%%)",
    )  # fmt: skip
    bench.set_defaults(wrong_usage=bench.error)


def _bench(options: argparse.Namespace) -> None:
    if options.suite == "compare":
        if len(options.files) != 2:
            options.wrong_usage("compare takes two files: the old run and the new one")
    else:
        if options.files:
            options.wrong_usage(f"unknown argument {options.files[0]!r}: only compare takes files")
        if options.threads:
            for name in _BLAS:
                os.environ[name] = str(options.threads)
            os.environ["FASTNEURON_NUM_THREADS"] = str(options.threads)
    from fastneuron.bench import command

    (command.compare if options.suite == "compare" else command.run)(options)


def _threads(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 5% or 0.05")
    return value
