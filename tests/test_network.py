"""What a user holds: shapes, current parameters, predictions, copies."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.activations import ACTIVATIONS

ALL_ACTIVATIONS = tuple(ACTIVATIONS)


def by_hand(net: fn.Sequential, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The network's output in float64, by the formula."""
    a = X.astype(np.float64)
    for layer in net.layers:
        z = a @ layer.weight.astype(np.float64)
        a = ACTIVATIONS[layer.spec.activation].f(z if layer.bias is None else z + layer.bias)
    return a


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_forward_is_the_formula(backend: backends.Backend, activation: str) -> None:
    rng = np.random.default_rng(1)
    net = fn.Sequential(
        fn.Dense(5, 7, activation, bias_init="normal"),
        fn.Dense(out_features=3, activation=activation, bias=False),
        seed=0,
    )
    X = rng.normal(size=(11, 5)).astype(np.float32)
    with backends.use(backend.name):
        got = net.forward(X)
    np.testing.assert_allclose(got, by_hand(net, X), rtol=1e-5, atol=1e-6)
    assert got.dtype == np.float32
    assert got.shape == (11, 3)


def test_mlp_has_the_layers_asked_for() -> None:
    net = fn.mlp([4, 8, 8, 2], "tanh", "sigmoid", bias=False, dtype="float64", seed=3)
    assert net.spec.sizes == (4, 8, 8, 2)
    assert [layer.spec.activation for layer in net.layers] == ["tanh", "tanh", "sigmoid"]
    assert [layer.bias for layer in net.layers] == [None] * 3
    for bad in ([4], [], "48", 4):
        with pytest.raises(fn.SpecError, match="sizes"):
            fn.mlp(bad)  # type: ignore[arg-type]


