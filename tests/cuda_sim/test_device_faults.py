"""What a driver's errors do to a training on the device: nothing to the host's parameters."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest
from device_training import SGD, X, Y, network, same

import fastneuron as fn
from fastneuron import intake
from fastneuron.kernels import device_engine
from fastneuron.kernels.numba_cuda import driver
from fastneuron.kernels.numba_cuda import engine as engine_room

pytestmark = pytest.mark.usefixtures("cut_small")


class CudaAPIError(RuntimeError):
    """What numba-cuda raises: its class is recognised by name, for the simulator's has no code."""

    def __init__(self, code: int, msg: str) -> None:
        self.code, self.msg = code, msg
        super().__init__(code, msg)

    def __str__(self) -> str:
        return f"[{self.code}] {self.msg}"


def out_of_memory(*_, **__):
    raise CudaAPIError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")


def lost(*_, **__):
    raise CudaAPIError(700, "Call to cuStreamSynchronize results in CUDA_ERROR_ILLEGAL_ADDRESS")


def test_no_memory_for_an_engine_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, untouched = network(), network()
    monkeypatch.setattr("fastneuron.kernels.numba_cuda.state.zeros", out_of_memory)
    with pytest.raises(fn.DeviceMemoryError, match=r"out of memory .*OUT_OF_MEMORY.*smaller batch"):
        net.fit(X, Y, loss="mse", device="cuda")
    same(net, untouched)
    assert isinstance(fn.DeviceMemoryError("x"), MemoryError)


def test_no_room_on_the_device_is_said_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, untouched = network(), network()
    monkeypatch.setattr(driver.cuda, "device_array", out_of_memory)
    with pytest.raises(fn.DeviceMemoryError, match=r"no room for [\d,]+ bytes more"):
        net.fit(X, Y, loss="mse", device="cuda")
    same(net, untouched)


def test_no_memory_for_a_larger_batch_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = network(), network()
    trainer, want = (fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets)
    trainer.step(X[:5], Y[:5])
    want.step(X[:5], Y[:5])
    with monkeypatch.context() as patch:
        patch.setattr(engine_room, "Rows", out_of_memory)
        with pytest.raises(fn.DeviceMemoryError, match="Nothing is lost: 1 steps were done"):
            trainer.step(X, Y)
    assert trainer.step_count == 1
    assert trainer.step(X[5:], Y[5:]) == want.step(X[5:], Y[5:])
    same(*nets)


