"""The table of activations: accuracy against long double, derivatives, limits."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS, LEAKY_SLOPE, erfc
from fastneuron.errors import UnknownNameError

NAMES = list(ACTIVATIONS)
DTYPES = [np.float32, np.float64]
# Long double has 63 bits after the point on x86; where it is only a double it proves nothing.
needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double here"
)


def long_erfc(x):
    """Erfc in long double: the power series of erf below 2, the continued fraction above."""
    x = np.asarray(x, np.longdouble)
    size = np.abs(x)
    root_pi = np.sqrt(np.arccos(np.longdouble(-1)))
    small = np.minimum(size, 2)
    term, total = small.copy(), small.copy()
    for k in range(1, 80):
        term = term * (2 * small**2) / (2 * k + 1)
        total += term
    series = 1 - 2 / root_pi * np.exp(-(small**2)) * total
    large = np.maximum(size, 2)
    fraction = large.copy()
    for k in range(400, 0, -1):
        fraction = large + np.longdouble(k) / 2 / fraction
    tail = np.exp(-(large**2)) / root_pi / fraction
    upper = np.where(size < 2, series, tail)
    return np.where(x < 0, 2 - upper, upper)


def long_sigmoid(z):
    return 1 / (1 + np.exp(-z))


LONG = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, z / 100),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "gelu": lambda z: z * long_erfc(-z / np.sqrt(np.longdouble(2))) / 2,
    "silu": lambda z: z * long_sigmoid(z),
    "softplus": lambda z: np.where(
        z > 0, z + np.log1p(np.exp(-np.abs(z))), np.log1p(np.exp(np.minimum(z, 0)))
    ),
    "sigmoid": long_sigmoid,
    "tanh": np.tanh,
}
LONG_DF = {
    "identity": lambda z: np.ones_like(z),
    "relu": lambda z: np.where(z > 0, 1, 0),
    "leaky_relu": lambda z: np.where(z > 0, 1, np.longdouble(1) / 100),
    "elu": lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
    "gelu": lambda z: (
        long_erfc(-z / np.sqrt(np.longdouble(2))) / 2
        + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.arccos(np.longdouble(-1)))
    ),
    "silu": lambda z: long_sigmoid(z) * (1 + z * long_sigmoid(-z)),
    "softplus": long_sigmoid,
    "sigmoid": lambda z: long_sigmoid(z) * long_sigmoid(-z),
    "tanh": lambda z: 1 / np.cosh(z) ** 2,
}


def samples(dtype, largest):
    """Both signs, every magnitude from the smallest normal number up to `largest`."""
    rng = np.random.default_rng(7)
    low = np.log2(float(np.finfo(dtype).smallest_normal))
    exponents = np.concatenate([rng.uniform(low, 0, 500), rng.uniform(-8, np.log2(largest), 4000)])
    magnitude = np.exp2(exponents).astype(dtype)
    return np.concatenate([magnitude, -magnitude, np.zeros(1, dtype)])


def test_the_table_is_complete():
    assert NAMES == [
        "identity", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh",
    ]  # fmt: skip
    assert [entry.code for entry in ACTIVATIONS.values()] == list(range(9))
    for name, entry in ACTIVATIONS.items():
        assert entry.name == name
        assert entry.formula
        assert entry.derivative
        assert entry.source
        assert entry.saves == ("z" if name in ("gelu", "silu") else "a")


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(UnknownNameError, match=r"unknown activation 'rellu'.*did you mean 'relu'"):
        ACTIVATIONS["rellu"]
    with pytest.raises(UnknownNameError, match=", ".join(NAMES)):
        ACTIVATIONS["swish"]


@needs_long_double
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_f_is_accurate_to_its_ulps(name, dtype):
    entry = ACTIVATIONS[name]
    z = samples(dtype, 700 if dtype is np.float64 else 80)
    want = LONG[name](z.astype(np.longdouble))
    got = entry.f(z)
    assert got.dtype == dtype
    ulps = entry.ulp
    if name == "gelu" and dtype is np.float64:
        ulps = ulps + 2 * np.minimum(z, 0) ** 2
    spacing = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
    bound = ulps * spacing + np.finfo(dtype).smallest_normal
    excess = np.abs(got - want) / np.maximum(bound, np.finfo(np.longdouble).tiny)
    worst = np.argmax(excess)
    assert excess[worst] <= 1, f"z={z[worst]!r}: want {want[worst]!r}, got {got[worst]!r}"


@needs_long_double
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_df_is_accurate(name, dtype):
    entry = ACTIVATIONS[name]
    z = samples(dtype, 12)
    want = LONG_DF[name](z.astype(np.longdouble))
    saved = z if entry.saves == "z" else entry.f(z)
    got = entry.df(saved)
    assert got.dtype == dtype
    # Absolute, in units of eps: what an error of half an ulp in a saved output brings about.
    np.testing.assert_allclose(
        got.astype(np.longdouble), want, rtol=0, atol=4 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("name", NAMES)
def test_df_is_the_slope_of_f(name):
    entry = ACTIVATIONS[name]
    z = np.linspace(-6, 6, 60)  # no point within 0.1 of the kink at 0
    h = 1e-5
    want = (entry.f(z + h) - entry.f(z - h)) / (2 * h)
    got = entry.df(z if entry.saves == "z" else entry.f(z))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_lipschitz_bounds_df_tightly(name):
    entry = ACTIVATIONS[name]
    z = np.linspace(-10, 10, 20001)
    steepest = np.abs(entry.df(z if entry.saves == "z" else entry.f(z))).max()
    assert 0.999 * entry.lipschitz < steepest <= entry.lipschitz


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_limits_and_nan(name, dtype):
    entry = ACTIVATIONS[name]
    largest = np.finfo(dtype).max
    z = np.array([-np.inf, -largest, -1e30, 1e30, largest, np.inf, np.nan], dtype)
    below = {"identity": z[:3], "leaky_relu": dtype(LEAKY_SLOPE) * z[:3], "elu": -1, "tanh": -1}
    above = {"sigmoid": 1, "tanh": 1}
    want = z.copy()
    want[:3] = below.get(name, 0)
    want[3:6] = above.get(name, z[3:6])
    got = entry.f(z)
    np.testing.assert_array_equal(got, want)
    slope = entry.df(z if entry.saves == "z" else got)
    lower = {"identity": 1, "leaky_relu": dtype(LEAKY_SLOPE)}
    np.testing.assert_array_equal(slope[:3], np.full(3, lower.get(name, 0), dtype))
    np.testing.assert_array_equal(slope[3:6], np.full(3, 0 if name in above else 1, dtype))


def test_slopes_at_zero():
    zero = np.zeros(1)
    want = {"relu": 0, "leaky_relu": LEAKY_SLOPE, "elu": 1, "gelu": 0.5, "silu": 0.5,
            "softplus": 0.5, "sigmoid": 0.25, "tanh": 1, "identity": 1}  # fmt: skip
    for name, slope in want.items():
        entry = ACTIVATIONS[name]
        got = entry.df(zero if entry.saves == "z" else entry.f(zero))
        np.testing.assert_allclose(got, slope, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_input_are_left_alone(name):
    entry = ACTIVATIONS[name]
    for shape in [(0, 3), (2, 3), ()]:
        z = np.full(shape, -0.5, np.float32)
        got = entry.f(z)
        assert got is not z
        assert not np.shares_memory(got, z) or got.size == 0
        assert got.shape == shape
        assert entry.df(z).shape == shape
        assert (z == np.float32(-0.5)).all()


@needs_long_double
def test_erfc():
    x = np.concatenate([np.linspace(-6, 26, 2000), [0.0, -0.0]])
    np.testing.assert_allclose(erfc(x), long_erfc(x).astype(float), rtol=1e-15)
    np.testing.assert_array_equal(erfc(np.array([-np.inf, np.inf, np.nan])), [2, 0, np.nan])
