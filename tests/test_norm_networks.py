"""BatchNorm, LayerNorm and Dropout as users meet them: formulas, torch, statistics, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.backends import Backend

RATE, MOMENTUM, EPSILON = 0.1, 0.2, 1e-3


def network(norm: Any, dtype: str = "float64", seed: int = 0) -> fn.Sequential:
    net = fn.Sequential(fn.Dense(4, 6, bias=True), norm, fn.Dense(6, 2), dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    net.layers[1].weight = rng.normal(1, 0.5, 6)
    net.layers[1].bias = rng.normal(size=6)
    net.layers[0].bias = rng.normal(size=6)
    return net


def data(rows: int = 24, seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)) * [1, 3, 0.1, 5] + [0, 4, 0, -2], rng.normal(size=(rows, 2))


class Plain:
    """The network above in plain NumPy, trained by gradient descent on the squared error.

    The backward pass is written out by the sums of the papers, dL/dvariance and dL/dmean one after
    the other, and not as the package has it.
    """

    def __init__(self, net: fn.Sequential, axis: int) -> None:
        (self.w0, self.b0), (self.gamma, self.beta), (self.w1, self.b1) = (
            (layer.weight, layer.bias) for layer in net.layers
        )
        self.axis = axis
        self.mean, self.variance = np.zeros(6), np.ones(6)

    def step(self, x: Any, y: Any) -> float:
        axis, n = self.axis, len(x)
        z = x @ self.w0 + self.b0
        m = z.shape[axis]
        mean = z.mean(axis=axis, keepdims=True)
        variance = ((z - mean) ** 2).mean(axis=axis, keepdims=True)
        root = np.sqrt(variance + EPSILON)
        xhat = (z - mean) / root
        pre = self.gamma * xhat + self.beta
        a = np.maximum(pre, 0)
        out = a @ self.w1 + self.b1
        dout = 2 * (out - y) / out.size
        dpre = (dout @ self.w1.T) * (pre > 0)
        dxhat = dpre * self.gamma
        dvariance = (dxhat * (z - mean) * -0.5 * root**-3).sum(axis=axis, keepdims=True)
        dmean = (-dxhat / root).sum(axis=axis, keepdims=True) + dvariance * (-2 * (z - mean)).mean(
            axis=axis, keepdims=True
        )
        dz = dxhat / root + dvariance * 2 * (z - mean) / m + dmean / m
        moves = [(self.w1, a.T @ dout), (self.b1, dout.sum(0)), (self.gamma, (dpre * xhat).sum(0)),
                 (self.beta, dpre.sum(0)), (self.w0, x.T @ dz), (self.b0, dz.sum(0))]  # fmt: skip
        for array, gradient in moves:
            array -= RATE * gradient
        if axis == 0:
            self.mean += MOMENTUM * (mean[0] - self.mean)
            self.variance += MOMENTUM * (variance[0] * n / (n - 1) - self.variance)
        return float(((out - y) ** 2).mean())

    def answer(self, x: Any) -> Any:
        z = x @ self.w0 + self.b0
        mean, variance = self.mean, self.variance
        if self.axis == 1:
            mean, variance = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        pre = self.gamma * (z - mean) / np.sqrt(variance + EPSILON) + self.beta
        return np.maximum(pre, 0) @ self.w1 + self.b1


def norm_of(kind: str) -> Any:
    if kind == "batch":
        return fn.BatchNorm(activation="relu", momentum=MOMENTUM, epsilon=EPSILON)
    return fn.LayerNorm(activation="relu", epsilon=EPSILON)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_training_is_that_of_the_formulas(backend: Backend, kind: str) -> None:
    net = network(norm_of(kind))
    plain = Plain(net, 0 if kind == "batch" else 1)
    trainer = fn.Trainer(net, "mse", fn.SGD(RATE), backend=backend.name)
    x, y = data()
    for _ in range(20):
        np.testing.assert_allclose(trainer.step(x, y), plain.step(x, y), rtol=1e-11)
    for got, want in (
        (net.layers[0].weight, plain.w0),
        (net.layers[1].weight, plain.gamma),
        (net.layers[1].bias, plain.beta),
        (net.layers[2].weight, plain.w1),
        (net.forward(x[:7]), plain.answer(x[:7])),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)
    if kind == "batch":
        np.testing.assert_allclose(net.layers[1].running_mean, plain.mean, rtol=1e-11)
        np.testing.assert_allclose(net.layers[1].running_variance, plain.variance, rtol=1e-11)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_training_is_that_of_torch(backend: Backend, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed here")
    net = network(norm_of(kind))
    batch = torch.nn.BatchNorm1d(6, eps=EPSILON, momentum=MOMENTUM)
    norm = batch if kind == "batch" else torch.nn.LayerNorm(6, eps=EPSILON)
    twin = torch.nn.Sequential(
        torch.nn.Linear(4, 6), norm, torch.nn.ReLU(), torch.nn.Linear(6, 2)
    ).double()
    with torch.no_grad():
        for theirs, ours in zip((twin[0], norm, twin[3]), net.layers, strict=True):
            theirs.weight.copy_(torch.tensor(ours.weight.T.copy()))
            theirs.bias.copy_(torch.tensor(ours.bias))
    descent = torch.optim.SGD(twin.parameters(), lr=RATE, momentum=0.9)
    optimizer = fn.SGD(RATE, momentum=0.9)
    trainer = fn.Trainer(net, "mse", optimizer, backend=backend.name)
    x, y = data()
    rows, targets = torch.tensor(x), torch.tensor(y)
    for step in range(10):
        part = slice(0, 24 if step % 2 else 9)
        descent.zero_grad()
        loss = torch.nn.functional.mse_loss(twin(rows[part]), targets[part])
        loss.backward()
        descent.step()
        np.testing.assert_allclose(trainer.step(x[part], y[part]), loss.item(), rtol=1e-10)
    twin.eval()
    want = twin(rows).detach().numpy()
    np.testing.assert_allclose(net.forward(x), want, rtol=1e-8, atol=1e-9)
    if kind == "batch":
        np.testing.assert_allclose(
            net.layers[1].running_mean, batch.running_mean.numpy(), rtol=1e-9
        )
        np.testing.assert_allclose(
            net.layers[1].running_variance, batch.running_var.numpy(), rtol=1e-9
        )


def test_predictions_go_by_running_statistics(backend: Backend) -> None:
    net = network(norm_of("batch"), "float32")
    x, y = data(rows=60)
    trainer = fn.Trainer(net, "mse", fn.SGD(0.01), batch_size=20, backend=backend.name)
    trainer.run(x, y, epochs=30)
    out = net.forward(x)
    assert np.abs(trainer.forward(x[:10]) - out[:10]).max() > 1e-3
    for i in range(3):  # a row's answer does not know the others
        np.testing.assert_allclose(net.forward(x[i : i + 1])[0], out[i], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trainer.evaluate(x, y), np.square(out - y).mean(), rtol=1e-5)
    assert net.layers[0].running_mean is None
    assert net.layers[2].running_variance is None


def test_predictions_drop_nothing(backend: Backend) -> None:
    net = fn.Sequential(fn.Dense(4, 30, "tanh"), fn.Dropout(0.5), fn.Dense(30, 2), seed=0)
    plain = fn.Sequential(fn.Dense(4, 30, "tanh"), fn.Dense(30, 2), seed=1)
    for ours, theirs in zip((net.layers[0], net.layers[2]), plain.layers, strict=True):
        theirs.weight, theirs.bias = ours.weight, ours.bias
    x, _ = data()
    trainer = fn.Trainer(net, "mse", backend=backend.name)
    np.testing.assert_array_equal(net.forward(x), plain.forward(x))
    assert (trainer.forward(x) != net.forward(x)).any()
    # Scaled in training: its mean over many masks is the prediction.
    means = [
        fn.Trainer(net, "mse", backend=backend.name, seed=s).forward(x).mean() for s in range(300)
    ]
    deviation = np.std(means) / 300**0.5
    assert abs(np.mean(means) - net.forward(x).mean()) < 5 * deviation  # falsely once in 1.7e6


def test_batches_of_one_row_are_refused_where_rows_meet(backend: Backend) -> None:
    net = network(norm_of("batch"))
    x, y = data()
    trainer = fn.Trainer(net, "mse", fn.SGD(RATE), batch_size=1, backend=backend.name)
    before = pickle.dumps(net)
    for call in (
        lambda: trainer.step(x[:1], y[:1]),
        lambda: trainer.run(x, y),
        lambda: trainer.forward(x[:1]),
        lambda: trainer.gradients(x[:1], y[:1]),
    ):
        with pytest.raises(fn.DataError, match="2 rows or more"):
            call()
    assert pickle.dumps(net) == before
    frozen = network(fn.BatchNorm(trainable=False))
    fn.Trainer(frozen, "mse", batch_size=1, backend=backend.name).run(x, y)
    fn.Trainer(network(fn.LayerNorm()), "mse", batch_size=1, backend=backend.name).run(x, y)


def test_a_last_batch_of_one_row_leaves_statistics_alone(backend: Backend) -> None:
    x, y = data(rows=9)
    found = []
    for rows in (9, 8):
        net = network(norm_of("batch"))
        trainer = fn.Trainer(net, "mse", fn.SGD(0.0), batch_size=8, backend=backend.name)
        losses = trainer.run(x[:rows], y[:rows], shuffle=False)
        assert np.isfinite(losses).all()
        found.append(net.layers[1].running_variance)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != 1).all()


def test_momentum_at_its_ends(backend: Backend) -> None:
    x, y = data()
    z = x  # a first layer normalises the data themselves
    for momentum, want in ((0.0, (0.0, 1.0)), (1.0, (z.mean(0), z.var(0, ddof=1)))):
        net = fn.Sequential(
            fn.BatchNorm(4, momentum=momentum), fn.Dense(4, 2), dtype="float64", seed=0
        )
        fn.Trainer(net, "mse", fn.SGD(RATE), backend=backend.name).step(x, y)
        np.testing.assert_allclose(net.layers[0].running_mean, want[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(net.layers[0].running_variance, want[1], rtol=1e-12)


def statistics_of(net: fn.Sequential) -> list[bytes]:
    return [
        each.tobytes()
        for layer in net.layers
        for each in (layer.running_mean, layer.running_variance)
        if each is not None
    ]


def test_early_stopping_restores_statistics(backend: Backend) -> None:
    """Those of the best epoch go with its parameters."""
    x, y = data(rows=64)
    seen: list[Any] = []

    def look(state: Any) -> None:
        seen.append((state.val_loss, statistics_of(state.net), state.net.forward(x).tobytes()))

    net = network(norm_of("batch"), "float32")
    net.fit(
        x, y, loss="mse", optimizer=fn.SGD(0.5), batch_size=16, epochs=12, progress=False,
        validation_data=data(seed=5), backend=backend.name, callbacks=[look],
        early_stopping=fn.EarlyStopping(patience=3),
    )  # fmt: skip
    best = min(seen, key=lambda entry: entry[0])
    assert best is not seen[-1]
    assert statistics_of(net) == best[1] != seen[-1][1]
    assert net.forward(x).tobytes() == best[2]


def trained(backend: Backend, dtype: str = "float32") -> tuple[fn.Sequential, fn.Trainer]:
    net = network(norm_of("batch"), dtype)
    trainer = fn.Trainer(net, "mse", fn.SGD(RATE), batch_size=8, backend=backend.name)
    trainer.run(*data(), epochs=2)
    return net, trainer


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_copies_carry_statistics_and_live_apart(backend: Backend, duplicate: Any) -> None:
    net, trainer = trained(backend)
    twin, before = duplicate(net), statistics_of(net)
    assert statistics_of(twin) == before
    np.testing.assert_array_equal(twin.forward(data()[0]), net.forward(data()[0]))
    if duplicate is not copy.copy:
        trainer.run(*data(), epochs=1)
        assert statistics_of(twin) == before != statistics_of(net)
        fn.Trainer(twin, "mse", fn.SGD(RATE), batch_size=8, backend=backend.name).run(*data())
        assert statistics_of(twin) != before


def test_files_carry_statistics(backend: Backend, tmp_path: Any) -> None:
    net, _ = trained(backend)
    net.save(tmp_path / "m")
    twin = fn.load(tmp_path / "m")
    assert statistics_of(twin) == statistics_of(net)
    assert twin.spec == net.spec
    np.testing.assert_array_equal(twin.forward(data()[0]), net.forward(data()[0]))


def test_trainers_share_statistics_and_assignments_count(backend: Backend) -> None:
    net, first = trained(backend)
    x, y = data()
    second = fn.Trainer(net, "mse", fn.SGD(RATE), batch_size=8, backend=backend.name)
    shared, alone = [], network(norm_of("batch"), "float32")
    only = fn.Trainer(alone, "mse", fn.SGD(RATE), batch_size=8, backend=backend.name)
    only.run(x, y, epochs=2)
    for trainer in (second, first, second):
        shared.append(trainer.step(x, y))
    assert [only.step(x, y) for _ in range(3)] == shared
    assert statistics_of(alone) == statistics_of(net)
    net.layers[1].running_mean = np.full(6, 2.0)
    net.layers[1].running_variance = np.full(6, 9.0)
    first.step(x, y)
    mean = net.layers[1].running_mean
    assert mean is not None
    assert (mean != 2).all()
    net.layers[1].running_mean = np.full(6, 1e4)
    assert np.abs(net.forward(x)).max() < np.inf
    with pytest.raises(fn.DataError, match="at least 0"):
        net.layers[1].running_variance = -np.ones(6)
    with pytest.raises(fn.DataError, match="keeps no statistics"):
        net.layers[0].running_mean = np.ones(6)
    with pytest.raises(fn.DataError, match="shape"):
        net.layers[1].running_mean = np.ones(5)
    for bad in (np.nan, np.inf):
        with pytest.raises(fn.DataError):
            net.layers[1].running_mean = np.full(6, bad)


def test_a_failed_step_of_a_trainer_moves_no_statistics(backend: Backend) -> None:
    net, trainer = trained(backend)
    before = statistics_of(net), net.layers[0].weight.tobytes(), trainer.step_count
    x, y = data()
    x[:, 0] = 1e38
    with pytest.raises(fn.NonFiniteError):
        trainer.step(x.astype(np.float32), y)
    assert (statistics_of(net), net.layers[0].weight.tobytes(), trainer.step_count) == before
