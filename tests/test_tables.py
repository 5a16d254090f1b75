"""Raw CSV and NPZ files: what is read, what becomes of it, and where each fault is said to be."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastneuron.errors import DataError, SpecError, UnknownNameError
from fastneuron.preprocessing import (
    CategoryFeature,
    ClassTarget,
    NumberFeature,
    NumberTarget,
    Preprocessing,
)
from fastneuron.tables import Table, read_table

CSV = "size,colour,kind\n1,red,a\n2,blue,b\n3,red,a\n"


@pytest.fixture
def put(tmp_path: Path):
    """Write content to a file and return its path."""

    def put(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


def table(**columns: object) -> Table:
    return Table(
        "t", {k: np.asarray(v) if not isinstance(v, list) else v for k, v in columns.items()}
    )


# Reading


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        "\ufeff" + CSV,
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", "|"),
        "\n" + CSV.replace("\n", "\n\n"),
        CSV.replace("red", '"red"').replace("size", '"size"'),
        CSV.rstrip("\n"),
        CSV.replace(",", " , "),
        gzip.compress(CSV.encode()),
    ],
    ids=lambda content: repr(content[:16]),
)
def test_the_same_table_in_every_spelling(put, content: str | bytes) -> None:
    got = read_table(put(content))
    assert list(got.columns) == ["size", "colour", "kind"]
    assert got.numbers("size").tolist() == [1, 2, 3]
    assert got.texts("colour") == ["red", "blue", "red"]
    assert [got.kind(name) for name in got.columns] == ["integer", "text", "text"]


def test_quotes_hold_delimiters_and_line_ends_and_lines_still_count(put) -> None:
    got = read_table(put('a,b\n"x,\ny",1\n"say ""so""",oops\nz,3\nz,4\nz,5\nz,6\nz,7\n'))
    assert got.texts("a")[:2] == ["x,\ny", 'say "so"']
    with pytest.raises(DataError, match=r"line 4, column 'b': 'oops' is not a finite number"):
        got.kind("b")


def test_one_column(put) -> None:
    assert read_table(put("a\n1\n\n2\n")).numbers("a").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("a,b\n", "no rows under the header"),
        ("a,a\n1,2\n", "two columns are named 'a'"),
        (",a\n0,2\n", r"column 1 of 2 has no name .*index=False"),
        ("1,2\n3,4\n", "must name the columns"),
        ("a,b\n1,2\n3\n", r"line 3: 1 cells, but the header names 2 columns \(split at ','\)"),
        ("a,b\n1,2,3\n", "line 2: 3 cells"),
        ('a,b\n1,"2\n', "line 2: not CSV"),
        ("a\n" + "x" * 200_000, "line 2: not CSV .*field larger"),
        (b"a\n1\n\xff\n", "line 3: not UTF-8"),
        ("a\n1\0\n", "line 2: a zero byte"),
        ("a\n1\n".encode("utf-16"), "not UTF-8"),
        (b"\x1f\x8b\x08junk", "not a readable gzip file"),
        (gzip.compress(CSV.encode())[:-9], "not a readable gzip file"),
        (b"\x93NUMPY\x01\x00", "single array has no column names"),
        (b"PK\x03\x04junk", "not a readable NPZ file"),
    ],
)
def test_unreadable_files_say_why_and_where(put, content: str | bytes, message: str) -> None:
    path = put(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_arrays_become_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    X = np.arange(6.0).reshape(3, 2)
    np.savez(
        path, X=X, y=[1, 0, 1], flat=[[1], [2], [3]], flag=[True, False, True], name=["u", "v", "u"]
    )
    got = read_table(path)
    assert list(got.columns) == ["X[0]", "X[1]", "y", "flat", "flag", "name"]
    assert np.array_equal(got.numbers("X[1]"), X[:, 1])
    assert got.kind("X[0]") == "float"
    assert got.kind("y") == got.kind("flag") == "integer"
    assert got.texts("name") == ["u", "v", "u"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((3, 2)), "y": np.ones(4)}, "array 'y' has 4 rows, but 'X' has 3"),
        ({"o": np.array([{}, []], dtype=object)}, "not a readable NPZ file .*allow_pickle"),
        ({"t": np.array(["2020-01-01"], dtype="datetime64[D]")}, "neither numbers nor texts"),
        ({"c": np.ones(2, complex)}, "neither numbers nor texts"),
        ({"s": np.array(1.0)}, r"shape \(\) holds no rows"),
        ({"s": np.ones((0, 3))}, r"shape \(0, 3\) holds no rows"),
        ({}, "holds no arrays"),
    ],
)
def test_npz_faults(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    if not arrays:  # an archive without a member has no local header to be known by
        message = "a zero byte|not UTF-8"
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sheet.xml", "<a/>")
    with pytest.raises(DataError, match="not one of arrays; give CSV"):
        read_table(path)


def test_every_cut_of_an_npz_file_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, X=np.arange(12.0).reshape(4, 3), y=np.arange(4))
    content = whole.read_bytes()
    for length in range(4, len(content), 7):
        part = tmp_path / "part.npz"
        part.write_bytes(content[:length])
        with pytest.raises(DataError):
            read_table(part)


