"""Same bits: whatever the thread count, the batch, the scratch before, the process, the caller."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec
from fastneuron.testing import Case, batches, generated_cases, loaded

CASES = generated_cases(30)
# One of each: narrow, wide, deep, every optimizer slot, with class numbers and with probabilities.
SOME = [CASES[i] for i in (0, 1, 2, 3, 5, 7, 12, 16, 19, 24, 29)]
STEPS = 6


def make(backend: Backend, case: Case, **options: Any) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, **options), case)


def train(engine: Engine, case: Case, steps: int = STEPS, seed: int = 0) -> bytes:
    """Losses, parameters, moments and outputs after some steps, as bytes."""
    order, bounds = batches(len(case.x), case.batch, steps, np.random.default_rng(seed))
    scalars = case.optimizer.scalars(
        0, case.optimizer.schedule.rates(0, steps, Horizon(steps, steps))
    )
    losses = np.zeros(steps)
    outcome = engine.run(case.x, case.y, case.weight, order, bounds, scalars, losses)
    assert outcome.status == Status.OK
    return losses.tobytes() + everything(engine, case)


def everything(engine: Engine, case: Case) -> bytes:
    arrays = [
        array
        for parameters in [engine.export(), *engine.export_moments()]
        for pair in parameters
        for array in pair
        if array is not None
    ]
    return b"".join(array.tobytes() for array in [*arrays, engine.forward(case.x)])


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_thread_counts(blocked: Backend, case: Case) -> None:
    want = train(make(blocked, case, n_threads=1, batch_size=case.batch), case)
    for n_threads in (2, 3, 8, None):
        engine = make(blocked, case, n_threads=n_threads, batch_size=case.batch)
        assert train(engine, case) == want, f"{n_threads} threads"


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_rows_do_not_know_their_batch(blocked: Backend, case: Case) -> None:
    engine = make(blocked, case)
    rng = np.random.default_rng(3)
    want = engine.forward(case.x)
    n = len(case.x)
    for rows in (
        rng.permutation(n),
        np.arange(n)[::-1],
        rng.integers(0, n, 3 * n + 1),
        np.arange(n // 2),
        rng.integers(0, n, 17),
    ):
        np.testing.assert_array_equal(engine.forward(case.x[rows]), want[rows])
        np.testing.assert_array_equal(engine.forward_keep(case.x[rows]), want[rows])
    for i in range(min(n, 40)):
        np.testing.assert_array_equal(engine.forward(case.x[i : i + 1])[0], want[i])


def test_companions_that_are_not_finite_do_not_matter(blocked: Backend) -> None:
    case = CASES[19]
    engine = make(blocked, case)
    want = engine.forward(case.x)
    x = case.x.copy()
    x[::2] = np.nan
    np.testing.assert_array_equal(engine.forward(x)[1::2], want[1::2])
    x[::2] = np.inf
    np.testing.assert_array_equal(engine.forward(x)[1::2], want[1::2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, -1e38])
def test_poisoned_scratch(blocked: Backend, value: float) -> None:
    for case in SOME[:8]:
        clean, dirty = (make(blocked, case, batch_size=case.batch + 9) for _ in range(2))
        poison: Callable[[float], None] = dirty.poison  # type: ignore[attr-defined]
        want = [train(clean, case, seed=k) for k in range(2)]
        for k in range(2):
            poison(value)
            assert train(dirty, case, seed=k) == want[k], case.name
        poison(value)
        assert everything(dirty, case) == everything(clean, case), case.name
        poison(value)
        got = dirty.gradients(case.x[:5], case.y[:5], None)
        assert repr(got) == repr(clean.gradients(case.x[:5], case.y[:5], None))


@pytest.mark.parametrize("case", SOME[:6], ids=lambda case: case.name)
def test_run_to_run_and_capacity(blocked: Backend, case: Case) -> None:
    want = train(make(blocked, case, batch_size=1), case)
    assert train(make(blocked, case, batch_size=1), case) == want
    assert train(make(blocked, case, batch_size=400), case) == want


def test_foreign_updates_do_not_know_their_capacity(blocked: Backend) -> None:
    case = CASES[3]
    scalars = case.optimizer.scalars(0, np.full(1, 0.01))[0]
    results = []
    for capacity, n_threads in ((1, 1), (500, 2), (64, 3)):
        engine = make(blocked, case, batch_size=capacity, n_threads=n_threads)
        out = engine.forward_keep(case.x)
        dx, _ = engine.update(np.ascontiguousarray(out[::-1]), scalars)
        results.append(out.tobytes() + dx.tobytes() + everything(engine, case))
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a matter of POSIX")
@pytest.mark.skipif(sys.version_info >= (3, 15), reason="not tried there")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("n_threads", [1, 2, None])
def test_forked_child_trains(blocked: Backend, n_threads: int | None) -> None:
    """The parent's thread team does not survive a fork; the child gets on without it."""
    case = CASES[19]
    want = train(make(blocked, case, n_threads=n_threads, batch_size=case.batch), case)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            got = train(make(blocked, case, n_threads=n_threads, batch_size=case.batch), case)
            status = 0 if got == want else 2
        finally:
            os.write(write, bytes([status]))
            os._exit(status)
    os.close(write)
    try:
        ready = _readable(read, 60)
        if not ready:
            os.kill(child, 9)
        os.waitpid(child, 0)
        assert ready, "the forked child did not come back within 60 s"
        assert os.read(read, 1) == b"\0", "the forked child's bits differ"
    finally:
        os.close(read)
    assert train(make(blocked, case, n_threads=n_threads, batch_size=case.batch), case) == want


