"""A run as text of at most 80 columns: workloads down, backends side by side; peers in lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from fastneuron.bench import others
from fastneuron.bench.ceilings import Ceilings
from fastneuron.bench.results import Result, Row
from fastneuron.bench.workloads import BACKENDS, HOST, PEER_SUITES
from fastneuron.bench.writing import digits, lines
from fastneuron.peers.roster import PEERS

__all__ = ["report"]

#: Up to so many columns a name that has one workload only stands on its line.
_ONE_LINE = 32
#: Seconds below which a start is not worth a number of its own.
_AT_ONCE = 0.01

_KEY = (
    "us: median time of one call or step, microseconds. x: times as fast as NumPy in the same "
    "rounds. %: share of the ceiling, the time that the multiply-adds or the bytes take at the "
    "best pace measured here. '-': no such figure."
)


def report(result: Result) -> Iterator[str]:
    """Yield the lines that show a run."""
    yield from _head(result)
    blocks = groupby(result.rows, key=lambda row: (row.key.suite, row.key.backend in HOST))
    for (suite, _), rows in blocks:
        yield ""
        show = others.block if suite in PEER_SUITES else _suite
        yield from show(suite, list(rows), result)
    yield from others.fastest_others(result)
    yield ""
    suites = {row.key.of_peers for row in result.rows}
    if False in suites:
        yield from lines(_KEY)
    if True in suites:
        yield from others.key_of_peers(result)
    yield from _said(result)


def _head(result: Result) -> Iterator[str]:
    found = result.machine
    ceilings = Ceilings.from_json(result.ceilings)
    versions = found["versions"]
    yield from lines(
        f"fastneuron {versions['fastneuron']}, Python {versions['python']}, "
        f"NumPy {versions['numpy']}, Numba {versions['numba'] or 'missing'}{_others(result)}; "
        f"{found['processor']}, {found['platform']}; {result.team}"
    )
    peaks = ", ".join(f"{dtype} {pace:.0f}" for dtype, pace in ceilings.gflops.items())
    copies = ", ".join(f"{_size(size)} {pace:.0f}" for size, pace in ceilings.gbytes)
    yield from lines(f"Ceilings measured here, GFLOP/s: {peaks}; copies, GB/s: {copies}.")
    first = sum(row.start_seconds or 0.0 for row in result.rows)
    yield from lines(
        f"Not in the times: loading {_starts(result)}; and first calls, which compile or load what "
        f"was compiled ({digits(first, 2)} s)."
    )


def _others(result: Result) -> str:
    """Return the versions of the libraries that have rows here."""
    if not any(row.key.foreign for row in result.rows):
        return ""
    versions = result.machine["versions"]
    names = dict.fromkeys(kind.distribution for kind in PEERS.values() if not kind.ours)
    return "".join(f", {n} {versions[n]}" for n in names if n in versions and n != "numpy")


def _starts(result: Result) -> str:
    """Return how long loading took; of those that share a library, the first one loads it."""
    slow = [f"{name} {digits(s, 2)} s" for name, s in result.starts.items() if s >= _AT_ONCE]
    if len(slow) < len(result.starts):
        slow.append(f"{'the others ' if slow else 'all '}below {_AT_ONCE:g} s")
    return ", ".join(slow)


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _suite(suite: str, rows: list[Row], result: Result) -> Iterator[str]:
    """Yield a block: a heading for each name, under it a line for each workload."""
    present = {row.key.backend for row in rows}
    names = [name for name in (*BACKENDS, *HOST) if name in present]
    shown: list[tuple[str, list[str]]] = []
    for name, group in groupby(rows, key=lambda row: row.key.name):
        sides = [
            (label, {row.key.backend: row for row in side})
            for label, side in groupby(group, key=lambda row: row.key.label)
        ]
        alone = f"{name} {sides[0][0]}"
        if len(sides) == 1 and len(alone) <= _ONE_LINE:
            shown.append((alone, _cells(sides[0][1], names, result)))
            continue
        shown.append((name, []))
        shown += [(f"  {label}", _cells(side, names, result)) for label, side in sides]
    head = [suite, *(part for name in names for part in _columns(name))]
    unit = ["", *(part for name in names for part in _units(name))]
    table = [head, unit, *([first, *cells] for first, cells in shown)]
    widths = [
        max(len(line[i]) for line in table if i < len(line) and (i or len(line) > 1))
        for i in range(len(head))
    ]
    for line in table:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
        yield "  ".join(cells).rstrip()


def _columns(name: str) -> list[str]:
    return [name, ""] if name in ("numpy", "host") else [name, "", ""]


def _units(name: str) -> list[str]:
    return ["us", "%"] if name in ("numpy", "host") else ["us", "x", "%"]


def _cells(rows: Mapping[str, Row], names: list[str], result: Result) -> list[str]:
    cells: list[str] = []
    for name in names:
        row = rows.get(name)
        blank = [""] * (len(_columns(name)) - 1)
        if row is None:
            cells += ["", *blank]
        elif row.status != "ok":
            cells += ["-" if row.status == "missing" else row.status.upper(), *blank]
        else:
            cells.append(digits(1e6 * row.median))
            if len(blank) == 2:
                against = result.against_numpy(row)
                cells.append(digits(against.value if against else None, 2))
            share = row.share
            cells.append("-" if share is None else f"{100 * share:.0f}")
    return cells


def _said(result: Result) -> Iterator[str]:
    """Yield what is no figure: what is wrong, missing or left out."""
    for row in result.wrong:
        text = f"{row.status.upper()}: {row.key.name} {row.key.label}, {row.key.backend}"
        yield from lines(f"{text}: {row.reason}", "  ")
    yield from others.not_their_own(result.rows)
    for name, reason in result.missing.items():
        yield from lines(f"Missing: {name}: {reason}", "  ")
    if result.not_measured:
        yield f"{result.not_measured} workloads not measured, for lack of time (see --resume)."
    mine = (row for row in result.rows if not row.key.of_peers)
    errors = [row.error_over_bound for row in mine if row.error_over_bound is not None]
    if errors:
        yield from lines(
            f"{len(errors)} results were checked against the NumPy reference in float64; the "
            f"largest error is {max(errors):.2f} of its proved bound."
        )
    yield from others.checked(result.rows)
