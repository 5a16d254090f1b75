"""Compares two runs: what is slower, how sure that is, and what the runs could not have seen.

Two runs meet a machine in two moods. Each round also timed yardsticks that no change of fastneuron
touches, and rounds are compared with such rounds of the other run only in which the yardsticks tell
of the same mood. How much the ratios scatter where nothing changed, between processes, is read off
all rows together, most of which did not change. Both go into the interval of a row. The rows of one
kernel together make a narrower one, and that is judged too. What other libraries do is not ours to
regress: their rows are not judged, but their ratios to ours are held beside those of the other run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.bench.agreement import Agreement, agreement
from fastneuron.bench.results import Key, Result, Row
from fastneuron.profiling.pairs import CONFIDENCE, Ratio

__all__ = ["Change", "Comparison", "compare"]

#: Standard deviation of the logarithm of a row's time between two runs, where there are too few
#: rows to measure it, and of what all rows have in common beside the yardsticks. Five pairs of
#: quick runs on a busy virtual machine: 2.4 % (12 % before the fit), and 0.0 to 1.0 %.
SCATTER, COMMON = 0.02, 0.005
#: Entries from which their scatter is measured rather than believed.
_ENOUGH = 8
#: Two rounds tell of the same mood where their yardsticks differ by no more than so much, in parts
#: of their time: one from the other, and all together. A round's own noise is 0.03. A busy
#: neighbour on the other half of a core makes 0.3 of the first; another clock changes the second.
_LIKE_EACH, _LIKE_ALL = 0.05, 0.1
#: Rounds of each run that must have their like in the other one, and from which weight on a pair
#: is alike.
_FEWEST, _ALIKE = 6, 0.1


class Change(NamedTuple):
    """What became of one row, or of all rows of a kernel.

    Attributes
    ----------
    name : str
        Of what is measured; `backend` and `label` say whose, and at what (nothing: all rows).
    ratio : Ratio
        New over old. The intervals of all rows of a comparison hold together with the stated
        confidence, not each for itself, and so do those of all kernels.
    rows : int
    """

    name: str
    backend: str
    label: str
    ratio: Ratio
    rows: int

    def slower(self, threshold: float) -> bool:
        """Return whether it is slower for sure, and perhaps by the threshold or more."""
        return self.ratio.low > 1 and self.ratio.high >= 1 + threshold

    def blind(self, threshold: float) -> bool:
        """Return whether a slow-down by the threshold could have passed unseen."""
        return self.ratio.value / self.ratio.low > 1 + threshold


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other.

    Attributes
    ----------
    threshold : float
        Slow-down that is not let pass.
    kernels, rows : tuple of Change
    went_wrong : tuple of Row
        Rows of the new run that are wrong or failed.
    gone, come : tuple of Key
        What only the old run, and only the new run has timed.
    differences : tuple of str
        In what machine, versions and settings of the runs differ.
    scatter : float
        Deviation of a row's time between the runs that no round shows.
    other_moods : int
        Rows that could not be compared, since the runs met the machine in other moods.
    foreign : int
        Rows of other libraries that both runs have: not judged, and in no other figure.
    agreement : Agreement
        Of the ratios to NumPy, and of peers to fastneuron.
    """

    threshold: float
    kernels: tuple[Change, ...]
    rows: tuple[Change, ...]
    went_wrong: tuple[Row, ...]
    gone: tuple[Key, ...]
    come: tuple[Key, ...]
    differences: tuple[str, ...]
    scatter: float
    other_moods: int
    foreign: int
    agreement: Agreement

    @property
    def slower(self) -> list[Change]:
        """Kernels, then rows, that are slower for sure, and perhaps by the threshold or more."""
        return [c for c in (*self.kernels, *self.rows) if c.slower(self.threshold)]

    @property
    def passed(self) -> bool:
        """Whether nothing is slower and nothing wrong."""
        return not self.slower and not self.went_wrong

    @property
    def verdict(self) -> str:
        """One line of what is to be said."""
        parts = []
        if self.went_wrong:
            parts.append(f"{len(self.went_wrong)} rows are wrong or failed")
        slower = self.slower
        if slower:
            worst = max(slower, key=lambda change: change.ratio.value)
            parts.append(
                f"{len(slower)} of {len(self.kernels)} kernels and {len(self.rows)} rows are "
                f"slower; the most: {worst.name} {worst.label}".rstrip()
                + f", {worst.backend}, {worst.ratio.value - 1:.1%}"
            )
        return "; ".join(parts) or "nothing is measurably slower"

    def __str__(self) -> str:
        from fastneuron.bench.changes import report

        return "\n".join(report(self))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def to_json(self) -> dict[str, Any]:
        """Return the whole of it as plain values."""

        def plain(change: Change) -> dict[str, Any]:
            return {**change._asdict(), "ratio": change.ratio.to_json(),
                    "slower": change.slower(self.threshold)}  # fmt: skip

        return {
            "format": "fastneuron bench comparison 1",
            "passed": self.passed,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "scatter": self.scatter,
            "other_moods": self.other_moods,
            "not_judged": self.foreign,
            "ratios": self.agreement.ratios,
            "agree": self.agreement.agree,
            "apart": [one.to_json() for one in self.agreement.apart],
            "differences": list(self.differences),
            "kernels": [plain(change) for change in self.kernels],
            "rows": [plain(change) for change in self.rows],
            "went_wrong": [{**row.key._asdict(), "reason": row.reason} for row in self.went_wrong],
            "gone": [key._asdict() for key in self.gone],
            "come": [key._asdict() for key in self.come],
        }


