"""`fit` and `Trainer` on device="cuda": losses, steps, and what "auto" chooses."""

from __future__ import annotations

import numpy as np
import pytest
from device_training import LABELS, SGD, ByInterface, X, Y, network, numbers, same

import fastneuron as fn
from fastneuron import backends
from fastneuron.testing import Precision, assert_within, loss_of_batch
from fastneuron.testing import forward as bounded_forward

pytestmark = pytest.mark.usefixtures("cut_small")


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
