"""The compiled CUDA engine over the emulated kernels: steps recorded, data held, and its faults."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from emulated_cuda import TINY, Calls, Kernels

import fastneuron as fn
from fastneuron import backends, intake, loading
from fastneuron.kernels import device_engine
from fastneuron.kernels.cython_cuda import CythonCudaEngine
from fastneuron.kernels.device_calls import Device
from fastneuron.kernels.device_faults import DriverError
from fastneuron.kernels.device_memory import STATE
from fastneuron.layers import Dense
from fastneuron.optimizers import SGD
from fastneuron.testing import Case, batches, case_of, loaded, run_steps, scalars_of, state_of


@pytest.fixture
def calls(cuda_kernels: Kernels) -> Calls:
    return Calls(cuda_kernels.path)


def engine_of(calls: Calls, case: Case, batch_size: int = 1) -> Any:
    engine = CythonCudaEngine(
        case.spec, case.loss, case.optimizer, batch_size=batch_size, calls=calls,
        tiles=(TINY, TINY), fused_rows=(8,), fused_threads=4,
    )  # fmt: skip
    return loaded(engine, case)


SMALL = case_of(Dense(2, 1), rows=7, batch=2)


def steps_of(sizes: list[int]) -> tuple[Any, Any]:
    bounds = np.cumsum([0, *sizes])
    return np.random.default_rng(0).integers(0, 7, bounds[-1]), bounds


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ([2], [("run", 1)]),
        ([2] * 9, [("run", 1), ("record", 8), ("replay", 1)]),
        (
            [2] * 200,
            [("run", 1), ("record", 64), ("replay", 3), ("record", 1), ("replay", 7)],
        ),
        (
            [2] * 9 + [1] + [2] * 8,
            [("run", 1), ("record", 8), ("replay", 1), ("run", 1), ("replay", 1)],
        ),
    ],
    ids=["1", "9", "200", "another in the middle"],
)
def test_many_steps_are_one_call(calls: Calls, sizes: list[int], want: Any) -> None:
    """And have the bits of steps that are run one by one."""
    case, order_and_bounds = SMALL, steps_of(sizes)
    scalars = scalars_of(case, len(sizes))
    engine, alone = (engine_of(calls, case, batch_size=2) for _ in range(2))
    calls.queued.clear()
    if len(sizes) > 20:  # a step takes 0.1 s: who is started how often is all that is looked at
        calls.counts_alone = True
        engine.run(case.x, case.y, None, *order_and_bounds, scalars, np.empty(len(sizes)))
        assert calls.queued == want
        return
    losses = run_steps(engine, case, *order_and_bounds, scalars)
    assert calls.queued == want
    assert "64 or 8 or 1 equal steps are one launch" in engine.plan()["graph"]
    alone._no_graphs = "not asked for"
    calls.queued.clear()
    np.testing.assert_array_equal(run_steps(alone, case, *order_and_bounds, scalars), losses)
    assert {name for name, _ in calls.queued} == {"run"}
    assert sum(times for _, times in calls.queued) == len(sizes)
    assert state_of(engine) == state_of(alone)


def test_recordings_are_forgotten_where_vectors_move(calls: Calls) -> None:
    engine, want = (engine_of(calls, SMALL, batch_size=2) for _ in range(2))
    want._no_graphs = "not asked for"
    scalars = scalars_of(SMALL, 9)
    for sizes in ([2] * 9, [3] * 2, [2] * 9):
        for each in (engine, want):
            run_steps(each, SMALL, *steps_of(sizes), scalars[: len(sizes)])
        if sizes[0] == 3:
            assert {kind[0] for kind, _ in engine._graphs} == {3}
    assert state_of(engine) == state_of(want)
    (name, times) = calls.queued[-1]
    assert (name, times) == ("run", 8), "of the engine without graphs"
    gc.collect()
    held = len(calls.graphs)
    del engine
    gc.collect()
    assert len(calls.graphs) < held


def test_steps_of_ever_other_sizes_do_not_pile_up(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_engine, "_PREPARED", 2)
    engine, want = (engine_of(calls, SMALL, batch_size=4) for _ in range(2))
    want._no_graphs = "not asked for"
    sizes = [1, 1, 2, 3, 3, 4, 1, 1]
    for each in (engine, want):
        run_steps(each, SMALL, *steps_of(sizes), scalars_of(SMALL, len(sizes)))
    assert len(engine._steps) == 1, "1, 2; 3, 4; 1"
    assert {kind for kind, _ in engine._graphs} <= set(engine._steps)
    assert state_of(engine) == state_of(want)


def test_a_driver_that_refuses_to_record_is_done_without(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, want = (engine_of(calls, SMALL, batch_size=2) for _ in range(2))
    scalars = scalars_of(SMALL, 9)
    run_steps(want, SMALL, *steps_of([2] * 9), scalars)

    def refuse(*_: int) -> int:
        raise DriverError(801, "CUDA, record: operation not supported")

    monkeypatch.setattr(calls, "record", refuse)
    run_steps(engine, SMALL, *steps_of([2] * 9), scalars)
    said = "the driver cannot record launches: CUDA, record: operation not supported"
    assert engine.plan()["graph"] == said
    assert state_of(engine) == state_of(want)


def test_a_call_that_fails_ends_the_recording(calls: Calls) -> None:
    device = Device(calls)
    state = device.allocate(STATE.itemsize)
    steps = device.program([("advance", (state,))])
    with pytest.raises(DriverError, match="no such tile"):
        device.program([("advance", (state,)), ("forward", (0, 9, *[0] * 6, 1, 1, 1))]).record(1)
    graph = steps.record(3)  # and the stream is free again
    for times in (0, 1, 2):
        graph.replay(times)
    steps.run(5)
    found = np.zeros(1, STATE)
    device.get(found, state)
    assert found["step"] == 3 * 3 + 5, "what was recorded ran where it was replayed alone"
    with pytest.raises(AssertionError, match="update of 9 arguments"):
        device.program([("update", (0,) * 9)])
    device.release(state)


def test_what_a_failed_call_leaves_behind_is_not_the_next_launch_s(calls: Calls) -> None:
    """CUDA remembers the error of an allocation until it is asked for an error."""
    device = Device(calls)
    state = device.allocate(STATE.itemsize)
    calls.room = 0
    with pytest.raises(DriverError, match="allocate 64 bytes: out of memory") as error:
        device.allocate(64)
    assert error.value.code == 2
    steps = device.program([("advance", (state,))])
    steps.run()
    steps.record(1).replay()
    device.release(state)


def test_held_data_is_sent_once(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    real = calls.copy
    monkeypatch.setattr(calls, "copy", lambda to, source, *ends: sent.append(source) or real(
        to, source, *ends))  # fmt: skip
    for loss in ("mse", "cross_entropy"):
        layers = Dense(5, 9, "relu"), Dense(9, 3)
        case = case_of(*layers, loss=loss, optimizer=SGD(0.1, momentum=0.5))
        case = replace(case, weight=np.linspace(0, 2, len(case.x), dtype=np.float32))
        engine, want = engine_of(calls, case), engine_of(calls, case)
        order, bounds = batches(len(case.x), 13, 4, np.random.default_rng(2))
        scalars = scalars_of(case, 4)
        engine.hold(case.x, case.y, case.weight)
        sent.clear()
        losses = run_steps(engine, case, order, bounds, scalars)
        data = {array.ctypes.data for array in (case.x, case.y, case.weight)}
        assert not data & set(sent)
        assert len(sent) == 6, "state, scalars, order, bounds; state and losses come back"
        np.testing.assert_array_equal(run_steps(want, case, order, bounds, scalars), losses)
        assert state_of(engine) == state_of(want)
        other = replace(case, x=case.x[::-1].copy())
        for each in (engine, want):  # which is not taken for what is held
            run_steps(each, other, order, bounds, scalars)
            run_steps(each, case, order, bounds, scalars)
        assert state_of(engine) == state_of(want)


# Training through the package

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype("float32")
Y = RNG.normal(size=(10, 2)).astype("float32")
OPTIONS = {"optimizer": fn.SGD(0.1), "batch_size": 5, "device": "cuda"}


@pytest.fixture
def device(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The backend "cuda" as it is where nvcc was and numba-cuda is not."""
    monkeypatch.setattr(intake, "_KEEP_SECONDS", 1e9)
    engine = partial(CythonCudaEngine, calls=calls, tiles=(TINY, TINY))
    parts = loading.load("numpy")._replace(engine=engine)
    monkeypatch.setitem(loading.loaded, "cuda", parts)
    return calls


