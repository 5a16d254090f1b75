"""The border: every layout gives its contiguous copy's values, every fault its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastneuron.arrays import (
    as_class_weights,
    as_rows,
    as_targets,
    as_weights,
    fits_rows,
    fits_targets,
)
from fastneuron.errors import DataError, DataWarning
from fastneuron.order import Batches, EpochOrder

DTYPES = ("float32", "float64")


def unaligned(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    buffer = np.empty(x.nbytes + 1, np.uint8)
    moved = buffer[1:].view(x.dtype).reshape(x.shape)
    moved[:] = x
    return moved


def read_only(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "read-only": read_only,
    "float16": lambda x: x.astype(np.float16),
    "int8": lambda x: x.astype(np.int8),
    "int64": lambda x: x.astype(np.int64),
    "uint16 big-endian": lambda x: x.astype(">u2"),
    "longdouble": lambda x: x.astype(np.longdouble),
    "list": lambda x: x.tolist(),
    "bool": lambda x: x.astype(bool),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_values_of_its_copy(layout: str, dtype: str) -> None:
    base = np.arange(12, dtype=dtype).reshape(4, 3)
    x = LAYOUTS[layout](base)
    want = np.array(np.asarray(x), dtype=dtype, order="C")
    got = as_rows(x, "X", dtype, 3)
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert got.flags.aligned
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fits_is_not_copied(dtype: str) -> None:
    x = np.ones((4, 3), dtype)
    assert as_rows(x, "X", dtype) is x
    assert as_rows(read_only(x), "X", dtype).base is None
    assert fits_rows(x, 3, np.dtype(dtype))
    assert not fits_rows(x.T, 4, np.dtype(dtype))
    assert not fits_rows(x, 4, np.dtype(dtype))
    assert not fits_rows(x[:0], 3, np.dtype(dtype))
    assert not fits_rows(unaligned(x), 3, np.dtype(dtype))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(3), r"shape \(3,\).*reshape\(-1, 1\).*reshape\(1, -1\)"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\).*reshape\(len\(X\), -1\)"),
        (np.float64(3), "shape"),
        (np.ones((0, 3)), "zero rows"),
        (np.ones((3, 0)), r"\(3, 0\)"),
        (np.ones((2, 4)), r"\(2, 4\).*\(2, 3\)"),
        (np.ones((2, 3), complex), "complex"),
        (np.array([["a", "b", "c"]]), "row 0, column 0"),
        (np.array([[1, "b", object()]], object), "row 0, column 1"),
        (np.ones((2, 3), "M8[s]"), "no number"),
        ([[1, 2, 3], [4, 5]], "no rectangular array"),
        (object(), "is a object"),
        (np.ma.array(np.ones((2, 3)), mask=np.eye(2, 3)), "masked"),
    ],
)
def test_a_wrong_array_is_refused(x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_rows(x, "X", "float32", 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (7, 2), (99, 4)])
def test_not_finite_is_refused_with_its_place(dtype: str, bad: float, at: tuple[int, int]) -> None:
    x = np.ones((100, 5), dtype)
    x[at] = x[99, 4] = bad
    count = 1 if at == (99, 4) else 2
    what = "NaN" if np.isnan(bad) else "infinity"
    want = rf"X holds {what} at row {at[0]}, column {at[1]} \({count} value"
    for layout in (x, np.asfortranarray(x), x.astype(x.dtype.newbyteorder())):
        with pytest.raises(DataError, match=want):
            as_rows(layout, "X", dtype)


def test_huge_but_finite_values_pass() -> None:
    x = np.full((50, 3), 3e38, np.float32)
    assert as_rows(x, "X", "float32") is x  # the sum of squares overflows; the search clears it


def test_overflow_of_float32_is_refused_with_its_place() -> None:
    x = np.ones((5, 3))
    x[3, 1] = -1e39
    with pytest.raises(DataError, match=r"overflows float32: -1e\+39 at row 3, column 1"):
        as_rows(x, "X", "float32")
    assert as_rows(x, "X", "float64") is x


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 1], np.int64),
        np.array([0, 2, 1], np.uint8),
        np.array([0, 2, 1], ">i2"),
        np.array([0.0, 2.0, 1.0]),
        [0, 2, 1],
        np.array([0, 9, 2, 9, 1])[::2],
    ],
)
def test_class_numbers_become_int64(labels: Any) -> None:
    got = as_targets(labels, "classes", 3, 3, "float32")
    assert got.dtype == np.int64
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, [0, 2, 1])


def test_boolean_labels_are_classes() -> None:
    got = as_targets(np.array([True, False]), "classes", 2, 2, "float32")
    np.testing.assert_array_equal(got, [1, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3, 3], r"y holds 3 at row 2.*classes are 0 to 2 \(2 labels"),
        ([0, -1, 2, 2], "y holds -1 at row 1.*classes are 0 to 2"),
        ([0, 1.5, 2, 2], "y holds 1.5 at row 1.*classes are 0 to 2"),
        ([0, np.nan, 2, 2], "y holds nan at row 1"),
        ([0, np.inf, 2, 2], "y holds inf at row 1"),
        (["a", "b", "c", "a"], "np.unique"),
        ([0, 1, 2], r"shape \(3,\), but X has 4 rows"),
        (np.zeros((4, 2)), r"\(4, 2\).*\(4, 3\).*class numbers \(4,\)"),
        (np.full((4, 3), -0.5), "probabilities must be at least 0.*row 0, column 0"),
        (3, "one target a row"),
    ],
)
def test_wrong_classes_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_targets(labels, "classes", 4, 3, "float32")


def test_a_column_of_classes_is_flattened_with_a_warning() -> None:
    with pytest.warns(DataWarning, match="ravel"):
        got = as_targets(np.array([[0], [2]]), "classes", 2, 3, "float32")
    np.testing.assert_array_equal(got, [0, 2])


def test_one_hot_rows_are_kept_as_rows() -> None:
    got = as_targets(np.eye(3, dtype=np.int8), "classes", 3, 3, "float64")
    np.testing.assert_array_equal(got, np.eye(3))
    assert got.dtype == np.float64


def test_a_vector_of_values_is_a_column_only_for_one_output() -> None:
    y = np.arange(4.0)
    np.testing.assert_array_equal(as_targets(y, "values", 4, 1, "float64"), y[:, None])
    for shape in ((4,), (4, 1), (1, 4), (4, 3), (4, 2, 1)):
        with pytest.raises(DataError, match=r"nothing is broadcast|one target a row"):
            as_targets(np.zeros(shape), "values", 4, 2, "float64")


@pytest.mark.parametrize(
    ("kind", "bad"), [("binary", 1.5), ("binary", -0.1), ("counts", -1), ("values", np.nan)]
)
def test_targets_outside_what_the_loss_can_fit(kind: str, bad: float) -> None:
    y = np.array([[0.0, 1.0], [1.0, bad]])
    with pytest.raises(DataError, match="row 1, column 1"):
        as_targets(y, kind, 2, 2, "float32")


def test_fits_targets_is_as_strict_as_as_targets() -> None:
    dtype = np.dtype(np.float32)
    y = np.array([0, 2, 1])
    assert fits_targets(y, "classes", 3, 3, dtype)
    assert not fits_targets(y, "classes", 3, 2, dtype)
    assert not fits_targets(y - 1, "classes", 3, 3, dtype)
    assert not fits_targets(y[::-1], "classes", 3, 3, dtype)
    assert not fits_targets(y.astype(np.int32), "classes", 3, 3, dtype)
    values = np.ones((3, 2), np.float32)
    assert fits_targets(values, "values", 3, 2, dtype)
    assert not fits_targets(values, "values", 3, 1, dtype)
    assert not fits_targets(values, "values", 2, 2, dtype)
    assert not fits_targets(values.astype(">f4"), "values", 3, 2, dtype)


def test_weights_have_mean_one() -> None:
    got = as_weights([1, 2, 3], 3, "float32")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [0.5, 1.0, 1.5])
    assert np.isfinite(as_weights([1e308, 1e308, 1e308], 3)).all()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, -1, 1], "row 1 has -1"),
        ([0, 0, 0], "zero for every row"),
        ([1, np.nan, 1], "NaN at row 1"),
        ([1, 1], r"shape \(2,\), but X has 3 rows"),
        ([[1, 1, 1]], r"shape \(1, 3\)"),
        (["a", "b", "c"], "text"),
    ],
)
def test_wrong_weights_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_weights(weight, 3)


def test_balanced_classes_weigh_the_same() -> None:
    y = np.array([0, 0, 0, 2])
    got = as_class_weights("balanced", y, 3)
    np.testing.assert_allclose(got, [4 / 9, 4 / 9, 4 / 9, 4 / 3])
    np.testing.assert_allclose(as_class_weights("balanced", np.eye(3)[y], 3), got)
    np.testing.assert_array_equal(as_class_weights({2: 5.0}, y, 3), [1, 1, 1, 5])


@pytest.mark.parametrize("bad", [{3: 1.0}, {"a": 1.0}, {0: -1.0}, {0: np.nan}, "even", 3])
def test_wrong_class_weights_are_refused(bad: Any) -> None:
    with pytest.raises(DataError, match="class_weight"):
        as_class_weights(bad, np.array([0, 1]), 2)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 3000])
def test_an_epochs_order_is_a_function_of_seed_and_epoch(n: int) -> None:
    want = EpochOrder(n, 3).take(150)
    np.testing.assert_array_equal(np.sort(want, axis=1), np.tile(np.arange(n), (150, 1)))
    parts = EpochOrder(n, 3)
    got = np.concatenate([parts.take(k) for k in (1, 2, 3, 60, 84)])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(EpochOrder(n, 3, 77).take(73), want[77:])
    if n > 7:
        assert len({order.tobytes() for order in want}) == 150
        assert (EpochOrder(n, 4).take(150) != want).any()


@pytest.mark.parametrize("span", [True, False])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (8, 4), (10, 4), (10, 1), (3, 10)])
def test_batches_do_not_depend_on_how_many_are_taken(n: int, batch_size: int, span: bool) -> None:
    def steps(*sizes: int) -> list[tuple[int, list[int]]]:
        batches = Batches(n, batch_size, 7, shuffle=True, seed=1, first_epoch=2, span=span)
        found, i = [], 0
        while (part := batches.take(sizes[i % len(sizes)])) is not None:
            i += 1
            length = len(part.bounds) - 1
            for s in range(length):
                epoch = part.epoch + s * part.whole_epochs // length
                found.append((epoch, part.order[part.bounds[s] : part.bounds[s + 1]].tolist()))
        return found

    want = steps(1)
    assert len(want) == 7 * -(-n // batch_size)
    for epoch in range(7):
        rows = [row for e, batch in want if e == epoch for row in batch]
        assert sorted(rows) == list(range(n))
    for sizes in [(2,), (3, 1), (100,), (1, 50, 2)]:
        assert steps(*sizes) == want
