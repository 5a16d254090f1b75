"""Every suite by name, and its workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from fastneuron.bench.accuracy import accuracy
from fastneuron.bench.data import data
from fastneuron.bench.kernels import fused_ops, slots
from fastneuron.bench.networks import inference, steps
from fastneuron.bench.peers import peers
from fastneuron.bench.workloads import Workload
from fastneuron.errors import UnknownNameError
from fastneuron.registry import Registry

__all__ = ["SUITES", "workloads"]

#: Every suite, in the order of its table.
SUITES: Registry[Callable[[], Iterator[Workload]]] = Registry("suite")
for _name, _suite in (
    ("slots", slots),
    ("ops", fused_ops),
    ("steps", steps),
    ("inference", inference),
    ("data", data),
    ("peers", peers),
    ("accuracy", accuracy),
):
    SUITES.register(_name, _suite)


def workloads(suite: str = "all") -> list[Workload]:
    """Return the workloads of a suite, or of all.

    Raises
    ------
    UnknownNameError
        Where no suite is called so; the message lists those that exist.
    """
    if suite == "all":
        return list(chain.from_iterable(map(workloads, SUITES)))
    if suite not in SUITES:
        raise UnknownNameError(f"unknown suite {suite!r} (available: all, {', '.join(SUITES)})")
    found = list(SUITES[suite]())
    names = list(dict.fromkeys(workload.name for workload in found))
    return sorted(found, key=lambda workload: names.index(workload.name))
