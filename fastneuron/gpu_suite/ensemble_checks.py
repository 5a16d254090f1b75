"""Many networks at once: each of them step by step, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.gpu_suite.engines import Kind, Sizes
from fastneuron.gpu_suite.network_checks import FRESH_ENGINE, STEPS_OF_CALL, WHOLE_STEPS
from fastneuron.gpu_suite.running import Check
from fastneuron.gpu_suite.slot_checks import check_forward
from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics, Status
from fastneuron.kernels.ensemble_contract import EnsembleEngine, of_model, stacked
from fastneuron.optimizers import RATE
from fastneuron.testing import (
    Case,
    batches,
    check_step,
    draw_parameters,
    draw_statistics,
    generated_cases,
    generated_norm_cases,
    scalars_of,
    state_of,
)

__all__ = ["OneOf", "ensemble_cases", "ensemble_checks", "members"]

#: Widest layer of networks that are small: what one block of a card can hold.
WIDEST = 64
#: Of the networks that are checked alone, one in so many is checked as an ensemble too.
SHARE = 4


class OneOf(Engine):
    """One network of an ensemble as an engine, while the others train beside it.

    The others have rates of their own and, where `own`, the same rows in another order.

    Parameters
    ----------
    many : EnsembleEngine
    m : int
        Which.
    own : bool
        Whether each network has data of its own.
    """

    def __init__(self, many: EnsembleEngine, m: int, *, own: bool = False) -> None:
        super().__init__(many.spec, many.loss, many.optimizers[m])
        self.many, self.m, self.own = many, m, own

    def load(self, parameters: Parameters) -> None:
        self.many.load(self._with(self.many.export(), parameters))

    def export(self) -> Parameters:
        return of_model(self.many.export(), self.m)

    def load_statistics(self, statistics: Statistics) -> None:
        self.many.load_statistics(self._with(self.many.export_statistics(), statistics))

    def export_statistics(self) -> Statistics:
        return of_model(self.many.export_statistics(), self.m)

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        pairs = zip(self.many.export_moments(), moments, strict=True)
        self.many.load_moments([self._with(all_, one) for all_, one in pairs])

    def export_moments(self) -> list[Parameters]:
        return [of_model(moment, self.m) for moment in self.many.export_moments()]

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> Outcome:
        models = self.many.n_models
        of_all = np.repeat(scalars[:, None], models, axis=1)
        of_all[:, :, RATE] *= 1 + 0.1 * (np.arange(models) - self.m)
        of_all[:, self.m] = scalars
        orders = order[None]
        if self.own:  # what belongs to a row moves with it: the others see other rows
            x, y = self._each(x), self._each(y)
            weight = None if weight is None else self._each(weight)
            orders = np.repeat(orders, models, axis=0)
        found = np.full((len(losses), models), np.nan)
        outcome = self.many.run(x, y, weight, orders, bounds, of_all, found)
        losses[...] = found[:, self.m]
        return Outcome(Status(int(outcome.status[self.m])), int(outcome.steps[self.m]))

    def forward(self, x: Array) -> Array:
        return self.many.forward(self._each(x) if self.own else x)[self.m]

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        raise NotImplementedError("an ensemble has no foreign losses")

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        raise NotImplementedError("an ensemble has no foreign losses")

    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        raise NotImplementedError("an ensemble has no gradients to show")

    def plan(self) -> dict[str, Any]:
        return self.many.plan()

    def _each(self, array: Array) -> Array:
        return np.stack([np.roll(array, m - self.m, axis=0) for m in range(self.many.n_models)])

    def _with(self, of_all: Any, one: Any) -> Any:
        each = [of_model(of_all, m) for m in range(self.many.n_models)]
        each[self.m] = one
        return stacked(each)


def ensemble_cases(sizes: Sizes, seed: int = 1) -> list[Case]:
    """Return small networks, the last with other layers than dense ones."""
    count, widest = max(1, sizes.networks // SHARE), min(WIDEST, sizes.widest)
    dense = generated_cases(count, seed, widest=widest, longest=sizes.longest)
    norms = generated_norm_cases(1, seed, widest=widest, longest=sizes.longest)
    return [*dense, *(norms if sizes.networks >= SHARE else [])]


def members(case: Case, models: int) -> list[Case]:
    """Return networks like a case's that start elsewhere, the first as the case does."""
    found = [case]
    for m in range(1, models):
        rng = np.random.default_rng(m)
        statistics = draw_statistics(case.spec, rng) if case.statistics else None
        parameters = draw_parameters(case.spec, rng)
        found.append(replace(case, parameters=parameters, statistics=statistics))
    return found


