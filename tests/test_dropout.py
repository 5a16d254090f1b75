"""Dropout: the generator's known answers, the masks' statistics, and the masks of each engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine
from fastneuron.kernels.reference.dropout import dropout, kept, philox
from fastneuron.layers import Dense, Dropout, Layer
from fastneuron.losses import LOSSES
from fastneuron.optimizers import KEY_HIGH, KEY_LOW, N_SCALARS, SGD
from fastneuron.spec import NetworkSpec

#: Philox4x32-10 as Random123's table of known answers has it: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEY = (0xDEADBEEF, 0x01234567)


def words(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """One counter's four words in whole numbers of Python, after the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            high >> 32 ^ c1 ^ k0,
            high & 0xFFFFFFFF,
            low >> 32 ^ c3 ^ k1,
            low & 0xFFFFFFFF,
        )
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], want: tuple[int, ...]
) -> None:
    arrays: Any = tuple(np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox(arrays, key)) == want
    assert words(counter, key) == want


def test_a_mask_is_what_its_formula_says() -> None:
    """Row r, feature j of layer l: word r % 4 of the counter (j, r // 4, l, 0)."""
    mask = kept(11, 5, 3, KEY, 2**31)
    for row in range(11):
        for feature in range(5):
            word = words((feature, row // 4, 3, 0), KEY)[row % 4]
            assert mask[row, feature] == (word >= 2**31)


def test_masks_do_not_know_their_batch() -> None:
    """A row's mask is the same in a shorter batch, and a narrower layer has the same columns."""
    whole = kept(64, 40, 1, KEY, 2**31)
    for rows in (1, 2, 3, 4, 5, 63):
        np.testing.assert_array_equal(kept(rows, 40, 1, KEY, 2**31), whole[:rows])
    np.testing.assert_array_equal(kept(64, 7, 1, KEY, 2**31), whole[:, :7])


def test_rates_at_their_ends() -> None:
    assert kept(8, 9, 0, KEY, 0).all()
    x = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(dropout(x, np.ones((3, 4), bool), 0.0), x)
    mask = kept(500, 400, 0, KEY, (1 - 2**-20) * 2**32)
    assert mask.sum() <= 5  # 0.2 are expected: more than 5 once in 2e7


SIDE = 1000


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_as_many_are_dropped_as_are_asked_for(rate: float) -> None:
    """Of a million, and of each row and column of a thousand.

    The share's deviation is sqrt(rate (1 - rate) / n). Beyond 5.5 deviations lies a share of 4e-8
    of normal numbers: with 2001 counts a false alarm in 1e4 keys, and this one is fixed.
    """
    dropped = ~kept(SIDE, SIDE, 0, KEY, int(rate * 2**32))
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(dropped.mean() - rate) < 5.5 * deviation / SIDE
    for axis in (0, 1):
        assert np.abs(dropped.mean(axis) - rate).max() < 5.5 * deviation / SIDE**0.5


def correlation(a: Any, b: Any) -> float:
    """Of masks of rate 1/2 as +-1: of independent ones, 0 with deviation 1 / sqrt(n)."""
    return float(((2.0 * a - 1) * (2.0 * b - 1)).mean())


def test_masks_are_independent() -> None:
    """Between neighbours, rows of one counter, layers, steps and halves of the key.

    Each correlation is within 5 deviations of 0: a false alarm in 1.7e6 each, 60,000 for all 29.
    """
    half = 2**31
    mask = kept(SIDE, SIDE, 0, KEY, half)
    upper = np.triu_indices(SIDE, 1)
    pairs = {
        "layer": (mask, kept(SIDE, SIDE, 1, KEY, half)),
        "low": (mask, kept(SIDE, SIDE, 0, (KEY[0] + 1, KEY[1]), half)),
        "high": (mask, kept(SIDE, SIDE, 0, (KEY[0], KEY[1] + 1), half)),
        "swapped": (mask, kept(SIDE, SIDE, 0, KEY[::-1], half)),
        "transposed": (mask[upper], mask.T[upper]),
    }
    for distance in (*range(1, 10), 16, 64, 256):
        pairs[f"{distance} rows"] = mask[distance:], mask[:-distance]
        pairs[f"{distance} columns"] = mask[:, distance:], mask[:, :-distance]
    assert len(pairs) == 29
    for name, (one, other) in pairs.items():
        assert abs(correlation(one, other)) < 5 / one.size**0.5, name


def test_a_mask_that_repeats_is_found() -> None:
    """The statistics have teeth: rows of one counter that shared a word would correlate."""
    faulty = np.repeat(kept(SIDE // 4, SIDE, 0, KEY, 2**31), 4, axis=0)
    assert abs(correlation(faulty[1:], faulty[:-1])) > 0.5
    shifted = kept(SIDE, SIDE, 0, KEY, int(0.26 * 2**32))
    assert abs((~shifted).mean() - 0.25) > 5.5 * (0.25 * 0.75) ** 0.5 / SIDE


# ---- engines -------------------------------------------------------------------------------------


def scalars(key: tuple[int, int]) -> Any:
    row = np.zeros((1, N_SCALARS))
    row[0, [KEY_LOW, KEY_HIGH]] = key
    return row


def engine_of(backend: Backend, *layers: Layer, dtype: str, **options: Any) -> Engine:
    """Dense layers multiply by the identity, so that an output of ones shows the masks."""
    spec = NetworkSpec.chain(layers, dtype)
    engine = backend.engine(spec, LOSSES["mse"], SGD(), **options)
    engine.load([(np.eye(*layer.weight_shape, dtype=dtype) if layer.has_parameters
                  else np.empty(0, dtype), None) for layer in spec.layers])  # fmt: skip
    return engine


def scale(rate: float, dtype: str) -> Any:
    return np.dtype(dtype).type(1 / (1 - rate))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 1 - 2.0**-16])
def test_engines_drop_what_the_formula_says(backend: Backend, rate: float, dtype: str) -> None:
    """The mask of each row and feature, forward and backward, in narrow and wide layers."""
    for features in (1, 3, 8, 15, 16, 17, 33, 70):
        engine = engine_of(backend, Dropout(rate, features), dtype=dtype)
        for rows in (1, 2, 5, 8, 31, 140):
            x = np.random.default_rng(rows).normal(size=(rows, features)).astype(dtype)
            mask = kept(rows, features, 0, KEY, int(rate * 2**32))
            want = x * np.where(mask, scale(rate, dtype), 0).astype(dtype)
            what = f"{rows} rows, {features} features"
            np.testing.assert_array_equal(engine.forward_keep(x, scalars(KEY)), want, what)
            np.testing.assert_array_equal(engine.forward(x), x)
            engine.forward_keep(x, scalars(KEY))
            dx, _ = engine.update(x[::-1].copy(), scalars(KEY)[0])
            want = x[::-1] * np.where(mask, scale(rate, dtype), 0).astype(dtype)
            np.testing.assert_array_equal(dx, want, what)


@pytest.mark.parametrize("rows", [3, 200])
def test_each_layer_has_a_mask_of_its_own(backend: Backend, rows: int) -> None:
    layers = [Dense(20, 20, bias=False), Dropout(0.25), Dense(20, 20, bias=False), Dropout(0.75)]
    engine = engine_of(backend, *layers, dtype="float32")
    x = np.ones((rows, 20), np.float32)
    first, second = (kept(rows, 20, i, KEY, int(r * 2**32)) for i, r in ((1, 0.25), (3, 0.75)))
    want = np.where(first, scale(0.25, "float32"), 0).astype(np.float32)
    want = want * np.where(second, np.float32(4), np.float32(0))
    np.testing.assert_array_equal(engine.forward_keep(x, scalars(KEY)), want)
    assert (first != second).any()


@pytest.mark.parametrize("key", [(0, 0), (1, 0), (0, 1), (2**32 - 1, 2**32 - 1), KEY])
def test_both_halves_of_the_key_count(backend: Backend, key: tuple[int, int]) -> None:
    engine = engine_of(backend, Dropout(0.5, 40), dtype="float32")
    x = np.ones((24, 40), np.float32)
    want = 2.0 * kept(24, 40, 0, key, 2**31)
    np.testing.assert_array_equal(engine.forward_keep(x, scalars(key)), want)
    if key == (0, 0):
        np.testing.assert_array_equal(engine.forward_keep(x), want)  # no key is the key 0


def test_masks_do_not_know_threads(blocked: Backend) -> None:
    """By rows and by columns: a wide layer whose columns are dealt out, and blocks of rows."""
    for rows, features in ((20, 600), (500, 40)):
        layers = [Dense(features, features, bias=False), Dropout(0.5)]
        x = np.ones((rows, features), np.float32)
        want = 2.0 * kept(rows, features, 1, KEY, 2**31)
        for n_threads in (1, 2, 3, 8):
            engine = engine_of(blocked, *layers, dtype="float32", n_threads=n_threads)
            np.testing.assert_array_equal(engine.forward_keep(x, scalars(KEY)), want)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_dropped_is_multiplied_by_zero(backend: Backend, value: float) -> None:
    """No selection: a NaN or an infinity that is dropped is found all the same."""
    engine = engine_of(backend, Dropout(0.5, 16), dtype="float32")
    x = np.full((8, 16), value, np.float32)
    out = engine.forward_keep(x, scalars(KEY))
    assert not np.isfinite(out).any()
    assert np.isnan(out[~kept(8, 16, 0, KEY, 2**31)]).all()
