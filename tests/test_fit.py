"""`fit`: history, validation, stopping, callbacks, weights, and the fits that mathematics knows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, choice
from fastneuron.callbacks import FitState

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3
CLASSES = (Y > 0).astype(int)


def fit(net: fn.Sequential, y: Any = Y, **options: Any) -> fn.History:
    return net.fit(X, y, **{"loss": "mse", "backend": "numpy", "batch_size": 16} | options)


def weights(net: fn.Sequential) -> np.ndarray[Any, Any]:
    return np.concatenate([layer.weight.ravel() for layer in net.layers])


def test_history_has_one_entry_an_epoch(backend: backends.Backend) -> None:
    net = fn.mlp([3, 8, 1], seed=0)
    history = fit(net, epochs=40, backend=backend.name)
    assert len(history) == 40
    for column in (history.loss, history.val_loss, history.learning_rate, history.seconds):
        assert column.shape == (40,)
    assert history.loss[-1] < history.loss[0]
    assert np.isnan(history.val_loss).all()
    assert (history.learning_rate == 1e-3).all()
    assert history.stopped_epoch is None
    assert "40 epochs" in repr(history)


@pytest.mark.parametrize("watched", [True, False])
def test_the_epochs_loss_is_the_mean_over_its_rows(watched: bool) -> None:
    """With a zero rate nothing moves: each epoch's loss is the loss of the data set."""
    net = fn.mlp([3, 1], seed=0, dtype="float64")
    callbacks = [lambda state: None] if watched else []
    history = fit(net, optimizer=fn.SGD(0.0), epochs=50, callbacks=callbacks)
    np.testing.assert_allclose(history.loss, net.evaluate(X, Y, loss="mse"), rtol=1e-12)


def test_what_is_watched_changes_no_bit() -> None:
    plain, watched = fn.mlp([3, 8, 1], seed=0), fn.mlp([3, 8, 1], seed=0)
    want = fit(plain, epochs=30)
    got = fit(watched, epochs=30, callbacks=[lambda state: None], validation_data=(X, Y))
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-14)
    np.testing.assert_array_equal(weights(plain), weights(watched))
    assert got.val_loss[-1] == pytest.approx(watched.evaluate(X, Y), rel=1e-6)


def test_a_second_fit_goes_on_with_other_orders() -> None:
    net, twin = fn.mlp([3, 1], seed=0), fn.mlp([3, 1], seed=0)
    sgd = {"optimizer": fn.SGD(0.01)}
    want = fit(net, epochs=6, **sgd)
    parts = [fit(twin, epochs=2, **sgd) for _ in range(3)]
    np.testing.assert_allclose(np.concatenate([p.loss for p in parts]), want.loss, rtol=1e-12)
    np.testing.assert_array_equal(weights(net), weights(twin))


def test_a_seed_starts_the_orders_anew() -> None:
    losses = []
    for _ in range(2):
        net = fn.mlp([3, 1], seed=0)
        fit(net)
        net.layers[0].weight, net.layers[0].bias = np.ones((3, 1)), [0.0]
        losses.append(fit(net, seed=5, optimizer="sgd").loss)
    np.testing.assert_array_equal(*losses)


