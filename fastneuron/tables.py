"""Raw tables: CSV and NPZ files as named columns, every fault reported by its place in the file."""

from __future__ import annotations

import csv
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import DataError

__all__ = ["MISSING", "Kind", "Table", "number", "read_table"]

Kind = Literal["integer", "float", "text"]

#: Spellings of a missing value in a column of numbers, in lower case. In a text column only an
#: empty cell is missing: "NA" and "none" may be categories.
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})

# In this order where a header splits into equally many names.
DELIMITERS = ",;\t|"


def number(text: str) -> float | None:
    """Return the finite number that `text` writes, or None."""
    if "_" in text:  # float() would take 1_000
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


@dataclass(frozen=True)
class Table:
    """Named columns of equal length.

    Parameters
    ----------
    origin : str
        The file's name, for messages.
    columns : dict
        Name to column: a list of texts (CSV), or a one-dimensional array of numbers, booleans or
        texts (NPZ).
    places : Callable
        Zero-based row number to its place in the file ("line 17").
    """

    origin: str
    columns: dict[str, Sequence[str] | NDArray[Any]]
    places: Callable[[int], str] = "row {}".format

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def fault(self, what: str, name: str, row: int | None = None) -> DataError:
        """Return the error for column `name`, at `row` where one is to blame."""
        place = "" if row is None else f", {self.places(row)}"
        return DataError(f"{self.origin}{place}, column {name!r}: {what}")

    def column(self, name: str) -> Sequence[str] | NDArray[Any]:
        """Return a column; an unknown name is a DataError listing the names that there are."""
        if name not in self.columns:
            raise DataError(
                f"{self.origin}: there is no column {name!r} (columns: {listing(self.columns)})"
            )
        return self.columns[name]

    def kind(self, name: str) -> Kind:
        """Say what a column holds: "integer", "float" or "text".

        A column of texts is a column of numbers where every cell that is not missing is one.

        Raises
        ------
        DataError
            Where four fifths of the cells are numbers and one is not: that is a slip, no category;
            and where every cell is missing.
        """
        column = self.column(name)
        if isinstance(column, np.ndarray):
            kind: Kind = {"f": "float", "U": "text"}.get(column.dtype.kind, "integer")  # type: ignore[assignment]
            return kind
        filled = [text for text in column if text.strip().lower() not in MISSING]
        if not filled:
            if all(not text.strip() for text in column):
                raise self.fault("every cell is empty; leave the column out (--ignore)", name)
            return "text"
        odd = sum(number(text) is None for text in filled)
        if odd == 0:
            return "integer" if all(_is_whole(text) for text in column) else "float"
        if odd == len(filled) and all(number(t.replace(",", ".")) is not None for t in filled):
            raise self.fault("numbers have a decimal comma; write them with a point", name)
        if odd * 5 <= len(filled):
            row = next(
                i
                for i, text in enumerate(column)
                if number(text) is None and text.strip().lower() not in MISSING
            )
            raise self.fault(
                f"{shorten(column[row])} is not a finite number, as {len(filled) - odd} other "
                "cells of the column are; mend the cell, or take the column as text (--text)",
                name,
                row,
            )
        return "text"

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column as finite float64 numbers.

        Raises
        ------
        DataError
            At the first cell that is missing, not a number, or not finite.
        """
        column = self.column(name)
        if isinstance(column, np.ndarray) and column.dtype.kind != "U":
            values = column.astype(np.float64)
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise self._not_a_number(name, int(bad[0]), str(column[bad[0]]))
            return values
        parsed = [number(text) for text in column]
        if None in parsed:
            row = parsed.index(None)
            raise self._not_a_number(name, row, column[row])
        return np.array(parsed, np.float64)

    def texts(self, name: str) -> list[str]:
        """Return a column as texts without outer blanks; an empty cell is a DataError."""
        column = self.column(name)
        texts = [str(value).strip() for value in column]
        if "" in texts:
            raise self._missing(name, texts.index(""))
        return texts

    def _missing(self, name: str, row: int) -> DataError:
        return self.fault(
            "the value is missing; fill it in, delete the row, or leave the column out (--ignore)",
            name,
            row,
        )

    def _not_a_number(self, name: str, row: int, text: str) -> DataError:
        if text.strip().lower() in MISSING:
            return self._missing(name, row)
        return self.fault(f"{shorten(text)} is not a finite number", name, row)


def _is_whole(text: str) -> bool:
    """Say whether `text` is a whole number written the usual way: no plus, no leading zeros."""
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0")


def shorten(text: str, limit: int = 40) -> str:
    """Return `text` quoted, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def listing(names: Sequence[str] | dict[str, Any], limit: int = 12) -> str:
    """Return names joined for a message, the rest of a long list counted."""
    shown = [shorten(name) for name in list(names)[:limit]]
    more = len(names) - limit
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def read_table(path: str | Path) -> Table:
    """Read a CSV or NPZ file; the content, not the name, says which it is.

    CSV: UTF-8 (a byte order mark is skipped), the first line names the columns, the delimiter is
    the one of comma, semicolon, tab and bar that splits that line most; quotes as RFC 4180; gzip is
    unpacked. NPZ: a one-dimensional array is a column by its name; an array ``X`` of n rows
    with k values each gives the columns ``X[0]`` ... ``X[k-1]`` (``X`` itself where k is 1).

    Raises
    ------
    DataError
        Where the file cannot be understood; the message says where and why.
    OSError
        Where the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:4] == b"PK\x03\x04":
        return _read_npz(path)
    if magic == b"\x93NUMPY":
        raise DataError(
            f"{path}: a single array has no column names; write the file with "
            "numpy.savez(path, X=X, y=y)"
        )
    if magic[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as packed:
                content = packed.read()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a readable gzip file ({error})") from None
    else:
        content = path.read_bytes()
    return _parse_csv(str(path), content)


def _parse_csv(origin: str, content: bytes) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{origin}, line {line}: not UTF-8 text; give a CSV file in UTF-8 or an NPZ file"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{origin}, line {line}: a zero byte; this is not a CSV file")
    if not text.strip():
        raise DataError(f"{origin}: the file is empty; a CSV file starts with a line of names")
    header = text.lstrip().splitlines()[0]
    delimiter = max(DELIMITERS, key=lambda d: _width(origin, header, d))
    rows = _csv_rows(origin, text, delimiter)
    names = [name.strip() for name in next(rows)[1]]
    _check_names(origin, names)
    lines: list[int] = []
    cells: list[list[str]] = []
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(
                f"{origin}, line {line}: {len(row)} cells, but the header names {len(names)} "
                f"columns (split at {delimiter!r})"
            )
        lines.append(line)
        cells.append(row)
    if not cells:
        raise DataError(f"{origin}: no rows under the header")
    columns = dict(zip(names, zip(*cells, strict=True), strict=True))
    return Table(origin, dict(columns), lambda row: f"line {lines[row]}")


def _width(origin: str, header: str, delimiter: str) -> int:
    """Return how many names `delimiter` splits the header into; a wrong one may break quotes."""
    return len(next(_csv_rows(origin, header, delimiter, strict=False), (0, []))[1])


def _csv_rows(
    origin: str, text: str, delimiter: str, *, strict: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number where the row starts, cells) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    start = 1
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{origin}, line {start}: not CSV ({error})") from None


def _check_names(origin: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if not name:
            raise DataError(
                f"{origin}: column {i + 1} of {len(names)} has no name in the first line; name it, "
                "or leave it out (pandas: to_csv(index=False))"
            )
        if name in names[:i]:
            raise DataError(f"{origin}: two columns are named {name!r}; names must differ")
    if all(number(name) is not None for name in names):
        raise DataError(
            f"{origin}: the first line holds numbers, but it must name the columns; "
            "put a line of names above the data"
        )


def _read_npz(path: Path) -> Table:
    columns: dict[str, Sequence[str] | NDArray[Any]] = {}
    first = ""
    try:
        # Opened here, since numpy leaves the file open where the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                array = arrays[key]
                if not isinstance(array, np.ndarray):
                    raise DataError(
                        f"{path}: a zip file, but not one of arrays; give CSV, or NPZ as "
                        "numpy.savez writes it"
                    )
                rows = _rows_of(f"{path}, array {key!r}", array)
                first = first or key
                if len(rows) != len(next(iter(columns.values()), rows)):
                    raise DataError(
                        f"{path}: array {key!r} has {len(rows)} rows, but {first!r} has "
                        f"{len(next(iter(columns.values())))}"
                    )
                for j in range(rows.shape[1]):
                    columns[key if rows.shape[1] == 1 else f"{key}[{j}]"] = rows[:, j]
    except DataError:
        raise
    # What a damaged archive raises depends on where the damage is.
    except (
        ValueError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError, MemoryError,
        struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path}: not a readable NPZ file ({str(error) or type(error).__name__})"
        ) from None
    if not columns:
        raise DataError(f"{path}: the NPZ file holds no arrays")
    return Table(str(path), columns)


def _rows_of(what: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` as (rows, values a row), its element type one that a column can have."""
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{what}: shape {array.shape} holds no rows")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "biufU":
        raise DataError(f"{what}: elements of type {array.dtype} are neither numbers nor texts")
    return array.reshape(len(array), -1)
