"""Failing steps of networks with normalisations and dropout: nothing moves, statistics neither."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.optimizers import Adam
from fastneuron.testing import Case, case_of, loaded, run_steps, scalars_of, state_of


def engine_of(backend: Backend, case: Case) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer), case)


def bad_step(kind: str, middle: Layer) -> Case:
    """Three batches of 8 rows, of which the second must fail."""
    case = case_of(
        Dense(5, 6), middle, Dense(out_features=3), rows=24, batch=8, optimizer=Adam(0.01)
    )
    if kind == "variance":  # finite, as its mean is; its square is not
        case.x[8:16] *= np.float32(1e30)
    elif kind == "loss":
        case.y[9, 0] = 2e19
    else:
        case.x[11, 2] = float(kind)
    return case


NORMS = (BatchNorm(), LayerNorm())


@pytest.mark.parametrize(
    ("middle", "kind"),
    [(middle, kind) for middle in (*NORMS, BatchNorm(trainable=False), Dropout())
     for kind in ("nan", "inf", "variance", "loss") if kind != "variance" or middle in NORMS],
    ids=repr,
)  # fmt: skip
def test_a_failing_step_moves_nothing(backend: Backend, middle: Layer, kind: str) -> None:
    """Neither parameters nor moments nor running statistics; then training goes on."""
    case = bad_step(kind, middle)
    engine, order = engine_of(backend, case), np.arange(24)
    bounds, scalars, losses = np.array([0, 8, 16, 24]), scalars_of(case, 3), np.full(3, 7.0)
    outcome = engine.run(case.x, case.y, None, order, bounds, scalars, losses)
    assert (outcome.status, outcome.steps) == (Status.LOSS_NOT_FINITE, 1)
    assert not np.isfinite(losses[1])
    assert losses[2] == 7.0
    twin = engine_of(backend, case)
    assert run_steps(twin, case, order, bounds[:2], scalars[:1])[0] == losses[0]
    assert state_of(engine) == state_of(twin)
    for each in (engine, twin):
        run_steps(each, case, order, bounds[2:], scalars[1:2])
    assert state_of(engine) == state_of(twin)


@pytest.mark.parametrize("middle", [BatchNorm(), LayerNorm(), Dropout()], ids=repr)
def test_a_gradient_that_overflows_moves_nothing(backend: Backend, middle: Layer) -> None:
    case = case_of(Dense(5, 6), middle, Dense(out_features=3), batch=8, optimizer=Adam(0.01))
    for large in (1e25, np.inf, np.nan):
        engine = engine_of(backend, case)
        before, scalars = state_of(engine), scalars_of(case, 1)
        out = engine.forward_keep(case.x[:8], scalars)
        _, outcome = engine.update(np.full_like(out, large), scalars[0])
        assert (outcome.status, outcome.steps) == (Status.GRADIENT_NOT_FINITE, 0)
        assert state_of(engine) == before
        run_steps(engine, case, np.arange(8), np.array([0, 8]), scalars)
        assert state_of(engine) != before


def test_statistics_that_a_failed_step_moved_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above, of a step that moves them before it looks at the loss."""
    backend: Any = SimpleNamespace(
        engine=lambda spec, loss, optimizer, **options: ReferenceEngine(spec, loss, optimizer)
    )
    middle = BatchNorm()
    test_a_failing_step_moves_nothing(backend, middle, "loss")
    loss_of = ReferenceEngine._loss
    kept: list[Any] = []
    run_forward = ReferenceEngine._forward

    def forward_keeping(self: Any, x: Any, scalars: Any = None) -> Any:
        kept[:] = [run_forward(self, x, scalars)]
        return kept[0]

    def loss_moving(self: Any, *arguments: Any) -> Any:
        loss, dout = loss_of(self, *arguments)
        if not np.isfinite(loss):
            self._move_statistics(kept[0][1])
        return loss, dout

    monkeypatch.setattr(ReferenceEngine, "_forward", forward_keeping)
    monkeypatch.setattr(ReferenceEngine, "_loss", loss_moving)
    with pytest.raises(AssertionError):
        test_a_failing_step_moves_nothing(backend, middle, "loss")
