"""Many networks by an engine each: every one has the bits that it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastneuron import backends, loading
from fastneuron.kernels import each_alone
from fastneuron.kernels.contract import Engine, Parameters, Status
from fastneuron.kernels.each_alone import EachAlone
from fastneuron.kernels.ensemble_contract import EnsembleEngine, stacked
from fastneuron.losses import LOSSES
from fastneuron.optimizers import RATE, Optimizer
from fastneuron.testing import (
    Case,
    draw_parameters,
    draw_statistics,
    flat,
    generated_cases,
    generated_norm_cases,
    loaded,
    scalars_of,
)

MODELS = 3
STEPS = 4


def cases() -> list[Case]:
    dense = generated_cases(3, 5, widest=9, longest=8)
    return [*dense, *generated_norm_cases(3, 5, widest=9, longest=8)]


def members(case: Case, count: int = MODELS) -> list[Case]:
    """The case by other parameters, statistics, data and rates."""
    found = []
    for m in range(count):
        rng = np.random.default_rng(m)
        optimizer = replace(case.optimizer, learning_rate=1e-3 * (m + 1))
        x = case.x[rng.permutation(len(case.x))]
        statistics = draw_statistics(case.spec, rng)
        parameters = draw_parameters(case.spec, rng)
        found.append(
            replace(case, optimizer=optimizer, parameters=parameters, statistics=statistics, x=x)
        )
    return found


def many_of(backend: backends.Backend, each: list[Case], **given: Any) -> EnsembleEngine:
    case = each[0]
    optimizers = [one.optimizer for one in each]
    engine = backend.ensemble_engine(
        case.spec, case.loss, optimizers, batch_size=case.batch, **given
    )
    engine.load(stacked([one.parameters for one in each]))
    engine.load_statistics(
        stacked([one.statistics or [None] * len(case.spec.layers) for one in each])
    )
    return engine


def alone(backend: backends.Backend, case: Case) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, batch_size=case.batch), case)


def of_member(parameters: Any, m: int) -> list[Any]:
    return [array[m] for array in flat(parameters)]


def same(got: Sequence[Any], want: Sequence[Any]) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def trained(engine: EnsembleEngine, each: list[Case], **given: Any) -> tuple[Any, Any]:
    """Train on data of each its own, or on what is given, and return the losses and the outcome."""
    case = each[0]
    orders = np.stack(
        [np.random.default_rng(m).integers(0, len(case.x), STEPS * 3) for m in range(len(each))]
    )
    bounds = np.arange(STEPS + 1) * 3
    scalars = np.stack([scalars_of(one, STEPS, seed=m) for m, one in enumerate(each)], axis=1)
    losses = np.full((STEPS, len(each)), -1.0)
    data: dict[str, Any] = {"x": np.stack([one.x for one in each]), "y": case.y}
    data = {**data, "weight": case.weight, "order": orders, "scalars": scalars, **given}
    outcome = engine.run(bounds=bounds, losses=losses, **data)
    return losses, outcome


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_each_has_its_own_bits(backend: backends.Backend, case: Case) -> None:
    each = members(case)
    engine = many_of(backend, each)
    losses, outcome = trained(engine, each)
    assert (outcome.status == Status.OK).all()
    assert (outcome.steps == STEPS).all()
    parameters, statistics = engine.export(), engine.export_statistics()
    moments = engine.export_moments()
    out = engine.forward(case.x)
    for m, one in enumerate(each):
        want = alone(backend, one)
        want_losses = np.empty(STEPS)
        order = np.random.default_rng(m).integers(0, len(case.x), STEPS * 3)
        bounds = np.arange(STEPS + 1) * 3
        scalars = scalars_of(one, STEPS, seed=m)
        want.run(one.x, one.y, one.weight, order, bounds, scalars, want_losses)
        np.testing.assert_array_equal(losses[:, m], want_losses)
        same(of_member(parameters, m), flat(want.export()))
        same(of_member(statistics, m), flat(want.export_statistics()))
        for got, wanted in zip(moments, want.export_moments(), strict=True):
            same(of_member(got, m), flat(wanted))
        np.testing.assert_array_equal(out[m], want.forward(case.x))
    np.testing.assert_array_equal(engine.forward(np.stack([case.x] * MODELS)), out)


def test_what_is_shared_and_what_is_not_may_be_mixed(backend: backends.Backend) -> None:
    case = next(
        case
        for case in generated_cases(40, 1, widest=6, longest=8)
        if case.loss.name == "cross_entropy"
    )
    labels = np.random.default_rng(0).integers(0, case.spec.out_features, len(case.x))
    case = replace(case, y=labels)
    each = [replace(one, x=case.x) for one in members(case)]
    weight = np.random.default_rng(0).uniform(0, 2, len(case.x)).astype(case.spec.dtype)

    def losses(**given: Any) -> Any:
        return trained(many_of(backend, each), each, **given)[0]

    want = losses(weight=weight)
    for x in (case.x, np.stack([case.x] * MODELS)):
        for y in (case.y, np.stack([case.y] * MODELS)):
            for w in (weight, np.stack([weight] * MODELS)):
                np.testing.assert_array_equal(losses(x=x, y=y, weight=w), want)
    one_order = np.arange(STEPS * 3)[None] % len(case.x)
    want = losses(order=np.repeat(one_order, MODELS, 0))
    np.testing.assert_array_equal(losses(order=one_order), want)


def test_moments_and_statistics_come_back_as_they_went_in(backend: backends.Backend) -> None:
    case = next(
        case
        for case in generated_norm_cases(20, 2, widest=6, longest=8)
        if case.optimizer.n_moments == 2 and case.statistics and flat(case.statistics)
    )
    each = members(case)
    first, second = many_of(backend, each), many_of(backend, each)
    trained(first, each)
    second.load(first.export())
    second.load_statistics(first.export_statistics())
    second.load_moments(first.export_moments())
    want, _ = trained(first, each)
    got, _ = trained(second, each)
    np.testing.assert_array_equal(got, want)
    same(flat(second.export()), flat(first.export()))
    same(flat(second.export_statistics()), flat(first.export_statistics()))


def test_one_that_fails_stops_and_the_others_go_on(backend: backends.Backend) -> None:
    case = generated_cases(1, 3, widest=6, longest=8)[0]
    each = members(case)
    want_losses, _ = trained(many_of(backend, each), each)
    want = many_of(backend, each)
    trained(want, each)
    engine = many_of(backend, each)
    scalars = np.stack([scalars_of(one, STEPS, seed=m) for m, one in enumerate(each)], axis=1)
    x = np.stack([one.x for one in each])
    x[1, np.random.default_rng(1).integers(0, len(case.x), STEPS * 3)[6]] = np.nan  # of step 2
    losses, outcome = trained(engine, each, x=x, scalars=scalars)
    assert outcome.status[1] != Status.OK
    assert outcome.steps[1] <= 2
    assert (losses[outcome.steps[1] + 1 :, 1] == -1).all()
    for m in (0, 2):
        assert outcome.status[m] == Status.OK
        np.testing.assert_array_equal(losses[:, m], want_losses[:, m])
        same(of_member(engine.export(), m), of_member(want.export(), m))
    assert all(np.isfinite(array).all() for array in flat(engine.export()))


def nan_like(parameters: Parameters, m: int) -> Parameters:
    spoiled = [(w.copy(), None if b is None else b.copy()) for w, b in parameters]
    for array in flat(spoiled):
        array[m] = np.nan
    return spoiled


@pytest.mark.parametrize("loss", list(LOSSES))
def test_parameters_of_nan_keep_a_network_stopped(backend: backends.Backend, loss: str) -> None:
    """As the contract says: whatever the loss and the activations, no step is applied."""
    norms = generated_norm_cases(40, 4, widest=5, longest=6)
    for case in [*generated_cases(40, 4, widest=5, longest=6), *norms]:
        if case.loss.name != loss:
            continue
        each = members(case)
        engine = many_of(backend, each)
        engine.load(nan_like(engine.export(), 1))
        before = of_member(engine.export_statistics(), 1)
        _, outcome = trained(engine, each)
        assert outcome.status.tolist()[::2] == [Status.OK, Status.OK]
        assert outcome.status[1] != Status.OK
        same(of_member(engine.export_statistics(), 1), before)
        assert outcome.steps.tolist() == [STEPS, 0, STEPS]


def team(blocked: backends.Backend, case: Case, count: int, threads: int) -> EachAlone:
    each = members(case, count)
    engine = many_of(blocked, each, n_threads=threads)
    assert isinstance(engine, EachAlone)
    return engine


def test_threads_change_no_bit(blocked: backends.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each_alone, "WORK_TO_SHARE", 0)
    case = generated_cases(1, 3, widest=9, longest=8)[0]
    each = members(case, 7)
    want = many_of(blocked, each, n_threads=1)
    want_losses, _ = trained(want, each)
    for threads in (2, 3, 8):
        engine = many_of(blocked, each, n_threads=threads)
        shared = f"{threads} threads" in engine.plan()["ensemble"]
        assert shared == (threads < 8)  # of more threads each network has all
        for _ in range(2):  # the first call may compile, and the threads wait for it
            engine.load(stacked([one.parameters for one in each]))
            engine.load_moments(
                [
                    [(np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in moment]
                    for moment in engine.export_moments()
                ]
            )
            losses, _ = trained(engine, each)
            np.testing.assert_array_equal(losses, want_losses)
        same(flat(engine.export()), flat(want.export()))


def test_the_first_call_and_short_ones_are_not_shared(
    blocked: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may compile; where threads are of use, `Pace` tries one again and again."""
    asked: list[int] = []
    real = each_alone.run_team

    def spied(threads: int, *work: Any) -> None:
        asked.append(threads)
        real(threads, *work)

    monkeypatch.setattr(each_alone, "run_team", spied)
    monkeypatch.setattr(each_alone, "WORK_TO_SHARE", 0)
    each = members(generated_cases(1, 3, widest=9, longest=8)[0], 7)
    engine = many_of(blocked, each, n_threads=2)
    for _ in range(3):
        trained(engine, each)
    assert asked == [1, 2, 1]
    monkeypatch.setattr(each_alone, "WORK_TO_SHARE", 1 << 60)
    asked.clear()
    for _ in range(3):
        trained(engine, each)
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("where", [0, 4])
def test_what_a_network_raises_comes_out(
    where: int, blocked: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(each_alone, "WORK_TO_SHARE", 0)
    case = generated_cases(1, 3, widest=9, longest=8)[0]
    each = members(case, 7)
    engine = many_of(blocked, each, n_threads=2)
    assert isinstance(engine, EachAlone)
    trained(engine, each)

    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.engines[where], "run", fails)
    with pytest.raises(KeyboardInterrupt):
        trained(engine, each)
    monkeypatch.undo()
    _, outcome = trained(engine, each)  # the threads are there again
    assert (outcome.status == Status.OK).all()