def test_mlp_takes_norms_dropout_and_biases() -> None:
    net = fn.mlp([4, 8, 6, 2], "tanh", "sigmoid", norm="batch", dropout=0.25, seed=3)
    want = fn.Sequential(
        fn.Dense(4, 8),
        fn.BatchNorm(activation="tanh"),
        fn.Dropout(0.25),
        fn.Dense(8, 6),
        fn.BatchNorm(activation="tanh"),
        fn.Dropout(0.25),
        fn.Dense(6, 2, "sigmoid"),
        seed=3,
    )
    assert net.spec == want.spec
    for a, b in zip(net.layers, want.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    kinds = [[layer.kind for layer in fn.mlp([4, 8, 2], **more).spec.layers] for more in CHOICES]
    assert kinds == [
        ["dense", "dense"],
        ["dense", "layer_norm", "dense"],
        ["dense", "dropout", "dense"],
        ["dense", "batch_norm", "dropout", "dense"],
    ]
    assert fn.mlp([4, 2], norm="batch", dropout=0.5).spec == fn.mlp([4, 2]).spec
    biases = {
        bias: [layer.bias for layer in fn.mlp([4, 8, 2], bias=bias, norm="batch").spec.layers]
        for bias in ("auto", True, False)
    }
    assert biases == {
        "auto": [False, True, True],
        True: [True, True, True],
        False: [False, True, False],
    }
    prior = fn.mlp([4, 8, 2], bias_init="class_prior").spec.layers
    assert [layer.bias_init for layer in prior] == ["zeros", "class_prior"]  # type: ignore
    for wrong, message in [
        ({"norm": "group"}, "norm must be None, 'batch' or 'layer', got 'group'"),
        ({"norm": True}, "norm must be"),
        ({"norm": ["batch"]}, "norm must be"),
        ({"dropout": 1}, "dropout must be finite, at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout"),
        ({"bias": "never"}, "bias must be True, False or 'auto'"),
        ({"bias": False, "bias_init": "class_prior"}, "layer 1.*bias=False"),
        ({"output_activation": "sigmoid", "bias_init": "class_prior"}, "layer 1.*'sigmoid'"),
    ]:
        with pytest.raises(fn.SpecError, match=message):
            fn.mlp([4, 8, 2], **wrong)  # type: ignore[arg-type]
    with pytest.raises(fn.UnknownNameError, match="class_prior"):
        fn.mlp([4, 8, 2], bias_init="ones")


CHOICES: list[dict[str, Any]] = [
    {},
    {"norm": "layer"},
    {"dropout": 0.5},
    {"norm": "batch", "dropout": 0.5},
]


def test_a_seed_decides_the_parameters() -> None:
    a, b, c = (fn.mlp([4, 5, 2], seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.layers[0].weight, b.layers[0].weight)
    assert (a.layers[0].weight != c.layers[0].weight).any()
    drawn = fn.mlp([4, 5, 2])
    again = fn.mlp([4, 5, 2], seed=drawn.seed)
    np.testing.assert_array_equal(drawn.layers[1].weight, again.layers[1].weight)
    for bad in (-1, 1.5, "a", True):
        with pytest.raises(fn.SpecError, match="seed"):
            fn.mlp([4, 5, 2], seed=bad)  # type: ignore[arg-type]


def test_networks_that_differ_in_their_biases_start_from_the_same_weights() -> None:
    with_bias = fn.mlp([4, 5, 5, 2], seed=1, bias_init="uniform")
    without = fn.mlp([4, 5, 5, 2], seed=1, bias=False)
    for a, b in zip(with_bias.layers, without.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


def test_weights_are_copies_and_assignable() -> None:
    net = fn.mlp([3, 2], seed=0)
    X = np.eye(3, dtype=np.float32)
    w = net.layers[0].weight
    w[:] = 7
    assert (net.layers[0].weight != 7).all()
    net.layers[0].weight = np.arange(6).reshape(3, 2)
    net.layers[0].bias = [10, 20]
    np.testing.assert_array_equal(net.forward(X), [[10, 21], [12, 23], [14, 25]])
    assert net.layers[0].weight.dtype == np.float32


def test_wrong_parameters_are_refused_and_nothing_changes() -> None:
    net = fn.Sequential(fn.Dense(3, 2), fn.Dense(out_features=1, bias=False), seed=0)
    before = net.layers[0].weight
    for bad in (np.ones((2, 3)), np.ones(6), np.full((3, 2), np.nan), np.full((3, 2), 1e39)):
        with pytest.raises(fn.DataError, match=r"layers\[0\]\.weight"):
            net.layers[0].weight = bad
    for bad in (np.ones(3), np.ones((1, 2)), [np.inf, 0], None):
        with pytest.raises(fn.DataError, match=r"layers\[0\]\.bias"):
            net.layers[0].bias = bad
    with pytest.raises(fn.DataError, match="bias=False"):
        net.layers[1].bias = [1.0]
    np.testing.assert_array_equal(net.layers[0].weight, before)


def test_predictions_follow_the_loss() -> None:
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = (X[:, 0] > 0).astype(int)
    net = fn.mlp([3, 2], seed=0)
    np.testing.assert_array_equal(net.predict(X), net.forward(X))
    with pytest.raises(fn.SpecError, match="predict_proba"):
        net.predict_proba(X)
    with pytest.raises(fn.SpecError, match="no loss is known"):
        net.evaluate(X, y)
    net.fit(X, y, loss="cross_entropy", backend="numpy")
    assert net.loss == "cross_entropy"
    assert net.predict(X).dtype == np.int64
    np.testing.assert_array_equal(net.predict(X), net.predict_proba(X).argmax(axis=1))
    np.testing.assert_allclose(net.predict_proba(X).sum(axis=1), 1, rtol=1e-6)
    assert net.score(X, y) == np.mean(net.predict(X) == y) == net.score(X, np.eye(2)[y])
    one = fn.mlp([3, 1], seed=0)
    one.fit(X, y, loss="binary_cross_entropy", backend="numpy")
    np.testing.assert_array_equal(one.predict(X), one.predict_proba(X)[:, 0] > 0.5)
    assert one.score(X, y) == np.mean(one.predict(X) == y)


def test_evaluate_is_the_mean_loss() -> None:
    net = fn.mlp([2, 1], seed=0, dtype="float64")
    X, y = np.random.default_rng(0).normal(size=(2, 50, 2))
    target = y[:, :1]
    want = np.mean((net.forward(X) - target) ** 2)
    assert net.evaluate(X, target, loss="mse") == pytest.approx(want, rel=1e-14)
    weight = np.arange(50)
    want = np.average(((net.forward(X) - target) ** 2)[:, 0], weights=weight)
    got = net.evaluate(X, target[:, 0], loss="mse", sample_weight=weight)
    assert got == pytest.approx(want, rel=1e-14)


def test_score_of_values_is_r_squared() -> None:
    X = np.random.default_rng(0).normal(size=(30, 2))
    net = fn.mlp([2, 1], seed=0, dtype="float64")
    with pytest.raises(fn.SpecError, match="no loss"):
        net.score(X, X[:, 0])
    net.fit(X, X[:, 0], loss="mse", backend="numpy")
    assert net.score(X, net.forward(X)) == 1.0
    assert net.score(X, X[:, 0]) < 1.0


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones(3), r"reshape\(1, -1\)"),
        (np.ones((4, 2)), r"\(4, 2\).*\(4, 3\)"),
        (np.full((4, 3), np.nan), "NaN at row 0, column 0"),
        (np.ones((0, 3)), "zero rows"),
    ],
)
def test_forward_refuses_what_does_not_fit(X: Any, message: str) -> None:
    with pytest.raises(fn.DataError, match=message):
        fn.mlp([3, 2], seed=0).forward(X)


