"""Many networks by an engine each: the general way, for any network and any backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics
from fastneuron.kernels.cost import Pace
from fastneuron.kernels.ensemble_contract import (
    EnsembleEngine,
    EnsembleOutcome,
    of_model,
    stacked,
)
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec
from fastneuron.threads import run_team, usable_cores

__all__ = ["WORK_TO_SHARE", "EachAlone"]

#: Multiply-adds of one network's part of a call from which Python threads share the networks: a
#: part keeps the interpreter for some 12 us before and after its kernels, which work without it.
#: 100 networks 20-64-64-2 of batch 32 (0.5e6 a step, 9 us) by two threads, on two cores that others
#: used too: 0.6 to 0.9 times as fast at 8 steps a call, 0.9 to 1.2 at 16, 1.1 to 1.5 at 32. Where
#: cores are taken, threads lose at any length: `Pace` finds that out.
WORK_TO_SHARE = 8_000_000

Result = TypeVar("Result")


class EachAlone(EnsembleEngine):
    """An engine for each network; each has the bits that its engine gives it alone.

    Parameters
    ----------
    spec, loss, optimizers, n_threads, batch_size
        See `EnsembleEngine`.
    make : callable
        Takes what an `Engine` takes, and returns one.
    side_by_side : bool
        Whether engines let go of the interpreter while they compute, so that threads are of use.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizers: Sequence[Optimizer],
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        make: Callable[..., Engine],
        side_by_side: bool = False,
    ) -> None:
        super().__init__(spec, loss, optimizers, n_threads=n_threads, batch_size=batch_size)
        cores = n_threads or usable_cores()
        # Fewer networks than cores: each may have all of them in turn.
        shared = side_by_side and 1 < cores <= self.n_models
        self._team = cores if shared else 1
        threads = 1 if side_by_side and cores <= self.n_models else n_threads
        self.engines = [
            make(spec, loss, optimizer, n_threads=threads, batch_size=batch_size)
            for optimizer in self.optimizers
        ]
        self._warm = False
        self._pace = Pace()

    def load(self, parameters: Parameters) -> None:
        for m, engine in enumerate(self.engines):
            engine.load(of_model(parameters, m))

    def export(self) -> Parameters:
        return stacked([engine.export() for engine in self.engines])

    def load_statistics(self, statistics: Statistics) -> None:
        for m, engine in enumerate(self.engines):
            engine.load_statistics(of_model(statistics, m))

    def export_statistics(self) -> Statistics:
        return stacked([engine.export_statistics() for engine in self.engines])

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        for m, engine in enumerate(self.engines):
            engine.load_moments([of_model(moment, m) for moment in moments])

    def export_moments(self) -> list[Parameters]:
        each = [engine.export_moments() for engine in self.engines]
        return [stacked(moments) for moments in zip(*each, strict=True)]

    def hold(self, x: Array, y: Array, weight: Array | None) -> None:
        pass  # a device would hold it once for each network

    def let_go(self) -> None:
        pass

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> EnsembleOutcome:
        # An engine wants its own steps one behind the other.
        of_each = np.ascontiguousarray(scalars.swapaxes(0, 1))
        found = np.ascontiguousarray(losses.T)
        own_y = y.ndim == (2 if y.dtype == np.int64 else 3)

        def train(m: int) -> Outcome:
            return self.engines[m].run(
                x[m] if x.ndim == 3 else x,
                y[m] if own_y else y,
                weight[m] if weight is not None and weight.ndim == 2 else weight,
                order[m if len(order) > 1 else 0],
                bounds,
                of_each[m],
                found[m],
            )

        outcomes = self._each(train, self.spec.multiply_adds * int(bounds[-1] - bounds[0]))
        losses[...] = found.T
        return EnsembleOutcome(
            np.array([outcome.status for outcome in outcomes], np.int64),
            np.array([outcome.steps for outcome in outcomes], np.int64),
        )

    def forward(self, x: Array) -> Array:
        def answer(m: int) -> Array:
            return self.engines[m].forward(x[m] if x.ndim == 3 else x)

        return np.stack(self._each(answer, self.spec.n_parameters * x.shape[-2]))

    def plan(self) -> dict[str, Any]:
        said = self.engines[0].plan()
        said["n_models"], said["ensemble"] = self.n_models, "one after another, an engine each"
        if self._team > 1:
            said["ensemble"] = f"an engine each, shared by {self._team} threads in long calls"
        return said

    def _each(self, work: Callable[[int], Result], size: int) -> list[Result]:
        """Return what `work` returns for each network, of `size` multiply-adds each."""
        planned = self._team if size >= WORK_TO_SHARE else 1
        if not self._warm:  # the first call may compile, for all
            planned = 1
        threads = self._pace.pick(planned)
        done: dict[int, Result] = {}
        turns, stopped = count(), False

        def share(_: int) -> None:
            # One `next` is one operation of the interpreter: no network is taken twice.
            while not stopped and (m := next(turns)) < self.n_models:
                done[m] = work(m)

        def stop() -> None:
            nonlocal stopped
            stopped = True

        start = time.perf_counter()
        run_team(threads, share, stop)
        self._pace.record(planned, threads, size, time.perf_counter() - start)
        self._warm = True
        return [done[m] for m in range(self.n_models)]
