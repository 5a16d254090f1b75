"""Training steps of one network with data: checked against the bounded float64 step, then timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron import backends
from fastneuron.bench.workloads import Prepared, first_call
from fastneuron.kernels.contract import Parameters, Statistics, Status
from fastneuron.keys import StepKeys
from fastneuron.losses import Loss
from fastneuron.optimizers import SGD, Adam, Optimizer
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    assert_parameters,
    assert_statistics,
    assert_within,
    draw_inputs,
    draw_parameters,
    draw_statistics,
    draw_targets,
    training_step,
    updated,
)
from fastneuron.threads import requested_threads

__all__ = ["LINKS", "OPTIMIZERS", "StepProblem", "chunk_of"]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(1e-3),
    "momentum": SGD(1e-3, momentum=0.9),
    "adam": Adam(1e-4),
}
#: Of `draw_parameters`. With dense weights the float32 bounds of the first gradients of
#: 784-512-512-10 are 30 times the gradients' root mean square, and 10,000 times with batch
#: normalisations, where they say nothing; with these 0.003 and 0.2 of it, in the median.
LINKS = 2
#: Moments of the step that is checked, from here to twice that: squares of gradients near 0.01.
#: From zero, Adam's first step is the gradient's sign, and endless the bound where that may round
#: away. What is timed begins at zero: moments that nothing feeds would soon be subnormal.
MOMENT = 1e-4
#: Steps of one call of `Engine.run` at most, and multiply-adds: some 20 ms at 100 GFLOP/s.
MAX_STEPS, CHUNK_WORK = 1000, 1e9


def chunk_of(work: float) -> int:
    """Return the steps of a call, of steps with so many multiply-adds."""
    return int(np.clip(CHUNK_WORK / work, 1, MAX_STEPS))


class StepProblem:
    """A network with data, and the bounded float64 step from its first parameters.

    Parameters
    ----------
    spec : NetworkSpec
    loss : Loss
    optimizer : Optimizer
    batch : int
    rows : int
        Of the data set; beyond 4 batches the same ones come again, elsewhere in memory.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss,
        optimizer: Optimizer,
        batch: int,
        rows: int = 0,
    ) -> None:
        self.spec, self.loss, self.optimizer, self.batch = spec, loss, optimizer, batch
        rng = np.random.default_rng(0)
        inputs, outputs = spec.in_features, spec.out_features
        self.parameters: Parameters = draw_parameters(spec, rng, LINKS)
        self.statistics: Statistics = draw_statistics(spec, rng)
        self.moments = [
            [
                (_moment(rng, weight), None if bias is None else _moment(rng, bias))
                for weight, bias in self.parameters
            ]
            for _ in range(optimizer.n_moments)
        ]
        drawn = 4 * batch
        rows = max(rows, drawn)
        x = draw_inputs(rng, drawn, inputs, spec.dtype)
        y = (
            rng.integers(0, outputs, drawn)
            if loss.targets == "classes"
            else draw_targets(loss, rng, drawn, outputs, spec.dtype)
        )
        self.x, self.y = (np.resize(array, (rows, *array.shape[1:])) for array in (x, y))
        self.chunk = chunk_of(spec.multiply_adds * batch)
        order = [rng.permutation(rows) for _ in range(-(-self.chunk * batch // rows))]
        self.order = np.concatenate(order)
        self.bounds = np.arange(self.chunk + 1, dtype=np.int64) * batch
        rates = optimizer.schedule.rates(0, self.chunk, Horizon(self.chunk, self.chunk))
        self.scalars = optimizer.scalars(0, rates)
        StepKeys(0, 0).fill(self.scalars, 0)
        first, scalars = self.order[:batch], self.scalars[0]
        self.want = training_step(
            spec, loss, self.parameters, self.x[first], self.y[first], None, self.statistics,
            scalars,
        )  # fmt: skip
        self.updated, self.updated_moments = updated(
            spec, optimizer, self.parameters, self.want.gradients, self.moments, scalars
        )

    def prepare(self, name: str) -> Prepared:
        """Check a gradient and a step of a fresh engine, and return steps of another one."""
        engine = self._engine(name)
        engine.load_moments(self.moments)
        first = self.order[: self.batch]
        (loss, gradients), seconds = first_call(
            engine.gradients, self.x[first], self.y[first], None, self.scalars[:1]
        )
        worst = [
            assert_within(loss, self.want.loss, "loss"),
            assert_parameters(gradients, self.want.gradients, "gradient"),
        ]
        losses = np.zeros(self.chunk)
        self._run(engine, 1, losses)
        worst += [
            assert_within(losses[0], self.want.loss, "loss of the step"),
            assert_parameters(engine.export(), self.updated, "parameters"),
            assert_statistics(engine, self.want.statistics, "statistics"),
        ]
        for got, want in zip(engine.export_moments(), self.updated_moments, strict=True):
            worst.append(assert_parameters(got, want, "moment"))
        timed = self._engine(name)

        def work(units: int) -> None:
            while units > 0:
                self._run(timed, min(units, self.chunk), losses)
                units -= self.chunk

        return Prepared(work, max(worst), seconds, {"threads": timed.plan().get("threads")})

    def _engine(self, name: str) -> Any:
        engine = backends.get(name).engine(
            self.spec,
            self.loss,
            self.optimizer,
            n_threads=requested_threads(None),
            batch_size=self.batch,
        )
        engine.load(self.parameters)
        engine.load_statistics(self.statistics)
        return engine

    def _run(self, engine: Any, count: int, losses: Any) -> None:
        outcome = engine.run(
            self.x, self.y, None, self.order, self.bounds[: count + 1], self.scalars[:count], losses
        )
        assert outcome == (Status.OK, count), f"{count} steps ended as {outcome}"
        assert np.isfinite(losses[:count]).all(), "a loss is not finite"


def _moment(rng: np.random.Generator, like: Any) -> Any:
    return rng.uniform(MOMENT, 2 * MOMENT, like.shape).astype(like.dtype)
