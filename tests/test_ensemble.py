"""Many networks at once: each becomes what a trainer makes of it alone, and stays its owner's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, ensemble_order
from fastneuron.testing import flat

RNG = np.random.default_rng(3)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = np.stack([X[:, 0] * X[:, 1], X[:, 2]], axis=1)
LABELS = (X[:, 0] > 0).astype(np.int64)
M = 3

KINDS: dict[str, Callable[[int], fn.Sequential]] = {
    "dense": lambda seed: fn.mlp([4, 6, 2], "tanh", seed=seed),
    "no bias": lambda seed: fn.mlp([4, 6, 2], "relu", bias=False, seed=seed),
    "batch norm, dropout": lambda seed: fn.mlp([4, 6, 5, 2], norm="batch", dropout=0.3, seed=seed),
    "layer norm, float64": lambda seed: fn.mlp(
        [4, 6, 2], norm="layer", dropout=0.1, seed=seed, dtype="float64"
    ),
}


def networks(kind: str = "dense", count: int = M) -> list[fn.Sequential]:
    return [KINDS[kind](10 + m) for m in range(count)]


def state(net: fn.Sequential) -> list[Any]:
    store = net.parameters
    return [*flat(store.pull()), *flat(store.pull_statistics())]


def same(got: fn.Sequential, want: fn.Sequential) -> None:
    for one, other in zip(state(got), state(want), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_each_networks_own(backend: backends.Backend, kind: str, shuffle: bool) -> None:
    nets, alone = networks(kind), networks(kind)
    ensemble = fn.Ensemble(nets, "mse", "adam", batch_size=16, backend=backend.name)
    got = [ensemble.run(X, Y, epochs=k, shuffle=shuffle) for k in (1, 3)]
    assert [losses.shape for losses in got] == [(4, M), (12, M)]
    for m, net in enumerate(alone):
        trainer = fn.Trainer(net, "mse", "adam", batch_size=16, backend=backend.name)
        for losses, epochs in zip(got, (1, 3), strict=True):
            np.testing.assert_array_equal(losses[:, m], trainer.run(X, Y, epochs, shuffle))
        same(nets[m], net)
        same(ensemble[m], net)
    assert (ensemble.step_count, ensemble.epoch_count) == (16, 4)
    assert not ensemble.diverged.any()
    assert ensemble.steps.tolist() == [16] * M


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_each_networks_own(backend: backends.Backend, kind: str) -> None:
    nets, alone = networks(kind), networks(kind)
    ensemble = fn.Ensemble(nets, "cross_entropy", fn.SGD(0.1), backend=backend.name)
    trainers = [
        fn.Trainer(net, "cross_entropy", fn.SGD(0.1), backend=backend.name) for net in alone
    ]
    weight = RNG.uniform(0, 2, 50)
    for first in (0, 20):
        part = slice(first, first + 20)
        got = ensemble.step(X[part], LABELS[part], weight[part])
        want = [trainer.step(X[part], LABELS[part], weight[part]) for trainer in trainers]
        np.testing.assert_array_equal(got, want)
    for net, want_net in zip(ensemble, alone, strict=True):
        same(net, want_net)


def test_each_may_have_its_own_data(backend: backends.Backend) -> None:
    """Bootstraps: rows, targets and weights of each network's own, or of all."""
    xs = np.stack([X[RNG.permutation(50)] for _ in range(M)])
    ys = np.stack([LABELS[RNG.permutation(50)] for _ in range(M)])
    ws = RNG.uniform(0, 2, (M, 50))
    for x, y, w in ((xs, ys, ws), (X, LABELS, ws), (xs, LABELS, None), (X, ys, ws[0])):
        nets, alone = networks(), networks()
        ensemble = fn.Ensemble(nets, "cross_entropy", "adam", 16, backend.name)
        losses = ensemble.run(x, y, epochs=2, sample_weight=w)
        found = ensemble.evaluate(x, y, w)
        for m, net in enumerate(alone):
            own = (
                x[m] if x.ndim == 3 else x,
                y[m] if y.ndim == 2 else y,
                w[m] if w is not None and w.ndim == 2 else w,
            )
            trainer = fn.Trainer(net, "cross_entropy", "adam", 16, backend.name)
            want = trainer.run(*own[:2], epochs=2, sample_weight=own[2])
            np.testing.assert_array_equal(losses[:, m], want)
            assert found[m] == trainer.evaluate(*own)
            same(nets[m], net)


