"""Products with tiny tiles over ragged shapes, and one case of the shipped tile."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.device_plan import Tile, blocks_of, slices_of, tile_of
from fastneuron.kernels.numba_cuda import products
from fastneuron.testing import (
    Precision,
    activate,
    assert_within,
    column_sum,
    dense,
    draw_layer,
    exact,
    gate,
    matmul,
    saved_of,
)

TINY = Tile(8, 8, 4, 4, 4)
#: Two groups of four rows and of columns a thread.
GROUPS = Tile(16, 16, 4, 8, 8)
#: B, I, O: below, at and past the tile and its depth; multiples of four take the 16-byte loads.
SHAPES = [(1, 1, 1), (8, 4, 8), (9, 5, 7), (7, 3, 17), (3, 9, 9), (17, 8, 4), (9, 12, 16)]


def fours(count: int) -> bool:
    return count % 4 == 0


def grid(tile: Tile, rows: int, columns: int) -> tuple[int, int]:
    return blocks_of(columns, tile.columns), blocks_of(rows, tile.rows)


def forward(device, tile, x, w, b, activation, keeps_z):
    (rows, inputs), outputs, dtype = x.shape, w.shape[1], x.dtype.name
    kernel = products.forward(
        tile, dtype, activation, b is not None, keeps_z, fours(inputs), fours(outputs)
    )
    z, a = (device.out(rows, outputs, dtype=dtype) for _ in range(2))
    bias = np.full(1, np.nan, dtype) if b is None else b
    launch = grid(tile, rows, outputs), tile.threads
    device.launch(kernel, *launch, x, w, bias, z, a, rows, inputs, outputs)
    if not keeps_z:
        assert np.isnan(z).all()
    return device.result(z, rows, outputs) if keeps_z else None, device.result(a, rows, outputs)


def data_gradient(device, tile, dz, w, saved, activation, sums):
    (rows, outputs), inputs, dtype = dz.shape, w.shape[0], dz.dtype.name
    kernel = products.data_gradient(tile, dtype, activation, sums, fours(outputs), fours(outputs))
    groups = blocks_of(rows, tile.rows)
    out, partials = (device.out(n, inputs, dtype=dtype) for n in (rows, groups))
    launch = grid(tile, rows, inputs), tile.threads
    device.launch(kernel, *launch, dz, w, saved, out, partials, rows, outputs, inputs)
    if not sums:
        assert np.isnan(partials).all()
    got = device.result(partials, groups, inputs) if sums else None
    return device.result(out, rows, inputs), got


def weight_gradient(device, tile, x, dz, slices, slice_rows):
    (rows, inputs), outputs, dtype = x.shape, dz.shape[1], x.dtype.name
    kernel = products.weight_gradient(tile, dtype, fours(inputs), fours(outputs))
    partials = device.out(slices, inputs, outputs, dtype=dtype)
    launch = (*grid(tile, inputs, outputs), slices), tile.threads
    device.launch(kernel, *launch, x, dz, partials, rows, inputs, outputs, slice_rows)
    return device.result(partials, slices, inputs, outputs)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_forward_is_within_its_bound(device, rows, inputs, outputs, activation) -> None:
    x, w, b = draw_layer(1, rows, inputs, outputs, "float32")
    f, p = ACTIVATIONS[activation], Precision.of("float32")
    for bias in (b, None):
        z, a = forward(device, TINY, x, w, bias, activation, f.saves == "z")
        want = dense(exact(x), exact(w), None if bias is None else exact(bias), p)
        assert_within(a, activate(want, f, p), "a")
        if z is not None:
            assert_within(z, want, "z")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_and_its_gate(device, activation) -> None:
    x, w, b = draw_layer(2, 9, 5, 8, "float64")
    f, p = ACTIVATIONS[activation], Precision.of("float64")
    _, a = forward(device, TINY, x, w, b, activation, True)
    want = dense(exact(x), exact(w), exact(b), p)
    assert_within(a, activate(want, f, p), "a")
    below = saved_of(draw_layer(3, 9, 5, 5, "float64")[0] * 3, activation)
    dz, sums = data_gradient(device, TINY, a, w, below, activation, True)
    gated = gate(matmul(exact(a), exact(w).T, p), exact(below), f, p)
    assert_within(dz, gated, "dz")
    assert_within(sums[0], column_sum(gated_rows(gated, 0, 8), p), "sum of the first row tile")
    assert_within(sums[1], column_sum(gated_rows(gated, 8, 9), p), "sum of the last row tile")


def gated_rows(bounded, first: int, last: int):
    return type(bounded)(bounded.value[first:last], bounded.bound[first:last])


@pytest.mark.parametrize(
    ("tile", "rows", "inputs", "outputs"),
    [(TINY, *shape) for shape in SHAPES] + [(GROUPS, 19, 21, 27), (GROUPS, 16, 16, 12)],
)
def test_whole_numbers_are_exact(device, tile, rows, inputs, outputs) -> None:
    rng = np.random.default_rng(rows)

    def whole(*shape: int):
        return rng.integers(-3, 4, shape).astype("float32")

    x, w, b, dz = whole(rows, inputs), whole(inputs, outputs), whole(outputs), whole(rows, outputs)
    z, a = forward(device, tile, x, w, b, "relu", True)
    np.testing.assert_array_equal(z, x @ w + b, err_msg="z")
    np.testing.assert_array_equal(a, np.maximum(x @ w + b, 0), err_msg="a")
    dx, sums = data_gradient(device, tile, dz, w, x, "relu", True)
    want = dz @ w.T * (x > 0)
    np.testing.assert_array_equal(dx, want, err_msg="dz below")
    groups = [want[i : i + tile.rows].sum(0) for i in range(0, rows, tile.rows)]
    np.testing.assert_array_equal(sums, groups, err_msg="its column sums")
    dx, _ = data_gradient(device, tile, dz, w, x, "identity", False)
    np.testing.assert_array_equal(dx, dz @ w.T, err_msg="dx")
    each = 8
    parts = weight_gradient(device, tile, x, dz, blocks_of(rows, each), each)
    want = [x[i : i + each].T @ dz[i : i + each] for i in range(0, rows, each)]
    np.testing.assert_array_equal(parts, want, err_msg="dw of each slice")


def test_a_row_has_the_same_bits_in_any_batch(device) -> None:
    x, w, b = draw_layer(4, 19, 9, 6, "float32")
    _, whole = forward(device, TINY, x, w, b, "tanh", False)
    for rows in (slice(3, 4), slice(5, 17)):
        _, some = forward(device, TINY, np.ascontiguousarray(x[rows]), w, b, "tanh", False)
        np.testing.assert_array_equal(some, whole[rows])


def test_what_is_not_finite_stays_in_its_row(device) -> None:
    x, w, b = draw_layer(5, 9, 6, 9, "float32")
    x[2, 1] = np.nan
    _, a = forward(device, TINY, x, w, b, "relu", False)
    np.testing.assert_array_equal(np.isnan(a), np.arange(9)[:, None] == np.full(9, 2))
    dz = draw_layer(6, 9, 9, 9, "float32")[0]
    dz[8, 0] = np.nan
    dx, sums = data_gradient(device, TINY, dz, w, np.zeros_like(x), "relu", True)
    # A gate of zero is a product and no selection.
    np.testing.assert_array_equal(np.isnan(dx), np.arange(9)[:, None] == np.full(6, 8))
    np.testing.assert_array_equal(np.isnan(sums), [[False] * 6, [True] * 6])


def test_the_shipped_tile(device) -> None:
    tile, (rows, inputs, outputs) = tile_of("float32"), (129, 9, 12)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (rows, inputs)).astype("float32")
    w = rng.integers(-3, 4, (inputs, outputs)).astype("float32")
    b = rng.integers(-3, 4, outputs).astype("float32")
    _, a = forward(device, tile, x, w, b, "relu", False)
    np.testing.assert_array_equal(a, np.maximum(x @ w + b, 0))
    dx, sums = data_gradient(device, tile, a, w, x, "relu", True)
    want = a @ w.T * (x > 0)
    np.testing.assert_array_equal(dx, want)
    np.testing.assert_array_equal(sums, [want[:128].sum(0), want[128]])
    slices, each = slices_of(rows, inputs, outputs, tile)
    parts = weight_gradient(device, tile, x, a, slices, each)
    np.testing.assert_array_equal(parts.sum(0), x.T @ a)
