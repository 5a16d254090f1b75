"""What an engine says of itself, to be looked up by programs and read by people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What is shown first, and beside which value its reason stands. An engine may say more, which is
# shown after these.
_REASONS = {"backend": "reason", "threads": "why"}
_FIRST = ("backend", "threads", "device", "batch_size", "n_parameters", "phases", "parts", "tiles")
# Parts of names that tell a unit of time, in seconds.
_UNITS = {"seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_UNIT = re.compile(rf"_({'|'.join(_UNITS)})(?=_|$)")


class Plan(Mapping[str, Any]):
    """A read-only mapping that prints as aligned lines: what `Trainer.plan` returns.

    Every backend says ``backend``, ``reason``, ``device``, ``threads``, ``why``, ``batch_size``,
    ``n_parameters`` and ``phases``. One with a cost model predicts a training step from its shapes
    and adds, among others:

    parts : list of dict
        Lines of the step with ``phase``, ``part``, ``layer``, ``predicted_us`` and
        ``multiply_adds``. The times are those of the busiest thread and sum up to the step.
    predicted_step_us, measured_step_us : float
        Microseconds of a step of ``rows_per_step`` rows. Measured is the mean of the calls so far,
        None before the second: the first may compile. A prediction is good to some 20 %.
    predicted_by_threads_us, measured_by_threads_us : dict of int to float
        The same for other thread counts: what the choice of ``threads`` rests on.
    tiles, state_bytes, scratch_bytes : int
    core_gflops, core_copy_gb_per_s : float
        Speeds of one core that the prediction rests on. The first plan of a process measures them,
        in milliseconds once the kernels are compiled; training alone never does.

    Parameters
    ----------
    values : mapping of str to JSON values
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    @classmethod
    def of(cls, said: Mapping[str, Any], **others: Any) -> Plan:
        """Return the plan of what an engine says of itself, and of what its trainer adds."""
        rest = dict(said)
        first = {"threads": rest.pop("n_threads", None), "why": rest.pop("threads_reason", "")}
        return cls({**first, **rest, **others})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        reasons = set(_REASONS.values())
        names = [name for name in _FIRST if name in self]
        names += [name for name in self if name not in names and name not in reasons]
        rows: list[tuple[str, str]] = []
        for name in names:
            lines = _lines(name, self[name])
            reason = self.get(_REASONS.get(name, ""))
            if reason:
                lines[0] += f" ({reason})"
            rows.append((_label(name), lines[0]))
            rows += [("", line) for line in lines[1:]]
        rows += [(name, str(self[name])) for name in reasons if name in self and self._alone(name)]
        width = max((len(label) for label, _ in rows), default=0)
        return "\n".join(f"{label:{width}}  {text}".rstrip() for label, text in rows)

    def _alone(self, reason: str) -> bool:
        """Return whether a reason stands beside nothing."""
        return not any(beside in self for beside, name in _REASONS.items() if name == reason)


def _label(name: str) -> str:
    return _UNIT.sub("", name).removeprefix("n_").replace("_", " ")


def _lines(name: str, value: Any) -> list[str]:
    """Return a value as at least one line."""
    if isinstance(value, Mapping):
        if not value:
            return ["none yet"]
        names = [str(key) for key in value]
        width = max(map(len, names))
        parts = [_lines(name, part) for part in value.values()]
        return [
            f"{key if i == 0 else '':{width}}  {line}"
            for key, lines in zip(names, parts, strict=True)
            for i, line in enumerate(lines)
        ]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(part, Mapping) for part in value):
            return _table(value)
        return [line for part in value for line in _lines(name, part)] or ["none"]
    return [_text(name, value)]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows that have the same columns as aligned lines under a head; None leaves a gap."""
    names = list(rows[0])
    cells = [[_label(name) for name in names]]
    cells += [
        ["" if row[name] is None else _text(name, row[name]) for name in names] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [not any(isinstance(row[name], str) for row in rows) for name in names]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in cells
    ]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if not isinstance(value, (int, float)):
        return str(value)
    unit = _UNIT.search(name)
    if unit is not None:
        return duration(value * _UNITS[unit[1]])
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return seconds as people read them: three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
