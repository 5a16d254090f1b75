"""What a run found: a row for each backend at each workload, as objects, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.bench.workloads import PEER_SUITES, label
from fastneuron.errors import DataError
from fastneuron.peers import OURS
from fastneuron.profiling.pairs import CONFIDENCE, Ratio

__all__ = ["FORMAT", "Key", "Result", "Row", "Sample"]

#: Resamples of an interval: its ends then err by some 5 % of its width.
_RESAMPLES = 1000
#: First entry of every file; another number is another layout.
FORMAT = "fastneuron bench 1"

Status = Literal["ok", "wrong", "failed", "missing"]


class Key(NamedTuple):
    """What makes rows of two runs the same row."""

    suite: str
    name: str
    shape: str
    dtype: str
    bias: bool | None
    backend: str

    @property
    def label(self) -> str:
        """The workload without its name."""
        return label(self.shape, self.dtype, self.bias)

    @property
    def of_peers(self) -> bool:
        """Whether this stands beside other libraries."""
        return self.suite in PEER_SUITES

    @property
    def foreign(self) -> bool:
        """Whether another library did it."""
        return self.of_peers and self.backend not in OURS


class Sample(NamedTuple):
    """The rounds of one pass.

    Attributes
    ----------
    seconds : list of float
        Of one unit.
    yardsticks : list of list of float
        What each yardstick took in the same rounds.
    """

    seconds: list[float]
    yardsticks: list[list[float]]


@dataclass(frozen=True)
class Row:
    """What was found of one backend at one workload.

    Attributes
    ----------
    key : Key
    status : {"ok", "wrong", "failed", "missing"}
        Only a row that is "ok" was timed.
    reason : str
        Why it is not "ok".
    flop, nbytes, rows : float
        What one unit is: see `Workload`.
    floor_seconds : float
        What the ceilings allow at best.
    error_over_bound : float
    start_seconds : float
        Of the first call in the process, compiling included; no part of any other figure.
    more : dict
    samples : tuple of Sample
        One a pass.
    """

    key: Key
    status: Status
    reason: str = ""
    flop: float = 0.0
    nbytes: float = 0.0
    rows: int = 0
    floor_seconds: float = 0.0
    error_over_bound: float | None = None
    start_seconds: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """The seconds of a unit, all rounds of all passes."""
        return np.array([s for sample in self.samples for s in sample.seconds])

    @property
    def median(self) -> float:
        """Median seconds of a unit."""
        return float(np.median(self.seconds))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Where the median lies with the house's confidence."""
        return _interval([sample.seconds for sample in self.samples])

    @property
    def share(self) -> float | None:
        """The share of the ceiling that is reached."""
        return self.floor_seconds / self.median if self.floor_seconds else None

    def figures(self) -> dict[str, Any]:
        """Return what a reader wants of a timed row, as plain values; units are in the names."""
        seconds = self.median
        low, high = self.interval
        share = self.share
        return {
            "microseconds": _round(1e6 * seconds),
            "low_microseconds": _round(1e6 * low),
            "high_microseconds": _round(1e6 * high),
            "gflop_s": _round(self.flop / seconds / 1e9) if self.flop else None,
            "gbyte_s": _round(self.nbytes / seconds / 1e9) if self.nbytes else None,
            "rows_s": _round(self.rows / seconds) if self.rows else None,
            "percent_of_ceiling": None if share is None else _round(100 * share),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        found = {**self.key._asdict(), "status": self.status, "reason": self.reason}
        found |= {"flop": self.flop, "nbytes": self.nbytes, "rows": self.rows}
        found |= {"floor_microseconds": _round(1e6 * self.floor_seconds)}
        found |= {"error_over_bound": _round(self.error_over_bound)}
        found |= {"start_seconds": _round(self.start_seconds), "more": self.more}
        found |= self.figures() if self.samples else {}
        found["samples"] = [
            {
                "microseconds": [_round(1e6 * s) for s in sample.seconds],
                "yardsticks": [[_round(1e6 * s) for s in one] for one in sample.yardsticks],
            }
            for sample in self.samples
        ]
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Row:
        """Return the row that `to_json` gave; figures are computed again from the samples."""
        samples = tuple(
            Sample(
                [1e-6 * s for s in sample["microseconds"]],
                [[1e-6 * s for s in one] for one in sample["yardsticks"]],
            )
            for sample in found["samples"]
        )
        key = Key(*(found[name] for name in Key._fields))
        names = ("status", "reason", "flop", "nbytes", "rows", "error_over_bound",
                 "start_seconds", "more")  # fmt: skip
        floor = 1e-6 * found["floor_microseconds"]
        return cls(key, samples=samples, floor_seconds=floor, **{n: found[n] for n in names})


def _interval(passes: list[list[float]]) -> tuple[float, float]:
    """Return where the median of all rounds lies with the house's confidence.

    A bootstrap that draws passes, then rounds of each: what a process has for all of its rounds,
    such as where its code and data lie, differs between passes only (Davison & Hinkley 1997,
    Bootstrap Methods and their Application, section 3.8).
    """
    rng = np.random.default_rng(0)
    rounds = min(map(len, passes))
    values = np.array([one[:rounds] for one in passes])
    drawn = rng.integers(0, len(values), (_RESAMPLES, len(values), 1))
    medians = np.median(
        values[drawn, rng.integers(0, rounds, (_RESAMPLES, len(values), rounds))], axis=(1, 2)
    )
    rest = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, (rest, 100 - rest))
    return float(low), float(high)