def test_no_memory_in_the_middle_of_a_step_is_not_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The update has run, the step's number has not: such parameters are nobody's."""
    net, want = network(), network()
    trainer = fn.Trainer(net, "mse", device="cuda", **SGD)
    trainer.step(X[:5], Y[:5])
    _ = net.layers[0].weight  # now the host has them
    fn.Trainer(want, "mse", device="cuda", **SGD).step(X[:5], Y[:5])
    real = engine_room.run_all

    def half(calls):
        real(calls[:-1])
        out_of_memory()

    monkeypatch.setattr(engine_room, "run_all", half)
    with pytest.raises(fn.DeviceMemoryError, match=r"The parameters are those after step 1 of 1"):
        trainer.step(X[5:], Y[5:])
    same(net, want)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C: a shell that starts a process in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(
    ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = network(), network()
    trainer, want = (fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets)
    for each in (trainer, want):
        each.step(X[:5], Y[:5])
    want.step(X[5:], Y[5:])
    real = engine_room.run_all

    def struck(calls):
        real(calls[:2])
        signal.raise_signal(signal.SIGINT)
        real(calls[2:])

    monkeypatch.setattr(engine_room, "run_all", struck)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(X[5:], Y[5:])
    assert trainer.step_count == 2
    same(*nets)


def test_a_vector_that_moved_before_memory_ran_out_is_not_launched_on_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = network(), network()
    trainer, want = (fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets)
    trainer.step(X[:2], Y[:2])
    want.step(X[:2], Y[:2])
    real = engine_room.Vector.put
    calls = []

    def put(vector, numbers):
        calls.append(numbers)
        return out_of_memory() if len(calls) == 2 else real(vector, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(engine_room.Vector, "put", put)
        with pytest.raises(fn.DeviceMemoryError, match="Nothing is lost"):
            trainer.step(X[:4], Y[:4])
    assert trainer.step(X[2:4], Y[2:4]) == want.step(X[2:4], Y[2:4])
    same(*nets)


def test_a_data_set_that_is_too_large_goes_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = network(), network()
    want = fn.Trainer(nets[0], "mse", device="cuda", **SGD).run(X, Y, epochs=2)
    monkeypatch.setattr(engine_room.CudaEngine, "hold", device_engine.watched(out_of_memory))
    got = fn.Trainer(nets[1], "mse", device="cuda", **SGD).run(X, Y, epochs=2)
    np.testing.assert_array_equal(got, want)
    same(*nets)


@pytest.mark.parametrize("kept", [False, True], ids=["since the start", "since the last chunk"])
def test_a_lost_device_leaves_the_newest_whole_parameters(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the third step; a trainer brings parameters home every second."""
    monkeypatch.setattr(intake, "_KEEP_SECONDS", 0.0 if kept else 1e9)
    monkeypatch.setattr(intake, "_KEEP_PAUSE", 0)
    net, want = network(), network()
    trainer = fn.Trainer(net, "mse", device="cuda", **SGD)
    alike = fn.Trainer(want, "mse", device="cuda", **SGD)
    for _ in range(2):
        trainer.step(X[:5], Y[:5])
    for _ in range(2 if kept else 0):
        alike.step(X[:5], Y[:5])
    steps = 2 if kept else 0
    with monkeypatch.context() as patch:
        patch.setattr(engine_room, "run_all", lost)
        said = f"the device failed .*ILLEGAL_ADDRESS.*after step {steps} of 2"
        with pytest.raises(fn.DeviceError, match=said):
            trainer.step(X[:5], Y[:5])
        same(net, want)
        patch.setattr("fastneuron.kernels.numba_cuda.state.State.load", lost)
        with pytest.raises(fn.DeviceError):  # as long as the device is lost
            trainer.step(X[:5], Y[:5])
        same(net, want)
    # Once there is a device again, the training goes on from where the host was.
    trainer.step(X[5:], Y[5:])
    assert trainer.step_count == steps + 1
    alike.step(X[5:], Y[5:])
    same(net, want)


def test_a_device_lost_in_fit_leaves_a_network_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, untouched = network(), network()
    done = []
    real = engine_room.run_all

    def later(calls):
        done.append(len(calls))
        return lost() if len(done) > 2 else real(calls)

    monkeypatch.setattr(engine_room, "run_all", later)
    with pytest.raises(fn.DeviceError, match=r"after step \d+ of \d+"):
        net.fit(X, Y, loss="mse", device="cuda", epochs=5, **SGD)
    assert len(done) == 3
    same(net, untouched)
    np.testing.assert_array_equal(net.forward(X), untouched.forward(X))


def test_a_device_lost_while_parameters_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    net, untouched = network(), network()
    trainer = fn.Trainer(net, "mse", device="cuda", **SGD)
    trainer.step(X[:5], Y[:5])
    with monkeypatch.context() as patch:
        patch.setattr("fastneuron.kernels.numba_cuda.state.State.export", lost)
        with pytest.raises(fn.DeviceError, match="after step 0 of 1"):
            _ = net.layers[0].weight
    same(net, untouched)


class DynamicLibNotFoundError(RuntimeError):
    """What numba-cuda's finder of libraries raises, at the first kernel that is compiled."""


def test_nothing_to_compile_with_is_said_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = network(), network()
    trainer, want = (fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets)

    def no_compiler(*_):
        raise DynamicLibNotFoundError("no libnvvm")

    with monkeypatch.context() as patch:
        patch.setattr(engine_room, "run_all", no_compiler)
        with pytest.raises(fn.BackendUnavailable, match=r"nothing to compile with .*pip install"):
            trainer.step(X[:5], Y[:5])
    assert trainer.step_count == 0
    assert trainer.step(X[:5], Y[:5]) == want.step(X[:5], Y[:5])
    same(*nets)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise ZeroDivisionError

    trainer = fn.Trainer(network(), "mse", device="cuda", **SGD)
    monkeypatch.setattr(engine_room, "run_all", broken)
    with pytest.raises(ZeroDivisionError):
        trainer.step(X[:5], Y[:5])
