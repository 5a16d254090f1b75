"""Planted illnesses are found, each for what it is; healthy networks have none."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.datasets import load_digits
from fastneuron.testing.patients import NORMS, SEEDS, X, Y, ask, found, ill_of_all, small

DIGITS, DIGIT = load_digits()
DIGITS = DIGITS / 16


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("norm", [None, *NORMS])
def test_each_illness_of_one_network_is_found(norm: str | None, seed: int) -> None:
    net, where = ill_of_all(seed, norm)
    findings = ask(net).findings
    for kind, layer in where.items():
        (finding,) = (f for f in findings if (f.kind, f.layer) == (kind, layer))
        if kind == "twins":
            assert finding.neurons == (*range(12), *range(20, 32))
        if kind == "saturated":
            assert finding.neurons == tuple(range(32))
        if kind == "dead":
            assert set(finding.neurons) >= set(range(1, 32, 2))
    assert {(f.kind, f.layer) for f in findings if f.kind in where} == set(where.items())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_dead_units_are_found(activation: str, seed: int) -> None:
    net = small(activation, seed)
    net.layers[0].bias = np.where(np.arange(32) % 2, -50.0, 0.0)
    (finding,) = found(ask(net), "dead")
    assert finding.layer == 0
    assert set(finding.neurons) >= set(range(1, 32, 2))
    assert "the bias, which outweighs x W" in finding.what
    assert "leaky_relu" in finding.advice


def test_a_unit_that_is_active_on_one_row_is_alive() -> None:
    net = fn.mlp([1, 2, 1], seed=0)
    net.layers[0].weight, net.layers[0].bias = [[1.0, 1.0]], [-298.5, -299.0]
    layer = net.diagnose(np.arange(300.0)[:, None]).layers[0]
    assert layer.dead.tolist() == [False, True]
    assert layer.flat_share.tolist() == [299 / 300, 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_saturated_units_are_found(activation: str, seed: int) -> None:
    by_bias, by_weights = small(activation, seed), small(activation, seed)
    by_bias.layers[0].bias = np.full(32, -30.0)
    by_weights.layers[0].weight = by_weights.layers[0].weight * 1e4
    for net, caused in ((by_bias, True), (by_weights, False)):
        (finding,) = found(ask(net), "saturated")
        assert finding.layer == 0
        assert len(finding.neurons) == 32
        assert ("the bias, which outweighs x W" in finding.what) == caused


@pytest.mark.parametrize("seed", SEEDS)
def test_zero_weights_are_found(seed: int) -> None:
    net = small("tanh", seed, weight_init="zeros")
    assert [f.layer for f in found(ask(net), "zero_weights")] == [0, 1]
    assert found(ask(net), "twins") == []  # said once
    linear = fn.mlp([8, 3], weight_init="zeros", seed=seed)
    assert ask(linear).findings == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", SEEDS)
def test_twins_are_found(seed: int, dtype: str) -> None:
    net = small("tanh", seed, dtype=dtype)
    weight = net.layers[0].weight
    weight[:, [7, 30]] = weight[:, [4]]
    weight[:, 9] = weight[:, 8] * (1 + 1e-6)
    net.layers[0].weight = weight
    diagnosis = ask(net)
    (finding,) = found(diagnosis, "twins")
    assert finding.neurons == (4, 7, 8, 9, 30)
    assert diagnosis.layers[0].twin[[4, 7, 8, 9, 30]].tolist() == [4, 4, 8, 8, 4]
    assert "2 groups" in finding.what


def test_equal_weights_with_other_biases_are_no_twins() -> None:
    net = small("tanh")
    weight = net.layers[0].weight
    weight[:, [7, 30]] = weight[:, [4]]
    net.layers[0].weight, net.layers[0].bias = weight, np.where(np.arange(32) == 7, 1.0, 0.0)
    assert [f.neurons for f in found(ask(net), "twins")] == [(4, 30)]


def test_twins_of_a_linear_layer_are_found() -> None:
    net = fn.Sequential(fn.Dense(8, 16), fn.Dense(16, 3), seed=0)
    weight = net.layers[0].weight
    weight[:, 5] = weight[:, 11]
    net.layers[0].weight = weight
    assert [(f.layer, f.neurons) for f in found(ask(net), "twins")] == [(0, (5, 11))]


@pytest.mark.parametrize("bias", [-1e5, 1e3])
def test_equal_biases_however_large_make_no_twins(bias: float) -> None:
    net = small("relu")
    net.layers[0].bias = np.full(32, bias)
    assert found(ask(net), "twins") == []


def test_twins_that_training_keeps_are_found(backend: backends.Backend) -> None:
    """Neurons of equal weights, in and out, get equal gradients: symmetry is never broken."""
    net = small("tanh", dtype="float64")
    first, second = net.layers[0].weight, net.layers[1].weight
    first[:, 5], second[5] = first[:, 20], second[20]
    net.layers[0].weight, net.layers[1].weight = first, second
    net.fit(X, Y, loss="cross_entropy", optimizer=fn.SGD(0.05), epochs=5, backend=backend.name)
    assert [f.neurons for f in found(ask(net), "twins")] == [(5, 20)]


@pytest.mark.parametrize("seed", SEEDS)
def test_silence_on_zero_input_is_found(seed: int) -> None:
    x = X.copy()
    x[::5] = 0
    net = small("relu", seed)
    assert [f.layer for f in found(ask(net, x), "silent_on_zero")] == [0, 1]
    net.layers[0].bias = np.full(32, 0.1)
    assert found(ask(net, x), "silent_on_zero") == []
    (first, *_) = found(ask(small("tanh", seed, bias=False), x), "silent_on_zero")
    assert "there is no bias" in first.what
    assert found(ask(small("tanh", seed), x), "silent_on_zero") == []  # the biases still learn
    assert found(ask(small("sigmoid", seed, bias=False), x), "silent_on_zero") == []  # f(0) = 1/2


@pytest.mark.parametrize("seed", SEEDS)
def test_biases_that_outweigh_the_input_are_found(seed: int) -> None:
    net = small("relu", seed)
    net.layers[0].bias = np.full(32, 300.0)
    (finding,) = found(ask(net), "bias_dominates")
    assert finding.layer == 0
    assert len(finding.neurons) == 32
    assert "moved by 3e+02" in finding.what


@pytest.mark.parametrize(
    ("factor", "kind"), [(1e3, "large_inputs"), (1e-4, "small_inputs"), (1, None)]
)
def test_badly_scaled_inputs_are_found(factor: float, kind: str | None) -> None:
    got = {f.kind for f in ask(small("tanh"), X * factor).findings if f.layer == 0}
    assert got & {"large_inputs", "small_inputs"} == ({kind} if kind else set())


def test_an_error_that_vanishes_on_its_way_is_found() -> None:
    net = fn.mlp([8, *[16] * 12, 3], activation="sigmoid", seed=0)
    layers = [f.layer for f in found(ask(net), "vanishing_delta")]
    assert layers
    assert layers[0] == 0
    blocked = small("sigmoid")
    blocked.layers[1].bias = np.full(16, 40.0)
    first, second = found(ask(blocked), "vanishing_delta")
    assert "little error arrives" in first.what
    assert "lets none through" in second.what


def test_overflow_is_found_and_said_once() -> None:
    net = small("relu")
    net.layers[0].weight = np.full((8, 32), 1e30)
    net.layers[1].weight = np.full((32, 16), 1e30)
    diagnosis = ask(net)
    assert [f.layer for f in found(diagnosis, "overflow")] == [1]
    assert max(f.layer for f in diagnosis.findings) == 1
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert str(diagnosis)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("sizes", [[64, 128, 10], [64, 32, 32, 10]])
def test_a_healthy_network_has_no_findings(sizes: list[int], activation: str, seed: int) -> None:
    net = fn.mlp(sizes, activation=activation, seed=seed)
    fresh = net.diagnose(DIGITS, DIGIT, loss="cross_entropy")
    assert fresh.findings == [], fresh
    net.fit(DIGITS, DIGIT, loss="cross_entropy", epochs=5, backend="numpy", batch_size=32)
    trained = net.diagnose(DIGITS, DIGIT)
    assert trained.findings == [], trained
    assert trained.mean_loss < fresh.mean_loss


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("width", [64, 512])
def test_neurons_of_one_input_are_no_twins_by_chance(width: int, activation: str) -> None:
    for seed in SEEDS:
        net = fn.mlp([1, width, 1], activation=activation, seed=seed)
        assert net.diagnose(X[:, :1]).findings == []
