"""Optimizers: scalars and updates against hand-written loops, descriptions, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest

from fastneuron.errors import SpecError, UnknownNameError
from fastneuron.kernels.contract import SLOTS as SLOT_NAMES
from fastneuron.kernels.reference import SLOTS
from fastneuron.optimizers import (
    BETA1,
    BETA2,
    CLIP_NORM,
    CORRECTION,
    EPSILON,
    KEY_HIGH,
    KEY_LOW,
    L2,
    N_SCALARS,
    OPTIMIZERS,
    RATE,
    SGD,
    SHRINK,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    UpdateKind,
    as_optimizer,
)
from fastneuron.schedules import Constant, Cosine, Horizon, Plateau, WarmUp

EXAMPLES = [
    SGD(),
    SGD(0.1, 0.9),
    SGD(0.1, 0.9, True, 0.01, decay_bias=True, clip_norm=1.5),
    SGD(WarmUp(Cosine(0.1, total_steps=100), steps=5)),
    Adam(1e-2, 0.8, 0.99, 1e-6, 0.1),
    AdamW(Plateau(1e-2)),
    RMSprop(1e-2, 0.95, 1e-7, 0.2, clip_norm=3),
]


def run(optimizer, start, gradients, clip_scale=1.0, dtype=np.float64):
    """Parameters after the optimizer's slot has seen each of the gradients."""
    p = np.array([start], dtype)
    moments = tuple(np.zeros(1, dtype) for _ in range(optimizer.n_moments))
    rates = optimizer.schedule.rates(0, len(gradients), Horizon(len(gradients)))
    path = []
    for g, row in zip(gradients, optimizer.scalars(0, rates), strict=True):
        SLOTS[optimizer.slot](p, np.array([g], dtype), moments, row, clip_scale)
        path.append(p[0])
    return path


def sgd_by_hand(p, gs, lr, momentum, nesterov, decay):
    velocity = 0.0
    for g in gs:
        g = g + decay * p
        velocity = momentum * velocity + g
        p = p - lr * (g + momentum * velocity if nesterov else velocity)
        yield p


def adam_by_hand(p, gs, lr, beta1, beta2, epsilon, decay, decoupled):
    m = v = 0.0
    for t, g in enumerate(gs, start=1):
        if not decoupled:
            g = g + decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        shrunk = lr * decay * p if decoupled else 0.0
        p = p - shrunk - lr * m_hat / (math.sqrt(v_hat) + epsilon)
        yield p


def rmsprop_by_hand(p, gs, lr, rho, epsilon, decay):
    v = 0.0
    for g in gs:
        g = g + decay * p
        v = rho * v + (1 - rho) * g * g
        p = p - lr * g / (math.sqrt(v) + epsilon)
        yield p


GRADIENTS = np.random.default_rng(0).standard_normal(25).tolist()
BY_HAND = [
    (SGD(0.1), sgd_by_hand, (0.1, 0, False, 0)),
    (SGD(0.1, weight_decay=0.3), sgd_by_hand, (0.1, 0, False, 0.3)),
    (SGD(0.1, 0.9, weight_decay=0.3), sgd_by_hand, (0.1, 0.9, False, 0.3)),
    (SGD(0.1, 0.9, True, 0.3), sgd_by_hand, (0.1, 0.9, True, 0.3)),
    (Adam(0.1), adam_by_hand, (0.1, 0.9, 0.999, 1e-8, 0, False)),
    (Adam(0.1, 0.7, 0.9, 1e-3, 0.2), adam_by_hand, (0.1, 0.7, 0.9, 1e-3, 0.2, False)),
    (Adam(0.1, 0, 0), adam_by_hand, (0.1, 0, 0, 1e-8, 0, False)),
    (AdamW(0.1), adam_by_hand, (0.1, 0.9, 0.999, 1e-8, 0.01, True)),
    (AdamW(0.1, weight_decay=0.5), adam_by_hand, (0.1, 0.9, 0.999, 1e-8, 0.5, True)),
    (RMSprop(0.1), rmsprop_by_hand, (0.1, 0.9, 1e-8, 0)),
    (RMSprop(0.1, 0.5, 1e-2, 0.4), rmsprop_by_hand, (0.1, 0.5, 1e-2, 0.4)),
]


@pytest.mark.parametrize(("optimizer", "by_hand", "numbers"), BY_HAND)
def test_updates_are_the_papers_formulas(optimizer, by_hand, numbers):
    want = list(by_hand(1.5, GRADIENTS, *numbers))
    got = run(optimizer, 1.5, GRADIENTS)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    got32 = run(optimizer, 1.5, GRADIENTS, dtype=np.float32)
    np.testing.assert_allclose(got32, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "by_hand", "numbers"), BY_HAND)