# Kinds of columns


@pytest.mark.parametrize(
    ("cells", "want"),
    [
        (["1", "-2", "0"], "integer"),
        (["1", "2.0"], "float"),
        (["1e3", "-.5"], "float"),
        (["007", "008"], "float"),
        (["+1", "2"], "float"),
        (["1_000", "2_000"], "text"),
        (["3", "x", "y"], "text"),
        (["NA", "none"], "text"),
        (["inf", "x"], "text"),
    ],
)
def test_kind_of_texts(cells: list[str], want: str) -> None:
    assert table(a=cells).kind("a") == want


def test_a_slip_among_numbers_is_no_category() -> None:
    with pytest.raises(DataError, match=r"row 7, column 'a': '1O' is not a finite number, as 9"):
        table(a=["1"] * 7 + ["1O"] + ["2"] * 2).kind("a")


def test_a_decimal_comma_is_named() -> None:
    with pytest.raises(DataError, match="decimal comma"):
        table(a=["1,5", "2,25"]).kind("a")


def test_an_empty_column_is_named() -> None:
    with pytest.raises(DataError, match="every cell is empty"):
        table(a=["", " "]).kind("a")


@pytest.mark.parametrize("cell", ["", " ", "NA", "NaN", "null", "?"])
def test_a_missing_number_is_named_with_its_place(put, cell: str) -> None:
    got = read_table(put(f"a,b\n1,2\n1,{cell}\n1,3\n"))
    with pytest.raises(DataError, match=r"line 3, column 'b': the value is missing; fill it in"):
        Preprocessing.fit(got, "a", task="regression")


def test_non_finite_numbers_in_npz_are_named_with_their_row() -> None:
    with pytest.raises(DataError, match=r"row 1, column 'a': the value is missing"):
        table(a=np.array([1, np.nan])).numbers("a")
    with pytest.raises(DataError, match=r"row 0, column 'a': 'inf' is not a finite number"):
        table(a=np.array([np.inf, 1])).numbers("a")


# Preprocessing


def test_numbers_are_standardised_by_the_training_rows_and_texts_one_hot(put) -> None:
    got = read_table(put("n,c,y\n1,red,u\n3,blue,v\n100,green,u\n"))
    pre = Preprocessing.fit(got, "y", rows=np.array([0, 1]))
    assert pre.features == (
        NumberFeature("n", 2.0, 1.0),
        CategoryFeature("c", ("blue", "green", "red")),
    )
    assert pre.target == ClassTarget("y", ("u", "v"))
    want = [[-1, 0, 0, 1], [1, 1, 0, 0], [98, 0, 1, 0]]
    assert pre.inputs(got).tolist() == want
    assert pre.inputs(got).dtype == np.float32
    assert pre.targets(got).tolist() == [0, 1, 0]
    assert (pre.n_features, pre.target.width, pre.loss) == (4, 2, "cross_entropy")
    assert pre.target.decode([[0.1, 0.3], [2, 1]]).tolist() == ["v", "u"]


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e300, -1e-300])
def test_a_constant_column_becomes_nought(value: float) -> None:
    got = table(a=np.full(7, value), b=np.arange(7.0))
    inputs = Preprocessing.fit(got, "b").inputs(got, np.float64)[:, 0]
    assert np.all(np.abs(inputs) <= 2e-16 * abs(value))


@pytest.mark.parametrize("size", [1e-310, 1e-300, 1.0, 1e300])
def test_standardising_neither_overflows_nor_vanishes(size: float) -> None:
    got = table(a=size * np.array([1.0, 2.0, 3.0]), b=np.arange(3.0))
    want = np.array([-1.0, 0.0, 1.0]) * np.sqrt(1.5)
    inputs = Preprocessing.fit(got, "b").inputs(got, np.float64)[:, 0]
    np.testing.assert_allclose(inputs, want, rtol=1e-9, atol=1e-9)


def test_a_value_too_large_after_scaling_is_named() -> None:
    pre = Preprocessing.fit(table(a=np.arange(3.0), b=np.arange(3.0)), "b")
    with pytest.raises(DataError, match=r"row 1, column 'a': 1e\+300 is too large for float32"):
        pre.inputs(table(a=np.array([1.0, 1e300])))


@pytest.mark.parametrize(
    ("cells", "want"),
    [
        (["10", "9", "10"], ("9", "10")),
        (["b", "a", "b"], ("a", "b")),
        (["01", "2", "x"], ("01", "2", "x")),
        (np.array([2, -1]), ("-1", "2")),
        (np.array([True, False]), ("False", "True")),
        (np.array(["v", "u"]), ("u", "v")),
    ],
)
def test_texts_and_whole_numbers_are_classes(cells: object, want: tuple[str, ...]) -> None:
    got = table(a=np.arange(float(len(cells))), y=cells)  # type: ignore[arg-type]
    assert Preprocessing.fit(got, "y").target == ClassTarget("y", want)


