"""Every slot, whichever engine fills it, through steps so small that it has nowhere to hide.

A slot has no face of its own on a device: it is reached through networks of one or two layers whose
step is little more than that slot. Shapes lie around the edges of the engine's tiles; results are
compared with the float64 reference within the proved bounds of `fastneuron.testing`, and on whole
numbers exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, cycle

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.gpu_suite.engines import Kind, Sizes
from fastneuron.gpu_suite.running import Check
from fastneuron.kernels.contract import Array, Engine, Status
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.testing import (
    Case,
    Precision,
    assert_parameters,
    assert_within,
    backward,
    case_of,
    check_step,
    draw_inputs,
    exact,
    flat,
    forward,
    integer_case,
    integer_norm_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
    updated,
)

__all__ = ["check_foreign", "check_forward", "check_gradients", "check_whole", "slot_checks"]

#: Each rule of an update, with and without what may stand around it.
_OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.05),
    "momentum, decay": SGD(0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov, clipped": SGD(0.05, momentum=0.8, nesterov=True, clip_norm=0.1),
    "adam": Adam(1e-3, weight_decay=1e-4),
    "adamw, decayed biases": AdamW(2e-3, weight_decay=0.1, decay_bias=True),
    "rmsprop, clipped": RMSprop(1e-3, clip_norm=0.5),
}


def slot_checks(kind: Kind, sizes: Sizes, dtype: str = "float32") -> list[Check]:
    """Return the checks of all slots in that dtype, those of most worth first."""
    seed = count()
    shapes = cycle(_shapes(sizes))

    def case(*layers: Layer, **given: object) -> Case:
        options: dict[str, object] = {"dtype": dtype, "seed": next(seed), **given}
        return case_of(*layers, **options)  # type: ignore[arg-type]

    checks: list[Check] = []

    def add(what: str, check: Callable[[Engine, Case], float], of: Case) -> None:
        place = f"{what} {'x'.join(map(str, of.spec.sizes))} b{of.batch} {dtype}{kind.way}"
        checks.append(Check(place, lambda: check(kind.engine_of(of), of)))

    for of in _whole_cases(dtype):
        add("whole numbers", check_whole, of)
    for i, name in enumerate(sorted(ACTIVATIONS)[:: sizes.every]):
        for bias in (True, False):
            rows, inputs, outputs = next(shapes)
            of = case(Dense(inputs, outputs, name, bias=bias), rows=rows, batch=rows)
            add(f"dense_forward {name}", check_forward, of)
            add(f"act_bias_backward {name}", check_foreign, of)
            two = Dense(inputs, outputs, name, bias=bias), Dense(None, 1 + i, bias=not bias)
            add(f"dense_backward {name}", check_foreign, case(*two, rows=rows, batch=rows))
    if sizes.sliced_rows:
        rows = sizes.sliced_rows
        two = Dense(20, 12, "relu"), Dense(None, 3)
        add("sliced gradient", check_foreign, case(*two, rows=rows, batch=rows))
    for name in sorted(LOSSES)[:: -(-sizes.every // 2)]:
        rows, inputs, outputs = next(shapes)
        dense = Dense(inputs, max(outputs, 2))
        for k in range(2):
            of = _of_targets(case, dense, rows, name, labels=k == 0)
            if k:
                weight = np.random.default_rng(k).uniform(0, 2, rows).astype(dtype)
                of = replace(of, weight=weight)
            add(f"{name}{', weighted' * k}", check_gradients, of)
            add(f"{name}{', weighted' * k}, in steps", _check_two_steps, of)
    for name, optimizer in list(_OPTIMIZERS.items())[:: sizes.every]:
        rows, inputs, outputs = next(shapes)
        of = case(Dense(inputs, outputs), rows=rows, batch=rows, optimizer=optimizer)
        add(name, _check_two_steps, of)
    for what, layers in _with_norms(sizes):
        rows, inputs, outputs = next(shapes)
        dense = Dense(inputs, max(outputs, 2), "relu")
        of = case(dense, *layers, Dense(None, 3), rows=max(rows, 3), batch=max(rows, 3))
        add(what, _check_two_steps, of)
        add(f"{what}, forward", check_forward, of)
        add(f"{what}, backward", check_foreign, of)
    return checks


def _shapes(sizes: Sizes) -> Iterator[tuple[int, int, int]]:
    """Yield rows, inputs and outputs: one, at and around the tile, and past it."""
    tile = sizes.tile
    rows, across, deep = tile.rows, tile.columns, tile.depth
    return iter(
        [
            (rows + 1, deep + 1, across - 1),
            (rows - 1, 2 * deep, across),
            (1, 1, 1),
            (3, across + 1, 4),
            (rows, 3, across + 1),
            (2, 4 * deep, 2),
        ]
    )


def _with_norms(sizes: Sizes) -> list[tuple[str, tuple[Layer, ...]]]:
    found: list[tuple[str, tuple[Layer, ...]]] = [
        ("batch_norm", (BatchNorm(None, "gelu"),)),
        ("layer_norm", (LayerNorm(None, "tanh"),)),
        ("dropout", (Dropout(0.5),)),
        ("batch_norm, frozen", (BatchNorm(None, "relu", trainable=False),)),
        ("layer_norm without bias", (LayerNorm(None, bias=False),)),
        ("batch_norm, weight only", (BatchNorm(None, "silu", trainable="weight"),)),
        ("dropout of a norm", (LayerNorm(None, "elu"), Dropout(0.1))),
    ]
    return found[:: 1 if sizes.every == 1 else 2]


def _whole_cases(dtype: str) -> list[Case]:
    kinds = ("batch", "layer", "frozen")
    return [
        *(integer_case(dtype=dtype, bias=bias) for bias in (True, False)),
        *(integer_norm_case(kind, dtype=dtype) for kind in kinds),
    ]


def _of_targets(
    case: Callable[..., Case], dense: Dense, rows: int, loss: str, *, labels: bool
) -> Case:
    """Return a case of that loss; where it takes classes, with numbers or probabilities."""
    of = case(dense, rows=rows, batch=rows, loss=loss)
    if LOSSES[loss].targets != "classes":
        return of
    rng, outputs = np.random.default_rng(0), of.spec.out_features
    y = rng.integers(0, outputs, rows) if labels else rng.dirichlet(np.ones(outputs), rows)
    return replace(of, y=y if labels else y.astype(of.spec.dtype))


def check_forward(engine: Engine, case: Case) -> float:
    """Compare predictions with their bounds, and rows alone with those of the batch."""
    p = Precision.of(case.spec.dtype)
    want = forward(case.spec, case.parameters, case.x, p, case.statistics)[1][-1]
    got = engine.forward(case.x)
    rows = len(case.x)
    for first, last in ((rows - 1, rows), (rows // 3, rows // 2)):
        alone = engine.forward(case.x[first:last])
        same = alone.tobytes() == got[first:last].tobytes()
        assert same, f"rows {first} to {last} have other bits without the rest of the batch"
    return assert_within(got, want, "output")


def check_foreign(engine: Engine, case: Case) -> float:
    """Compare output, dL/dx and the step of a given dL/d(output) with their bounds."""
    spec, x, p = case.spec, case.x[: case.batch], Precision.of(case.spec.dtype)
    scalars = scalars_of(case, 1)
    key = scalars[0]
    rng = np.random.default_rng(len(x))
    dout = draw_inputs(rng, len(x), spec.out_features, spec.dtype)
    before, moments = engine.export(), engine.export_moments()
    zs, activations = forward(spec, before, x, p, case.statistics, key)
    args = spec, before, zs, activations, exact(dout), p, case.statistics, key
    want, gradients = backward(*args)
    new, _ = updated(spec, case.optimizer, before, gradients, moments, key)
    output = assert_within(engine.forward_keep(x, scalars), activations[-1], "output")
    dx, outcome = engine.update(dout, key)
    assert outcome == (Status.OK, 1), f"update ended with {outcome}"
    return max(
        output, assert_within(dx, want, "dx"), assert_parameters(engine.export(), new, "new")
    )


def check_gradients(engine: Engine, case: Case) -> float:
    """Compare loss and gradients of a batch with their bounds."""
    rows = slice(0, case.batch)
    x, y = case.x[rows], case.y[rows]
    weight = None if case.weight is None else case.weight[rows]
    key = scalars_of(case, 1)
    start = case.spec, case.loss, case.parameters
    want = training_step(*start, x, y, weight, case.statistics, key[0])
    before = state_of(engine)
    loss, gradients = engine.gradients(x, y, weight, key)
    assert state_of(engine) == before, "gradients changed the state"
    return max(
        assert_within(loss, want.loss, "loss"),
        assert_parameters(gradients, want.gradients, "gradient"),
    )


def check_whole(engine: Engine, case: Case) -> float:
    """Compare a step on whole numbers with the reference's, to the bit."""
    reference = backends.get("numpy").engine(case.spec, case.loss, case.optimizer)
    right = loaded(reference, case)
    scalars = scalars_of(case, 1)
    order, bounds = np.arange(case.batch), np.array([0, case.batch])
    got, want = (run_steps(each, case, order, bounds, scalars) for each in (engine, right))
    assert got[0] == want[0], f"loss: got {got[0]}, want {want[0]}"
    for new, exactly in zip(flat(engine.export()), flat(right.export()), strict=True):
        np.testing.assert_array_equal(new, exactly)
    return 0.0


def _check_two_steps(engine: Engine, case: Case) -> float:
    rows: Array = np.arange(len(case.x))
    scalars = scalars_of(case, 2)
    first = check_step(engine, case, rows, scalars[0], "step 0")
    return max(first, check_step(engine, case, rows[::-1].copy(), scalars[1], "step 1"))
