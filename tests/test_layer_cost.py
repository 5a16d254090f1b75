"""What the cost model says of layers without products, and of what is not trained."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from fastneuron.kernels.cost import Course
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.explanation import explain
from fastneuron.kernels.layout import Layout
from fastneuron.kernels.prices import Prices
from fastneuron.kernels.speeds import TYPICAL, Speeds
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam
from fastneuron.spec import NetworkSpec

LANES = 32
#: Networks of every kind of layer, in every state of training.
NETWORKS: dict[str, list[Any]] = {
    "batch norm": [Dense(70, 64), BatchNorm(activation="relu"), Dense(out_features=10)],
    "two batch norms": [
        BatchNorm(20),
        Dense(out_features=40),
        BatchNorm(activation="relu"),
        Dense(out_features=3),
    ],
    "layer norm": [Dense(70, 64), LayerNorm(activation="relu"), Dense(out_features=10)],
    "dropout": [Dropout(0.2, 70), Dense(out_features=64), Dropout(), Dense(out_features=3)],
    "frozen first": [
        Dense(70, 64, "relu", trainable=False),
        Dense(out_features=64, activation="relu"),
        Dense(out_features=10),
    ],
    "frozen norm": [
        Dense(70, 64, bias=False),
        BatchNorm(activation="relu", trainable=False),
        Dense(out_features=10, trainable=False),
    ],
    "lone bias": [
        Dense(70, 64, "relu", trainable="bias"),
        Dense(out_features=64, trainable="weight"),
        LayerNorm(trainable="bias"),
        BatchNorm(trainable="weight", activation="relu"),
        Dense(out_features=10, trainable="bias"),
    ],
    "nothing trained": [Dense(70, 64, "relu", trainable=False), Dropout()],
}
networks = pytest.mark.parametrize("name", NETWORKS)
ROWS = 100
COUNTING = Speeds(slot=1.0, byte=1.0, barrier=1.0, wake=1.0)


def model_of(name: str, **options: Any) -> StepModel:
    given = {"loss": LOSSES["cross_entropy"], "optimizer": Adam(), **options}
    return StepModel(NetworkSpec.chain(NETWORKS[name]), lanes=LANES, **given)


def prices(**wanted: Any) -> Prices:
    """Prices of nothing but what is named."""
    free = {field.name: 0.0 for field in fields(Prices) if field.name != "update"}
    return Prices(**{**free, "update": dict.fromkeys(Prices().update, 0.0), **wanted})


@networks
def test_the_parts_hold_the_products_of_what_is_trained(name: str) -> None:
    spec, model = NetworkSpec.chain(NETWORKS[name]), model_of(name)
    trained = {i for i, x in enumerate(spec.layers) if x.trains_weight or x.trains_bias}
    for threads in (1, 2, 5):
        for estimate in (
            model.step(ROWS, threads, TYPICAL),
            model.by_columns(ROWS, threads, TYPICAL),
        ):
            found: dict[str, set[Any]] = {}
            for part in estimate.parts:
                assert part.seconds >= 0
                found.setdefault(part.name, set()).add(part.layer)
                if part.layer is not None and not isinstance(spec.layers[part.layer], Dense):
                    assert part.multiply_adds == 0
            assert sum(part.multiply_adds for part in estimate.parts) == ROWS * spec.multiply_adds
            assert found["forward"] == set(range(len(spec.layers)))
            assert found.get("deltas", set()) == set(range(spec.back_to, len(spec.layers)))
            assert found.get("gradient", set()) == found.get("update", set()) == trained


@networks
def test_tiles_are_counted_as_they_are_laid_out(name: str) -> None:
    layout = Layout.build(NetworkSpec.chain(NETWORKS[name]), LANES, ROWS, 2)
    assert model_of(name).n_tiles == len(layout.tiles)


@networks
def test_every_cost_has_a_price(name: str) -> None:
    ours = Prices()
    singles = [{f.name: getattr(ours, f.name)} for f in fields(Prices)]
    for threads in (1, 2):
        # Barriers have a speed and no price.
        speeds = Speeds(TYPICAL.slot, TYPICAL.byte, 0.0, 0.0)
        whole = model_of(name).step(ROWS, threads, speeds).seconds
        parts = [
            model_of(name, prices=prices(**one)).step(ROWS, threads, speeds).seconds
            for one in singles
        ]
        assert math.isclose(sum(parts), whole, rel_tol=1e-9)


@networks
def test_more_rows_take_longer_and_more_threads_never_lengthen_a_phase(name: str) -> None:
    model = model_of(name)
    before = {"A": math.inf, "B": math.inf}
    for threads in (1, 2, 3, 4, 8, 16):
        assert model.step(ROWS + 8, threads, TYPICAL).seconds > 0
        parts = model.step(ROWS, threads, TYPICAL).parts
        for phase in before:
            now = sum(part.seconds for part in parts if part.phase == phase)
            assert now <= before[phase] * (1 + 1e-12), (phase, threads)
            before[phase] = now
    one = [model.step(rows, 1, TYPICAL).seconds for rows in (ROWS, ROWS + 8)]
    assert one[0] < one[1]


@pytest.mark.parametrize(
    ("name", "meetings"),
    [
        ("batch norm", 2 + 2),  # before and behind it, each way
        ("two batch norms", 2 * (2 + 2)),
        ("layer norm", 0),
        ("frozen norm", 0),
    ],
)
def test_a_batch_normalisation_takes_four_meetings(name: str, meetings: int) -> None:
    model = model_of(name, prices=prices())
    phases = 2 if model.fused else 3
    for threads in (1, 2, 4):
        want = (phases + meetings) * math.log2(threads)
        assert model.step(ROWS, threads, COUNTING).seconds == pytest.approx(want)


def test_the_panels_of_a_batch_normalisation_are_dealt_out() -> None:
    model = model_of("batch norm", prices=prices(batch_norm=1.0))  # 64 columns: two panels
    for threads, panels in [(1, 2), (2, 1), (3, 1), (8, 1)]:
        for estimate in (model.step, model.by_columns):
            got = sum(p.seconds for p in estimate(ROWS, threads, COUNTING).parts if p.phase == "A")
            assert got == ROWS * 2 * panels, (threads, estimate)


def test_inference_drops_nothing_and_meets_nobody() -> None:
    assert model_of("dropout", prices=prices(dropout=1.0)).inference(ROWS, 1, COUNTING) == 0
    assert model_of("batch norm", prices=prices(batch_norm=1.0)).inference(ROWS, 1, COUNTING) == 0
    got = model_of("batch norm", prices=prices(one_pass=1.0)).inference(ROWS, 1, COUNTING)
    assert got == ROWS * 2 * 2


def test_what_is_frozen_saves_its_gradient_and_the_deltas_below() -> None:
    free = [Dense(70, 64, "relu"), *NETWORKS["frozen first"][1:]]
    trained = StepModel(NetworkSpec.chain(free), LOSSES["cross_entropy"], SGD(), lanes=LANES)
    frozen = model_of("frozen first", optimizer=SGD())
    names = [
        {(part.name, part.layer) for part in model.step(ROWS, 1, TYPICAL).parts}
        for model in (trained, frozen)
    ]
    assert names[0] - names[1] == {("gradient", 0), ("update", 0), ("deltas", 1)}
    assert names[1] <= names[0]


def test_a_plan_tells_of_barriers_and_of_where_deltas_stop() -> None:
    def phase_a(name: str) -> str:
        text: str = explain(Course(2, 2), model_of(name), ROWS, TYPICAL)["phases"][0]
        return text

    assert "4 more barriers, for batch normalisations" in phase_a("batch norm")
    assert "stop" not in phase_a("batch norm")
    assert "deltas stop at layer 2" in phase_a("frozen first")
    assert "barriers" not in phase_a("layer norm")
