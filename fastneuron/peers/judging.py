"""Whether a peer trains what it should: its first steps against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.peers.engines import Reference
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Problem, Row, draw_order

__all__ = ["DRAWN_TOLERANCE", "LOSS_TOLERANCE", "WAY_TOLERANCE", "Judge", "WrongResult", "ways"]

Array = Any

#: A result is wrong where a step's loss is off by this share of the float64 reference's loss, or
#: the way that some array of parameters went by this share of the reference's way (both as sums of
#: absolute values) beyond what rounding the parameters may hide. What is allowed to float32 are the
#: few ReLUs whose input is zero but for its rounding: they send Adam's first steps elsewhere. A
#: learning rate 2 % off is 2e-2 of the way.
LOSS_TOLERANCE, WAY_TOLERANCE = 1e-3, 1e-2
#: Share of the loss, the mean of all compared steps, that may be due to which numbers were dropped,
#: for peers that draw them in a way of their own. A step of 256 rows is off by less than 1e-2.
DRAWN_TOLERANCE = 3e-2
#: Multiply-adds of the steps that are compared: a second of float64 at 50 GFLOP/s.
CHECK_WORK, LEAST_CHECKED, MOST_CHECKED = 25e9, 2, 10


def ways(parameters: Parameters, start: Parameters) -> list[Array]:
    """Return how far every parameter has come, a float64 array for each weight and bias."""
    return [
        np.subtract(array, first, dtype=np.float64)
        for pair, origin in zip(parameters, start, strict=True)
        for array, first in zip(pair, origin, strict=True)
        if array is not None and first is not None
    ]


def unseen(problem: Problem, steps: int) -> list[float]:
    """Return, by array, the way that rounding each step's parameters may hide: half an ulp each."""
    u = float(np.finfo(problem.dtype).eps) / 2
    pairs = problem.parameters + problem.statistics
    arrays = (array for pair in pairs for array in pair if array is not None)
    return [steps * u * float(np.abs(array).sum(dtype=np.float64)) for array in arrays]


class WrongResult(Exception):
    """A peer's steps are not those of the reference; the message says by how much."""


class Judge:
    """Compares a peer's steps with those of the float64 reference on the same batches."""

    def __init__(self, row: Row | Problem, rng: np.random.Generator) -> None:
        steps = int(np.clip(CHECK_WORK / row.multiply_adds, LEAST_CHECKED, MOST_CHECKED))
        self.order = draw_order(rng, row.data_rows, row.batch, steps)
        self._want: dict[Problem, tuple[Array, list[Array], list[float]]] = {}

    def errors(self, peer: Peer, losses: Array) -> tuple[float, float]:
        """Return the errors of loss and way after `order` was trained; raise if they are large."""
        problem = peer.problem
        if problem not in self._want:
            reference = Reference(problem)
            want = reference.advance(self.order)
            goals = self._ways(reference)
            self._want[problem] = want, goals, unseen(problem, len(self.order))
        want, goals, hidden = self._want[problem]
        if problem.dropout and not peer.drops_alike:
            return self._drawn_error(losses, want), 0.0
        if not peer.loss_each_step:
            want = np.full(len(want), want.mean())
        gone = self._ways(peer)
        loss_error = float(np.max(np.abs(losses - want) / np.abs(want)))
        # What rounding may hide is granted on top: error <= tolerance means
        # |got - goal| <= tolerance * |goal| + hidden. Where both are 0, so must be the error.
        # np.max, not max: a NaN stays one.
        tiny = np.finfo(np.float64).tiny
        shares = [
            np.abs(got - goal).sum() / (np.abs(goal).sum() + lost / WAY_TOLERANCE + tiny)
            for got, goal, lost in zip(gone, goals, hidden, strict=True)
        ]
        way_error = float(np.max(shares))
        # Not "error > tolerance": a NaN is wrong too.
        if not (loss_error <= LOSS_TOLERANCE and way_error <= WAY_TOLERANCE):
            raise WrongResult(
                f"after {len(want)} steps the loss is off by {loss_error:.1e} (allowed "
                f"{LOSS_TOLERANCE:.0e}), an array's way by {way_error:.1e} ({WAY_TOLERANCE:.0e})"
            )
        return loss_error, way_error

    @staticmethod
    def _ways(peer: Peer) -> list[Array]:
        """Return how far parameters and running statistics have come."""
        start = peer.problem.parameters + peer.problem.statistics
        return ways(peer.export() + peer.statistics(), start)

    @staticmethod
    def _drawn_error(losses: Array, want: Array) -> float:
        """Return the error of the mean loss, where other random numbers were dropped."""
        error = float(abs(losses.mean() / want.mean() - 1))
        if not error <= DRAWN_TOLERANCE:
            raise WrongResult(
                f"the mean loss of {len(want)} steps is off by {error:.1e}, more than what is "
                f"dropped explains ({DRAWN_TOLERANCE:.0e})"
            )
        return error
