"""`fit` and `Trainer` on device="cuda": losses, arrays that lie there already, and its faults."""

from __future__ import annotations

import ctypes
import gc
import signal
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, dlpack, intake
from fastneuron.device_arrays import DeviceArray, device_array
from fastneuron.kernels import device_engine
from fastneuron.kernels.device_plan import Blocks, Tile
from fastneuron.kernels.numba_cuda import driver, resident
from fastneuron.kernels.numba_cuda import engine as engine_room
from fastneuron.testing import Precision, assert_within, loss_of_batch
from fastneuron.testing import forward as bounded_forward

TILE = Tile(8, 8, 4, 4, 4)
BLOCKS = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype("float32")
Y = RNG.normal(size=(10, 2)).astype("float32")
LABELS = RNG.integers(0, 2, 10)
SGD = {"optimizer": fn.SGD(0.1), "batch_size": 5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work cut small, for a simulated thread takes a millisecond; parameters go home if asked."""
    monkeypatch.setattr(intake, "_KEEP_SECONDS", 1e9)
    monkeypatch.setattr(engine_room, "tile_of", lambda dtype: TILE)
    monkeypatch.setattr(engine_room, "Blocks", lambda: BLOCKS)


def network(**given) -> fn.Sequential:
    return fn.mlp([4, 3, 2], seed=0, **given)


def numbers(net: fn.Sequential) -> list[np.ndarray]:
    return [array for layer in net.layers for array in (layer.weight, layer.bias)]


def same(got: fn.Sequential, want: fn.Sequential) -> None:
    for one, other in zip(numbers(got), numbers(want), strict=True):
        np.testing.assert_array_equal(one, other)


class Producer:
    """Another library's array: host memory that says it lies on a device, as the simulator's."""

    def __init__(self, array: np.ndarray) -> None:
        room = np.empty(array.nbytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        self.numbers = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.numbers[...] = array

    def __len__(self) -> int:
        return len(self.numbers)


class ByInterface(Producer):
    @property
    def __cuda_array_interface__(self):
        a = self.numbers
        data = (a.ctypes.data, False)
        return {"shape": a.shape, "typestr": a.dtype.str, "data": data, "version": 2}


class ByDlpack(Producer):
    def __dlpack_device__(self):
        return dlpack.CUDA, 0

    def __dlpack__(self, stream=None):
        assert stream == 1, "the legacy default stream, which the engine's own waits for"
        a = self.numbers
        return dlpack.export(a.ctypes.data, a.shape, a.dtype, 0, self)


PRODUCERS = [ByInterface, ByDlpack]


# Losses


@pytest.mark.parametrize(("loss", "y"), [("mse", Y), ("cross_entropy", LABELS)])
def test_a_first_loss_is_within_its_bound_and_training_goes_as_on_the_cpu(loss, y) -> None:
    net, on_cpu = network(), network()
    p = Precision.of(net.spec.dtype)
    parameters = [(layer.weight, layer.bias) for layer in net.layers]
    options = {"loss": loss, "epochs": 3, "shuffle": False, **SGD}
    history = net.fit(X, y, device="cuda", validation_data=(X, y), **options)
    want = on_cpu.fit(X, y, backend="numpy", validation_data=(X, y), **options)
    assert history.backend == "cuda"
    # Three epochs of two steps in one order: what is left is rounding, of a few ulps a step.
    np.testing.assert_allclose(history.loss, want.loss, rtol=1e-5)
    np.testing.assert_allclose(history.val_loss, want.val_loss, rtol=1e-5)
    for got, right in zip(numbers(net), numbers(on_cpu), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-6)
    fresh = network()
    first = fn.Trainer(fresh, loss, device="cuda", **SGD).step(X[:5], y[:5])
    _, a = bounded_forward(net.spec, parameters, X[:5], p)
    *_, bound = loss_of_batch(fn.Trainer(fresh, loss).loss, a[-1], y[:5], None, p)
    assert_within(np.float64(first), bound, f"{loss} on the device")


def test_run_step_and_a_foreign_loss_are_the_same_steps() -> None:
    nets = [network() for _ in range(3)]
    by_run, by_step, foreign = (
        fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets
    )  # fmt: skip
    losses = by_run.run(X, Y, shuffle=False)
    steps = [by_step.step(X[i : i + 5], Y[i : i + 5]) for i in (0, 5)]
    np.testing.assert_array_equal(losses, steps)
    same(nets[0], nets[1])
    for i in (0, 5):
        out = foreign.forward(X[i : i + 5])
        foreign.update((out - Y[i : i + 5]) * np.float32(2 / 10))
    for got, want in zip(numbers(nets[2]), numbers(nets[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert by_run.step_count == foreign.step_count == 2
    assert by_run.plan["device"] == "cuda"
    assert "device='cuda'" in by_run.plan["reason"]


def test_data_that_changed_between_two_calls_are_seen() -> None:
    """A data set is held on the device for the length of a `run`, not longer."""
    x, y = X.copy(), Y.copy()
    nets = network(), network()
    trainers = [fn.Trainer(net, "mse", device="cuda", **SGD) for net in nets]
    trainers[0].run(x, y, shuffle=False)
    x *= 2
    got = trainers[0].run(x, y, shuffle=False)
    trainers[1].run(X, Y, shuffle=False)
    np.testing.assert_array_equal(got, trainers[1].run(2 * X, Y, shuffle=False))
    x /= 4
    assert trainers[0].step(x[:5], y[:5]) == trainers[1].step(X[:5] / 2, Y[:5])


# Arrays on the device


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize(("loss", "y"), [("mse", Y), ("cross_entropy", LABELS)])
def test_arrays_on_the_device_train_to_the_same_bits_without_a_copy(
    producer, loss, y, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    real = engine_room.put

    def put(vector, array, stream):
        sent.append(np.array(array))
        real(vector, array, stream)

    nets = network(), network()
    want = fn.Trainer(nets[0], loss, device="cuda", **SGD).run(X, y, epochs=2)
    x, targets = producer(X), producer(y)
    monkeypatch.setattr(engine_room, "put", put)
    monkeypatch.setattr("fastneuron.kernels.numba_cuda.state.put", put)
    trainer = fn.Trainer(nets[1], loss, device="cuda", **SGD)
    sent.clear()
    got = trainer.run(x, targets, epochs=2)
    np.testing.assert_array_equal(got, want)
    same(*nets)
    assert sent
    assert not [one for one in sent if np.isin(X[0], one).all()], "no rows went to the device"
    # Of a step likewise, and the caller's memory is as it was.
    assert trainer.step(producer(X[:5]), producer(y[:5])) == fn.Trainer(
        nets[0], loss, device="cuda", **SGD
    ).step(X[:5], y[:5])
    np.testing.assert_array_equal(x.numbers, X)
    np.testing.assert_array_equal(targets.numbers, y)


def test_host_data_after_device_data_leave_the_callers_memory_alone() -> None:
    x, y = ByInterface(X), ByInterface(Y)
    trainer = fn.Trainer(network(), "mse", device="cuda", **SGD)
    trainer.run(x, y)
    trainer.run(np.full_like(X, 0.5), np.zeros_like(Y))
    trainer.step(np.full_like(X, 0.5), np.zeros_like(Y))
    # An engine that nobody told to let go, too.
    engine = trainer.backend.engine(trainer.spec, trainer.loss, trainer.optimizer, batch_size=5)
    engine.hold(device_array(x, "x"), device_array(y, "y"), None)
    engine.hold(np.full_like(X, 0.5), np.zeros_like(Y), None)
    np.testing.assert_array_equal(x.numbers, X)
    np.testing.assert_array_equal(y.numbers, Y)


@pytest.mark.parametrize("producer", PRODUCERS)
def test_the_owner_lives_while_its_memory_is_read_and_no_longer(producer) -> None:
    given = producer(X)
    owner = weakref.ref(given)
    trainer = fn.Trainer(network(), "mse", device="cuda", **SGD)
    x, y, weight = trainer.checked(given, Y, None)
    del given
    gc.collect()
    assert owner() is not None
    for _ in trainer.chunks(x, y, weight, 2, shuffle=False):
        assert owner() is not None
        break
    del x
    gc.collect()
    assert owner() is None, "nothing holds the array after the training"


def test_a_view_keeps_its_owner() -> None:
    given = ByInterface(X)
    alive = weakref.ref(given)
    view = resident._view(device_array(given, "x"))
    del given
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(view.copy_to_host(), X.reshape(-1))
    del view
    gc.collect()
    assert alive() is None


def test_forward_of_rows_on_the_device_stays_there() -> None:
    net = network()
    want = fn.Trainer(net, "mse", device="cuda", **SGD).forward(X)
    for out in (
        fn.Trainer(net, "mse", device="cuda", **SGD).forward(ByInterface(X)),
        net.forward(ByDlpack(X)),
        net.forward(net.fold().forward(ByInterface(X)).reshape(5, 4)).reshape(5, 2),
    ):
        assert isinstance(out, DeviceArray)
        if out.shape == want.shape:
            np.testing.assert_array_equal(out.copy_to_host(), want)
    out = net.forward(ByInterface(X))
    interface = out.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"]) == ((10, 2), "<f4")
    memory = (ctypes.c_float * 20).from_address(interface["data"][0])
    np.testing.assert_array_equal(np.ctypeslib.as_array(memory).reshape(10, 2), want)
    assert out.__dlpack_device__() == (dlpack.CUDA, 0)
    tensor = dlpack.take(out.__dlpack__(stream=2))
    assert (tensor.pointer, tensor.shape) == (out.pointer, (10, 2))
    alive = weakref.ref(out)
    del out
    gc.collect()
    assert alive() is not None, "whoever took the capsule keeps the numbers"
    del tensor
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "layers",
    [
        (fn.Dropout(0.5, 4),),
        (fn.Dense(4, 3, "relu"), fn.Dropout(0.5)),
        (fn.Dropout(0.5, 4), fn.Dense(None, 2)),
        (fn.Dense(4, 3), fn.BatchNorm(activation="relu"), fn.Dense(None, 3), fn.LayerNorm()),
    ],
    ids=["dropout", "dropout last", "dropout first", "norms"],
)
def test_forward_in_place_is_that_of_host_rows(layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(count, dtype):
        vector = driver.empty(count, dtype)
        vector.copy_to_device(np.full(vector.shape, np.nan, dtype))
        return vector

    net = fn.Sequential(*layers, seed=0)
    with backends.use("cuda"):
        want = net.forward(X)
    monkeypatch.setattr(resident, "empty", poisoned)
    given = ByInterface(X)
    np.testing.assert_array_equal(net.forward(given).copy_to_host(), want)
    np.testing.assert_array_equal(given.numbers, X)


def test_a_prediction_of_many_blocks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    with backends.use("cuda"):
        want = net.forward(X)
    monkeypatch.setattr(device_engine, "_PREDICTED_ROWS", 4)
    np.testing.assert_array_equal(network().forward(ByInterface(X)).copy_to_host(), want)


def test_a_foreign_loss_on_the_device() -> None:
    nets = network(), network()
    trainers = [fn.Trainer(net, device="cuda", **SGD) for net in nets]
    out = trainers[0].forward(X[:5])
    want = trainers[0].update(out)
    on_device = trainers[1].forward(ByInterface(X[:5]))
    dx = trainers[1].update(on_device)
    assert isinstance(dx, DeviceArray)
    np.testing.assert_array_equal(dx.copy_to_host(), want)
    same(*nets)
    loss, gradients = (
        trainers[0]
        .__class__(nets[0], "mse", device="cuda", **SGD)
        .gradients(ByDlpack(X), ByInterface(Y))
    )
    assert np.isfinite(loss)
    assert gradients[0][0].shape == (4, 3)


@pytest.mark.parametrize(
    ("x", "y", "loss", "message"),
    [
        (X.astype("float64"), Y, "mse", "X is float64 on its device.*float32: convert it there"),
        (X[:, :3], Y, "mse", r"X has shape \(10, 3\) on its device"),
        (X, Y[:, :1], "mse", r"y has shape \(10, 1\)"),
        (X, Y.astype("float64"), "mse", "y is float64 on its device"),
        (X, LABELS + 1, "cross_entropy", "y holds 2 at row .*the classes are 0 to 1"),
        (X, LABELS - 1, "cross_entropy", "y holds -1 at row"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_changed(x, y, loss, message) -> None:
    net, untouched = network(), network()
    with pytest.raises(fn.DataError, match=message):
        net.fit(ByInterface(x), ByInterface(y), loss=loss, device="cuda", epochs=1)
    same(net, untouched)


def test_layouts_that_kernels_cannot_read_are_said() -> None:
    class Strided(ByInterface):
        @property
        def __cuda_array_interface__(self):
            return {**super().__cuda_array_interface__, "strides": (4, 40)}

    class Shifted(ByInterface):
        @property
        def __cuda_array_interface__(self):
            given = super().__cuda_array_interface__
            return {**given, "data": (given["data"][0] + 4, False)}

    trainer = fn.Trainer(network(), "mse", device="cuda")
    with pytest.raises(fn.DataError, match="x is not C-contiguous on its device"):
        trainer.step(Strided(X), Y)
    with pytest.raises(fn.DataError, match="no multiple of 16 bytes"):
        trainer.step(Shifted(X), Y)


def test_labels_of_another_width_and_weights_on_the_device() -> None:
    nets = network(), network()
    weight = np.linspace(0.5, 1.5, 10)
    options = {"loss": "cross_entropy", "device": "cuda", "epochs": 1, **SGD}
    nets[0].fit(X, LABELS, sample_weight=weight, class_weight="balanced", **options)
    labels = ByInterface(LABELS.astype("int32"))
    given = {"sample_weight": ByInterface(weight), "class_weight": "balanced"}
    nets[1].fit(ByInterface(X), labels, **given, **options)
    same(*nets)
    with pytest.raises(fn.SpecError, match="split those on a device yourself"):
        nets[1].fit(ByInterface(X), labels, validation_split=0.2, **options)


def test_validation_and_predictions_of_rows_on_the_device() -> None:
    nets = network(), network()
    options = {"loss": "cross_entropy", "device": "cuda", "epochs": 1, **SGD}
    want = nets[0].fit(X, LABELS, validation_data=(X, LABELS), **options)
    x, y = ByInterface(X), ByInterface(LABELS)
    got = nets[1].fit(x, y, validation_data=(x, y), **options)
    np.testing.assert_array_equal(got.val_loss, want.val_loss)
    with backends.use("cuda"):
        np.testing.assert_array_equal(nets[1].predict(x), nets[0].predict(X))
        np.testing.assert_array_equal(nets[1].predict_proba(x), nets[0].predict_proba(X))
    with pytest.raises(fn.DataError, match="X lies on a device, which is not read here"):
        nets[1].evaluate(x, LABELS)


def test_an_engine_that_takes_no_device_arrays_trains_on_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the compiled one: it holds what lies on the host."""
    nets = network(), network()
    want = fn.Trainer(nets[0], "mse", device="cuda", **SGD).run(X, Y)
    plain = backends._loaded["cuda"]._replace(engine=engine_room.CudaEngine)
    monkeypatch.setitem(backends._loaded, "cuda", plain)
    trainer = fn.Trainer(nets[1], "mse", device="cuda", **SGD)
    np.testing.assert_array_equal(trainer.run(X, Y), want)
    trainer.step(X, Y)
    with pytest.raises(fn.DataError, match="X lies on a device"):
        trainer.run(ByInterface(X), Y)


def test_the_class_prior_of_labels_on_the_device() -> None:
    nets = network(bias_init="class_prior"), network(bias_init="class_prior")
    options = {"loss": "cross_entropy", "device": "cuda", "epochs": 1, **SGD}
    nets[0].fit(X, LABELS, **options)
    nets[1].fit(ByInterface(X), ByInterface(LABELS), **options)
    same(*nets)


def test_rows_that_are_not_finite_are_accused_after_the_step_that_they_spoil() -> None:
    net, untouched = network(), network()
    x = X.copy()
    x[3, 1] = np.nan
    trainer = fn.Trainer(net, "mse", device="cuda", **SGD)
    with pytest.raises(fn.DataError, match="x holds NaN at row 3, column 1"):
        trainer.step(ByInterface(x), Y)
    with pytest.raises(fn.NonFiniteError, match="That step was not applied"):
        trainer.run(ByInterface(x), ByInterface(Y), shuffle=False)
    same(net, untouched)


# Faults


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


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise ZeroDivisionError

    trainer = fn.Trainer(network(), "mse", device="cuda", **SGD)
    monkeypatch.setattr(engine_room, "run_all", broken)
    with pytest.raises(ZeroDivisionError):
        trainer.step(X[:5], Y[:5])


# Choice


def test_auto_takes_the_card_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fn.Trainer(network(), "mse", device="auto").backend.device == "cpu"
    card = backends.Card("a card", (9, 0), 80 << 30, 132, 1.7e9, 3.3e12)
    monkeypatch.setattr(backends, "cards", lambda: [card])
    small = fn.Trainer(network(), "mse", device="auto")
    assert small.backend.device == "cpu"
    assert "device auto: predicted" in small.backend.reason
    net = fn.mlp([512, 1024, 512], seed=0)
    large = fn.Trainer(net, "mse", batch_size=4096, device="auto", n_threads=1)
    assert large.backend.device == "cuda"
    assert "on the a card (by its data sheet)" in large.plan["reason"]


def test_data_on_the_device_decide_auto() -> None:
    history = network().fit(ByInterface(X), ByInterface(Y), loss="mse", device="auto", **SGD)
    assert history.backend == "cuda"
    with pytest.raises(fn.DataError, match="X lies on a device, but the backend 'numpy'"):
        network().fit(ByInterface(X), Y, loss="mse", backend="numpy")
