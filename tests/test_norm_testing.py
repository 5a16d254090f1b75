"""Bounds of normalisations, dropout and frozen parts: right results pass, planted faults fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron.kernels.contract import Parameters
from fastneuron.kernels.reference import ReferenceEngine, dropout, norms
from fastneuron.kernels.reference import engine as engine_module
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import L2, SGD, Adam, AdamW
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Bounded,
    Case,
    Precision,
    assert_within,
    by_moments,
    by_statistics,
    check_step,
    draw_inputs,
    draw_parameters,
    draw_statistics,
    draw_targets,
    exact,
    forward,
    loaded,
    moved_statistics,
    norm_backward,
    norm_forward,
    norm_gradients,
    scalars_of,
    training_step,
    updated,
)

SINGLE = Precision.of("float32")
KINDS = {"batch": BatchNorm(6), "layer": LayerNorm(6), "frozen": BatchNorm(6, trainable=False)}


def corners(rng: np.random.Generator, x: Bounded) -> Any:
    """A value that `x` stands for, at the ends of its interval or between."""
    return x.value + x.bound * rng.choice([-1.0, 1.0, 0.3], x.value.shape)


def normalised(layer: Any, x: Bounded, statistics: Any) -> Any:
    if layer.trainable is False:
        return by_statistics(layer, x, statistics, SINGLE)
    return by_moments(layer, x, SINGLE)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_cover_what_their_operands_stand_for(kind: str, size: float) -> None:
    """Rows and deltas moved to the ends of their intervals move no result out of its bound."""
    rng, layer = np.random.default_rng(3), KINDS[kind]
    axis = 0 if kind == "batch" else 1
    for rows in (1, 2, 3, 8, 13):
        x = Bounded(rng.normal(size=(rows, 6)) + 2, size * rng.random((rows, 6)))
        dy = Bounded(rng.normal(size=(rows, 6)), size * rng.random((rows, 6)))
        weight, bias = rng.normal(size=(2, 6))
        statistics = rng.normal(size=6), rng.uniform(0.1, 2, 6)
        bounded = normalised(layer, x, statistics)
        y, dx = (
            norm_forward(bounded, weight, bias, SINGLE),
            norm_backward(bounded, weight, dy, SINGLE),
        )
        dweight, dbias = norm_gradients(bounded, dy, SINGLE)
        for _ in range(30):
            got_x, got_dy = corners(rng, x), corners(rng, dy)
            if kind == "frozen":
                mean, variance, inverse = norms.running_moments(statistics, layer.epsilon)
                got_dx = got_dy * weight * inverse
            else:
                mean, variance, inverse = norms.moments(got_x, layer.epsilon, axis)
                got_dx = norms.norm_backward(got_x, mean, inverse, weight, got_dy, axis)
            got = norms.norm_forward(got_x, mean, inverse, weight, bias)
            assert_within(mean, bounded.mean, "mean")
            assert_within(variance, bounded.variance, "variance")
            assert_within(inverse, bounded.inverse, "inverse")
            assert_within(got, y, "y")
            assert_within(got_dx, dx, "dx")
            gradients = norms.norm_gradients(got_x, mean, inverse, got_dy)
            assert_within(gradients[0], dweight, "dweight")
            assert_within(gradients[1], dbias, "dbias")
            if kind == "batch":
                want = moved_statistics(layer, statistics, bounded, SINGLE)
                moved = norms.moved_statistics(statistics, mean, variance, 0.1, rows)
                for one, other in zip(moved, want, strict=True):
                    assert_within(one, other, "running statistics")


@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("rows", [2, 7, 64, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_any_order_is_inside(kind: str, rows: int, spread: float) -> None:
    """In float32, whatever order rows or features come in, with the weight met first or last."""
    rng, layer = np.random.default_rng(rows), replace(KINDS[kind], features=rows)
    x = (rng.normal(size=(rows, rows)) * spread + 3).astype(np.float32)
    dy = rng.normal(size=(rows, rows)).astype(np.float32)
    weight, bias = rng.normal(size=(2, rows)).astype(np.float32)
    statistics = x.mean(0), x.var(0) + np.float32(0.1)
    bounded = normalised(layer, exact(x), statistics)
    y = norm_forward(bounded, weight, bias, SINGLE)
    dx = norm_backward(bounded, weight, exact(dy), SINGLE)
    dweight, _ = norm_gradients(bounded, exact(dy), SINGLE)
    for _ in range(4):
        order = rng.permutation(rows)
        take = (order, slice(None)) if kind == "batch" else (slice(None), order)
        w, b = (weight, bias) if kind == "batch" else (weight[order], bias[order])
        axis = 0 if kind == "batch" else 1
        got_x, got_dy = x[take], dy[take]
        if kind == "frozen":
            w, b, got_x, got_dy = weight, bias, x, dy
            take = (slice(None), slice(None))
            mean, _, inverse = norms.running_moments(statistics, layer.epsilon)
            got_dx = (w * inverse) * got_dy
        else:
            mean, _, inverse = norms.moments(got_x, layer.epsilon, axis)
            got_dx = norms.norm_backward(got_x, mean, inverse, w, got_dy, axis)
        assert_within((got_x - mean) * (inverse * w) + b, _taken(y, take), "y")
        assert_within(got_dx, _taken(dx, take), "dx")
        sums = (got_dy * (got_x - mean)).sum(0)
        last = (
            sums * inverse[0] if kind != "layer" else (got_dy * ((got_x - mean) * inverse)).sum(0)
        )
        assert_within(last, _taken(dweight, take[1:]), "dweight")


def _taken(x: Bounded, take: Any) -> Bounded:
    return Bounded(x.value[take], x.bound[take])


# ---- planted faults ------------------------------------------------------------------------------


def small_case(**other: Any) -> Case:
    """One layer of each kind, on 13 rows."""
    rng = np.random.default_rng(other.pop("seed", 0))
    layers = [
        Dense(5, 9, "tanh"), BatchNorm(activation="tanh", momentum=0.2, epsilon=0.1), Dropout(0.3),
        Dense(out_features=8, bias=True, trainable="weight"), LayerNorm(epsilon=0.1),
        Dense(out_features=6, trainable=False), BatchNorm(trainable=False), Dense(out_features=3),
    ]  # fmt: skip
    spec = NetworkSpec.chain(layers)
    y = draw_targets(LOSSES["mse"], rng, 26, 3, "float32")
    optimizer = other.pop("optimizer", SGD(0.05))
    parameters, statistics = draw_parameters(spec, rng), draw_statistics(spec, rng)
    x = draw_inputs(rng, 26, 5, "float32")
    return Case("small", spec, LOSSES["mse"], optimizer, parameters, x, y, None, 13, statistics)


def check(case: Case, rows: int = 13) -> None:
    engine = loaded(ReferenceEngine(case.spec, case.loss, case.optimizer), case)
    scalars = scalars_of(case, 1)[0]
    x, y = case.x[:rows], case.y[:rows]
    want = training_step(
        case.spec, case.loss, case.parameters, x, y, None, case.statistics, scalars
    )
    _, gradients = engine.gradients(x, y, None, scalars[None])
    for got, bounded in zip(gradients, want.gradients, strict=True):
        for one, other in zip(got, bounded, strict=True):
            if one is not None and other is not None:
                assert_within(one, other, "gradient")
    _, activations = forward(case.spec, case.parameters, x, SINGLE, case.statistics)
    assert_within(engine.forward(x), activations[-1], "output in inference")
    check_step(engine, case, np.arange(rows), scalars, "step")


def test_a_right_step_passes() -> None:
    for seed in range(5):
        for optimizer in (SGD(0.05), Adam(0.01, weight_decay=0.1), AdamW(0.01, decay_bias=True)):
            check(small_case(seed=seed, optimizer=optimizer))
            check(small_case(seed=seed, optimizer=optimizer), rows=1)


def wrong_count(x: Any, epsilon: float, axis: int) -> Any:
    """As of a batch with one row more, or a panel with one feature more."""
    n = x.shape[axis]
    mean = x.sum(axis=axis, keepdims=True) / (n + 1)
    variance = np.square(x - mean).sum(axis=axis, keepdims=True) / (n + 1)
    return mean, variance, 1 / np.sqrt(variance + epsilon)


def moments_of(change: Callable[..., Any]) -> Callable[..., Any]:
    def moments(x: Any, epsilon: float, axis: int) -> Any:
        mean, variance, inverse = norms.moments(x, epsilon, axis)
        return change(x, epsilon, axis, mean, variance, inverse)

    return moments


def statistics_of(**changed: float) -> Callable[..., Any]:
    def moved(statistics: Any, mean: Any, variance: Any, momentum: float, rows: int) -> Any:
        if changed.get("uncorrected"):
            variance = variance * np.float32((rows - 1) / rows)
        momentum = 1 - momentum if changed.get("swapped") else momentum
        return norms.moved_statistics(statistics, mean, variance, momentum, rows)

    return moved


def rolled(x: Any, mask: Any, rate: float) -> Any:
    return dropout.dropout(x, np.roll(mask, 1, axis=0), rate)


def in_norms(name: str, function: Callable[..., Any]) -> tuple[str, Any]:
    return "norms", SimpleNamespace(**{**vars(norms), name: function})


def in_dropout(name: str, function: Callable[..., Any]) -> tuple[str, Any]:
    return "dropout", SimpleNamespace(**{**vars(dropout), name: function})


FAULTS = {
    "mean over a wrong count": in_norms("moments", wrong_count),
    "mean without the last row": in_norms(
        "moments", lambda x, e, axis: norms.moments(np.delete(x, -1, axis), e, axis)
    ),
    "variance that is corrected": in_norms(
        "moments",
        moments_of(lambda x, e, axis, m, v, i: (
            m, v, 1 / np.sqrt(v * x.shape[axis] / (x.shape[axis] - 1) + e))),
    ),
    "no epsilon": in_norms("moments", moments_of(lambda x, e, axis, m, v, i: (m, v, v**-0.5))),
    "epsilon outside the root": in_norms(
        "moments", moments_of(lambda x, e, axis, m, v, i: (m, v, 1 / (v**0.5 + e)))
    ),
    "bias dropped": in_norms(
        "norm_forward", lambda x, m, i, w, b: norms.norm_forward(x, m, i, w, None)
    ),
    "weight dropped": in_norms(
        "norm_forward", lambda x, m, i, w, b: norms.norm_forward(x, m, i, np.ones_like(w), b)
    ),
    "delta without the mean's part": in_norms(
        "norm_backward",
        lambda x, m, i, w, dy, axis: norms.norm_backward(x, m, i, w, dy, axis)
        + i * (w * dy).mean(axis=axis, keepdims=True),
    ),
    "delta along the other axis": in_norms(
        "norm_backward",
        lambda x, m, i, w, dy, axis: norms.norm_backward(x, m, i, w, dy, 1 - axis),
    ),
    "gradients without a row": in_norms(
        "norm_gradients",
        lambda x, m, i, dy: norms.norm_gradients(
            x[:-1], m[:-1] if len(m) > 1 else m, i[:-1] if len(i) > 1 else i, dy[:-1]),
    ),
    "running variance not corrected": in_norms("moved_statistics", statistics_of(uncorrected=1)),
    "momentum the other way round": in_norms("moved_statistics", statistics_of(swapped=1)),
    "statistics that stand still": in_norms("moved_statistics", lambda old, *rest: old),
    "mask shifted by one row": in_dropout("dropout", rolled),
    "mask of another layer": in_dropout(
        "kept", lambda rows, features, i, key, d: dropout.kept(rows, features, i + 1, key, d)
    ),
    "mask of another key": in_dropout(
        "kept", lambda rows, features, i, key, d: dropout.kept(rows, features, i, key[::-1], d)
    ),
    "no scale": in_dropout("dropout", lambda x, mask, rate: x * mask),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = small_case()
    check(case)
    module, changed = FAULTS[fault]
    monkeypatch.setattr(engine_module, module, changed)
    with pytest.raises(AssertionError, match="outside the bound"):
        check(case)


def frozen_too(engine: Any, parameters: Parameters) -> Any:
    return [
        (array, isinstance(layer, Dense) and array.ndim == 2)
        for layer, pair in zip(engine.spec.layers, parameters, strict=True)
        for array in pair
        if array is not None
    ]


TRAINED = ReferenceEngine._trained


def norms_too(engine: Any, parameters: Parameters) -> Any:
    return [(array, True) for array, _ in TRAINED(engine, parameters)]


@pytest.mark.parametrize("fault", [frozen_too, norms_too])
def test_what_decays_wrongly_is_found(
    fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small_case(optimizer=SGD(0.05, weight_decay=0.1))
    check(case)
    monkeypatch.setattr(ReferenceEngine, "_trained", fault)
    with pytest.raises(AssertionError, match="outside the bound"):
        check(case)


def test_steps_that_decay_take_no_norm_along() -> None:
    """`updated` itself: weights of norms decay only where biases do."""
    scalars = SGD(1.0, weight_decay=0.5).scalars(0, np.ones(1))[0]
    assert scalars[L2] == 0.5
    spec = NetworkSpec.chain([Dense(2, 2), LayerNorm(), BatchNorm(trainable="bias")])
    rng = np.random.default_rng(0)
    parameters = draw_parameters(spec, rng)
    zero: Any = [(exact(0 * w), None if b is None else exact(0 * b)) for w, b in parameters]
    for decays in (False, True):
        optimizer = SGD(1.0, weight_decay=0.5, decay_bias=decays)
        new, _ = updated(spec, optimizer, parameters, zero, [], scalars)
        factors = [(0.5, 1), (1, 1), (1, 1)] if not decays else [(0.5, 0.5), (0.5, 0.5), (1, 0.5)]
        for got, before, wanted in zip(new, parameters, factors, strict=True):
            for bounded, array, factor in zip(got, before, wanted, strict=True):
                if bounded is not None and array is not None:
                    np.testing.assert_allclose(bounded.value, factor * array.astype(float))
