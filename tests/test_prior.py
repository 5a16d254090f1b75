"""The class prior: an output bias by which the first predictions are the labels' frequencies."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, initial
from fastneuron.errors import SpecError
from fastneuron.losses import LOSSES

EPS = 2.0**-23


def net(outputs: int, **more: Any) -> fn.Sequential:
    """Output weights of zero: what it predicts is its bias alone."""
    return fn.Sequential(
        fn.Dense(2, 4, "relu"),
        fn.Dense(out_features=outputs, weight_init="zeros", bias_init="class_prior"),
        seed=0,
        **more,
    )


def bias_of(loss: str, y: Any, outputs: int, weight: Any = None) -> Any:
    return initial.prior_bias(LOSSES[loss], np.asarray(y), weight, outputs)


# 12 rows; half a row more for each class is counted.
CLASSES = [0] * 8 + [1] * 3 + [3]


@pytest.mark.parametrize(
    ("loss", "y", "want"),
    [
        ("cross_entropy", CLASSES, np.log([8.5 / 14, 3.5 / 14, 0.5 / 14, 1.5 / 14])),
        # One-hot rows and probabilities count their shares; sums other than 1 weigh more.
        ("cross_entropy", np.eye(4)[CLASSES], np.log([8.5 / 14, 3.5 / 14, 0.5 / 14, 1.5 / 14])),
        ("cross_entropy", [[1, 1], [2, 0]], np.log([3.5 / 5, 1.5 / 5])),
        ("binary_cross_entropy", [[1], [0], [0]], [math.log(1.5 / 2.5)]),
        ("binary_cross_entropy", [[1, 0], [1, 0], [1, 0.5]], np.log([3.5 / 0.5, 1.0 / 3.0])),
        ("poisson", [[0, 2], [0, 5]], np.log([0.25, 3.75])),
        ("mse", [[1, 10], [2, 20], [6, 60]], [3, 30]),
        ("mae", [[1], [2], [6]], [3]),
        ("huber", [[1], [2], [6]], [3]),
    ],
)
def test_the_formula(loss: str, y: Any, want: Any) -> None:
    got = bias_of(loss, y, len(want))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_counts_rows(loss: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 20) if loss == "cross_entropy" else rng.integers(0, 2, (20, 3)) / 1.0
    times = rng.integers(0, 4, 20)
    weight = times / times.mean()
    got = bias_of(loss, y, 3, weight)
    # Scaled to mean 1 they count 20 rows, whatever their sum was: as many as the repeats, shrunk.
    repeated = np.repeat(y, times, axis=0)
    counted = np.bincount(repeated, minlength=3) if y.ndim == 1 else repeated.sum(axis=0)
    sums = counted * (20 / len(repeated))
    want = {
        "cross_entropy": np.log((sums + 0.5) / 21.5),
        "binary_cross_entropy": np.log((sums + 0.5) / (20.5 - sums)),
        "poisson": np.log((sums + 0.5) / 20),
    }.get(loss, sums / 20)
    np.testing.assert_allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "poisson"])
def test_what_never_occurs_has_a_finite_bias(loss: str) -> None:
    y = np.zeros(1000, np.int64) if loss == "cross_entropy" else np.zeros((1000, 2))
    got = bias_of(loss, y, 2)
    assert np.isfinite(got).all()
    assert got[1] < -7  # log(1 / 2000) is -7.6
    if loss == "binary_cross_entropy":
        np.testing.assert_allclose(bias_of(loss, 1 - y, 2), -got, rtol=1e-15)


def test_the_first_predictions_are_the_frequencies(backend: backends.Backend) -> None:
    y = np.array([0] * 90 + [1] * 8 + [2] * 2)
    X = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    want = (np.array([90, 8, 2]) + 0.5) / 101.5
    asked = net(3)
    asked.parameters.loss = "cross_entropy"  # for predict_proba
    asked.set_class_prior(y, "cross_entropy")
    with backends.use(backend.name):
        got = asked.predict_proba(X)
        # Rounding of three logs below 4, of their exponentials and of the division.
        np.testing.assert_allclose(got, np.tile(want, (100, 1)), rtol=16 * EPS)
        first = asked.evaluate(X, y)
    p = np.array([0.9, 0.08, 0.02])
    # Cross entropy of the labels with the smoothed frequencies: their entropy, nearly.
    assert first == pytest.approx(-np.sum(p * np.log(want)), rel=1e-6)
    assert first == pytest.approx(-np.sum(p * np.log(p)), rel=0.01)
    one = net(1)
    one.set_class_prior(y > 0, "binary_cross_entropy")
    with backends.use(backend.name):
        np.testing.assert_allclose(one.forward(X), math.log(10.5 / 90.5), rtol=4 * EPS)


def first_bias(n: fn.Sequential, X: Any, y: Any, **more: Any) -> Any:
    """The output bias that a fit begins with: it trains at a rate that changes no bit."""
    options = {"loss": "cross_entropy", "optimizer": fn.SGD(1e-30), "backend": "numpy"} | more
    n.fit(X, y, **options)
    return n.layers[-1].bias


@pytest.fixture
def data() -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(12, 2)), np.array(CLASSES)


def test_fit_begins_with_it_and_does_so_once(data: Any, backend: backends.Backend) -> None:
    X, y = data
    asked = net(4)
    np.testing.assert_array_equal(asked.layers[-1].bias, np.zeros(4))
    want = bias_of("cross_entropy", y, 4).astype(np.float32)
    got = first_bias(asked, X, y, backend=backend.name)
    np.testing.assert_array_equal(got, want)
    again = first_bias(asked, X, (y + 1) % 4, backend=backend.name)
    np.testing.assert_array_equal(again, want)
    plain = fn.mlp([2, 4, 4], seed=0)
    np.testing.assert_allclose(first_bias(plain, X, y), np.zeros(4), atol=1e-20)


def test_the_rows_that_train_are_counted_with_their_weights(data: Any) -> None:
    X, y = data
    weight = np.arange(12.0)
    scaled = weight / weight.mean()
    got = first_bias(net(4), X, y, sample_weight=weight)
    want = bias_of("cross_entropy", y, 4, scaled).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=4 * EPS)
    # All classes that occur weigh the same: a third of 12 rows each.
    got = first_bias(net(4), X, y, class_weight="balanced")
    np.testing.assert_allclose(got, np.log([4.5 / 14, 4.5 / 14, 0.5 / 14, 4.5 / 14]), rtol=4 * EPS)
    got = first_bias(net(4), X, y, validation_data=(X, 0 * y))
    np.testing.assert_array_equal(got, bias_of("cross_entropy", y, 4).astype(np.float32))
    held = net(4)
    n = round(bias_total(first_bias(held, X, y, validation_split=0.5)))
    assert n == 6


def bias_total(bias: Any) -> float:
    """The rows that the smallest class's half a row is a share of, less the half rows."""
    return float(0.5 / np.exp(bias.astype(float)).min() - 2)