@pytest.mark.parametrize(
    ("loss", "y"),
    [("mse", Y), ("cross_entropy", np.eye(2)[LABELS]), ("binary_cross_entropy", (Y > 0) * 1.0)],
)
def test_targets_of_values_may_be_own_too(loss: str, y: Any) -> None:
    want = fn.Ensemble(networks(), loss, backend="numpy").run(X, y)
    own = np.stack([y] * M)
    np.testing.assert_array_equal(fn.Ensemble(networks(), loss, backend="numpy").run(X, own), want)


def test_one_output_takes_targets_without_its_axis() -> None:
    nets = [fn.mlp([4, 3, 1], seed=m) for m in range(M)]
    want = fn.Ensemble(copy.deepcopy(nets), "mse", backend="numpy").run(X, Y[:, 0])
    for y in (Y[:, :1], np.stack([Y[:, 0]] * M), np.stack([Y[:, :1]] * M)):
        got = fn.Ensemble(copy.deepcopy(nets), "mse", backend="numpy").run(X, y)
        np.testing.assert_array_equal(got, want)


def test_a_sweep_of_rates(backend: backends.Backend) -> None:
    rates = [0.3, fn.Cosine(0.1), fn.WarmUp(fn.Constant(0.05), 5)]
    optimizers = [fn.SGD(rate, momentum=0.1 * (m + 1)) for m, rate in enumerate(rates)]
    nets, alone = networks(), networks()
    ensemble = fn.Ensemble(nets, "mse", optimizers, 8, backend.name)
    losses = ensemble.run(X, Y, epochs=3)
    for m, net in enumerate(alone):
        want = fn.Trainer(net, "mse", optimizers[m], 8, backend.name).run(X, Y, epochs=3)
        np.testing.assert_array_equal(losses[:, m], want)
        same(nets[m], net)


@pytest.mark.parametrize("rates", [(0.5, 0.01, 1.0), (0.5, 0.5, 0.5)])
def test_each_has_its_own_plateau(rates: Any) -> None:
    """Networks of equal optimizers, too; single steps go by what the epochs before them found."""
    optimizers = [fn.Adam(fn.Plateau(rate, patience=1)) for rate in rates]
    nets, alone = networks(), networks()
    ensemble = fn.Ensemble(nets, "mse", optimizers, 16, "numpy")
    trainers = [
        fn.Trainer(net, "mse", optimizer, 16, "numpy")
        for net, optimizer in zip(alone, optimizers, strict=True)
    ]
    for train in (
        lambda each: each.step(X, Y),
        lambda each: each.run(X, Y, epochs=8),
        lambda each: each.step(X, Y),
        lambda each: each.run(X, Y),
    ):
        got, want = train(ensemble), [train(trainer) for trainer in trainers]
        np.testing.assert_array_equal(got, np.stack(want, axis=-1))


def test_one_seed_for_all_is_one_order(backend: backends.Backend) -> None:
    for kind in ("dense", "batch norm, dropout"):
        nets, alone = networks(kind), networks(kind)
        losses = fn.Ensemble(nets, "mse", "adam", 8, backend.name, seed=5).run(X, Y, 2)
        for m, net in enumerate(alone):
            want = fn.Trainer(net, "mse", "adam", 8, backend.name, seed=5).run(X, Y, 2)
            np.testing.assert_array_equal(losses[:, m], want)
    nets = [KINDS["dense"](seed) for seed in (4, 7, 4)]  # two orders for three
    alone = copy.deepcopy(nets)
    losses = fn.Ensemble(nets, "mse", "adam", 8, backend.name).run(X, Y, 2)
    for m, net in enumerate(alone):
        want = fn.Trainer(net, "mse", "adam", 8, backend.name).run(X, Y, 2)
        np.testing.assert_array_equal(losses[:, m], want)


