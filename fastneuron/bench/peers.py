"""The suite `peers`: the same training steps by other libraries, by turns with fastneuron."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from fastneuron.bench.workloads import NotItsOwn, Prepare, Prepared, Workload
from fastneuron.peers import NAMES
from fastneuron.peers.judging import (
    DRAWN_TOLERANCE,
    LOSS_TOLERANCE,
    WAY_TOLERANCE,
    Judge,
    WrongResult,
)
from fastneuron.peers.peer import Peer, Unsupported
from fastneuron.peers.problems import TABLE, Problem, Row, draw_order, problem_of
from fastneuron.peers.roster import PEERS
from fastneuron.peers.starting import Started, started
from fastneuron.threads import requested_threads, usable_cores

__all__ = ["PASSES", "enter", "peers"]

#: What is trained beside the table of whole steps.
MORE = ("784-512-512-10 b256 adam batch_norm", "784-512-512-10 b256 adam dropout0.1")
#: Rows of the quick run: the smallest network of use, and one of the size of a first example.
QUICK = ("20-64-64-2 b32 adam", "784-128-10 b128 adam")
#: Passes of a full and of a quick run. Each loads and compiles everything anew, a minute of it.
PASSES = (3, 2)
#: Seconds of a call that trains many steps at once, as all peers are used; and steps at most, so
#: that the order of their rows stays in a cache.
CALL_SECONDS, MOST_STEPS = 0.02, 32768


def peers() -> Iterator[Workload]:
    """Yield the training steps that all libraries are asked for."""
    for row in (*TABLE, *map(Row.parse, MORE)):
        sizes, rest = row.label.split(" ", 1)
        yield Workload(
            "peers", f"step {sizes}", rest, row.dtype, row.bias, partial(_race, row),
            2.0 * row.multiply_adds, 0.0, row.batch, quick=row.label in QUICK, backends=NAMES,
            passes=PASSES,
        )  # fmt: skip


def _race(row: Row) -> Prepare:
    rng = np.random.default_rng(1)
    problem, judge = problem_of(row), Judge(row, rng)

    def prepare(name: str) -> Prepared:
        one = enter(PEERS[name], problem, judge)
        steps = int(np.clip(CALL_SECONDS / one.step_seconds, 1, MOST_STEPS))
        order = draw_order(rng, row.data_rows, row.batch, steps)
        work = partial(_train, one.peer, order)
        work(1)  # jax-scan compiles for so many steps
        drawn = problem.dropout and not one.peer.drops_alike
        allowed = DRAWN_TOLERANCE if drawn else LOSS_TOLERANCE
        error = max(one.loss_error / allowed, one.way_error / WAY_TOLERANCE)
        return Prepared(work, error, one.start_seconds, units=steps)

    return prepare


def enter(kind: type[Peer], problem: Problem, judge: Judge) -> Started:
    """Return a peer that was judged, with as many threads as this process was told.

    Raises
    ------
    BackendUnavailable
        Where its library is missing.
    NotItsOwn
        Where it cannot do what the problem asks for.
    AssertionError
        Where it trains something else.
    """
    kind.check()
    try:
        return started(kind, problem, judge, requested_threads(None) or usable_cores())
    except Unsupported as why:
        raise NotItsOwn(str(why)) from why
    except WrongResult as error:
        raise AssertionError(str(error)) from error


def _train(peer: Peer, order: Any, units: int) -> None:
    for _ in range(units):
        losses = peer.advance(order)
    if not np.isfinite(losses).all():
        raise FloatingPointError("the loss is no longer finite")
