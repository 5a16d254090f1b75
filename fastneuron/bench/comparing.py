"""Compares two runs: what is slower, how sure that is, and what the runs could not have seen.

Two runs meet a machine in two moods. Each round also timed yardsticks that no change of
fastneuron touches; how far a row goes along with them is fitted to the rounds of both runs, and the
ratio of the runs is what is left between them. How much such ratios scatter where nothing changed,
between processes, is read off all rows together, most of which did not change. Both go into the
interval of a row. The rows of one kernel together make a narrower one, and that is judged too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.bench.results import Key, Result, Row
from fastneuron.profiling.pairs import CONFIDENCE, Ratio

__all__ = ["Change", "Comparison", "compare"]

#: Standard deviation of the logarithm of a row's time between two runs, where there are too few
#: rows to measure it, and of what all rows have in common beside the yardsticks. Five pairs of
#: quick runs on a busy virtual machine: 2.4 % (12 % before the fit), and 0.0 to 1.0 %.
SCATTER, COMMON = 0.02, 0.005
#: Entries from which their scatter is measured rather than believed.
_ENOUGH = 8
#: How far a row goes along with each yardstick, before any round is seen: mean and deviation.
_PULL, _PULL_SPREAD = 0.33, 0.5
#: Rounds in which a yardstick took so many times what it takes at its best quarter are left out:
#: the processor was shared. A busy neighbour on the other half of a core makes 1.4 of it.
_DISTURBED = 1.7
#: Tuning constant of Tukey's biweight: 95 % efficiency where the noise is normal.
_BIWEIGHT = 4.685
_TURNS = 10
#: Rounds of a run that a fit needs.
_FEWEST = 4


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
    """

    threshold: float
    kernels: tuple[Change, ...]
    rows: tuple[Change, ...]
    went_wrong: tuple[Row, ...]
    gone: tuple[Key, ...]
    come: tuple[Key, ...]
    differences: tuple[str, ...]
    scatter: float

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
    common = [key for key in before if key in after]
    shifts = _levelled([_shift(before[key], after[key]) for key in common])
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
        tuple(row for row in new.wrong if row.key in before),
        tuple(key for key in before if key not in after),
        tuple(key for key in after if key not in before),
        tuple(_differences(old, new)),
        scatter,
    )


class _Shift(NamedTuple):
    """Logarithm of new over old, and the variance of its error."""

    value: float
    variance: float

    def widened(self, scatter: float) -> _Shift:
        return _Shift(self.value, self.variance + scatter**2)


def _shift(old: Row, new: Row) -> _Shift:
    """Return how far a row moved between two runs, the yardsticks' share left out.

    A linear fit of log seconds: a level for each run, and a slope for each yardstick. Rounds far
    off (an interrupt, a neighbour that came or went) lose their weight: Tukey's biweight.
    """
    samples = [*old.samples, *new.samples]
    t = np.log(np.concatenate([sample.seconds for sample in samples]))
    pass_of = np.repeat(np.arange(len(samples)), [len(sample.seconds) for sample in samples])
    yards = np.log(np.concatenate([np.transpose(sample.yardsticks) for sample in samples]))
    calm = _calm(yards, pass_of >= len(old.samples))
    t, pass_of, yards = t[calm], pass_of[calm], yards[calm]
    is_new = (pass_of >= len(old.samples)).astype(float)
    yards = yards - np.median(yards, axis=0)
    design = np.column_stack([np.ones_like(t), is_new, yards])
    prior = np.zeros((yards.shape[1], design.shape[1]))
    prior[:, 2:] = np.eye(yards.shape[1])
    # From the medians on, so that a far round does not lead the way.
    level = np.median((t - _PULL * yards.sum(axis=1))[is_new == 0])
    moved = np.median((t - _PULL * yards.sum(axis=1))[is_new == 1]) - level
    fit = np.array([level, moved, *[_PULL] * yards.shape[1]])
    for _ in range(_TURNS):
        rest = t - design @ fit
        scale = 1.4826 * float(np.median(np.abs(rest))) + 1e-4
        weight = np.clip(1 - (rest / (_BIWEIGHT * scale)) ** 2, 0, None)
        trust = scale / _PULL_SPREAD
        left = np.concatenate([design * weight[:, None], prior * trust])
        right = np.concatenate([t * weight, np.full(len(prior), trust * _PULL)])
        fit = np.linalg.lstsq(left, right, rcond=None)[0]
    rest = t - design @ fit
    inverse = np.linalg.inv(left.T @ left)
    used = max(1.0, float(np.sum(weight > 0)) - design.shape[1])
    alone = float(inverse[1, 1] * np.sum((rest * weight) ** 2) / used)
    # Rounds of a pass have much in common: how far the passes lie apart says how much.
    between = sum(
        _of_mean([np.median(rest[pass_of == i]) for i in np.unique(pass_of[is_new == side])])
        for side in (0, 1)
    )
    return _Shift(float(fit[1]), max(alone, between))


def _of_mean(values: list[Any]) -> float:
    """Return the variance of the mean of some values, as far as they tell."""
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


def _calm(yards: NDArray[np.float64], is_new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rounds (n,) had the processor for themselves; all, where too few had."""
    limits = np.quantile(yards, 0.25, axis=0) + log(_DISTURBED)
    calm: NDArray[np.bool_] = np.all(yards < limits, axis=1)
    if min(np.count_nonzero(calm & is_new), np.count_nonzero(calm & ~is_new)) < _FEWEST:
        return np.ones_like(calm)
    return calm


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
    """Return the mean, each weighted by what it tells."""
    weights = np.array([1 / max(shift.variance, 1e-12) for shift in shifts])
    values: NDArray[np.float64] = np.array([shift.value for shift in shifts])
    return _Shift(float(values @ weights / weights.sum()), float(1 / weights.sum()))


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
