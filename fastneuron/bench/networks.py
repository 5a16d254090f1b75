"""The suites `steps` and `inference`: whole training steps, and outputs for rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.bench.step_problem import LINKS, OPTIMIZERS, StepProblem, chunk_of
from fastneuron.bench.workloads import Prepare, Prepared, Workload, first_call, repeated
from fastneuron.folding import folded
from fastneuron.kernels.contract import Array, Parameters, Statistics
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Bounded,
    Precision,
    activate,
    assert_within,
    dense,
    draw_inputs,
    draw_parameters,
    draw_statistics,
    exact,
    forward,
)
from fastneuron.threads import requested_threads

__all__ = ["LAYERED", "inference", "network", "steps"]

#: Widths, batch, optimizer: from a network that fits in registers to one that fills the caches.
#: The optimizer's name is the key of `OPTIMIZERS`.
NETWORKS = (
    ((2, 8, 1), 4, "sgd"),
    ((20, 64, 64, 2), 32, "adam"),
    ((64, 128, 10), 64, "momentum"),
    ((784, 128, 10), 32, "sgd"),
    ((784, 128, 10), 128, "adam"),
    ((17, 256, 256, 6), 256, "adam"),
    ((784, 512, 512, 10), 256, "adam"),
    ((1024, 2048, 2048, 1024), 512, "sgd"),
)
#: Which of them train with what else, each apart and with biases: one whose passes over rows are
#: most of the work, and one of products.
LAYERED: dict[tuple[int, ...], tuple[str, ...]] = {
    (20, 64, 64, 2): ("batch_norm", "layer_norm", "dropout0.1"),
    (784, 512, 512, 10): ("batch_norm", "layer_norm", "dropout0.1", "frozen1"),
}
#: Multiply-adds of a step up to which a network is timed in float64 too, and in the quick run.
MODEST = 2e8

#: Widths of the networks that are asked, and rows of a question.
ASKED = ((20, 64, 64, 2), (784, 512, 512, 10))
QUESTIONS = (1, 32, 1024)
#: Widths of the one that is asked with batch normalisations too, before they are folded and after.
FOLDED = (784, 512, 512, 10)
#: Error of a folded bias, ``bias - factor mean``: three roundings in float64 of numbers below 2^11.
_SHIFT = 2.0**-40


def network(sizes: tuple[int, ...], dtype: str, bias: bool, kind: str = "") -> NetworkSpec:
    """Return a chain of ReLU layers whose last one is linear.

    With `kind` there is after each hidden layer's products a ``batch_norm`` or ``layer_norm``,
    after its activation a ``dropout0.1``; with ``frozen1`` the first layer is not trained.
    """
    last = len(sizes) - 2
    norm = {"batch_norm": BatchNorm, "layer_norm": LayerNorm}.get(kind)
    layers: list[Layer] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        activation = "identity" if i == last else "relu"
        if norm is not None and i < last:
            # "auto" leaves out the bias that a batch would take away again.
            layers.append(Dense(inputs, outputs, bias="auto" if bias else False))
            layers.append(norm(activation=activation, bias=bias))
            continue
        trained = kind != "frozen1" or i > 0
        layers.append(Dense(inputs, outputs, activation, bias=bias, trainable=trained))
        if kind == "dropout0.1" and i < last:
            layers.append(Dropout(0.1))
    return NetworkSpec.chain(layers, dtype)


def steps() -> Iterator[Workload]:
    """Yield `Engine.run` on every network: gather, forward, loss, backward, update."""
    for sizes, batch, optimizer in NETWORKS:
        for dtype in ("float32", "float64"):
            for bias in (True, False):
                for kind in ("", *(LAYERED.get(sizes, ()) if bias else ())):
                    spec = network(sizes, dtype, bias, kind)
                    work = spec.multiply_adds * batch
                    if dtype == "float64" and work > MODEST:
                        continue
                    words = _words(spec, OPTIMIZERS[optimizer].n_moments) + batch * sizes[0]
                    yield Workload(
                        "steps", f"step {'-'.join(map(str, sizes))}",
                        " ".join(filter(None, (f"b{batch}", optimizer, kind))), dtype, bias,
                        partial(_step, sizes, batch, optimizer, dtype, bias, kind),
                        2.0 * work, words * np.dtype(dtype).itemsize, batch,
                        quick=dtype == "float32" and work <= MODEST, chunk=chunk_of(work),
                    )  # fmt: skip


def _words(spec: NetworkSpec, n_moments: int) -> int:
    """Return the numbers that a step reads and writes beside its rows, which are read once.

    Parameters are read in each direction and updated with their moments, those that are not trained
    are read; running statistics are updated. Activations of a batch stay where they are made.
    """
    back_to = spec.back_to
    words = 0
    for i, layer in enumerate(spec.layers):
        trained = layer.trains_weight or layer.trains_bias
        each = 4 + 2 * n_moments if trained else 1 + (i >= back_to)
        words += layer.n_parameters * each + 4 * layer.has_statistics * int(layer.out_features)
    return words


def _step(
    sizes: tuple[int, ...], batch: int, optimizer: str, dtype: str, bias: bool, kind: str
) -> Prepare:
    loss = LOSSES["mse" if sizes[-1] in (1, 1024) else "cross_entropy"]
    problem = StepProblem(network(sizes, dtype, bias, kind), loss, OPTIMIZERS[optimizer], batch)
    return problem.prepare


def inference() -> Iterator[Workload]:
    """Yield `Engine.forward` on questions of one row and of many."""
    for sizes in ASKED:
        for rows in QUESTIONS:
            for dtype in ("float32", "float64"):
                for bias in (True, False):
                    quick = dtype == "float32" and bias
                    yield _question(network(sizes, dtype, bias), sizes, rows, quick=quick)
    spec = network(FOLDED, "float32", True, "batch_norm")
    for rows in QUESTIONS:
        for kind in ("batch_norm", "folded"):
            yield _question(spec, FOLDED, rows, kind, quick=rows == 1)


def _question(
    spec: NetworkSpec, sizes: tuple[int, ...], rows: int, kind: str = "", quick: bool = False
) -> Workload:
    products = sum(layer.n_weights for layer in spec.layers if isinstance(layer, Dense))
    words = spec.n_parameters + rows * (sizes[0] + sizes[-1])
    shape = " ".join(filter(None, (f"{rows} row{'s' * (rows > 1)}", kind)))
    return Workload(
        "inference", f"forward {'-'.join(map(str, sizes))}", shape, spec.dtype,
        bool(spec.layers[-1].bias), partial(_ask, spec, rows, kind == "folded"),
        2.0 * products * rows, words * np.dtype(spec.dtype).itemsize, rows, quick=quick,
    )  # fmt: skip


def _ask(spec: NetworkSpec, rows: int, fold: bool) -> Prepare:
    rng = np.random.default_rng(0)
    parameters = draw_parameters(spec, rng, LINKS)
    statistics = draw_statistics(spec, rng)
    x = draw_inputs(rng, rows, spec.in_features, spec.dtype)
    want = forward(spec, parameters, x, Precision.of(spec.dtype), statistics)[1][-1]
    if fold:
        spec, parameters, bound = _folded(spec, parameters, statistics, x)
        statistics = [None] * len(spec.layers)
        want = Bounded(want.value, bound)

    def prepare(name: str) -> Prepared:
        engine = backends.get(name).engine(spec, n_threads=requested_threads(None), batch_size=rows)
        engine.load(parameters)
        engine.load_statistics(statistics)
        got, seconds = first_call(engine.forward, x)
        return Prepared(repeated(engine.forward, x), assert_within(got, want, "output"), seconds)

    return prepare


def _folded(
    spec: NetworkSpec, parameters: Parameters, statistics: Statistics, x: Array
) -> tuple[NetworkSpec, Parameters, Array]:
    """Return the network without its batch normalisations, and a bound of its outputs.

    It is around the float64 outputs of the network that was given. Each new parameter is rounded
    once to the dtype; twice that, and `_SHIFT`, cover its own computation and theirs in float64.
    """
    layers, values = folded(spec.layers, parameters, statistics)
    p = Precision.of(spec.dtype)
    a = exact(x)
    loaded: Parameters = []
    for layer, (weight, bias) in zip(layers, values, strict=True):
        assert bias is not None, "a folded layer has a bias"
        w, b = (Bounded(v, 2 * p.u * np.abs(v) + _SHIFT) for v in (weight, bias))
        a = activate(dense(a, w, b, p), ACTIVATIONS[layer.activation], p)
        loaded.append((weight.astype(spec.dtype), bias.astype(spec.dtype)))
    return NetworkSpec.chain(layers, spec.dtype), loaded, a.bound
