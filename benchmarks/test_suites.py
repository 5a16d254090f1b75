"""Every suite of `fastneuron.bench` under pytest-benchmark: checked, then timed.

A group is a workload, so that the printed table has the backends side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import pytest

from fastneuron.bench.ceilings import Ceilings, measure
from fastneuron.bench.results import Key, Row, Sample
from fastneuron.bench.suites import workloads
from fastneuron.bench.workloads import NotItsOwn, Prepare, Workload
from fastneuron.errors import BackendUnavailable
from fastneuron.threads import requested_threads

# What is timed is warm after the check, and 0.15 s hold enough rounds for a median.
pytestmark = pytest.mark.benchmark(max_time=0.15, min_rounds=5, min_time=1e-4)


def cases() -> Iterator[Any]:
    """Yield each workload with each backend; backends vary fastest, so that data are made once."""
    for workload in workloads():
        for backend in workload.backends:
            name = f"{workload.suite}-{workload}-{backend}"
            yield pytest.param(workload, backend, id=name)


@lru_cache(maxsize=1)
def prepare(workload: Workload) -> Prepare:
    return workload.build()


@cache
def ceilings() -> Ceilings:
    return measure(requested_threads(None) or 1)


@pytest.mark.parametrize(("workload", "backend"), list(cases()))
def test_suite(benchmark: Any, workload: Workload, backend: str) -> None:
    w = workload
    benchmark.group = f"{w.suite} {w}"
    try:
        prepared = prepare(w)(backend)  # a wrong result fails here: it is not timed
    except (BackendUnavailable, NotItsOwn) as reason:
        pytest.skip(str(reason))
    units = 1 if benchmark.disabled else w.chunk
    benchmark(prepared.work, units)
    info = benchmark.extra_info
    units *= prepared.units
    info.update(prepared.more, error_over_bound=prepared.error_over_bound, units=units)
    info["start_seconds"] = prepared.start_seconds
    if benchmark.stats is None:  # --benchmark-disable: nothing was timed
        return
    seconds = benchmark.stats.stats.median / units
    row = Row(
        Key(w.suite, w.name, w.shape, w.dtype, w.bias, backend),
        "ok",
        flop=w.flop,
        nbytes=w.nbytes,
        rows=w.rows,
        floor_seconds=ceilings().floor(w.flop, w.nbytes, w.dtype),
        samples=(Sample([seconds], []),),
    )
    figures = row.figures()
    info.update({name: figures[name] for name in figures if not name.startswith(("low", "high"))})
