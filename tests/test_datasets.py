"""The bundled digits, the generators, and the stratified split."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.datasets import (
    load_digits,
    make_linear,
    make_spirals,
    make_tabular,
    stratified_split,
)
from fastneuron.errors import DataError


def test_digits_are_the_published_test_set() -> None:
    X, y = load_digits()
    assert X.shape == (1797, 64)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    assert X.min() == 0
    assert X.max() == 16
    # Rows of each digit as the data set's own description counts them, and the first row's sum.
    got = np.bincount(y).tolist()
    assert got == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert y[:10].tolist() == list(range(10))
    assert X[0].sum() == 294


def test_split_keeps_each_class_share_and_every_row_once() -> None:
    _, y = load_digits()
    train, test = stratified_split(y, 0.25, seed=3)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(y.size))
    want = [round(0.25 * count) for count in np.bincount(y)]
    assert np.bincount(y[test]).tolist() == want
    again = stratified_split(y, 0.25, seed=3)
    assert np.array_equal(test, again[1])
    assert not np.array_equal(test, stratified_split(y, 0.25, seed=4)[1])


def test_split_takes_texts_and_leaves_a_lone_row_in_the_first_part() -> None:
    train, test = stratified_split(["a", "b", "a", "a", "a"], 0.5)
    assert 1 in train
    assert test.size == 2


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_split_refuses_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        stratified_split([0, 1], fraction)


@pytest.mark.parametrize("y", [[], [[1, 2], [3, 4]]])
def test_split_refuses_what_is_no_list_of_classes(y: list[int]) -> None:
    with pytest.raises(DataError, match="got shape"):
        stratified_split(y)


def test_linear_points_lie_on_the_line() -> None:
    X, y = make_linear(50, slope=-1.5, intercept=0.5)
    assert X.shape == y.shape == (50, 1)
    np.testing.assert_allclose(y, -1.5 * X + 0.5, rtol=0, atol=1e-6)
    assert np.std(make_linear(5000, slope=0, noise=0.1).y) == pytest.approx(0.1, rel=0.05)


def test_spirals_fill_their_classes_evenly() -> None:
    X, y = make_spirals(302, classes=3, noise=0.0)
    assert X.shape == (302, 2)
    assert np.bincount(y).tolist() == [101, 101, 100]
    radius = np.hypot(*X.T)
    assert 0.099 < radius.min() < radius.max() < 1.001


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.5])
def test_the_stated_score_reaches_the_stated_accuracy(noise: float) -> None:
    X, y = make_tabular(5000, noise=noise)
    u = X.astype(np.float64).T
    score = u[0] * u[1] + np.sin(2 * u[2]) + u[3] * np.abs(u[4]) + u[5] / 2
    got = np.mean((score > 0) == y)
    assert got == 1 - noise  # exactly: the swapped rows are counted, not drawn one by one
    assert np.mean(y) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(y.size))


def test_tabular_columns_are_what_they_are_called() -> None:
    X, y = make_tabular(20000, seed=1)
    assert X.shape == (20000, 20)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(X.std(axis=0), 1, atol=0.04)
    informative, redundant, noise = X[:, :6], X[:, 6:12], X[:, 12:]
    left = redundant - informative @ np.linalg.lstsq(informative, redundant)[0]
    np.testing.assert_allclose(left.std(axis=0), 0.1, rtol=0.05)
    # No column of noise tells anything of the class or of another column: 5 standard errors.
    others = np.column_stack([informative, y])
    correlation = np.corrcoef(noise.T, others.T)[:8, 8:]
    assert np.abs(correlation).max() < 5 / np.sqrt(len(y))


def test_the_same_seed_draws_the_same_table() -> None:
    for got, want in zip(make_tabular(50, seed=2), make_tabular(50, seed=2), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not np.array_equal(make_tabular(50, seed=2).X, make_tabular(50, seed=3).X)


@pytest.mark.parametrize("noise", [-0.1, 0.6, float("nan")])
def test_a_table_refuses_noise_out_of_range(noise: float) -> None:
    with pytest.raises(DataError, match="noise must be"):
        make_tabular(10, noise=noise)


@pytest.mark.parametrize(
    "call", [lambda: make_linear(0), lambda: make_spirals(10, classes=1), lambda: make_tabular(0)]
)
def test_generators_refuse_empty_requests(call: object) -> None:
    with pytest.raises(DataError, match="at least"):
        call()  # type: ignore[operator]
