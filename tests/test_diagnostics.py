"""`diagnose`: closed forms, planted illnesses, healthy networks, text, JSON, figure, recorder."""

from __future__ import annotations

import io
import json
import pickle
import sys
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, diagnostics
from fastneuron.callbacks import chunk_end_of, epoch_end_of
from fastneuron.datasets import load_digits
from fastneuron.errors import DataError, SpecError
from fastneuron.findings import Finding

SEEDS = range(20)
RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 8))
Y = RNG.integers(0, 3, 300)
DIGITS, DIGIT = load_digits()
DIGITS = DIGITS / 16


def small(activation: str = "relu", seed: int = 0, **options: Any) -> fn.Sequential:
    return fn.mlp([8, 32, 16, 3], activation=activation, seed=seed, **options)


def ask(net: fn.Sequential, x: Any = X, y: Any = Y) -> fn.Diagnosis:
    return net.diagnose(x, y, loss="cross_entropy")


def found(diagnosis: fn.Diagnosis, kind: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.kind == kind]


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


# --- Illnesses ---------------------------------------------------------------------------------


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


# --- Text, JSON, figure ------------------------------------------------------------------------


def sick() -> fn.Sequential:
    net = fn.mlp([8, 512, 16, 3], activation="relu", seed=0)
    net.layers[0].bias = np.where(np.arange(512) % 3, 0.0, -1e5)
    net.layers[1].weight = np.zeros((512, 16))
    return net


def test_the_table_fits_80_columns_and_says_what_to_do() -> None:
    text = str(ask(sick()))
    tiny = ask(fn.mlp([8, 32, 3], activation="leaky_relu", seed=0), X * 1e-30)
    for lines in (text, str(tiny)):
        assert max(map(len, lines.splitlines())) <= 80
    assert "Layer 0, dead" in text
    assert " more." in text
    assert text.count("To do:") == len(ask(sick()).findings)
    assert repr(ask(sick())) == text
    assert "No findings" in str(ask(small()))


def test_the_dictionary_is_json() -> None:
    got = json.loads(json.dumps(ask(sick()).to_dict(), allow_nan=False))
    assert got["rows"] == got["rows_given"] == 300
    assert got["loss"] == "cross_entropy"
    assert [len(layer["dead"]) for layer in got["layers"]] == [512, 16, 3]
    assert {"kind", "layer", "neurons", "what", "advice"} == set(got["findings"][0])


def test_the_figure_has_labels_and_leaves_no_settings() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    figure = ask(sick()).figure()
    assert dict(matplotlib.rcParams) == before
    *panels, bar = figure.axes
    assert len(panels) == 6
    assert [panels[i].get_xlabel() for i in (4, 5)] == ["neuron", "z (input of f)"]
    assert all(axes.get_ylabel() == "share of z [%]" for axes in panels[1::2])
    assert "[%]" in bar.get_xlabel()
    shares = panels[0].images[0].get_array()
    assert shares.shape == (1, 512)
    assert shares[0, ::3].tolist() == [100.0] * 171
    heights = [patch.get_height() for patch in panels[1].patches]
    assert sum(heights) == pytest.approx(100)
    figure.savefig(io.BytesIO())


def test_a_figure_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastneuron\[plots\]"):
        ask(small()).figure()


# --- Recorder ----------------------------------------------------------------------------------


def train(net: fn.Sequential, recorder: fn.HealthRecorder | None, **options: Any) -> fn.History:
    callbacks = [] if recorder is None else [recorder]
    return net.fit(X, Y, **{"loss": "cross_entropy", "callbacks": callbacks, "epochs": 6} | options)


def test_the_recorder_sees_each_epoch_and_changes_no_bit(backend: backends.Backend) -> None:
    plain, watched = small(), small()
    recorder = fn.HealthRecorder(X, Y, interval=1, rows=300)
    train(plain, None, backend=backend.name)
    train(watched, recorder, backend=backend.name)
    assert [r.epoch for r in recorder.records] == list(range(6))
    assert [r.step for r in recorder.records] == list(range(10, 70, 10))
    assert recorder.records[-1].diagnosis.to_dict() == watched.diagnose(X, Y).to_dict()
    drifts = [np.abs(r.diagnosis.layers[0].bias_drift).mean() for r in recorder.records]
    assert drifts == sorted(drifts)
    for one, other in zip(plain.layers, watched.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)


