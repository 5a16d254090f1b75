"""A small network in a block of csrc/cuda, on the processor, against bounds and integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulated_cuda import Kernels, state_at
from emulated_fused import Data, predict, step, train
from ensemble_cases import CASES, PLACES, ROWS, THREADS, data_of, models_of, optimizers_of, table_of

from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_memory import STATE
from fastneuron.kernels.device_plan import flat_parts, flat_size
from fastneuron.kernels.fused_plan import FusedPlan, ensemble_marks, ensemble_plan, fused_plan
from fastneuron.layers import Dense
from fastneuron.testing import (
    POISONS,
    Case,
    Precision,
    assert_parameters,
    assert_within,
    case_of,
    forward,
    integer_case,
    loss_of_batch,
    training_step,
    updated,
)


@pytest.fixture
def kernels(cuda_kernels: Kernels) -> Kernels:
    cuda_kernels.poison, cuda_kernels.shift = "nan", 0
    return cuda_kernels


def flat_of(spec: Any, parameters: Any) -> Any:
    """A flat vector as networks that train alone have it."""
    vector = np.zeros(flat_size(spec), spec.dtype)
    for part in flat_parts(spec):
        vector[part.offset : part.end] = parameters[part.layer][part.name == "bias"].reshape(-1)
    return vector


def parts_of(spec: Any, vector: Any) -> Any:
    found: list[Any] = [[None, None] for _ in spec.layers]
    for part in flat_parts(spec):
        found[part.layer][part.name == "bias"] = vector[part.offset : part.end].reshape(part.shape)
    return [tuple(pair) for pair in found]


def padded(plan: FusedPlan, parameters: Any) -> Any:
    """Flat vectors (M, n) of an ensemble's parameters."""
    flat = np.zeros((len(parameters[0][0]), plan.flat), parameters[0][0].dtype)
    for at, (weight, bias) in zip(plan.layers, parameters, strict=True):
        rows = flat[:, at.weight_at : at.weight_at + at.inputs * at.row]
        rows.reshape(-1, at.inputs, at.row)[:, :, : at.outputs] = weight
        if bias is not None:
            flat[:, at.bias_at : at.bias_at + at.outputs] = bias
    return flat


def unpadded(plan: FusedPlan, flat: Any) -> Any:
    """A model's parameters from its flat vector; what lies between must be 0."""
    flat, found = flat.copy(), []
    for at in plan.layers:
        rows = flat[at.weight_at : at.weight_at + at.inputs * at.row].reshape(at.inputs, at.row)
        bias = flat[at.bias_at : at.bias_at + at.outputs] if at.bias else None
        found.append((rows[:, : at.outputs].copy(), None if bias is None else bias.copy()))
        rows[:, : at.outputs] = 0
        if bias is not None:
            bias[...] = 0
    assert not flat.any(), "between arrays is nothing"
    return found


def plan_of(of: Case, near: str = "both") -> FusedPlan:
    holds, keeps = PLACES[near]
    plan = ensemble_plan(of.spec, (ROWS,), holds=holds, keeps=keeps)
    assert plan is not None
    assert (plan.gradient_at is not None) == keeps
    return plan


def step_of(kernels: Kernels, of: Case, rows: Any, weight: Any, cut: int = ROWS) -> Any:
    plan = fused_plan(of.spec, (cut,))
    assert plan is not None
    order, bounds = np.concatenate([[0, 0], rows]), np.array([0, 2, 2 + len(rows)])
    data = Data(of.x, of.y, weight, order)
    flat = flat_of(of.spec, of.parameters)
    losses, partial = step(kernels, plan, of.loss, THREADS, flat, data, bounds, state_at(1))
    inside = np.zeros(plan.flat, bool)
    for part in flat_parts(of.spec):
        inside[part.offset : part.end] = True
    assert not partial[:, ~inside].any(), "between arrays is nothing"
    return losses, kernels.sum_parts(partial)


