"""fold: the same predictions without BatchNorm, exactly where nothing rounds, else in a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, folding
from fastneuron.activations import ACTIVATIONS
from fastneuron.datasets import load_digits
from fastneuron.layers import Layer
from fastneuron.testing import Bounded, Precision, activate, assert_within, dense, exact

#: Networks of 6 features, and the layers that fold is to leave: kind, activation.
SHAPES: dict[str, tuple[tuple[Layer, ...], list[tuple[str, str]]]] = {
    "into the dense before": (
        (fn.Dense(6, 5), fn.BatchNorm(activation="relu"), fn.Dense(out_features=3)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "into the dense before, whose bias was kept": (
        (fn.Dense(6, 5, bias=True), fn.BatchNorm(activation="relu"), fn.Dense(out_features=3)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "with a dropout between": (
        (fn.Dense(6, 5), fn.Dropout(0.5), fn.BatchNorm(activation="relu"), fn.Dropout(0.5)),
        [("dense", "relu")],
    ),
    "into the dense after": (
        (fn.Dense(6, 5, "relu"), fn.BatchNorm(), fn.Dropout(0.5), fn.Dense(out_features=3)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "into the dense after, without a bias": (
        (fn.Dense(6, 5, "relu"), fn.BatchNorm(), fn.Dense(out_features=3, bias=False)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "first layer": (
        (fn.BatchNorm(6), fn.Dense(6, 3, "relu")),
        [("dense", "relu")],
    ),
    "without beta": (
        (fn.Dense(6, 5), fn.BatchNorm(bias=False, activation="relu"), fn.Dense(out_features=3)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "two in a row, before": (
        (fn.Dense(6, 5), fn.BatchNorm(), fn.BatchNorm(activation="relu")),
        [("dense", "relu")],
    ),
    "two in a row, after": (
        (fn.BatchNorm(6), fn.BatchNorm(), fn.Dense(out_features=3)),
        [("dense", "identity")],
    ),
    "frozen": (
        (fn.Dense(6, 5), fn.BatchNorm(activation="relu", trainable=False)),
        [("dense", "relu")],
    ),
    "alone at the end": (
        (fn.Dense(6, 5, "relu"), fn.BatchNorm()),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "between two activations": (
        (fn.Dense(6, 5, "relu"), fn.BatchNorm(activation="leaky_relu"), fn.Dense(out_features=2)),
        [("dense", "relu"), ("dense", "leaky_relu"), ("dense", "identity")],
    ),
    "two in a row between activations": (
        (fn.Dense(6, 5, "relu"), fn.BatchNorm(), fn.BatchNorm(activation="relu")),
        [("dense", "relu"), ("dense", "relu")],
    ),
    "nothing to fold": (
        (fn.Dense(6, 5, "relu"), fn.Dense(out_features=3, bias=False)),
        [("dense", "relu"), ("dense", "identity")],
    ),
    "nothing but norms": (
        (fn.BatchNorm(6), fn.BatchNorm(activation="relu")),
        [("dense", "relu")],
    ),
    "dropout alone": ((fn.Dropout(0.5, features=6),), [("dense", "identity")]),
}


def network(shape: str, dtype: str = "float32") -> fn.Sequential:
    return fn.Sequential(*SHAPES[shape][0], dtype=dtype, seed=0)


def fill(net: fn.Sequential, draw: Any, moments: Any) -> None:
    """Set every parameter to what `draw` gives, the statistics to what `moments` gives."""
    for layer in net.layers:
        if layer.spec.has_parameters:
            layer.weight = draw(layer.spec.weight_shape)
        if layer.bias is not None:
            layer.bias = draw((layer.spec.out_features,))
        if layer.running_mean is not None:
            layer.running_mean, layer.running_variance = moments(layer)


def integers(net: fn.Sequential, rng: np.random.Generator) -> None:
    """Numbers with which neither network rounds: variance + epsilon is 4, the root of it 2."""

    def draw(shape: tuple[int, ...]) -> Any:
        return 2.0 * rng.integers(-2, 3, shape)

    def moments(layer: Any) -> tuple[Any, Any]:
        shape = (layer.spec.out_features,)
        return draw(shape), np.full(shape, 4 - layer.spec.epsilon)

    fill(net, draw, moments)


def by_formula(net: fn.Sequential, X: Any) -> Any:
    """The network's predictions in float64."""
    a = X.astype(np.float64)
    for layer in net.layers:
        spec, w, b = layer.spec, layer.weight.astype(np.float64), layer.bias
        if isinstance(spec, fn.Dense):
            a = a @ w
        elif isinstance(spec, fn.BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_variance is not None
            root = np.sqrt(layer.running_variance.astype(np.float64) + spec.epsilon)
            a = (a - layer.running_mean) / root * w
        a = ACTIVATIONS[spec.activation].f(a if b is None else a + b)
    return a


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_has_no_batch_norm(shape: str) -> None:
    net = network(shape)
    got = net.fold()
    assert [(layer.spec.kind, layer.spec.activation) for layer in got.layers] == SHAPES[shape][1]
    assert got.spec.in_features == net.spec.in_features
    assert got.spec.out_features == net.spec.out_features
    assert got.spec.dtype == net.spec.dtype
    again = got.fold()
    assert again.spec == got.spec
    for a, b in zip(again.layers, got.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_fold_to_the_bit(backend: backends.Backend, shape: str, dtype: str) -> None:
    # epsilon such that 4 - epsilon is a number of float32.
    layers = [
        fn.BatchNorm(**{**vars(layer), "epsilon": 2.0**-20})
        if isinstance(layer, fn.BatchNorm)
        else layer
        for layer in SHAPES[shape][0]
    ]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        net = fn.Sequential(*layers, dtype=dtype, seed=0)
        integers(net, rng)
        X = rng.integers(-4, 5, (7, 6)).astype(dtype)
        with backends.use(backend.name):
            want, got = net.forward(X), net.fold().forward(X)
        if "leaky" not in str(net.spec):  # whose slope is no sum of powers of two
            np.testing.assert_array_equal(want, by_formula(net, X))
        np.testing.assert_array_equal(got, want)


def bounded(net: fn.Sequential, X: Any, loose: list[tuple[float, float]] | None = None) -> Bounded:
    """What the network's predictions may be; `loose` lets weights and biases be off, each layer."""
    p = Precision.of(net.spec.dtype)
    a = exact(X)
    for i, layer in enumerate(net.layers):
        spec, w = layer.spec, layer.weight.astype(np.float64)
        b = None if layer.bias is None else layer.bias.astype(np.float64)
        if isinstance(spec, fn.Dense):
            relative, absolute = (0.0, 0.0) if loose is None else loose[i]
            weight = Bounded(w, relative * np.abs(w))
            bias = None if b is None else Bounded(b, relative * np.abs(b) + absolute)
            a = dense(a, weight, bias, p)
        elif isinstance(spec, fn.BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_variance is not None
            factor = w / np.sqrt(layer.running_variance.astype(np.float64) + spec.epsilon)
            product = (a.value - layer.running_mean) * factor
            shift = 0 if b is None else b
            # epsilon, its sum, its root (twice a half of those) and 1 / it: 3; the weight; x -
            # mean; the product; the sum with the bias.
            error = np.abs(factor) * a.bound
            a = Bounded(
                product + shift,
                error + p.g(8) * (np.abs(product) + error + np.abs(shift)) + 8 * p.normal,
            )
        a = activate(a, ACTIVATIONS[spec.activation], p)
    return a


def assert_folds(net: fn.Sequential, X: Any) -> float:
    """Both networks are near the same real function; return the folded one's share of its bound."""
    p = Precision.of(net.spec.dtype)
    folded = net.fold()
    want = bounded(net, X)
    assert_within(net.forward(X), want, "net")
    # A shift is a sum of products in float64: as many roundings as it has terms, and a few more.
    terms = sum(net.spec.sizes) + 16
    sizes = [1.0]
    for layer in net.layers:
        for values in (layer.weight, layer.bias, layer.running_mean):
            if values is not None:
                sizes.append(max(1.0, float(np.abs(values).max(initial=0))))
        if layer.running_variance is not None:
            sizes.append(max(1.0, float(1 / np.sqrt(layer.running_variance.min()))))
    absolute = terms * 2.0**-53 * float(np.prod(sizes)) * max(net.spec.sizes)
    rough = bounded(folded, X, [(p.u + 16 * 2.0**-53, absolute)] * len(folded.layers))
    # The real function is within `rough` of folded's own reference, and within `want` of net's.
    return assert_within(
        folded.forward(X), Bounded(want.value, want.bound + 2 * rough.bound), "folded"
    )


def random(net: fn.Sequential, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def moments(layer: Any) -> tuple[Any, Any]:
        shape = (layer.spec.out_features,)
        return rng.normal(size=shape), rng.uniform(0.05, 2, shape)

    fill(net, lambda shape: rng.normal(size=shape), moments)
    return rng.normal(size=(9, 6)).astype(net.spec.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_networks_fold_within_the_bound(backend: backends.Backend, shape: str) -> None:
    for seed in range(5):
        net = network(shape)
        X = random(net, seed)
        with backends.use(backend.name):
            assert_folds(net, X)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_folds(activation: str) -> None:
    net = fn.mlp([6, 8, 7, 3], activation, norm="batch", dropout=0.1, seed=0)
    assert_folds(net, random(net, 3))


def test_the_bound_finds_planted_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    before = network("into the dense before")
    after = network("into the dense after")
    plants: list[tuple[fn.Sequential, str, Any]] = []

    def affine(change: Any) -> Any:
        right = folding._affine

        def wrong(layer: Any, weight: Any, bias: Any, moments: Any) -> Any:
            return change(right, layer, weight, bias, moments)

        return wrong

    for net in (before, after):
        plants += [
            (
                net,
                "_affine",
                affine(lambda f, *a: f(fn.BatchNorm(epsilon=2.0**-60), *a[1:])),
            ),
            (net, "_affine", affine(lambda f, *a: f(a[0], a[1], None, a[3]))),
            (net, "_affine", affine(lambda f, *a: f(*a[:3], (-a[3][0], a[3][1])))),
            (net, "_affine", affine(lambda f, *a: f(*a)._replace(factor=f(*a).factor * 1.00001))),
        ]
    plants += [
        (before, "_before", lambda w, b, affine: (w * affine.factor, 0 * affine.shift)),
        (after, "_after", lambda w, b, affine: (affine.factor[:, None] * w, b)),
    ]
    for net, name, wrong in plants:
        X = random(net, 1)
        with monkeypatch.context() as patch:
            patch.setattr(folding, name, wrong)
            with pytest.raises(AssertionError, match="folded"):
                assert_folds(net, X)
        assert_folds(net, X)


def test_layer_norms_stay_and_take_a_batch_norm_in() -> None:
    net = fn.Sequential(
        fn.BatchNorm(6),
        fn.LayerNorm(bias=False),
        fn.BatchNorm(activation="tanh"),
        fn.Dense(out_features=2),
        seed=0,
    )
    rng = np.random.default_rng(0)
    integers(net, rng)
    net.layers[2].running_variance = np.full(6, 4 - 1e-5)  # 4 with the default epsilon
    got = net.fold()
    kinds = [(layer.spec.kind, layer.spec.activation) for layer in got.layers]
    # Its mean and variance are over features: a factor of each cannot pass through it.
    assert kinds == [("dense", "identity"), ("layer_norm", "tanh"), ("dense", "identity")]
    weight = net.layers[0].weight.astype(np.float64)
    variance = net.layers[0].running_variance
    assert variance is not None
    np.testing.assert_array_equal(
        got.layers[0].weight, np.diag(weight / np.sqrt(variance + 1e-5)).astype(np.float32)
    )
    factor, mean, bias = net.layers[2].weight / 2, net.layers[2].running_mean, net.layers[2].bias
    assert bias is not None
    # The variance is 4 to within float32's rounding, an ulp of 4 being 2**-21.
    np.testing.assert_allclose(got.layers[1].weight, net.layers[1].weight * factor, rtol=2**-22)
    np.testing.assert_allclose(got.layers[1].bias, bias - mean * factor, rtol=0, atol=2**-18)
    X = rng.normal(size=(20, 6))
    np.testing.assert_allclose(got.forward(X), net.forward(X), rtol=0, atol=1e-4)


def test_what_else_a_network_knows_is_carried(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(60, 4))
    y = np.arange(60) % 3
    net = fn.mlp([4, 6, 3], norm="batch", dropout=0.2, bias_init="class_prior", seed=5)
    net.fit(X, y, loss="cross_entropy", epochs=2, backend="numpy")
    net.preprocessing = {"columns": ["a"]}
    before = [(layer.weight, layer.bias) for layer in net.layers]
    got = net.fold()
    assert (got.loss, got.seed, got.preprocessing) == ("cross_entropy", 5, {"columns": ["a"]})
    got.preprocessing["columns"].append("b")  # type: ignore[index]
    got.layers[0].bias = np.zeros(6)
    assert net.preprocessing == {"columns": ["a"]}
    for layer, (weight, bias) in zip(net.layers, before, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)
        np.testing.assert_array_equal(layer.bias, bias)
    folded = net.fold()
    np.testing.assert_array_equal(folded.predict(X), net.predict(X))
    folded.save(tmp_path / "m")
    np.testing.assert_array_equal(fn.load(tmp_path / "m").forward(X), folded.forward(X))
    last = folded.layers[-1].bias
    folded.fit(X, y, loss="cross_entropy", optimizer=fn.SGD(1e-30), backend="numpy")
    np.testing.assert_array_equal(folded.layers[-1].bias, last)  # the prior is not set anew


def test_the_newest_parameters_are_folded(backend: backends.Backend) -> None:
    X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    net = fn.mlp([4, 6, 1], norm="batch", seed=5)
    trainer = fn.Trainer(net, "mse", batch_size=16, backend=backend.name)
    early = net.fold()
    trainer.run(X, X[:, 0], epochs=2)
    with backends.use(backend.name):
        assert_folds(net, X)
    assert (early.layers[0].weight != net.fold().layers[0].weight).all()


def test_what_does_not_fit_the_dtype_is_said() -> None:
    net = network("into the dense before")
    net.layers[1].weight = np.full(5, 3e38)
    net.layers[1].running_variance = np.zeros(5)
    with pytest.raises(fn.DataError, match=r"layers\[0\]\.weight overflows float32"):
        net.fold()


def test_trained_digits_fold_to_the_same_predictions(backend: backends.Backend) -> None:
    X, y = load_digits()
    X = (X / 16).astype(np.float32)
    net = fn.mlp([64, 64, 32, 10], norm="batch", dropout=0.1, seed=0)
    net.fit(X, y, loss="cross_entropy", batch_size=64, epochs=10, backend=backend.name)
    with backends.use(backend.name):
        assert net.score(X, y) > 0.95
        assert_folds(net, X)
        np.testing.assert_array_equal(net.fold().predict(X), net.predict(X))
