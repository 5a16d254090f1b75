"""The stages of the suite, in the order of their worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from fastneuron.gpu_suite.benchmarks import NOT_HERE, benchmark, contestants, gemm_rate
from fastneuron.gpu_suite.building import build
from fastneuron.gpu_suite.calibration import costs, predicted
from fastneuron.gpu_suite.door_checks import door_checks
from fastneuron.gpu_suite.engines import CPP, Kind, Sizes
from fastneuron.gpu_suite.ensemble_checks import ensemble_checks
from fastneuron.gpu_suite.fault_checks import fault_checks
from fastneuron.gpu_suite.gpu_peers import torch_missing
from fastneuron.gpu_suite.network_checks import network_checks, repeat_checks
from fastneuron.gpu_suite.parts import Suite, in_parts
from fastneuron.gpu_suite.precision_checks import BOUNDS, precision_case, precision_checks
from fastneuron.gpu_suite.running import (
    CUT,
    OK,
    SKIPPED,
    WRONG,
    Budget,
    Check,
    Finding,
    NotBuiltYet,
    Stage,
    run_checks,
)
from fastneuron.gpu_suite.sanitizing import TOOLS, sanitize
from fastneuron.gpu_suite.slot_checks import slot_checks
from fastneuron.gpu_suite.workloads import Workload

__all__ = ["NAMES", "Plan", "stages"]

#: What `--only` may name.
NAMES = (
    "build", "slots", "networks", "repeats", "ensembles", "door", "faults", "precision", *TOOLS,
    "costs", "bench",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the suite is to do.

    Attributes
    ----------
    kinds : mapping of name to callable () -> Kind
        Makes the engines ready when they are first needed; raises BackendUnavailable.
    sizes : Sizes
    workloads : sequence of Workload
    card : mapping
        As `card.card` returns it, with ``simulated`` where there is none.
    options : sequence of str
        By which another suite has these sizes.
    jobs : int
        Processes that share the checks of an engine whose kernels are yet to be compiled.
    part : (int, int)
        Which part of the checks, from 0, and of how many.
    """

    kinds: Mapping[str, Callable[[], Kind]]
    sizes: Sizes
    workloads: Sequence[Workload] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    options: Sequence[str] = ()
    jobs: int = 1
    part: tuple[int, int] = (0, 1)

    @property
    def simulated(self) -> bool:
        """Whether there is no card."""
        return bool(self.card.get("simulated"))


def stages(plan: Plan) -> list[Stage]:
    """Return all stages: what proves most comes first, so that a budget cuts off the least."""
    kinds = {name: cache(make) for name, make in plan.kinds.items()}
    found = []
    if CPP in kinds:
        found.append(Stage("build", lambda budget: build(budget, plan.card), 0.2, checks=False))
    for name, kind in kinds.items():
        found += [
            Stage(f"slots {name}", partial(_slots, kind, plan), 0.3),
            Stage(f"networks {name}", partial(_networks, kind, plan), 0.2),
            Stage(f"repeats {name}", partial(_repeats, kind, plan.sizes), 0.1),
            Stage(f"ensembles {name}", partial(_ensembles, kind, plan.sizes), 0.1),
            Stage(f"door {name}", partial(_door, kind, plan.simulated), 0.1),
            Stage(f"faults {name}", partial(_faults, kind, plan.simulated), 0.1),
            Stage(f"precision {name}", partial(_precision, kind, plan.sizes), 0.1),
        ]
    if not plan.simulated:
        for name, kind in kinds.items():
            for tool in TOOLS:
                found.append(Stage(f"{tool} {name}", partial(_sanitized, tool, kind), 0.15))
    for name, kind in kinds.items():
        work = partial(_costs, kind, plan.simulated)
        found.append(Stage(f"costs {name}", work, 0.1, checks=False))
    for i, workload in enumerate(plan.workloads):
        # Each may take its share of what is left, and the last all of it.
        of_rest = 1 / (len(plan.workloads) - i)
        work = partial(_benchmark, workload, kinds, plan.simulated, of_rest)
        found.append(Stage(f"bench {workload.name}", work, checks=False))
    return found


def _slots(kind: Callable[[], Kind], plan: Plan, budget: Budget) -> Finding:
    sizes = plan.sizes
    fewer = replace(sizes, every=3 * sizes.every)

    def checks(ready: Kind) -> list[Check]:
        found: list[Check] = []
        for i, dtype in enumerate(sizes.dtypes):
            of = fewer if i else sizes
            by_way = [slot_checks(way, of, dtype) for way in ready.ways()]
            each = list(zip(*by_way, strict=True))
            if of.every > 1:  # by turns, where only some are checked at all
                found += [ways[k % len(ways)] for k, ways in enumerate(each)]
            else:
                found += [check for ways in each for check in ways]
        return found

    ready = kind()
    found = _in_parts("slots", checks, ready, plan, budget)
    idle = ", ".join(found.details["unlaunched"])
    if not idle or not sizes.complete or found.status != OK or plan.part != (0, 1):
        return found
    if ready.takes("library"):  # which may need kernels beside it, and may not be here
        return replace(found, said=f"{found.said}; none launches {idle}")
    return replace(found, status=WRONG, said=f"no check launches {idle}")


