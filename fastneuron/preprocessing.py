"""From a raw table to arrays and back: which columns, how scaled, which classes; kept with a model.

A `Preprocessing` is fitted once, on a training table; its closed JSON description travels in the
model file, so that prediction takes the raw file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastneuron.descriptions import checked_number, from_description, to_description
from fastneuron.errors import DataError, SpecError
from fastneuron.registry import Registry
from fastneuron.tables import Table, listing, shorten

__all__ = [
    "CategoryFeature",
    "ClassTarget",
    "NumberFeature",
    "NumberTarget",
    "Preprocessing",
    "Task",
    "fit_target",
]

Task = Literal["auto", "classification", "regression"]

# A text column with more categories than this is an identifier or a remark, not a feature.
MAX_CATEGORIES = 1000
# A target of more different whole numbers than this, and of fewer rows than this for each of them,
# is a quantity as likely as a class.
MAX_SILENT_CLASSES = 20
MIN_ROWS_A_CLASS = 20


@dataclass(frozen=True)
class NumberFeature:
    """A column of numbers, standardised: ``(value - mean) / scale``.

    `mean` and `scale` (the standard deviation with 1/n) are those of the training rows; a column
    that is constant there has scale 1, so that it becomes 0 and no division can overflow.
    """

    kind: ClassVar[str] = "number"
    name: str
    mean: float
    scale: float

    def __post_init__(self) -> None:
        _set_scaling(self)

    @property
    def width(self) -> int:
        """Network inputs that the column becomes."""
        return 1

    def encode(self, table: Table, out: NDArray[Any]) -> None:
        """Write the column into `out` (n, 1)."""
        with np.errstate(over="ignore"):
            out[:, 0] = (table.numbers(self.name) - self.mean) / self.scale
        bad = np.flatnonzero(~np.isfinite(out[:, 0]))
        if bad.size:
            raise table.fault(
                f"{table.column(self.name)[bad[0]]} is too large for {out.dtype} after scaling",
                self.name,
                int(bad[0]),
            )


@dataclass(frozen=True)
class CategoryFeature:
    """A column of texts, one-hot: one input a category, 1 where the row has it and 0 elsewhere."""

    kind: ClassVar[str] = "category"
    name: str
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        _checked_name(self.name)
        categories = _checked_texts(self.name, self.categories, least=1)
        object.__setattr__(self, "categories", categories)

    @property
    def width(self) -> int:
        """Network inputs that the column becomes."""
        return len(self.categories)

    def encode(self, table: Table, out: NDArray[Any]) -> None:
        """Write the column into `out` (n, categories); an unseen category is a DataError.

        An all-zero block would be an input that training never met, so nothing is guessed.
        """
        out[...] = 0
        out[np.arange(len(out)), _codes(table, self.name, self.categories, "category")] = 1


@dataclass(frozen=True)
class ClassTarget:
    """A target of classes, numbered in the order of `classes`."""

    kind: ClassVar[str] = "classes"
    loss: ClassVar[str] = "cross_entropy"
    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _checked_name(self.name)
        object.__setattr__(self, "classes", _checked_texts(self.name, self.classes, least=2))

    @property
    def width(self) -> int:
        """Network outputs."""
        return len(self.classes)

    def encode(self, table: Table, dtype: DTypeLike) -> NDArray[Any]:
        """Return class numbers (n,) int64; an unseen class is a DataError."""
        return _codes(table, self.name, self.classes, "class")

    def decode(self, out: ArrayLike) -> NDArray[Any]:
        """Return the class of the largest logit, (n,) texts."""
        return np.asarray(self.classes)[np.argmax(np.asarray(out), axis=1)]


@dataclass(frozen=True)
class NumberTarget:
    """A target of numbers; the network is trained on ``(value - mean) / scale``."""

    kind: ClassVar[str] = "number"
    loss: ClassVar[str] = "mse"
    name: str
    mean: float
    scale: float

    def __post_init__(self) -> None:
        _set_scaling(self)

    @property
    def width(self) -> int:
        """Network outputs."""
        return 1

    def encode(self, table: Table, dtype: DTypeLike) -> NDArray[Any]:
        """Return the standardised target (n, 1)."""
        out = np.empty((table.n_rows, 1), dtype)
        NumberFeature(self.name, self.mean, self.scale).encode(table, out)
        return out

    def decode(self, out: ArrayLike) -> NDArray[Any]:
        """Return outputs (n, 1) in the target's own unit, (n,) float64."""
        return np.asarray(out, dtype=np.float64)[:, 0] * self.scale + self.mean


