"""Arrays that lie on the device already: trained on in place, checked, kept alive, handed out."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest
from device_training import (
    LABELS,
    PRODUCERS,
    SGD,
    ByDlpack,
    ByInterface,
    X,
    Y,
    network,
    same,
)

import fastneuron as fn
from fastneuron import backends, dlpack, loading
from fastneuron.device_arrays import DeviceArray, device_array
from fastneuron.kernels import device_engine
from fastneuron.kernels.numba_cuda import driver, resident
from fastneuron.kernels.numba_cuda import engine as engine_room

pytestmark = pytest.mark.usefixtures("cut_small")


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
    plain = loading.loaded["cuda"]._replace(engine=engine_room.CudaEngine)
    monkeypatch.setitem(loading.loaded, "cuda", plain)
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