def test_swapped_orders_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: networks that meet the rows in each other's order."""

    class Swapped(ensemble_order.Batches):
        def __init__(self, *sizes: Any, seed: int, **given: Any) -> None:
            super().__init__(*sizes, seed={10: 11, 11: 10}.get(seed, seed), **given)

    monkeypatch.setattr(ensemble_order, "Batches", Swapped)
    losses = fn.Ensemble(networks(), "mse", "adam", 16, "numpy").run(X, Y)
    for m, net in enumerate(networks()):
        want = fn.Trainer(net, "mse", "adam", 16, "numpy").run(X, Y)
        assert np.array_equal(losses[:, m], want) == (m == 2)


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_chunking_changes_no_bit(
    backend: backends.Backend, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "batch norm, dropout"
    want_nets, nets = networks(kind), networks(kind)
    want = fn.Ensemble(want_nets, "mse", "adam", 8, backend.name).run(X, Y, epochs=9)
    monkeypatch.setattr("fastneuron.chunks._GROWTH", most)
    monkeypatch.setattr("fastneuron.chunks._CHUNK_SECONDS", 1e9 if most > 1 else 0.0)
    monkeypatch.setattr("fastneuron.ensemble._SHARE_SECONDS", 0.0)
    monkeypatch.setattr("fastneuron.ensemble_order._PART_ROWS", most * 8 * M)
    ensemble = fn.Ensemble(nets, "mse", "adam", 8, backend.name)
    got = np.concatenate([ensemble.run(X, Y, epochs=k) for k in (1, 6, 2)])
    np.testing.assert_array_equal(got, want)
    for net, want_net in zip(nets, want_nets, strict=True):
        same(net, want_net)


def test_a_call_names_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_order, "_PART_ROWS", 60)
    for seeds, rows in (((1, 2, 3), 20), ((1, 1, 1), 60)):
        batches = ensemble_order.EnsembleBatches(
            50, 10, 4, shuffle=True, seeds=seeds, first_epoch=0, span=True
        )
        sizes = []
        while (part := batches.take(100)) is not None:
            assert len(part.order) == len(set(seeds))
            sizes.append(part.order.shape[1])
        assert max(sizes) <= rows
        assert sum(sizes) == 200


def test_a_network_keeps_no_others_alive() -> None:
    nets = networks("batch norm, dropout")
    fn.Ensemble(nets, "mse", backend="numpy").step(X, Y)
    assert all(array.base is None for array in state(nets[1]))


def test_many_of_one(backend: backends.Backend) -> None:
    like = KINDS["batch norm, dropout"](0)
    like.layers[0].trainable = "weight"
    many = fn.Ensemble.of(like, 5, "mse", fn.Adam(0.01), seed=1, backend=backend.name)
    assert len(many) == 5
    assert len({net.seed for net in many}) == 5
    assert all(net.spec == like.spec for net in many)
    few = fn.Ensemble.of(like, 2, "mse", seed=1)
    for one, other in zip(few, many, strict=False):
        assert one.seed == other.seed
        same(one, other)
    fresh = fn.Sequential(*like.spec.layers, seed=many[3].seed)
    same(many[3], fresh)
    ordered = fn.Ensemble.of(like.spec, 2, "mse", seed=1, order_seed=7, backend=backend.name)
    assert ordered.seeds == [7, 7]
    same(ordered[1], many[1])
    with pytest.raises(fn.SpecError, match="count"):
        fn.Ensemble.of(like, 0, "mse")


def test_forward_and_evaluate_are_the_networks_own(backend: backends.Backend) -> None:
    nets = networks("batch norm, dropout")
    ensemble = fn.Ensemble(nets, "mse", "adam", 16, backend.name)
    for _ in range(2):
        out = ensemble.forward(X)
        assert out.shape == (M, 50, 2)
        found = ensemble.evaluate(X, Y)
        with backends.use(backend.name):
            for m, net in enumerate(nets):
                np.testing.assert_array_equal(out[m], net.forward(X))
                assert found[m] == net.evaluate(X, Y, loss="mse")
        own = np.stack([X, X[::-1], X * 2])
        np.testing.assert_array_equal(ensemble.forward(own)[1], out[1][::-1])
        ensemble.run(X, Y)


def test_large_data_is_asked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = fn.Ensemble(networks(), "mse", backend="numpy")
    x = RNG.normal(size=(700, 4)).astype(np.float32)
    want = ensemble.forward(x)
    monkeypatch.setattr("fastneuron.ensemble_parameters._FORWARD_VALUES", 1)
    np.testing.assert_array_equal(ensemble.forward(x), want)


