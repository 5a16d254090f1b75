"""A bias profile in words and tables, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING

from fastneuron.plans import duration
from fastneuron.profiling.bias_cost import FACTOR
from fastneuron.profiling.bias_engine import AGAIN, BIAS
from fastneuron.profiling.sections import Section, interval, microseconds

if TYPE_CHECKING:
    from fastneuron.profiling.bias_profile import BiasProfile, Comparison, PartCost

__all__ = ["sections"]

_GROUPS = {
    "engine": "Whole steps of the engine",
    "slots": "Steps composed of slots: the bias fused, or in passes of its own",
}


def sections(found: BiasProfile) -> list[Section]:
    """Return the profile as sections."""
    parts = [Section("", notes=_wrapped("What the bias costs: " + found.setting.label))]
    for group, title in _GROUPS.items():
        rows = [row for row in found.comparisons if row.group == group]
        steps = ", ".join(
            f"{name} {duration(seconds)}" for name, seconds in found.step_seconds[group].items()
        )
        parts.append(
            Section(
                title,
                ("time of one over the other", "ratio [95 %]", "verdict"),
                ("", "", ""),
                [(_named(row), interval_of(row), row.ratio.verdict) for row in rows],
                _wrapped(f"Medians of {found.rounds[group]} rounds: {steps}."),
            )
        )
    parts.append(
        Section(
            "Cost of a step, predicted from bytes and flops beside measured",
            ("one less the other", "predicted", "measured [95 %]", "agree"),
            ("", "[us]", "[us]", ""),
            [
                (
                    _named(row),
                    microseconds(row.predicted_seconds),
                    _cost(row),
                    "yes" if row.agrees else "no",
                )
                for row in found.comparisons
            ],
        )
    )
    if found.parts:
        parts.append(_layers(found))
    parts.append(Section("", notes=list(_told(found))))
    return parts


def interval_of(row: Comparison) -> str:
    """Return a ratio and its interval."""
    return interval(row.ratio.value, row.ratio.low, row.ratio.high, most=3)


def _cost(row: Comparison | PartCost) -> str:
    return interval(1e6 * row.cost.value, 1e6 * row.cost.low, 1e6 * row.cost.high)


def _named(row: Comparison) -> str:
    return f"{row.name} / {row.against}"


def _layers(found: BiasProfile) -> Section:
    shapes = ", ".join(f"{i}: {a}x{b}" for i, (a, b) in enumerate(pairwise(found.setting.sizes)))
    return Section(
        "Cost of each part in each layer, slots alone: where fused, with it less without",
        ("layer, part", "predicted", "measured [95 %]", "share", "agree"),
        ("", "[us]", "[us]", "[%]", ""),
        [
            (
                f"{c.layer} {c.part}, {'fused' if c.fused else 'own pass'}",
                microseconds(c.predicted_seconds),
                _cost(c),
                _share(c),
                "yes" if c.agrees else "no",
            )
            for c in found.parts
        ],
        _wrapped(f"Layers {shapes}. Share: of the time of the layer's slots without a bias."),
    )


def _told(found: BiasProfile) -> Iterator[str]:
    main, control = found.of("engine", BIAS), found.of("engine", AGAIN)
    if main is not None:
        said = "no measurable difference" if not main.ratio.differs else main.ratio.verdict
        yield from _wrapped(
            f"In the engine a step with biases takes {interval_of(main)} times one without: {said}."
        )
    if control is not None:
        outcome = (
            "they differ, so something disturbed this run: repeat it, and trust no smaller ratio"
            if control.ratio.differs
            else "no measurable difference, as it must be"
        )
        yield from _wrapped(f"Control, the same step twice: {interval_of(control)}; {outcome}.")
    rows: list[Comparison | PartCost] = [*found.comparisons, *found.parts]
    right = sum(row.agrees for row in rows)
    yield from _wrapped(
        f"{right} of {len(rows)} predictions, good to a factor of {FACTOR:g}, meet the measured "
        "interval."
    )
    for name, reason in found.skipped.items():
        yield from _wrapped(f"Not timed: {name}, since {reason}.")
    yield from _wrapped(
        f"Every result was compared with float64: errors up to {found.worst_of_bound:.0%} of the "
        f"proved bound. Compiling and warming up took {duration(found.warm_up_seconds)}, all of it "
        f"{duration(found.seconds)}; {found.sittings} sittings, arrays anew in each."
    )


def _wrapped(text: str) -> list[str]:
    return wrap(text, 80, break_on_hyphens=False)


def _share(part: PartCost) -> str:
    share = part.share
    return interval(100 * share.value, 100 * share.low, 100 * share.high).split()[0]