def compare(old: Result, new: Result, *, threshold: float = 0.05) -> Comparison:
    """Return what changed from one run to another.

    Parameters
    ----------
    old, new : Result
    threshold : float
        Slow-down that is not let pass: 0.05 is 5 %.
    """
    before, after = ({row.key: row for row in run.rows if row.samples} for run in (old, new))
    both = [key for key in before if key in after]
    moved = {key: _shift(before[key], after[key]) for key in both if not key.foreign}
    known = {key: shift for key, shift in moved.items() if shift is not None}
    common = list(known)
    shifts = _levelled(list(known.values()))
    scatter = _scatter(shifts)
    kernels: dict[tuple[str, str], list[_Shift]] = {}
    for key, shift in zip(common, shifts, strict=True):
        kernels.setdefault((key.name, key.backend), []).append(shift.widened(scatter))
    together = [_mean(group) for group in kernels.values()]
    together_scatter = _scatter(together, 0.0)
    several = [i for i, group in enumerate(kernels.values()) if len(group) > 1]
    z_row, z_kernel = _quantile(len(common)), _quantile(len(several))
    changes = [
        Change(key.name, key.backend, key.label, _interval(shift.widened(scatter), z_row), 1)
        for key, shift in zip(common, shifts, strict=True)
    ]
    names = list(kernels)
    whole = [
        Change(*names[i], "", _interval(together[i].widened(together_scatter), z_kernel),
               len(kernels[names[i]]))
        for i in several
    ]  # fmt: skip
    return Comparison(
        threshold,
        tuple(whole),
        tuple(changes),
        tuple(row for row in new.wrong if row.key in before and not row.key.foreign),
        tuple(key for key in before if key not in after),
        tuple(key for key in after if key not in before),
        tuple(_differences(old, new)),
        scatter,
        len(moved) - len(known),
        len(both) - len(moved),
        agreement(old, new),
    )


class _Shift(NamedTuple):
    """Logarithm of new over old, the variance of its error, and how far the passes lie from it.

    `passes` are those of the old run and of the new one; NaN where none of a pass was compared.
    """

    value: float
    variance: float
    passes: tuple[NDArray[np.float64], ...] = ()

    def widened(self, scatter: float) -> _Shift:
        return self._replace(variance=self.variance + scatter**2)


def _shift(old: Row, new: Row) -> _Shift | None:
    """Return how far a row moved between two runs, or None where they met in other moods.

    The median of the logarithm of new over old, over all pairs of rounds (Hodges & Lehmann 1963,
    Estimates of location based on rank tests), each weighted by how alike their moods are, and the
    yardsticks' mean taken off.
    """
    sides = [_Rounds.of(old), _Rounds.of(new)]
    apart = sides[1].yards[None] - sides[0].yards[:, None]  # (old, new, yardsticks)
    clock = apart.mean(axis=2)
    each = np.square(apart - clock[..., None]).sum(axis=2)
    weight = np.exp(-each / (2 * _LIKE_EACH**2) - clock**2 / (2 * _LIKE_ALL**2))
    if min(np.count_nonzero(weight.max(axis=axis) > _ALIKE) for axis in (0, 1)) < _FEWEST:
        return None
    moved = sides[1].seconds[None] - sides[0].seconds[:, None] - clock
    value = _weighted_median(moved.ravel(), weight.ravel())
    alone = between = 0.0
    apart_by_pass = []
    for axis, side in enumerate(sides):
        # Each round against all its like in the other run.
        shares = weight.sum(axis=1 - axis)
        rests = (weight * (moved - value)).sum(axis=1 - axis) / np.maximum(shares, 1e-300)
        alone += _spread(rests, shares) ** 2 / _effective(shares)
        # Rounds of a pass have much in common: how far the passes lie apart says how much.
        passes = np.unique(side.pass_of)
        held = np.array([shares[side.pass_of == one].sum() for one in passes])
        means = np.array(
            [
                _weighted_median(rests[side.pass_of == one], shares[side.pass_of == one])
                for one in passes
            ]
        )
        apart_by_pass.append(np.where(held > 1e-3 * held.max(), means, np.nan))
        if _effective(held) > 1.5:
            mean = float(means @ held / held.sum())
            spread = float(held @ np.square(means - mean)) / held.sum()
            between += spread / (_effective(held) - 1)
    return _Shift(value, max(alone, between), tuple(apart_by_pass))


