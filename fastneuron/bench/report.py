"""A run as a table of at most 80 columns: workloads down, backends side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from textwrap import wrap

from fastneuron.bench.ceilings import Ceilings
from fastneuron.bench.results import Result, Row
from fastneuron.bench.workloads import BACKENDS, HOST

__all__ = ["WIDTH", "digits", "report"]

WIDTH = 80  # columns
#: Up to so many columns a name that has one workload only stands on its line.
_ONE_LINE = 32

_KEY = (
    "us: median time of one call or step, microseconds. x: times as fast as NumPy in the same "
    "rounds. %: share of the ceiling, the time that the multiply-adds or the bytes take at the "
    "best pace measured here. '-': no such figure."
)


def digits(value: float | None, count: int = 3) -> str:
    """Return so many digits of a number, written out: what a repeated run would confirm."""
    if value is None:
        return "-"
    rounded = float(f"{value:.{count}g}")
    size = abs(rounded)
    whole = 1
    while size >= 10**whole:
        whole += 1
    places = max(0, count - whole)
    while size and size < 1 and size < 10 ** -(places - count + 1):
        places += 1
    return f"{rounded:.{places}f}"


def report(result: Result) -> Iterator[str]:
    """Yield the lines that show a run."""
    yield from _head(result)
    blocks = groupby(result.rows, key=lambda row: (row.key.suite, row.key.backend in HOST))
    for (suite, _), rows in blocks:
        yield ""
        yield from _suite(suite, list(rows), result)
    yield ""
    yield from wrap(_KEY, WIDTH)
    yield from _said(result)


def _head(result: Result) -> Iterator[str]:
    found = result.machine
    ceilings = Ceilings.from_json(result.ceilings)
    versions = found["versions"]
    yield from wrap(
        f"fastneuron {versions['fastneuron']}, Python {versions['python']}, "
        f"NumPy {versions['numpy']}, Numba {versions['numba'] or 'missing'}; "
        f"{found['processor']}, {found['platform']}; {result.team}",
        WIDTH,
    )
    peaks = ", ".join(f"{dtype} {pace:.0f}" for dtype, pace in ceilings.gflops.items())
    copies = ", ".join(f"{_size(size)} {pace:.0f}" for size, pace in ceilings.gbytes)
    yield from wrap(f"Ceilings measured here, GFLOP/s: {peaks}; copies, GB/s: {copies}.", WIDTH)
    starts = ", ".join(f"{name} {digits(s, 2)} s" for name, s in result.starts.items())
    first = sum(row.start_seconds or 0.0 for row in result.rows)
    yield from wrap(
        f"Not in the times: loading backends ({starts}), and first calls, which compile or load "
        f"what was compiled ({digits(first, 2)} s).",
        WIDTH,
    )


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _suite(suite: str, rows: list[Row], result: Result) -> Iterator[str]:
    """Yield a block: a heading for each name, under it a line for each workload."""
    present = {row.key.backend for row in rows}
    names = [name for name in (*BACKENDS, *HOST) if name in present]
    lines: list[tuple[str, list[str]]] = []
    for name, group in groupby(rows, key=lambda row: row.key.name):
        sides = [
            (label, {row.key.backend: row for row in side})
            for label, side in groupby(group, key=lambda row: row.key.label)
        ]
        alone = f"{name} {sides[0][0]}"
        if len(sides) == 1 and len(alone) <= _ONE_LINE:
            lines.append((alone, _cells(sides[0][1], names, result)))
            continue
        lines.append((name, []))
        lines += [(f"  {label}", _cells(side, names, result)) for label, side in sides]
    head = [suite, *(part for name in names for part in _columns(name))]
    unit = ["", *(part for name in names for part in _units(name))]
    table = [head, unit, *([first, *cells] for first, cells in lines)]
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
        yield from wrap(f"{text}: {row.reason}", WIDTH, subsequent_indent="  ")
    for name, reason in result.missing.items():
        yield from wrap(f"Missing: {name}: {reason}", WIDTH, subsequent_indent="  ")
    if result.not_measured:
        yield f"{result.not_measured} workloads not measured, for lack of time (see --resume)."
    errors = [row.error_over_bound for row in result.rows if row.error_over_bound is not None]
    if errors:
        yield from wrap(
            f"{len(errors)} results were checked against the NumPy reference in float64; the "
            f"largest error is {max(errors):.2f} of its proved bound.",
            WIDTH,
        )
