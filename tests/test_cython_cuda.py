"""The compiled CUDA backend: its engine over the emulated kernels, and its face without a card."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from emulated_cuda import LARGE, SMALL, TINY, Calls, Kernels, reversed_blocks

from fastneuron.activations import ACTIVATIONS
from fastneuron.errors import BackendUnavailable
from fastneuron.kernels import device_launches
from fastneuron.kernels.contract import Status
from fastneuron.kernels.cython_cuda import CythonCudaEngine, missing
from fastneuron.kernels.device_launches import COMPILED, launches_of
from fastneuron.kernels.fused_plan import FusedPlan
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, AdamW, RMSprop
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Case,
    Precision,
    assert_parameters,
    assert_within,
    backward,
    batches,
    case_of,
    check_step,
    exact,
    forward,
    generated_cases,
    generated_norm_cases,
    integer_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
    updated,
)

DTYPES = ("float32", "float64")


@pytest.fixture(scope="session")
def calls(cuda_kernels: Kernels) -> Calls:
    return Calls(cuda_kernels.path)


def engine_of(
    calls: Calls, case: Case, tiles: Any = (TINY, TINY), batch_size: int = 1, fused: bool = False
) -> Any:
    """Layer by layer, or in blocks of few threads and rows where they can keep the network."""
    engine = CythonCudaEngine(
        case.spec, case.loss, case.optimizer, batch_size=batch_size, calls=calls, tiles=tiles,
        fused_rows=(8,) if fused else (), fused_threads=4,
    )  # fmt: skip
    return loaded(engine, case)


def small(cases: list[Case]) -> list[Case]:
    """Those whose steps are a matter of seconds, a thread of the processor for each of the card."""
    return [case for case in cases if max(case.spec.sizes) <= 40 and case.batch <= 40]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_generated_networks(calls: Calls, dtype: str, fused: bool) -> None:
    cases = small(generated_cases(60, seed=3, dtype=dtype))
    cases += small(generated_norm_cases(30, seed=4, dtype=dtype))
    assert len(cases) >= 6
    for case in cases[:6]:
        rows = np.random.default_rng(1).permutation(len(case.x))[: case.batch]
        engine = engine_of(calls, case, fused=fused)
        check_step(engine, case, rows, scalars_of(case, 1)[0], case.name)


@pytest.mark.parametrize("fused", [False, True])
def test_all_losses_activations_and_optimizers(calls: Calls, fused: bool) -> None:
    for i, case in enumerate(of_every_entry("float32")):
        engine = engine_of(calls, case, batch_size=case.batch if i % 2 else 1, fused=fused)
        assert engine.plan()["fused"] == ("8 rows a block" if fused else "layer by layer")
        rows = np.arange(case.batch) + i
        check_step(engine, case, rows, scalars_of(case, 1)[0], case.name)


def of_every_entry(dtype: str) -> list[Case]:
    """A network of two layers for each loss, with all activations, optimizers and weights."""
    optimizers = (
        SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True, clip_norm=0.01),
        Adam(0.01, weight_decay=0.1), AdamW(0.01, decay_bias=True), RMSprop(0.01),
    )  # fmt: skip
    names, found = sorted(ACTIVATIONS), []
    for i, (loss, optimizer) in enumerate(zip(LOSSES, optimizers, strict=True)):
        first, second = (names[(2 * i + j) % len(names)] for j in range(2))
        layers = Dense(5, 9, first, bias=i != 1), Dense(9, 3, second if i % 2 else "identity")
        case = case_of(*layers, loss=loss, optimizer=optimizer, dtype=dtype, seed=i)
        weight = np.random.default_rng(i).uniform(0, 2, len(case.x)).astype(dtype)
        found.append(replace(case, weight=weight) if i % 2 else case)
    return found


FROZEN = (
    (Dense(5, 9, "relu", trainable="bias"), Dense(9, 3, trainable="weight")),
    (Dense(5, 9, trainable=False), BatchNorm(9, activation="tanh"), Dense(9, 3, bias=False)),
    (
        Dense(5, 9, "gelu"),
        BatchNorm(9, trainable="weight", activation="silu"),
        Dropout(0.4),
        LayerNorm(9, trainable="bias"),
        Dense(9, 3),
    ),
    (Dense(5, 9), BatchNorm(9, trainable=False), Dropout(0.5), Dense(9, 3, "relu")),
)


@pytest.mark.parametrize("layers", FROZEN, ids=range(len(FROZEN)))
def test_frozen_in_parts(calls: Calls, layers: Any) -> None:
    case = case_of(*layers, optimizer=Adam(0.01, clip_norm=1.0))
    engine = engine_of(calls, case)
    scalars, rows = scalars_of(case, 2), np.arange(13)
    x, y = case.x[rows], case.y[rows]
    want = training_step(
        case.spec, case.loss, case.parameters, x, y, None, case.statistics, scalars[1]
    )
    loss, gradients = engine.gradients(x, y, None, scalars[1:])
    assert_within(np.array(loss), want.loss, "loss")
    assert_parameters(gradients, want.gradients, "gradient")
    check_step(engine, case, rows, scalars[0], "step")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_cost_model_counts_the_launches_of_the_engine(
    calls: Calls, weighted: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(device_launches, "fused_for", lambda *given: None)
    cases = [case_of(*layers) for layers in FROZEN]
    cases += [*small(generated_cases(30, seed=5)), *small(generated_norm_cases(30, seed=6))]
    for case in cases:
        engine, rows = engine_of(calls, case, fused=fused), case.batch
        engine._training_rows(rows)
        step = engine._step(rows, weighted, False)
        squares = sum(call[0] == "clip" for call in step)  # and what it comes to
        want = len(step) + squares
        assert launches_of(case.spec, rows, COMPILED, weighted=weighted) == want, case.name


def test_update_after_forward_keep(calls: Calls) -> None:
    """What is dropped in the backward pass is what was dropped in the forward one."""
    case = case_of(Dense(5, 9, "tanh"), BatchNorm(9), Dropout(0.5), Dense(9, 3, "relu"))
    engine, p = engine_of(calls, case), Precision.of("float32")
    scalars, x = scalars_of(case, 2, seed=3), case.x[:13]
    dout = np.random.default_rng(1).normal(size=(13, 3)).astype(np.float32)
    zs, activations = forward(case.spec, case.parameters, x, p, case.statistics, scalars[0])
    want_dx, gradients = backward(
        case.spec, case.parameters, zs, activations, exact(dout), p, case.statistics, scalars[0]
    )
    new, _ = updated(case.spec, case.optimizer, case.parameters, gradients, [], scalars[1])
    assert_within(engine.forward_keep(x, scalars[:1]), activations[-1], "output")
    dx, outcome = engine.update(dout, scalars[1])
    assert outcome == (Status.OK, 1)
    assert_within(dx, want_dx, "dx")
    assert_parameters(engine.export(), new, "update")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("tiles", [(TINY, TINY), (LARGE, SMALL)], ids=["tiny", "shipped"])
def test_exact_on_integers(calls: Calls, tiles: tuple[int, int], fused: bool) -> None:
    for dtype in DTYPES:
        case = integer_case(dtype=dtype)
        states = []
        for engine in (
            engine_of(calls, case, tiles, fused=fused),
            loaded(ReferenceEngine(case.spec, case.loss, case.optimizer), case),
        ):
            rows, bounds = np.arange(case.batch), np.array([0, case.batch])
            losses = run_steps(engine, case, rows, bounds, scalars_of(case, 1))
            states.append((losses.tobytes(), state_of(engine), engine.forward(case.x).tobytes()))
        assert states[0] == states[1]


def test_bits_do_not_depend_on_the_cutting_of_steps(calls: Calls) -> None:
    layers = Dense(5, 9, "gelu"), BatchNorm(9), Dropout(0.3), Dense(9, 3)
    case = case_of(*layers, loss="cross_entropy", optimizer=Adam(0.01))
    order, bounds = batches(len(case.x), 13, 4, np.random.default_rng(2))
    scalars = scalars_of(case, 4, seed=5)

    def trained(cuts: list[int]) -> tuple[bytes, bytes]:
        engine, losses = engine_of(calls, case), []
        for first, last in pairwise([0, *cuts, 4]):
            part = bounds[first : last + 1]
            losses.append(run_steps(engine, case, order, part, scalars[first:last]))
        return np.concatenate(losses).tobytes(), state_of(engine)

    want = trained([])
    assert trained([1, 3]) == want
    reversed_blocks(True)
    try:
        assert trained([]) == want
    finally:
        reversed_blocks(False)


def test_a_small_network_has_the_bits_of_its_shape_however_it_is_called(calls: Calls) -> None:
    case = case_of(Dense(5, 9, "gelu"), Dense(9, 3), loss="cross_entropy", optimizer=Adam(0.01))
    case = replace(case, weight=np.linspace(0, 2, len(case.x), dtype=np.float32))
    order, bounds = batches(len(case.x), 13, 11, np.random.default_rng(2))
    scalars, states = scalars_of(case, 11), []
    for cuts in ([0, 11], [0, 1, 10, 11]):  # one of which records eight steps
        engine = engine_of(calls, case, fused=True)
        for first, last in pairwise(cuts):
            run_steps(engine, case, order, bounds[first : last + 1], scalars[first:last])
        states.append(state_of(engine))
        want = engine.forward(case.x[:20])
        np.testing.assert_array_equal(engine.forward(case.x[[19, 0, 7, 7]]), want[[19, 0, 7, 7]])
    assert states[0] == states[1]


def test_too_large_a_batch_goes_layer_by_layer(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(Dense(5, 9, "gelu"), Dense(9, 3))
    monkeypatch.setattr(FusedPlan, "most_partials", staticmethod(lambda spec: 200))
    for rows, names in ((8, {"fused_step"}), (9, {"gather", "forward"})):
        engine = engine_of(calls, case, fused=True)
        engine._training_rows(rows)
        found = {name for name, _ in engine._step(rows, False, False)}
        assert names <= found
        assert ("fused_step" in found) == (rows == 8)
        check_step(engine, case, np.arange(rows), scalars_of(case, 1)[0], f"{rows} rows")


def test_a_row_has_the_same_bits_in_any_batch(calls: Calls) -> None:
    case = case_of(Dense(5, 9, "gelu"), LayerNorm(9), BatchNorm(9), Dense(9, 3))
    engine = engine_of(calls, case)
    want = engine.forward(case.x[:20])
    some = np.array([19, 0, 7, 7])
    np.testing.assert_array_equal(engine.forward(case.x[some]), want[some])
    assert engine.forward(case.x[:0]).shape == (0, 3)
    np.testing.assert_array_equal(
        np.concatenate([engine.forward(case.x[i : i + 9]) for i in (0, 9)]), want[:18]
    )


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_failing_step_is_not_applied(calls: Calls, fault: str) -> None:
    layers = [Dense(5, 9, "relu"), Dense(9, 3)]
    if fault == "loss":
        layers.insert(1, BatchNorm(9))
    case = case_of(*layers, loss="mae", optimizer=SGD(0.1, momentum=0.5))
    case.x[10] = np.nan if fault == "loss" else 1e21  # whose square is beyond float32
    bounds, scalars = np.array([0, 8, 16, 24]), scalars_of(case, 3)
    engine, losses = engine_of(calls, case), np.full(3, -1.0)
    outcome = engine.run(case.x, case.y, None, np.arange(24), bounds, scalars, losses)
    want = Status.LOSS_NOT_FINITE if fault == "loss" else Status.GRADIENT_NOT_FINITE
    assert outcome == (want, 1)
    assert np.isfinite(losses[1]) == (fault == "gradient")
    assert losses[2] == -1
    alone = engine_of(calls, case)
    assert run_steps(alone, case, np.arange(8), bounds[:2], scalars[:1])[0] == losses[0]
    assert state_of(engine) == state_of(alone)
    outcome = engine.run(case.x, case.y, None, np.arange(8), bounds[:2], scalars[:1], losses)
    assert outcome == (Status.OK, 1), "it goes on after that"


def test_what_an_engine_took_of_the_device_is_given_back(calls: Calls) -> None:
    gc.collect()
    before = dict(calls.held)
    case = case_of(Dense(5, 9), Dense(9, 3))
    engine = engine_of(calls, case)
    for rows in (3, 9):
        engine.gradients(case.x[:rows], case.y[:rows], None)
        engine.forward(case.x[:rows])
    assert len(calls.held) > len(before)
    del engine
    gc.collect()
    assert calls.held == before


def test_without_extension_or_card_the_error_says_what_to_do() -> None:
    problem = missing()
    if not problem:
        pytest.skip("there is a card")
    assert "\n" not in problem
    assert any(word in problem for word in ("nvcc", "driver", "card"))
    with pytest.raises(BackendUnavailable) as error:
        CythonCudaEngine(NetworkSpec.chain([Dense(1, 1)]))
    assert str(error.value) == problem


def test_the_extension_links_no_cuda_library() -> None:
    if find_spec("fastneuron.kernels._cython_cuda") is None:
        pytest.skip("the compiled CUDA extension is not built here")
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    module: Any = import_module("fastneuron.kernels._cython_cuda")
    linked = subprocess.run(["ldd", module.__file__], text=True, capture_output=True, check=True)
    assert "libc" in linked.stdout
    assert re.findall(r"\S*(?:cuda|nv|cublas)\S*\.so\S*", linked.stdout.split(":")[-1]) == []