def test_the_validation_split_is_seeded_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[np.ndarray[Any, Any]]] = []

    class Spy(fn.Trainer):
        def chunks(self, x: Any, *rest: Any, **options: Any) -> Any:
            seen.append([x])
            return super().chunks(x, *rest, **options)

        def mean_loss(self, x: Any, y: Any, weight: Any) -> float:
            seen[-1].append(x)
            return super().mean_loss(x, y, weight)

    monkeypatch.setattr("fastneuron.fitting.Trainer", Spy)
    weight = RNG.uniform(1, 2, 60)
    for seed in (1, 1, 2):
        net = fn.mlp([3, 1], seed=0)
        history = fit(net, validation_split=0.25, seed=seed, sample_weight=weight)
        assert np.isfinite(history.val_loss).all()
    first, again, other = seen
    assert [len(part) for part in first] == [45, 15]
    rows = np.concatenate(first)
    assert sorted(rows.tolist()) == sorted(X.astype(np.float32).tolist())
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": None}, "fit needs a loss.*mse"),
        ({"validation_split": 1.0}, "validation_split"),
        ({"validation_split": -0.1}, "validation_split"),
        ({"validation_split": 0.999}, "leaves none"),
        ({"validation_split": 0.5, "validation_data": (X, Y)}, "not both"),
        ({"validation_data": X}, "must be"),
        ({"validation_data": (X[:, :2], Y)}, r"validation_data: .*\(60, 2\).*\(60, 3\)"),
        ({"validation_data": (X, Y[:5])}, "validation_data: y has shape"),
        ({"epochs": 0}, "epochs"),
        ({"callbacks": [3]}, "a callback is"),
        ({"early_stopping": fn.EarlyStopping(monitor="val_loss")}, "no validation data"),
        ({"class_weight": "balanced"}, "class_weight needs classes"),
        ({"sample_weight": np.ones(3)}, "sample_weight"),
    ],
)
def test_wrong_options_are_refused_before_anything_changes(
    options: dict[str, Any], message: str
) -> None:
    net = fn.mlp([3, 1], seed=0)
    before = weights(net)
    with pytest.raises(ValueError, match=message):
        fit(net, **options)
    np.testing.assert_array_equal(weights(net), before)
    assert net.loss is None


@pytest.mark.parametrize("bad", [{"patience": 0}, {"min_delta": -1}, {"monitor": "accuracy"}])
def test_a_wrong_early_stopping_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(fn.SpecError, match="EarlyStopping"):
        fn.EarlyStopping(**bad)


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_restores_the_best_epoch(backend: backends.Backend, restore: bool) -> None:
    net = fn.mlp([3, 1], seed=0)
    seen: list[np.ndarray[Any, Any]] = []

    def spoil(state: FitState) -> None:
        seen.append(weights(state.net))
        if state.epoch == 4:  # from here on the weights only get worse
            state.net.layers[0].weight = np.full((3, 1), 100.0)

    history = fit(
        net,
        epochs=50,
        batch_size=60,
        optimizer=fn.SGD(0.01),
        callbacks=[spoil],
        validation_data=(X, Y),
        early_stopping=fn.EarlyStopping(3, restore_best=restore),
        backend=backend.name,
    )
    assert history.best_epoch == 4
    assert history.stopped_epoch == 7
    assert len(history) == 8
    np.testing.assert_array_equal(weights(net), seen[4] if restore else seen[-1])


def test_callbacks_see_and_stop() -> None:
    class Watch(fn.Callback):
        def __init__(self) -> None:
            self.chunks = 0
            self.epochs: list[tuple[int, float, float]] = []

        def on_chunk_end(self, state: FitState) -> None:
            self.chunks += 1

        def on_epoch_end(self, state: FitState) -> bool:
            self.epochs.append((state.epoch, state.loss, state.val_loss))
            assert state.trainer.step_count == state.step == 4 * (state.epoch + 1)
            assert state.seconds > 0
            return state.epoch == 2

    watch = Watch()
    history = fit(fn.mlp([3, 1], seed=0), epochs=10, callbacks=[watch], validation_data=(X, Y))
    assert [epoch for epoch, _, _ in watch.epochs] == [0, 1, 2]
    assert [loss for _, loss, _ in watch.epochs] == history.loss.tolist()
    assert [loss for _, _, loss in watch.epochs] == history.val_loss.tolist()
    assert watch.chunks >= 3
    assert history.stopped_epoch == 2


def test_a_callback_may_stop_within_an_epoch() -> None:
    class Stop(fn.Callback):
        def on_chunk_end(self, state: FitState) -> None:
            state.stop = True

    net = fn.mlp([3, 1], seed=0)
    history = fit(net, epochs=10, callbacks=[Stop()])
    assert len(history) == 1
    assert history.stopped_epoch == 0
    assert math.isfinite(history.loss[0])


def test_a_callback_that_fails_leaves_whole_steps() -> None:
    def fail(state: FitState) -> None:
        raise RuntimeError("mine")

    net, twin = fn.mlp([3, 1], seed=0), fn.mlp([3, 1], seed=0)
    with pytest.raises(RuntimeError, match="mine"):
        fit(net, epochs=3, callbacks=[fail])
    fit(twin, epochs=1)
    np.testing.assert_array_equal(weights(net), weights(twin))
    fit(net)


