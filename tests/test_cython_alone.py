"""The backend in C by itself: without numba, without a mark on the processor's rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastneuron.backends import Backend

of_cython = pytest.mark.parametrize("blocked", ["cython"], indirect=True)


def run(script: str, *arguments: object, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "FASTNEURON_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LOOK = """
def numbas():
    return [
        name for name in sys.modules
        if name.partition(".")[0] in ("numba", "llvmlite") and sys.modules[name] is not None
    ]
"""
TRAIN = """
import sys
import numpy as np
import fastneuron as fn
if sys.argv[1] == "blocked":
    sys.modules["numba"] = sys.modules["llvmlite"] = None
net = fn.mlp([5, 9, 2], seed=0)
x = np.random.default_rng(0).normal(size=(64, 5))
trainer = fn.Trainer(net, "mse", "adam", backend="cython", batch_size=16)
assert np.isfinite(trainer.step(x, x[:, :2]))
net.fit(x, x[:, :2], loss="mse", backend="cython", epochs=2)
net.forward(x)
trainer.plan
with fn.backends.use("cython"):
    fn.ops.dense_forward(x, x[:5].copy())
assert numbas() == [], numbas()
"""


@of_cython
@pytest.mark.parametrize("numba", ["there", "blocked"])
def test_a_first_step_imports_no_numba(blocked: Backend, numba: str) -> None:
    run(LOOK + TRAIN, numba, FASTNEURON_BACKEND="cython")


COMMANDS = """
import os, sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import numpy as np
from fastneuron.cli import main
table, model, out = (os.path.join(sys.argv[1], name) for name in ("t.csv", "m.st", "p.csv"))
with open(table, "w") as file:
    print("a,b,y", file=file)
    for a, b in np.random.default_rng(0).normal(size=(80, 2)):
        print(a, b, "up" if a > b else "down", sep=",", file=file)
for command in (
    ["info"],
    ["info", "--json"],
    ["demo", "--epochs", "1"],
    ["warmup", "--backend", "cython"],
    ["train", table, "--target", "y", "--out", model, "--epochs", "3", "--hidden", "8"],
    ["predict", model, table, "--out", out],
):
    assert main(command) == 0, command
assert len(open(out).read().splitlines()) == 81
assert numbas() == [], numbas()
"""


@of_cython
def test_commands_without_numba(blocked: Backend, tmp_path: Path) -> None:
    got = run(LOOK + COMMANDS, tmp_path)
    assert "cython" in got
    assert "numba is not installed" in " ".join(got.split())


SUBNORMALS = """
import sys, threading
import numpy as np
def assert_kept(when):
    for dtype in (np.float32, np.float64):
        info = np.finfo(dtype)
        tiny = np.full(33, info.smallest_subnormal, dtype)
        halves = np.full(33, info.smallest_normal, dtype) / dtype(2)
        one = np.ones(33, dtype)
        assert (tiny * one == tiny).all() and (tiny > 0).all(), when       # read as they are
        assert (halves > 0).all() and (halves + halves == 2 * halves[0]).all(), when   # and made
        assert dtype(info.smallest_subnormal) * dtype(1) > 0, when
    assert 5e-324 * 1.0 > 0.0, when
assert_kept("before")
import fastneuron as fn
from fastneuron.threads import run_team
assert_kept("imported")
net = fn.mlp([6, 40, 3], "gelu", seed=0)
x = np.random.default_rng(0).normal(size=(96, 6))
trainer = fn.Trainer(net, "mse", "adam", backend=sys.argv[1], batch_size=32, n_threads=2)
assert_kept("backend loaded")
trainer.run(x, x[:, :3], epochs=3)
net.forward(x)
assert_kept("trained")
faults = []
def look(tid):
    try:
        assert_kept(f"thread {tid}")
    except AssertionError as error:
        faults.append(str(error))
run_team(2, look, lambda: None)
fresh = threading.Thread(target=look, args=("fresh",))
fresh.start()
fresh.join()
assert not faults, faults
"""


def test_subnormal_numbers_are_left_alone(backend: Backend) -> None:
    """No library sets the processor to flush them to zero when it is loaded, or when it works."""
    run(SUBNORMALS, backend.name)


CHOICE = """
import json
from fastneuron import backends
from fastneuron.errors import BackendUnavailable
try:
    reason = backends.get("cython").instruction_set
except BackendUnavailable as error:
    reason = str(error)
print(json.dumps([reason, backends.get("auto").name, str(backends.available()["cython"])]))
"""


@of_cython
def test_an_unknown_instruction_set_is_a_reason(blocked: Backend) -> None:
    got: list[Any] = json.loads(run(CHOICE, FASTNEURON_INSTRUCTION_SET="v9"))
    assert "FASTNEURON_INSTRUCTION_SET=v9" in got[0]
    assert f"{blocked.instruction_set} can be used" in got[0]
    assert got[1] in ("numba", "numpy")
    assert "v9" in got[2]
    got = json.loads(run(CHOICE, FASTNEURON_INSTRUCTION_SET=blocked.instruction_set))
    assert got[0] == blocked.instruction_set


@of_cython
def test_an_extension_built_for_other_tables_is_refused(blocked: Backend) -> None:
    room = import_module("fastneuron.kernels.cython_cpu")
    stale = SimpleNamespace(constants=lambda: "of another day")
    for extension in (stale, SimpleNamespace()):
        with pytest.raises(ImportError, match=r"other tables.*install fastneuron again"):
            room._choose(extension)
