"""A peer at its start: made, judged by its first steps, clocked so that a block can be sized."""

from __future__ import annotations

import time
from typing import NamedTuple

from fastneuron.peers.judging import Judge
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Problem

__all__ = ["Started", "started"]


class Started(NamedTuple):
    """A peer that trains what it should.

    Attributes
    ----------
    peer : Peer
        At the problem's parameters.
    start_seconds : float
        That its making and its first steps took beyond later ones: compiling, and the first touch
        of memory.
    step_seconds : float
        Of a later step; one look at the clock.
    loss_error, way_error : float
        See `Judge.errors`.
    """

    peer: Peer
    start_seconds: float
    step_seconds: float
    loss_error: float
    way_error: float


def started(kind: type[Peer], problem: Problem, judge: Judge, threads: int) -> Started:
    """Return a peer that was judged.

    Raises
    ------
    Unsupported
        Where it cannot do what the problem asks for.
    WrongResult
        Where its first steps are not those of the reference.
    """
    start = time.perf_counter()
    peer = kind(problem, threads)
    losses = peer.advance(judge.order)
    first = time.perf_counter() - start
    errors = judge.errors(peer, losses)
    peer.reset()
    start = time.perf_counter()
    peer.advance(judge.order)
    again = time.perf_counter() - start
    return Started(peer, max(first - again, 0.0), again / len(judge.order), *errors)
