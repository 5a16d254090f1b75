"""The engine of many small networks at once over the emulated kernels of csrc/cuda."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from emulated_cuda import Calls, Kernels, reversed_blocks
from ensemble_cases import (
    CASES,
    PLACES,
    SIZES,
    assert_same,
    engine_of,
    models_of,
    state_of,
    trained,
)
from ensemble_checks import *  # noqa: F403

from fastneuron import loading
from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import SpecError
from fastneuron.kernels import cython_cuda, device_supply
from fastneuron.kernels.cython_cuda_ensemble import CythonCudaEnsembleEngine
from fastneuron.kernels.device_fused import MOST_LAYERS
from fastneuron.layers import BatchNorm, Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, AdamW, RMSprop
from fastneuron.testing import (
    assert_parameters,
    assert_within,
    case_of,
    scalars_of,
    training_step,
    updated,
)


@pytest.fixture
def calls(cuda_kernels: Kernels) -> Iterator[Calls]:
    made = Calls(cuda_kernels.path)
    yield made
    gc.collect()
    assert made.overruns == [], "writes beside what was allocated"


@pytest.fixture
def make(calls: Calls) -> Any:
    return partial(CythonCudaEnsembleEngine, calls=calls)


def of_every_entry() -> list[Any]:
    """A network of two layers for each loss, with all activations and optimizers among them."""
    optimizers = (
        SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True, clip_norm=0.01),
        Adam(0.01, weight_decay=0.1), AdamW(0.01, decay_bias=True), RMSprop(0.01),
    )  # fmt: skip
    names, found = sorted(ACTIVATIONS), []
    for i, (loss, optimizer) in enumerate(zip(LOSSES, optimizers, strict=True)):
        first, second = (names[(2 * i + j) % len(names)] for j in range(2))
        # What a loss says nothing about, such as the log of something negative, is left out.
        layers = Dense(5, 9, first, bias=i != 1), Dense(9, 3, second if i % 2 else "identity")
        found.append(case_of(*layers, loss=loss, optimizer=optimizer, rows=12, batch=11, seed=i))
    return found


@pytest.mark.parametrize("near", PLACES)
def test_all_losses_activations_and_optimizers(make: Any, near: str) -> None:
    for of in of_every_entry():
        engine = engine_of(make, of, models_of(of, 1), [of.optimizer], near=near)
        start = engine.export()
        old = [(w[0], None if b is None else b[0]) for w, b in start]
        zeros = [(np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in old]
        scalars, losses, rows = scalars_of(of, 1), np.zeros((1, 1)), np.arange(11)
        engine.run(of.x, of.y, None, rows[None], np.array([0, 11]), scalars[:, None], losses)
        want = training_step(of.spec, of.loss, old, of.x[rows], of.y[rows])
        assert_within(losses[0, 0], want.loss, of.name)
        moments = [zeros] * of.optimizer.n_moments
        new, _ = updated(of.spec, of.optimizer, old, want.gradients, moments, scalars[0])
        got = [(w[0], None if b is None else b[0]) for w, b in engine.export()]
        assert_parameters(got, new, of.name)


@pytest.mark.parametrize("holds", [True, False])
def test_the_widest_network_in_the_shipped_cut(make: Any, holds: bool) -> None:
    """More than the 48 KiB that a block has unasked, with fewer threads than it would have."""
    sizes = (90, 90, 3) if holds else (128, 120, 120, 3)
    layers = [Dense(i, o, "relu") for i, o in pairwise(sizes)]
    of = case_of(*layers, rows=21, batch=20, optimizer=SGD(0.1, clip_norm=0.5))
    engine = make(of.spec, of.loss, [of.optimizer], threads=16, batch_size=1)
    assert engine._plan.holds == holds
    assert engine._plan.gradient_at is None
    assert engine.plan()["shared_bytes"] > 48 * 1024
    engine.load([(w[None], b[None]) for w, b in of.parameters])
    scalars, losses, rows = scalars_of(of, 1), np.zeros((1, 1)), np.arange(20)
    engine.run(of.x, of.y, None, rows[None], np.array([0, 20]), scalars[:, None], losses)
    want = training_step(of.spec, of.loss, of.parameters, of.x[rows], of.y[rows])
    new, _ = updated(of.spec, of.optimizer, of.parameters, want.gradients, [], scalars[0])
    assert_parameters([(w[0], b[0]) for w, b in engine.export()], new, "shipped")


def test_bits_do_not_depend_on_the_order_of_blocks(make: Any) -> None:
    of = CASES["classes"]
    first, losses = trained(make, of, 3, [0, 1, 2])
    reversed_blocks(True)
    try:
        second, others = trained(make, of, 3, [0, 1, 2])
    finally:
        reversed_blocks(False)
    np.testing.assert_array_equal(losses, others)
    assert_same(state_of(second), state_of(first))


def test_networks_of_too_many_layers_have_no_engine(make: Any, monkeypatch: Any) -> None:
    made = []
    monkeypatch.setattr(cython_cuda, "_calls", lambda: made.append(1) or make.keywords["calls"])
    for layers, wanted in (
        ([Dense(2, 2)] * MOST_LAYERS, True), ([Dense(2, 2)] * (MOST_LAYERS + 1), False),
        ([Dense(129, 2)], False), ([BatchNorm(4)], False),
    ):  # fmt: skip
        of = case_of(*layers, rows=2, batch=2)
        engine = cython_cuda.ensemble_engine(of.spec, of.loss, [of.optimizer], batch_size=3)
        assert isinstance(engine, CythonCudaEnsembleEngine) == wanted, len(layers)
    assert made == [1]
    deep = case_of(*[Dense(2, 2)] * (MOST_LAYERS + 1), rows=2, batch=2)
    with pytest.raises(SpecError, match=f"{MOST_LAYERS} layers"):
        make(deep.spec, deep.loss, [deep.optimizer])


def test_the_deepest_network_is_within_its_bounds(make: Any) -> None:
    of = case_of(*[Dense(3, 3, "tanh")] * MOST_LAYERS, rows=6, batch=5)
    engine = engine_of(make, of, models_of(of, 1), [of.optimizer])
    old = [(w[0], b[0]) for w, b in engine.export()]
    losses, rows = np.zeros((1, 1)), np.arange(5)
    scalars = scalars_of(of, 1)
    engine.run(of.x, of.y, None, rows[None], np.array([0, 5]), scalars[:, None], losses)
    want = training_step(of.spec, of.loss, old, of.x[rows], of.y[rows])
    new, _ = updated(of.spec, of.optimizer, old, want.gradients, [], scalars[0])
    assert_parameters([(w[0], b[0]) for w, b in engine.export()], new, "deep")


def test_what_an_engine_took_of_the_device_is_given_back(calls: Calls, make: Any) -> None:
    of = CASES["classes"]
    engine, _ = trained(make, of, 2, [0, 1], calls=len(SIZES))
    engine.forward(of.x)
    assert calls.held
    del engine
    gc.collect()
    assert calls.held == {}


def test_the_backend_finds_the_compiled_engine(make: Any, monkeypatch: Any) -> None:
    """Where the compiled kernels supply the backend, an ensemble trains in them."""
    monkeypatch.setattr(device_supply, "find_spec", lambda name: name.endswith("_cython_cuda"))
    monkeypatch.setattr(cython_cuda, "missing", str)
    monkeypatch.setattr(cython_cuda, "_calls", lambda: make.keywords["calls"])
    monkeypatch.delitem(loading.failed, "cuda", raising=False)  # of another test
    assert loading._import("cuda").ensemble is cython_cuda.ensemble_engine
