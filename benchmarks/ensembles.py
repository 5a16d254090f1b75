"""Many networks at once: `Ensemble` over trainers one by one, and beside others' vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from figures import Figure, at_least, quotient, report, unmeasured
from racing import Contestant, Say, race

import fastneuron
from fastneuron.gpu_suite.gpu_peers import JaxVmap, TorchVmap, many_starts
from fastneuron.kernels.contract import Parameters
from fastneuron.kernels.ensemble_contract import of_model
from fastneuron.peers.engines import FastneuronNumba
from fastneuron.peers.jax_peers import JaxScan
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Problem, Row
from fastneuron.peers.torch_peers import Torch

Array = Any

MODELS = 100
ROW = Row.parse("20-64-64-2 b32 adam")
#: Trainers one by one over the ensemble, and the fastest other library over it.
TRAINERS_GOAL, OTHERS_GOAL = 0.9, 1.0


class Ours(FastneuronNumba):
    """`Ensemble.run`. Losses and parameters that it returns are those of the first network."""

    name = "ensemble"

    def _new_engine(self) -> Any:
        return None  # each network's is made at `reset`

    def reset(self) -> None:
        problem = self.problem
        spec, many = problem.spec(problem.dtype), many_starts(problem, MODELS)
        self.nets = [fastneuron.Sequential(*spec.layers, seed=m) for m in range(MODELS)]
        for m, net in enumerate(self.nets):
            net.parameters.replace(of_model(many, m))
        self.start()

    def start(self) -> None:
        how = self.problem.loss, self.optimizer, self.problem.batch, "numba"
        self.ensemble = fastneuron.Ensemble(self.nets, *how)

    def advance(self, order: Array) -> Array:
        return self.run(*self.rows(order))[:, 0]

    def run(self, x: Array, y: Array) -> Array:
        return self.ensemble.run(x, y, shuffle=False)

    def rows(self, order: Array) -> tuple[Array, Array]:
        """Return the batches one behind the other: once for all networks."""
        rows = order.reshape(-1)
        return self.problem.x[rows], self.problem.y[rows]

    def export(self) -> Parameters:
        return self.nets[0].parameters.pull()

    def statistics(self) -> Parameters:
        return []


class Trainers(Ours):
    """`Trainer.run` of one network after another."""

    name = "trainers"

    def start(self) -> None:
        how = self.problem.loss, self.optimizer, self.problem.batch, "numba"
        self.trainers = [fastneuron.Trainer(net, *how) for net in self.nets]

    def run(self, x: Array, y: Array) -> Array:
        return np.stack([each.run(x, y, shuffle=False) for each in self.trainers], axis=1)


class TorchMany(TorchVmap):
    device = "cpu"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads, MODELS)

    @classmethod
    def missing(cls) -> str:
        return super(Torch, cls).missing()


class JaxMany(JaxVmap):
    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads, MODELS)

    @classmethod
    def missing(cls) -> str:
        return super(JaxScan, cls).missing()


KINDS: tuple[type[Peer], ...] = (Ours, Trainers, TorchMany, JaxMany)


def ensembles(
    seconds: float, say: Say, row: Row = ROW, cores: int = 1, kinds: Sequence[type[Peer]] = KINDS
) -> dict[str, Any]:
    """Train many networks in every way that is here, by turns."""
    label = f"{MODELS} x {row.label}"
    gone = {kind.name: reason for kind in kinds if (reason := kind.missing())}
    present = [kind for kind in kinds if kind.name not in gone]
    results = race([Contestant(kind.name, kind, row) for kind in present], cores, seconds, say)
    figures = []
    for kind in kinds:
        what = f"{label}: {kind.name}, a step of all"
        if kind.name in gone:
            figures.append(Figure(what, None, "us", status="missing", reason=gone[kind.name]))
        elif "reason" in results[kind.name]:
            figures.append(unmeasured(what, results[kind.name], unit="us"))
        else:
            result = results[kind.name]
            figures.append(Figure(what, result["microseconds"], "us", detail=result))
    for kind in present[1:]:
        goal = at_least(TRAINERS_GOAL if kind is Trainers else OTHERS_GOAL)
        what = f"{label}: {kind.name} over ensemble"
        figures.append(quotient(what, results, kind.name, "ensemble", goal))
    return report(figures)
