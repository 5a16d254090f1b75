"""A comparison of two runs as text of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from fastneuron.bench.agreement import Agreement
from fastneuron.bench.comparing import Change, Comparison
from fastneuron.bench.results import Key
from fastneuron.bench.writing import WIDTH, lines, located
from fastneuron.profiling.pairs import Ratio
from fastneuron.reports import table

__all__ = ["report"]

#: Rows that are listed one by one where something is said of many.
_LISTED = 20
#: Rows that are named of those whose ratios do not agree.
_NAMED = 5


def report(found: Comparison) -> Iterator[str]:
    """Yield the lines that show a comparison: first what differs, then what could not be seen."""
    for difference in found.differences:
        yield from _wrapped("Not the same: ", difference)
    slower = found.slower
    faster = [c for c in (*found.kernels, *found.rows) if c.ratio.high < 1]
    slightly = [c for c in (*found.kernels, *found.rows) if c.ratio.low > 1 and c not in slower]
    percent = f"{100 * found.threshold:g} %"
    yield from _listed(f"Slower, perhaps by {percent} or more", slower)
    yield from _listed(f"Slower, by less than {percent}", slightly)
    yield from _listed("Faster", faster)
    for row in found.went_wrong:
        key = row.key
        yield from _wrapped("Wrong: ", f"{key.name} {key.label}, {key.backend}: {row.reason}")
    yield from _missing("Only the old run has", found.gone)
    yield from _missing("Only the new run has", found.come)
    yield ""
    everything = (*found.kernels, *found.rows)
    yield from wrap(
        f"Compared: {len(found.rows)} rows, and {len(found.kernels)} kernels that have several. "
        "The intervals of all rows hold together with 95 % confidence, and those of all kernels. "
        f"Between the runs a row moves by {100 * found.scatter:.1f} % for no reason (one "
        "deviation), which they include.",
        WIDTH,
    )
    if found.other_moods:
        yield from wrap(
            f"Not compared: {found.other_moods} rows, for which the runs met the machine in other "
            "moods (another clock, a neighbour on the core): run one of them again, or with more "
            "--passes.",
            WIDTH,
        )
    if found.foreign:
        yield f"Not judged: {found.foreign} rows of other libraries."
    yield from _agreement(found.agreement)
    for what, changes in (("kernels", found.kernels), ("rows", found.rows)):
        blind = sum(change.blind(found.threshold) for change in changes)
        if blind:
            yield from wrap(
                f"Too uncertain to be sure of {percent} in {blind} of {len(changes)} {what}: "
                "measure longer (--passes), with nothing else running.",
                WIDTH,
            )
    if not everything and not found.other_moods:
        yield "The runs have no timed row in common: nothing was compared."
    verdict = "passed" if found.passed else "FAILED"
    yield from wrap(f"{verdict}: {found.verdict}.", WIDTH)


def _agreement(found: Agreement) -> Iterator[str]:
    """Yield in how many rows the ratios agree, and the worst of those in which they do not."""
    if not found.ratios:
        return
    text = (
        f"Ratios agree in {found.agree} of {found.ratios} rows "
        f"({100 * found.agree // found.ratios} %): times as fast as NumPy, and of peers the "
        "time over fastneuron's, in the intervals of each run"
    )
    worst = [
        f"{one.key.name} {one.key.label}, {one.key.backend}: {_interval(one.old)}, then "
        f"{_interval(one.new)}"
        for one in found.apart[:_NAMED]
    ]
    yield from lines(text + ("; not in these, the worst first:" if worst else "."))
    for name in worst:
        yield from wrap(name, WIDTH, initial_indent="  ", subsequent_indent="    ")
    if len(found.apart) > _NAMED:
        yield f"  and {len(found.apart) - _NAMED} more (--json has them)"


def _interval(ratio: Ratio) -> str:
    value, low, high = located(ratio.value, ratio.low, ratio.high)
    return f"{value} ({low} to {high})"


def _listed(title: str, changes: Sequence[Change]) -> Iterator[str]:
    if not changes:
        return
    yield ""
    ordered = sorted(changes, key=lambda c: (bool(c.label), -abs(c.ratio.value - 1)))
    head = (title, "backend", "new/old", "interval")
    cells = [
        (
            f"{c.name} {c.label or f'({c.rows} rows)'}",
            c.backend,
            f"{c.ratio.value:.3f}",
            f"{c.ratio.low:.3f} to {c.ratio.high:.3f}",
        )
        for c in ordered[:_LISTED]
    ]
    yield from table(head, cells)
    if len(ordered) > _LISTED:
        yield f"and {len(ordered) - _LISTED} more (--json has them)"


def _missing(title: str, keys: Iterable[Key]) -> Iterator[str]:
    named = [f"{key.name} {key.label}, {key.backend}" for key in keys]
    if named:
        more = f"; and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        yield from _wrapped(f"{title}: ", "; ".join(named[:_LISTED]) + more)


def _wrapped(lead: str, text: str) -> list[str]:
    return wrap(lead + text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
