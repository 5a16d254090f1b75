"""Every suite by name: its workloads, and where suites are that live elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from fastneuron.bench.data import data
from fastneuron.bench.kernels import fused_ops, slots
from fastneuron.bench.networks import inference, steps
from fastneuron.bench.workloads import Workload
from fastneuron.errors import FastneuronError, UnknownNameError
from fastneuron.registry import Registry

__all__ = ["ELSEWHERE", "SUITES", "workloads"]

#: Every suite that runs here, in the order of its table.
SUITES: Registry[Callable[[], Iterator[Workload]]] = Registry("suite")
for _name, _suite in (
    ("slots", slots),
    ("ops", fused_ops),
    ("steps", steps),
    ("inference", inference),
    ("data", data),
):
    SUITES.register(_name, _suite)

#: Suites that are scripts of the repository, and the command that runs them.
ELSEWHERE = {"peers": "python benchmarks/engine.py"}


def workloads(suite: str = "all") -> list[Workload]:
    """Return the workloads of a suite, or of all.

    Raises
    ------
    UnknownNameError
        Where no suite is called so; the message lists those that exist.
    FastneuronError
        Where the suite is a script of the repository; the message is its command.
    """
    if suite in ELSEWHERE:
        raise FastneuronError(
            f"the suite {suite!r} is not part of the package: in a clone of the repository, "
            f"run {ELSEWHERE[suite]}"
        )
    if suite == "all":
        return list(chain.from_iterable(map(workloads, SUITES)))
    if suite not in SUITES:
        raise UnknownNameError(
            f"unknown suite {suite!r} (available: all, {', '.join([*SUITES, *ELSEWHERE])})"
        )
    found = list(SUITES[suite]())
    names = list(dict.fromkeys(workload.name for workload in found))
    return sorted(found, key=lambda workload: names.index(workload.name))
