"""Column sums in two stages, normalisations and dropout, with few threads over ragged rows."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Status
from fastneuron.kernels.device_plan import blocks_of
from fastneuron.kernels.numba_cuda import columns, norms
from fastneuron.kernels.numba_cuda.dropout import dropout
from fastneuron.kernels.numba_cuda.gather import gather
from fastneuron.kernels.reference.dropout import kept
from fastneuron.layers import BatchNorm, LayerNorm
from fastneuron.testing import (
    Precision,
    activate,
    assert_within,
    by_moments,
    by_statistics,
    column_sum,
    draw_layer,
    exact,
    gate,
    moved_statistics,
    norm_backward,
    norm_forward,
    norm_gradients,
    saved_of,
)

ACROSS, DOWN, GROUP = 4, 2, 5
LANES, ROWS = 4, 2
THREADS = 4
SHAPES = [(1, 1), (2, 5), (5, 4), (6, 9), (11, 3)]


def rows_of(batch: int, outputs: int, dtype: str = "float32", seed: int = 0):
    return draw_layer(seed, batch, outputs, outputs, dtype)


def sum_stage(device, partials, groups, count):
    out = device.out(count, dtype=partials.dtype.name)
    kernel = columns.sum_partials(partials.dtype.name, ACROSS, DOWN)
    launch = blocks_of(count, ACROSS), (ACROSS, DOWN)
    device.launch(kernel, *launch, partials, out, groups, count)
    return device.result(out, count)


def grid(batch: int, outputs: int) -> tuple[int, int]:
    return blocks_of(outputs, ACROSS), blocks_of(batch, GROUP)


@pytest.mark.parametrize(("batch", "outputs"), SHAPES)
@pytest.mark.parametrize("activation", ["identity", "tanh", "silu"])
def test_gate_and_both_stages_of_its_sums(device, batch, outputs, activation) -> None:
    da, _, _ = rows_of(batch, outputs)
    saved = saved_of(rows_of(batch, outputs, seed=1)[0], activation)
    groups, p = blocks_of(batch, GROUP), Precision.of("float32")
    dz, partials = device.out(batch, outputs), device.out(groups, outputs)
    kernel = columns.gate("float32", activation, True, ACROSS, DOWN, GROUP)
    launch = grid(batch, outputs), (ACROSS, DOWN)
    device.launch(kernel, *launch, da, saved, dz, partials, batch, outputs)
    want = gate(exact(da), exact(saved), ACTIVATIONS[activation], p)
    assert_within(device.result(dz, batch, outputs), want, "dz")
    device.result(partials, groups, outputs)
    got = sum_stage(device, partials, groups, outputs)
    assert_within(got, column_sum(want, p), "db")


def test_sums_of_whole_numbers_are_exact(device) -> None:
    batch, outputs = 13, 6
    da = np.random.default_rng(0).integers(-9, 10, (batch, outputs)).astype("float32")
    dz, partials = device.out(batch, outputs), device.out(3, outputs)
    kernel = columns.gate("float32", "identity", True, ACROSS, DOWN, GROUP)
    launch = grid(batch, outputs), (ACROSS, DOWN)
    device.launch(kernel, *launch, da, da, dz, partials, batch, outputs)
    np.testing.assert_array_equal(sum_stage(device, partials, 3, outputs), da.sum(0))


def moments(device, x, epsilon):
    """Mean, variance and inverse over the batch."""
    (batch, outputs), dtype = x.shape, x.dtype.name
    groups, share = blocks_of(batch, GROUP), x.dtype.type(1 / batch)
    mean, variance, inverse = (device.out(outputs, dtype=dtype) for _ in range(3))
    for spread, out in ((False, mean), (True, variance)):
        partials = device.out(groups, outputs, dtype=dtype)
        kernel = columns.column_spread(dtype, spread, ACROSS, DOWN, GROUP)
        launch = grid(batch, outputs), (ACROSS, DOWN)
        device.launch(kernel, *launch, x, mean, partials, batch, outputs)
        kernel = columns.batch_moments(dtype, spread, THREADS)
        ends = share, x.dtype.type(epsilon), groups, outputs
        launch = blocks_of(outputs, THREADS), THREADS
        device.launch(kernel, *launch, partials, out, inverse, *ends)
    return [device.result(each, outputs) for each in (mean, variance, inverse)]


@pytest.mark.parametrize(("batch", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm(device, batch, outputs, bias) -> None:
    x, _, b = rows_of(batch, outputs)
    dy, _, w = rows_of(batch, outputs, seed=2)
    p, layer = Precision.of("float32"), BatchNorm(outputs, epsilon=0.1)
    want = by_moments(layer, exact(x), p)
    mean, variance, inverse = moments(device, x, 0.1)
    for name, got in (("mean", mean), ("variance", variance), ("inverse", inverse)):
        assert_within(got[None], getattr(want, name), name)
    z, a = device.out(batch, outputs), device.out(batch, outputs)
    kernel = norms.norm_forward("float32", "sigmoid", bias, True, LANES, ROWS)
    launch = blocks_of(batch, ROWS), (LANES, ROWS)
    device.launch(kernel, *launch, x, mean, inverse, w, b, z, a, batch, outputs)
    y = norm_forward(want, w, b if bias else None, p)
    assert_within(device.result(z, batch, outputs), y, "z")
    sigmoid = ACTIVATIONS["sigmoid"]
    assert_within(device.result(a, batch, outputs), activate(y, sigmoid, p), "a")
    groups = blocks_of(batch, GROUP)
    partials = device.out(2, groups, outputs)
    kernel = columns.norm_sums("float32", True, ACROSS, DOWN, GROUP)
    device.launch(
        kernel, grid(batch, outputs), (ACROSS, DOWN), x, dy, mean, inverse, partials, batch, outputs
    )
    both = device.result(partials, 2, groups, outputs)
    sums = [sum_stage(device, np.ascontiguousarray(each), groups, outputs) for each in both]
    for got, bounded in zip(sums, norm_gradients(want, exact(dy), p), strict=True):
        assert_within(got, bounded, "gradient")
    for uses_batch in (True, False):
        dx = device.out(batch, outputs)
        kernel = norms.batch_norm_backward("float32", uses_batch, LANES, ROWS)
        share = np.float32(1 / batch)
        device.launch(
            kernel, *launch, x, dy, mean, inverse, w, *sums, dx, share, batch, outputs
        )  # fmt: skip
        rows = want if uses_batch else by_statistics(layer, exact(x), (mean, variance), p)
        if not uses_batch:
            rows = type(rows)(rows.mean, rows.variance, want.inverse, rows.centred, rows.xhat, None)
        bounded = norm_backward(rows, w, exact(dy), p)
        assert_within(device.result(dx, batch, outputs), bounded, "dx")


@pytest.mark.parametrize(("batch", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(device, batch, outputs, bias) -> None:
    x, _, b = rows_of(batch, outputs, seed=3)
    dy, _, w = rows_of(batch, outputs, seed=4)
    p, layer = Precision.of("float32"), LayerNorm(outputs, epsilon=0.1)
    want = by_moments(layer, exact(x), p)
    mean, inverse = device.out(batch), device.out(batch)
    z, a, dx = (device.out(batch, outputs) for _ in range(3))
    launch = blocks_of(batch, ROWS), (LANES, ROWS)
    share, epsilon = np.float32(1 / outputs), np.float32(0.1)
    kernel = norms.layer_norm_forward("float32", "tanh", bias, True, LANES, ROWS)
    device.launch(
        kernel, *launch, x, w, b, mean, inverse, z, a, share, epsilon, batch, outputs
    )  # fmt: skip
    assert_within(device.result(mean, batch, 1), want.mean, "mean")
    assert_within(device.result(inverse, batch, 1), want.inverse, "inverse")
    y = norm_forward(want, w, b if bias else None, p)
    assert_within(device.result(z, batch, outputs), y, "z")
    assert_within(device.result(a, batch, outputs), activate(y, ACTIVATIONS["tanh"], p), "a")
    kernel = norms.layer_norm_backward("float32", LANES, ROWS)
    device.launch(kernel, *launch, x, dy, mean, inverse, w, dx, share, batch, outputs)
    bounded = norm_backward(want, w, exact(dy), p)
    assert_within(device.result(dx, batch, outputs), bounded, "dx")
    groups = blocks_of(batch, GROUP)
    partials = device.out(2, groups, outputs)
    kernel = columns.norm_sums("float32", False, ACROSS, DOWN, GROUP)
    device.launch(
        kernel, grid(batch, outputs), (ACROSS, DOWN), x, dy, mean, inverse, partials, batch, outputs
    )
    both = device.result(partials, 2, groups, outputs)
    for part, bounded in zip(both, norm_gradients(want, exact(dy), p), strict=True):
        got = sum_stage(device, np.ascontiguousarray(part), groups, outputs)
        assert_within(got, bounded, "gradient")


def test_a_variance_that_is_not_finite_gives_nan(device) -> None:
    for variance in (np.inf, np.nan):
        inverse = device.out(1)
        kernel = norms.running_inverse("float32", THREADS)
        given = np.array([variance], "float32")
        device.launch(kernel, 1, THREADS, given, inverse, np.float32(0.1), 1)
        assert np.isnan(inverse[0])


@pytest.mark.parametrize("status", [Status.OK, Status.GRADIENT_NOT_FINITE])
def test_running_statistics_move_with_steps_that_are_applied(device, status) -> None:
    rng = np.random.default_rng(0)
    old = [rng.uniform(1, 2, 6).astype("float32") for _ in range(2)]
    x = rng.normal(size=(5, 6)).astype("float32")
    p, layer = Precision.of("float32"), BatchNorm(6, momentum=0.3)
    rows = by_moments(layer, exact(x), p)
    batch = [rows.mean.value[0].astype("float32"), rows.variance.value[0].astype("float32")]
    moved = [each.copy() for each in old]
    state = np.array([0, status])
    numbers = np.float32(0.3), np.float32(5 / 4), 6
    device.launch(norms.move_statistics(THREADS), 2, THREADS, *moved, *batch, state, *numbers)
    if status is Status.OK:
        for got, want in zip(moved, moved_statistics(layer, tuple(old), rows, p), strict=True):
            assert_within(got, want + 2 * p.u * np.abs(want.value), "moved")
    else:
        np.testing.assert_array_equal(moved, old)


@pytest.mark.parametrize(("batch", "outputs"), [(1, 1), (4, 4), (5, 9), (11, 3)])
@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_dropout_drops_what_the_reference_drops(device, batch, outputs, rate) -> None:
    x = np.arange(1, 1 + batch * outputs, dtype="float32").reshape(batch, outputs)
    keys = np.array([[1, 2], [0xFFFFFFFF, 0x9E3779B9]], np.uint64)
    y, scale = device.out(batch, outputs), np.float32(1 / (1 - rate))
    dropped, launch = int(rate * 2**32), ((blocks_of(batch, 4), blocks_of(outputs, ACROSS)), ACROSS)
    state = np.array([1, 0])
    device.launch(
        dropout("float32", ACROSS), *launch, x, y, keys, state, 3, dropped, scale, batch, outputs
    )
    mask = kept(batch, outputs, 3, (0xFFFFFFFF, 0x9E3779B9), dropped)
    want = x * np.where(mask, scale, np.float32(0))
    np.testing.assert_array_equal(device.result(y, batch, outputs), want)


@pytest.mark.parametrize("features", [1, 3, 4, 9])
def test_gather_takes_the_rows_of_the_step(device, features) -> None:
    source = np.arange(7 * features, dtype="float32").reshape(7, features)
    order, bounds = np.array([6, 5, 0, 3, 3, 1]), np.array([0, 2, 5, 6])
    for step, rows in ((0, [6, 5]), (1, [0, 3, 3]), (2, [1])):
        out, state = device.out(len(rows), features), np.array([step, 0])
        launch = blocks_of(len(rows), ROWS), (LANES, ROWS)
        ends = len(rows), features
        device.launch(gather(LANES, ROWS), *launch, source, order, bounds, state, out, *ends)
        np.testing.assert_array_equal(device.result(out, *ends), source[rows])