def _networks(kind: Callable[[], Kind], plan: Plan, budget: Budget) -> Finding:
    return _in_parts(
        "networks", lambda ready: network_checks(ready, plan.sizes), kind(), plan, budget
    )


def _in_parts(
    name: str, checks: Callable[[Kind], list[Check]], kind: Kind, plan: Plan, budget: Budget
) -> Finding:
    """Run the checks here, or in other processes where there is much to compile."""
    if kind.compiles and plan.jobs > 1:
        return in_parts(Suite(name, kind.name, plan.options), plan.jobs, budget)
    first, parts = plan.part
    found = run_checks(checks(kind)[first::parts], budget)
    found.details["unlaunched"] = kind.unlaunched()
    return found


def _repeats(kind: Callable[[], Kind], sizes: Sizes, budget: Budget) -> Finding:
    found = run_checks(repeat_checks(kind(), sizes), budget)
    if found.status != OK:
        return found
    return replace(found, said=f"{sizes.repeats} runs of each network have the same bits")


def _ensembles(kind: Callable[[], Kind], sizes: Sizes, budget: Budget) -> Finding:
    used: set[str] = set()
    found = run_checks(ensemble_checks(kind(), sizes, used), budget)
    found.details["engines"] = sorted(used)
    return replace(found, said=f"{found.said}; by {' and '.join(sorted(used))}") if used else found


def _door(kind: Callable[[], Kind], simulated: bool, budget: Budget) -> Finding:
    said: dict[str, str] = {}
    found = _each(door_checks(kind(), said, simulated=simulated), budget)
    found.details["auto"] = said
    if found.status != OK:
        return found
    words = [_doors_of(found)]
    words += [f"auto for {name}: {why}" for name, why in said.items()]
    return replace(found, said="; ".join(words))


def _faults(kind: Callable[[], Kind], simulated: bool, budget: Budget) -> Finding:
    found = _each(fault_checks(kind(), simulated=simulated), budget)
    if found.status != OK:
        return found
    return replace(found, said=f"{_doors_of(found)}: clear errors, parameters as they were")


def _each(checks: list[Check], budget: Budget) -> Finding:
    """Run checks, and tell what became of each by its name."""
    found = run_checks(checks, budget)
    details = found.details
    each = {check.name: (CUT, "no time was left for it") for check in checks}
    for check in checks[: details["checks"] + len(details["skipped"])]:
        each[check.name] = OK, ""
    for name, entries in ((WRONG, details["wrong"]), (SKIPPED, details["skipped"])):
        each.update({entry["check"]: (name, entry["said"]) for entry in entries})
    details["each"] = {k: {"status": status, "said": said} for k, (status, said) in each.items()}
    return found


def _doors_of(found: Finding) -> str:
    skipped = len(found.details["skipped"])
    return f"{found.details['checks']} checks" + (f", {skipped} skipped" if skipped else "")


def _precision(kind: Callable[[], Kind], sizes: Sizes, budget: Budget) -> Finding:
    ready = kind()
    if not ready.takes("precision"):
        raise NotBuiltYet("precision 'tf32' and 'bfloat16' are not part of this version")
    case = precision_case(sizes)
    for precision in BOUNDS:  # raises where there is none on this machine
        ready.engine_of(case, precision=precision)
    return run_checks(precision_checks(ready, sizes), budget)


def _sanitized(tool: str, kind: Callable[[], Kind], budget: Budget) -> Finding:
    return sanitize(tool, kind().name, budget)


def _costs(kind: Callable[[], Kind], simulated: bool, budget: Budget) -> Finding:
    return costs(kind(), budget, simulated=simulated)


def _benchmark(
    workload: Workload,
    kinds: Mapping[str, Callable[[], Kind]],
    simulated: bool,
    of_rest: float,
    budget: Budget,
) -> Finding:
    ready = []
    reasons = {}
    for name, kind in kinds.items():
        try:
            ready.append(kind())
        except Exception as error:
            reasons[f"fastneuron {name}"] = str(error)
    racers = contestants(workload, ready, simulated=simulated)
    rate_of = None if simulated or torch_missing() else gemm_rate
    found = benchmark(workload, racers, budget.within(of_rest * budget.left), rate_of=rate_of)
    for each in ready:
        entry = found.details.get("contestants", {}).get(f"fastneuron {each.name}", {})
        if "step_seconds" in entry:
            entry["predicted_seconds"] = predicted(workload, each, simulated=simulated)
    for name, reason in reasons.items():
        entry = {"ours": True, "status": NOT_HERE, "said": reason}
        found.details.setdefault("contestants", {}).setdefault(name, entry)
    return found
