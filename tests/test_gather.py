"""Batch rows on their way into an engine: every element once, nothing beside, from any distance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels import columns as at
from fastneuron.kernels.contract import Status
from fastneuron.kernels.layout import to_panels
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_parameters

#: As many outputs are too many for a slim layer, which has its rows elsewhere.
OUTPUTS = 17


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_rows_come_whole_and_alone(blocked: Backend, n_threads: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for columns in (*range(1, 36), 63, 64, 65, 100):
        spec = NetworkSpec.chain([Dense(columns, OUTPUTS)], dtype)
        x = rng.standard_normal((40, columns)).astype(dtype)
        y = np.zeros((40, OUTPUTS), dtype)
        for n_rows in (1, 2, 8, 19, 40):
            options = {"n_threads": n_threads, "batch_size": n_rows}
            engine: Any = blocked.engine(spec, LOSSES["mse"], SGD(), **options)
            engine.poison(np.nan)
            order, bounds = rng.integers(0, 40, n_rows), np.array([0, n_rows])
            scalars = SGD().scalars(0, np.zeros(1))
            outcome = engine.run(x, y, None, order, bounds, scalars, np.zeros(1))
            assert outcome.status == Status.OK
            place = int(engine._layout.layers[0, at.IN_ROWS])
            got = engine._layout.rows_view(engine._arena, place, columns)
            want = np.full_like(got, np.nan)
            want[:, :n_rows] = to_panels(x[order], got.shape[2])
            want[-1, :, columns - (len(got) - 1) * got.shape[2] :] = 0  # lanes of no feature
            np.testing.assert_array_equal(got, want, f"{n_rows} rows of {columns} columns")


COLUMNS = 1024
FAR_ROWS = 2**31 // COLUMNS + 9


@pytest.fixture(scope="module")
def far_rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """More than 2^31 elements, all zero but the last rows, which are probabilities."""
    if sys.platform != "linux":
        pytest.skip("a file without holes would fill the disk")
    path: Path = tmp_path_factory.mktemp("far") / "rows"
    try:
        rows = np.memmap(path, np.float32, "w+", shape=(FAR_ROWS, COLUMNS))
    except (OSError, ValueError, MemoryError) as error:
        pytest.skip(f"8 GiB of address space or of holes in a file are not to be had: {error}")
    rows[-8:] = np.random.default_rng(0).dirichlet(np.ones(COLUMNS), 8)
    yield np.asarray(rows)
    path.unlink()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_rows_beyond_two_to_the_31_elements(
    blocked: Backend, far_rows: Any, n_threads: int, loss: str
) -> None:
    """Inputs and targets from the far end give the bits of their copy."""
    order = FAR_ROWS - 1 - np.arange(8)
    assert order.min() * COLUMNS > 2**31
    order[2] = 0
    spec = NetworkSpec.chain([Dense(COLUMNS, 24, "tanh"), Dense(24, COLUMNS)])
    parameters = draw_parameters(spec, np.random.default_rng(1))

    def trained(x: Any, order: Any) -> bytes:
        engine = blocked.engine(spec, LOSSES[loss], SGD(), n_threads=n_threads, batch_size=5)
        engine.load(parameters)
        losses, scalars = np.zeros(2), SGD().scalars(0, np.full(2, 0.1))
        weight = np.zeros(len(x), np.float32)
        weight[order] = np.arange(1, 9)
        outcome = engine.run(x, x, weight, order, np.array([0, 3, 8]), scalars, losses)
        assert outcome.status == Status.OK
        return losses.tobytes() + b"".join(w.tobytes() for w, _ in engine.export())

    want = trained(far_rows[order], np.arange(8))
    assert trained(far_rows, order) == want
