"""Steps with normalisations, dropout and frozen layers, over plain ones and beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from figures import Figure, at_least, at_most, quotient, report, unmeasured
from racing import Contestant, Say
from report import matrix
from step_ratios import LARGE, compare

from fastneuron.peers.engines import Fastneuron
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Row, problem_of
from fastneuron.peers.roster import PEERS

#: What is added to the network, and how many times the plain step it may take at most.
VARIANTS: dict[str, float | None] = {
    "batch_norm": 1.12,
    "layer_norm": None,
    "dropout0.1": None,
    "frozen1": None,
    "frozen2": None,
}
#: The best other library's step over ours, at least.
PEER_GOAL = 1.0
#: Those that train every variant, at a pace that is of interest.
KINDS = tuple(
    PEERS[name]
    for name in (
        "fastneuron-numba", "fastneuron-cython", "torch", "torch-compile", "jax-jit", "jax-scan",
    )
)  # fmt: skip


def layers(
    seconds: float,
    say: Say,
    variants: Mapping[str, float | None] = VARIANTS,
    base: Row = LARGE,
    kinds: Sequence[type[Peer]] = KINDS,
    cores: int = 1,
) -> dict[str, Any]:
    """Race every variant of a network, trained by every library that is here, in one run."""
    rows = {"plain": base} | {name: Row.parse(f"{base.label} {name}") for name in variants}
    present = [kind for kind in kinds if not kind.missing()]
    entered = {
        (name, kind): Contestant(f"{name}, {kind.name}", kind, row)
        for name, row in rows.items()
        for kind in present
    }
    results = compare(list(entered.values()), cores, seconds, say)
    predicted = {name: predict(row, present, cores) for name, row in rows.items()}
    figures = []
    for name, bound in variants.items():
        for kind in present:
            if kind.ours:
                one, other = (entered[each, kind].name for each in (name, "plain"))
                what = f"{name} over plain: {kind.name}"
                figures.append(quotient(what, results, one, other, at_most(bound)))
        before, after = predicted["plain"], predicted[name]
        if before and after:
            figures.append(Figure(f"{name} over plain: predicted", after / before))
        of_peers = {kind: entered[name, kind].name for kind in present}
        figures += beside_others(name, of_peers, results)
    shown = {
        f"{name:12}": {kind.name: results[entered[name, kind].name] for kind in present}
        | {"predicted": {"status": "ok", "microseconds": predicted[name]}}
        for name in rows
    }
    lines = [
        f"{base.label}, microseconds a step (median of interleaved rounds)",
        *matrix(["predicted", *(kind.name for kind in kinds)], shown),
        "",
    ]
    return report(figures, lines=lines, predicted_microseconds=predicted, results=results)


def beside_others(
    name: str, names: Mapping[type[Peer], str], results: Mapping[str, dict[str, Any]]
) -> list[Figure]:
    """Return the best other library's step over ours, and whoever of the others went wrong."""
    others = {kind: one for kind, one in names.items() if not kind.ours}
    timed = {k: one for k, one in others.items() if "microseconds" in results[one]}
    figures = [
        unmeasured(f"{name}: {kind.name}", results[one])
        for kind, one in others.items()
        if kind not in timed
    ]
    ours = next((kind for kind in names if kind.ours), None)
    best = min(timed, key=lambda kind: results[timed[kind]]["microseconds"], default=None)
    if ours is not None and best is not None:
        what = f"{name}: {best.name} over {ours.name}"
        figures.append(quotient(what, results, timed[best], names[ours], at_least(PEER_GOAL)))
    return figures


def predict(row: Row, kinds: Sequence[type[Peer]], cores: int) -> float | None:
    """Return the microseconds of a step as the first of our engines predicts them, if any does."""
    kind = next((kind for kind in kinds if issubclass(kind, Fastneuron)), None)
    if kind is None:
        return None
    microseconds: float | None = kind(problem_of(row), cores).engine.plan().get("predicted_step_us")
    return microseconds
