"""What must hold between results, whatever the numbers: relations on small networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, ops
from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Parameters
from fastneuron.losses import LOSSES
from fastneuron.testing import draw_inputs, draw_targets

U = 2.0**-24


@pytest.fixture(autouse=True)
def in_use(backend: backends.Backend) -> Iterator[None]:
    """Everything in this room runs on each backend."""
    with backends.use(backend.name):
        yield


def network(
    *sizes: int, activation: str = "relu", bias: bool = True, dtype: str = "float32", seed: int = 0
) -> fn.Sequential:
    net = fn.mlp(sizes, activation=activation, bias=bias, seed=seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    for layer in net.layers:
        if layer.bias is not None:
            layer.bias = rng.uniform(-0.5, 0.5, layer.bias.shape).astype(dtype)
    return net


def data(n: int, features: int, seed: int = 0, dtype: str = "float32") -> Any:
    return draw_inputs(np.random.default_rng(seed), n, features, dtype)


def gradients(net: fn.Sequential, x: Any, y: Any, loss: str = "mse", weight: Any = None) -> Any:
    trainer = fn.Trainer(net, loss=loss, optimizer=fn.SGD(0.1))
    return trainer.gradients(x, y, weight)


def close(got: Any, want: Any, factor: float = 64) -> None:
    """Equal within some roundings of the largest entry."""
    scale = float(np.abs(want).max(initial=1e-30))
    unit = U if np.asarray(got).dtype == np.float32 else 2.0**-53
    np.testing.assert_allclose(got, want, rtol=0, atol=factor * unit * scale)


def all_close(got: Parameters, want: Parameters, factor: float = 64) -> None:
    for pair, wanted in zip(got, want, strict=True):
        for g, w in zip(pair, wanted, strict=True):
            if w is not None:
                close(g, w, factor)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_is_the_weight_of_an_input_of_ones(activation: str) -> None:
    x, rng = data(33, 12), np.random.default_rng(1)
    w = rng.normal(size=(12, 20)).astype(np.float32)
    b = rng.normal(size=20).astype(np.float32)
    wide_x = np.concatenate([x, np.ones((33, 1), np.float32)], 1)
    wide_w = np.concatenate([w, b[None]])
    a = ops.dense_forward(x, w, b, activation)
    close(ops.dense_forward(wide_x, wide_w, None, activation), a)
    saved = a if ACTIVATIONS[activation].saves == "a" else ops.dense_forward(x, w, b)
    dy = rng.normal(size=a.shape).astype(np.float32)
    dx, dw, db = ops.dense_backward(dy, x, w, saved, activation)
    wide_dx, wide_dw, none = ops.dense_backward(dy, wide_x, wide_w, saved, activation, bias=False)
    assert none is None
    close(wide_dw, np.concatenate([dw, db[None]]))
    close(wide_dx[:, :-1], dx)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_hidden_units_have_no_order(activation: str) -> None:
    net, x = network(7, 19, 13, 3, activation=activation), data(21, 7)
    want = net.forward(x)
    order = np.random.default_rng(2).permutation(19)
    first, second = net.layers[0], net.layers[1]
    first.weight, first.bias = first.weight[:, order], first.bias[order]
    second.weight = second.weight[order]
    close(net.forward(x), want)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_a_batch_is_the_sum_of_its_parts(loss: str) -> None:
    net, x = network(9, 17, 4, activation="tanh"), data(24, 9)
    y = draw_targets(LOSSES[loss], np.random.default_rng(3), 24, 4, "float32")
    value, want = gradients(net, x, y, loss)
    parts = [gradients(net, x[i : i + 8], y[i : i + 8], loss) for i in (0, 8, 16)]
    close(np.float32(sum(part[0] for part in parts) / 3), np.float32(value))
    for i, (dw, db) in enumerate(want):
        close(np.mean([part[1][i][0] for part in parts], 0, np.float32), dw)
        close(np.mean([part[1][i][1] for part in parts], 0, np.float32), db)


def test_softmax_does_not_see_a_shift() -> None:
    rng = np.random.default_rng(4)
    out = rng.integers(-8, 9, (15, 6)).astype(np.float32)
    y = rng.integers(0, 6, 15)
    want = ops.softmax_cross_entropy(out, y)
    for shift in (64, -1024):  # adding it is exact
        got = ops.softmax_cross_entropy(out + np.float32(shift), y)
        np.testing.assert_allclose(got[0], want[0], rtol=0, atol=2 * U * abs(shift))
        close(got[1], want[1])


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_odd_networks_are_odd(activation: str) -> None:
    net, x = network(8, 31, 14, 5, activation=activation, bias=False), data(19, 8)
    np.testing.assert_array_equal(net.forward(-x), -net.forward(x))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_powers_of_two_pass_through_exactly(activation: str) -> None:
    net, x = network(8, 31, 14, 5, activation=activation, bias=False), data(19, 8)
    want = net.forward(x)
    np.testing.assert_array_equal(net.forward(x * 16), want * 16)
    net.layers[1].weight = net.layers[1].weight / 8
    np.testing.assert_array_equal(net.forward(x), want / 8)


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_k_equals_k_repeats(loss: str) -> None:
    net, x = network(5, 11, 3, activation="tanh"), data(12, 5)
    rng = np.random.default_rng(5)
    y = draw_targets(LOSSES[loss], rng, 12, 3, "float32")
    counts = rng.integers(0, 4, 12)
    counts[0] = 0  # a weight of 0 is the row's removal
    value, got = gradients(net, x, y, loss, counts.astype(np.float32))
    rows = np.repeat(np.arange(12), counts)
    want_value, want = gradients(net, x[rows], y[rows], loss)
    close(np.float32(value), np.float32(want_value))
    all_close(got, want)


def test_a_constant_weight_changes_nothing() -> None:
    net, x = network(5, 11, 3), data(12, 5)
    y = data(12, 3, seed=1)
    value, want = gradients(net, x, y)
    for weight in (np.ones(12), np.full(12, 4.0)):
        got_value, got = gradients(net, x, y, weight=weight)
        assert got_value == value
        all_close(got, want, factor=4)


def test_linear_network_is_least_squares() -> None:
    """No hidden layer and the squared error: the closed form, with the intercept."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 4)) + np.array([0.5, -1, 0, 2])
    y = x @ rng.normal(size=(4, 2)) + [3, -2] + 0.1 * rng.normal(size=(60, 2))
    for bias in (True, False):
        design = np.concatenate([x, np.ones((60, 1))], 1) if bias else x
        want = np.linalg.lstsq(design, y, rcond=None)[0]
        net = fn.Sequential(fn.Dense(4, 2, bias=bias), dtype="float64", seed=0)
        trainer = fn.Trainer(net, loss="mse", optimizer=fn.SGD(0.1, momentum=0.8), batch_size=60)
        trainer.run(x, y, epochs=1500)
        layer = net.layers[0]
        np.testing.assert_allclose(layer.weight, want[:4], atol=1e-8)
        if bias:
            np.testing.assert_allclose(layer.bias, want[4], atol=1e-8)
        # At the minimum the gradient vanishes, and with a bias the residuals sum to zero.
        _, grads = trainer.gradients(x, y)
        assert max(np.abs(g).max() for g in grads[0] if g is not None) < 1e-8