Feature: TypeAlias = NumberFeature | CategoryFeature
Target: TypeAlias = ClassTarget | NumberTarget

#: Kinds of columns by the name that model files use.
FEATURES: Registry[type[Feature]] = Registry("feature kind")
FEATURES.register(NumberFeature.kind, NumberFeature)
FEATURES.register(CategoryFeature.kind, CategoryFeature)
TARGETS: Registry[type[Target]] = Registry("target kind")
TARGETS.register(ClassTarget.kind, ClassTarget)
TARGETS.register(NumberTarget.kind, NumberTarget)


@dataclass(frozen=True)
class Preprocessing:
    """What turns a raw table into inputs (n, n_features) and targets, and outputs into answers."""

    features: tuple[Feature, ...]
    target: Target

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names or len({*names, self.target.name}) != len(names) + 1:
            raise SpecError("features: at least one, and names that differ from each other")

    @classmethod
    def fit(
        cls,
        table: Table,
        target: str,
        *,
        rows: NDArray[np.int64] | None = None,
        task: Task = "auto",
        ignore: Collection[str] = (),
        text: Collection[str] = (),
    ) -> Preprocessing:
        """Decide how each column of a training table enters the network.

        Parameters
        ----------
        table : Table
        target : str
            The column to predict. With task "auto" texts and whole numbers are classes, and other
            numbers are a quantity.
        rows : (m,) int64, optional
            The training rows: means and standard deviations come from these alone. Categories and
            classes come from all rows.
        task : {"auto", "classification", "regression"}
        ignore, text : collections of str
            Columns to leave out, and columns to take as text though they hold numbers.

        Raises
        ------
        DataError
            Where a column is unknown or unusable, or no feature is left.
        """
        for name in (target, *ignore, *text):
            table.column(name)
        features: list[Feature] = []
        for name in table.columns:
            if name == target or name in ignore:
                continue
            if name in text or table.kind(name) == "text":
                features.append(CategoryFeature(name, _categories(table, name)))
            else:
                features.append(NumberFeature(name, *_scaling(table.numbers(name), rows)))
        if not features:
            raise DataError(f"{table.origin}: no column is left to predict {target!r} from")
        return cls(tuple(features), fit_target(table, target, task, rows))

    @property
    def n_features(self) -> int:
        """Inputs of the network."""
        return sum(feature.width for feature in self.features)

    @property
    def loss(self) -> str:
        """Name of the loss that fits the target."""
        return self.target.loss

    def inputs(self, table: Table, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return the network's inputs (n, n_features); columns are found by name, others ignored.

        Raises
        ------
        DataError
            Where a column is missing, or a cell is missing, unseen or not a number.
        """
        absent = [feature.name for feature in self.features if feature.name not in table.columns]
        if absent:
            raise DataError(
                f"{table.origin}: the model needs the columns {listing(absent)}, which are not "
                f"there (columns: {listing(table.columns)})"
            )
        out = np.empty((table.n_rows, self.n_features), dtype)
        start = 0
        for feature in self.features:
            feature.encode(table, out[:, start : start + feature.width])
            start += feature.width
        return out

    def targets(self, table: Table, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return class numbers (n,) int64, or standardised numbers (n, 1)."""
        table.column(self.target.name)
        return self.target.encode(table, dtype)

    def to_json(self) -> dict[str, Any]:
        """Return a closed JSON description that `from_json` reads back."""
        return {
            "features": [to_description(feature, feature.kind) for feature in self.features],
            "target": to_description(self.target, self.target.kind),
        }

    @classmethod
    def from_json(cls, description: object) -> Preprocessing:
        """Rebuild from a description; a bad part is a SpecError or an UnknownNameError."""
        if not isinstance(description, Mapping) or set(description) != {"features", "target"}:
            raise SpecError("preprocessing has exactly the keys 'features' and 'target'")
        if not isinstance(description["features"], list):
            raise SpecError("preprocessing: 'features' must be a list")
        features = [
            from_description(FEATURES, entry, FEATURES) for entry in description["features"]
        ]
        target = from_description(TARGETS, description["target"], TARGETS)
        return cls(tuple(features), target)


def fit_target(
    table: Table, name: str, task: Task = "auto", rows: NDArray[np.int64] | None = None
) -> Target:
    """Decide what the column `name` is as a target; see `Preprocessing.fit`."""
    if task == "regression":
        return NumberTarget(name, *_scaling(table.numbers(name), rows))
    kind = table.kind(name)
    if task == "auto" and kind == "float":
        return NumberTarget(name, *_scaling(table.numbers(name), rows))
    texts = set(table.texts(name))
    # Whole numbers in the order of their values; booleans of an NPZ file spell True and False.
    whole = kind == "integer" and not texts <= {"True", "False"}
    classes = sorted(texts, key=int if whole else None)
    few_rows = table.n_rows < MIN_ROWS_A_CLASS * len(classes)
    if task == "auto" and kind == "integer" and len(classes) > MAX_SILENT_CLASSES and few_rows:
        raise table.fault(
            f"{len(classes)} different whole numbers may be classes or a quantity; choose the "
            "task, classification or regression (--task)",
            name,
        )
    if len(classes) < 2:
        raise table.fault(
            f"every row has the same class {shorten(classes[0])}; there is nothing to learn", name
        )
    return ClassTarget(name, tuple(classes))


def _categories(table: Table, name: str) -> tuple[str, ...]:
    categories = sorted(set(table.texts(name)))
    if len(categories) > MAX_CATEGORIES:
        raise table.fault(
            f"{len(categories)} different texts are too many for one-hot inputs (at most "
            f"{MAX_CATEGORIES}); leave the column out (--ignore), or turn it into fewer groups",
            name,
        )
    return tuple(categories)


def _scaling(values: NDArray[np.float64], rows: NDArray[np.int64] | None) -> tuple[float, float]:
    """Return mean and standard deviation of the training rows, the deviation never 0."""
    if rows is not None:
        values = values[rows]
    # Divided by the largest magnitude first, so that no square overflows or vanishes.
    size = float(np.max(np.abs(values))) or 1.0
    mean = float(np.mean(values / size))
    deviation = float(np.std(values / size))
    # Below this a spread is the rounding of equal values.
    if deviation <= 4 * np.finfo(np.float64).eps or size * deviation == 0.0:
        return mean * size, 1.0
    return mean * size, deviation * size


def _codes(
    table: Table, name: str, known: tuple[str, ...], what: Literal["category", "class"]
) -> NDArray[np.int64]:
    """Return the position in `known` of each cell, (n,) int64."""
    numbers = {text: i for i, text in enumerate(known)}
    codes = np.empty(table.n_rows, dtype=np.int64)
    for row, text in enumerate(table.texts(name)):
        code = numbers.get(text)
        if code is None:
            raise table.fault(
                f"{shorten(text)} is a {what} that training never saw (known: {listing(known)}); "
                "mend the cell, or train again with such rows",
                name,
                row,
            )
        codes[row] = code
    return codes


def _set_scaling(column: NumberFeature | NumberTarget) -> None:
    owner = f"column {_checked_name(column.name)}"
    mean = checked_number(owner, "mean", column.mean, -math.inf)
    scale = checked_number(owner, "scale", column.scale, open_low=True)
    object.__setattr__(column, "mean", mean)
    object.__setattr__(column, "scale", scale)


def _checked_texts(name: object, texts: object, least: int) -> tuple[str, ...]:
    """Return `texts`, a list or a tuple, as a tuple of at least `least` texts that differ."""
    if (
        not isinstance(texts, (list, tuple))
        or not all(isinstance(text, str) for text in texts)
        or not least <= len(set(texts)) == len(texts)
    ):
        raise SpecError(f"column {_checked_name(name)}: needs at least {least} texts that differ")
    return tuple(texts)


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise SpecError(f"the name of a column must be a text, got {name!r:.80}")
    return shorten(name)
