"""Every kind of layer in the reference engine: gradients against central differences in float64."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Status
from fastneuron.kernels.reference import ReferenceEngine, dropout, norms
from fastneuron.kernels.reference import engine as engine_module
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, SGD
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Bounded,
    Case,
    assert_within,
    central_differences,
    draw_parameters,
    draw_statistics,
    draw_targets,
    flat,
    loaded,
    training_step,
)

KEY = np.zeros((1, N_SCALARS))
KEY[0, -2:] = 12345, 67890

SMOOTH = sorted(set(ACTIVATIONS) - {"relu", "leaky_relu"})
KINDS: dict[str, Layer] = {
    "D": Dense(out_features=4, activation="tanh"),
    "B": BatchNorm(activation="gelu", epsilon=0.01),
    "L": LayerNorm(activation="silu", epsilon=0.01),
    "F": BatchNorm(activation="tanh", trainable=False),
    "O": Dropout(0.4),
}
#: Every kind alone, every pair of kinds, and some towers.
NETWORKS = [
    *KINDS,
    *(a + b for a in KINDS for b in KINDS),
    *("DBOD", "BDLD", "ODBDOD", "LFBD", "DBBD", "OLOB", "FDFD"),
]


def case_of(*layers: Layer, rows: int = 7, loss: str = "mse", features: int = 3) -> Case:
    first = layers[0].with_inputs(features)
    spec = NetworkSpec.chain([first, *layers[1:]], "float64")
    rng = np.random.default_rng(len(layers))
    x = rng.normal(size=(rows, features))
    y = draw_targets(LOSSES[loss], rng, rows, spec.out_features, "float64")
    weight = rng.uniform(0.5, 1.5, rows)
    parameters, statistics = draw_parameters(spec, rng), draw_statistics(spec, rng)
    return Case("", spec, LOSSES[loss], SGD(), parameters, x, y, weight, rows, statistics)


def engine_of(case: Case) -> ReferenceEngine:
    engine = ReferenceEngine(case.spec, case.loss, case.optimizer)
    loaded(engine, case)
    return engine


def slopes(case: Case) -> list[Any]:
    """Slopes of the loss by x, then by each parameter array."""

    def loss_at(x: Any, parameters: Any) -> float:
        engine = engine_of(replace(case, parameters=parameters))
        return engine.gradients(x, case.y, case.weight, KEY)[0]

    def moved(layer: int, which: int, array: Any) -> Any:
        pairs = [list(pair) for pair in case.parameters]
        pairs[layer][which] = array
        return pairs

    found = [central_differences(lambda x: loss_at(x, case.parameters), case.x)]
    for i, pair in enumerate(case.parameters):
        for j, array in enumerate(pair):
            if array is not None:

                def by_array(changed: Any, i: int = i, j: int = j) -> float:
                    return loss_at(case.x, moved(i, j, changed))

                found.append(central_differences(by_array, array))
    return found


def check(case: Case) -> None:
    """dx and every gradient are the slopes; what is not trained has gradient zero, exactly."""
    want_dx, *want = slopes(case)
    engine = engine_of(case)
    _, gradients = engine.gradients(case.x, case.y, case.weight, KEY)
    trained = [
        trains
        for layer, pair in zip(case.spec.layers, case.parameters, strict=True)
        for trains, array in zip((layer.trains_weight, layer.trains_bias), pair, strict=True)
        if array is not None
    ]
    for got, slope, trains in zip(flat(gradients), want, trained, strict=True):
        if trains:
            np.testing.assert_allclose(got, slope, rtol=1e-6, atol=1e-8)
        else:
            np.testing.assert_array_equal(got, 0)
    out = engine.forward_keep(case.x, KEY)
    assert case.weight is not None
    dout = case.weight[:, None] * case.loss.grad(out, case.y) / len(out)
    dx, outcome = engine.update(dout, KEY[0])
    assert outcome.status is Status.OK
    np.testing.assert_allclose(dx, want_dx, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("letters", NETWORKS)
def test_networks_of_every_kind(letters: str) -> None:
    check(case_of(*(KINDS[letter] for letter in letters)))


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_activations_after_a_normalisation(kind: Any, activation: str) -> None:
    check(case_of(Dense(out_features=4), kind(activation=activation), Dense(out_features=2)))


@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_kinks_after_a_normalisation(kind: Any) -> None:
    """Rows whose normalised numbers are away from the kink."""
    for activation in ("relu", "leaky_relu"):
        case = case_of(Dense(out_features=3, bias=False), kind(activation=activation, bias=False))
        probe = engine_of(replace(case, spec=_without_activations(case.spec)))
        assert np.abs(probe.forward_keep(case.x)).min() > 1e-3
        check(case)


def _without_activations(spec: NetworkSpec) -> NetworkSpec:
    changed = [replace(layer, activation="identity") for layer in spec.layers]  # type: ignore
    return NetworkSpec.chain(changed, spec.dtype)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_over_normalisations(loss: str) -> None:
    check(case_of(Dense(out_features=5), BatchNorm(), LayerNorm(), Dropout(0.2), loss=loss))


@pytest.mark.parametrize("trainable", [True, False, "weight", "bias"])
@pytest.mark.parametrize("letter", "DBL")
def test_trained_parts(letter: str, trainable: bool | str) -> None:
    """Freezing a part changes no other gradient, and none that goes on to the layers before."""
    layers = [Dense(out_features=4, activation="tanh"), KINDS[letter], Dense(out_features=2)]
    layers[1] = replace(layers[1], trainable=trainable)  # type: ignore[type-var]
    check(case_of(*layers))


@pytest.mark.parametrize("letter", "BL")
def test_without_bias(letter: str) -> None:
    check(case_of(Dense(out_features=3), replace(KINDS[letter], bias=False), Dense(out_features=2)))  # type: ignore


@pytest.mark.parametrize("rows", [1, 2])
def test_small_batches(rows: int) -> None:
    check(
        case_of(Dense(out_features=4), LayerNorm(), BatchNorm(), Dense(out_features=2), rows=rows)
    )


def test_a_kept_bias_before_a_batch_norm_has_no_slope() -> None:
    case = case_of(Dense(out_features=4, bias=True), BatchNorm(), Dense(out_features=2))
    check(case)
    want = training_step(case.spec, case.loss, case.parameters, case.x, case.y, case.weight)
    got, bounded = engine_of(case).gradients(case.x, case.y, case.weight)[1][0][1], want.gradients
    assert got is not None
    assert bounded[0][1] is not None
    zero = Bounded(np.zeros(4), bounded[0][1].size)  # the float64 reference itself rounds
    assert zero.bound.max() < 1e-12
    assert_within(got, zero, "gradient of a bias that the mean takes away")
    shifted = [(w, None if b is None else b.copy()) for w, b in case.parameters]
    assert shifted[0][1] is not None
    shifted[0][1][...] += 3
    moved = engine_of(replace(case, parameters=shifted)).forward_keep(case.x)
    np.testing.assert_allclose(moved, engine_of(case).forward_keep(case.x), rtol=0, atol=1e-13)


def without_mean(x: Any, mean: Any, inverse: Any, weight: Any, dy: Any, axis: int) -> Any:
    g, xhat = weight * dy, (x - mean) * inverse
    return inverse * (g - xhat * (g * xhat).mean(axis=axis, keepdims=True))


def without_variance(x: Any, mean: Any, inverse: Any, weight: Any, dy: Any, axis: int) -> Any:
    g = weight * dy
    return inverse * (g - g.mean(axis=axis, keepdims=True))


def other_axis(x: Any, mean: Any, inverse: Any, weight: Any, dy: Any, axis: int) -> Any:
    return norms.norm_backward(x, mean, inverse, weight, dy, 1 - axis)


FAULTS = {
    "delta without the mean's part": ("norm_backward", without_mean),
    "delta without the variance's part": ("norm_backward", without_variance),
    "delta along the other axis": ("norm_backward", other_axis),
    "one row less": (
        "norm_gradients",
        lambda x, mean, inverse, dy: (
            (dy * ((x - mean) * inverse))[:-1].sum(axis=0), dy[:-1].sum(axis=0)),
    ),
    "gradient of the weight without 1 / sqrt": (
        "norm_gradients",
        lambda x, mean, inverse, dy: ((dy * (x - mean)).sum(axis=0), dy.sum(axis=0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("letter", "BL")
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(Dense(out_features=4), KINDS[letter], Dense(out_features=2))
    check(case)
    name, function = FAULTS[fault]
    module = SimpleNamespace(**{**vars(norms), name: function})
    monkeypatch.setattr(engine_module, "norms", module)
    with pytest.raises((AssertionError, ValueError)):
        check(case)


def test_a_mask_that_is_another_backwards_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(Dense(out_features=4), Dropout(0.4), Dense(out_features=2))
    check(case)
    dropped = SimpleNamespace(**vars(dropout))
    calls: list[Any] = []

    def shifted(x: Any, mask: Any, rate: float) -> Any:
        backward = any(mask is one for one in calls)  # the mask that a forward pass has used
        calls.append(mask)
        return dropout.dropout(x, np.roll(mask, 1, axis=0) if backward else mask, rate)

    dropped.dropout = shifted
    monkeypatch.setattr(engine_module, "dropout", dropped)
    with pytest.raises(AssertionError):
        check(case)