def _readable(descriptor: int, seconds: float) -> bool:
    import select

    return bool(select.select([descriptor], [], [], seconds)[0])


@pytest.mark.parametrize("n_threads", [1, 2, None])
def test_sixteen_python_threads_at_once(blocked: Backend, n_threads: int | None) -> None:
    cases = SOME[:4]
    want = [train(make(blocked, case, n_threads=1), case) for case in cases]
    start = threading.Barrier(16)
    got: list[bytes | BaseException] = [b""] * 16

    def work(i: int) -> None:
        case = cases[i % 4]
        try:
            engine = make(blocked, case, n_threads=n_threads)
            start.wait(60)
            got[i] = train(engine, case)
        except BaseException as error:
            got[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a training thread hangs"
    for i, result in enumerate(got):
        assert result == want[i % 4], f"thread {i}: {result!r:.200}"


def test_one_engine_from_many_threads(blocked: Backend) -> None:
    """Callers take turns: forward of one engine from eight threads gives everyone his rows."""
    case = CASES[16]
    engine = make(blocked, case)
    want = engine.forward(case.x)
    wrong: list[str] = []

    def work(i: int) -> None:
        rows = np.random.default_rng(i).integers(0, len(case.x), 30)
        for _ in range(20):
            if not np.array_equal(engine.forward(case.x[rows]), want[rows]):
                wrong.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    assert not wrong


def test_float64(blocked: Backend) -> None:
    for case in generated_cases(4, seed=9, dtype="float64"):
        assert isinstance(case.spec, NetworkSpec)
        want = train(make(blocked, case, n_threads=1), case)
        for n_threads in (2, 3, 8):
            assert train(make(blocked, case, n_threads=n_threads), case) == want, case.name


DOUBLE = generated_cases(12, seed=9, dtype="float64")


@pytest.mark.parametrize(
    "case", [*CASES, *DOUBLE], ids=lambda case: f"{case.spec.dtype}-{case.name}"
)
def test_numba_and_cython_agree_to_the_bit(twins: tuple[Backend, Backend], case: Case) -> None:
    """Steps of few rows and of many, on one thread and on several, and all that an engine says."""
    n_threads = (1, 3)[len(case.x) % 2]
    rows = case.x[: case.batch]
    y, weight = case.y[: case.batch], None if case.weight is None else case.weight[: case.batch]
    dout = np.random.default_rng(1).standard_normal((case.batch, case.spec.out_features))
    scalars = case.optimizer.scalars(0, np.full(1, 1e-3))[0]
    found = []
    for backend in twins:
        engine = make(backend, case, n_threads=n_threads, batch_size=case.batch)
        got = [train(engine, case)]
        got.append(train(engine, replace(case, batch=1 + case.batch % 7), seed=1))
        loss, gradients = engine.gradients(rows, y, weight)
        got += [array.tobytes() for pair in gradients for array in pair if array is not None]
        got.append(engine.forward_keep(rows).tobytes())
        dx, outcome = engine.update(dout.astype(case.spec.dtype), scalars)
        assert outcome.status == Status.OK
        found.append([loss, *got, dx.tobytes(), everything(engine, case)])
    of_numba, of_cython = found
    assert of_cython == of_numba