def test_a_line_and_its_intercept() -> None:
    """Data on y = 2x + 3: the bias is the 3; without one the line goes through the origin."""
    x = np.linspace(-1, 3, 50)[:, None]
    y = 2 * x + 3
    for bias in (True, False):
        net = fn.Sequential(fn.Dense(1, 1, bias=bias), seed=1)
        net.fit(x, y, optimizer=fn.SGD(0.1), loss="mse", batch_size=50, epochs=600, progress=False)
        slope = float(net.layers[0].weight[0, 0])
        if bias:
            assert abs(slope - 2) < 1e-3
            assert abs(float(net.layers[0].bias[0]) - 3) < 1e-3
        else:
            assert net.layers[0].bias is None
            assert abs(slope - float((x * y).sum() / (x * x).sum())) < 1e-3
            np.testing.assert_array_equal(net.forward(np.zeros((1, 1))), 0)


def test_learning_rate_zero_changes_no_bit() -> None:
    x, y = data(20, 6), data(20, 2, seed=1)
    for optimizer in (
        fn.SGD(0.0, weight_decay=0.1),
        fn.SGD(0.0, momentum=0.9),
        fn.Adam(0.0, weight_decay=0.1),
        fn.AdamW(0.0),
        fn.RMSprop(0.0),
    ):
        net = network(6, 9, 2)
        before = [layer.weight.tobytes() + layer.bias.tobytes() for layer in net.layers]
        fn.Trainer(net, loss="mse", optimizer=optimizer, batch_size=7).run(x, y, epochs=2)
        assert [layer.weight.tobytes() + layer.bias.tobytes() for layer in net.layers] == before


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_features_that_are_zero_change_nothing(activation: str) -> None:
    rng = np.random.default_rng(7)
    x, y = data(14, 10), data(14, 3, seed=1)
    net = network(10, 18, 3, activation=activation)
    wide = network(23, 18, 3, activation=activation)
    padded = np.concatenate([x, np.zeros((14, 13), np.float32)], 1)
    for layer, other in zip(net.layers, wide.layers, strict=True):
        other.bias = layer.bias
    wide.layers[1].weight = net.layers[1].weight
    extra = rng.normal(size=(13, 18)).astype(np.float32)
    wide.layers[0].weight = np.concatenate([net.layers[0].weight, extra])
    close(wide.forward(padded), net.forward(x), factor=8)
    _, want = gradients(net, x, y)
    _, got = gradients(wide, padded, y)
    close(got[0][0][:10], want[0][0])
    np.testing.assert_array_equal(got[0][0][10:], 0)