def test_the_networks_are_their_owners(backend: backends.Backend) -> None:
    """What is read is current, what is assigned is trained, whoever else trains in between."""
    nets, alone = networks(), networks()
    ensemble = fn.Ensemble(nets, "mse", "adam", 16, backend.name)
    trainers = [fn.Trainer(net, "mse", "adam", 16, backend.name) for net in alone]

    def both(train: Callable[[Any], Any]) -> None:
        train(ensemble)
        for trainer, net, want in zip(trainers, nets, alone, strict=True):
            train(trainer)
            same(net, want)

    both(lambda each: each.run(X, Y))
    for some in (nets, alone):
        some[1].layers[0].weight = np.ones((4, 6))
    both(lambda each: each.step(X, Y))
    for some in (nets, alone):
        fn.Trainer(some[2], "mse", fn.SGD(0.1), backend=backend.name).run(X, Y)
    both(lambda each: each.run(X, Y))
    with backends.use(backend.name):
        for net, want in zip(nets, alone, strict=True):
            np.testing.assert_array_equal(net.predict(X), want.predict(X))
    both(lambda each: each.run(X, Y))
    assert nets[0].loss == "mse"
    kept = copy.deepcopy(nets[0])
    same(kept, alone[0])


def test_two_ensembles_may_share_networks(backend: backends.Backend) -> None:
    nets, alone = networks(), networks()
    one = fn.Ensemble(nets, "mse", fn.SGD(0.1), 16, backend.name)
    other = fn.Ensemble(nets[::-1][:2], "mse", fn.SGD(0.01), 16, backend.name)
    for ensemble in (one, other, one):
        ensemble.step(X, Y)
    for m, net in enumerate(alone):
        for rate in (0.1, 0.01, 0.1) if m else (0.1, 0.1):
            fn.Trainer(net, "mse", fn.SGD(rate), backend=backend.name).step(X, Y)
        same(nets[m], net)


def test_frozen_parts_stay(backend: backends.Backend) -> None:
    nets = networks()
    for net in nets:
        net.layers[0].trainable = False
    before = [net.layers[0].weight for net in nets]
    fn.Ensemble(nets, "mse", "adam", 16, backend.name).run(X, Y)
    for net, weight in zip(nets, before, strict=True):
        np.testing.assert_array_equal(net.layers[0].weight, weight)


def test_what_it_says(backend: backends.Backend) -> None:
    ensemble = fn.Ensemble(networks(), "mse", "adam", 16, backend.name)
    ensemble.run(X, Y)
    plan = ensemble.plan
    assert plan["backend"] == backend.name
    assert plan["n_models"] == M
    assert plan["n_parameters"] == M * ensemble.spec.n_parameters
    assert "an engine each" in str(plan)
    assert repr(ensemble) == (
        f"Ensemble(3 networks 4-6-2, loss='mse', batch_size=16, backend={backend.name!r}, "
        "step_count=4)"
    )


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"X": np.zeros((2, 50, 4))}, r"X has shape \(2, 50, 4\).* of which there are 3"),
    ({"X": np.zeros((3, 50, 5))}, r"X has shape \(50, 5\)"),
    ({"X": np.zeros((3, 0, 4))}, "zero rows"),
    ({"X": np.zeros((1, 3, 50, 4))}, r"X has shape \(1, 3, 50, 4\)"),
    ({"X": np.where(np.arange(600).reshape(3, 50, 4) == 229, np.nan, 1)},
     "network 1: X holds NaN at row 7, column 1"),
    ({"y": LABELS[:-1]}, r"y has shape \(49,\), but X has 50 rows"),
    ({"y": LABELS + 1}, "which is no class"),
    ({"y": np.stack([LABELS, LABELS, LABELS * 5])}, "network 2: y holds 5 at row"),
    ({"y": np.stack([LABELS, LABELS])}, r"y has shape \(2, 50\)"),
    ({"y": np.zeros((2, 50, 2))}, r"y has shape \(2, 50, 2\), but 3 networks"),
    ({"y": np.zeros((3, 50, 3))}, r"network 0: y has shape \(50, 3\)"),
    ({"sample_weight": np.ones((2, 50))}, r"sample_weight has shape \(2, 50\), but 3 networks"),
    ({"sample_weight": np.ones(49)}, r"\(49,\)"),
    ({"sample_weight": np.arange(3)[:, None] * np.ones((3, 50)) - 1}, "network 0: .*negative"),
    ({"sample_weight": np.arange(3)[:, None] * np.ones((3, 50))}, "network 0: .*zero for every"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), ERRORS)
