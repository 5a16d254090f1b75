"""Small networks in one kernel, with few rows a block, against the bounds of a step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fastneuron.kernels.device_plan import blocks_of, flat_parts, flat_size
from fastneuron.kernels.fused_plan import fused_plan
from fastneuron.kernels.numba_cuda.columns import sum_partials
from fastneuron.kernels.numba_cuda.fused import fused_forward, fused_step
from fastneuron.layers import Dense
from fastneuron.testing import (
    Precision,
    assert_parameters,
    assert_within,
    case_of,
    forward,
    integer_case,
    loss_of_batch,
    training_step,
)

THREADS = 6  # fewer than patches, so each thread takes several
ROWS = 8


def case(*layers, **given):
    return case_of(*layers, **{"rows": 21, "batch": 19, **given})


CASES = {
    "one layer": case(Dense(3, 2)),
    "ragged": case(Dense(5, 9, "relu"), Dense(None, 6, "tanh", bias=False), Dense(None, 3)),
    "saves z": case(Dense(4, 5, "gelu"), Dense(None, 8, "silu"), Dense(None, 2, "gelu")),
    "classes": case(Dense(2, 7, "relu"), Dense(None, 3), loss="cross_entropy", seed=1),
    "probabilities": case(Dense(2, 3, "elu"), Dense(None, 5), loss="cross_entropy", seed=3),
    "doubles": case(Dense(3, 6, "sigmoid"), Dense(None, 1), loss="huber", dtype="float64"),
}


def flat_of(spec, parameters):
    vector = np.zeros(flat_size(spec), spec.dtype)
    for part in flat_parts(spec):
        array = parameters[part.layer][part.name == "bias"]
        vector[part.offset : part.end] = array.reshape(-1)
    return vector


def parts_of(spec, vector):
    found = [[None, None] for _ in spec.layers]
    for part in flat_parts(spec):
        found[part.layer][part.name == "bias"] = vector[part.offset : part.end].reshape(part.shape)
    return [tuple(pair) for pair in found]


def launch(kernel, grid, plan, dtype, *args) -> None:
    flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in args]
    kernel[grid, THREADS, 0, plan.numbers * np.dtype(dtype).itemsize](*flat)


def step_of(device, of, flat, rows, weight=None, rows_of_block=ROWS):
    """(losses, gradients) of models that lie one after the other in `flat`."""
    plan, dtype = fused_plan(of.spec, (rows_of_block,)), of.spec.dtype
    kernel = fused_step(plan, of.loss.name, dtype, THREADS, weight is not None, of.y.ndim == 1)
    count, models, batch = flat_size(of.spec), len(flat) // flat_size(of.spec), len(rows)
    blocks = blocks_of(batch, rows_of_block)
    losses = device.out(models, batch, dtype=dtype)
    partials = device.out(models * blocks, count, dtype=dtype)
    given = np.full(1, np.nan, dtype) if weight is None else weight
    order, bounds = np.concatenate([[0, 0], rows]), np.array([0, 2, 2 + batch])
    data = of.x, of.y, given, order, bounds, np.array([1, 0]), flat
    launch(kernel, (blocks, models), plan, dtype, *data, losses, partials, batch, count)
    parts = device.result(partials, models, blocks, count)
    gradients = []
    for part in parts:
        out = device.out(count, dtype=dtype)
        second = sum_partials(dtype, 4, 2), blocks_of(count, 4), (4, 2)
        device.launch(*second, np.ascontiguousarray(part), out, blocks, count)
        gradients.append(device.result(out, count))
    return device.result(losses, models, batch), gradients


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_within_its_bounds(device, name, weighted) -> None:
    of = CASES[name]
    rng, p = np.random.default_rng(0), Precision.of(of.spec.dtype)
    weight = rng.uniform(0, 2, len(of.x)).astype(of.spec.dtype) if weighted else None
    flat = flat_of(of.spec, of.parameters)
    rows = rng.permutation(len(of.x))[:19]
    losses, (gradient,) = step_of(device, of, flat, rows, weight)
    some = None if weight is None else weight[rows]
    want = training_step(of.spec, of.loss, of.parameters, of.x[rows], of.y[rows], some)
    _, activations = forward(of.spec, of.parameters, of.x[rows], p)
    assert_within(losses[0], loss_of_batch(of.loss, activations[-1], of.y[rows], some, p)[0])
    assert_parameters(parts_of(of.spec, gradient), want.gradients, name)
    inside = np.zeros(len(gradient), bool)
    for part in flat_parts(of.spec):
        inside[part.offset : part.end] = True
    assert not gradient[~inside].any(), "between arrays is nothing"


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_within_their_bounds_and_have_the_same_bits_in_any_batch(
    device, name
) -> None:
    of = CASES[name]
    plan, p = fused_plan(of.spec, (ROWS,)), Precision.of(of.spec.dtype)
    flat = flat_of(of.spec, of.parameters)

    def predict(x):
        out = device.out(len(x), of.spec.out_features, dtype=of.spec.dtype)
        kernel = fused_forward(plan, of.spec.dtype, THREADS)
        grid = blocks_of(len(x), ROWS), 1
        launch(kernel, grid, plan, of.spec.dtype, x, flat, out, len(x), 0, len(flat))
        return device.result(out, len(x), of.spec.out_features)

    got = predict(of.x)
    assert_within(got, forward(of.spec, of.parameters, of.x, p)[1][-1], name)
    np.testing.assert_array_equal(predict(of.x[5:6].copy()), got[5:6])


def test_whole_numbers_are_exact_for_any_rows_of_a_block(device) -> None:
    of = integer_case()
    flat, rows = flat_of(of.spec, of.parameters), np.arange(16)
    want = training_step(of.spec, of.loss, of.parameters, of.x, of.y)
    for rows_of_block in (4, 8, 16):
        got = step_of(device, of, flat, rows, None, rows_of_block)[1][0]
        for pair, exactly in zip(parts_of(of.spec, got), want.gradients, strict=True):
            np.testing.assert_array_equal(pair[0], exactly[0].value)
            np.testing.assert_array_equal(pair[1], exactly[1].value)


def test_models_side_by_side_have_the_bits_that_each_has_alone(device) -> None:
    of = CASES["ragged"]
    rng, rows = np.random.default_rng(0), np.arange(9)
    first = flat_of(of.spec, of.parameters)
    flats = [first, (first * rng.normal(1, 0.1, first.shape)).astype(first.dtype)]
    losses, gradients = step_of(device, of, np.concatenate(flats), rows)
    for k, flat in enumerate(flats):
        alone = step_of(device, of, flat, rows)
        np.testing.assert_array_equal(alone[0][0], losses[k])
        np.testing.assert_array_equal(alone[1][0], gradients[k])
    assert (losses[0] != losses[1]).any()


def test_what_is_not_finite_past_the_batch_is_not_summed(device) -> None:
    # exp(100) would overflow in the rows that are not there, were they not kept at zero.
    of = case_of(Dense(1, 3, "relu"), Dense(None, 1), rows=3, batch=3)
    parameters = [
        (np.ones((1, 3), "float32"), np.full(3, 3e38, "float32")),
        (np.full((3, 1), 3e38, "float32"), np.zeros(1, "float32")),
    ]
    x = np.full((3, 1), -3e38, "float32")
    held = type(of)(**{**vars(of), "x": x, "parameters": parameters})
    _, (gradient,) = step_of(device, held, flat_of(of.spec, parameters), np.arange(3))
    assert np.isfinite(gradient).all()


def test_small_networks_fit_and_others_do_not() -> None:
    def rows(*sizes: int, **given):
        layers = [Dense(i, o, "relu", **given) for i, o in pairwise(sizes)]
        plan = fused_plan(case_of(*layers, rows=2, batch=2).spec)
        return plan and plan.rows

    assert rows(64, 64, 64, 4) == 64
    assert rows(20, 64, 64, 2) == 128
    assert rows(1, 1) == 128
    assert rows(128, 128) is not None
    assert rows(129, 2) is None
    assert rows(64, 4, trainable="bias") is None
