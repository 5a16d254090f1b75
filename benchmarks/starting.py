"""From the start of a process to its first finished step, with kernels to compile and without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_most, report, unmeasured
from racing import Say, failure

import fastneuron
from fastneuron.peers.judging import LOSS_TOLERANCE, WrongResult

#: Seconds.
WARM_GOAL, COLD_GOAL, AHEAD_GOAL = 1.2, 15.0, 0.35
LEAST_STARTS, MOST_STARTS = 3, 9

#: What the process does: it tells the loss of its first step, then what the second one starts from.
PROGRAM = """
import sys
import numpy as np
import fastneuron
rng = np.random.default_rng(0)
x = rng.standard_normal((32, 784), dtype=np.float32)
y = rng.integers(0, 10, 32)
net = fastneuron.mlp([784, 128, 10], seed=0)
trainer = fastneuron.Trainer(net, "cross_entropy", "adam", batch_size=32, backend=sys.argv[1])
print(trainer.step(x, y), flush=True)
print(trainer.step(x, y), flush=True)
"""
LABEL = "784-128-10 b32 adam"


def expected() -> list[float]:
    """Return the two losses that the program must tell, from the float64 reference."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 784), dtype=np.float32), rng.integers(0, 10, 32)
    started = fastneuron.mlp([784, 128, 10], seed=0)
    net = fastneuron.mlp([784, 128, 10], seed=0, dtype="float64")
    for layer, first in zip(net.layers, started.layers, strict=True):
        layer.weight, layer.bias = first.weight, first.bias
    trainer = fastneuron.Trainer(net, "cross_entropy", "adam", batch_size=32, backend="numpy")
    return [trainer.step(x, y), trainer.step(x, y)]


def start_seconds(cache: Path, backend: str, program: str = PROGRAM) -> float:
    """Return the seconds of one start; raise where it trained something else."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    told = os.environ | {"FASTNEURON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program, backend], env=told, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        seconds = time.perf_counter() - start
        # The errors are a few lines, which a pipe holds.
        rest, errors = process.stdout.read(), process.stderr.read()
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process ended with {process.returncode}: {last}")
    got, want = [float(text or "nan") for text in (first, rest)], expected()
    if not np.allclose(got, want, rtol=LOSS_TOLERANCE, atol=0):
        raise WrongResult(f"its losses are {got}, those of the reference {want}")
    return seconds


def starts(
    seconds: float,
    say: Say,
    backend: str = "numba",
    program: str = PROGRAM,
    ahead: str = "cython",
) -> dict[str, Any]:
    """Start with an empty kernel cache, with what that one left, and with what needs no compiling.

    `backend` compiles at first use, `ahead` is compiled when it is built.
    """
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for what, name, goal, least, most in (
            ("empty kernel cache", backend, at_most(COLD_GOAL), 1, 1),
            ("kernels compiled", backend, at_most(WARM_GOAL), LEAST_STARTS, MOST_STARTS),
            (ahead, ahead, at_most(AHEAD_GOAL), LEAST_STARTS, MOST_STARTS),
        ):
            what = f"{LABEL}: first step, {what}"
            times: list[float] = []
            begun = time.perf_counter()
            try:
                while len(times) < least or (
                    len(times) < most and time.perf_counter() - begun < seconds
                ):
                    say(f"start {len(times) + 1}: {what}")
                    times.append(start_seconds(cache, name, program))
            except Exception as error:
                figures.append(unmeasured(what, failure(error), goal, "s"))
                continue
            value = float(np.median(times))
            figures.append(Figure(what, value, "s", goal, detail={"seconds": times}))
    return report(figures)