def test_forward_takes_a_fitting_array_without_a_copy_and_checks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = fn.mlp([3, 4, 1], "tanh", seed=0)
    X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    want = net.forward(X.astype(float))
    given: list[Any] = []
    engine = net._live().engine
    forward = engine.forward
    monkeypatch.setattr(engine, "forward", lambda x: given.append(x) or forward(x))
    np.testing.assert_array_equal(net.forward(X), want)
    frozen = X.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(net.forward(frozen), want)
    assert given[0] is X
    assert given[1] is frozen
    for wrong in (np.nan, np.inf, -np.inf):
        bad = X.copy()
        bad[2, 1] = wrong
        with pytest.raises(fn.DataError, match="row 2, column 1"):
            net.forward(bad)
    huge = np.full((1, 3), 3e38, np.float32)  # finite, though its squares are not
    assert np.isfinite(net.forward(huge)).all()


def test_the_environment_may_choose_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTNEURON_BACKEND", raising=False)
    net = fn.mlp([3, 4, 1], seed=0)
    assert backends.current() == "auto"
    net.forward(np.ones((1, 3)))
    monkeypatch.setenv("FASTNEURON_BACKEND", "numpy")
    assert backends.current() == "numpy"
    assert net._live().backend == "numpy"
    with backends.use("auto"):
        assert backends.current() == "auto"
    monkeypatch.setattr(os, "environ", {"FASTNEURON_BACKEND": "cython"})
    assert backends.current() == "cython"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_carry_the_newest_parameters_and_live_apart(duplicate: Any) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    net = fn.mlp([3, 4, 1], seed=0)
    trainer = fn.Trainer(net, "mse", backend="numpy")
    trainer.run(X, X[:, 0])
    twin = duplicate(net)
    np.testing.assert_array_equal(twin.forward(X), net.forward(X))
    assert (twin.loss, twin.seed, twin.spec) == (net.loss, net.seed, net.spec)
    trainer.run(X, X[:, 0])
    assert (twin.forward(X) != net.forward(X)).any()
    fn.Trainer(twin, "mse", backend="numpy").run(X, X[:, 0])