def layouts(x: Any) -> dict[str, Any]:
    strided = np.zeros((2 * len(x), 2 * x.shape[1]), x.dtype)
    strided[::2, 1::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "fortran": np.asfortranarray(x),
        "strided": strided[::2, 1::2],
        "backwards": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "unaligned": unaligned,
        "read-only": frozen,
        "byte-swapped": x.astype(x.dtype.newbyteorder()),
        "list": x.tolist(),
        "float64": x.astype(np.float64),
    }


def test_layouts_give_the_bits_of_their_copy() -> None:
    x, y = data(23, 6), data(23, 2, seed=1)
    weight = np.random.default_rng(8).uniform(0.5, 1, 23).astype(np.float32)

    def trained(x: Any, y: Any, weight: Any) -> bytes:
        net = network(6, 13, 2, activation="tanh")
        trainer = fn.Trainer(net, loss="mse", optimizer=fn.Adam(0.01), batch_size=5)
        losses = trainer.run(x, y, epochs=3, sample_weight=weight)
        step = trainer.step(x, y)
        parts = [losses, step, net.forward(x), *(layer.weight for layer in net.layers)]
        return b"".join(np.asarray(part).tobytes() for part in parts)

    want = trained(x, y, weight)
    rows = layouts(x)
    targets = layouts(y)
    for name in rows:
        assert trained(rows[name], targets[name], weight) == want, name
    whole = np.rint(x * 4)
    want = trained(whole, y, weight)
    for dtype in (np.int8, np.int64, np.float16):
        assert trained(whole.astype(dtype), y, weight) == want, dtype.__name__


