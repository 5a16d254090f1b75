"""Stages one after the other within a budget of seconds, and what became of each."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fastneuron.errors import BackendUnavailable

__all__ = [
    "CUT",
    "MISSING",
    "OK",
    "SKIPPED",
    "WRONG",
    "Budget",
    "Check",
    "Finding",
    "NotBuiltYet",
    "NotHere",
    "OutOfTime",
    "Run",
    "Stage",
    "run_checks",
    "summed",
]

#: What can become of a stage. All but WRONG end the command with 0.
OK, WRONG, SKIPPED, CUT, MISSING = "ok", "WRONG", "skipped", "cut off", "not built yet"

#: Failed checks after which a stage ends: a card that has lost its context fails all of them.
MOST_WRONG = 10

Clock = Callable[[], float]


class OutOfTime(Exception):
    """The budget has ended."""


class NotBuiltYet(BackendUnavailable):
    """What a stage proves is not part of this version."""


class NotHere(Exception):
    """A check needs what this machine has not; the message says what."""


class Budget:
    """Seconds that are left.

    Parameters
    ----------
    seconds : float
    clock : callable, optional
        Seconds, from anywhere.
    """

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self.clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds to its end, 0 after it."""
        return max(0.0, self._end - self.clock())

    def check(self) -> None:
        """Raise OutOfTime where it has ended."""
        if not self.left:
            raise OutOfTime

    def within(self, seconds: float) -> Budget:
        """Return one that ends with this one, and after so many seconds at the latest."""
        return Budget(min(seconds, self.left), self.clock)


@dataclass(frozen=True)
class Finding:
    """What became of a stage.

    Attributes
    ----------
    stage, status : str
    said : str
        In a line.
    seconds : float
    details : dict
        Plain values, for the JSON.
    """

    stage: str
    status: str
    said: str
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of the suite.

    Attributes
    ----------
    name : str
    work : callable (Budget) -> Finding
        OutOfTime that it raises is an end like others, BackendUnavailable a reason to skip it; any
        other error is wrong.
    share : float
        Of the whole budget, at most.
    checks : bool
        Whether it proves something: one that has to be given up is then wrong, not cut off.
    """

    name: str
    work: Callable[[Budget], Finding]
    share: float = 1.0
    checks: bool = True


class Run:
    """Runs stages in their order, the one of most worth first, until the budget ends.

    Parameters
    ----------
    stages : sequence of Stage
    budget : Budget
    report : callable (findings)
        Called after each stage with all there are.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        budget: Budget,
        report: Callable[[list[Finding]], None] = lambda findings: None,
    ) -> None:
        self.stages = list(stages)
        self.budget = budget
        self.report = report
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """Return what became of every stage."""
        for stage in self.stages:
            self.findings.append(self._finding(stage))
            self.report(self.findings)
        return self.findings

    @property
    def code(self) -> int:
        """The exit code: 1 where something is wrong."""
        return int(any(finding.status == WRONG for finding in self.findings))

    def give_up(self) -> list[Finding]:
        """Return the findings as they stand where a stage has not come back, and the others."""
        findings = list(self.findings)
        for i, stage in enumerate(self.stages[len(findings) :]):
            said, status = "no time was left for it", CUT
            if i == 0:
                said = f"did not come back before {self.budget.seconds:.0f} s of budget had ended"
                status = WRONG if stage.checks else CUT
            findings.append(Finding(stage.name, status, said))
        self.findings = findings
        return findings

    def guarded(self, end: Callable[[], None], seconds: float) -> list[Finding]:
        """Run, and call `end` from another thread if that takes more than so many seconds.

        A kernel that never ends, or a compiler, cannot be interrupted: `end` must end the process.
        """
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            return self.run()
        finally:
            timer.cancel()

    def _finding(self, stage: Stage) -> Finding:
        clock = self.budget.clock
        start = clock()
        if not self.budget.left:
            return Finding(stage.name, CUT, "no time was left for it")
        try:
            found = stage.work(self.budget.within(stage.share * self.budget.seconds))
        except OutOfTime:
            found = Finding(stage.name, CUT, "its time ended before anything was found")
        except NotBuiltYet as error:
            found = Finding(stage.name, MISSING, str(error))
        except BackendUnavailable as error:
            found = Finding(stage.name, SKIPPED, str(error))
        except Exception as error:
            details = {"traceback": traceback.format_exc()}
            found = Finding(stage.name, WRONG, f"{type(error).__name__}: {error}", 0.0, details)
        return replace(found, stage=stage.name, seconds=clock() - start)


class Check(NamedTuple):
    """A comparison with what is right.

    Attributes
    ----------
    name : str
    work : callable
        Returns the worst error over its bound; raises where it is above 1, and NotHere where it
        cannot be made here.
    """

    name: str
    work: Callable[[], float]


def run_checks(checks: Iterable[Check], budget: Budget) -> Finding:
    """Run checks until the budget ends; one that raises anything but NotHere is wrong."""
    checks = list(checks)
    worst, worst_at, done = 0.0, "", 0
    wrong: list[dict[str, str]] = []
    skipped: list[dict[str, str]] = []
    for check in checks:
        if not budget.left or len(wrong) == MOST_WRONG:
            break
        done += 1
        try:
            ratio = check.work()
        except NotHere as reason:
            skipped.append({"check": check.name, "said": str(reason)})
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            said = f"{kind}{error}"
            wrong.append({"check": check.name, "said": said, "traceback": traceback.format_exc()})
        else:
            if ratio > worst:
                worst, worst_at = ratio, check.name
    return summed(
        [
            {
                "checks": done - len(skipped),
                "of": len(checks) - len(skipped),
                "worst": worst,
                "worst_at": worst_at,
                "wrong": wrong,
                "skipped": skipped,
            }
        ]
    )


def summed(parts: Sequence[Mapping[str, Any]]) -> Finding:
    """Return the finding of checks that were run in parts, from the details of each."""
    done, of = (sum(part[name] for part in parts) for name in ("checks", "of"))
    worst = max(parts, key=lambda part: float(part["worst"]))
    wrong = [each for part in parts for each in part["wrong"]]
    skipped = [each for part in parts for each in part.get("skipped", ())]
    details = {**worst, "checks": done, "of": of, "wrong": wrong, "skipped": skipped}
    if wrong:
        said = f"{len(wrong)} of {done} checks: {wrong[0]['check']}: {wrong[0]['said']}"
        return Finding("", WRONG, said, 0.0, details)
    if skipped and not of:
        return Finding("", SKIPPED, f"{skipped[0]['check']}: {skipped[0]['said']}", 0.0, details)
    cut = f" of {of}" if done < of else ""
    said = f"{done}{cut} checks, the worst error is {worst['worst']:.2f} of its bound"
    return Finding("", CUT if cut else OK, said, 0.0, details)
