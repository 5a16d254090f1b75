"""What both suites share: the backends side by side, and what is written beside each timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable

Note = Callable[..., None]


@pytest.fixture(params=("numpy", "numba", "cython"))
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    """Every backend that runs here; the others are skipped with their reason."""
    try:
        return backends.get(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def note(benchmark: Any) -> Note:
    """Write rates and the checked error beside the timing that `benchmark` has just taken."""

    def write(
        worst: float,
        *,
        flop: float = 0,
        words: float = 0,
        steps: int = 1,
        rows: int = 0,
        **more: Any,
    ) -> None:
        info = benchmark.extra_info
        info["error_over_bound"] = round(worst, 4)
        info.update(more)
        if benchmark.stats is None:  # --benchmark-disable: nothing was timed
            return
        seconds = benchmark.stats.stats.median / steps
        info["microseconds"] = round(seconds * 1e6, 3)
        if flop:
            info["gflop_s"] = round(flop / seconds / 1e9, 2)
        if words:
            info["gbyte_s"] = round(words * 4 / seconds / 1e9, 2)
        if rows:
            info["rows_s"] = round(rows / seconds)

    return write
