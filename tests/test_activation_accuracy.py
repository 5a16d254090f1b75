"""The published table of rounding errors, docs/accuracy.md, against the compiled kernels.

``python tests/test_activation_accuracy.py`` measures anew and prints the table's rows, which are
the Numba kernels'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.backends import Backend

DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy.md"
DTYPES = ["float32", "float64"]
# Long double has 63 bits after the point on x86; where it is only a double it proves nothing.
PROVES = {"float32": True, "float64": np.finfo(np.longdouble).nmant >= 63}
WIDER = {"float32": np.float64, "float64": np.longdouble}


@cache
def numba_calls() -> dict[str, Callable[[Any, Any], None]]:
    """What the activations are made of, over vectors."""
    import numba

    from fastneuron.kernels.numba_cpu import exponentials

    def over_vectors(function: Any) -> Any:
        @numba.njit(error_model="numpy")
        def call(x, y):  # type: ignore[no-untyped-def]
            for i in range(x.shape[0]):
                y[i] = function(x[i])

        return call

    of = {"log1p": exponentials.log1p_unit}
    return {name: over_vectors(of.get(name) or getattr(exponentials, name)) for name in FUNCTIONS}


def upper_tail(t: Any) -> Any:
    """The normal distribution's Q(t) for 0 <= t <= 60, in t's dtype."""
    if t.dtype == np.float64:
        half = map(math.erfc, (t * math.sqrt(0.5)).tolist())
        return 0.5 * np.fromiter(half, np.float64, t.size)
    # Long double: Q = phi M; M by its power series (Q(0) - Q = phi sum t^(2k+1) / (2k+1)!!) below
    # 2.5, by its continued fraction above. t^2 in two parts, since phi magnifies its error t^2 / 2
    # times.
    high = t.astype(np.float32).astype(t.dtype)
    bell = np.exp(-(high**2) / 2) * np.exp(-(t - high) * (t + high) / 2)
    phi = bell / np.sqrt(2 * np.arccos(np.longdouble(-1)))
    small = np.minimum(t, 2.5)
    term, total = small.copy(), small.copy()
    for k in range(1, 60):
        term = term * small**2 / (2 * k + 1)
        total += term
    large = np.maximum(t, 2.5)
    fraction = large.copy()
    for k in range(300, 0, -1):
        fraction = large + k / fraction
    return np.where(t < 2.5, 0.5 - phi * total, phi / fraction)


def wide_gelu(z: Any) -> Any:
    t = np.minimum(np.abs(z), 60)
    return np.maximum(z, 0) - t * upper_tail(t)


def wide_gelu_gate(z: Any) -> Any:
    t = np.minimum(np.abs(z), 60)
    below = upper_tail(t) - t * np.exp(-(t**2) / 2) / np.sqrt(2 * np.arccos(z.dtype.type(-1)))
    return np.where(z > 0, 1 - below, np.where(np.isnan(z), z, below))


def wide_silu_gate(z: Any) -> Any:
    z = np.clip(z, -2000, 2000)
    e = np.exp(-np.abs(z))
    share = np.abs(z) * e / (1 + e)
    return np.where(z > 0, 1 + share, e - share) / (1 + e)


Function = Callable[[Any], Any]
WIDE: dict[str, Function] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "log": np.log,
    "identity": np.positive,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z < 0, z / 100, z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "gelu": wide_gelu,
    "silu": lambda z: np.maximum(z, -2000) / (1 + np.exp(-np.maximum(z, -2000))),
    "softplus": lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
}
# Of what is saved, a or z: the rounding of a is the forward pass's.
WIDE_GATE: dict[str, Function] = {
    "identity": np.ones_like,
    "relu": lambda a: np.where(a > 0, 1.0, 0.0),
    "leaky_relu": lambda a: np.where(a > 0, 1, a.dtype.type(1) / 100),
    "elu": lambda a: np.where(a > 0, 1, a + 1),
    "gelu": wide_gelu_gate,
    "silu": wide_silu_gate,
    "softplus": lambda a: -np.expm1(-a),
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a * a,
}
DOMAIN = {"expm1": (-np.inf, 80), "log1p": (0, 1), "log": (2.0**-126, np.inf)}
FUNCTIONS = ["exp", *DOMAIN]


@cache
def arguments(dtype: str) -> Any:
    """Every 4099th float32, NaN patterns too, every 509th from 2^-12 to 128, and the special ones.

    float64 cannot be walked so: 80,000 are drawn, most of them where the functions bend.
    """
    info = np.finfo(dtype)
    special = [0.0, np.inf, np.nan, info.max, info.smallest_normal, info.smallest_subnormal]
    if dtype == "float32":
        low, high = np.array([2.0**-12, 128], np.float32).view(np.uint32)
        near = np.arange(low, high, 509, dtype=np.uint32)
        every = np.arange(0, 2**31, 4099, dtype=np.uint32)
        sizes = np.concatenate([near, every]).view(np.float32)
    else:
        rng = np.random.default_rng(0)
        sizes = np.concatenate([
            rng.uniform(0, 1, 20_000),
            rng.uniform(0, 8, 20_000),
            rng.uniform(0, 40, 20_000),
            rng.uniform(0, 760, 10_000),
            np.exp2(rng.uniform(-1074, 1023, 10_000)),
        ])  # fmt: skip
    sizes = np.concatenate([sizes.astype(dtype), np.array(special, dtype)])
    return np.concatenate([sizes, -sizes])


def computed(backend: Backend, name: str, x: Any) -> Any:
    if name in ACTIVATIONS:
        return backend.slots["bias_act_forward"](x[None], None, name)[0]
    got = np.empty_like(x)
    numba_calls()[name](x, got)
    return got


@lru_cache(maxsize=1)
def of_function(name: str, dtype: str) -> tuple[Any, Any]:
    """Arguments of a function and its values there, in the wider type."""
    x = arguments(dtype)
    if name in DOMAIN:
        low, high = DOMAIN[name]
        x = x[(x >= low) & (x <= high)]  # NaN falls out too
    with np.errstate(all="ignore"):
        return x, WIDE[name](x.astype(WIDER[dtype]))


@lru_cache(maxsize=1)
def of_gate(name: str, dtype: str) -> Any:
    """Slopes at all arguments, in the wider type."""
    with np.errstate(all="ignore"):
        return WIDE_GATE[name](arguments(dtype).astype(WIDER[dtype]))


def worst(got: Any, want: Any, x: Any, unit: Any) -> tuple[float, float]:
    """The largest error in units, past the smallest normal number, and where it is."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    rounded = want.astype(got.dtype)
    infinite = np.isinf(rounded) & (np.abs(x) > 1e30)
    np.testing.assert_array_equal(got[infinite], rounded[infinite])
    finite = np.isfinite(got) & np.isfinite(rounded)
    # A number next to overflow may round the other way; everything else is finite on both sides.
    assert (finite | np.isnan(got) | (np.abs(want) >= np.finfo(got.dtype).max)).all()
    error = np.abs(got[finite] - want[finite]) - np.finfo(got.dtype).smallest_normal
    ulps = np.maximum(error, 0) / (unit if np.isscalar(unit) else unit[finite])
    at = int(np.argmax(ulps))
    return float(ulps[at]), float(x[finite][at])