def _over(one: Row | None, other: Row | None) -> Ratio | None:
    """Return how many times the other's time a row takes in the same rounds, or None."""
    if one is None or other is None or one is other or not one.samples:
        return None
    if len(one.seconds) != len(other.seconds):
        return None
    shares = [
        np.divide(ours.seconds, theirs.seconds).tolist()
        for ours, theirs in zip(one.samples, other.samples, strict=True)
    ]
    return Ratio(float(np.median(np.concatenate(shares))), *_interval(shares))


def _round(value: float | None) -> float | None:
    """Return six digits: more than any clock gives, few enough to be read."""
    return None if value is None else float(f"{value:.6g}")


@dataclass(frozen=True)
class Result:
    """A run: its rows, and everything that they depend on.

    Attributes
    ----------
    machine : dict
        What `fastneuron info --json` says.
    settings : dict
        ``suite``, ``quick``, ``threads``, ``passes`` and ``rounds``.
    ceilings : dict
        What the machine can do at most, measured at the start.
    starts : dict of str to float
        Seconds in which each backend was loaded.
    missing : dict of str to str
        Backends that cannot run here, and why.
    rows : tuple of Row
    not_measured : int
        Workloads that the time did not suffice for.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    ceilings: dict[str, Any]
    starts: dict[str, float]
    missing: dict[str, str]
    rows: tuple[Row, ...]
    not_measured: int = 0

    def __str__(self) -> str:
        from fastneuron.bench.report import report

        return "\n".join(report(self))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    @property
    def wrong(self) -> list[Row]:
        """The rows whose result is wrong, or that failed."""
        return [row for row in self.rows if row.status in ("wrong", "failed")]

    @property
    def team(self) -> str:
        """With how many threads it ran, in words."""
        threads = self.settings["threads"]
        if threads is None:
            return "threads as the engines choose"
        return f"{threads} thread{'s' * (threads > 1)}"

    def by_key(self) -> dict[Key, Row]:
        """Return the rows by what they are."""
        return {row.key: row for row in self.rows}

    def against_numpy(self, row: Row) -> Ratio | None:
        """Return how many times as fast as NumPy's row of the same workload a row is."""
        return _over(self._by_key.get(row.key._replace(backend="numpy")), row)

    def against_ours(self, row: Row) -> Ratio | None:
        """Return how many times the time of `base` at the same workload a peer's row takes."""
        if not row.key.of_peers or self.base is None:
            return None
        return _over(row, self._by_key.get(row.key._replace(backend=self.base)))

    @cached_property
    def base(self) -> str | None:
        """Which of fastneuron's own the peers are put beside: the first that was timed with them.

        One for all workloads, so that a figure means the same in every line.
        """
        timed = {row.key.backend for row in self.rows if row.key.of_peers and row.samples}
        return next((name for name in OURS if name in timed), None)

    @cached_property
    def _by_key(self) -> dict[Key, Row]:
        return self.by_key()

    def to_json(self) -> dict[str, Any]:
        """Return the whole of it as plain values."""
        found = {"format": FORMAT, **asdict(self, dict_factory=dict)}
        found["rows"] = []
        for row in self.rows:
            entry = row.to_json()
            for name, against in (
                ("times_numpy", self.against_numpy(row)),
                ("times_ours", self.against_ours(row)),
            ):
                entry[name] = against and {
                    side: _round(getattr(against, side)) for side in ("value", "low", "high")
                }
            found["rows"].append(entry)
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        """Return what `to_json` gave.

        Raises
        ------
        DataError
            Where it is no such thing; the message says what is amiss.
        """
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DataError(
                f"not a result of `fastneuron bench --json`: its first entry would be "
                f'"format": "{FORMAT}"'
            )
        try:
            names = ("machine", "settings", "ceilings", "starts", "missing", "not_measured")
            rows = tuple(Row.from_json(row) for row in found["rows"])
            return cls(rows=rows, **{name: found[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a damaged result: {type(error).__name__} {error}") from error

    def write_json(self, path: str) -> None:
        """Write `to_json` to a file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_json(), file, indent=1, allow_nan=False)
            file.write("\n")

    def write_csv(self, path: str) -> None:
        """Write a line a row, without its rounds."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(self.to_csv())

    def to_csv(self) -> str:
        """Return a line a row, without its rounds, under a line of names."""
        lines = list(self._flat())
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def _flat(self) -> Iterator[dict[str, Any]]:
        for row in self.to_json()["rows"]:
            flat = {name: value for name, value in row.items() if name not in _NESTED}
            flat |= {name: (row[name] or {}).get("value") for name in ("times_numpy", "times_ours")}
            yield flat | row["more"]


_NESTED: Sequence[str] = ("samples", "more", "times_numpy", "times_ours")