def test_a_plateau_watches_the_validation_loss() -> None:
    net = fn.mlp([3, 1], seed=0)
    optimizer = fn.SGD(fn.Plateau(1e-3, factor=0.5, patience=2))
    history = fit(
        net, optimizer=optimizer, epochs=8, validation_data=(X, Y), shuffle=False,
        callbacks=[lambda state: setattr(state.net.layers[0], "weight", np.ones((3, 1)))
                   or setattr(state.net.layers[0], "bias", [0.0])],
    )  # fmt: skip
    assert history.learning_rate[0] == 1e-3
    assert history.learning_rate[-1] < 1e-3


def test_class_weights_equal_repeats() -> None:
    repeated = (
        np.concatenate([X, X[CLASSES == 1]]),
        np.concatenate([CLASSES, CLASSES[CLASSES == 1]]),
    )
    nets = [fn.mlp([3, 2], seed=0, dtype="float64") for _ in range(3)]
    options: dict[str, Any] = {
        "loss": "cross_entropy", "optimizer": "sgd", "batch_size": 1000, "backend": "numpy",
        "epochs": 5,
    }  # fmt: skip
    nets[0].fit(X, CLASSES, class_weight={1: 2.0}, **options)
    nets[1].fit(*repeated, **options)
    nets[2].fit(X, np.eye(2)[CLASSES], class_weight={1: 2.0}, **options)
    np.testing.assert_allclose(weights(nets[0]), weights(nets[1]), rtol=1e-10)
    np.testing.assert_allclose(weights(nets[0]), weights(nets[2]), rtol=1e-10)
    one = fn.mlp([3, 1], seed=0)
    one.fit(X, CLASSES, class_weight="balanced", **options | {"loss": "binary_cross_entropy"})


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fit(fn.mlp([3, 1], seed=0), epochs=2, progress=True, validation_data=(X, Y))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_shows_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(fn.mlp([3, 1], seed=0), epochs=3, progress=True, validation_data=(X, Y))
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "val_loss" in shown


@pytest.mark.parametrize("bias", [True, False])
def test_a_line_is_found(backend: backends.Backend, bias: bool) -> None:
    """y = 2 x + 3: with a bias exactly that, without one least squares through the origin."""
    x = np.linspace(-1, 3, 41)[:, None]
    y = 2 * x[:, 0] + 3
    net = fn.mlp([1, 1], bias=bias, seed=0)
    net.fit(x, y, loss="mse", optimizer=fn.SGD(0.1), batch_size=41, epochs=500,
            backend=backend.name)  # fmt: skip
    got = net.layers[0].weight[0, 0]
    layer_bias = net.layers[0].bias
    if layer_bias is not None:
        assert got == pytest.approx(2, abs=1e-3)
        assert layer_bias[0] == pytest.approx(3, abs=1e-3)
    else:
        assert got == pytest.approx((x[:, 0] @ y) / (x[:, 0] @ x[:, 0]), abs=1e-3)


def test_a_linear_network_is_least_squares_with_intercept(backend: backends.Backend) -> None:
    y = Y + RNG.normal(size=60)
    net = fn.mlp([3, 1], seed=0, dtype="float64")
    net.fit(X, y, loss="mse", optimizer=fn.SGD(0.2), batch_size=60, epochs=600,
            backend=backend.name)  # fmt: skip
    want = np.linalg.lstsq(np.column_stack([X, np.ones(60)]), y, rcond=None)[0]
    np.testing.assert_allclose(net.layers[0].weight[:, 0], want[:3], atol=1e-9)
    np.testing.assert_allclose(net.layers[0].bias, want[3:], atol=1e-9)


def test_the_work_that_auto_weighs_and_who_did_it() -> None:
    net = fn.mlp([4, 3, 2], seed=0)
    x, y = np.zeros((10, 4), np.float32), np.arange(10) % 2
    # Forward and weight gradient of both layers, data gradient of the second.
    want = (2 * (4 * 3 + 3 * 2) + 3 * 2) * 10 * 7
    assert net.spec.multiply_adds * choice.rows_of(x) * 7 == want
    assert choice.rows_of(iter(x)) == 0  # refused later, with a reason
    history = net.fit(x, y, loss="cross_entropy", epochs=2, backend="numpy")
    assert history.backend == "numpy"
