"""The suite `data`: what happens to rows on their way from a file into an engine."""

from __future__ import annotations

import atexit
import csv
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastneuron.arrays import as_rows, as_targets
from fastneuron.bench.step_problem import OPTIMIZERS, StepProblem
from fastneuron.bench.workloads import HOST, Prepare, Prepared, Workload, first_call, repeated
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.order import EpochOrder
from fastneuron.preprocessing import Preprocessing
from fastneuron.spec import NetworkSpec
from fastneuron.tables import read_table

__all__ = ["data"]

#: Rows of a batch and their columns, that are gathered from a data set of so many bytes: beyond
#: the caches, as data sets are.
BATCH, COLUMNS, DATA_BYTES = 256, 784, 48 << 20
#: Rows and columns of a table.
TABLE = (2000, 20)
#: Rows of the epochs that are shuffled: many short epochs share a seek, a long one has its own.
EPOCHS = ((1000, 4), (60_000, 1))

#: Returns what is timed, and a check of its result that raises AssertionError.
Made = tuple[Callable[[], Any], Callable[[Any], None]]


def data() -> Iterator[Workload]:
    """Yield gathering, shuffling, checking arrays, reading tables."""
    for dtype in ("float32", "float64"):
        size = np.dtype(dtype).itemsize
        yield Workload(
            "data", "gather", f"{BATCH}x{COLUMNS} step to 1 output", dtype, None,
            partial(_gather, dtype), nbytes=BATCH * COLUMNS * size, rows=BATCH,
            quick=dtype == "float32",
        )  # fmt: skip
    for rows, epochs in EPOCHS:
        yield _host(
            "order", f"{epochs} x {rows:,} rows", "int64", partial(_order, rows, epochs),
            8 * epochs * rows, epochs * rows,
        )  # fmt: skip
    numbers = BATCH * COLUMNS
    for what, dtype, nbytes in (
        ("as it is", "float32", 4 * numbers),
        ("to float32", "float64", 12 * numbers),
        ("transposed", "float32", 8 * numbers),
        ("to float32", "uint8", 5 * numbers),
    ):
        shape = f"{BATCH}x{COLUMNS} {what}"
        yield _host("check rows", shape, dtype, partial(_rows, what, dtype), nbytes, BATCH)
    yield _host("check classes", f"{BATCH}", "int64", _classes, 8 * BATCH, BATCH)
    shape = f"{TABLE[0]:,}x{TABLE[1]}"
    for name, make in (
        ("read csv", _read_csv), ("read npz", _read_npz), ("csv to inputs", _inputs)
    ):  # fmt: skip
        yield _host(name, shape, "float64", make, 0, TABLE[0])


def _host(
    name: str, shape: str, dtype: str, make: Callable[[], Made], nbytes: float, rows: int
) -> Workload:
    def build() -> Prepare:
        function, check = make()

        def prepare(_: str) -> Prepared:
            got, seconds = first_call(function)
            check(got)
            # What is compared has no rounding: it is equal, or wrong.
            return Prepared(repeated(function), 0.0, seconds)

        return prepare

    return Workload(
        "data", name, shape, dtype, None, build,
        nbytes=nbytes, rows=rows, quick=True, backends=HOST,
    )  # fmt: skip


def _gather(dtype: str) -> Prepare:
    """Return training steps that are nearly nothing but gathering their rows."""
    spec = NetworkSpec.chain([Dense(COLUMNS, 1)], dtype)
    rows = DATA_BYTES // (COLUMNS * np.dtype(dtype).itemsize)
    return StepProblem(spec, LOSSES["mse"], OPTIMIZERS["sgd"], BATCH, rows).prepare


def _order(rows: int, epochs: int) -> Made:
    order = EpochOrder(rows, seed=0)
    single = EpochOrder(rows, seed=0)

    def check(got: Any) -> None:
        want = np.concatenate([single.take(1) for _ in range(epochs)])
        np.testing.assert_array_equal(got, want, "epochs taken together and one by one")
        np.testing.assert_array_equal(np.sort(got), np.tile(np.arange(rows), (epochs, 1)))
        assert (got != np.arange(rows)).any(), "the rows were not shuffled"

    return partial(order.take, epochs), check


def _rows(what: str, dtype: str) -> Made:
    rng = np.random.default_rng(0)
    x = rng.normal(100, 30, (BATCH, COLUMNS)).clip(0, 255).astype(dtype)
    if what == "transposed":
        x = np.asfortranarray(x)

    def check(got: Any) -> None:
        np.testing.assert_array_equal(got, x.astype(np.float32))
        assert got.dtype == np.float32, got.dtype
        assert got.flags.c_contiguous, "rows are not contiguous"
        assert np.shares_memory(got, x) == (what == "as it is"), "copied, or not copied"

    return partial(as_rows, x, "X", np.float32), check


def _classes() -> Made:
    y = np.random.default_rng(0).integers(0, 10, BATCH)

    def check(got: Any) -> None:
        np.testing.assert_array_equal(got, y)

    return partial(as_targets, y, "classes", BATCH, 10, np.float32), check


@cache
def _files() -> tuple[Path, Path, dict[str, Any]]:
    """Write a table as CSV and as NPZ, until the process ends; return paths and columns."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    rng = np.random.default_rng(0)
    rows, columns = TABLE
    table: dict[str, Any] = {f"x{i}": rng.normal(size=rows) for i in range(columns - 1)}
    table["kind"] = rng.choice(["ash", "beech", "oak"], rows)
    plain, packed = Path(folder.name, "table.csv"), Path(folder.name, "table.npz")
    with plain.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    np.savez(packed, **table)
    return plain, packed, table


def _read(path: Path, table: dict[str, Any]) -> Made:
    def check(got: Any) -> None:
        assert list(got.columns) == list(table), "columns"
        for name, column in table.items():
            read = got.texts(name) if name == "kind" else got.numbers(name)
            np.testing.assert_array_equal(read, column, name)

    return partial(read_table, path), check


def _read_csv() -> Made:
    plain, _, table = _files()
    return _read(plain, table)


def _read_npz() -> Made:
    _, packed, table = _files()
    return _read(packed, table)


def _inputs() -> Made:
    plain, _, columns = _files()
    table = read_table(plain)

    def function() -> Any:
        return Preprocessing.fit(table, "kind").inputs(table, np.float64)

    def check(got: Any) -> None:
        x = np.stack([columns[name] for name in columns if name != "kind"], axis=1)
        want = (x - x.mean(axis=0)) / x.std(axis=0)
        # Two roundings for the mean and spread of 2,000 numbers each, generously.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)

    return function, check
