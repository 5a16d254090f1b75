"""What the machine can do at most, as it is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastneuron import backends
from fastneuron.bench import ceilings as bench_ceilings
from fastneuron.errors import BackendUnavailable
from fastneuron.profiling import machine_ceilings
from fastneuron.profiling.machine_ceilings import Level, MachineCeilings


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernels_do_what_they_are_counted_for(blocked: backends.Backend, dtype: str) -> None:
    kernels = blocked.ceilings
    assert kernels is not None
    lanes = kernels.lane_count(dtype) // 2
    out = np.linspace(1, 2, 12 * lanes).astype(dtype)
    want = out.copy()
    kernels.multiply_adds(out, 5)
    for _ in range(5):
        want = want * out.dtype.type(0.5) + out.dtype.type(0.75)  # exact enough: powers of two
    np.testing.assert_allclose(out, want, rtol=1e-6)

    x = np.arange(3 * 8 * lanes).astype(dtype)
    sums = np.full(8 * lanes, np.nan, dtype)
    kernels.read_all(x, 2, sums)
    np.testing.assert_array_equal(sums, 2 * x.reshape(3, -1).sum(axis=0))

    copied = np.full_like(x, np.nan)
    kernels.copy_all(x, copied, 2)
    np.testing.assert_array_equal(copied, x)


@pytest.mark.parametrize("threads", [1, 2])
def test_ceilings_are_measured(
    blocked: backends.Backend, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_ceilings, "_RUN_SECONDS", 1e-4)
    monkeypatch.setattr(machine_ceilings, "_RUNS", 2)
    found = machine_ceilings.ceilings(threads, backend=blocked, memory=False)
    assert found.threads == threads
    assert found.measured_by == blocked.name
    assert all(rate > 1e6 for rate in found.flops.values())
    assert [level.name for level in found.levels] == list(machine_ceilings.cache_sizes())
    assert all(level.read > 1e6 and level.copy > 1e6 for level in found.levels)
    assert max(map(len, str(found).splitlines())) <= 80


def test_the_reference_cannot_measure() -> None:
    with pytest.raises(BackendUnavailable, match="no kernels of its own"):
        machine_ceilings.ceilings(backend="numpy")


def test_floors_are_the_dearer_of_two() -> None:
    levels = (Level("L1", 1000, 1e9, 9e8), Level("memory", 10**9, 5e7, 1e8))
    machine = MachineCeilings(1, {"float32": 1e9}, levels, "a test")
    assert machine.floor(2e9, 10, "float32", 10) == 2
    assert machine.floor(1, 1e9, "float32", 2000) == 1
    assert machine.floor(1, 1e9, "float32", 2001) == 10, "beyond twice a set: the next level"
    assert machine.floor(0, 1000, "float32") == 1e-6, "all that is moved is held"
    assert machine.floor(1e9, 1000, "int64") == 1e-6, "nobody measured such operations"
    assert machine.level(1e12).name == "memory"


def test_of_two_measurements_the_best_counts() -> None:
    one = MachineCeilings(
        1,
        {"float32": 2e11, "float64": 9e10},
        (Level("L1", 24 << 10, 4e11, 2e11), Level("L2", 1 << 20, 1e11, 8e10)),
        "a test",
    )
    other = MachineCeilings(
        1, {"float32": 1e11, "float64": 1e11}, (Level("L1", 24 << 10, 3e11, 3e11),), "a test"
    )
    got = one.best_with(other)
    assert got.flops == {"float32": 2e11, "float64": 1e11}
    assert got.levels == (Level("L1", 24 << 10, 4e11, 3e11), one.levels[1])


def test_ceilings_come_back_from_json_in_either_form() -> None:
    levels = (Level("L1", 512, 5e10, 4e10), Level("memory", 1 << 20, 1e9, 2e9))
    machine = MachineCeilings(2, {"float32": 1e11}, levels, "a test")
    again = MachineCeilings.from_json(json.loads(json.dumps(machine.to_json())))
    assert again == machine
    once = {
        "gflops": {"float32": 100.0},
        "gbytes": [[1024, 50.0], [2 << 20, 2.0]],
        "threads": 2,
    }
    early = MachineCeilings.from_json(once)
    assert (early.threads, early.flops) == (2, {"float32": 1e11})
    assert early.gbytes == machine.gbytes == ((1024, 50.0), (2 << 20, 2.0))
    for flop, nbytes in ((1e9, 0), (0, 500), (0, 1500), (0, 1e9)):
        assert early.floor(flop, nbytes, "float32") == machine.floor(flop, nbytes, "float32")


def test_a_benchmark_has_ceilings_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(threads: int) -> MachineCeilings:
        raise BackendUnavailable("no compiled backend")

    monkeypatch.setattr(machine_ceilings, "ceilings", missing)
    monkeypatch.setattr(bench_ceilings, "_SETS", {"L1": 1 << 12, "memory": 1 << 14})
    monkeypatch.setattr(bench_ceilings, "_BURST", 1e-5)
    found = bench_ceilings.measure()
    assert set(found.flops) == {"float32", "float64"}
    assert min(found.flops.values()) > 1e6
    assert [size for size, _ in found.gbytes] == [1 << 13, 1 << 15]
    assert found.levels[0].pace >= found.levels[1].pace > 1e3
