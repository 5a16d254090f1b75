"""What `diagnose` measures: closed forms, and the gradients of training."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import SpecError
from fastneuron.testing.patients import NORMS, X, Y, ask, normalised, small


def by_hand() -> fn.Sequential:
    """Two relu neurons, the second dead on `BY_HAND_X`, and a linear output."""
    net = fn.mlp([2, 2, 1], seed=0, dtype="float64")
    net.layers[0].weight, net.layers[0].bias = np.eye(2), [0.0, -10.0]
    net.layers[1].weight, net.layers[1].bias = [[2.0], [1.0]], [0.0]
    return net


BY_HAND_X, BY_HAND_Y = [[1.0, 2.0], [3.0, 0.0]], [1.0, 1.0]


def test_values_of_a_network_that_is_done_by_hand() -> None:
    """z = (1, 3) and (-8, -10); outputs 2 and 6; dL/dout = 2 (out - y) = 2 and 10."""
    got = by_hand().diagnose(BY_HAND_X, BY_HAND_Y, loss="mse")
    assert got.mean_loss == (1 + 25) / 2
    hidden, output = got.layers
    for name, want in {
        "dead": [False, True],
        "flat_share": [0, 1],
        "liveliness": [1, 0],
        "contribution": [12, 6],
        "delta": [12, 0],
        "bias_gradient": [12, 0],
        "weight_gradient": [np.hypot(32, 4), 0],
        "bias": [0, -10],
        "bias_drift": [0, -10],
        "silent_on_zero": [True, True],
        "twin": [-1, -1],
        "z_mean": [2, -9],
        "z_std": [1, 1],
        "z_low": [1, -10],
        "z_high": [3, -8],
    }.items():
        np.testing.assert_allclose(getattr(hidden, name), want, rtol=1e-15, err_msg=name)
    assert output.delta.tolist() == output.contribution.tolist() == [6]
    assert output.bias_gradient.tolist() == [6]
    assert output.weight_gradient.tolist() == [16]
    assert hidden.input_size == pytest.approx(np.sqrt(7), rel=1e-15)
    assert hidden.z_quantiles[[0, 3, -1]].tolist() == [-10, -3.5, 3]
    assert hidden.z_counts.sum() == 4


def test_the_bias_gradient_of_one_row_is_the_weights_over_the_length_of_x() -> None:
    net = small("tanh", dtype="float64")
    row = X[:1]
    layer = net.diagnose(row, [1], loss="cross_entropy").layers[0]
    want = layer.weight_gradient / np.linalg.norm(row)
    np.testing.assert_allclose(layer.bias_gradient, want, rtol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh"])
def test_gradients_are_those_that_training_uses(activation: str) -> None:
    net = small(activation, dtype="float64", bias=True)
    trainer = fn.Trainer(net, "cross_entropy", backend="numpy")
    want_loss, gradients = trainer.gradients(X, Y)
    got = ask(net)
    assert got.mean_loss == pytest.approx(want_loss, rel=1e-13)
    for layer, (dw, db) in zip(got.layers, gradients, strict=True):
        assert db is not None
        np.testing.assert_allclose(layer.bias_gradient, abs(db), rtol=1e-9, atol=1e-16)
        want = np.linalg.norm(dw, axis=0)
        np.testing.assert_allclose(layer.weight_gradient, want, rtol=1e-9, atol=1e-16)


def test_many_rows_are_thinned_evenly() -> None:
    net = fn.mlp([1, 1], seed=0, dtype="float64")
    net.layers[0].weight = [[1.0]]
    got = net.diagnose(np.arange(4096.0)[:, None])
    assert (got.rows, got.rows_given) == (1024, 4096)
    assert got.layers[0].z_low.tolist() == [0]
    assert got.layers[0].z_high.tolist() == [4092]
    assert got.layers[0].z_mean.tolist() == [2046]


def test_without_targets_nothing_is_said_of_gradients() -> None:
    got = small().diagnose(X)
    assert got.mean_loss is None
    assert got.layers[0].delta is None
    assert "dL/db" not in str(got)


def test_drift_is_measured_from_the_first_bias_and_survives_a_copy() -> None:
    net = fn.Sequential(fn.Dense(8, 4, "tanh", bias_init="uniform"), fn.Dense(4, 3), seed=3)
    start = net.layers[0].bias
    net.fit(X, Y, loss="cross_entropy", epochs=3, backend="numpy")
    assert start is not None
    for each in (net, pickle.loads(pickle.dumps(net))):
        got = each.diagnose(X).layers[0].bias_drift
        np.testing.assert_allclose(got, net.layers[0].bias - start, atol=1e-7)
        assert np.abs(got).min() > 0


def test_the_histogram_and_quantiles_are_numpys() -> None:
    net = small("tanh", dtype="float64")
    layer = ask(net, 3 * X).layers[0]
    z = 3 * X @ net.layers[0].weight + net.layers[0].bias
    want, edges = np.histogram(z, 40)
    assert layer.z_counts.tolist() == want.tolist()
    np.testing.assert_allclose(layer.z_edges, edges, rtol=1e-13)
    np.testing.assert_allclose(layer.z_quantiles[[1, 3, 5]], np.quantile(z, [0.05, 0.5, 0.95]))
    flat = np.abs(ACTIVATIONS["tanh"].df(np.tanh(z))) < 0.005
    assert layer.z_flat.tolist() == np.histogram(z[flat], edges)[0].tolist()
    assert 0 < layer.z_flat.sum() < z.size


def test_a_wide_bin_is_flat_in_part() -> None:
    net = fn.mlp([1, 1, 1], seed=0)
    net.layers[0].weight = [[1.0]]
    layer = net.diagnose(np.concatenate([np.full(10, -1e5), -np.ones(20), np.ones(70)])[:, None])
    layer = layer.layers[0]
    assert layer.z_counts[[0, -1]].tolist() == [10, 90]
    assert layer.z_flat[[0, -1]].tolist() == [10, 20]


@pytest.mark.parametrize("value", [0.0, 1.0, -1e30, 1e-30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_z_that_hardly_varies_has_a_histogram(value: float, dtype: str) -> None:
    net = fn.mlp([1, 1], seed=0, dtype=dtype)
    net.layers[0].weight = [[1.0]]
    x = np.full((5, 1), value)
    x[0] *= 1 + 1e-15
    layer = net.diagnose(x).layers[0]
    assert layer.z_counts.sum() == 5
    assert (np.diff(layer.z_edges) > 0).all()


# --- Normalisations, dropout, frozen parts ------------------------------------------------------


def test_values_of_a_batch_normalisation_done_by_hand() -> None:
    """x = 0, 2, 4, 6: mean 3, variance 5."""
    net = fn.Sequential(
        fn.Dense(1, 1), fn.BatchNorm(activation="relu", epsilon=0.25), dtype="float64", seed=0
    )
    net.layers[0].weight = [[1.0]]
    net.layers[1].weight, net.layers[1].bias = [2.0], [1.0]
    net.layers[1].running_mean, net.layers[1].running_variance = [1.0], [3.75]
    net.parameters.loss = "mse"  # as if it were trained: its statistics count
    x = np.tile([0.0, 2.0, 4.0, 6.0], 16)[:, None]
    dense, norm = net.diagnose(x, np.zeros(64)).layers
    z = 2 * (np.array([0, 2, 4, 6]) - 3) / np.sqrt(5.25) + 1
    a = np.maximum(z, 0)
    assert (dense.kind, norm.kind, norm.index, norm.last) == ("dense", "batch_norm", 1, True)
    assert (dense.normalised, norm.normalised) == (True, False)
    for name, want in {
        "z_mean": 1,
        "z_std": 2 * np.sqrt(5 / 5.25),
        "z_low": z[0],
        "z_high": z[-1],
        "flat_share": 0.25,
        "liveliness": 0.75,
        "contribution": 2 * a.mean(),
        "bias_gradient": 2 * a.mean(),
        "weight_gradient": abs((2 * a * (z - 1) / 2).mean()),
        "factor": 2,
        "mean_shift": (3 - 1) / np.sqrt(4),
        "variance_ratio": 5.25 / 4,
    }.items():
        np.testing.assert_allclose(getattr(norm, name), [want], rtol=1e-13, err_msg=name)
    assert norm.narrow is not None
    assert norm.narrow.tolist() == [False]
    assert dense.factor is norm.narrow_rows is None
    assert dense.bias is None


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "activation first": {"activation_first": True},
    "no biases": {"bias": False},
    "kept bias": {"first": {"bias": True, "bias_init": "uniform"}},
    "frozen": {"trainable": False},
    "bias alone": {"trainable": "bias", "first": {"trainable": False}},
    "weight alone": {"trainable": "weight"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_gradients_of_normalised_networks_are_those_of_training(
    norm: str, activation: str, form: str
) -> None:
    net = normalised(norm, activation, dtype="float64", **FORMS[form])
    trainer = fn.Trainer(net, "cross_entropy", batch_size=300, backend="numpy")
    trainer.run(X, Y, epochs=3)
    want_loss, gradients = trainer.gradients(X, Y)
    got = ask(net)
    assert got.mean_loss == pytest.approx(want_loss, rel=1e-13)
    assert [layer.index for layer in got.layers] == [0, 1, 2, 3, 4]
    for layer, (dw, db) in zip(got.layers, gradients, strict=True):
        spec = net.spec.layers[layer.index]
        assert (layer.bias_gradient is not None) == spec.trains_bias
        assert (layer.weight_gradient is not None) == spec.trains_weight
        if spec.trains_bias:
            np.testing.assert_allclose(layer.bias_gradient, abs(db), rtol=1e-9, atol=1e-14)
        if spec.trains_weight:
            want = abs(dw) if dw.ndim == 1 else np.linalg.norm(dw, axis=0)
            np.testing.assert_allclose(layer.weight_gradient, want, rtol=1e-9, atol=1e-14)


def test_looking_changes_nothing() -> None:
    net = normalised("batch_norm")
    before = [layer.running_mean for layer in net.layers], net.parameters.version
    ask(net)
    after = [layer.running_mean for layer in net.layers], net.parameters.version
    np.testing.assert_equal(after, before)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_dropped(norm: str) -> None:
    plain, dropping = normalised(norm), normalised(norm, dropout=0.5)
    for one, other in zip((0, 1, 2, 3, 4), (0, 1, 3, 4, 6), strict=True):
        dropping.layers[other].weight = plain.layers[one].weight
    want, got = ask(plain).to_dict(), ask(dropping).to_dict()
    assert [layer.pop("index") for layer in got["layers"]] == [0, 1, 3, 4, 6]
    assert [layer.pop("index") for layer in want["layers"]] == [0, 1, 2, 3, 4]
    assert [layer.pop("dropped") for layer in got["layers"]] == [False, False, True, True, True]
    assert not any(layer.pop("dropped") for layer in want["layers"])
    assert got == want


def test_a_single_row_goes_by_the_running_statistics() -> None:
    net = normalised("batch_norm", dtype="float64")
    net.layers[1].running_mean = np.linspace(-1, 1, 32)
    layers = net.diagnose(X[:1]).layers
    want = net.forward(X[:1])[0]
    np.testing.assert_allclose(layers[-1].z_mean, want, rtol=1e-12)
    assert layers[1].mean_shift is None


def test_running_statistics_count_once_they_have_settled() -> None:
    """momentum 0.1: from 70 steps on."""
    net = normalised("batch_norm")
    assert ask(net).layers[1].mean_shift is None  # never trained
    recorder = fn.HealthRecorder(X, interval=1, rows=300)
    net.fit(X, Y, loss="cross_entropy", epochs=9, backend="numpy", callbacks=[recorder])
    known = {r.step: r.diagnosis.layers[1].mean_shift is not None for r in recorder.records}
    assert known == {step: step >= 70 for step in range(10, 100, 10)}
    assert ask(net).layers[1].mean_shift is not None
    assert net.diagnose(X[:63]).layers[1].mean_shift is None  # too few to tell


def test_the_first_layer_may_be_a_normalisation_and_the_last() -> None:
    net = fn.Sequential(fn.BatchNorm(8), fn.Dense(out_features=3), fn.LayerNorm(), seed=0)
    first, dense, last = ask(net).layers
    assert (first.last, dense.last, last.last) == (False, False, True)
    assert (first.normalised, dense.normalised) == (False, True)
    assert first.twin.tolist() == [-1] * 8


def test_a_network_of_dropouts_has_no_neurons() -> None:
    with pytest.raises(SpecError, match="no neuron to diagnose"):
        fn.Sequential(fn.Dropout(0.5, features=3)).diagnose(np.ones((2, 3)))


@pytest.mark.parametrize("norm", NORMS)
def test_every_backend_gives_the_same_numbers(norm: str, backend: backends.Backend) -> None:
    net = normalised(norm, "gelu")
    want = ask(net).to_dict()
    with backends.use(backend.name):
        assert ask(net).to_dict() == want
