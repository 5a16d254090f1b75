"""Steps of few rows: same bits however steps are cut and mixed, inside the same bounds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from fastneuron.kernels import layout as at
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.kernels.numba_cpu.engine import NumbaEngine
from fastneuron.kernels.numba_cpu.few import few_rows_backward
from fastneuron.kernels.numba_cpu.jit import kernel
from fastneuron.kernels.numba_cpu.products import panels_product
from fastneuron.kernels.numba_cpu.target import lane_count, lanes
from fastneuron.kernels.numba_cpu.tile import NOTHING_AHEAD, PLAIN, RELU_GATE, RELU_OUTPUT, TALL
from fastneuron.kernels.numba_cpu.tiles import weight_gradient
from fastneuron.kernels.numba_cpu.updates import HELD_ROWS, update, update_by_rows
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, SGD, Adam, Optimizer, RMSprop
from fastneuron.spec import Dense, NetworkSpec
from fastneuron.testing import assert_within, generated_cases, loaded, training_step

DTYPES = ["float32", "float64"]
OPTIMIZERS: list[Optimizer] = [
    SGD(weight_decay=0.1),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
    Adam(weight_decay=0.1),
    RMSprop(),
]
FEW = at.few_rows(0)


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


SIZES = (40, 130, 70, 5)


def network(dtype: str) -> tuple[NetworkSpec, Parameters, Any, Any]:
    layers = [
        Dense(a, b, activation=f, bias=i != 1)
        for i, (a, b, f) in enumerate(
            zip(SIZES, SIZES[1:], ("tanh", "relu", "identity"), strict=False)
        )
    ]
    rng = np.random.default_rng(0)
    parameters: Parameters = [
        (
            (rng.standard_normal((a, b)) / np.sqrt(a)).astype(dtype),
            np.zeros(b, dtype) if layer.bias else None,
        )
        for layer, (a, b) in zip(layers, itertools.pairwise(SIZES), strict=True)
    ]
    x, y = rng.standard_normal((90, SIZES[0])), rng.standard_normal((90, SIZES[-1]))
    return NetworkSpec.chain(layers, dtype), parameters, x.astype(dtype), y.astype(dtype)


def engine_of(dtype: str, optimizer: Optimizer, n_threads: int, capacity: int) -> NumbaEngine:
    spec, parameters, _x, _y = network(dtype)
    engine = NumbaEngine(spec, LOSSES["mse"], optimizer, n_threads=n_threads, batch_size=capacity)
    engine.load(parameters)
    return engine


def state(engine: NumbaEngine) -> bytes:
    return b"".join(
        array.tobytes()
        for parameters in [engine.export(), *engine.export_moments()]
        for pair in parameters
        for array in pair
        if array is not None
    )


#: Rows of steps around the limit, in every order of few and many.
MIXED = (1, 3, 64, 2, 64, FEW, FEW + 1, FEW, 1, 30, 30, 1)


def trained(
    engine: NumbaEngine, optimizer: Optimizer, cuts: tuple[int, ...], meddling: bool = False
) -> bytes:
    """Do the steps of MIXED in chunks that end at `cuts`; `meddling` looks in between."""
    _spec, _parameters, x, y = network(engine.spec.dtype)
    order = np.random.default_rng(1).integers(0, len(x), sum(MIXED))
    bounds = np.concatenate([[0], np.cumsum(MIXED)]).astype(np.int64)
    scalars = optimizer.scalars(0, np.full(len(MIXED), 1e-2))
    losses = np.zeros(len(MIXED))
    for first, end in itertools.pairwise((0, *cuts, len(MIXED))):
        part = losses[first:end]
        outcome = engine.run(x, y, None, order, bounds[first : end + 1], scalars[first:end], part)
        assert outcome.status == Status.OK
        if meddling:
            engine.gradients(x[:50], y[:50], None)
            engine.forward_keep(x[:2])
    return losses.tobytes() + state(engine)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [SGD(), Adam(), SGD(clip_norm=0.1)], ids=lambda one: one.slot)
def test_few_and_many_rows_in_any_chunks(optimizer: Optimizer, dtype: str) -> None:
    every = tuple(range(1, len(MIXED)))
    want = trained(engine_of(dtype, optimizer, 1, 64), optimizer, every)
    for n_threads, capacity, cuts in itertools.product((1, 3), (1, 300), ((), (2,), (1, 6, 9))):
        got = trained(engine_of(dtype, optimizer, n_threads, capacity), optimizer, cuts)
        assert got == want, (n_threads, capacity, cuts)
    got = trained(engine_of(dtype, optimizer, 2, 1), optimizer, every, meddling=True)
    assert got == want, "with gradients() and forward_keep() between"


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 60])
@pytest.mark.parametrize("reload", [False, True])
def test_after_few_rows_an_engine_is_as_one_that_was_loaded(rows: int, reload: bool) -> None:
    """Copies of weights that steps of few rows left behind are never used."""
    optimizer = SGD(0.1, momentum=0.9)
    _spec, parameters, x, y = network("float32")
    dout = np.random.default_rng(2).standard_normal((rows, SIZES[-1])).astype(np.float32)
    scalars = optimizer.scalars(0, np.full(3, 0.1))
    engine = engine_of("float32", optimizer, 1, 3)
    engine.run(x, y, None, np.arange(6), np.array([0, 2, 3, 6]), scalars, np.zeros(3))
    if reload:
        engine.load(parameters)
    fresh = engine_of("float32", optimizer, 1, 60)
    fresh.load(engine.export())
    fresh.load_moments(engine.export_moments())
    got, want = (repr(one.gradients(x[:rows], y[:rows], None)) for one in (engine, fresh))
    assert got == want
    for one in (engine, fresh):
        one.forward_keep(x[:rows])
    (got_dx, _), (want_dx, _) = (one.update(dout, scalars[0]) for one in (engine, fresh))
    np.testing.assert_array_equal(got_dx, want_dx)
    assert state(engine) == state(fresh)


CASES = [case for case in generated_cases(30) if len(case.spec.layers) > 1][:12]


@pytest.mark.parametrize("most", [FEW, 24])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_of_few_rows_keep_their_bounds(
    case: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at, "FEW_ROWS", ((0, most),))  # as for large networks
    engine = loaded(NumbaEngine(case.spec, case.loss, case.optimizer, n_threads=1), case)
    for rows in range(1, FEW + 1) if most == FEW else (FEW + 1, 13, 24):
        kept = np.arange(rows) % len(case.x)
        x, y = case.x[kept], case.y[kept]
        weight = None if case.weight is None else case.weight[kept]
        want = training_step(case.spec, case.loss, case.parameters, x, y, weight)
        _loss, gradients = engine.gradients(x, y, weight)
        for i, (pair, bounded) in enumerate(zip(gradients, want.gradients, strict=True)):
            for array, bound in zip(pair, bounded, strict=True):
                if array is not None:
                    assert_within(array, bound, f"{rows} rows: layer {i}")


def test_the_limit_grows_with_the_parameters() -> None:
    limits = [at.few_rows(size) for size in (0, 1 << 10, 1 << 20, 1 << 24, 1 << 40)]
    assert limits == sorted(limits)
    assert limits[0] >= 1
    assert limits[0] == limits[1] < limits[2] < limits[3] == limits[4]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    _spec, _parameters, x, y = network("float32")
    x[0, 7] = np.nan
    for rows in (1, FEW, FEW + 1):
        engine = engine_of("float32", SGD(), 1, 8)
        before = state(engine)
        scalars = np.zeros((1, N_SCALARS))
        outcome = engine.run(x, y, None, np.arange(rows), np.array([0, rows]), scalars, np.zeros(1))
        assert outcome.status == Status.LOSS_NOT_FINITE
        assert state(engine) == before
