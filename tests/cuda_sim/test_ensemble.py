"""The engine of many small networks at once in Numba's kernels."""

from __future__ import annotations

import pytest
from ensemble_checks import *  # noqa: F403

from fastneuron.kernels.numba_cuda import ensemble_engine
from fastneuron.kernels.numba_cuda.ensemble import CudaEnsembleEngine
from fastneuron.layers import BatchNorm, Dense
from fastneuron.testing import case_of


@pytest.fixture
def make():
    return CudaEnsembleEngine


def test_a_backend_asks_for_an_engine_and_gets_none_where_no_block_can_train() -> None:
    for layers, wanted in ([Dense(2, 3)], True), ([Dense(129, 2)], False), ([BatchNorm(4)], False):
        of = case_of(*layers)
        engine = ensemble_engine(of.spec, of.loss, [of.optimizer], batch_size=3)
        assert isinstance(engine, CudaEnsembleEngine) == wanted