def test_what_somebody_set_stays(data: Any, tmp_path: Path) -> None:
    X, y = data
    mine = np.array([1, 2, 3, 4], np.float32)
    assigned = net(4)
    assigned.layers[-1].bias = mine
    np.testing.assert_array_equal(first_bias(assigned, X, y), mine)
    trained = net(4)
    fn.Trainer(trained, "cross_entropy", fn.SGD(1e-30), backend="numpy").step(X, y)
    np.testing.assert_allclose(first_bias(trained, X, y), np.zeros(4), atol=1e-20)
    trained.layers[-1].bias = np.zeros(4)  # whatever it was trained to before
    np.testing.assert_allclose(first_bias(trained, X, y), np.zeros(4), atol=1e-20)
    # A network that nobody trained still waits for its labels, wherever it has been.
    want = bias_of("cross_entropy", y, 4).astype(np.float32)
    fresh = net(4)
    fresh.save(tmp_path / "fresh")
    for twin in (
        fn.load(tmp_path / "fresh"),
        copy.deepcopy(fresh),
        pickle.loads(pickle.dumps(fresh)),
    ):
        np.testing.assert_array_equal(first_bias(twin, X, y), want)
        twin.save(tmp_path / "trained")
        loaded = fn.load(tmp_path / "trained")
        np.testing.assert_array_equal(first_bias(loaded, X, (y + 1) % 4), want)


def test_a_refused_fit_changes_nothing(data: Any) -> None:
    X, y = data
    n = net(4)
    for bad in ({"epochs": 0}, {"batch_size": 0}, {"loss": "mse"}, {"validation_split": 2}):
        with pytest.raises(fn.FastneuronError):
            first_bias(n, X, y, **bad)
        np.testing.assert_array_equal(n.layers[-1].bias, np.zeros(4))
    normed = fn.mlp([2, 3, 4], norm="batch", bias_init="class_prior", seed=0)
    with pytest.raises(fn.DataError, match="2 rows"):
        first_bias(normed, X[:1], y[:1])
    np.testing.assert_array_equal(normed.layers[-1].bias, np.zeros(4))
    # Neither waits any less for its labels.
    want = bias_of("cross_entropy", y, 4).astype(np.float32)
    np.testing.assert_array_equal(first_bias(n, X, y), want)
    np.testing.assert_array_equal(first_bias(normed, X, y), want)


