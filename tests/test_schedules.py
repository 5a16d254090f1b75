"""Schedules: closed-form values, edges, descriptions, refusals."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from fastneuron.errors import SpecError, UnknownNameError
from fastneuron.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Horizon,
    OneCycle,
    Plateau,
    Schedule,
    StepDecay,
    WarmUp,
    as_schedule,
)

NOWHERE = Horizon()
EXAMPLES = [
    Constant(0.1),
    Cosine(0.1),
    Cosine(0.1, final=0.01, total_steps=50),
    WarmUp(0.1, steps=5),
    WarmUp(Cosine(0.1), steps=5),
    WarmUp(Plateau(0.1), steps=5),
    OneCycle(0.1),
    OneCycle(0.1, warm_fraction=0.5, start_divisor=10, final_divisor=100, total_steps=40),
    StepDecay(0.1, factor=0.5, every=3),
    Plateau(0.1, factor=0.2, patience=2, minimum=0.001, min_delta=0.1),
]


def rates(schedule, count, horizon=NOWHERE, first=0):
    return schedule.rates(first, count, horizon)


def test_the_table_is_complete():
    assert list(SCHEDULES) == [
        "constant",
        "cosine",
        "warm_up",
        "one_cycle",
        "step_decay",
        "plateau",
    ]
    for name, cls in SCHEDULES.items():
        assert cls.kind == name
        assert cls.formula
        assert cls.source
    with pytest.raises(UnknownNameError, match=", ".join(SCHEDULES)):
        SCHEDULES["linear"]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_rates_do_not_depend_on_how_they_are_asked_for(schedule):
    horizon = Horizon(total_steps=30, steps_per_epoch=4)
    want = rates(schedule, 40, horizon)
    assert (want.dtype, want.shape) == (np.float64, (40,))
    assert (want >= 0).all()
    assert np.isfinite(want).all()
    cuts = [0, 1, 4, 5, 6, 17, 40]
    pieces = [rates(schedule, b - a, horizon, a) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), want)
    assert rates(schedule, 0, horizon, 7).shape == (0,)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_json_round_trip(schedule):
    text = json.dumps(schedule.to_json(), allow_nan=False)
    assert Schedule.from_json(json.loads(text)) == schedule


def test_constant():
    np.testing.assert_array_equal(rates(Constant(0.25), 3), [0.25] * 3)


def test_cosine():
    got = rates(Cosine(0.4, final=0.2, total_steps=4), 7)
    half = math.sqrt(0.5)
    want = [0.4, 0.3 + 0.1 * half, 0.3, 0.3 - 0.1 * half, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(got, want, rtol=1e-15)
    np.testing.assert_allclose(rates(Cosine(0.4, 0.2), 7, Horizon(4)), want, rtol=1e-15)
    # Its own length goes before the training's.
    own = Cosine(0.4, 0.2, total_steps=4)
    np.testing.assert_allclose(rates(own, 7, Horizon(100)), want, rtol=1e-15)


def test_warm_up_meets_the_next_schedule_at_its_start():
    got = rates(WarmUp(0.8, steps=4), 6)
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-15)
    got = rates(WarmUp(Cosine(1.0), steps=2), 7, Horizon(6))
    np.testing.assert_allclose(got[:3], [0.5, 1, 1], rtol=1e-15)
    np.testing.assert_array_equal(got[2:], rates(Cosine(1.0), 5, Horizon(4)))


def test_a_warm_up_longer_than_the_training_only_climbs():
    got = rates(WarmUp(Cosine(1.0), steps=10), 5, Horizon(5))
    np.testing.assert_allclose(got, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-15)


def test_one_cycle():
    got = rates(OneCycle(1.0, 0.5, 10, 100, total_steps=9), 10)
    np.testing.assert_allclose(got[[0, 4, 8, 9]], [0.1, 1, 0.001, 0.001], rtol=1e-12)
    np.testing.assert_allclose(got[2], 0.55, rtol=1e-12)
    assert (np.diff(got[:5]) > 0).all()
    assert (np.diff(got[4:9]) < 0).all()
    np.testing.assert_allclose(rates(OneCycle(1.0, total_steps=1), 1), [0.04])


def test_step_decay():
    got = rates(StepDecay(1.0, factor=0.5, every=2), 13, Horizon(steps_per_epoch=3))
    want = [1] * 6 + [0.5] * 6 + [0.25]
    np.testing.assert_array_equal(got, want)
    got = rates(StepDecay(1.0, factor=0, every=1), 3, Horizon(steps_per_epoch=2))
    np.testing.assert_array_equal(got, [1, 1, 0])


def test_plateau():
    schedule = Plateau(0.8, factor=0.5, patience=2, minimum=0.15)
    np.testing.assert_array_equal(rates(schedule, 3), [0.8] * 3)
    state = schedule.state()
    got = [state.observe(m) for m in [3, 2, 2, 2.5, 2, 1, 1, math.nan, 1, 1, 1, 1]]
    want = [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.1875, 0.1875, 0.1875]
    assert got == pytest.approx(want)
    assert state.best == 1
    assert schedule.state().scale == 1  # every training has its own


def test_plateau_wants_more_than_min_delta():
    state = Plateau(1.0, patience=1, min_delta=0.5).state()
    assert [state.observe(m) for m in [2, 1.5, 1]] == [1, 0.5, 0.5]


def test_plateau_never_raises_a_rate_to_its_minimum():
    state = Plateau(0.1, patience=1, minimum=0.5).state()
    assert [state.observe(1), state.observe(1)] == [1, 1]
    state = Plateau(0, patience=1, minimum=0.5).state()
    assert [state.observe(1), state.observe(1)] == [1, 1]


def test_only_plateau_has_a_state():
    for schedule in EXAMPLES:
        has = "Plateau" in repr(schedule)
        assert (schedule.state() is not None) == has


@pytest.mark.parametrize("schedule", [Cosine(0.1), OneCycle(0.1), WarmUp(Cosine(0.1), 3)])
def test_an_unknown_length_says_what_to_give(schedule):
    with pytest.raises(SpecError, match=r"needs the length of the training.*total_steps="):
        rates(schedule, 1)


def test_an_unknown_epoch_says_what_to_do():
    with pytest.raises(SpecError, match="StepDecay counts epochs"):
        rates(StepDecay(0.1), 1, Horizon(total_steps=10))


BAD = [
    (lambda: Constant(-0.1), "Constant: learning_rate must be finite, at least 0 and at most 1e"),
    (lambda: Constant(math.nan), "Constant: learning_rate"),
    (lambda: Constant(1.1e10), "Constant: learning_rate"),
    (lambda: Constant(10**400), "Constant: learning_rate"),
    (lambda: Constant("0.1"), "Constant: learning_rate must be a number, got '0.1'"),
    (lambda: Constant(True), "Constant: learning_rate must be a number"),
    (lambda: Constant(1j), "Constant: learning_rate must be a number"),
    (lambda: Cosine(0.1, final=-1), "Cosine: final"),
    (lambda: Cosine(0.1, total_steps=0), "Cosine: total_steps must be from 1"),
    (lambda: Cosine(0.1, total_steps=1.5), "Cosine: total_steps must be a whole number"),
    (lambda: WarmUp(0.1, steps=0), "WarmUp: steps"),
    (lambda: WarmUp(math.inf, steps=1), "WarmUp: after"),
    (lambda: WarmUp(WarmUp(0.1, 2), steps=1), "WarmUp: after cannot be another WarmUp"),
    (lambda: OneCycle(0.1, warm_fraction=0), "OneCycle: warm_fraction must be finite, above 0"),
    (lambda: OneCycle(0.1, warm_fraction=1), "OneCycle: warm_fraction must be .* below 1"),
    (lambda: OneCycle(0.1, start_divisor=0.5), "OneCycle: start_divisor"),
    (lambda: OneCycle(0.1, final_divisor=0), "OneCycle: final_divisor"),
    (lambda: StepDecay(0.1, factor=1.5), "StepDecay: factor"),
    (lambda: StepDecay(0.1, every=0), "StepDecay: every"),
    (lambda: Plateau(0.1, factor=-1), "Plateau: factor"),
    (lambda: Plateau(0.1, patience=0), "Plateau: patience"),
    (lambda: Plateau(0.1, minimum=-1), "Plateau: minimum"),
    (lambda: Plateau(0.1, min_delta=-1), "Plateau: min_delta"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_numbers_of_every_kind_become_python_floats():
    for number in (1, np.float32(1), np.int64(1), np.float64(1)):
        schedule = Cosine(number, total_steps=np.int32(4))
        assert type(schedule.learning_rate) is float
        assert type(schedule.total_steps) is int


def test_as_schedule():
    schedule = Cosine(0.1)
    assert as_schedule(schedule) is schedule
    assert as_schedule(0.5) == Constant(0.5)
    with pytest.raises(SpecError, match="learning_rate must be finite"):
        as_schedule(-1)
    with pytest.raises(SpecError, match="learning_rate must be a number"):
        as_schedule(None)


def nested(depth):
    description = {"kind": "constant", "learning_rate": 0.1}
    for _ in range(depth):
        description = {"kind": "warm_up", "after": description, "steps": 1}
    return description


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "a description is an object"),
        ([], "a description is an object"),
        ({"learning_rate": 0.1}, "a description is an object with a 'kind'"),
        ({"kind": 3}, "a description is an object with a 'kind'"),
        ({"kind": "constant"}, "'constant': missing or unknown keys 'learning_rate'"),
        ({"kind": "constant", "learning_rate": 0.1, "x": 1}, "missing or unknown keys 'x'"),
        ({"kind": "constant", "learning_rate": [0.1]}, "learning_rate must be a number"),
        ({"kind": "constant", "learning_rate": {"kind": "constant", "learning_rate": 0.1}},
         "learning_rate must be a number"),
        ({"kind": "exponential"}, "unknown schedule 'exponential'"),
        (nested(3), "cannot be another WarmUp"),
        (nested(500), "nested too deeply"),
    ],
)  # fmt: skip
def test_hostile_descriptions_are_refused(description, message):
    with pytest.raises((SpecError, UnknownNameError), match=message):
        Schedule.from_json(description)