class _Rounds(NamedTuple):
    """Logarithms of the seconds (n,) and of the yardsticks (n, k) of all rounds, and their pass."""

    seconds: NDArray[np.float64]
    yards: NDArray[np.float64]
    pass_of: NDArray[np.int64]

    @classmethod
    def of(cls, row: Row) -> _Rounds:
        return cls(
            np.log(np.concatenate([sample.seconds for sample in row.samples])),
            np.log(np.concatenate([np.transpose(sample.yardsticks) for sample in row.samples])),
            np.repeat(np.arange(len(row.samples)), [len(s.seconds) for s in row.samples]),
        )


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def _spread(rests: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return a robust standard deviation of what is about 0."""
    return 1.4826 * _weighted_median(np.abs(rests), weights)


def _effective(weights: NDArray[np.float64]) -> float:
    """Return how many equal weights tell as much."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _levelled(shifts: list[_Shift]) -> list[_Shift]:
    """Return the shifts with no error below the middle one: few passes tell little of their own."""
    typical = float(np.median([shift.variance for shift in shifts])) if shifts else 0.0
    return [shift._replace(variance=max(shift.variance, typical)) for shift in shifts]


def _scatter(shifts: Sequence[_Shift], believed: float = SCATTER) -> float:
    """Return the deviation that the shifts have beyond their own errors, robustly.

    What all have in common is left out: a change of everything is a change.
    """
    if len(shifts) < _ENOUGH:
        return believed
    values = np.array([shift.value for shift in shifts])
    spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    own = float(np.median([shift.variance for shift in shifts]))
    return sqrt(max(0.0, spread**2 - own))


def _mean(shifts: Sequence[_Shift]) -> _Shift:
    """Return the mean, each weighted by what it tells.

    Rows of a kernel come one after the other in a pass, on the same pages of memory: where those
    lie well, all are fast. So the variance is at least what the passes' own means show.
    """
    weights = np.array([1 / max(shift.variance, 1e-12) for shift in shifts])
    values: NDArray[np.float64] = np.array([shift.value for shift in shifts])
    between = 0.0
    for side in (0, 1):
        passes = [shift.passes[side] for shift in shifts if shift.passes]
        if not passes or len(set(map(len, passes))) > 1:
            continue
        deviations = np.array(passes)
        shares = np.where(np.isnan(deviations), 0.0, weights[: len(passes), None])
        held = shares.sum(axis=0) > 0
        if np.count_nonzero(held) > 1:
            means = np.nansum(shares * deviations, axis=0)[held] / shares.sum(axis=0)[held]
            between += float(np.var(means, ddof=1)) / len(means)
    return _Shift(float(values @ weights / weights.sum()), max(float(1 / weights.sum()), between))


def _quantile(tests: int) -> float:
    """Return how many deviations hold all of so many intervals together (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, tests))


def _interval(shift: _Shift, z: float) -> Ratio:
    reach = z * sqrt(shift.variance + COMMON**2)
    return Ratio(exp(shift.value), exp(shift.value - reach), exp(shift.value + reach))


def _differences(old: Result, new: Result) -> list[str]:
    found = []
    for what, one, other in (("", old.machine, new.machine), ("", old.settings, new.settings)):
        for name in dict.fromkeys((*one, *other)):
            if one.get(name) == other.get(name):
                continue
            if name == "versions":
                for package in dict.fromkeys((*one[name], *other[name])):
                    pair = one[name].get(package), other[name].get(package)
                    if pair[0] != pair[1]:
                        found.append(f"{package}: {pair[0]} -> {pair[1]}")
            else:
                found.append(f"{what}{name}: {one.get(name)} -> {other.get(name)}")
    return found