def measured(backend: Backend, name: str, dtype: str) -> tuple[float, float]:
    """The largest error of a function, in ulps of the exact result."""
    x, want = of_function(name, dtype)
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(want).astype(dtype)).astype(want.dtype)
        return worst(computed(backend, name, x), want, x, unit)


def measured_gate(backend: Backend, name: str, dtype: str) -> tuple[float, float]:
    """The largest error of a gate, in ulps of 1: slopes are of that size, with zeros between."""
    x = arguments(dtype)
    if ACTIVATIONS[name].saves == "z":
        saved, want = x, of_gate(name, dtype).copy()
    else:
        saved = computed(backend, name, x)
        with np.errstate(all="ignore"):
            want = WIDE_GATE[name](saved.astype(WIDER[dtype]))
    gate = backend.slots["act_bias_backward"]
    got = gate(np.ones_like(x)[None], saved[None], name, False)[0][0]
    if name in ("relu", "leaky_relu", "elu", "identity"):
        want[np.isnan(saved)] = got[np.isnan(saved)]  # the slope at NaN is a case of a select
    with np.errstate(all="ignore"):
        return worst(got, want, saved, float(np.finfo(dtype).eps))


@cache
def published() -> dict[tuple[str, str], float]:
    """Function or gate, dtype -> ulps, as the document states them."""
    figures = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, single, _seen, _at, double, *_rest = line.strip("| ").split(" | ")
            figures[name.strip("`"), "float32"] = float(single)
            figures[name.strip("`"), "float64"] = float(double)
    return figures


# What is computed in the wider type is kept from one backend to the next: they vary fastest.
of_every_backend = pytest.mark.parametrize("blocked", ["numba", "cython"], indirect=True)


def skip_what_proves_nothing(dtype: str) -> None:
    if not PROVES[dtype]:
        pytest.skip("long double is no wider than double here")


@of_every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_keep_their_published_ulps(blocked: Backend, name: str, dtype: str) -> None:
    skip_what_proves_nothing(dtype)
    got, at = measured(blocked, name, dtype)
    assert got <= published()[name, dtype], f"{name} at {at!r}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numba_functions_keep_their_published_ulps(name: str, dtype: str) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    skip_what_proves_nothing(dtype)
    got, at = measured(backends.get("numba"), name, dtype)
    assert got <= published()[name, dtype], f"{name} at {at!r}"


@of_every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_gates_keep_their_published_ulps(blocked: Backend, name: str, dtype: str) -> None:
    skip_what_proves_nothing(dtype)
    got, at = measured_gate(blocked, name, dtype)
    assert got <= published()[f"{name} gate", dtype], f"{name} at {at!r}"


def test_the_table_of_activations_allows_what_is_published() -> None:
    for name, entry in ACTIVATIONS.items():
        for dtype in DTYPES:
            assert published()[name, dtype] <= entry.ulp, name


def rows() -> list[str]:
    """The document's table: what is published, what is measured here, and at which argument."""
    lines, numba_backend = [], backends.get("numba")
    for name in [*FUNCTIONS, *ACTIVATIONS, *(f"{name} gate" for name in ACTIVATIONS)]:
        measure = measured_gate if name.endswith(" gate") else measured
        cells = []
        for dtype in DTYPES:
            ulps, at = measure(numba_backend, name.removesuffix(" gate"), dtype)
            cells.append(f"{published()[name, dtype]} | {ulps:.2f} | {at:.6g}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
