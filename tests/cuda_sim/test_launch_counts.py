"""The launches that the cost model counts are those that the engine queues, on every network."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.kernels import fused_plan
from fastneuron.kernels.device_launches import fused_for, launches_of
from fastneuron.kernels.numba_cuda import engine as engine_room
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.testing import case_of, generated_cases, generated_norm_cases, scalars_of

FROZEN = (
    (Dense(5, 9, "relu", trainable="weight"), Dense(9, 3)),
    (Dense(5, 9, "relu", trainable="bias"), Dense(9, 3, trainable="weight")),
    (Dense(5, 9, trainable=False), BatchNorm(9, activation="tanh"), Dense(9, 3, bias=False)),
    (Dense(5, 9, "gelu"), Dense(9, 3, trainable=False)),
    (Dense(5, 9, trainable=False), Dense(9, 3, trainable=False)),
    (
        Dense(5, 9, "gelu"),
        BatchNorm(9, trainable="weight", activation="silu"),
        Dropout(0.4),
        LayerNorm(9, trainable="bias"),
        Dense(9, 3),
    ),
    (Dense(5, 9), BatchNorm(9, trainable=False), Dropout(0.5), Dense(9, 3, "relu")),
    (Dense(5, 9), LayerNorm(9, trainable=False), Dense(9, 3, "relu")),
)
CASES = [
    *(case_of(*layers) for layers in FROZEN),
    case_of(Dense(5, 9), Dense(9, 3, "relu"), rows=1, batch=1),
    case_of(Dense(5, 9), BatchNorm(9), Dense(9, 3)),
    case_of(Dense(5, 9), BatchNorm(9), Dense(9, 3), rows=1, batch=1),
    # So many rows that a weight gradient's batch is cut, where no block trains the whole network.
    case_of(Dense(5, 9), Dropout(0.5), Dense(9, 3), rows=1100, batch=1100),
    case_of(Dense(5, 140), Dense(140, 3), rows=600, batch=600),
    case_of(Dense(5, 20), Dense(20, 3), rows=1100, batch=1100),
    *generated_cases(40, seed=5),
    *generated_norm_cases(30, seed=6),
]


def queued(case, monkeypatch: pytest.MonkeyPatch) -> int:
    """The launches of a step; none of them is done."""
    monkeypatch.setattr(engine_room, "run_all", lambda calls: None)
    engine = engine_room.CudaEngine(case.spec, case.loss, case.optimizer, batch_size=case.batch)
    rows = np.arange(case.batch)
    bounds = np.array([0, case.batch])
    engine.run(case.x, case.y, case.weight, rows, bounds, scalars_of(case, 1), np.zeros(1))
    (calls,) = engine._steps.values()
    return len(calls)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_model_counts_the_launches_of_the_engine(case, monkeypatch: pytest.MonkeyPatch) -> None:
    want = queued(case, monkeypatch)
    assert launches_of(case.spec, case.batch, weighted=case.weight is not None) == want


def test_both_kinds_of_steps_are_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = [fused_for(case.spec, case.batch) is not None for case in CASES]
    assert 10 < sum(fused) < len(fused) - 20
    # A batch whose partial gradients would be too many goes layer by layer.
    case = case_of(Dense(5, 20), Dense(20, 3), rows=300, batch=300)
    assert launches_of(case.spec, 300) == 7
    monkeypatch.setattr(fused_plan, "_PARTIAL_BYTES", 2048)
    assert fused_for(case.spec, 300) is None
    assert launches_of(case.spec, 300) == queued(case, monkeypatch) > 7
