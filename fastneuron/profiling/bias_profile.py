"""`fn.profiling.bias`: what the bias costs a training step, measured, split and predicted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron.descriptions import checked_number
from fastneuron.profiling import bias_figure, bias_report
from fastneuron.profiling.bias_cost import CostModel, MachineSpeeds, agrees, measure_speeds
from fastneuron.profiling.bias_engine import AGAIN, BIAS, FROZEN, NONE, ONES, EngineSteps
from fastneuron.profiling.bias_parts import PARTS, LayerParts
from fastneuron.profiling.bias_slots import (
    FROZEN_FUSED,
    FUSED_BIAS,
    FUSED_NONE,
    ONES_APPENDED,
    SEPARATE_BIAS,
    SEPARATE_NONE,
    SlotSteps,
)
from fastneuron.profiling.pairs import (
    CONFIDENCE,
    SITTINGS,
    Difference,
    Ratio,
    Series,
    difference,
    in_sittings,
    ratio,
    ratio_of,
)
from fastneuron.profiling.sections import to_html, to_text
from fastneuron.profiling.workload import Setting, Workload

__all__ = ["BiasProfile", "Comparison", "PartCost", "bias", "profile"]

#: What is compared: (name, against), for whole steps of the engine and for steps of slots.
ENGINE_PAIRS = ((AGAIN, NONE), (BIAS, NONE), (FROZEN, NONE), (ONES, BIAS))
SLOT_PAIRS = (
    (FUSED_BIAS, FUSED_NONE),
    (SEPARATE_BIAS, SEPARATE_NONE),
    (SEPARATE_NONE, FUSED_NONE),
    (SEPARATE_BIAS, FUSED_BIAS),
    (FROZEN_FUSED, FUSED_NONE),
    (ONES_APPENDED, FUSED_BIAS),
)
#: Shares of the time for the engine's steps, the steps of slots, and the parts of layers.
_SHARES = (0.4, 0.3, 0.3)


@dataclass(frozen=True)
class Comparison:
    """Two ways to train one step, timed by turns.

    Attributes
    ----------
    group : "engine" or "slots"
    name, against : str
    ratio : Ratio
        Time of `name` over time of `against`.
    cost : Difference
        Of the same two, in seconds a step.
    predicted_seconds : float
        The same cost, said before anything was timed.
    """

    group: str
    name: str
    against: str
    ratio: Ratio
    cost: Difference
    predicted_seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the prediction, good to a factor of 2, meets the measured interval."""
        return agrees(self.predicted_seconds, self.cost.low, self.cost.high)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "group": self.group,
            "name": self.name,
            "against": self.against,
            **self.ratio.to_json(),
            "cost": self.cost.to_json(),
            "predicted_seconds": self.predicted_seconds,
            "prediction_agrees": self.agrees,
        }


