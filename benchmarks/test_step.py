"""The whole training step of each backend's engine: checked, then timed over a chunk of steps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import SGD, Adam, Optimizer
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    BoundedParameters,
    StepBounds,
    assert_within,
    draw_inputs,
    draw_parameters,
    draw_targets,
    training_step,
    updated,
)
from fastneuron.threads import requested_threads

pytestmark = pytest.mark.benchmark(max_time=0.4, min_rounds=3, min_time=1e-4)

#: Layer widths, batch, optimizer: from a network that fits in registers to one that fills caches.
NETWORKS: dict[str, tuple[tuple[int, ...], int, Optimizer]] = {
    "2-8-1 b4 sgd": ((2, 8, 1), 4, SGD(1e-3)),
    "20-64-64-2 b32 adam": ((20, 64, 64, 2), 32, Adam(1e-4)),
    "64-128-10 b64 momentum": ((64, 128, 10), 64, SGD(1e-3, momentum=0.9)),
    "784-128-10 b32 sgd": ((784, 128, 10), 32, SGD(1e-3)),
    "784-128-10 b128 adam": ((784, 128, 10), 128, Adam(1e-4)),
    "17-256-256-6 b256 adam": ((17, 256, 256, 6), 256, Adam(1e-4)),
    "784-512-512-10 b256 adam": ((784, 512, 512, 10), 256, Adam(1e-4)),
    "1024-2048-2048-1024 b512 sgd": ((1024, 2048, 2048, 1024), 512, SGD(1e-3)),
}
#: Multiply-adds of a timed chunk: some 20 ms on one core at 100 GFLOP/s.
CHUNK_WORK = 1e9
MAX_STEPS = 1000


class Problem:
    """A network with data, and the bounded float64 step from its first parameters."""

    def __init__(self, name: str, bias: bool) -> None:
        sizes, self.batch, self.optimizer = NETWORKS[name]
        rng = np.random.default_rng(0)
        last = len(sizes) - 2
        self.spec = NetworkSpec.chain(
            Dense(sizes[i], sizes[i + 1], "identity" if i == last else "relu", bias=bias)
            for i in range(last + 1)
        )
        self.loss: Loss = LOSSES["mse" if sizes[-1] in (1, 1024) else "cross_entropy"]
        self.parameters: Parameters = draw_parameters(self.spec, rng)
        rows = 4 * self.batch
        self.x = draw_inputs(rng, rows, sizes[0], "float32")
        self.y = (
            rng.integers(0, sizes[-1], rows)
            if self.loss.targets == "classes"
            else draw_targets(self.loss, rng, rows, sizes[-1], "float32")
        )
        work = self.spec.multiply_adds * self.batch
        self.flop = 2 * work
        self.steps = int(np.clip(CHUNK_WORK / work, 1, MAX_STEPS))
        self.order = np.concatenate(
            [rng.permutation(rows) for _ in range(-(-self.steps * self.batch // rows))]
        )
        self.bounds = np.arange(self.steps + 1, dtype=np.int64) * self.batch
        rates = self.optimizer.schedule.rates(0, self.steps, Horizon(self.steps, self.steps))
        self.scalars = self.optimizer.scalars(0, rates)
        first = self.order[: self.batch]
        self.want: StepBounds = training_step(
            self.spec, self.loss, self.parameters, self.x[first], self.y[first]
        )
        zeros: list[Parameters] = [
            [
                (np.zeros_like(w), None if b is None else np.zeros_like(b))
                for w, b in self.parameters
            ]
        ] * self.optimizer.n_moments
        self.updated: BoundedParameters = updated(
            self.spec,
            self.optimizer,
            self.parameters,
            self.want.gradients,
            zeros,
            self.scalars[0],
        )[0]

    def check(self, backend: Backend, n_threads: int | None) -> float:
        """Compare a gradient and a step of a fresh engine; return the worst error over bound."""
        engine = backend.engine(
            self.spec, self.loss, self.optimizer, n_threads=n_threads, batch_size=self.batch
        )
        engine.load(self.parameters)
        first = self.order[: self.batch]
        loss, gradients = engine.gradients(self.x[first], self.y[first], None)
        worst = [assert_within(loss, self.want.loss, "loss")]
        losses = np.zeros(1)
        outcome = engine.run(
            self.x, self.y, None, self.order, self.bounds[:2], self.scalars[:1], losses
        )
        assert outcome.status == Status.OK
        worst.append(assert_within(losses[0], self.want.loss, "loss of the step"))
        for got, want, what in (
            (gradients, self.want.gradients, "gradient"),
            (engine.export(), self.updated, "parameters"),
        ):
            for pair, bounded in zip(got, want, strict=True):
                for array, bound in zip(pair, bounded, strict=True):
                    if array is not None and bound is not None:
                        worst.append(assert_within(array, bound, what))
        return max(worst)


@lru_cache(maxsize=1)
def problem(name: str, bias: bool) -> Problem:
    return Problem(name, bias)


# Backends vary fastest, so that each problem and its reference are made once.
@pytest.mark.parametrize("backend", ["numpy", "numba", "cython"], indirect=True)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", NETWORKS)
def test_step(benchmark: Any, note: Any, backend: Backend, name: str, bias: bool) -> None:
    benchmark.group = f"step {name} {'bias' if bias else 'no bias'}"
    p = problem(name, bias)
    n_threads = requested_threads(None)
    worst = p.check(backend, n_threads)
    engine = backend.engine(p.spec, p.loss, p.optimizer, n_threads=n_threads, batch_size=p.batch)
    engine.load(p.parameters)
    steps = min(p.steps, 3) if benchmark.disabled else p.steps
    losses = np.zeros(steps)
    arguments = (p.x, p.y, None, p.order, p.bounds[: steps + 1], p.scalars[:steps], losses)
    outcome = benchmark(engine.run, *arguments)
    assert (outcome.status, outcome.steps) == (Status.OK, steps)
    assert np.isfinite(losses).all()
    note(
        worst,
        flop=p.flop,
        steps=steps,
        rows=p.batch,
        steps_in_chunk=steps,
        threads=engine.plan().get("threads"),
    )
