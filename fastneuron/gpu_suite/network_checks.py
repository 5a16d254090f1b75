"""Generated networks step by step, and the same bits in every run of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from fastneuron.gpu_suite.engines import Kind, Sizes
from fastneuron.gpu_suite.running import Check
from fastneuron.gpu_suite.slot_checks import check_forward
from fastneuron.kernels.contract import Engine, Parameters
from fastneuron.testing import (
    Case,
    batches,
    check_step,
    generated_cases,
    generated_norm_cases,
    loaded,
    run_steps,
    scalars_of,
    state_of,
)

__all__ = ["network_checks", "networks", "repeat_checks"]

#: Of the generated networks, those with normalisations, dropout and frozen parts.
NORMS_SHARE = 0.4
#: Whole batches of each network before the partial one that ends its rows, as both generators cut.
WHOLE_STEPS = 2
#: Steps of a call in every other repeated training: the graphs that an engine replays are others.
STEPS_OF_CALL = 9
#: Runs after which a repeated training gets a new engine, whose vectors lie elsewhere.
FRESH_ENGINE = 10


def networks(sizes: Sizes, seed: int = 0) -> list[Case]:
    """Return generated networks of all kinds of layers, losses and optimizers."""
    norms = math.floor(NORMS_SHARE * sizes.networks)
    widest, longest = sizes.widest, sizes.longest
    dense = generated_cases(sizes.networks - norms, seed, widest=widest, longest=longest)
    other = generated_norm_cases(norms, seed, widest=widest, longest=longest)
    # By turns, so that of what a budget leaves some are of both.
    pairs = zip(dense, other, strict=False)
    return [*(case for pair in pairs for case in pair), *dense[norms:]]


def network_checks(kind: Kind, sizes: Sizes) -> list[Check]:
    """Return the checks of all networks: a whole and a partial batch, within their bounds."""

    def check(of: Case) -> float:
        engine = kind.engine_of(of)
        worst = check_forward(engine, of)
        order, bounds = batches(len(of.x), of.batch, WHOLE_STEPS + 1, np.random.default_rng(0))
        scalars = scalars_of(of, 2)
        for i, step in enumerate((0, WHOLE_STEPS)):
            rows = order[bounds[step] : bounds[step + 1]]
            worst = max(worst, check_step(engine, of, rows, scalars[i], f"step {i}"))
        return worst

    return [Check(of.name, partial(check, of)) for of in networks(sizes)]


def repeat_checks(kind: Kind, sizes: Sizes) -> Iterator[Check]:
    """Yield trainings, each to be run so many times, whose every bit must be that of the first."""
    engines: dict[str, Engine] = {}
    wanted: dict[str, bytes] = {}

    def check(of: Case, number: int) -> float:
        if number % FRESH_ENGINE == 0:
            engines[of.name] = kind.engine_of(of)
        calls = STEPS_OF_CALL if number % 2 else sizes.steps
        got = _trained(engines[of.name], of, sizes.steps, calls)
        assert got == wanted.setdefault(of.name, got), "other bits than in the first run"
        return 0.0

    cases = networks(sizes)[: sizes.repeated]
    for number in range(sizes.repeats):
        for of in cases:
            yield Check(f"run {number} of {of.name}", partial(check, of, number))


def _trained(engine: Engine, case: Case, steps: int, of_call: int) -> bytes:
    """Return all bits of a training from the start, losses included."""
    assert case.optimizer is not None
    moments: list[Parameters] = [
        [(np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in case.parameters]
        for _ in range(case.optimizer.n_moments)
    ]
    loaded(engine, case, moments)
    rng = np.random.default_rng(1)
    order = rng.integers(0, len(case.x), case.batch * steps)
    bounds, scalars = np.arange(steps + 1) * case.batch, scalars_of(case, steps)
    losses = [
        run_steps(
            engine, case, order, bounds[first : first + of_call + 1], scalars[first:][:of_call]
        )
        for first in range(0, steps, of_call)
    ]
    return np.concatenate(losses).tobytes() + state_of(engine)