def test_by_default_the_recorder_leaves_epochs_together(backend: backends.Backend) -> None:
    recorder = fn.HealthRecorder(X)
    assert epoch_end_of(recorder) is None
    assert chunk_end_of(recorder) is not None
    each = fn.HealthRecorder(X, interval=2)
    assert epoch_end_of(each) is not None
    assert chunk_end_of(each) is None
    plain, watched = small(), small()
    train(plain, None, backend=backend.name)
    train(watched, recorder, backend=backend.name)
    assert 1 <= recorder.records[0].step <= 60
    assert recorder.records[0].diagnosis.mean_loss is None
    np.testing.assert_array_equal(plain.layers[0].weight, watched.layers[0].weight)


def test_the_recorder_waits_as_long_as_its_share_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 1.0  # a record takes one second by this clock, a chunk another
        return clock[0]

    monkeypatch.setattr(diagnostics.time, "perf_counter", now)
    monkeypatch.setattr(diagnostics, "_diagnosed", lambda *_: None)
    recorder = fn.HealthRecorder(X, share=0.125)
    state = diagnostics.FitState(small(), None, 1)
    taken = []
    for _ in range(40):
        chunk_end_of(recorder)(state)
        taken.append(len(recorder.records))
    # At second 1, ready at 2, due from 10 on, ready at 11, due from 19 on ...
    assert np.flatnonzero(np.diff([0, *taken])).tolist() == [0, 8, 16, 24, 32]
    monkeypatch.setattr(diagnostics, "_KEPT", 2)
    rare = fn.HealthRecorder(X, share=0.125)
    for step in range(50):
        state.step = step
        chunk_end_of(rare)(state)
    # Taken at 0, 8 and 16: one too many, 8 goes and the wait is doubled; 32: 16 goes, 64 is next.
    assert [r.step for r in rare.records] == [0, 32]


def test_many_records_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "_KEPT", 4)
    recorder = fn.HealthRecorder(X, interval=1)
    train(small(), recorder, epochs=12, backend="numpy")
    assert [r.epoch for r in recorder.records] == [0, 4, 8]


def test_interval_counts_epochs_over_fits() -> None:
    recorder = fn.HealthRecorder(X, Y, interval=3)
    net = small()
    for _ in range(2):
        train(net, recorder, epochs=5, backend="numpy")
    assert [r.epoch for r in recorder.records] == [0, 3, 1, 4]


def test_the_record_as_text_json_and_figure() -> None:
    recorder = fn.HealthRecorder(X, Y, interval=1)
    assert "no record" in str(recorder)
    with pytest.raises(SpecError, match="no record yet"):
        recorder.figure()
    train(small(), recorder, epochs=12, backend="numpy")
    text = str(recorder)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[3].split()[0] == "10"
    got = json.loads(json.dumps(recorder.to_dict(), allow_nan=False))
    assert len(got["records"]) == 12
    assert set(got["records"][0]) == {"epoch", "step", "seconds", "diagnosis"}
    pytest.importorskip("matplotlib")
    *panels, _ = recorder.figure().axes
    assert panels[0].images[0].get_array().shape == (12, 32)
    assert panels[0].get_ylabel() == "step"
    assert panels[0].get_yticklabels()[-1].get_text() == "120"


# --- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[:, :5],), DataError, r"\(300, 5\).*\(300, 8\)"),
        ((X[0],), DataError, "rows"),
        ((X, Y[:7], "cross_entropy"), DataError, "300 rows"),
        ((X, Y + 1, "cross_entropy"), DataError, "no class"),
        ((X * np.nan,), DataError, "NaN"),
        ((X, Y), SpecError, "no loss is known"),
        ((X, None, "mse"), SpecError, "a loss needs targets"),
        ((X, Y, "msee"), fn.UnknownNameError, "msee"),
    ],
)
def test_what_cannot_be_diagnosed(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small().diagnose(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval"),
        ({"interval": 1.5}, "interval"),
        ({"share": 0}, "share"),
        ({"share": 1.5}, "share"),
        ({"rows": 0}, "rows"),
    ],
)
def test_what_a_recorder_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"HealthRecorder: {message}"):
        fn.HealthRecorder(X, **options)