def test_kernels_alone_read_frozen_arrays() -> None:
    """What kernels read may be read-only; targets and weights come in every layout."""
    x, w = data(9, 5), data(5, 7, seed=1)
    b, y = data(1, 7, seed=2)[0], data(9, 7, seed=3)
    labels, weight = np.arange(9) % 7, np.linspace(0.5, 1.5, 9, dtype=np.float32)

    def computed(x: Any, w: Any, b: Any, y: Any, labels: Any, targets: Any, weight: Any) -> bytes:
        z = ops.dense_forward(x, w, b, "gelu")
        results = [
            z,
            ops.bias_act_forward(y, b, "tanh"),
            *ops.act_bias_backward(y, y, "silu"),
            *ops.dense_backward(y, x, w, y, "relu"),
            *ops.mse(y, targets, weight),
            *ops.softmax_cross_entropy(y, labels, weight),
        ]
        return b"".join(np.asarray(array).tobytes() for array in results)

    want = computed(x, w, b, y, labels, y, weight)
    frozen = [array.copy() for array in (x, w, b, y)]
    for array in frozen:
        array.flags.writeable = False
    weights = layouts(weight[:, None])
    for name, targets in layouts(y).items():
        column = np.asarray(weights[name])[:, 0]
        assert computed(*frozen, labels.astype(np.int16), targets, column) == want, name


def test_dead_units_have_a_gradient_of_zero() -> None:
    net, x, y = network(6, 12, 2), data(20, 6), data(20, 2, seed=1)
    bias = net.layers[0].bias
    bias[3:7] = -1e4
    net.layers[0].bias = bias
    _, ((dw, db), (dw_next, _)) = gradients(net, x, y)
    np.testing.assert_array_equal(dw[:, 3:7], 0)
    np.testing.assert_array_equal(db[3:7], 0)
    np.testing.assert_array_equal(dw_next[3:7], 0)
    assert np.abs(dw).max() > 0
    before = net.layers[0].weight[:, 3:7]
    trainer = fn.Trainer(net, loss="mse", optimizer=fn.Adam(0.1), batch_size=20)
    trainer.run(x, y, epochs=3)
    np.testing.assert_array_equal(net.layers[0].weight[:, 3:7], before)


def test_equal_weights_never_break_symmetry() -> None:
    """Hidden units that start alike stay alike: random weights are what makes them differ."""
    net, x, y = network(6, 9, 2, activation="tanh"), data(40, 6), data(40, 2, seed=1)
    for layer in net.layers:
        layer.weight = np.zeros_like(layer.weight)
        layer.bias = np.zeros_like(layer.bias)
    trainer = fn.Trainer(net, loss="mse", optimizer=fn.SGD(0.1), batch_size=8)
    losses = trainer.run(x, y, epochs=5)
    np.testing.assert_array_equal(net.layers[0].weight, 0)  # nothing flows back through zeros
    assert losses[-1] != losses[0]  # the output bias learns
    net.layers[1].weight = np.full((9, 2), 0.3, np.float32)
    trainer.run(x, y, epochs=5)
    weight = net.layers[0].weight
    assert np.abs(weight).max() > 0
    if backends.get().name != "numpy":
        np.testing.assert_array_equal(weight, np.repeat(weight[:, :1], 9, 1))
    else:  # the BLAS may sum neighbouring columns in different orders
        close(weight, np.repeat(weight[:, :1], 9, 1), factor=1000)


def test_biases_that_start_at_zero_train() -> None:
    net = fn.mlp([4, 16, 1], activation="relu", seed=3)
    for layer in net.layers:
        np.testing.assert_array_equal(layer.bias, 0)
    x = data(64, 4)
    trainer = fn.Trainer(net, loss="mse", optimizer=fn.Adam(0.01), batch_size=16)
    losses = trainer.run(x, x[:, :1] + 2, epochs=40)
    assert np.mean(losses[-4:]) < 0.1 * np.mean(losses[:4])
    assert all(np.abs(layer.bias).max() > 0 for layer in net.layers)
