"""Precisions by name: who has which, what the others say, and what the bounds are made of."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable, SpecError, UnknownNameError
from fastneuron.kernels.precision import PRECISIONS, check_precision
from fastneuron.layers import Dense
from fastneuron.spec import NetworkSpec
from fastneuron.testing import RELATIVE_NORMS, assert_near, exact, rounded

SPEC = NetworkSpec.chain([Dense(2, 1)])
DOUBLES = NetworkSpec.chain([Dense(2, 1)], dtype="float64")


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_backend_that_has_float32_alone_refuses_others(backend, precision) -> None:
    want = rf"precision='{precision}' needs the tensor cores.*'{backend.name}' computes.*float32"
    with pytest.raises(BackendUnavailable, match=want):
        backend.engine(SPEC, precision=precision)
    backend.engine(SPEC, precision="float32")


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UnknownNameError, match=r"'half' \(there are: float32, tf32, bfloat16\)"):
        backends.get("numpy").engine(SPEC, precision="half")


def test_a_network_of_doubles_takes_no_lower_precision() -> None:
    with pytest.raises(SpecError, match="this one is float64"):
        backends.get("numpy").engine(DOUBLES, precision="tf32")
    for dtype in ("float32", "float64"):
        check_precision("float32", dtype, "numpy")
    check_precision("tf32", "float32", "cuda")


def cut(x: np.ndarray, bits: int, *, nearest: bool) -> np.ndarray:
    """float32 numbers with that many bits of their fraction left."""
    drop = 23 - bits
    words = x.view(np.uint32).astype(np.uint64)
    if nearest:
        words += (1 << (drop - 1)) - 1 + (words >> drop & 1)
    return (words >> drop << drop).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 10), ("bfloat16", 7)])
@pytest.mark.parametrize("nearest", [True, False])
def test_a_factor_is_within_what_is_said_of_it(precision, bits, nearest) -> None:
    x = np.random.default_rng(0).standard_normal(100_000).astype("float32")
    # The numbers that lose most: all ones below the last bit that is kept.
    x[:4] = [1 + 2.0**-bits - 2.0**-23, 1 + 2.0 ** (-bits - 1), -1 - 2.0**-bits + 2.0**-23, 1]
    got = cut(x, bits, nearest=nearest)
    bound = rounded(exact(x), precision).bound
    error = np.abs(got.astype("float64") - x)
    assert (error <= bound).all()
    assert error.max() / np.abs(x[error.argmax()]) > PRECISIONS[precision] / (4 if nearest else 2)


@pytest.mark.parametrize("terms", [64, 1024, 4096])
@pytest.mark.parametrize(("precision", "bits"), [("float32", 23), ("tf32", 10), ("bfloat16", 7)])
def test_the_limits_of_norms_hold_for_any_length_and_are_not_loose(precision, bits, terms) -> None:
    rng = np.random.default_rng(terms)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((64, terms), (terms, 64)))
    want = x.astype("float64") @ w
    factors = [each if bits == 23 else cut(each, bits, nearest=True) for each in (x, w)]
    got = assert_near(factors[0] @ factors[1], want, precision)
    limit = RELATIVE_NORMS[precision]
    assert limit / (1000 if precision == "float32" else 10) < got < limit


def test_the_guide_says_what_the_tables_say() -> None:
    text = (Path(__file__).parents[1] / "docs" / "precision.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", text, re.MULTILINE)
    assert {name: float(limit) for name, limit in rows} == RELATIVE_NORMS