def test_wrong_data_changes_nothing(given: dict[str, Any], message: str) -> None:
    nets = networks()
    ensemble = fn.Ensemble(nets, "cross_entropy", backend="numpy")
    ensemble.run(X, LABELS)
    before = [state(net) for net in nets]
    data = {"X": X, "y": LABELS, **given}
    for call in (ensemble.run, ensemble.evaluate):
        with pytest.raises(fn.DataError, match=message):
            call(**data)
    with pytest.raises(
        fn.DataError, match=message.replace("X h", "x h").replace("x has 50", "X has 50")
    ):
        ensemble.step(data.pop("X"), **data)
    for net, kept in zip(nets, before, strict=True):
        for one, other in zip(state(net), kept, strict=True):
            np.testing.assert_array_equal(one, other)
    assert ensemble.step_count == 2


def test_targets_that_may_mean_two_things_are_refused() -> None:
    nets = [fn.mlp([4, 3], seed=m) for m in range(3)]
    ensemble = fn.Ensemble(nets, "cross_entropy", backend="numpy")
    y = np.eye(3, dtype=int)
    with pytest.raises(fn.DataError, match=r"give \(M, n, 1\) for the former"):
        ensemble.step(X[:3], y)
    numbers = ensemble.evaluate(X[:3], y[..., None])
    shares = ensemble.evaluate(X[:3], np.stack([y] * 3))
    want = [net.evaluate(X[:3], y[m], "cross_entropy") for m, net in enumerate(nets)]
    np.testing.assert_array_equal(numbers, want)
    assert not np.array_equal(shares, want)


def test_batch_norm_wants_two_rows() -> None:
    ensemble = fn.Ensemble(networks("batch norm, dropout"), "mse", backend="numpy", batch_size=1)
    for call in (lambda: ensemble.step(X[:1], Y[:1]), lambda: ensemble.run(X, Y)):
        with pytest.raises(fn.DataError, match="2 rows or more"):
            call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one"),
        (fn.mlp([2, 1], seed=0), "Ensemble.of"),
        ([fn.mlp([2, 1], seed=0), 3], r"networks\[1\] is 3"),
        ([fn.mlp([2, 1], seed=0), fn.mlp([2, 2], seed=0)], r"networks\[1\].*layer 0 is Dense"),
        ([fn.mlp([2, 1], seed=0), fn.mlp([2, 1, 1], "identity", seed=0)], r"has 2 layers"),
        ([fn.mlp([2, 1], seed=0), fn.mlp([2, 1], dtype="float64", seed=0)], "in float64"),
        ([fn.mlp([2, 1], seed=0)] * 2, r"networks\[1\] is networks\[0\]"),
    ],
)
def test_networks_that_are_not_alike_are_refused(given: Any, message: str) -> None:
    with pytest.raises(fn.SpecError, match=message):
        fn.Ensemble(given, "mse")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ([fn.SGD(0.1)] * 2, "2 optimizers for 3 networks"),
        ([fn.SGD(0.1), fn.Adam(0.1), fn.SGD(0.1)], r"optimizers\[1\] is Adam"),
        ([fn.SGD(0.1), fn.SGD(0.1), fn.SGD(0.1, momentum=0.5)], r"optimizers\[2\].*in kind"),
    ],
)
def test_optimizers_that_are_not_alike_are_refused(optimizer: Any, message: str) -> None:
    with pytest.raises(fn.SpecError, match=message):
        fn.Ensemble(networks(), "mse", optimizer)


def test_unknown_names_are_refused() -> None:
    for given in ({"loss": "mean"}, {"optimizer": "adm"}, {"backend": "nump"}, {"device": "gpu"}):
        with pytest.raises(fn.UnknownNameError):
            fn.Ensemble(networks(), **{"loss": "mse", **given})  # type: ignore[arg-type]
    with pytest.raises(fn.SpecError, match="batch_size"):
        fn.Ensemble(networks(), "mse", batch_size=0)