def test_clip_scale_scales_the_gradient_and_not_the_decay(optimizer, by_hand, numbers):
    want = list(by_hand(1.5, [0.25 * g for g in GRADIENTS], *numbers))
    got = run(optimizer, 1.5, GRADIENTS, clip_scale=0.25)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [SGD(0), SGD(0, 0.9), Adam(0), AdamW(0), RMSprop(0)])
def test_a_rate_of_zero_changes_no_bit(optimizer):
    assert run(optimizer, 1.2345, GRADIENTS) == [1.2345] * len(GRADIENTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", EXAMPLES[:3] + EXAMPLES[4:5])
def test_gradients_of_zero_stay_finite(optimizer, dtype):
    assert np.isfinite(run(optimizer, 1.0, [0.0] * 3, dtype=dtype)).all()


def test_the_least_epsilon_still_guards_float32():
    got = run(Adam(0.1, epsilon=2.0**-126), 1.0, [0.0, 0.0], dtype=np.float32)
    assert got == [1.0, 1.0]


def test_the_table_is_complete():
    assert dict(OPTIMIZERS) == {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
    for name, cls in OPTIMIZERS.items():
        assert cls.name == name
        assert cls.formula
        assert cls.source
    with pytest.raises(UnknownNameError, match="sgd, adam, adamw, rmsprop"):
        OPTIMIZERS["lion"]


@pytest.mark.parametrize(
    ("optimizer", "kind", "slot", "n_moments"),
    [
        (SGD(), UpdateKind.SGD, "sgd_update", 0),
        (SGD(0.1, 0.9), UpdateKind.MOMENTUM, "momentum_update", 1),
        (SGD(0.1, 0.9, True), UpdateKind.NESTEROV, "nesterov_update", 1),
        (Adam(), UpdateKind.ADAM, "adam_update", 2),
        (AdamW(), UpdateKind.ADAM, "adam_update", 2),
        (RMSprop(), UpdateKind.RMSPROP, "rmsprop_update", 1),
    ],
)
def test_kinds(optimizer, kind, slot, n_moments):
    got = (optimizer.kind, optimizer.slot, optimizer.n_moments)
    assert got == (kind, slot, n_moments)
    assert slot in SLOT_NAMES


def test_the_kinds_numbers_are_fixed():
    assert [int(kind) for kind in UpdateKind] == [0, 1, 2, 3, 4]
    got = [RATE, L2, SHRINK, BETA1, BETA2, EPSILON, CORRECTION, CLIP_NORM, KEY_LOW, KEY_HIGH]
    assert got == list(range(10))
    assert N_SCALARS == 10


def test_scalars_of_sgd():
    rates = np.array([0.1, 0.2])
    got = SGD(0.1, 0.9, weight_decay=0.3, clip_norm=2).scalars(7, rates)
    want = np.zeros((2, N_SCALARS))
    want[:, [RATE, L2, BETA1, CLIP_NORM]] = [[0.1, 0.3, 0.9, 2], [0.2, 0.3, 0.9, 2]]
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.float64


def test_scalars_of_adam_and_adamw():
    rates = np.array([0.1, 0.2, 0.4])
    adam = Adam(0.1, 0.8, 0.9, 1e-6, 0.3).scalars(4, rates)
    adamw = AdamW(0.1, 0.8, 0.9, 1e-6, 0.3).scalars(4, rates)
    t = np.array([5, 6, 7])
    for got in (adam, adamw):
        np.testing.assert_allclose(got[:, RATE], rates / (1 - 0.8**t), rtol=1e-15)
        np.testing.assert_allclose(got[:, CORRECTION], 1 / np.sqrt(1 - 0.9**t), rtol=1e-15)
        np.testing.assert_array_equal(got[:, BETA1], 0.8)
        np.testing.assert_array_equal(got[:, BETA2], 0.9)
        np.testing.assert_array_equal(got[:, EPSILON], 1e-6)
        np.testing.assert_array_equal(got[:, [CLIP_NORM, KEY_LOW, KEY_HIGH]], 0)
    np.testing.assert_array_equal(adam[:, L2], 0.3)
    np.testing.assert_array_equal(adam[:, SHRINK], 0)
    np.testing.assert_array_equal(adamw[:, L2], 0)
    np.testing.assert_allclose(adamw[:, SHRINK], 0.3 * rates, rtol=1e-15)


@pytest.mark.parametrize("optimizer", EXAMPLES, ids=repr)
def test_scalars_do_not_depend_on_how_they_are_asked_for(optimizer):
    rates = np.linspace(0.1, 0.2, 9)
    want = optimizer.scalars(3, rates)
    got = np.concatenate([optimizer.scalars(3, rates[:4]), optimizer.scalars(7, rates[4:])])
    np.testing.assert_array_equal(got, want)
    assert optimizer.scalars(0, rates[:0]).shape == (0, N_SCALARS)
    assert np.isfinite(optimizer.scalars(10**9, rates)).all()


@pytest.mark.parametrize("optimizer", EXAMPLES, ids=repr)
def test_json_round_trip(optimizer):
    text = json.dumps(optimizer.to_json(), allow_nan=False)
    got = Optimizer.from_json(json.loads(text))
    assert got == optimizer
    assert type(got) is type(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_descriptions_are_closed(name):
    good = OPTIMIZERS[name]().to_json()
    with pytest.raises(SpecError, match=f"'{name}': missing or unknown keys 'trust'"):
        Optimizer.from_json(good | {"trust": 1})
    for field in fields(OPTIMIZERS[name]):
        short = {key: value for key, value in good.items() if key != field.name}
        with pytest.raises(SpecError, match=f"missing or unknown keys '{field.name}'"):
            Optimizer.from_json(short)
        with pytest.raises(SpecError, match=field.name):
            Optimizer.from_json(good | {field.name: "0.5"})
    with pytest.raises(UnknownNameError, match="unknown optimizer 'lion'"):
        Optimizer.from_json(good | {"kind": "lion"})
    with pytest.raises(SpecError, match="a description is an object"):
        Optimizer.from_json([good])


BAD = [
    (lambda: SGD(-1), "SGD: learning_rate must be finite, at least 0"),
    (lambda: SGD(math.inf), "SGD: learning_rate"),
    (lambda: SGD("fast"), "SGD: learning_rate must be a number or a schedule, got 'fast'"),
    (lambda: SGD(momentum=1), "SGD: momentum must be finite, at least 0 and below 1, got 1"),
    (lambda: SGD(momentum=-0.1), "SGD: momentum"),
    (lambda: SGD(momentum=math.nan), "SGD: momentum"),
    (lambda: SGD(nesterov=True), "SGD: nesterov=True needs a momentum above 0"),
    (lambda: SGD(nesterov=1), "SGD: nesterov must be True or False"),
    (lambda: SGD(weight_decay=-1), "SGD: weight_decay must be finite, at least 0"),
    (lambda: SGD(decay_bias=0), "SGD: decay_bias must be True or False"),
    (lambda: SGD(clip_norm=0), "SGD: clip_norm must be finite, above 0, got 0"),
    (lambda: SGD(clip_norm=-1), "SGD: clip_norm"),
    (lambda: Adam(beta1=1), "Adam: beta1"),
    (lambda: Adam(beta2=1.0), "Adam: beta2"),
    (lambda: Adam(beta2=-0.5), "Adam: beta2"),
    (lambda: Adam(epsilon=0), "Adam: epsilon"),
    (lambda: Adam(epsilon=1e-300), "Adam: epsilon"),
    (lambda: AdamW(weight_decay=math.nan), "AdamW: weight_decay"),
    (lambda: AdamW(beta1=None), "AdamW: beta1 must be a number"),
    (lambda: RMSprop(rho=1), "RMSprop: rho"),
    (lambda: RMSprop(epsilon=-1), "RMSprop: epsilon"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_hyper_parameters_are_named(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_argument_order():
    want = {
        SGD: ["learning_rate", "momentum", "nesterov", "weight_decay"],
        Adam: ["learning_rate", "beta1", "beta2", "epsilon", "weight_decay"],
        AdamW: ["learning_rate", "beta1", "beta2", "epsilon", "weight_decay"],
        RMSprop: ["learning_rate", "rho", "epsilon", "weight_decay"],
    }
    for cls, names in want.items():
        got = [field.name for field in fields(cls) if not field.kw_only]
        assert got == names
        keywords = {field.name for field in fields(cls) if field.kw_only}
        assert keywords == {"decay_bias", "clip_norm"}


def test_the_schedule():
    assert SGD(0.5).schedule == Constant(0.5)
    schedule = Cosine(0.1)
    assert Adam(schedule).schedule is schedule


def test_as_optimizer():
    assert as_optimizer("adamw") == AdamW()
    optimizer = SGD(0.1)
    assert as_optimizer(optimizer) is optimizer
    for bad in ("lion", None, SGD):
        with pytest.raises(UnknownNameError, match="sgd, adam, adamw, rmsprop"):
            as_optimizer(bad)


def test_the_base_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()
