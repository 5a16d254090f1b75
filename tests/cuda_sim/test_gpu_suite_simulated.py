"""The whole GPU suite in the simulator, and faults planted in its kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron.gpu_suite.command import main
from fastneuron.gpu_suite.engines import numba_kind
from fastneuron.kernels.numba_cuda import columns, products
from fastneuron.kernels.numba_cuda.engine import CudaEngine


def run(out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    # So much time that nothing is cut off, however slow the machine is.
    code = main(["--simulate", "--budget", "5000", "--out", str(out), *more])
    found = json.loads((out / "gpu_suite.json").read_text("utf-8"))
    assert found["exit_code"] == code
    return code, {stage["stage"]: stage for stage in found["stages"]}


def test_the_whole_suite_in_the_simulator(tmp_path: Path, capsys: Any) -> None:
    code, found = run(tmp_path, "--jobs", "1")
    printed = capsys.readouterr().out
    assert code == 0, printed
    kind = numba_kind(simulated=True)
    # Lesser precisions need a library, which the simulator has not.
    lesser = "skipped" if kind.takes("precision") else "not built yet"
    assert {name: stage["status"] for name, stage in found.items()} == {
        "slots numba": "ok",
        "networks numba": "ok",
        "repeats numba": "ok",
        "ensembles numba": "ok",
        "precision numba": lesser,
        "bench 3-4-2 b4 adam": "ok",
        "bench 3-4-2 b4 sgd tf32": lesser,
        "bench 3-4-2 b4 adam x3": "ok",
    }
    assert kind.takes("library") or found["slots numba"]["details"]["unlaunched"] == []
    assert 0 < found["networks numba"]["details"]["worst"] < 1
    assert "SIMULATED" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_checks_are_shared_among_processes(tmp_path: Path) -> None:
    code, found = run(tmp_path, "--only", "networks", "--jobs", "2")
    assert code == 0
    assert found["networks numba"]["details"]["checks"] == 3


def planted_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    real = products.forward

    def forward(tile: Any, dtype: str, activation: str, bias: bool, *rest: bool) -> Any:
        return real(tile, dtype, activation, False, *rest)

    monkeypatch.setattr(products, "forward", forward)


def planted_group(monkeypatch: pytest.MonkeyPatch) -> None:
    real = columns.gate

    def gate(*arguments: Any) -> Any:
        *rest, group = arguments
        return real(*rest, group - 1)  # the last row of each group is left out

    monkeypatch.setattr(columns, "gate", gate)


def planted_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    real, runs = CudaEngine.export, iter(range(1000))

    def export(engine: CudaEngine) -> Any:
        (weight, bias), *rest = real(engine)
        return [(np.nextafter(weight, np.float32(next(runs))), bias), *rest]

    monkeypatch.setattr(CudaEngine, "export", export)


@pytest.mark.parametrize(
    ("plant", "stage"),
    [(planted_bias, "slots"), (planted_group, "slots"), (planted_bits, "repeats")],
)
def test_a_planted_fault_ends_the_suite_with_1(
    plant: Any, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plant(monkeypatch)
    code, found = run(tmp_path, "--only", stage, "--jobs", "1")
    assert code == 1
    assert found[f"{stage} numba"]["status"] == "WRONG"
    assert "something is WRONG" in capsys.readouterr().out
