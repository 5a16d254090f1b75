"""Each engine against the float64 reference step, inside its proved bound, and its own promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastneuron.backends import Backend
from fastneuron.kernels.contract import Engine, Status
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import RATE, SGD, Adam
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    Case,
    assert_parameters,
    assert_within,
    batches,
    check_step,
    draw_inputs,
    draw_parameters,
    exact,
    flat,
    generated_cases,
    integer_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
    updated,
)
from fastneuron.testing.bounds import Precision
from fastneuron.testing.generate import OPTIMIZERS
from fastneuron.testing.steps import backward, forward

STEPS = 200
CASES = generated_cases(30)
# A float64 reference step costs about 6 flops a multiply-add with its bounds; networks up to this
# many multiply-adds a step are compared at every step, larger ones at every 25th.
EVERY_STEP = 100_000


def engine_of(backend: Backend, case: Case, **options: Any) -> Engine:
    return loaded(backend.engine(case.spec, case.loss, case.optimizer, **options), case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_generated_network_through_200_steps(backend: Backend, case: Case) -> None:
    engine = engine_of(backend, case, batch_size=case.batch)
    order, bounds = batches(len(case.x), case.batch, STEPS, np.random.default_rng(1))
    scalars = scalars_of(case, STEPS)
    every = 1 if case.spec.multiply_adds * case.batch <= EVERY_STEP else 25
    step = 0
    while step < STEPS:
        what = f"step {step}"
        rows = order[bounds[step] : bounds[step + 1]]
        if step % (5 * every) == 0:
            weight = None if case.weight is None else case.weight[rows]
            x, y = case.x[rows], case.y[rows]
            want = training_step(case.spec, case.loss, engine.export(), x, y, weight)
            untouched = state_of(engine)
            loss, gradients = engine.gradients(x, y, weight)
            assert_within(loss, want.loss, f"{what}: loss of gradients()")
            assert_parameters(gradients, want.gradients, f"{what}: gradient")
            assert_within(engine.forward(x), want.out, f"{what}: output")
            assert state_of(engine) == untouched
        check_step(engine, case, rows, scalars[step], what)
        step += 1
        if every > 1:  # the steps between, in one call
            stop = min(step + every - 1, STEPS)
            run_steps(engine, case, order, bounds[step : stop + 1], scalars[step:stop])
            step = stop


def test_generated_networks_cover_the_tables() -> None:
    names = {layer.activation for case in CASES for layer in case.spec.layers}
    got = (
        len(names),
        {case.loss.name for case in CASES},
        {case.optimizer for case in CASES},
        {len(case.spec.layers) - 1 for case in CASES},
        {layer.bias for case in CASES for layer in case.spec.layers},
    )
    want = (9, set(LOSSES), set(OPTIMIZERS), set(range(6)), {True, False})
    assert got == want
    widths = {size for case in CASES for size in case.spec.sizes}
    assert {1, 300} <= widths
    assert {1, 300} <= {case.batch for case in CASES}


def test_bounds_of_generated_networks_mean_something(backend: Backend) -> None:
    """For most networks the gradient's bound is below a hundredth of the gradient itself."""
    ratios = []
    for case in CASES:
        want = training_step(case.spec, case.loss, case.parameters, case.x, case.y, case.weight)
        grads = [g for pair in want.gradients for g in pair if g is not None]
        size = sum(float(np.square(g.value).sum()) for g in grads)
        error = sum(float(np.square(g.bound).sum()) for g in grads)
        ratios.append((error / size) ** 0.5 if size else 0.0)
    assert np.median(ratios) < 0.01, sorted(ratios)
    assert np.mean(np.array(ratios) < 0.1) > 0.75, sorted(ratios)


