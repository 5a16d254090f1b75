"""Whole steps of a backend's engine: with biases, without, with frozen ones, with columns of ones.

A column of ones makes the bias one more weight: ``x W + b = [x, 1] [W; b]``. For an engine that
knows nothing of it, every hidden layer gets one more neuron whose weights give 1 whatever the rest
does: 0 from all inputs but the ones, and from these the z with f(z) = 1. The gradients of all other
neurons are those of W and b. In real training that neuron would have to be kept as it is, which is
not timed: the time is the least that the formulation costs in this engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fastneuron import backends
from fastneuron.arrays import Array
from fastneuron.kernels.contract import Engine, Parameters
from fastneuron.profiling.pairs import Work
from fastneuron.profiling.workload import STEPS_A_CALL, Setting, Workload, WrongResult
from fastneuron.spec import NetworkSpec

__all__ = ["AGAIN", "BIAS", "FROZEN", "NONE", "ONES", "EngineSteps"]

NONE, AGAIN, BIAS, FROZEN, ONES = "no bias", "no bias, again", "bias", "frozen bias", "ones column"

#: The z at which an activation is 1 to the last bit in float32 and float64. Where there is none,
#: no neuron can stand for the ones.
HOLDS_ONE = {
    "identity": 1.0,
    "relu": 1.0,
    "leaky_relu": 1.0,
    "elu": 1.0,
    "sigmoid": 64.0,
    "tanh": 64.0,
}


class EngineSteps:
    """The contestants over one backend's engine.

    Attributes
    ----------
    skipped : dict of str to str
        Who cannot be timed, and why.
    compile_seconds : float
        Of the first steps: compiling or loading kernels.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        setting = workload.setting
        self._backend = backends.get(setting.backend, setting.dtype)
        self._make: dict[str, Callable[[], tuple[Engine, Array]]] = {
            NONE: self._without,
            AGAIN: self._without,
            BIAS: self._with,
            FROZEN: self._frozen,
            ONES: self._ones,
        }
        self.skipped: dict[str, str] = {}
        if len(setting.sizes) > 2 and setting.activation not in HOLDS_ONE:
            del self._make[ONES]
            self.skipped[ONES] = f"no neuron with {setting.activation} can stand for the ones"

    @property
    def names(self) -> tuple[str, ...]:
        """Who is timed."""
        return tuple(self._make)

    def check(self) -> float:
        """Compare everyone's gradients and first step with the reference; raise where wrong.

        An engine that trains frozen biases all the same is left out, with the reason.
        """
        worst = 0.0
        for name in self.names:
            if name == AGAIN:
                continue
            engine, x = self._make[name]()
            try:
                worst = max(worst, self._check(name, engine, x))
            except WrongResult as error:
                if name != FROZEN or "is frozen, but" not in str(error):
                    raise
                del self._make[FROZEN]
                self.skipped[FROZEN] = f"{self._backend.name}'s engine trains frozen biases too"
        return worst

    def build(self, sitting: int) -> dict[str, Work]:
        """Return all contestants, with engines of their own."""
        return {name: self._work(name, *make()) for name, make in self._make.items()}

    def predicted_seconds(self) -> dict[str, float]:
        """Return what the engine itself expects a step to take, where it has a cost model."""
        found = {}
        for name in (NONE, ONES):
            if name in self._make:
                predicted = self._make[name]()[0].plan().get("predicted_step_us")
                if predicted is not None:
                    found[name] = 1e-6 * float(predicted)
        return found

    def _engine(self, spec: NetworkSpec, parameters: Parameters) -> Engine:
        setting = self.workload.setting
        engine = self._backend.engine(
            spec,
            self.workload.loss,
            self.workload.optimizer,
            n_threads=setting.n_threads,
            batch_size=setting.batch_size,
        )
        engine.load(parameters)
        return engine

    def _with(self) -> tuple[Engine, Array]:
        return self._engine(self.workload.spec, self.workload.parameters), self.workload.x

    def _without(self) -> tuple[Engine, Array]:
        spec = self.workload.setting.spec(bias=False)
        return self._engine(spec, self.workload.without_biases()), self.workload.x

    def _frozen(self) -> tuple[Engine, Array]:
        spec = self.workload.setting.spec(trainable="weight")
        return self._engine(spec, self.workload.parameters), self.workload.x

    def _ones(self) -> tuple[Engine, Array]:
        x = self.workload.x
        spec = widened(self.workload.setting).spec(bias=False)
        one = np.ones((len(x), 1), x.dtype)
        return self._engine(spec, self._with_ones()), np.concatenate([x, one], axis=1)

    def _with_ones(self) -> Parameters:
        """Return [W; b] of each layer, with a column that hands the ones on but after the last."""
        joined: Parameters = []
        for weight, bias in self.workload.parameters:
            assert bias is not None
            hand_on = np.zeros((len(weight) + 1, 1), weight.dtype)
            hand_on[-1] = HOLDS_ONE.get(self.workload.setting.activation, 1.0)
            joined.append((np.concatenate([np.vstack([weight, bias]), hand_on], axis=1), None))
        joined[-1] = (np.ascontiguousarray(joined[-1][0][:, :-1]), None)
        return joined

    def _check(self, name: str, engine: Engine, x: Array) -> float:
        workload = self.workload
        _, y = workload.batch
        who = f"{self._backend.name}, engine, {name}"
        loss, gradients = engine.gradients(x[: len(y)], y, None)
        rows = len(y)
        losses = np.zeros(1)
        order = np.arange(rows, dtype=np.int64)
        bounds = np.array([0, rows], np.int64)
        outcome = engine.run(x, workload.y, None, order, bounds, workload.scalars[:1], losses)
        if outcome.steps != 1:
            raise WrongResult(f"{who}: the first step ended with {outcome.status.name}")
        after = engine.export()
        if name == ONES:
            sizes = workload.setting.sizes[1:]
            gradients, after = _parted(gradients, sizes), _parted(after, sizes)
        check = {NONE: workload.without_bias, FROZEN: workload.frozen}
        want = check.get(name) or workload.with_bias
        worst = max(want.gradients(who, loss, gradients), want.step(who, after))
        return max(worst, want.gradients(who, float(losses[0]), gradients))

    def _work(self, name: str, engine: Engine, x: Array) -> Work:
        workload = self.workload
        rows, y = workload.setting.batch_size, workload.y
        order, bounds, scalars = workload.order, workload.bounds, workload.scalars
        losses = np.zeros(STEPS_A_CALL)

        def work(units: int) -> None:
            while units:
                count = min(units, STEPS_A_CALL)
                outcome = engine.run(
                    x,
                    y,
                    None,
                    order[: count * rows],
                    bounds[: count + 1],
                    scalars[:count],
                    losses[:count],
                )
                if outcome.steps != count:
                    raise WrongResult(f"{name}: a timed step ended with {outcome.status.name}")
                units -= count

        return work


def widened(setting: Setting) -> Setting:
    """Return the setting with one more input and one more neuron in every hidden layer."""
    *inner, last = setting.sizes
    return replace(setting, sizes=(*(width + 1 for width in inner), last))


def _parted(joined: Parameters, sizes: Sequence[int]) -> Parameters:
    """Return W and b of each [W; b], without the column that hands the ones on."""
    return [(w[:-1, :size], w[-1, :size]) for (w, _), size in zip(joined, sizes, strict=True)]
