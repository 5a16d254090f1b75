"""Runs suites: checks each workload, then times its backends by turns, in several passes.

A pass goes through all workloads once, later than the one before, so that a mood of the machine
does not pass for a property of a kernel, and makes their data anew, so that the luck of where
arrays lie is drawn again. The command gives each pass a process of its own, which draws the places
of the code too. Yardsticks take turns with the backends: they are what a comparison with another
run is put in relation to (see `comparing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fastneuron import backends, machine, peers
from fastneuron.bench.ceilings import Ceilings, measure
from fastneuron.bench.results import Key, Result, Row, Sample
from fastneuron.bench.suites import workloads
from fastneuron.bench.workloads import BACKENDS, HOST, PEER_SUITES, NotItsOwn, Prepared, Workload
from fastneuron.errors import BackendUnavailable, DataError, SpecError
from fastneuron.peers.environment import SETTLE
from fastneuron.peers.roster import PEERS
from fastneuron.profiling.pairs import Series, interleaved
from fastneuron.threads import requested_threads, usable_cores

__all__ = ["choose", "passes_of", "run", "yardsticks"]

#: Passes of a full and of a quick run, rounds of a pass, and seconds for the rounds of a workload.
PASSES, ROUNDS, SECONDS = (4, 4), (10, 10), (0.4, 0.25)
#: Rounds of work that takes a tenth of a second.
FEWEST = 5
#: How `interleaved` names the yardsticks.
_YARD = "yardstick {}".format

Clock = Callable[[], float]
Told = Callable[[str], None]


def yardsticks() -> list[Callable[[int], None]]:
    """Return work that no change of fastneuron touches.

    All multiply-adds, other vector operations, and the interpreter: a busy neighbour on the other
    half of a core slows the first by a twentieth, the second by a third, the last by more.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 256), (256, 256)))
    product = np.empty((64, 256), np.float32)
    powers = np.empty_like(b)
    numbers = list(range(500))

    def products(units: int) -> None:
        for _ in range(units):
            np.matmul(a, b, out=product)

    def exponentials(units: int) -> None:
        for _ in range(units):
            np.exp(b, out=powers)

    def interpreted(units: int) -> None:
        for _ in range(units):
            total = 0
            for number in numbers:
                total += number

    return [products, exponentials, interpreted]


def run(
    suite: str = "all",
    *,
    quick: bool = False,
    names: Iterable[str] = (),
    only: Iterable[str] = (),
    dtypes: Iterable[str] = (),
    passes: int | None = None,
    last_pass: int | None = None,
    seconds: float = float("inf"),
    earlier: Result | None = None,
    told: Told = lambda _: None,
    clock: Clock = time.perf_counter,
    listed: list[Workload] | None = None,
) -> Result:
    """Run a suite and return what was found.

    Parameters
    ----------
    suite : str
        A name of `SUITES`, or "all".
    quick : bool
        Fewer workloads, passes and rounds: some two minutes for all suites.
    names : iterable of str
        Backends and peers; where none of them is named, all that run here.
    only : iterable of str
        Parts of the name of a workload, one of which it must have.
    dtypes : iterable of str
    passes : int, optional
        How often each workload is measured.
    last_pass : int, optional
        End after this pass; later ones may go on with the result.
    seconds : float
        No workload is begun after so long.
    earlier : Result, optional
        A run that stopped before its end, or to which passes are added.
    told : callable
        Is told what goes on, a line at a time.
    clock : callable
        Returns seconds.
    listed : list of Workload, optional
        What to run in place of a suite.

    Raises
    ------
    UnknownNameError
        Where there is no such suite.
    SpecError
        Where no workload is left.
    DataError
        Where `earlier` is of another machine, version or number of threads.
    """
    begin = clock()
    chosen = choose(suite, quick, only, dtypes) if listed is None else listed
    last = passes_of(chosen, quick, passes)
    turns = min(last, last_pass or last)
    threads = requested_threads(None)
    settings = {"suite": suite, "quick": quick, "threads": threads, "passes": turns,
                "rounds": ROUNDS[quick]}  # fmt: skip
    usable, starts, missing = _load(tuple(names), {name for w in chosen for name in w.backends})
    described = _described()
    ceilings = measure(threads or usable_cores())
    if earlier is not None:
        _check_same(earlier, described, settings)
        # Whatever pace the machine reaches in this run counts: it may have been busy at the start.
        ceilings = ceilings.best_with(Ceilings.from_json(earlier.ceilings))
        starts = {**earlier.starts, **starts}
    found: dict[Key, Row] = {} if earlier is None else earlier.by_key()
    left: list[Workload] = []
    for turn in range(turns):
        left = []
        for workload in chosen:
            keys = _keys(workload, usable)
            if turn >= passes_of([workload], quick, passes):
                continue
            if all(_done(found.get(key), turn) for key in keys):
                continue
            if clock() - begin > seconds:
                left.append(workload)
                continue
            told(f"pass {turn + 1}: {workload.suite}, {workload}")
            for row in _measure(workload, usable, turn, quick, clock):
                found[row.key] = _joined(found.get(row.key), row)
    told("")
    return Result(
        described,
        settings,
        ceilings.to_json(),
        starts,
        missing,
        tuple(
            replace(row, floor_seconds=ceilings.floor(row.flop, row.nbytes, row.key.dtype))
            for row in _ordered(found, chosen)
        ),
        len(left),
    )


