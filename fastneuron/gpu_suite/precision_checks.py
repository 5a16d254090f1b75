"""Products in lesser precisions, against float64 by the norm of the error."""

from __future__ import annotations

from functools import partial

import numpy as np

from fastneuron.gpu_suite.engines import Kind, Sizes
from fastneuron.gpu_suite.running import Check
from fastneuron.kernels.contract import Array
from fastneuron.layers import Dense
from fastneuron.testing import (
    Case,
    Precision,
    case_of,
    draw_inputs,
    flat,
    forward,
    scalars_of,
    training_step,
)

__all__ = ["BOUNDS", "precision_case", "precision_checks"]

#: The norm of a result's error over that of the result, by the precision of its products: that of
#: operands rounded to 11 (tf32) and 8 bits (bfloat16), and float32 sums. Of one layer: through
#: more, errors add up.
BOUNDS = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 1e-2}


def precision_checks(kind: Kind, sizes: Sizes) -> list[Check]:
    """Return the checks of every precision, forward and of the gradients."""
    tile = sizes.tile
    shapes = [
        (tile.rows + 1, tile.depth + 1, tile.columns - 1),
        (2 * tile.rows, 4 * tile.depth, tile.columns),
    ]
    return [
        Check(f"{precision} {'x'.join(map(str, shape))}", partial(_check, kind, precision, shape))
        for precision in BOUNDS
        for shape in shapes
    ]


def precision_case(sizes: Sizes) -> Case:
    """Return a small network."""
    return case_of(Dense(sizes.tile.depth, 4), rows=4, batch=4)


def _check(kind: Kind, precision: str, shape: tuple[int, int, int]) -> float:
    rows, inputs, outputs = shape
    case = case_of(Dense(inputs, outputs), rows=rows, batch=rows, seed=7)
    spec, start, p = case.spec, case.parameters, Precision.of("float32")
    engine, key = kind.engine_of(case, precision=precision), scalars_of(case, 1)
    output = forward(spec, start, case.x, p)[1][-1].value
    worst = _share(engine.forward(case.x), output, precision, "output")
    step = training_step(spec, case.loss, start, case.x, case.y, None, None, key[0])
    _, gradients = engine.gradients(case.x, case.y, None, key)
    bounded = [each for pair in step.gradients for each in pair if each is not None]
    for i, (got, right) in enumerate(zip(flat(gradients), bounded, strict=True)):
        worst = max(worst, _share(got, right.value, precision, f"gradient {i}"))
    dout = draw_inputs(np.random.default_rng(8), rows, outputs, "float32")
    engine.forward_keep(case.x, key)
    dx, _ = engine.update(dout, key[0])
    want = dout.astype(np.float64) @ start[0][0].astype(np.float64).T
    return max(worst, _share(dx, want, precision, "dx"))


def _share(got: Array, want: Array, precision: str, what: str) -> float:
    """Return the error over its bound; raise where it is above."""
    error = float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
    bound = BOUNDS[precision]
    # Not "error > bound": a NaN is wrong too.
    assert error <= bound, f"{what} in {precision}: relative error {error:.2g}, bound {bound:.0e}"
    return error / bound