def test_other_numbers_are_a_quantity_that_comes_back_in_its_unit() -> None:
    got = table(a=np.arange(3.0), y=["1.5", "2.5", "9.5"])
    pre = Preprocessing.fit(got, "y")
    assert isinstance(pre.target, NumberTarget)
    assert pre.loss == "mse"
    targets = pre.targets(got)
    assert targets.shape == (3, 1)
    np.testing.assert_allclose(pre.target.decode(targets), [1.5, 2.5, 9.5], rtol=1e-6)


def test_the_task_can_be_said() -> None:
    got = table(a=np.arange(3.0), y=np.array([1, 2, 3]), z=np.array([0.5, 1.5, 0.5]))
    assert Preprocessing.fit(got, "y", task="regression").loss == "mse"
    assert Preprocessing.fit(got, "z", task="classification").target.width == 2


def test_many_whole_numbers_need_the_task_said() -> None:
    got = table(a=np.arange(419.0), y=np.arange(419) % 21)
    with pytest.raises(DataError, match="21 different whole numbers may be classes or a quantity"):
        Preprocessing.fit(got, "y")
    assert Preprocessing.fit(got, "y", task="classification").target.width == 21
    enough = table(a=np.arange(420.0), y=np.arange(420) % 21)
    assert Preprocessing.fit(enough, "y").target.width == 21


def test_ignored_and_text_columns() -> None:
    got = table(a=["1", "2"], b=["x", ""], y=["u", "v"])
    pre = Preprocessing.fit(got, "y", ignore=["b"], text=["a"])
    assert pre.features == (CategoryFeature("a", ("1", "2")),)


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"a": ["1"], "y": ["u"]}, {}, "every row has the same class 'u'"),
        ({"y": ["u", "v"]}, {}, "no column is left to predict 'y' from"),
        ({"a": ["1", "2"]}, {}, r"no column 'y' \(columns: 'a'\)"),
        ({"a": ["1", "2"], "y": ["u", "v"]}, {"ignore": ["q"]}, "no column 'q'"),
        ({"a": ["1", "2"], "y": ["u", "v"]}, {"task": "regression"}, "'u' is not a finite number"),
        ({"a": [f"n{i}" for i in range(1001)], "y": ["u", "v"]}, {}, "too many for one-hot"),
    ],
)
def test_unusable_tables(columns: dict, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing.fit(table(**columns), "y", **arguments)


@pytest.fixture
def fitted() -> Preprocessing:
    got = table(a=["1", "2", "4"], c=["red", "blue", "red"], y=["u", "v", "u"])
    return Preprocessing.fit(got, "y")


def test_columns_are_found_by_name(fitted: Preprocessing) -> None:
    want = fitted.inputs(table(a=["1"], c=["blue"]))
    got = fitted.inputs(table(more=["?"], c=["blue"], a=["1"]))
    assert np.array_equal(want, got)


def test_a_missing_column_is_named(fitted: Preprocessing) -> None:
    with pytest.raises(DataError, match=r"needs the columns 'c', which are not there .*'a', 'b'"):
        fitted.inputs(table(a=["1"], b=["2"]))


def test_an_unseen_category_is_named_with_the_known_ones(fitted: Preprocessing) -> None:
    with pytest.raises(
        DataError, match=r"row 1, column 'c': 'grey' is a category that .*known: 'blue', 'red'"
    ):
        fitted.inputs(table(a=["1", "2"], c=["red", "grey"]))
    with pytest.raises(DataError, match=r"row 0, column 'y': 'w' is a class that training"):
        fitted.targets(table(y=["w"]))


def test_json_round_trip(fitted: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    number = Preprocessing(fitted.features, NumberTarget("y", 1.0, 2.0))
    assert Preprocessing.from_json(json.loads(json.dumps(number.to_json()))) == number


def test_every_damaged_description_is_refused(fitted: Preprocessing) -> None:
    whole = fitted.to_json()
    Preprocessing.from_json(whole)  # or the loop below would prove nothing
    hostile = [None, [], {}, 1, "", "x", True, float("nan"), [[]], [1], [["a"]], {"kind": []}]

    def places(node: object, path: tuple = ()) -> list[tuple]:
        found = [path]
        if isinstance(node, dict | list | tuple):
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            for key, value in pairs:
                found += places(value, (*path, key))
        return found

    for path in places(json.loads(json.dumps(whole))):
        for value in hostile:
            damaged = json.loads(json.dumps({"root": whole}))
            node = damaged
            for key in ("root", *path)[:-1]:
                node = node[key]
            last = ("root", *path)[-1]
            if isinstance(node[last], str) and isinstance(value, str):
                continue  # another name is a valid description of another table
            if isinstance(node[last], float) and value == 1 and value is not True:
                continue  # and so is another mean or scale
            node[last] = value
            with pytest.raises((SpecError, UnknownNameError)):
                Preprocessing.from_json(damaged["root"])
        if path and isinstance(path[-1], str):
            damaged = json.loads(json.dumps(whole))
            node = damaged
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            with pytest.raises((SpecError, UnknownNameError)):
                Preprocessing.from_json(damaged)
