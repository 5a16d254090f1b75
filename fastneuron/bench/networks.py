"""The suites `steps` and `inference`: whole training steps, and outputs for rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from fastneuron import backends
from fastneuron.bench.workloads import Prepare, Prepared, Workload, first_call, repeated
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import SGD, Adam, Optimizer
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Precision,
    assert_within,
    draw_inputs,
    draw_parameters,
    draw_targets,
    forward,
    training_step,
    updated,
)
from fastneuron.threads import requested_threads

__all__ = ["StepProblem", "inference", "steps"]

#: Widths, batch, optimizer: from a network that fits in registers to one that fills the caches.
#: The optimizer's name is the key of `OPTIMIZERS`.
NETWORKS = (
    ((2, 8, 1), 4, "sgd"),
    ((20, 64, 64, 2), 32, "adam"),
    ((64, 128, 10), 64, "momentum"),
    ((784, 128, 10), 32, "sgd"),
    ((784, 128, 10), 128, "adam"),
    ((17, 256, 256, 6), 256, "adam"),
    ((784, 512, 512, 10), 256, "adam"),
    ((1024, 2048, 2048, 1024), 512, "sgd"),
)
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(1e-3),
    "momentum": SGD(1e-3, momentum=0.9),
    "adam": Adam(1e-4),
}
#: Multiply-adds of a step up to which a network is timed in float64 too, and in the quick run.
MODEST = 2e8
#: Steps of one call of `Engine.run` at most, and multiply-adds: some 20 ms at 100 GFLOP/s.
MAX_STEPS, CHUNK_WORK = 1000, 1e9

#: Widths of the networks that are asked, and rows of a question.
ASKED = ((20, 64, 64, 2), (784, 512, 512, 10))
QUESTIONS = (1, 32, 1024)


def network(sizes: tuple[int, ...], dtype: str, bias: bool) -> NetworkSpec:
    """Return a chain of ReLU layers whose last one is linear."""
    last = len(sizes) - 2
    return NetworkSpec.chain(
        (
            Dense(sizes[i], sizes[i + 1], "identity" if i == last else "relu", bias=bias)
            for i in range(last + 1)
        ),
        dtype,
    )


def steps() -> Iterator[Workload]:
    """Yield `Engine.run` on every network: gather, forward, loss, backward, update."""
    for sizes, batch, optimizer in NETWORKS:
        for dtype in ("float32", "float64"):
            for bias in (True, False):
                spec = network(sizes, dtype, bias)
                work = spec.multiply_adds * batch
                if dtype == "float64" and work > MODEST:
                    continue
                name = "-".join(map(str, sizes))
                # Parameters are read in each direction and updated with their moments; rows are
                # read once. Activations of a batch stay where they are made.
                words = spec.n_parameters * (4 + 2 * OPTIMIZERS[optimizer].n_moments)
                words += batch * sizes[0]
                yield Workload(
                    "steps", f"step {name}", f"b{batch} {optimizer}", dtype, bias,
                    partial(_step, sizes, batch, optimizer, dtype, bias),
                    2.0 * work, words * np.dtype(dtype).itemsize, batch,
                    quick=dtype == "float32" and work <= MODEST, chunk=_chunk(work),
                )  # fmt: skip


def _chunk(work: float) -> int:
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
        inputs, outputs = int(spec.in_features), int(spec.out_features)
        self.parameters: Parameters = draw_parameters(spec, rng)
        drawn = 4 * batch
        rows = max(rows, drawn)
        x = draw_inputs(rng, drawn, inputs, spec.dtype)
        y = (
            rng.integers(0, outputs, drawn)
            if loss.targets == "classes"
            else draw_targets(loss, rng, drawn, outputs, spec.dtype)
        )
        self.x, self.y = (np.resize(array, (rows, *array.shape[1:])) for array in (x, y))
        self.chunk = _chunk(spec.multiply_adds * batch)
        order = [rng.permutation(rows) for _ in range(-(-self.chunk * batch // rows))]
        self.order = np.concatenate(order)
        self.bounds = np.arange(self.chunk + 1, dtype=np.int64) * batch
        rates = optimizer.schedule.rates(0, self.chunk, Horizon(self.chunk, self.chunk))
        self.scalars = optimizer.scalars(0, rates)
        first = self.order[:batch]
        self.want = training_step(spec, loss, self.parameters, self.x[first], self.y[first])
        zeros: list[Parameters] = [
            [
                (np.zeros_like(w), None if b is None else np.zeros_like(b))
                for w, b in self.parameters
            ]
        ] * optimizer.n_moments
        self.updated = updated(
            spec, optimizer, self.parameters, self.want.gradients, zeros, self.scalars[0]
        )[0]

    def prepare(self, name: str) -> Prepared:
        """Check a gradient and a step of a fresh engine, and return steps of another one."""
        engine = self._engine(name)
        first = self.order[: self.batch]
        (loss, gradients), seconds = first_call(
            engine.gradients, self.x[first], self.y[first], None
        )
        worst = [assert_within(loss, self.want.loss, "loss")]
        losses = np.zeros(self.chunk)
        self._run(engine, 1, losses)
        worst.append(assert_within(losses[0], self.want.loss, "loss of the step"))
        for got, want, what in (
            (gradients, self.want.gradients, "gradient"),
            (engine.export(), self.updated, "parameters"),
        ):
            for i, (pair, bounded) in enumerate(zip(got, want, strict=True)):
                for part, array, bound in zip(("weight", "bias"), pair, bounded, strict=True):
                    assert (array is None) == (bound is None), f"{part} {i}: got {array!r}"
                    if bound is not None:
                        worst.append(assert_within(array, bound, f"{what}, {part} {i}"))
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
        return engine

    def _run(self, engine: Any, count: int, losses: Any) -> None:
        outcome = engine.run(
            self.x, self.y, None, self.order, self.bounds[: count + 1], self.scalars[:count], losses
        )
        assert outcome == (Status.OK, count), f"{count} steps ended as {outcome}"
        assert np.isfinite(losses[:count]).all(), "a loss is not finite"


def _step(sizes: tuple[int, ...], batch: int, optimizer: str, dtype: str, bias: bool) -> Prepare:
    loss = LOSSES["mse" if sizes[-1] in (1, 1024) else "cross_entropy"]
    problem = StepProblem(network(sizes, dtype, bias), loss, OPTIMIZERS[optimizer], batch)
    return problem.prepare


def inference() -> Iterator[Workload]:
    """Yield `Engine.forward` on questions of one row and of many."""
    for sizes in ASKED:
        for rows in QUESTIONS:
            for dtype in ("float32", "float64"):
                for bias in (True, False):
                    spec = network(sizes, dtype, bias)
                    words = spec.n_parameters + rows * (sizes[0] + sizes[-1])
                    yield Workload(
                        "inference", f"forward {'-'.join(map(str, sizes))}",
                        f"{rows} row{'s' * (rows > 1)}", dtype, bias,
                        partial(_ask, spec, rows),
                        2.0 * sum(layer.n_weights for layer in spec.layers) * rows,
                        words * np.dtype(dtype).itemsize, rows,
                        quick=dtype == "float32" and bias,
                    )  # fmt: skip


def _ask(spec: NetworkSpec, rows: int) -> Prepare:
    rng = np.random.default_rng(0)
    parameters = draw_parameters(spec, rng)
    x = draw_inputs(rng, rows, int(spec.in_features), spec.dtype)
    want = forward(spec, parameters, x, Precision.of(spec.dtype))[1][-1]

    def prepare(name: str) -> Prepared:
        engine = backends.get(name).engine(spec, n_threads=requested_threads(None), batch_size=rows)
        engine.load(parameters)
        got, seconds = first_call(engine.forward, x)
        return Prepared(repeated(engine.forward, x), assert_within(got, want, "output"), seconds)

    return prepare
