"""A diagnosis as text, JSON and figure; what cannot be diagnosed."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.errors import DataError, SpecError
from fastneuron.testing.patients import X, Y, ask, normalised, small


def sick() -> fn.Sequential:
    net = fn.mlp([8, 512, 16, 3], activation="relu", seed=0)
    net.layers[0].bias = np.where(np.arange(512) % 3, 0.0, -1e5)
    net.layers[1].weight = np.zeros((512, 16))
    return net


def test_the_table_fits_80_columns_and_says_what_to_do() -> None:
    text = str(ask(sick()))
    tiny = ask(fn.mlp([8, 32, 3], activation="leaky_relu", seed=0), X * 1e-30)
    deep = ask(normalised("batch_norm", "leaky_relu", sizes=(8, *[16] * 8, 3)), X * 1e-30)
    for lines in (text, str(tiny), str(deep)):
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
    *panels, bar, key = figure.axes
    assert len(panels) == 6
    assert [axes.get_xlabel() for axes in panels] == [
        *[""] * 4,
        "neuron (index)",
        "z, the input of f (no unit)",
    ]
    assert all(axes.get_ylabel() == "share of z (%)" for axes in panels[1::2])
    assert "(%)" in bar.get_xlabel()
    assert [text.get_text() for text in key.get_legend().get_texts()] == ["f'(z) small", "learns"]
    shares = panels[0].images[0].get_array()
    assert shares.shape == (1, 512)
    assert shares[0, ::3].tolist() == [100.0] * 171
    assert sum(patch.get_height() for patch in panels[1].patches) == pytest.approx(100)
    # The widest bin, from -2500 to 3, is flat in half: both are drawn, one upon the other.
    far, *near = sorted(panels[1].patches, key=lambda patch: (patch.get_x(), patch.get_y()))
    assert [patch.get_x() for patch in near] == [near[0].get_x()] * 2
    assert near[1].get_y() == pytest.approx(near[0].get_height())
    assert near[0].get_height() == pytest.approx(100 - far.get_height() - near[1].get_height())
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("net", "rows", "panels"),
    [
        (fn.Sequential(fn.Dense(8, 1, "sigmoid"), seed=0), X, 1),
        (fn.Sequential(fn.Dense(8, 1, "sigmoid"), seed=0), X[:1], 1),
        (normalised("batch_norm", dropout=0.5), X, 3),
        (normalised("layer_norm", activation_first=True), X, 5),
    ],
)
def test_layers_that_have_activations_are_drawn(net: fn.Sequential, rows: Any, panels: int) -> None:
    pytest.importorskip("matplotlib")
    figure = net.diagnose(rows).figure()
    assert len(figure.axes) == 2 * panels + 2
    image = io.BytesIO()
    figure.savefig(image)
    assert image.getvalue().startswith(b"\x89PNG")


def test_a_figure_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastneuron\[plots\]"):
        ask(small()).figure()


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
