"""A bias that batch normalisation takes away: left out, said once, and rightly so."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.elision import Elision
from fastneuron.errors import SpecError
from fastneuron.layers import Layer
from fastneuron.spec import NetworkSpec, bias_is_redundant

AFTER: list[tuple[list[Layer], bool]] = [
    ([fn.BatchNorm()], True),
    ([fn.BatchNorm(bias=False)], True),
    ([fn.BatchNorm(activation="relu")], True),
    ([fn.BatchNorm(trainable="weight")], True),
    ([fn.BatchNorm(trainable=False)], False),  # subtracts what it has, not this batch's mean
    ([fn.LayerNorm()], False),  # the mean of a row: features have different biases
    ([fn.Dropout(0.5), fn.BatchNorm()], False),  # 0 where the bias is dropped
    ([fn.Dense(out_features=2), fn.BatchNorm()], False),
    ([], False),
]


@pytest.mark.parametrize(("after", "want"), AFTER)
def test_auto_leaves_out_what_has_no_effect(after: list[Layer], want: bool) -> None:
    spec = NetworkSpec.chain([fn.Dense(3, 2), *after])
    assert bias_is_redundant(spec.layers, 0) is want
    assert spec.layers[0].bias is not want
    for bias in (True, False):
        assert NetworkSpec.chain([fn.Dense(3, 2, bias=bias), *after]).layers[0].bias is bias
    behind = NetworkSpec.chain([fn.Dense(3, 2, "relu"), *after])
    assert behind.layers[0].bias is True  # a shift before an activation is none after it


def said(*layers: Layer, times: int = 1) -> None:
    elision = Elision()
    for _ in range(times):
        elision.note(layers, NetworkSpec.chain(layers))


def test_the_line_names_the_layers_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    dense, norm = fn.Dense(out_features=4), fn.BatchNorm()
    keeps = "(Dense(..., bias=True) keeps it)"
    for layers, want in [
        (
            (fn.Dense(4, 4), norm, dense),
            "layer 0 trains without a bias: the BatchNorm after it would take it away, and has one "
            f"of its own {keeps}",
        ),
        (
            (fn.Dense(4, 4), norm, fn.Dropout(0.5), dense, norm, dense),
            "layers 0 and 3 train without a bias: the BatchNorm after each would take it away, and "
            f"has one of its own {keeps}",
        ),
        (
            (fn.Dense(4, 4), norm, dense, fn.BatchNorm(bias=False), dense, norm),
            "layers 0, 2 and 4 train without a bias: the BatchNorm after each would take it away "
            f"{keeps}",
        ),
    ]:
        said(*layers, times=3)
        got = capsys.readouterr()
        assert got.err == f"fastneuron: {want}\n"
        assert got.out == ""


def test_it_is_silent_where_nothing_was_decided(capsys: pytest.CaptureFixture[str]) -> None:
    norm = fn.BatchNorm()
    said(fn.Dense(4, 4), fn.Dense(out_features=1))
    said(fn.Dense(4, 4, bias=False), norm)
    said(fn.Dense(4, 4, bias=True), norm)
    said(fn.Dense(4, 4, "relu"), norm)
    quiet = Elision()
    quiet.silence()
    quiet.note([fn.Dense(4, 4), norm], NetworkSpec.chain([fn.Dense(4, 4), norm]))
    assert capsys.readouterr() == ("", "")


def stderr_of(code: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", f"import fastneuron as fn\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(fn.__file__).parents[1],
    )
    assert done.stdout == ""
    return done.stderr


def test_a_process_says_it_once_and_not_as_a_warning() -> None:
    make = "fn.mlp([3, 4, 2], norm='batch', seed=0)"
    got = stderr_of(f"a, b = {make}, {make}", "-W", "error")
    assert got.count("\n") == 1
    assert got.startswith("fastneuron: layer 0 trains without a bias")


@pytest.mark.parametrize("stream", ["None", "open(os.devnull)", "closed"])
def test_a_stream_that_cannot_be_written_to_hurts_nobody(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as unwritable:
        streams = {"None": None, "open(os.devnull)": unwritable}
        monkeypatch.setattr(sys, "stderr", streams.get(stream, io.StringIO()))
        if stream == "closed":
            sys.stderr.close()
        said(fn.Dense(4, 4), fn.BatchNorm())
        monkeypatch.undo()


def test_loaded_copied_and_folded_networks_are_silent(tmp_path: Path) -> None:
    path = str(tmp_path / "m")
    fn.mlp([3, 4, 2], norm="batch", seed=0).save(path)
    code = (
        f"import copy, pickle; net = fn.load({path!r}); "
        "pickle.loads(pickle.dumps(copy.deepcopy(net))).fold(); "
        "fn.Sequential(*net.spec.layers)"
    )
    assert stderr_of(code) == ""


def test_the_summary_says_it_too() -> None:
    net = fn.Sequential(
        fn.Dense(3, 4),
        fn.BatchNorm(),
        fn.Dense(out_features=4),
        fn.BatchNorm(bias=False),
        fn.Dense(out_features=1, bias=False),
        seed=0,
    )
    rows = net.summary().splitlines()[1:-1]
    assert rows[0].endswith("none: BatchNorm has one")
    assert [row.split()[-1] for row in rows[1:]] == ["4", "none", "none", "none"]


def test_assigning_the_bias_that_was_left_out_says_why() -> None:
    net = fn.Sequential(fn.Dense(3, 4), fn.BatchNorm(), seed=0)
    assert net.layers[0].bias is None
    with pytest.raises(fn.DataError, match=r"BatchNorm after it takes it away.*bias=True\) keeps"):
        net.layers[0].bias = np.zeros(4)


def test_a_bias_that_alone_is_to_train_is_not_left_out_unseen() -> None:
    with pytest.raises(SpecError, match=r"layer 0: trainable='bias'.*bias=True"):
        NetworkSpec.chain([fn.Dense(3, 4, trainable="bias"), fn.BatchNorm()])
    spec = NetworkSpec.chain([fn.Dense(3, 4, bias=True, trainable="bias"), fn.BatchNorm()])
    assert spec.layers[0].bias is True


# The proof


def explicit(b: Any, dtype: str = "float32") -> fn.Sequential:
    """A bias that was kept before a BatchNorm; epsilon is lost beside a variance of 16."""
    net = fn.Sequential(
        fn.Dense(2, 2, bias=True), fn.BatchNorm(epsilon=2.0**-100), dtype=dtype, seed=0
    )
    net.layers[0].weight = 8 * np.eye(2)
    net.layers[0].bias = b
    return net


#: Both columns hold four 0 and four 1: z has mean 4 + b and deviation 4, and nothing rounds.
X = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 0], [0, 0], [1, 1], [1, 1]], np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_its_gradient_is_zero_and_the_output_does_not_change(
    backend: backends.Backend, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x = X.astype(dtype)
    want = None
    for b in ([0, 0], [1, -3], [-64, 512]):
        net = explicit(b, dtype)
        trainer = fn.Trainer(net, "mse", backend=backend.name)
        out = trainer.forward(x)
        np.testing.assert_array_equal(out, 2 * x - 1)
        y = out - 16 - rng.integers(-8, 9, x.shape)
        _, ((dw, db), (dgamma, dbeta)) = trainer.gradients(x, y)
        dout = 2 * (out - y) / out.size  # of the mean over rows and outputs
        np.testing.assert_array_equal(db, [0, 0])
        np.testing.assert_array_equal(dbeta, dout.sum(axis=0))
        np.testing.assert_array_equal(dgamma, (dout * out).sum(axis=0))
        assert dbeta is not None
        assert dbeta.all()  # dout has a mean, which the normalisation takes away
        assert np.abs(dw).max() > 0
        want = out if want is None else want
        np.testing.assert_array_equal(out, want)


def test_without_a_norm_the_same_bias_learns(backend: backends.Backend) -> None:
    net = fn.Sequential(fn.Dense(2, 2), seed=0)
    trainer = fn.Trainer(net, "mse", backend=backend.name)
    y = trainer.forward(X) - np.float32(1)
    _, ((_, db),) = trainer.gradients(X, y)
    np.testing.assert_array_equal(db, [1, 1])  # 8 rows of 2 * 1 / 16


@pytest.mark.parametrize("optimizer", [fn.SGD(0.1, momentum=0.9), fn.Adam(0.01)])
def test_with_and_without_it_a_network_trains_alike(
    backend: backends.Backend, optimizer: Any
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    y = (x[:, :1] > 0) + 0.1 * rng.normal(size=(64, 1))
    losses, answers = [], []
    for bias in ("auto", True):
        net = fn.mlp([5, 8, 8, 1], "tanh", bias=bias, norm="batch", dtype="float64", seed=0)
        trainer = fn.Trainer(net, "mse", optimizer, batch_size=16, backend=backend.name)
        losses.append(trainer.run(x, y, epochs=5))
        answers.append(net.forward(x))
    assert losses[0][-1] < losses[0][0]
    # The kept bias moves by rounding (by as much as the rate where the optimizer divides by the
    # gradient's size); 20 steps keep what it does to the losses below 2**20 roundings.
    np.testing.assert_allclose(losses[0], losses[1], rtol=2.0**-33)
    if isinstance(optimizer, fn.SGD):
        # Adam's wandering bias reaches the running mean with a delay: predictions see a little.
        np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-9)


def test_the_running_mean_holds_the_bias(backend: backends.Backend) -> None:
    shifted = {}
    for b in (0, 16):
        net = explicit([b, b])
        fn.Trainer(net, "mse", fn.SGD(2.0**-60), backend=backend.name).step(X, np.zeros((8, 2)))
        mean, variance = net.layers[1].running_mean, net.layers[1].running_variance
        momentum = np.float32(0.1)
        np.testing.assert_allclose(mean, np.full(2, momentum * (4 + b)), rtol=2.0**-22)
        # From 1 towards 16 times 8 / 7, the population's.
        want = 1 + momentum * (np.float32(16 * 8 / 7) - 1)
        np.testing.assert_allclose(variance, np.full(2, want), rtol=2.0**-21)
        shifted[b] = mean
    assert (shifted[16] > shifted[0]).all()
