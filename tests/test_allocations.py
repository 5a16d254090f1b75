"""A steady-state step allocates nothing: seen in Python's allocator, in Numba's, in fresh pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fastneuron.backends import Backend

# Counts of a chunk of 10 steps and of one of 300, in a process of its own: Numba counts the
# allocations of compiled code only where this is asked for before it is imported. Kernels in C have
# no allocator that counts; fresh memory shows in their page faults.
MEASURE = """
import json, resource, sys, tracemalloc
from types import SimpleNamespace
import numpy as np
from fastneuron import backends
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, RMSprop
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_inputs, draw_parameters, draw_targets

backend, threads = sys.argv[1], int(sys.argv[2])
if backend == "numba":
    from numba.core.runtime import rtsys
    stats = rtsys.get_allocation_stats
else:
    stats = lambda: SimpleNamespace(alloc=0, free=0)
rng = np.random.default_rng(0)
report = []
for loss_name, optimizer, bias in (
    ("cross_entropy", Adam(1e-3, clip_norm=1.0), True),
    ("mse", SGD(1e-3, momentum=0.9), False),
    ("poisson", RMSprop(1e-4), True),
):
    loss = LOSSES[loss_name]
    spec = NetworkSpec.chain(
        [Dense(20, 64, "relu", bias=bias), Dense(64, 48, "gelu", bias=bias), Dense(48, 3)]
    )
    engine = backends.get(backend).engine(
        spec, loss, optimizer, n_threads=threads, batch_size=32
    )
    engine.load(draw_parameters(spec, rng))
    x, y = draw_inputs(rng, 100, 20, "float32"), draw_targets(loss, rng, 100, 3, "float32")
    weight = np.ones(100, np.float32)
    counts = []
    # The first use starts Numba's allocator; before, there are no counts to read.
    engine.gradients(x, y, weight)
    for steps in (10, 10, 300, 10, 300):
        order = rng.integers(0, 100, 32 * steps)
        bounds = np.arange(steps + 1) * 32
        scalars = optimizer.scalars(0, np.full(steps, 1e-4))
        losses = np.zeros(steps)
        before = stats()
        # Python's allocator: memory still held after the call, and the most held during it.
        tracemalloc.start()
        outcome = engine.run(x, y, weight, order, bounds, scalars, losses)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        after = stats()
        assert outcome.steps == steps, outcome
        counts.append(
            {
                "steps": steps,
                "nrt": after.alloc - before.alloc,
                "nrt_held": (after.alloc - after.free) - (before.alloc - before.free),
                "python_peak": peak,
            }
        )
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        engine.run(x, y, weight, order, bounds, scalars, losses)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    report.append({"loss": loss_name, "counts": counts, "page_faults": faults})

# The instrument itself: a kernel that does allocate in its loop is seen to.
def allocating(n):
    total = 0
    for i in range(n):
        total += np.zeros(i + 1).size
    return total

if backend == "numba":
    import numba
    allocating = numba.njit(allocating)
allocating(1)
before = stats().alloc
allocating(100)
print(json.dumps({"control": stats().alloc - before, "engines": report}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="page faults are counted by POSIX")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_allocates_nothing(blocked: Backend, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, blocked.name, str(threads)],
        env={**os.environ, "NUMBA_NRT_STATS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["control"] >= (100 if blocked.name == "numba" else 0)
    for entry in report["engines"]:
        _, short, long, short_again, long_again = entry["counts"]
        # The same handful a call, whatever the number of steps in it.
        assert long["nrt"] == short["nrt"] == short_again["nrt"] == long_again["nrt"], entry
        assert long["nrt_held"] == short["nrt_held"], entry
        # Python's own: a fixed number of small objects a call, and one temporary of 8 bytes a step
        # in which the call looks for its largest batch.
        assert long_again["python_peak"] <= short_again["python_peak"] + 8 * 290 + 512, entry
        # 1,500 steps: fresh memory would fault in page by page.
        assert entry["page_faults"] < 200, entry