def choose(
    suite: str, quick: bool = False, only: Iterable[str] = (), dtypes: Iterable[str] = ()
) -> list[Workload]:
    """Return the workloads that `run` would measure; see there for the errors."""
    listed = workloads(suite)
    parts, dtypes = tuple(only), tuple(dtypes)
    chosen = [
        w
        for w in listed
        if (w.quick or not quick)
        and (not parts or any(part in str(w) for part in parts))
        and (not dtypes or w.dtype in dtypes)
    ]
    if not chosen:
        raise SpecError(
            f"no workload is left of {len(listed)}: --only wants part of a name such as "
            f"{str(listed[0])!r}, and --quick leaves most out"
        )
    return chosen


def passes_of(chosen: Iterable[Workload], quick: bool, passes: int | None) -> int:
    """Return after how many passes all of these workloads are measured."""
    return passes or max((w.passes or PASSES)[quick] for w in chosen)


def _described() -> dict[str, Any]:
    """Return the machine; what changes from run to run of the same one is left out."""
    found = machine.describe()
    others = {kind.distribution: kind.version() for kind in PEERS.values() if not kind.missing()}
    found["versions"] = others | found["versions"]
    return {name: found[name] for name in ("versions", "platform", "processor", "cpu_features",
                                           "cores")}  # fmt: skip


def _load(
    names: tuple[str, ...], needed: set[str]
) -> tuple[tuple[str, ...], dict[str, float], dict[str, str]]:
    """Load who is needed; return those that run, their seconds, and why the others do not."""
    usable: list[str] = []
    starts: dict[str, float] = {}
    missing: dict[str, str] = {}
    for every in (BACKENDS, peers.NAMES):
        for name in [name for name in every if name in names] or every:
            if name not in needed or name in usable:
                continue
            start = time.perf_counter()
            try:
                if every is BACKENDS:
                    _ = backends.get(name).slots
                else:
                    PEERS[name].check()
                    PEERS[name].load()
            except BackendUnavailable as error:
                missing[name] = str(error)
            except Exception as error:  # a damaged library: the others are measured all the same
                missing[name] = f"{type(error).__name__}: {error}"
            else:
                usable.append(name)
                starts[name] = time.perf_counter() - start
    return tuple(usable), starts, missing


