"""What a run's report says of peers: a block a suite, and who is the fastest of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from fastneuron.bench.results import Key, Result, Row
from fastneuron.bench.writing import digits, lines, located
from fastneuron.peers.judging import DRAWN_TOLERANCE, LOSS_TOLERANCE, WAY_TOLERANCE
from fastneuron.profiling.pairs import Ratio
from fastneuron.reports import table

__all__ = ["block", "checked", "fastest_others", "key_of_peers"]

#: By suite: what its unit is, the unit of its times, and how many of them are a second.
_UNITS = {"peers": ("a step", "us", 1e6), "accuracy": ("a training", "ms", 1e3)}


def key_of_peers(result: Result) -> Iterator[str]:
    """Yield what the columns of peers mean."""
    yield from lines(
        f"Peers: median time. x: times the time of {result.base or 'fastneuron'} in the same "
        "rounds (above 1: slower), and from where to where it lies with 95 % confidence. "
        "%: share of the ceiling. start: seconds of compiling and of the first use, in no other "
        "figure. n/a: not its own, see below."
    )


def block(suite: str, rows: list[Row], result: Result) -> Iterator[str]:
    """Yield a line for each workload, and under it a line for each peer."""
    trained = any("epochs" in row.more for row in rows)
    ceiling = any(row.floor_seconds for row in rows)
    unit = _UNITS[suite][1]
    head = [f"{suite}, {_UNITS[suite][0]}", unit, "x", "from", "to"]
    head += ["%"] * ceiling + ["start s"] + ["epochs", "% right"] * trained
    cells = [_cells(row, result, ceiling, trained) for row in rows]
    first, *shown = table(head, cells)
    yield first
    told = iter(shown)
    for workload, of_one in groupby(rows, key=lambda row: _workload(row.key)):
        yield workload
        for _ in of_one:
            yield next(told)


def _workload(key: Key) -> str:
    return f"{key.name} {key.label}"


def _cells(row: Row, result: Result, ceiling: bool, trained: bool) -> list[str]:
    name = f"  {row.key.backend}"
    if not row.samples:
        word = "n/a" if row.status == "missing" else row.status.upper()
        return [name, word, *[""] * (4 + ceiling + 2 * trained)]
    scale = _UNITS[row.key.suite][2]
    against = result.against_ours(row)
    median, _, _ = located(scale * row.median, *(scale * end for end in row.interval))
    cells = [name, median]
    if against is not None:
        cells += _located(against)
    else:
        cells += ["1" if row.key.backend == result.base else "-", "", ""]
    if ceiling:
        cells.append("-" if row.share is None else f"{100 * row.share:.0f}")
    start = row.start_seconds or 0.0
    cells.append(f"{start:.2f}" if start < 1 else digits(start, 2))
    if trained:
        right = row.more.get("accuracy")
        cells.append(str(row.more.get("epochs", "-")))
        cells.append("-" if right is None else f"{100 * right:.1f}")
    return cells


def not_their_own(rows: Sequence[Row]) -> Iterator[str]:
    """Yield, once, why peers cannot do some of the rows."""
    whose: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.key.of_peers and row.status == "missing":
            whose.setdefault(row.reason, {})[row.key.backend] = None
    for reason, names in whose.items():
        yield from lines(f"n/a: {', '.join(names)}: {reason}", "  ")


def fastest_others(result: Result) -> Iterator[str]:
    """Yield which other library is the fastest at each workload, and where that leaves us."""
    found: list[tuple[Row, Ratio]] = []
    peers = [row for row in result.rows if row.key.foreign]
    for _, rows in groupby(peers, key=lambda row: row.key._replace(backend="")):
        of_one = [(row, against) for row in rows if (against := result.against_ours(row))]
        found += [min(of_one, key=lambda one: one[1].value)] if of_one else []
    if not found:
        return
    shown = [(_workload(row.key), row.key.backend, _located(x)[0]) for row, x in found]
    yield ""
    yield from table(("fastest other library at", "", "x"), shown)
    faster = sum(against.low > 1 for _, against in found)
    slower = sum(against.high < 1 for _, against in found)
    unsure = len(found) - faster - slower
    text = f"{result.base} is faster than all of them at {faster} of {len(found)} workloads"
    text += f", slower than one at {slower}" * (slower > 0) + f", unsure at {unsure}" * (unsure > 0)
    row, least = min(found, key=lambda one: one[1].value)
    other, where = row.key.backend, _workload(row.key)
    if least.value < 1:
        turned = Ratio(1 / least.value, 1 / least.high, 1 / least.low)
        value, low, high = _located(turned)
        worst = f"{other} is {value} times as fast as it ({low} to {high}), at {where}"
    else:
        value, low, high = _located(least)
        worst = f"{value} times as fast as {other} ({low} to {high}), at {where}"
    yield from lines(f"{text}; the least: {worst}.")


def _located(ratio: Ratio) -> tuple[str, str, str]:
    return located(ratio.value, ratio.low, ratio.high)


def checked(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how the results of peers were judged, and how near the worst comes to its limit."""
    done = [row for row in rows if row.key.of_peers and row.samples]
    if not done:
        return
    errors = [row.error_over_bound or 0.0 for row in done if row.key.suite == "peers"]
    largest = (
        f"; the largest error is {digits(max(errors), 2)} of what is allowed" if errors else ""
    )
    yield from lines(
        f"The first steps of {len(done)} rows of peers were judged by the float64 reference: a "
        f"loss may be off by {LOSS_TOLERANCE:g} of it ({DRAWN_TOLERANCE:g} where a library drops "
        f"numbers of its own), the way of an array by {WAY_TOLERANCE:g}. These are tolerances, no "
        f"proved bounds{largest}."
    )
    if reached := len(done) - len(errors):
        yield from lines(
            f"{reached} trainings reached the share of held-out rows that they are asked for."
        )