def test_a_backend_has_its_own_engine_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    case = generated_cases(1, 3, widest=9, longest=8)[0]
    asked: list[Any] = []

    class Own(EachAlone):
        pass

    def own(spec: Any, loss: Any, optimizers: Sequence[Optimizer], **given: Any) -> Any:
        asked.append(given)
        make = partial(backends.get("numpy").engine)
        return Own(spec, loss, optimizers, make=make, **given) if len(asked) == 1 else None

    parts = loading.load("numpy")
    monkeypatch.setitem(loading.loaded, "numpy", parts._replace(ensemble=own))
    made = [
        backends.get("numpy").ensemble_engine(case.spec, case.loss, [case.optimizer], batch_size=3)
        for _ in range(2)
    ]
    assert [type(engine) for engine in made] == [Own, EachAlone]
    assert asked == [{"batch_size": 3}] * 2


def test_swapped_rates_would_be_seen(backend: backends.Backend) -> None:
    """A planted fault: two networks with one another's scalars."""
    case = generated_cases(1, 3, widest=9, longest=8)[0]
    each = members(case)
    want, got = many_of(backend, each), many_of(backend, each)
    trained(want, each)
    scalars = np.stack([scalars_of(one, STEPS, seed=m) for m, one in enumerate(each)], axis=1)
    assert len(np.unique(scalars[0, :, RATE])) == MODELS
    trained(got, each, scalars=scalars[:, ::-1])
    assert not np.array_equal(flat(got.export())[0][0], flat(want.export())[0][0])
    np.testing.assert_array_equal(flat(got.export())[0][1], flat(want.export())[0][1])
