"""Illnesses of networks with normalisations, dropout and frozen parts; healthy ones have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.datasets import load_digits
from fastneuron.testing.patients import NORMS, SEEDS, X, Y, ask, found, normalised

each_norm = pytest.mark.parametrize("norm", NORMS)
each_seed = pytest.mark.parametrize("seed", SEEDS)

# --- Healthy networks ---------------------------------------------------------------------------

HEALTHY: dict[str, dict[str, Any]] = {
    "batch": {"norm": "batch_norm"},
    "layer": {"norm": "layer_norm"},
    "batch, dropout": {"norm": "batch_norm", "dropout": 0.3},
    "layer, after the activation": {"norm": "layer_norm", "activation_first": True},
    "batch, after the activation, dropout": {
        "norm": "batch_norm",
        "activation_first": True,
        "dropout": 0.2,
    },
    "batch, first layer frozen": {"norm": "batch_norm", "first": {"trainable": False}},
}


@each_seed
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("form", HEALTHY)
def test_a_healthy_network_has_no_findings(form: str, activation: str, seed: int) -> None:
    pixels, digit = load_digits()
    pixels = pixels / 16
    sizes = (64, 32, 32, 10)
    net = normalised(activation=activation, seed=seed, sizes=sizes, **HEALTHY[form])
    fresh = ask(net, pixels, digit)
    assert fresh.findings == [], fresh
    recorder = fn.HealthRecorder(pixels, digit, interval=1)
    net.fit(
        pixels,
        digit,
        loss="cross_entropy",
        epochs=3,
        backend="numpy",
        batch_size=64,
        callbacks=[recorder],
    )
    assert [record.diagnosis.findings for record in recorder.records] == [[], [], []], recorder
    trained = net.diagnose(pixels, digit)
    assert trained.findings == [], trained
    assert trained.mean_loss < fresh.mean_loss


@each_norm
@pytest.mark.parametrize("scale", [1e-2, 1, 255])
def test_raw_inputs_before_a_normalisation_are_healthy(norm: str, scale: float) -> None:
    pixels, digit = load_digits()  # three pixels are always 0
    net = normalised(norm, sizes=(64, 32, 10), seed=0)
    assert ask(net, pixels * scale, digit).findings == []
    first = fn.Sequential(fn.BatchNorm(64), fn.Dense(out_features=10), seed=0)
    assert ask(first, pixels * scale, digit).findings == []


@pytest.mark.parametrize("width", [16, 256])
@each_norm
def test_normalised_neurons_of_one_input_are_no_twins(norm: str, width: int) -> None:
    for seed in SEEDS:
        net = normalised(norm, seed=seed, sizes=(1, width, 1))
        assert net.diagnose(X[:, :1]).findings == []


# --- Neurons are judged where their activation is -----------------------------------------------


@each_seed
@each_norm
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_dead_units_are_found_at_the_normalisation(norm: str, activation: str, seed: int) -> None:
    net = normalised(norm, activation, seed)
    net.layers[1].bias = np.where(np.arange(32) % 2, -50.0, 0.0)
    (finding,) = found(ask(net), "dead")
    assert finding.layer == 1
    assert finding.neurons == tuple(range(1, 32, 2))
    assert "the bias, which outweighs its normalised inputs" in finding.what
    assert "normalise the inputs" not in finding.advice


@each_seed
@each_norm
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_saturated_units_are_found_at_the_normalisation(
    norm: str, activation: str, seed: int
) -> None:
    net = normalised(norm, activation, seed)
    net.layers[1].weight = np.where(np.arange(32) % 2, 1e3, 1.0)
    (finding,) = found(ask(net), "saturated")
    assert (finding.layer, finding.neurons) == (1, tuple(range(1, 32, 2)))
    assert "normalisation's weights back to about 1" in finding.advice


@each_seed
@each_norm
def test_zero_weights_are_found_before_a_normalisation(norm: str, seed: int) -> None:
    net = normalised(norm, "tanh", seed, first={"weight_init": "zeros"})
    got = ask(net)
    assert [f.layer for f in found(got, "zero_weights")] == [0]
    assert found(got, "twins") == []  # said once
    assert norm == "layer_norm" or found(got, "narrow_inputs") == []


@each_seed
@each_norm
def test_twins_are_found_at_the_normalisation(norm: str, seed: int) -> None:
    net = normalised(norm, "tanh", seed)
    weight = net.layers[0].weight
    weight[:, [7, 30]] = weight[:, [4]]
    weight[:, 9] = weight[:, 8] * (1 + 1e-6)
    net.layers[0].weight = weight
    (finding,) = found(ask(net), "twins")
    assert (finding.layer, finding.neurons) == (1, (4, 7, 8, 9, 30))
    # What comes after may tell them apart.
    net.layers[1].bias = np.where(np.arange(32) == 7, 1.0, 0.0)
    net.layers[1].weight = np.where(np.arange(32) == 9, 1.5, 1.0)
    assert [f.neurons for f in found(ask(net), "twins")] == [(4, 30)]


def test_a_bias_without_effect_tells_no_twins_apart() -> None:
    net = normalised("batch_norm", "tanh", first={"bias": True})
    weight = net.layers[0].weight
    weight[:, 7] = weight[:, 4]
    net.layers[0].weight, net.layers[0].bias = weight, np.arange(32.0)
    assert [f.neurons for f in found(ask(net), "twins")] == [(4, 7)]
    weight[:, 7] *= 2  # computes the same, but learns at another pace
    net.layers[0].weight = weight
    assert found(ask(net), "twins") == []


@each_seed
def test_biases_that_outweigh_normalised_inputs_are_found(seed: int) -> None:
    net = normalised("batch_norm", "relu", seed)
    net.layers[1].bias = np.full(32, 300.0)
    (finding,) = found(ask(net), "bias_dominates")
    assert finding.layer == 1
    assert "its normalised inputs" in finding.what


def test_silence_on_zero_input_with_normalisations() -> None:
    x = X.copy()
    x[::5] = 0
    assert found(ask(normalised("batch_norm"), x), "silent_on_zero") == []  # its mean answers
    assert [f.layer for f in found(ask(normalised("layer_norm"), x), "silent_on_zero")] == [1, 3]
    (first, _) = found(ask(normalised("layer_norm", bias=False), x), "silent_on_zero")
    assert "there is no bias, and its normalised inputs are 0" in first.what


# --- Illnesses of normalisations ----------------------------------------------------------------


@each_seed
def test_a_bias_that_a_batch_normalisation_takes_away_is_found(seed: int) -> None:
    net = normalised("batch_norm", "tanh", seed, first={"bias": True})
    net.layers[0].bias = np.linspace(-3, 3, 32)
    got = ask(net)
    assert [(f.kind, f.layer) for f in got.findings] == [("redundant_bias", 0)]
    gradient = got.layers[0].bias_gradient
    assert gradient is not None
    assert gradient.max() < 1e-5 * got.layers[1].bias_gradient.max()


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch_norm"},  # elided
        {"norm": "layer_norm", "first": {"bias": True}},  # tells the features of a row apart
        {
            "norm": "batch_norm",
            "first": {"bias": True},
            "trainable": False,
        },  # means are learnt ones
        {"norm": "batch_norm", "first": {"bias": True, "trainable": "weight"}},  # frozen
    ],
)
def test_other_biases_are_no_finding(options: dict[str, Any]) -> None:
    assert ask(normalised(activation="tanh", **options)).findings == []


@each_seed
def test_features_that_hardly_vary_are_found(seed: int) -> None:
    net = normalised("batch_norm", "tanh", seed)
    x = np.tile(X[:1], (300, 1)) * (1 + 1e-5 * X)
    (finding, *_) = found(ask(net, x), "narrow_inputs")
    assert (finding.layer, len(finding.neurons)) == (1, 32)
    raw = fn.Sequential(fn.BatchNorm(8), fn.Dense(out_features=3), seed=seed)
    x = X * np.array([1, 1, 0, 0, 0, 0, 0, 1])
    (finding,) = ask(raw, x).findings
    assert (finding.kind, finding.neurons) == ("narrow_inputs", (2, 3, 4, 5, 6))


def test_what_dead_neurons_feed_is_said_once() -> None:
    net = normalised("batch_norm", activation_first=True)
    net.layers[0].bias = np.full(32, -50.0)
    kinds = [(f.kind, f.layer) for f in ask(net).findings]
    assert ("dead", 0) in kinds
    assert ("narrow_inputs", 1) not in kinds


def test_rows_that_a_layer_normalisation_leaves_nothing_of_are_found() -> None:
    net = fn.Sequential(fn.Dense(8, 1), fn.LayerNorm(), fn.Dense(out_features=3), seed=0)
    (finding, *_) = ask(net).findings
    assert (finding.kind, finding.layer) == ("narrow_inputs", 1)
    assert finding.what.startswith("100 % of the rows")
    assert "several features" in finding.advice
    assert found(ask(normalised("layer_norm"), X * 1e-4), "narrow_inputs") != []


@each_seed
@each_norm
def test_features_that_are_switched_off_are_found(norm: str, seed: int) -> None:
    net = normalised(norm, "tanh", seed)
    net.layers[1].weight = np.where(np.arange(32) < 3, 0.0, 1.0)
    assert found(ask(net), "switched_off") == []  # the gradient brings them back
    weight = net.layers[2].weight
    weight[:3] = 0
    net.layers[2].weight = weight
    (finding,) = found(ask(net), "switched_off")
    assert (finding.layer, finding.neurons) == (1, (0, 1, 2))
    assert found(net.diagnose(X), "switched_off") == []  # without targets nobody knows


@each_seed
@pytest.mark.parametrize("cause", ["momentum", "other rows"])
def test_running_statistics_far_from_the_rows_are_found(cause: str, seed: int) -> None:
    momentum = 0.0 if cause == "momentum" else 0.1
    net = normalised("batch_norm", "tanh", seed, momentum=momentum)
    net.fit(5 + 3 * X, Y, loss="cross_entropy", epochs=10, backend="numpy", batch_size=32)
    same, other = net.diagnose(5 + 3 * X), net.diagnose(20 * X)
    assert [f.layer for f in found(same, "unlike_statistics")] == ([1] if momentum == 0 else [])
    assert found(other, "unlike_statistics")[0].layer == 1
    assert {f.kind for f in same.findings} <= {"unlike_statistics"}


def test_a_frozen_normalisation_may_have_statistics_of_other_rows() -> None:
    net = normalised("batch_norm", "tanh", trainable=False)
    net.fit(X, Y, loss="cross_entropy", epochs=10, backend="numpy")
    net.layers[1].running_mean = np.full(32, 50.0)
    got = net.diagnose(X, Y)
    assert not got.layers[1].frozen  # the dense layer that feeds it is trained
    assert got.layers[1].mean_shift is got.layers[1].narrow is None
    assert found(got, "unlike_statistics") == found(got, "narrow_inputs") == []


def test_a_variance_that_a_dropout_widened_is_no_finding() -> None:
    """Dropping numbers whose mean is far from 0 adds to their variance; predictions lack it."""
    net = fn.Sequential(
        fn.Dropout(0.5, features=8), fn.Dense(8, 16), fn.BatchNorm(), fn.Dense(16, 3), seed=0
    )
    x = 5 + 0.5 * X
    net.fit(x, Y, loss="cross_entropy", epochs=10, backend="numpy", batch_size=32)
    got = net.diagnose(x, Y)
    assert got.layers[1].variance_ratio.max() < 0.25
    assert found(got, "unlike_statistics") == []


# --- What is frozen -----------------------------------------------------------------------------


@each_norm
def test_frozen_parts_have_no_findings(norm: str) -> None:
    ill = normalised(norm, "sigmoid", first={"bias": True, "trainable": False}, trainable=False)
    weight = ill.layers[0].weight
    weight[:, 1:8] = weight[:, :1]
    ill.layers[0].weight = weight
    ill.layers[1].bias = np.full(32, -60.0)
    ill.layers[3].bias = np.full(16, -60.0)
    got = ask(ill)
    assert got.layers[1].frozen
    assert not got.layers[3].frozen  # the dense layer that feeds it is trained
    assert {f.layer for f in got.findings} == {3}


def test_a_frozen_bias_is_no_finding() -> None:
    net = fn.Sequential(fn.Dense(8, 32, "relu", trainable="weight"), fn.Dense(out_features=3))
    net.layers[0].bias = np.full(32, 300.0)
    assert found(ask(net), "bias_dominates") == []


@each_norm
def test_overflow_in_a_normalisation_is_found(norm: str) -> None:
    net = normalised(norm)
    net.layers[0].weight = np.full((8, 32), 1e30)
    got = ask(net)
    assert [(f.kind, f.layer) for f in got.findings] == [("overflow", 1)]
    assert str(got)