@pytest.mark.parametrize("name", [name for name in CASES if name != "frozen"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_within_its_bounds(kernels: Kernels, name: str, weighted: bool) -> None:
    of = CASES[name]
    rng, p = np.random.default_rng(0), Precision.of(of.spec.dtype)
    weight = rng.uniform(0, 2, len(of.x)).astype(of.spec.dtype) if weighted else None
    for count in (3, 8, 19):
        rows = rng.permutation(len(of.x))[:count]
        losses, gradient = step_of(kernels, of, rows, weight)
        some = None if weight is None else weight[rows]
        want = training_step(of.spec, of.loss, of.parameters, of.x[rows], of.y[rows], some)
        _, activations = forward(of.spec, of.parameters, of.x[rows], p)
        bounds = loss_of_batch(of.loss, activations[-1], of.y[rows], some, p)[0]
        assert_within(losses, bounds, f"{name}: losses")
        assert_parameters(parts_of(of.spec, gradient), want.gradients, name)


@pytest.mark.parametrize("cut", [4, 8, 16])
def test_a_step_on_integers_is_exact(kernels: Kernels, cut: int) -> None:
    for dtype in ("float32", "float64"):
        of = integer_case(dtype=dtype)
        want = training_step(of.spec, of.loss, of.parameters, of.x, of.y)
        _, gradient = step_of(kernels, of, np.arange(16), None, cut)
        for pair, exactly in zip(parts_of(of.spec, gradient), want.gradients, strict=True):
            np.testing.assert_array_equal(pair[0], exactly[0].value)
            np.testing.assert_array_equal(pair[1], exactly[1].value)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("near", PLACES)
def test_predictions_of_some_models(kernels: Kernels, poison: str, near: str) -> None:
    kernels.poison = poison
    for name in ("ragged", "saves z", "doubles"):
        check_predictions(kernels, name, near)


def check_predictions(kernels: Kernels, name: str, near: str) -> None:
    of, p = CASES[name], Precision.of(CASES[name].spec.dtype)
    plan, models = plan_of(of, near), models_of(of, 3)
    flat = padded(plan, models)
    for own in (False, True):
        x = np.stack([of.x[m : m + 19] for m in range(3)]) if own else of.x[:19]
        got = predict(kernels, plan, THREADS, flat, x, own)
        for m in range(3):
            one = [(w[m], None if b is None else b[m]) for w, b in models]
            wanted = forward(of.spec, one, x[m] if own else x, p)[1][-1]
            assert_within(got[m], wanted, f"{name}, model {m}")
        one_row = np.ascontiguousarray(x[..., 6:7, :])
        np.testing.assert_array_equal(
            predict(kernels, plan, THREADS, flat, one_row, own), got[:, 6:7]
        )


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(
    ("own", "near"), [(False, "neither"), (True, "parameters"), (True, "both")]
)
def test_steps_of_some_models(kernels: Kernels, poison: str, own: bool, near: str) -> None:
    kernels.poison = poison
    for name in ("ragged", "classes", "doubles"):
        check_steps(kernels, name, near, own=own)


def check_steps(kernels: Kernels, name: str, near: str, *, own: bool) -> None:
    """Two steps, the second from what the first left: both within the bounds of each."""
    of, models = CASES[name], 2
    plan = plan_of(of, near)
    optimizers = optimizers_of(of, models)
    marks = np.concatenate([ensemble_marks(of.spec, plan, o.decay_bias) for o in optimizers])
    data = Data(*data_of(of, models, own, weighted=own))
    vectors = [padded(plan, models_of(of, models))]
    vectors += [np.zeros_like(vectors[0])] * of.optimizer.n_moments
    scalars = table_of(of, optimizers, 2)
    for s, (first, last) in enumerate([(0, 5), (5, 24)]):
        where = data._replace(order=np.ascontiguousarray(data.order[:, first:last]))
        bounds = np.array([0, last - first])
        given = where, bounds, scalars[s : s + 1], marks, vectors
        before = vectors
        vectors, losses, states = train(kernels, plan, of.loss, of.optimizer.kind, THREADS, *given)
        np.testing.assert_array_equal(states["status"], Status.OK)
        np.testing.assert_array_equal(states["step"], 1)
        for m in range(models):
            rows = where.order[m if own else 0]
            x, y = (data.x[m], data.y[m]) if own else (data.x, data.y)
            some = data.weight[m][rows] if own and data.weight is not None else None
            old = [unpadded(plan, each[m]) for each in before]
            want = training_step(of.spec, of.loss, old[0], x[rows], y[rows], some)
            what = f"{name}, step {s}, model {m}"
            assert_within(losses[0, m], want.loss, what)
            new, moved = updated(
                of.spec, optimizers[m], old[0], want.gradients, old[1:], scalars[s, m]
            )
            assert_parameters(unpadded(plan, vectors[0][m]), new, what)
            for got, bounded in zip(vectors[1:], moved, strict=True):
                assert_parameters(unpadded(plan, got[m]), bounded, what)


def test_a_model_that_has_failed_or_is_done_stays_as_it_is(kernels: Kernels) -> None:
    of = CASES["classes"]
    plan = plan_of(of)
    state = np.zeros(3, STATE)
    state["status"][0], state["step"][1] = Status.LOSS_NOT_FINITE, 1
    data = Data(*data_of(of, 3, own=True, weighted=False))
    flat = padded(plan, models_of(of, 3))
    vectors = [flat, np.zeros_like(flat), np.zeros_like(flat)]
    marks = np.concatenate([ensemble_marks(of.spec, plan, False)] * 3)
    given = data, np.array([0, 9]), table_of(of, [of.optimizer] * 3, 1), marks, vectors
    got, losses, states = train(
        kernels, plan, of.loss, of.optimizer.kind, THREADS, *given, state=state
    )
    np.testing.assert_array_equal(states["status"], state["status"])
    np.testing.assert_array_equal(states["step"], [0, 1, 1])
    assert np.isnan(losses[0, :2]).all(), "nothing is written of these"
    assert np.isfinite(losses[0, 2])
    for new, old in zip(got, vectors, strict=True):
        np.testing.assert_array_equal(new[:2], old[:2])
        assert (new[2] != old[2]).any()


def test_what_is_not_finite_in_rows_that_are_not_there_is_not_summed(kernels: Kernels) -> None:
    """A tile's rows past the batch stay 0, whatever a bias makes of a row of zeros."""
    of = case_of(Dense(1, 3, "relu"), Dense(None, 1), rows=3, batch=3)
    plan, many = plan_of(of), np.float32(3e38)
    parameters = [
        (np.ones((1, 1, 3), "float32"), np.full((1, 3), many)),
        (np.full((1, 3, 1), many), np.zeros((1, 1), "float32")),
    ]
    data = Data(np.full((3, 1), -many), of.y, None, np.arange(3)[None])
    marks, scalars = ensemble_marks(of.spec, plan, False), table_of(of, [of.optimizer], 1)
    given = data, np.array([0, 3]), scalars, marks, [padded(plan, parameters)]
    (got,), losses, states = train(kernels, plan, of.loss, of.optimizer.kind, THREADS, *given)
    assert states["step"] == [1]
    assert np.isfinite(losses).all()
    assert np.isfinite(got).all()


def test_networks_that_do_not_fit_do_not_start(kernels: Kernels) -> None:
    of = CASES["one layer"]
    plan = plan_of(of)
    flat = padded(plan, models_of(of, 1))
    deep = replace(plan, layers=plan.layers * 17, tile_at=(0,) * 18, z_at=(0,) * 17)
    for wrong, threads in (
        (deep, 4), (replace(plan, numbers=24 * 1024 + 4), 4), (plan, 3), (plan, 512), (plan, 0),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="did not start"):
            predict(kernels, wrong, threads, flat, of.x, own=False)
