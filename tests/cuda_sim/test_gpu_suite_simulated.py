"""The whole GPU suite in the simulator, and faults planted in its kernels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron import backends, dlpack
from fastneuron.errors import FastneuronError
from fastneuron.gpu_suite import calibration, door_checks
from fastneuron.gpu_suite.command import main
from fastneuron.gpu_suite.engines import numba_kind
from fastneuron.kernels import device_cost, device_faults
from fastneuron.kernels.numba_cuda import columns, products
from fastneuron.kernels.numba_cuda.engine import CudaEngine
from fastneuron.trainer import Trainer


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
        "door numba": "ok",
        "faults numba": "ok",
        "precision numba": lesser,
        "costs numba": "ok",
        "bench 3-4-2 b4 adam": "ok",
        "bench 3-4-2 b4 sgd tf32": lesser,
        "bench 3-4-2 b4 adam x3": "ok",
    }
    assert kind.takes("library") or found["slots numba"]["details"]["unlaunched"] == []
    assert 0 < found["networks numba"]["details"]["worst"] < 1
    assert "SIMULATED" in printed
    entries = found["costs numba"]["details"]["costs"]
    assert set(entries) == {
        *("LAUNCH", "LAUNCH, queued", "SHARE", "MEMORY_SHARE", "TRANSFER", "COMPILE", "START")
    }
    for name, entry in entries.items():
        assert entry["in_use"] == getattr(device_cost, name.partition(",")[0])
        # The simulator records no graph; everything else is gone through.
        assert entry.get("measured", 0) > 0 or name in ("LAUNCH", "COMPILE"), name
    assert entries["LAUNCH"]["said"] == "the simulator cannot record launches"
    for name in ("door", "faults"):
        each = found[f"{name} numba"]["details"]["each"]
        skipped = {key for key, entry in each.items() if entry["status"] == "skipped"}
        assert (
            skipped
            == {
                "door": {"arrays: PyTorch", "arrays: JAX"},
                "faults": {"a lost device"},
            }[name]
        )
        assert {entry["status"] for entry in each.values()} == {"ok", "skipped"}
    timed = found["bench 3-4-2 b4 adam"]["details"]["contestants"]["fastneuron numba"]
    assert timed["predicted_seconds"] > 0
    assert "us predicted" in printed
    assert "no figure means anything" in " ".join(printed.split())
    auto = found["door numba"]["details"]["auto"]
    assert len(auto) == 3
    assert all("predicted " in why for why in auto.values())
    assert "auto for 4-8-1 b16: " in " ".join(printed.split())
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


def planted_capsule(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dlpack.export
    monkeypatch.setattr(dlpack, "export", lambda pointer, *rest: real(pointer + 64, *rest))


def planted_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backends.on_device

    def on_device(*given: Any, **more: Any) -> Any:
        return replace(real(*given, **more), reason="")

    monkeypatch.setattr(backends, "on_device", on_device)


def planted_drivers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No error of the driver is recognised."""
    monkeypatch.setattr(device_faults, "_CLASSES", set())


def planted_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails leaves another bias."""
    real = Trainer.run

    def run(trainer: Trainer, *given: Any, **more: Any) -> Any:
        try:
            return real(trainer, *given, **more)
        except FastneuronError:
            trainer.network.layers[0].bias += 1
            raise

    monkeypatch.setattr(Trainer, "run", run)


def planted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine asks for no room for its batches: that they are too large is not found out."""
    eight = property(lambda engine: 8, lambda engine, size: None)
    monkeypatch.setattr(CudaEngine, "batch_size", eight, raising=False)


def planted_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "START", "raise SystemExit('no engine')")


@pytest.mark.parametrize(
    ("plant", "stage"),
    [
        (planted_bias, "slots"),
        (planted_group, "slots"),
        (planted_bits, "repeats"),
        (planted_bits, "door"),
        (planted_capsule, "door"),
        (planted_silence, "door"),
        (planted_drivers_words, "faults"),
        (planted_change, "faults"),
        (planted_memory, "faults"),
        (planted_cost, "costs"),
    ],
)
def test_a_planted_fault_ends_the_suite_with_1(
    plant: Any, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plant(monkeypatch)
    # A process of its own, which no plant reaches, and which compiles for seconds.
    monkeypatch.setattr(door_checks, "_check_command", lambda kind: 0.0)
    code, found = run(tmp_path, "--only", stage, "--jobs", "1")
    assert code == 1
    assert found[f"{stage} numba"]["status"] == "WRONG"
    assert "something is WRONG" in capsys.readouterr().out


def test_a_command_that_cannot_reach_the_card_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = numba_kind(simulated=True)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        AssertionError, match=r"it ended with 1: fastneuron: device='cuda': .*NVIDIA"
    ):
        door_checks._check_command(kind)