@dataclass(frozen=True)
class PartCost:
    """What one part of the bias's work costs in one layer, a step.

    Attributes
    ----------
    layer : int
    part : "forward add", "backward reduction" or "update"
    fused : bool
        Within the layer's products and runs; else as a pass or a call of its own.
    cost : Difference
    share : Ratio
        The cost over the time of the layer's slots without a bias, in the same rounds: where the
        machine's pace changes from run to run, this does not.
    predicted_seconds : float
    """

    layer: int
    part: str
    fused: bool
    cost: Difference
    share: Ratio
    predicted_seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the prediction, good to a factor of 2, meets the measured interval."""
        return agrees(self.predicted_seconds, self.cost.low, self.cost.high)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "layer": self.layer,
            "part": self.part,
            "fused": self.fused,
            "cost": self.cost.to_json(),
            "share": {"value": self.share.value, "low": self.share.low, "high": self.share.high},
            "predicted_seconds": self.predicted_seconds,
            "prediction_agrees": self.agrees,
        }


@dataclass(frozen=True, repr=False)
class BiasProfile:
    """What the bias costs; print it, draw it with `figure`, or look into it.

    Attributes
    ----------
    setting : Setting
    step_seconds : dict of str to dict of str to float
        Median seconds of a step, by group and name.
    comparisons : tuple of Comparison
    parts : tuple of PartCost
        Empty where it was not asked for.
    skipped : dict of str to str
        What was not timed, and why.
    speeds : MachineSpeeds
        What the predictions rest on.
    worst_of_bound : float
        Of all results, the largest error as a share of its proved bound; at most 1.
    warm_up_seconds : float
        Compiling and loading before anything was timed.
    sittings : int
    rounds : dict of str to int
        Timed rounds of each group, all sittings together.
    seconds : float
        That the profile took.
    """

    setting: Setting
    step_seconds: dict[str, dict[str, float]]
    comparisons: tuple[Comparison, ...]
    parts: tuple[PartCost, ...]
    skipped: dict[str, str]
    speeds: MachineSpeeds
    worst_of_bound: float
    warm_up_seconds: float
    sittings: int
    rounds: dict[str, int]
    seconds: float

    def of(self, group: str, name: str) -> Comparison | None:
        """Return the first comparison of that name, or None where it was skipped."""
        for row in self.comparisons:
            if (row.group, row.name) == (group, name):
                return row
        return None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; ``docs/profiling.md`` says what they are."""
        return {
            "profile": "bias",
            "setting": self.setting.to_json(),
            "step_seconds": self.step_seconds,
            "comparisons": [row.to_json() for row in self.comparisons],
            "parts": [part.to_json() for part in self.parts],
            "skipped": self.skipped,
            "speeds": self.speeds.to_json(),
            "worst_of_bound": self.worst_of_bound,
            "warm_up_seconds": self.warm_up_seconds,
            "sittings": self.sittings,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "confidence": CONFIDENCE,
        }

    def figure(self) -> Any:
        """Return a matplotlib figure: ratios with their intervals, costs with their predictions.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        """
        return bias_figure.profile(self)

    def __str__(self) -> str:
        return to_text(bias_report.sections(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return to_html(bias_report.sections(self))


def bias(
    layers: Sequence[int] = (784, 512, 512, 10),
    batch_size: int = 256,
    *,
    activation: str = "relu",
    loss: str = "cross_entropy",
    optimizer: str = "adam",
    dtype: str = "float32",
    backend: str = "auto",
    n_threads: int = 1,
    seconds: float = 30.0,
    split: bool = True,
    seed: int = 0,
) -> BiasProfile:
    """Measure what the bias costs a training step.

    Whole steps of the engine are timed with biases, without, with frozen ones and with columns of
    ones; steps composed of the backend's slots with the bias fused and in passes of its own; and
    the parts of every layer. All take turns, in sittings with memory of their own; every result is
    compared with the float64 reference within its proved bound, and what every part should cost by
    its bytes and flops is predicted before.

    Parameters
    ----------
    layers : sequence of int
        Widths from the input to the output.
    batch_size : int
    activation, loss, optimizer, dtype : str
        As for `mlp` and `Trainer`.
    backend : str
    n_threads : int
        Of the engine; slots run on one thread.
    seconds : float
        For timing; comparing with the reference comes on top.
    split : bool
        Whether the parts of every layer are timed too.
    seed : int
        Of data, parameters and turns.

    Returns
    -------
    BiasProfile

    Raises
    ------
    SpecError, UnknownNameError, BackendUnavailable
        Where there is no such network or backend.
    WrongResult
        Where a contestant computes something else; nothing is reported then.
    """
    setting = Setting.checked(
        layers,
        batch_size,
        activation=activation,
        loss=loss,
        optimizer=optimizer,
        dtype=dtype,
        backend=backend,
        n_threads=n_threads,
    )
    checked_number("profile", "seconds", seconds, 0.0, open_low=True)
    return profile(setting, seconds, split=split, seed=seed)


def profile(
    setting: Setting, seconds: float, *, split: bool, seed: int = 0, sittings: int = SITTINGS
) -> BiasProfile:
    """Do what `bias` does, for a checked setting."""
    start = time.perf_counter()
    workload = Workload(setting, seed)
    engine, slots = EngineSteps(workload), SlotSteps(workload)
    for group in (engine, slots):
        for work in group.build(0).values():
            work(1)
    warm_up = time.perf_counter() - start
    layers = range(len(setting.sizes) - 1) if split else range(0)
    parts = [LayerParts(workload, index) for index in layers]
    groups: list[EngineSteps | SlotSteps | LayerParts] = [engine, slots, *parts]
    worst = max(group.check() for group in groups)
    speeds = measure_speeds(workload)
    model = CostModel(workload, speeds, engine.predicted_seconds())
    expected = {
        "engine": {name: model.engine(name) for name in engine.names},
        "slots": {name: model.slots(name) for name in slots.names},
    }
    shares = np.array(_SHARES if split else _SHARES[:2])
    shares *= seconds / shares.sum()
    timed = {
        "engine": in_sittings(engine.build, shares[0], sittings=sittings, seed=seed),
        "slots": in_sittings(slots.build, shares[1], sittings=sittings, seed=seed),
    }
    rows = _compared("engine", timed["engine"], ENGINE_PAIRS, expected["engine"])
    rows += _compared("slots", timed["slots"], SLOT_PAIRS, expected["slots"])
    costs: list[PartCost] = []
    for layer in parts:
        found = in_sittings(layer.build, shares[2] / len(parts), sittings=sittings, seed=seed)
        costs += _parted(layer, found, model)
    # Once more, after all those steps: nobody has timed what has gone wrong meanwhile.
    worst = max(worst, *(group.check() for group in groups))
    return BiasProfile(
        setting=setting,
        step_seconds={
            group: {name: series.median for name, series in found.items()}
            for group, found in timed.items()
        },
        comparisons=tuple(rows),
        parts=tuple(costs),
        skipped=dict(engine.skipped),
        speeds=speeds,
        worst_of_bound=worst,
        warm_up_seconds=warm_up,
        sittings=sittings,
        rounds={group: len(next(iter(found.values())).seconds) for group, found in timed.items()},
        seconds=time.perf_counter() - start,
    )


def _compared(
    group: str,
    timed: dict[str, Series],
    pairs: Sequence[tuple[str, str]],
    expected: dict[str, float],
) -> list[Comparison]:
    return [
        Comparison(
            group,
            name,
            against,
            ratio_of(timed[name], timed[against]),
            difference(timed[name], timed[against]),
            expected[name] - expected[against],
        )
        for name, against in pairs
        if name in timed and against in timed
    ]


def _parted(layer: LayerParts, timed: dict[str, Series], model: CostModel) -> list[PartCost]:
    costs = []
    whole = np.sum([timed[p.without].seconds for p in layer.pairs if p.without], axis=0)
    for pair in layer.pairs:
        one = timed[pair.with_it]
        other = timed[pair.without] if pair.without else None
        more = one.seconds - other.seconds if other else one.seconds
        costs.append(
            PartCost(
                layer.index,
                pair.part,
                pair.fused,
                difference(one, other),
                ratio(more, whole, sittings=one.sittings),
                model.part(layer.index, pair.part, fused=pair.fused),
            )
        )
    return sorted(costs, key=lambda cost: PARTS.index(cost.part))
