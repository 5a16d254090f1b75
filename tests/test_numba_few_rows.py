"""What stands below the Numba engine's steps of few rows: panels side by side, held gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.few import few_rows_backward
from fastneuron.kernels.numba_cpu.jit import kernel
from fastneuron.kernels.numba_cpu.products import panels_product
from fastneuron.kernels.numba_cpu.target import lane_count, lanes
from fastneuron.kernels.numba_cpu.tile import NOTHING_AHEAD, PLAIN, RELU_GATE, RELU_OUTPUT, TALL
from fastneuron.kernels.numba_cpu.tiles import weight_gradient
from fastneuron.kernels.numba_cpu.updates import HELD_ROWS, update, update_by_rows
from fastneuron.optimizers import SGD, Adam, Optimizer, RMSprop

DTYPES = ["float32", "float64"]
OPTIMIZERS: list[Optimizer] = [
    SGD(weight_decay=0.1),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
    Adam(weight_decay=0.1),
    RMSprop(),
]


@kernel
def call_panels(  # type: ignore[no-untyped-def]
    arena, count, columns, epilogue, out, stride, start, step, a, b, depth, n_rows, extra, most
):
    width = lanes(arena)
    panels_product(
        arena,
        count,
        columns,
        epilogue,
        out,
        stride,
        start,
        step,
        stride if step > 0 else width,
        a,
        b,
        depth * width,
        depth,
        n_rows,
        extra,
        most,
        np.int64(0),
    )


@kernel
def call_back(arena, head, layer, stride, n_rows, most):  # type: ignore[no-untyped-def]
    zero, width = np.int64(0), lanes(arena)
    end = (layer[at.INPUTS] + width - 1) // width
    few_rows_backward(arena, head, layer, zero, end, stride, zero, n_rows, zero, zero, most)


@kernel
def call_by_rows(kind, p, m, v, arena, a, b, n_rows, scalars, columns, ahead):  # type: ignore[no-untyped-def]
    width = lanes(arena)
    update_by_rows(kind, p, m, v, arena, a, width, b, n_rows, scalars, 1, columns, ahead)


@kernel
def call_two_visits(  # type: ignore[no-untyped-def]
    kind, p, m, v, arena, g, a, b, n_rows, inputs, scalars, columns
):
    width = lanes(arena)
    weight_gradient(arena, g, 0, a, b, n_rows, inputs, columns, -1, NOTHING_AHEAD, -1, -1)
    slopes = arena[g : g + inputs * width]
    update(kind, p, slopes, m, v, scalars, 1.0, 1, columns)


def blocked(rows: Any, lanes_: int, capacity: int, fill: float = np.nan) -> Any:
    """Panels of `capacity` rows each; what no number is given for holds `fill`."""
    n, columns = rows.shape
    panels = np.full((-(-columns // lanes_), capacity, lanes_), fill)
    for q in range(len(panels)):
        part = rows[:, q * lanes_ : (q + 1) * lanes_]
        panels[q, :n, : part.shape[1]] = part
    return panels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("n_rows", range(1, 2 * TALL))
def test_panels_side_by_side_have_the_bits_of_one(n_rows: int, count: int, dtype: str) -> None:
    width, capacity = lane_count(dtype), n_rows + 2
    rng = np.random.default_rng(n_rows)
    for depth, integers in itertools.product((1, width, 2 * width + 3), (True, False)):
        outputs = count * width - (depth > width)  # the last panel is not full, nor half empty

        def draw(*shape: int, integers: bool = integers) -> Any:
            return rng.integers(-9, 10, shape) if integers else rng.standard_normal(shape)

        x, w, bias = draw(n_rows, depth), draw(depth, outputs), draw(1, outputs)
        saved = rng.integers(-1, 2, (n_rows, outputs))
        parts = [
            blocked(x, width, capacity),
            blocked(w, width, depth, 0.0),
            blocked(bias, width, 1, 0.0),
            blocked(saved, width, capacity, 0.0),
            np.full((count, capacity, width), np.nan),
            np.zeros(width),
        ]
        a, b, start, extra, out, most = itertools.accumulate([3, *(p.size for p in parts[:-1])])
        arena = np.concatenate([[0.0] * 3, *(p.ravel() for p in parts), [0.0] * 7]).astype(dtype)
        for epilogue in (PLAIN, RELU_OUTPUT, RELU_GATE):
            for going_on in (False, True):
                got = arena.copy()
                if going_on:
                    got[out:most] = rng.integers(-9, 10, most - out)
                want = got.copy()
                first, step = (out, width) if going_on else (start, 0)
                stride = capacity * width
                call_panels(
                    got,
                    count,
                    outputs,
                    epilogue,
                    out,
                    stride,
                    first,
                    step,
                    a,
                    b,
                    depth,
                    n_rows,
                    extra,
                    most,
                )
                for q, r in itertools.product(range(count), range(n_rows)):
                    place = q * stride + r * width
                    call_panels(
                        want,
                        1,
                        width,
                        epilogue,
                        out + place,
                        stride,
                        out + place if going_on else start + q * width,
                        step,
                        a + r * width,
                        b + q * depth * width,
                        depth,
                        1,
                        extra + place,
                        most,
                    )
                assert got.tobytes() == want.tobytes(), (depth, epilogue, going_on)
                if integers and not going_on:
                    z = x @ w + bias
                    wanted = {PLAIN: z, RELU_OUTPUT: np.maximum(z, 0), RELU_GATE: z * (saved > 0)}
                    whole = blocked(wanted[epilogue], width, capacity, 0.0)[:, :n_rows]
                    rows = got[out:most].reshape(count, capacity, width)[:, :n_rows]
                    np.testing.assert_array_equal(rows, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", range(1, 10))
def test_deltas_through_the_weights_as_they_lie(n_rows: int, dtype: str) -> None:
    width, capacity = lane_count(dtype), n_rows + 2
    half = width // 2
    sizes = (1, half, half + 1, width, 2 * width + half - 1)
    rng = np.random.default_rng(n_rows)
    for inputs, outputs in itertools.product(sizes, sizes):
        w = rng.integers(-9, 10, (inputs, outputs))
        delta = rng.integers(-9, 10, (n_rows, outputs))
        # Nothing of what is beside the last output counts, nor what lies behind the weights.
        panels = blocked(w, width, inputs, 0.0)
        deltas = blocked(delta, width, capacity)
        target = np.full((-(-inputs // width), capacity, width), np.nan)
        parts = [deltas, np.zeros(width), target, panels]
        first, most, out, weight = itertools.accumulate([3, *(p.size for p in parts[:-1])])
        behind = np.full(width * width, np.nan)
        arena = np.concatenate([[np.nan] * 3, *(p.ravel() for p in parts), behind]).astype(dtype)
        head, layer = np.zeros(at.HEAD_ENTRIES, np.int64), np.zeros(at.LAYER_COLUMNS, np.int64)
        head[at.PARAMETERS] = weight
        layer[[at.INPUTS, at.OUTPUTS]] = inputs, outputs
        layer[[at.OUT_DELTA, at.IN_DELTA]] = first, out
        before = arena.copy()
        call_back(arena, head, layer, capacity * width, n_rows, most)
        got = arena[out:weight].reshape(target.shape)[:, :n_rows].copy()
        want = blocked(delta @ w.T, width, n_rows, 0.0)
        np.testing.assert_array_equal(got, want, err_msg=f"{inputs} inputs, {outputs} outputs")
        np.testing.assert_array_equal(
            arena[most:out], np.abs(want).max(axis=(0, 1)), err_msg="maxima"
        )
        arena[most:out] = 0
        arena[out:weight].reshape(target.shape)[:, :n_rows] = np.nan
        np.testing.assert_array_equal(arena, before)  # nothing else was written

        # A row's sums do not know how many rows go with it.
        arena[weight : weight + panels.size] *= arena.dtype.type(1 / 3)
        together, alone = arena.copy(), arena.copy()
        call_back(together, head, layer, capacity * width, n_rows, most)
        for r in range(n_rows):
            layer[[at.OUT_DELTA, at.IN_DELTA]] = first + r * width, out + r * width
            call_back(alone, head, layer, capacity * width, 1, most)
        assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__ + one.slot)
def test_a_gradient_in_registers_has_the_bits_of_one_in_memory(
    optimizer: Optimizer, dtype: str
) -> None:
    width = lane_count(dtype)
    rng = np.random.default_rng(5)
    scalars = optimizer.scalars(3, np.full(1, 0.01))[0]
    for n_rows, inputs, columns in itertools.product(
        range(1, HELD_ROWS + 4), (1, width - 1, width), (1, width // 2 + 1, width)
    ):
        x = rng.standard_normal((n_rows, width))
        delta = np.zeros((n_rows, width))
        delta[:, :columns] = rng.standard_normal((n_rows, columns))
        g, a, b = width, width + width * width, width + (width + n_rows) * width
        arena = np.zeros(b + n_rows * width, dtype)
        arena[a:b], arena[b:] = x.ravel(), delta.ravel()
        state = np.zeros((3, inputs, width))
        state[:, :, :columns] = np.abs(rng.standard_normal((3, inputs, columns)))
        want = state.reshape(3, -1).astype(dtype)
        got = [want.copy(), want.copy()]
        kind = int(optimizer.kind)
        call_two_visits(kind, *want, arena, g, a, b, n_rows, inputs, scalars, columns)
        for each, ahead in zip(got, (0, 4096), strict=True):
            call_by_rows(kind, *each, arena, a, b, n_rows, scalars, columns, ahead)
            assert each.tobytes() == want.tobytes(), (n_rows, inputs, columns)
