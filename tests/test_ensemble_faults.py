"""Networks of an ensemble that diverge, Ctrl-C, forks, threads, and devices that fail."""

from __future__ import annotations

import _thread
import os
import threading
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from test_ensemble import KINDS, LABELS, M, X, Y, networks, same, state

import fastneuron as fn
from fastneuron import backends
from fastneuron.errors import DeviceError, DeviceMemoryError
from fastneuron.kernels.each_alone import EachAlone

#: Rates of three networks of which the second diverges after some steps.
WILD = [fn.SGD(0.1), fn.SGD(1e4), fn.SGD(0.2)]


@pytest.mark.parametrize("kind", ["dense", "no bias"])
def test_one_that_diverges_stops_and_the_others_go_on(
    backend: backends.Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, alone = networks(kind), networks(kind)
    ensemble = fn.Ensemble(nets, "mse", WILD, 8, backend.name)
    trainer = fn.Trainer(alone[1], "mse", WILD[1], 8, backend.name)
    with pytest.raises(fn.NonFiniteError) as caught:
        trainer.run(X, Y, epochs=20)
    at = caught.value.step
    told = rf"1 of 3 networks diverged and were stopped: 1 at step {at} \(learning rate 10000\)"
    with pytest.warns(fn.DivergenceWarning, match=told) as said:
        losses = ensemble.run(X, Y, epochs=20)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert ensemble.diverged.tolist() == [False, True, False]
    assert ensemble.steps.tolist() == [140, at, 140]
    assert np.isnan(losses[at:, 1]).all()
    assert np.isfinite(losses[:at, 1]).all()
    assert "diverged=1" in repr(ensemble)
    for m in (0, 2):
        want = fn.Trainer(alone[m], "mse", WILD[m], 8, backend.name).run(X, Y, epochs=20)
        np.testing.assert_array_equal(losses[:, m], want)
    # It is told once; what follows is the others' alone, and nobody computes its steps.
    kept = state(nets[1])
    outcomes: list[Any] = []
    engine_run = ensemble._live.engine.run

    def spied(*arguments: Any) -> Any:
        outcomes.append(engine_run(*arguments))
        return outcomes[-1]

    monkeypatch.setattr(ensemble._live.engine, "run", spied)
    more = ensemble.run(X, Y), ensemble.step(X, Y)[None]
    for found in more:
        assert np.isnan(found[:, 1]).all()
        assert np.isfinite(found[:, ::2]).all()
    assert all(outcome.steps[1] == 0 for outcome in outcomes)
    for one, other in zip(state(nets[1]), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    same(nets[1], alone[1])
    assert ensemble.steps.tolist() == [148, at, 148]
    with backends.use(backend.name):
        for m, out in enumerate(ensemble.forward(X)):
            np.testing.assert_array_equal(out, nets[m].forward(X))
        assert ensemble.evaluate(X, Y)[1] == nets[1].evaluate(X, Y, loss="mse")


def test_what_is_assigned_to_one_that_was_stopped_stays(backend: backends.Backend) -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", WILD, 8, backend.name)
    with pytest.warns(fn.DivergenceWarning):
        ensemble.run(X, Y, epochs=20)
    nets[1].layers[0].weight = np.ones((4, 6))
    nets[0].layers[0].weight = np.ones((4, 6))
    ensemble.run(X, Y)
    np.testing.assert_array_equal(nets[1].layers[0].weight, np.ones((4, 6)))
    assert not np.array_equal(nets[0].layers[0].weight, np.ones((4, 6)))
    nets[1].parameters.replace(KINDS["dense"](1).parameters.pull())
    again = fn.Ensemble(nets, "mse", fn.SGD(0.1), 8, backend.name)
    assert np.isfinite(again.run(X, Y)).all()


def test_those_that_fail_at_one_step_are_told_together() -> None:
    nets = [fn.mlp([4, 3, 2], "relu", seed=m) for m in range(12)]
    ensemble = fn.Ensemble(nets, "mse", backend="numpy")
    ensemble.step(X, Y)
    for net in nets[1:]:
        net.layers[0].weight = np.full((4, 3), 1e30)
    with pytest.warns(fn.DivergenceWarning, match=r"11 of 12 .*: 1 at step 1 .* and 3 more\.") as w:
        ensemble.step(X, Y)
    assert len(w) == 1
    assert ensemble.diverged.sum() == 11


def test_a_warning_that_is_an_error_leaves_all_in_order() -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", WILD, 8, "numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fn.DivergenceWarning):
            ensemble.run(X, Y, epochs=20)
    assert ensemble.diverged.tolist() == [False, True, False]
    assert np.isfinite(ensemble.run(X, Y)[:, ::2]).all()


def test_where_all_diverge_the_error_names_the_last(backend: backends.Backend) -> None:
    rates = [fn.SGD(1e6), fn.SGD(1e4), fn.SGD(1e5)]
    alone = networks()
    caught = []
    for m, net in enumerate(alone):
        with pytest.raises(fn.NonFiniteError) as error:
            fn.Trainer(net, "mse", rates[m], 8, backend.name).run(X, Y, epochs=20)
        caught.append(error.value)
    last = int(np.argmax([error.step for error in caught]))
    assert last == 1
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", rates, 8, backend.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fn.DivergenceWarning)
        with pytest.raises(fn.NonFiniteError, match="every network has diverged") as error:
            ensemble.run(X, Y, epochs=20)
    got, want = error.value, caught[last]
    assert f"network {last}: {want}" in str(got)
    for name in ("epoch", "step", "layer", "learning_rate"):
        assert getattr(got, name) == getattr(want, name)
    assert ensemble.diverged.all()
    assert ensemble.step_count == want.step
    assert ensemble.steps.tolist() == [error.step for error in caught]
    for net, want_net in zip(nets, alone, strict=True):
        same(net, want_net)
    for call in (ensemble.run, ensemble.step):
        with pytest.raises(fn.NonFiniteError, match="every network has diverged"):
            call(X, Y)


class Interrupts(EachAlone):
    """Presses Ctrl-C at the end of its n-th call, when its steps are done."""

    calls = 0
    at = 1

    def run(self, *arguments: Any) -> Any:
        outcome = super().run(*arguments)
        type(self).calls += 1
        if type(self).calls == self.at:
            _thread.interrupt_main()
        return outcome


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_leaves_whole_steps_of_all(
    backend: backends.Backend, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastneuron.chunks._CHUNK_SECONDS", 0.0)
    monkeypatch.setattr("fastneuron.ensemble._SHARE_SECONDS", 0.0)
    monkeypatch.setattr("fastneuron.kernels.each_alone.EachAlone", Interrupts)
    Interrupts.calls, Interrupts.at = 0, at
    nets, alone = networks(), networks()
    ensemble = fn.Ensemble(nets, "mse", "adam", 8, backend.name)
    with pytest.raises(KeyboardInterrupt):
        ensemble.run(X, Y, epochs=3, shuffle=False)
    done = ensemble.step_count
    # A first call, which may compile, is undone; a later one is finished.
    assert done == (0 if at == 1 else 2)
    ensemble.run(X[8 * done :], Y[8 * done :], shuffle=False)
    for m, net in enumerate(alone):
        fn.Trainer(net, "mse", "adam", 8, backend.name).run(X, Y, shuffle=False)
        same(nets[m], net)


def test_threads_may_share_an_ensemble(backend: backends.Backend) -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", "adam", 8, backend.name)
    found: list[Any] = []

    def train() -> None:
        for _ in range(5):
            found.append(ensemble.step(X, Y))

    def ask() -> None:
        for _ in range(5):
            found.append([net.forward(X) for net in nets])
            found.append(nets[1].layers[0].weight)
            found.append(ensemble.forward(X))

    threads = [threading.Thread(target=work) for work in (train, ask, train, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 40
    assert ensemble.step_count == 10
    for net, want in zip(nets, networks(), strict=True):
        trainer = fn.Trainer(net=want, loss="mse", optimizer="adam", backend=backend.name)
        for _ in range(10):
            trainer.step(X, Y)
        same(net, want)


def test_a_step_waits_for_who_uses_one_of_the_networks() -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", backend="numpy")
    thread = threading.Thread(target=ensemble.step, args=(X, Y))
    with nets[2].parameters.lock:
        thread.start()
        thread.join(0.3)
        assert ensemble.step_count == 0
        # What waits holds the other locks; who asks for another network waits too, not for ever.
    thread.join(60)
    assert ensemble.step_count == 1
    assert nets[0].parameters.lock.acquire(blocking=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_trains_too(
    blocked: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastneuron.kernels.each_alone.WORK_TO_SHARE", 0)
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", "adam", 8, blocked.name, n_threads=2)
    ensemble.run(X, Y, epochs=2)
    want = None
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        try:
            os.write(writer, ensemble.run(X, Y, epochs=2).tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    want = ensemble.run(X, Y, epochs=2).tobytes()
    got = b""
    while len(got) < len(want) and (part := os.read(reader, len(want))):
        got += part
    os.close(reader)
    os.waitpid(child, 0)
    assert got == want


def on_device(ensemble: fn.Ensemble) -> fn.Ensemble:
    """An ensemble that takes its engine for one that may fail."""
    ensemble._live._on_device = True
    return ensemble


class Fails(EachAlone):
    """A device that fails at its n-th call."""

    left = 0
    whole = False

    def run(self, *arguments: Any) -> Any:
        type(self).left -= 1
        if type(self).left == 0:
            raise DeviceError("the device is lost", whole=self.whole)
        return super().run(*arguments)


@pytest.mark.parametrize("whole", [False, True])
def test_a_device_that_fails_takes_little_with_it(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastneuron.kernels.each_alone.EachAlone", Fails)
    Fails.left, Fails.whole = 4, whole
    nets, alone = networks(), networks()
    ensemble = on_device(fn.Ensemble(nets, "mse", fn.SGD(0.1), 8, "numpy"))
    trainers = [fn.Trainer(net, "mse", fn.SGD(0.1), backend="numpy") for net in alone]
    ensemble.step(X, Y)
    nets[1].forward(X)  # brings all of them to the host, before the next step does more
    for _ in range(2):
        ensemble.step(X, Y)
    said = "Nothing is lost: 3 steps" if whole else "those after step 1 of 3"
    with pytest.raises(DeviceError, match=said):
        ensemble.step(X, Y)
    for _ in range(3 if whole else 1):
        for trainer in trainers:
            trainer.step(X, Y)
    for net, want in zip(nets, alone, strict=True):
        same(net, want)
    for trainer in trainers:
        trainer.step(X, Y)
    ensemble.step(X, Y)
    assert ensemble.step_count == (4 if whole else 2)
    for net, want in zip(nets, alone, strict=True):
        same(net, want)


def test_a_device_that_fails_while_it_is_loaded_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, alone = networks(), networks()
    ensemble = on_device(fn.Ensemble(nets, "mse", fn.SGD(0.1), 8, "numpy"))
    each = [ensemble, *(fn.Trainer(net, "mse", fn.SGD(0.1), backend="numpy") for net in alone)]

    def step() -> None:
        for one in each:
            one.step(X, Y)

    def fails(*_: Any) -> Any:
        raise DeviceError("the device is lost")

    step()
    with monkeypatch.context() as patch:
        patch.setattr(type(backends.get("numpy").engine(nets[0].spec)), "forward", fails)
        with pytest.raises(DeviceError):
            nets[1].forward(X)
    with backends.use("numpy"):
        np.testing.assert_array_equal(nets[1].forward(X), alone[1].forward(X))
    step()
    for net in (nets[2], alone[2]):
        net.layers[0].weight = np.ones((4, 6))
    with monkeypatch.context() as patch:
        patch.setattr(ensemble._live.engine, "load", fails)
        with pytest.raises(DeviceError, match="the device is lost"):
            ensemble.step(X, Y)
    step()  # the ensemble's on a new engine; what was assigned made all come to the host
    for net, want in zip(nets, alone, strict=True):
        same(net, want)
    assert ensemble.step_count == 3


def test_one_that_diverged_stays_stopped_on_a_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastneuron.kernels.each_alone.EachAlone", Fails)
    Fails.left, Fails.whole = 0, False
    nets = networks()
    ensemble = fn.Ensemble(nets, "mse", WILD, 8, "numpy")
    with pytest.warns(fn.DivergenceWarning):
        ensemble.run(X, Y, epochs=20)
    kept = state(nets[1])
    Fails.left = 1
    with pytest.raises(DeviceError):
        ensemble.step(X, Y)
    losses = ensemble.step(X, Y)
    assert np.isnan(losses).tolist() == [False, True, False]
    for one, other in zip(state(nets[1]), kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_come_to_the_host_while_a_device_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With no time between, after every call."""
    monkeypatch.setattr("fastneuron.ensemble_parameters._KEEP_SECONDS", 0.0)
    monkeypatch.setattr("fastneuron.ensemble_parameters._KEEP_PAUSE", 0.0)
    nets = networks()
    ensemble = on_device(fn.Ensemble(nets, "cross_entropy", fn.SGD(0.1), 8, "numpy"))
    for step in range(3):
        ensemble.step(X, LABELS)
        assert all(net.parameters.owner is None for net in nets)
        assert ensemble._live.kept == step + 1
    assert len(nets) == M


class Holds(EachAlone):
    """Says what it was asked to hold, and has no room for more than a number of rows."""

    told: ClassVar[list[Any]] = []
    most, whole = 100, True

    def hold(self, x: Any, y: Any, weight: Any) -> None:
        if len(x) > self.most:
            raise DeviceMemoryError("no room", whole=self.whole)
        self.told.append(x)

    def let_go(self) -> None:
        self.told.append(None)

    def run(self, x: Any, *rest: Any) -> Any:
        self.told.append(x)
        return super().run(x, *rest)


def test_data_are_held_while_a_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastneuron.kernels.each_alone.EachAlone", Holds)
    Holds.told.clear()
    ensemble = fn.Ensemble(networks(), "mse", batch_size=8, backend="numpy")
    ensemble.run(X, Y)
    first, *between, last = Holds.told
    assert first is X
    assert last is None
    assert all(x is X for x in between)
    with monkeypatch.context() as patch:
        patch.setattr(Holds, "most", 10)
        ensemble.run(X, Y)  # goes without
        assert Holds.told[-1] is None
        patch.setattr(Holds, "whole", False)
        before = [state(net) for net in ensemble]
        with pytest.raises(DeviceMemoryError, match="no room"):
            ensemble.run(X, Y)
        for net, kept in zip(ensemble, before, strict=True):
            for one, other in zip(state(net), kept, strict=True):
                np.testing.assert_array_equal(one, other)