def _check_same(earlier: Result, described: dict[str, Any], settings: dict[str, Any]) -> None:
    for what, one, other in (
        *((name, earlier.machine.get(name), described[name]) for name in described),
        *((name, earlier.settings.get(name), settings[name]) for name in ("threads", "rounds")),
    ):
        if one != other:
            raise DataError(
                f"the run to go on with has {what} {one}, this one has {other}; begin a new file"
            )


def _keys(workload: Workload, usable: tuple[str, ...]) -> list[Key]:
    w = workload
    contestants = HOST if w.backends == HOST else [n for n in w.backends if n in usable]
    return [Key(w.suite, w.name, w.shape, w.dtype, w.bias, name) for name in contestants]


def _done(row: Row | None, turn: int) -> bool:
    return row is not None and (row.status != "ok" or len(row.samples) > turn)


def _measure(
    workload: Workload,
    usable: tuple[str, ...],
    turn: int,
    quick: bool,
    clock: Clock,
) -> list[Row]:
    """Check every backend at a workload, then time those that are right, by turns."""
    w = workload
    base: dict[str, Any] = {"flop": w.flop, "nbytes": w.nbytes, "rows": w.rows}
    prepare = w.build()
    rows: list[Row] = []
    ready: dict[Key, Prepared] = {}
    for key in _keys(w, usable):
        try:
            ready[key] = prepare(key.backend)
        except NotItsOwn as other:
            rows.append(Row(key, "missing", str(other), **base))
        except AssertionError as error:
            rows.append(Row(key, "wrong", " ".join(str(error).split()), **base))
        except Exception as error:  # the others are measured all the same
            rows.append(Row(key, "failed", f"{type(error).__name__}: {error}", **base))
    while ready:
        contestants: dict[Any, Callable[[int], object]] = {
            key: partial(_guarded, key, prepared.work) for key, prepared in ready.items()
        }
        contestants |= {_YARD(i): work for i, work in enumerate(yardsticks())}
        try:
            measured: Mapping[Any, Series] = interleaved(
                contestants,
                SECONDS[quick],
                rounds=ROUNDS[quick],
                fewest=FEWEST,
                pause=SETTLE if w.suite in PEER_SUITES and requested_threads(None) != 1 else 0.0,
                seed=turn,
                clock=clock,
            )
        except _BrokenOff as stop:  # without it, the others can go on
            del ready[stop.key]
            rows.append(Row(stop.key, "failed", str(stop), **base))
            continue
        yards = [one.seconds.tolist() for name, one in measured.items() if name not in ready]
        for key, prepared in ready.items():
            sample = Sample((measured[key].seconds / prepared.units).tolist(), yards)
            rows.append(
                Row(
                    key,
                    "ok",
                    **base,
                    error_over_bound=prepared.error_over_bound,
                    start_seconds=prepared.start_seconds,
                    more=prepared.more,
                    samples=(sample,),
                )
            )
        break
    return rows


class _BrokenOff(Exception):
    """Work that was right when it was checked, and failed while it was timed."""

    def __init__(self, key: Key, error: Exception) -> None:
        super().__init__(f"while it was timed: {type(error).__name__}: {error}")
        self.key = key


def _guarded(key: Key, work: Callable[[int], object], units: int) -> None:
    try:
        work(units)
    except Exception as error:
        raise _BrokenOff(key, error) from error


def _joined(before: Row | None, row: Row) -> Row:
    """Return a row with the passes before; one that is not right has no time at all."""
    if before is None or row.status != "ok" or before.status != "ok":
        return row
    errors = (e for e in (before.error_over_bound, row.error_over_bound) if e is not None)
    return replace(
        row,
        error_over_bound=max(errors),
        start_seconds=before.start_seconds,
        samples=before.samples + row.samples,
    )


def _ordered(found: dict[Key, Row], chosen: list[Workload]) -> tuple[Row, ...]:
    """Return rows as the suites have them, what this run did not ask for after them."""
    place = {key: i for i, key in enumerate(key for w in chosen for key in _keys(w, w.backends))}
    return tuple(sorted(found.values(), key=lambda row: place.get(row.key, len(place))))
