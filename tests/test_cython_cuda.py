"""The compiled CUDA backend: its engine over the emulated kernels, and its face without a card."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from emulated_cuda import LARGE, SMALL, TINY, Calls, Kernels

from fastneuron.kernels.contract import Status
from fastneuron.kernels.cython_cuda import CythonCudaEngine
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Case,
    assert_parameters,
    assert_within,
    batches,
    case_of,
    check_step,
    flat,
    generated_cases,
    generated_norm_cases,
    integer_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
)

DTYPES = ("float32", "float64")


@pytest.fixture(scope="session")
def calls(cuda_kernels: Kernels) -> Calls:
    return Calls(cuda_kernels.path)


def engine_of(calls: Calls, case: Case, tiles: Any = (TINY, TINY), batch_size: int = 1) -> Any:
    engine = CythonCudaEngine(
        case.spec, case.loss, case.optimizer, batch_size=batch_size, calls=calls, tiles=tiles
    )
    return loaded(engine, case)


def small(cases: list[Case]) -> list[Case]:
    """Those whose steps are a matter of seconds, a thread of the processor for each of the card."""
    return [case for case in cases if max(case.spec.sizes) <= 40 and case.batch <= 40]


@pytest.mark.parametrize("dtype", DTYPES)
def test_generated_networks(calls: Calls, dtype: str) -> None:
    cases = small(generated_cases(60, seed=3, dtype=dtype))
    cases += small(generated_norm_cases(30, seed=4, dtype=dtype))
    assert len(cases) >= 6
    for case in cases[:8]:
        engine = engine_of(calls, case)
        rng = np.random.default_rng(1)
        scalars = scalars_of(case, 2)
        for step in range(2):
            rows = rng.permutation(len(case.x))[: case.batch]
            check_step(engine, case, rows, scalars[step], f"{case.name} step {step}")
