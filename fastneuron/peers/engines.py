"""fastneuron's backends as peers, and the float64 reference that judges all of them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fastneuron import backends
from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import Engine, Parameters, Status
from fastneuron.keys import StepKeys
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import BETA1, BETA2, DECAY, EPSILON, MOMENTUM, RHO, Problem
from fastneuron.rates import Rates
from fastneuron.schedules import Horizon
from fastneuron.threads import requested_threads

Array = Any


class Fastneuron(Peer):
    """A backend's engine in chunks of steps, as `Trainer.run` drives it."""

    module = distribution = "fastneuron"
    ours = drops_alike = True
    backend: ClassVar[str]
    #: Left to FASTNEURON_NUM_THREADS, then to the engine, which sees the cores it may use.
    n_threads: ClassVar[int | None] = None
    # Seconds of one call of the engine, as in fastneuron.trainer.
    CHUNK: ClassVar[float] = 0.025

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        rate = problem.learning_rate
        optimizers: dict[str, Optimizer] = {
            "sgd": SGD(rate),
            "momentum": SGD(rate, momentum=MOMENTUM),
            "nesterov": SGD(rate, momentum=MOMENTUM, nesterov=True),
            "adam": Adam(rate, BETA1, BETA2, EPSILON),
            "adamw": AdamW(rate, BETA1, BETA2, EPSILON, DECAY),
            "rmsprop": RMSprop(rate, RHO, EPSILON),
        }
        self.optimizer = optimizers[problem.optimizer]
        self.rates = Rates(self.optimizer)
        self.rates.use_keys(StepKeys(seed=0, epoch=0))
        self.engine = self._new_engine()
        self.chunk = 1
        self.reset()

    def _new_engine(self) -> Engine:
        return backends.get(self.backend).engine(
            self.problem.spec(self._dtype()),
            LOSSES[self.problem.loss],
            self.optimizer,
            n_threads=requested_threads(self.n_threads),
            batch_size=self.problem.batch,
        )

    def _dtype(self) -> str:
        return self.problem.dtype

    @classmethod
    def missing(cls) -> str:
        found = backends.available()[cls.backend]
        return str(found) if isinstance(found, BackendUnavailable) else ""

    @classmethod
    def load(cls) -> None:
        _ = backends.get(cls.backend).slots

    def reset(self) -> None:
        self.step = 0
        zeros = [
            (np.zeros_like(w), None if b is None else np.zeros_like(b))
            for w, b in self.problem.parameters
        ]
        self.engine.load(self.problem.parameters)
        pairs = iter(self.problem.statistics)
        layers = self.engine.spec.layers
        self.engine.load_statistics([next(pairs) if x.has_statistics else None for x in layers])
        self.engine.load_moments([zeros] * self.optimizer.n_moments)

    def advance(self, order: Array) -> Array:
        steps, batch = order.shape
        losses = np.empty(steps)
        done = 0
        while done < steps:
            count = min(self.chunk, steps - done)
            start = time.perf_counter()
            rates = self.rates.rates(self.step, count, Horizon(self.step + count, count))
            outcome = self.engine.run(
                self.problem.x,
                self.problem.y,
                None,
                order[done : done + count].reshape(-1),
                np.arange(count + 1, dtype=np.int64) * batch,
                self.rates.scalars(self.step, rates),
                losses[done : done + count],
            )
            if outcome.status != Status.OK:
                raise FloatingPointError(f"step {self.step + outcome.steps}: {outcome.status.name}")
            pace = (time.perf_counter() - start) / count
            self.chunk = max(1, min(8 * max(self.chunk, count), int(self.CHUNK / pace)))
            self.step += count
            done += count
        return losses

    def export(self) -> Parameters:
        return self.engine.export()

    def statistics(self) -> Parameters:
        return [pair for pair in self.engine.export_statistics() if pair is not None]


class FastneuronNumba(Fastneuron):
    """The kernels that Numba compiles."""

    name, backend = "fastneuron-numba", "numba"


class FastneuronCython(Fastneuron):
    """The kernels in C."""

    name, backend = "fastneuron-cython", "cython"


class FastneuronNumpy(Fastneuron):
    """The reference, in the dtype asked for."""

    name, backend = "fastneuron-numpy", "numpy"


class Reference(FastneuronNumpy):
    """The float64 NumPy reference that every peer's result is compared with."""

    name = "reference"

    def __init__(self, problem: Problem) -> None:
        y = problem.y if problem.y.ndim == 1 else problem.y.astype(np.float64)
        super().__init__(replace(problem, x=problem.x.astype(np.float64), y=y), 1)

    def _dtype(self) -> str:
        return "float64"