@pytest.mark.parametrize("case", generated_cases(6, seed=5, dtype="float64"), ids=lambda c: c.name)
def test_float64(backend: Backend, case: Case) -> None:
    engine = engine_of(backend, case, batch_size=case.batch)
    order, bounds = batches(len(case.x), case.batch, 5, np.random.default_rng(1))
    scalars = scalars_of(case, 5)
    for step in range(5):
        rows = order[bounds[step] : bounds[step + 1]]
        check_step(engine, case, rows, scalars[step], f"step {step}")


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_chunks_do_not_change_a_bit(backend: Backend, case: Case) -> None:
    steps = 12
    order, bounds = batches(len(case.x), case.batch, steps, np.random.default_rng(2))
    scalars = scalars_of(case, steps)
    whole = engine_of(backend, case, batch_size=case.batch)
    want = run_steps(whole, case, order, bounds, scalars)
    single = engine_of(backend, case, batch_size=case.batch)
    got = [
        run_steps(single, case, order, bounds[s : s + 2], scalars[s : s + 1])[0]
        for s in range(steps)
    ]
    np.testing.assert_array_equal(got, want)
    assert state_of(single) == state_of(whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_integer_step_is_exact(backend: Backend, bias: bool, dtype: str) -> None:
    for seed in range(5):
        case = integer_case(seed, dtype, bias)
        engine = engine_of(backend, case, batch_size=case.batch)
        want = training_step(case.spec, case.loss, case.parameters, case.x, case.y)
        np.testing.assert_array_equal(engine.forward(case.x), want.out.value)
        loss, gradients = engine.gradients(case.x, case.y, None)
        assert loss == want.loss.value
        rate = case.optimizer.learning_rate
        assert isinstance(rate, float)
        run_steps(engine, case, np.arange(16), np.array([0, 16]), scalars_of(case, 1))
        new = engine.export()
        for i, (wanted, before) in enumerate(zip(want.gradients, case.parameters, strict=True)):
            for got_g, got_p, g, p in zip(gradients[i], new[i], wanted, before, strict=True):
                if g is not None:
                    np.testing.assert_array_equal(got_g, g.value)
                    np.testing.assert_array_equal(got_p, p - rate * g.value)


@pytest.mark.parametrize("case", CASES[:12], ids=lambda case: case.name)
def test_forward_keep_and_update_equal_run(backend: Backend, case: Case) -> None:
    """A foreign loop with the loss's own gradient ends where `run` does, and dx is right."""
    rows = np.arange(case.batch)
    scalars = scalars_of(case, 1)
    p = Precision.of(case.spec.dtype)
    x, y = case.x[rows], case.y[rows]
    engine = engine_of(backend, case)
    out = engine.forward_keep(x)
    np.testing.assert_array_equal(out, engine.forward(x))
    engine.forward_keep(x)
    weight = None if case.weight is None else case.weight[rows]
    _, dout = backend.slots[case.loss.slot](out, y, weight)
    dout = np.ascontiguousarray(dout)
    given = dout.copy()
    dx, outcome = engine.update(dout, scalars[0])
    np.testing.assert_array_equal(dout, given)
    assert outcome.status == Status.OK
    assert outcome.steps == 1
    zs, activations = forward(case.spec, case.parameters, x, p)
    want_dx, grads = backward(case.spec, case.parameters, zs, activations, exact(dout), p)
    assert_within(dx, want_dx, "dx")
    zeros = engine_of(backend, case).export_moments()
    want, _ = updated(case.spec, case.optimizer, case.parameters, grads, zeros, scalars[0])
    assert_parameters(engine.export(), want, "update")


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__ + o.slot)
def test_moments_resume_to_the_bit(backend: Backend, optimizer: Any) -> None:
    base = CASES[4]
    case = Case(
        "resume",
        base.spec,
        base.loss,
        optimizer,
        base.parameters,
        base.x,
        base.y,
        base.weight,
        base.batch,
    )
    order, bounds = batches(len(case.x), case.batch, 8, np.random.default_rng(3))
    scalars = scalars_of(case, 8)
    through = engine_of(backend, case)
    run_steps(through, case, order, bounds, scalars)
    first = engine_of(backend, case)
    run_steps(first, case, order, bounds[:5], scalars[:4])
    second = backend.engine(case.spec, case.loss, optimizer)
    second.load(first.export())
    second.load_moments(first.export_moments())
    assert len(first.export_moments()) == optimizer.n_moments
    run_steps(second, case, order, bounds[4:], scalars[4:])
    assert state_of(second) == state_of(through)


def failing(kind: str, dtype: str = "float32") -> Case:
    """A case whose third step of one row each must fail."""
    rng = np.random.default_rng(4)
    spec = NetworkSpec.chain([Dense(3, 4, "leaky_relu"), Dense(4, 2)], dtype)
    x = draw_inputs(rng, 5, 3, dtype)
    y = rng.normal(size=(5, 2)).astype(dtype)
    if kind == "nan":
        x[2, 1] = np.nan
    elif kind == "inf":
        x[2, 1] = np.inf
    elif kind == "loss":  # the residual is finite, its square is not
        y[2, 0] = 2e19
    else:  # loss and gradients are finite, the gradient's squared norm is not
        x[2] = 1e25
        y[2] = 1e5
        parameters = draw_parameters(spec, rng)
        parameters[0] = (parameters[0][0] * np.float32(1e-22), parameters[0][1])
        return Case("", spec, LOSSES["mae"], SGD(0.01), parameters, x, y, None, 1)
    return Case("", spec, LOSSES["mse"], Adam(0.01), draw_parameters(spec, rng), x, y, None, 1)