def ensemble_checks(kind: Kind, sizes: Sizes, used: set[str]) -> Iterator[Check]:
    """Yield the checks of ensembles; the names of the engines that did the work go to `used`."""
    cases = ensemble_cases(sizes)
    for i, case in enumerate(cases):
        yield Check(f"{case.name} x{sizes.models}", partial(_each, kind, sizes, case, i, used))
    wanted: list[bytes] = []  # of the first run
    engines: list[EnsembleEngine] = []

    def repeat(number: int) -> float:
        if number % FRESH_ENGINE == 0:
            engines[:] = [_made(kind, members(cases[0], sizes.models))]
        got = _trained(engines[0], members(cases[0], sizes.models))
        wanted.append(got)
        del wanted[1:]
        assert got == wanted[0], "other bits than in the first run"
        return 0.0

    for number in range(sizes.repeats):
        yield Check(f"run {number} of {cases[0].name} x{sizes.models}", partial(repeat, number))


def _each(kind: Kind, sizes: Sizes, case: Case, place: int, used: set[str]) -> float:
    """Check each network of an ensemble: predictions, a whole and a partial batch."""
    each = members(case, sizes.models)
    engine = _made(kind, each)
    used.add(type(engine).__name__)
    order, bounds = batches(len(case.x), case.batch, WHOLE_STEPS + 1, np.random.default_rng(0))
    worst = 0.0
    for m, of_one in enumerate(each):
        _load(engine, each)
        one = OneOf(engine, m, own=(place + m) % 2 == 1)
        worst = max(worst, check_forward(one, of_one))
        scalars = scalars_of(case, 2)
        for i, step in enumerate((0, WHOLE_STEPS)):
            rows = order[bounds[step] : bounds[step + 1]]
            what = f"network {m}, step {i}"
            worst = max(worst, check_step(one, of_one, rows, scalars[i], what))
    return worst


def _made(kind: Kind, each: Sequence[Case]) -> EnsembleEngine:
    first = each[0]
    return kind.ensemble(
        first.spec, first.loss, [of_one.optimizer for of_one in each], batch_size=first.batch
    )


def _load(engine: EnsembleEngine, each: Sequence[Case]) -> None:
    """Let all networks start anew."""
    nothing = [None] * len(engine.spec.layers)
    parameters = stacked([of_one.parameters for of_one in each])
    engine.load(parameters)
    engine.load_statistics(stacked([of_one.statistics or nothing for of_one in each]))
    zeros = [(np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in parameters]
    engine.load_moments([zeros] * engine.optimizers[0].n_moments)


def _trained(engine: EnsembleEngine, each: Sequence[Case]) -> bytes:
    """Return all bits of a training from the start, losses included."""
    case, models = each[0], len(each)
    _load(engine, each)
    rng = np.random.default_rng(1)
    order = rng.integers(0, len(case.x), (models, case.batch * STEPS_OF_CALL))
    bounds = np.arange(STEPS_OF_CALL + 1) * case.batch
    scalars = np.repeat(scalars_of(case, STEPS_OF_CALL)[:, None], models, axis=1)
    losses = np.full((STEPS_OF_CALL, models), np.nan)
    outcome = engine.run(case.x, case.y, case.weight, order, bounds, scalars, losses)
    assert not outcome.status.any(), f"a step failed: {outcome}"
    many: Any = engine  # which exports what an engine exports, of all
    return losses.tobytes() + state_of(many)