def network() -> fn.Sequential:
    return fn.mlp([4, 3, 2], seed=0)


def same(got: fn.Sequential, want: fn.Sequential) -> None:
    for one, other in zip(got.layers, want.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)


def out_of_memory(*_: Any) -> Any:
    raise DriverError(2, "CUDA, allocate 99 bytes: out of memory")


def lost(*_: Any) -> Any:
    raise DriverError(719, "CUDA, wait: unspecified launch failure")


def test_fit_sends_its_rows_once(device: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    real = device.copy

    def copy(to: int, source: int, size: int, stream: int) -> None:
        sent.append(source)
        real(to, source, size, stream)

    monkeypatch.setattr(device, "copy", copy)
    net, want = network(), network()
    epochs: list[int] = []
    net.fit(X, Y, loss="mse", epochs=4, callbacks=[lambda s: epochs.append(s.epoch)], **OPTIONS)
    assert epochs == [0, 1, 2, 3], "four chunks"
    assert sent.count(X.ctypes.data) == sent.count(Y.ctypes.data) == 1
    trainer = fn.Trainer(want, "mse", **OPTIONS)
    trainer.run(X, Y, epochs=4)
    assert trainer._live.engine._held is None, "let go at the end"
    np.testing.assert_allclose(net.layers[0].weight, want.layers[0].weight)
    sent.clear()
    for _ in range(2):
        trainer.step(X[:5], Y[:5])
    assert X.ctypes.data not in sent, "rows that may change between calls are sent anew"
    assert {name for name, _ in device.queued} == {"run", "record", "replay"}


def test_data_that_changed_between_two_calls_are_seen(device: Calls) -> None:
    nets = network(), network()
    x = X.copy()
    trainer = fn.Trainer(nets[0], "mse", **OPTIONS)
    want = fn.Trainer(nets[1], "mse", **OPTIONS)
    trainer.run(x, Y)
    want.run(X, Y)
    x[...] = X[::-1]
    trainer.run(x, Y)
    want.run(X[::-1].copy(), Y)
    same(*nets)


def test_no_memory_for_an_engine_changes_nothing(device: Calls) -> None:
    net, untouched = network(), network()
    for room in (0, 200, 3000):
        device.room = sum(device.held.values()) + room
        with pytest.raises(fn.DeviceMemoryError, match=r"out of memory .*allocate \d+ bytes"):
            net.fit(X, Y, loss="mse", **{**OPTIONS, "batch_size": 1000})
        same(net, untouched)
    gc.collect()
    device.room = 1 << 40
    net.fit(X, Y, loss="mse", **OPTIONS)


def test_no_memory_for_a_larger_batch_loses_no_step(device: Calls) -> None:
    nets = network(), network()
    trainer, want = (fn.Trainer(net, "mse", **OPTIONS) for net in nets)
    for each in (trainer, want):
        each.step(X[:5], Y[:5])
    device.room = sum(device.held.values())
    with pytest.raises(fn.DeviceMemoryError, match="Nothing is lost: 1 steps were done"):
        trainer.step(X, Y)
    device.room = 1 << 40
    assert trainer.step_count == 1
    for _ in range(2):
        assert trainer.step(X[5:], Y[5:]) == want.step(X[5:], Y[5:])
    same(*nets)


def test_a_buffer_that_moved_before_memory_ran_out_is_not_launched_on_again(
    device: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = network(), network()
    options = {**OPTIONS, "batch_size": 10}
    trainer, want = (fn.Trainer(net, "mse", **options) for net in nets)
    for each in (trainer, want):
        for _ in range(2):
            each.step(X[:2], Y[:2])
    done = []
    real = device.allocate

    def allocate(size: int) -> int:
        done.append(size)
        return out_of_memory() if len(done) == 2 else real(size)

    with monkeypatch.context() as patch:
        patch.setattr(device, "allocate", allocate)
        with pytest.raises(fn.DeviceMemoryError, match="Nothing is lost"):
            trainer.step(X[:4], Y[:4])
    for _ in range(2):
        assert trainer.step(X[2:4], Y[2:4]) == want.step(X[2:4], Y[2:4])
    same(*nets)


def test_a_data_set_that_is_too_large_goes_chunk_by_chunk(
    device: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = network(), network()
    want = fn.Trainer(nets[0], "mse", **OPTIONS).run(X, Y, epochs=2)
    trainer = fn.Trainer(nets[1], "mse", **OPTIONS)
    engine: Any = trainer._live.engine
    real = engine._put_data
    puts = []

    def put(x: Any, *others: Any) -> None:
        puts.append(x)
        return out_of_memory() if x is X else real(x, *others)

    monkeypatch.setattr(engine, "_put_data", put)
    np.testing.assert_array_equal(trainer.run(X, Y, epochs=2), want)
    assert len(puts) >= 2
    same(*nets)


@pytest.mark.parametrize("where", ["replay", "wait"])
def test_a_lost_device_leaves_the_newest_whole_parameters(
    device: Calls, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, want = network(), network()
    trainer = fn.Trainer(net, "mse", **OPTIONS)
    for _ in range(3):
        trainer.step(X[:5], Y[:5])
    with monkeypatch.context() as patch:
        patch.setattr(device, where, lost)
        said = r"the device failed .*unspecified launch failure.*after step 0 of 3"
        with pytest.raises(fn.DeviceError, match=said):
            trainer.step(X[:5], Y[:5])
        same(net, want)
    trainer.step(X[5:], Y[5:])  # once there is a device again
    fn.Trainer(want, "mse", **OPTIONS).step(X[5:], Y[5:])
    same(net, want)


def test_a_prediction_without_room_says_so(device: Calls) -> None:
    net = network()
    want = net.forward(X)
    with backends.use("cuda"):
        assert net.forward(X[:2]).shape == (2, 2)
        device.room = sum(device.held.values())
        with pytest.raises(fn.DeviceMemoryError, match="out of memory"):
            net.forward(X)
        device.room = 1 << 40
        np.testing.assert_allclose(net.forward(X), want, rtol=1e-5)