@pytest.mark.parametrize("kind", ["nan", "inf", "loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_applied(backend: Backend, kind: str) -> None:
    case = failing(kind)
    bounds, scalars = np.arange(6), scalars_of(case, 5)
    order = np.arange(5)
    losses = np.full(5, 7.0)
    engine = engine_of(backend, case)
    outcome = engine.run(case.x, case.y, None, order, bounds, scalars, losses)
    want = Status.GRADIENT_NOT_FINITE if kind == "gradient" else Status.LOSS_NOT_FINITE
    assert (outcome.status, outcome.steps) == (want, 2)
    assert np.isfinite(losses[2]) == (kind == "gradient")
    np.testing.assert_array_equal(losses[3:], 7.0)
    whole = engine_of(backend, case)
    np.testing.assert_array_equal(
        run_steps(whole, case, order, bounds[:3], scalars[:2]), losses[:2]
    )
    assert state_of(engine) == state_of(whole)
    # The engine goes on from there.
    run_steps(engine, case, order, bounds[3:], scalars[2:4])
    assert all(np.isfinite(array).all() for array in flat(engine.export()))


def test_update_with_a_gradient_that_is_not_finite(backend: Backend) -> None:
    case = CASES[4]
    engine = engine_of(backend, case)
    before = state_of(engine)
    out = engine.forward_keep(case.x[:3])
    dout = np.full_like(out, np.nan)
    _, outcome = engine.update(dout, scalars_of(case, 1)[0])
    assert (outcome.status, outcome.steps) == (Status.GRADIENT_NOT_FINITE, 0)
    assert state_of(engine) == before


def test_batches_that_grow(backend: Backend) -> None:
    """An engine made for one row takes any batch, and keeps parameters and moments meanwhile."""
    case = next(c for c in CASES if isinstance(c.optimizer, Adam) and len(c.x) > 60)
    sizes = [1, 3, 17, 2, 40, 9]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    order = np.random.default_rng(0).integers(0, len(case.x), bounds[-1])
    scalars = scalars_of(case, len(sizes))
    small = engine_of(backend, case, batch_size=1)
    for s in range(len(sizes)):
        rows = order[bounds[s] : bounds[s + 1]]
        check_step(small, case, rows, scalars[s], f"batch of {sizes[s]}")
    large = engine_of(backend, case, batch_size=40)
    run_steps(large, case, order, bounds, scalars)
    assert state_of(small) == state_of(large)


def test_forward_of_no_rows(backend: Backend) -> None:
    case = CASES[2]
    got = engine_of(backend, case).forward(case.x[:0])
    assert got.shape == (0, case.spec.out_features)
    assert got.dtype == case.spec.dtype


def test_exports_are_copies(backend: Backend) -> None:
    case = CASES[4]
    engine = engine_of(backend, case)
    before = state_of(engine)
    for weight, bias in [*engine.export(), *(p for m in engine.export_moments() for p in m)]:
        weight[...] = 7
        if bias is not None:
            bias[...] = 7
    out = engine.forward(case.x)
    kept = out.copy()
    engine.forward(case.x[::-1].copy())
    np.testing.assert_array_equal(out, kept)
    assert state_of(engine) == before
    given = [(w.copy(), None if b is None else b.copy()) for w, b in case.parameters]
    engine.load(given)
    for weight, _ in given:
        weight[...] = 9
    assert state_of(engine) == before


def test_inputs_are_left_alone(backend: Backend) -> None:
    """Read-only data is trained on as it is."""
    case = CASES[6]
    engine, plain = engine_of(backend, case), engine_of(backend, case)
    order, bounds = batches(len(case.x), case.batch, 3, np.random.default_rng(0))
    scalars = scalars_of(case, 3)
    frozen = [case.x.copy(), case.y.copy(), case.weight, order, bounds, scalars]
    for array in frozen:
        if array is not None:
            array.flags.writeable = False
    try:
        losses = np.zeros(3)
        x, y, weight, order, bounds, scalars = frozen
        assert engine.run(x, y, weight, order, bounds, scalars, losses).status == Status.OK
        np.testing.assert_array_equal(losses, run_steps(plain, case, order, bounds, scalars))
        np.testing.assert_array_equal(engine.forward(x), plain.forward(case.x))
        engine.forward_keep(x)
        dout = np.ones((len(x), case.spec.out_features), x.dtype)
        dout.flags.writeable = False
        engine.update(dout, scalars[0])
        engine.gradients(x, y, None)
    finally:
        for array in frozen:
            if array is not None:
                array.flags.writeable = True
    assert state_of(engine) != state_of(plain)


def test_learning_rate_zero_changes_no_bit(backend: Backend) -> None:
    for case in CASES[:8]:
        engine = engine_of(backend, case)
        before = b"".join(array.tobytes() for array in flat(engine.export()))
        scalars = scalars_of(case, 2)
        scalars[:, RATE] = 0
        scalars[:, 2] = 0  # AdamW's shrinking is lr times decay
        order, bounds = batches(len(case.x), case.batch, 2, np.random.default_rng(0))
        run_steps(engine, case, order, bounds, scalars)
        assert b"".join(array.tobytes() for array in flat(engine.export())) == before