def test_a_trainer_is_told_by_hand(data: Any, backend: backends.Backend) -> None:
    X, y = data
    n = net(4)
    n.set_class_prior(y.tolist(), loss="cross_entropy")
    trainer = fn.Trainer(n, "cross_entropy", backend=backend.name)
    # At the frequencies dL/db is p - frequency: the half rows are all that is left.
    _, gradients = trainer.gradients(X, y)
    counts = np.bincount(y, minlength=4)
    np.testing.assert_allclose(
        gradients[-1][1], (counts + 0.5) / 14 - counts / 12, rtol=0, atol=8 * EPS
    )
    weight = np.arange(12.0)
    n.set_class_prior(y, "cross_entropy", weight)
    want = bias_of("cross_entropy", y, 4, weight / weight.mean())
    np.testing.assert_allclose(n.layers[-1].bias, want, rtol=4 * EPS)
    plain = fn.mlp([2, 3], seed=0)  # may be told too
    plain.set_class_prior(np.array([[1.0, 2, 3], [3, 2, 1]]), "mse")
    np.testing.assert_array_equal(plain.layers[0].bias, [2, 2, 2])


def test_drift_is_measured_from_it(data: Any) -> None:
    X, y = data
    n = net(4)
    n.set_class_prior(y, "cross_entropy")
    found = n.diagnose(X, y, loss="cross_entropy")
    np.testing.assert_array_equal(found.layers[-1].bias_drift, np.zeros(4))


def test_what_cannot_begin_so_says_why(data: Any) -> None:
    _, y = data
    for n, message in [
        (fn.mlp([2, 4], bias=False, seed=0), "layer 0 has no bias"),
        (
            fn.mlp([2, 3, 4], output_activation="sigmoid", seed=0),
            "layer 1 has activation='sigmoid'",
        ),
    ]:
        with pytest.raises(SpecError, match=message):
            n.set_class_prior(y, "cross_entropy")
    n = net(4)
    for bad, loss, message in [
        ([], "cross_entropy", "no labels"),
        (7, "cross_entropy", "shape"),
        ([0, 4], "cross_entropy", "no class"),
        ([[1, 2], [3]], "cross_entropy", "rectangular"),
        (y, "mse", r"\(12, 4\)"),
    ]:
        with pytest.raises(fn.DataError, match=message):
            n.set_class_prior(bad, loss)
    with pytest.raises(fn.UnknownNameError, match="loss"):
        n.set_class_prior(y, "nonsense")
    np.testing.assert_array_equal(n.layers[-1].bias, np.zeros(4))
    for layers, message in [
        ([fn.Dense(2, 2, bias_init="class_prior"), fn.Dense(out_features=1)], "layer 0.*last one"),
        ([fn.Dense(2, 2, bias_init="class_prior"), fn.BatchNorm()], "layer 0.*last one"),
        ([fn.Dense(2, 2, bias=False, bias_init="class_prior")], "layer 0.*bias=False"),
        ([fn.Dense(2, 2, "sigmoid", bias_init="class_prior")], "layer 0.*got 'sigmoid'"),
    ]:
        with pytest.raises(SpecError, match=message):
            fn.Sequential(*layers)


def test_rare_events_are_learnt_sooner(backend: backends.Backend) -> None:
    """2 in 100: a network that begins at one half spends its first steps on the frequency."""
    rng = np.random.default_rng(0)
    y = (np.arange(2000) % 50 == 0).astype(np.int64)
    X = (rng.normal(size=(2000, 4)) + y[:, None]).astype(np.float32)
    losses = {}
    for start in ("zeros", "class_prior"):
        n = fn.mlp([4, 8, 1], bias_init=start, seed=0)
        history = n.fit(
            X, y, loss="binary_cross_entropy", batch_size=50, epochs=3, backend=backend.name
        )
        losses[start] = history.loss
    entropy = -(0.02 * math.log(0.02) + 0.98 * math.log(0.98))
    assert losses["class_prior"][0] < 3 * entropy
    assert losses["zeros"][0] > 3 * entropy
    assert (losses["class_prior"] < losses["zeros"]).all()
