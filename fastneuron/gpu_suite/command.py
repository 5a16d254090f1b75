"""The command: its arguments, what must be there, and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastneuron.arguments import count, positive, whole
from fastneuron.gpu_suite import report
from fastneuron.gpu_suite.building import PLACE, buildable
from fastneuron.gpu_suite.card import card, versions
from fastneuron.gpu_suite.engines import SHIPPED, SIMULATED, SMALL, engine_kinds
from fastneuron.gpu_suite.running import OK, Budget, Finding, Run
from fastneuron.gpu_suite.stages import NAMES, Plan, stages
from fastneuron.gpu_suite.workloads import SIMULATED_WORKLOADS, WORKLOADS
from fastneuron.kernels import numba_cuda
from fastneuron.kernels.device_presence import missing_card
from fastneuron.threads import usable_cores

__all__ = ["main"]

#: Processes at most: each has a context of some hundred MB on the card.
MOST_JOBS = 12
#: Share of the budget that is kept for whatever a stage does after its last look at the clock.
RESERVE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 1 where something is wrong, or there is nothing to run it on."""
    args = _parser().parse_args(arguments)
    if args.simulate:
        # Before numba is imported. The simulator polls its threads: it should let go of the
        # interpreter sooner than in 5 ms.
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        sys.setswitchinterval(1e-3)
    else:
        os.environ.pop("NUMBA_ENABLE_CUDASIM", None)
    # JAX would take three quarters of the memory that others need beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    problem = nothing_to_run_on(simulated=args.simulate)
    if problem:
        print(f"gpu_suite: {problem}", file=sys.stderr)
        return 1
    found = {"simulated": True} if args.simulate else card()
    sizes = SIMULATED if args.simulate else SMALL if args.small else SHIPPED
    made = engine_kinds(simulated=args.simulate)
    if args.engine:
        made = {name: make for name, make in made.items() if name in args.engine}
    workloads = SIMULATED_WORKLOADS if args.simulate else WORKLOADS
    options = ["--simulate"] * args.simulate + ["--small"] * args.small
    plan = Plan(made, sizes, workloads, found, options, args.jobs, args.part)
    asked = stages(plan)
    if args.only:  # which may then take all of the budget
        named = (stage for stage in asked if stage.name.split()[0] in args.only)
        asked = [replace(stage, share=1.0) for stage in named]
    budget = Budget(args.budget * (1 - RESERVE))
    return Session(Run(asked, budget), found, args.budget, args.out).run()


def nothing_to_run_on(*, simulated: bool) -> str:
    """Return in one line what is missing and how to get it, or nothing."""
    if simulated:
        packages = (("numba", "numba"), ("numba_cuda", "numba-cuda"))
        absent = [name for module, name in packages if not find_spec(module)]
        said = f"{absent[0]} is not installed" if absent else ""
        return f"{said} (pip install fastneuron[cuda])" if absent else ""
    no_card, no_package = missing_card(), numba_cuda.missing()
    problems = [no_card] if no_card else []
    no_build = "" if find_spec("fastneuron.kernels._cython_cuda") else buildable(PLACE)
    # Both at once: who has no card need not install anything.
    if no_package not in ("", no_card) and no_build:
        problems += [no_package, f"the kernels in C++ cannot take their place: {no_build}"]
    return "; ".join(problems)


class Session:
    """A run that tells what it finds as it goes, and leaves all of it in a folder.

    Parameters
    ----------
    run : Run
    card : dict
    budget : float
        Seconds after which the process is ended, whatever it does.
    out : Path
    """

    def __init__(self, run: Run, card: dict[str, Any], budget: float, out: Path) -> None:
        self._run, self._card, self._budget, self._out = run, card, budget, out
        self._start = run.budget.clock()
        self._lines: list[str] = []
        self._versions = versions()
        self._told = 0
        self._lock = threading.Lock()
        run.report = self._tell

    def run(self) -> int:
        """Return the exit code."""
        self._say(report.head(self._card, self._versions))
        self._run.guarded(self._end, self._budget)
        return self._conclude()

    def _tell(self, findings: list[Finding]) -> None:
        for finding in findings[self._told :]:
            self._say(report.line(finding))
        self._told = len(findings)
        self._write(findings, self._lines)

    def _conclude(self) -> int:
        findings = self._run.findings
        code = self.code
        seconds = self._run.budget.clock() - self._start
        end = "something is WRONG" if self._run.code else "nothing is wrong"
        if code and not self._run.code:
            end = "nothing was proved: no check could run"
        ending = report.wrapped(f"{end}; {seconds:.0f} s; results: {self._out}")
        self._say([*report.tables(findings), "", *ending])
        self._write(findings, self._lines)
        return code

    @property
    def code(self) -> int:
        """The exit code: 1 as well where checks were asked for and none was made."""
        checks = [stage.name for stage in self._run.stages if stage.checks]
        found = [finding for finding in self._run.findings if finding.stage in checks]
        made = any(each.status == OK or each.details.get("checks") for each in found)
        return 1 if checks and not made else self._run.code

    def _end(self) -> None:
        """End the process from the thread that watches the time."""
        with self._lock:
            self._tell(self._run.give_up())
            code = self._conclude()
            sys.stdout.flush()
            os._exit(code)

    def _say(self, lines: Sequence[str]) -> None:
        self._lines += lines
        for line in lines:
            print(line, flush=True)

    def _write(self, findings: Sequence[Finding], lines: Sequence[str]) -> None:
        found = report.result(
            findings,
            self._card,
            self._versions,
            budget=self._budget,
            seconds=self._run.budget.clock() - self._start,
            code=self.code,
        )
        report.write(self._out, found, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastneuron.gpu_suite",
        description="Prove and time the CUDA backends on the card of this machine; no network.",
    )
    parser.add_argument(
        "--budget",
        type=positive,
        default=480.0,
        metavar="SECONDS",
        help="end by then; what is of least worth is cut off (default: %(default).0f)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu_suite"),
        metavar="DIR",
        help="where gpu_suite.json and gpu_suite.txt go (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=NAMES,
        help="stages of that name alone; may be given more than once",
    )
    parser.add_argument(
        "--engine",
        action="append",
        choices=tuple(engine_kinds(simulated=False)),
        help="that engine alone; may be given more than once",
    )
    parser.add_argument(
        "--jobs",
        type=count,
        default=min(MOST_JOBS, usable_cores()),
        metavar="N",
        help="processes that share the checks of kernels yet to be compiled (default: %(default)s)",
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="the I-th of N parts of the checks, from 0, as those processes take them",
    )
    parser.add_argument("--small", action="store_true", help="small shapes, as under a sanitizer")
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="tiny shapes in numba's simulator: tries the suite itself, where there is no card",
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    index, _, parts = text.partition("/")
    part = whole(index), count(parts)
    if part[0] >= part[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no part: want 0/8 to 7/8, say")
    return part