def test_a_large_forward_is_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fn.mlp([3, 4, 1], seed=0)
    X = np.random.default_rng(0).normal(size=(1000, 3))
    want = net.forward(X)
    monkeypatch.setattr("fastneuron.parameters._FORWARD_VALUES", 1)
    asked: list[int] = []
    twin = fn.mlp([3, 4, 1], seed=0)
    engine = twin._live().engine
    forward = engine.forward

    def counted(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.append(len(x))
        return forward(x)

    monkeypatch.setattr(engine, "forward", counted)
    np.testing.assert_allclose(twin.forward(X), want, rtol=1e-6)
    assert asked == [256, 256, 256, 232]


def test_threads_may_share_a_network(backend: backends.Backend) -> None:
    net = fn.mlp([3, 16, 2], seed=0)
    X = np.random.default_rng(0).normal(size=(16, 50, 3))
    with backends.use(backend.name):
        want = [net.forward(x) for x in X]

    def ask(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with backends.use(backend.name):
            return np.stack([net.forward(x) for _ in range(20)])

    with ThreadPoolExecutor(16) as pool:
        for got, one in zip(pool.map(ask, X), want, strict=True):
            np.testing.assert_array_equal(got, np.stack([one] * 20))


def test_the_summary_counts_the_biases() -> None:
    net = fn.Sequential(fn.Dense(30, 20, "relu"), fn.Dense(out_features=2, bias=False), seed=0)
    text = repr(net)
    assert "30 -> 20" in text
    assert "660 parameters (float32), 20 of them biases (3 %)" in text
    assert "none" in text
    assert repr(net.layers[1]) == f"Layer({net.spec.layers[1]!r})"
    assert "Dense(20, 2, 'identity', bias=False)" in repr(net.layers[1])


def test_the_summary_names_what_is_special() -> None:
    net = fn.Sequential(
        fn.Dropout(0.25, features=3),
        fn.Dense(3, 4, bias=True, trainable=False),
        fn.BatchNorm(trainable="bias"),
        fn.Dense(4, 2, trainable="weight"),
        seed=0,
    )
    kinds = [" ".join(row.split("  ")[1:4]).strip() for row in net.summary().splitlines()[1:-1]]
    assert [kind.split("  ")[0].strip() for kind in kinds] == [
        "dropout 0.25",
        "dense, frozen",
        "batch_norm, weight frozen",
        "dense, bias frozen",
    ]
    assert "0 parameters (float32), 0 of them biases (0 %)" in repr(
        fn.Sequential(fn.Dropout(features=3))
    )


@pytest.mark.parametrize(
    "layer",
    [
        fn.Dense(3, 4),
        fn.Dense(out_features=4, activation="relu", bias=False, trainable="weight"),
        fn.Dense(3, 4, "gelu", True, "he_normal", "uniform"),
        fn.BatchNorm(),
        fn.BatchNorm(5, "relu", momentum=0.5, epsilon=0.25, bias=False, trainable=False),
        fn.LayerNorm(5, epsilon=0.25),
        fn.Dropout(0.25),
        fn.Dropout(features=7),
    ],
)
def test_a_description_prints_as_it_is_written(layer: fn.Dense) -> None:
    assert eval(repr(layer), vars(fn)) == layer


# What steps change


def assert_trained(net: fn.Sequential, want: list[tuple[bool, bool]], **how: Any) -> None:
    """After a step the (weight, bias) of each layer have changed as wanted."""
    before = [(layer.weight, layer.bias) for layer in net.layers]
    X = np.random.default_rng(0).normal(size=(20, 3))
    how.get("trainer", fn.Trainer(net, "mse", "adam", backend="numpy")).step(X, X[:, 0])
    got = [
        ((layer.weight != w).all(), b is not None and (layer.bias != b).all())
        for layer, (w, b) in zip(net.layers, before, strict=True)
    ]
    assert got == want


def test_parts_are_frozen_and_thawed_at_any_time(tmp_path: Any) -> None:
    net = fn.mlp([3, 4, 1], "tanh", seed=0, bias_init="normal")
    early = fn.Trainer(net, "mse", "adam", backend="numpy")
    assert [layer.trainable for layer in net.layers] == [True, True]
    net.layers[0].trainable = False
    net.layers[1].trainable = "bias"
    assert [layer.spec.trainable for layer in net.layers] == [False, "bias"]
    assert net.spec.layers[0].trainable is False
    assert_trained(net, [(False, False), (False, True)])
    # A trainer that exists goes on with what it was made for.
    assert_trained(net, [(True, True), (True, True)], trainer=early)
    net.save(tmp_path / "m")
    for twin in (fn.load(tmp_path / "m"), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_trained(twin, [(False, False), (False, True)])
        twin.layers[0].trainable = np.bool_(True)
        assert twin.layers[0].trainable is True
        assert_trained(twin, [(True, True), (False, True)])
    assert net.layers[0].trainable is False
    net.fit(np.ones((4, 3)), np.ones(4), loss="mse", backend="numpy")
    np.testing.assert_array_equal(net.layers[0].weight, fn.load(tmp_path / "m").layers[0].weight)


def test_a_loop_freezes_a_whole_network(blocked: backends.Backend) -> None:
    net = fn.mlp([3, 4, 1], norm="batch", dropout=0.5, seed=0)
    for layer in net.layers:
        layer.trainable = False
    before = repr((net.parameters.pull(), net.parameters.pull_statistics()))
    for backend in ("numpy", blocked):
        losses = fn.Trainer(net, "mse", backend=backend).run(np.eye(3), np.ones(3), epochs=2)
        assert np.isfinite(losses).all()
    assert repr((net.parameters.pull(), net.parameters.pull_statistics())) == before


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    net = fn.mlp([3, 4, 1], norm="batch", seed=0)
    fn.Trainer(net, "mse", backend="numpy").step(np.eye(3), np.ones(3))
    net.layers[1].trainable = False
    mean = net.layers[1].running_mean
    trainer = fn.Trainer(net, "mse", backend="numpy")
    X = np.random.default_rng(0).normal(size=(8, 3))
    with fn.backends.use("numpy"):
        want = net.forward(X)
    np.testing.assert_array_equal(trainer.forward(X), want)
    trainer.step(X[:1], [1])  # one row is enough, since rows do not meet
    np.testing.assert_array_equal(net.layers[1].running_mean, mean)
    net.layers[1].trainable = True
    fn.Trainer(net, "mse", backend="numpy").step(X, X[:, 0])
    assert (net.layers[1].running_mean != mean).all()


def test_what_cannot_be_trained_is_refused_and_nothing_changes() -> None:
    net = fn.Sequential(fn.Dense(3, 4, bias=False), fn.Dropout(), seed=0)
    spec = net.spec
    for layer, value, message in [
        (0, "bias", "trainable='bias', but it has bias=False"),
        (0, "weights", "trainable must be True, False, 'weight' or 'bias', got 'weights'"),
        (0, None, "trainable must be"),
        (0, 1.0, "trainable must be"),
        (1, "weight", r"layers\[1\]: a Dropout layer has neither weight nor bias"),
    ]:
        with pytest.raises(fn.SpecError, match=message):
            net.layers[layer].trainable = value  # type: ignore[assignment]
    assert net.spec is spec


def test_public_names_resolve() -> None:
    for name in fn.__all__:
        assert getattr(fn, name) is not None
    assert set(fn.__all__) <= set(dir(fn))
    with pytest.raises(AttributeError, match="nonsense"):
        fn.nonsense  # noqa: B018


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_ops_compose_to_a_step(backend: backends.Backend, activation: str, bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=s).astype(np.float32) for s in ((6, 4), (4, 3), (6, 3)))
    b = rng.normal(size=3).astype(np.float32) if bias else None
    with backends.use(backend.name):
        z = fn.ops.dense_forward(x, w, b)
        y = fn.ops.dense_forward(x, w, b, activation=activation)
        out = np.full((6, 3), np.nan, np.float32)
        assert fn.ops.dense_forward(x, w, b, activation, out=out) is out
        np.testing.assert_array_equal(out, y)
        a = fn.ops.bias_act_forward(z.copy(), None, activation=activation)
        saved = z if activation == "gelu" else y
        dz, db = fn.ops.act_bias_backward(dy, saved, activation, bias=bias)
        dx, dw, db2 = fn.ops.dense_backward(dy, x, w, saved, activation=activation, bias=bias)
        rows, dout = fn.ops.mse(y, dy)
    np.testing.assert_allclose(a, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dz @ w.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw, x.T @ dz, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows, np.mean((y - dy) ** 2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(dout, 2 * (y - dy) / 18, rtol=1e-5, atol=1e-7)
    if bias:
        np.testing.assert_allclose(db, dz.sum(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(db2, db, rtol=1e-5, atol=1e-6)
    else:
        assert db is None
        assert db2 is None


def test_ops_refuse_what_a_kernel_could_not_read() -> None:
    x, w = np.ones((4, 3), np.float32), np.ones((3, 2), np.float32)
    out = np.empty((4, 2), np.float32)
    frozen = out.copy()
    frozen.flags.writeable = False
    for bad, message in [
        (lambda: fn.ops.dense_forward(x.tolist(), w), "NumPy array"),
        (lambda: fn.ops.dense_forward(x.astype(int), w), "native float32 or float64"),
        (lambda: fn.ops.dense_forward(x.astype(">f4"), w), "native"),
        (lambda: fn.ops.dense_forward(x, w.astype(float)), "other arrays are float32"),
        (lambda: fn.ops.dense_forward(x[0], w), "2 dimensions"),
        (lambda: fn.ops.dense_forward(x, w.T), r"\(2, 3\).*\(3, any\)"),
        (lambda: fn.ops.dense_forward(np.asfortranarray(x), w), "ascontiguousarray"),
        (lambda: fn.ops.dense_forward(x, w, np.ones(3, np.float32)), r"\(2\)"),
        (lambda: fn.ops.dense_forward(x, w, out=out[:3]), "out has shape"),
        (lambda: fn.ops.dense_forward(x, w, out=frozen), "read-only"),
        (lambda: fn.ops.act_bias_backward(out, out, out=out), "overlaps"),
        (lambda: fn.ops.softmax_cross_entropy(x, np.array([0, 1, 2, 3])), "classes are 0 to 2"),
        (lambda: fn.ops.mse(x, x, -np.ones(4)), "negative"),
    ]:
        with pytest.raises(fn.DataError, match=message):
            bad()
    with pytest.raises(fn.UnknownNameError, match="activation"):
        fn.ops.dense_forward(x, w, activation="nonsense")


def test_the_public_face_in_one_piece(backend: backends.Backend, tmp_path: Any) -> None:
    """What examples and outside scripts rely on, in the order in which they use it."""
    rng = np.random.default_rng(0)
    X, X_val = rng.normal(size=(2, 96, 20))
    y, y_val = (np.abs(x).argmax(axis=1) % 10 for x in (X, X_val))
    seen: list[int] = []
    net = fn.Sequential(
        fn.Dense(20, 16),
        fn.BatchNorm(activation="relu"),
        fn.Dropout(0.1),
        fn.Dense(out_features=10),
        dtype="float32",
        seed=0,
    )
    history = net.fit(
        X,
        y,
        loss="cross_entropy",
        optimizer=fn.Adam(1e-3),
        batch_size=32,
        epochs=3,
        validation_data=(X_val, y_val),
        shuffle=True,
        callbacks=[lambda state: seen.append(state.epoch)],
        progress=False,
        backend=backend.name,
        n_threads=None,
    )
    assert seen == [0, 1, 2]
    assert len(history.loss) == len(history.val_loss) == len(history.seconds) == 3
    with backends.use(backend.name):
        logits, classes = net.forward(X), net.predict(X)
        np.testing.assert_array_equal(classes, logits.argmax(axis=1))
        assert net.layers[0].weight.shape == (20, 16)
        assert net.layers[0].bias is None
        assert net.layers[1].bias is not None
        assert net.layers[1].bias.shape == (16,)
        small = net.fold()
        assert [layer.spec.kind for layer in small.layers] == ["dense", "dense"]
        np.testing.assert_allclose(small.forward(X), logits, rtol=0, atol=1e-4)
        net.save(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(fn.load(tmp_path / "model.safetensors").forward(X), logits)
    trainer = fn.Trainer(net, "mse", fn.SGD(0.1, momentum=0.9), 64, backend=backend.name)
    losses = trainer.run(X, X[:, :10], epochs=2, shuffle=True)
    assert losses.shape == (4,)
    before = net.layers[0].weight
    out = trainer.forward(X)
    assert trainer.update(out / 96).shape == X.shape
    assert (net.layers[0].weight != before).any()
