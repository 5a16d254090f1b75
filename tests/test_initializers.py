"""The tables of initialisers: variances, bounds, reproducibility."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastneuron.errors import UnknownNameError
from fastneuron.initializers import BIAS_INITIALIZERS, WEIGHT_INITIALIZERS

FAN_IN, FAN_OUT = 300, 500

VARIANCES = {
    "glorot_uniform": 2 / (FAN_IN + FAN_OUT),
    "glorot_normal": 2 / (FAN_IN + FAN_OUT),
    "he_uniform": 2 / FAN_IN,
    "he_normal": 2 / FAN_IN,
    "lecun_uniform": 1 / FAN_IN,
    "lecun_normal": 1 / FAN_IN,
    "uniform": 1 / (3 * FAN_IN),
    "normal": 0.01**2,
    "zeros": 0,
}
LIMITS = {
    "glorot_uniform": math.sqrt(6 / (FAN_IN + FAN_OUT)),
    "he_uniform": math.sqrt(6 / FAN_IN),
    "lecun_uniform": math.sqrt(3 / FAN_IN),
    "uniform": 1 / math.sqrt(FAN_IN),
}


def draw(table, name, seed=0, activation="relu", fan_in=FAN_IN, fan_out=FAN_OUT):
    return table[name].draw(np.random.default_rng(seed), fan_in, fan_out, activation)


def test_the_tables_are_complete():
    assert list(WEIGHT_INITIALIZERS) == ["auto", *VARIANCES]
    assert list(BIAS_INITIALIZERS) == ["zeros", "uniform", "normal", "class_prior"]
    for table in (WEIGHT_INITIALIZERS, BIAS_INITIALIZERS):
        for name, entry in table.items():
            assert entry.name == name
            assert entry.formula
            assert entry.source


@pytest.mark.parametrize("table", [WEIGHT_INITIALIZERS, BIAS_INITIALIZERS])
def test_an_unknown_name_lists_what_exists(table):
    with pytest.raises(UnknownNameError, match=", ".join(table)):
        table["orthogonal"]


@pytest.mark.parametrize("name", VARIANCES)
def test_weights_have_their_variance(name):
    w = draw(WEIGHT_INITIALIZERS, name)
    assert (w.dtype, w.shape) == (np.float64, (FAN_IN, FAN_OUT))
    # 150,000 draws: the variance is known to 0.4 %, the mean to 0.3 % of a standard deviation.
    np.testing.assert_allclose(w.var(), VARIANCES[name], rtol=0.03)
    assert abs(w.mean()) <= 0.02 * math.sqrt(VARIANCES[name])


@pytest.mark.parametrize("name", LIMITS)
def test_uniform_weights_fill_their_interval(name):
    got = np.abs(draw(WEIGHT_INITIALIZERS, name)).max()
    assert 0.999 * LIMITS[name] < got <= LIMITS[name]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("relu", "he_uniform"),
        ("leaky_relu", "he_uniform"),
        ("elu", "he_uniform"),
        ("gelu", "he_uniform"),
        ("silu", "he_uniform"),
        ("softplus", "he_uniform"),
        ("identity", "glorot_uniform"),
        ("sigmoid", "glorot_uniform"),
        ("tanh", "glorot_uniform"),
    ],
)
def test_auto_follows_the_activation(activation, name):
    want = draw(WEIGHT_INITIALIZERS, name)
    got = draw(WEIGHT_INITIALIZERS, "auto", activation=activation)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", BIAS_INITIALIZERS)
def test_biases(name):
    b = draw(BIAS_INITIALIZERS, name, fan_in=25, fan_out=20_000)
    assert (b.dtype, b.shape) == (np.float64, (20_000,))
    want = {"uniform": 0.2**2 / 3, "normal": 0.01**2}.get(name, 0)
    np.testing.assert_allclose(b.var(), want, rtol=0.05)
    if name == "uniform":
        assert np.abs(b).max() <= 0.2


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in (WEIGHT_INITIALIZERS, BIAS_INITIALIZERS) for name in table],
)
def test_draws_are_reproducible(table, name):
    first, again, other = (draw(table, name, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first == other).all() == (name in ("zeros", "class_prior"))


def test_zeros_take_nothing_from_the_generator():
    rng = np.random.default_rng(0)
    WEIGHT_INITIALIZERS["zeros"].draw(rng, 3, 4, "tanh")
    BIAS_INITIALIZERS["zeros"].draw(rng, 3, 4, "tanh")
    assert rng.random() == np.random.default_rng(0).random()
