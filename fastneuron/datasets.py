"""Small data sets that need no download (bundled digits, generators), and a stratified split."""

from __future__ import annotations

import operator
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastneuron.errors import DataError

__all__ = [
    "Dataset",
    "load_digits",
    "make_linear",
    "make_spirals",
    "make_tabular",
    "stratified_split",
]


class Dataset(NamedTuple):
    """Rows and their targets; unpacks as ``X, y``."""

    X: NDArray[np.float32]
    y: NDArray[Any]


def load_digits() -> Dataset:
    """Return the 1,797 handwritten digits that come with the package.

    Returns
    -------
    Dataset
        X (1797, 64) float32, the ink in each cell of an 8 x 8 grid from 0 to 16, rows first;
        y (1797,) int64, the digit.

    Notes
    -----
    Test part of E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, doi:10.24432/C50P49, licence CC BY 4.0.
    """
    with (
        (files("fastneuron") / "data" / "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return Dataset(arrays["pixels"].astype(np.float32), arrays["digit"].astype(np.int64))


def stratified_split(
    y: ArrayLike, test_fraction: float = 0.25, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows in two so that each class keeps its share in both parts.

    Parameters
    ----------
    y : (n,) array_like
        The class of each row: numbers or texts.
    test_fraction : float
        Share of the second part, strictly between 0 and 1. Each class gives this share of its rows,
        rounded to the nearest whole row, but always keeps at least one in the first part.
    seed : int
        Same seed, same split.

    Returns
    -------
    train, test : (n_train,) and (n_test,) int64
        Ascending row numbers; together every row once.

    Raises
    ------
    DataError
        Where `y` is not one-dimensional or is empty, or the fraction is out of range.
    """
    classes = np.asarray(y)
    if classes.ndim != 1 or classes.size == 0:
        raise DataError(f"y must be (n,) with n >= 1, got shape {classes.shape}")
    if not 0.0 < test_fraction < 1.0:
        raise DataError(
            f"test_fraction must be between 0 and 1, both excluded, got {test_fraction!r}"
        )
    rng = np.random.default_rng(seed)
    in_test = np.zeros(classes.size, dtype=bool)
    _, members = np.unique(classes, return_inverse=True)
    for k in range(int(members.max()) + 1):
        rows = np.flatnonzero(members == k)
        count = min(round(test_fraction * rows.size), rows.size - 1)
        in_test[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def make_linear(
    n: int = 200, *, slope: float = 2.0, intercept: float = 3.0, noise: float = 0.0, seed: int = 0
) -> Dataset:
    """Return points around a line that misses the origin: what one neuron needs a bias for.

    ``y = slope * x + intercept + noise * e`` with x uniform on [-1, 1) and e standard normal.

    Returns
    -------
    Dataset
        X (n, 1) float32, y (n, 1) float32.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (_rows(n), 1))
    y = slope * x + intercept + noise * rng.standard_normal(x.shape)
    return Dataset(x.astype(np.float32), y.astype(np.float32))


def make_spirals(
    n: int = 600, *, classes: int = 3, turns: float = 0.75, noise: float = 0.05, seed: int = 0
) -> Dataset:
    """Return the arms of a spiral, a class each: no straight boundary separates them.

    A point of class k at radius r, uniform on [0.1, 1], has the angle
    ``2 pi (k / classes + turns * r)``; both coordinates get normal noise.

    Returns
    -------
    Dataset
        X (n, 2) float32, y (n,) int64 from 0 to classes - 1, as evenly filled as n allows.
    """
    rng = np.random.default_rng(seed)
    if operator.index(classes) < 2:
        raise DataError(f"classes must be at least 2, got {classes}")
    arm = rng.permutation(np.arange(_rows(n)) % classes)
    radius = rng.uniform(0.1, 1.0, n)
    angle = 2.0 * np.pi * (arm / classes + turns * radius)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points += noise * rng.standard_normal(points.shape)
    return Dataset(points.astype(np.float32), arm.astype(np.int64))


def make_tabular(n: int = 20000, *, noise: float = 0.03, seed: int = 0) -> Dataset:
    """Return a table of 20 columns, of which 6 decide the class together and none does alone.

    Columns 0 to 5, independent and standard normal, are u in the score
    ``u0 u1 + sin(2 u2) + u3 |u4| + u5 / 2``; the class is 1 where it is above 0, in half of the
    rows. Columns 6 to 11 are redundant: random mixtures of those six, of variance 1, with normal
    noise of 0.1. Columns 12 to 19 are normal noise and nothing else. Then the classes of
    ``round(noise * n)`` rows, drawn anywhere, are swapped.

    Returns
    -------
    Dataset
        X (n, 20) float32, y (n,) int64, 0 or 1.

    Notes
    -----
    The best reachable accuracy is ``1 - noise``, that of the score's sign: whether a row was
    swapped is in no column.
    """
    rng = np.random.default_rng(seed)
    # Rounded before the score is computed: the classes are then exactly those of the columns.
    u = rng.standard_normal((_rows(n), 6)).astype(np.float32).astype(np.float64)
    if not 0.0 <= noise <= 0.5:
        raise DataError(f"noise must be at least 0 and at most 0.5, got {noise!r}")
    mixture = rng.standard_normal((6, 6))
    mixture /= np.linalg.norm(mixture, axis=0)
    redundant = u @ mixture + 0.1 * rng.standard_normal((n, 6))
    score = u[:, 0] * u[:, 1] + np.sin(2.0 * u[:, 2]) + u[:, 3] * np.abs(u[:, 4]) + u[:, 5] / 2.0
    y = (score > 0.0).astype(np.int64)
    y[rng.permutation(n)[: round(noise * n)]] ^= 1
    X = np.concatenate([u, redundant, rng.standard_normal((n, 8))], axis=1)
    return Dataset(X.astype(np.float32), y)


def _rows(n: int) -> int:
    if operator.index(n) < 1:
        raise DataError(f"n must be at least 1, got {n}")
    return n
