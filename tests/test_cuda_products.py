"""The products of csrc/cuda on the processor, against proved bounds and integer arithmetic."""

from __future__ import annotations

from typing import Any

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import LARGE, SMALL, TINY, Kernels

from fastneuron.activations import ACTIVATIONS
from fastneuron.testing import (
    POISONS,
    Precision,
    activate,
    assert_within,
    column_sum,
    dense,
    draw_layer,
    exact,
    gate,
    matmul,
    ragged,
    saved_of,
)

DTYPES = ("float32", "float64")
TILES = {"tiny": TINY, "small": SMALL, "large": LARGE}
#: Both sides of a tile's rows and columns (8), and of its depth (4).
ROWS = COLUMNS = tuple(ragged(8))
DEPTHS = (1, 3, 4, 5, 8, 9, 13)
#: A block of 256 threads takes 30 ms to start here: two shapes of more than a tile, one of less.
SHIPPED = ((131, 17, 133), (64, 8, 64), (3, 5, 2))


@pytest.fixture
def kernels(cuda_kernels: Kernels) -> Kernels:
    cuda_kernels.tile, cuda_kernels.poison, cuda_kernels.shift = TINY, "nan", 0
    return cuda_kernels


def shapes() -> list[tuple[int, int, int]]:
    """Each ragged size of one side, the others going round theirs."""
    sides = (ROWS, DEPTHS, COLUMNS)
    found = []
    for i, side in enumerate(sides):
        for j, size in enumerate(side):
            shape = [other[(3 * j + i) % len(other)] for other in sides]
            shape[i] = size
            found.append(tuple(shape))
    return sorted(set(found))


def integers(seed: int, dtype: str, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def check_forward(kernels: Kernels, shape: tuple[int, int, int], dtype: str, name: str) -> None:
    p = Precision.of(dtype)
    x, w, b = draw_layer(sum(shape), *shape, dtype)
    for bias in (b, None):
        a, z = kernels.forward(x, w, bias, name, keep_z=True)
        want = dense(exact(x), exact(w), None if bias is None else exact(bias), p)
        assert_within(z, want, f"z {shape}")
        assert_within(a, activate(want, ACTIVATIONS[name], p), f"a {shape}")


def check_data_gradient(
    kernels: Kernels, shape: tuple[int, int, int], dtype: str, name: str
) -> None:
    rows, _, outputs = shape
    p = Precision.of(dtype)
    rng = np.random.default_rng(sum(shape))
    x, w, _ = draw_layer(sum(shape), *shape, dtype)
    saved, dy = saved_of(x, name), rng.normal(size=(rows, outputs)).astype(dtype)
    want = gate(matmul(exact(dy), exact(w).T, p), exact(saved), ACTIVATIONS[name], p)
    dz, partial = kernels.data_gradient(dy, w, saved, name)
    assert_within(dz, want, f"dz {shape}")
    tile = kernels.sizes_of_tile(dtype)[0]
    for group, got in enumerate(partial):
        part = slice(group * tile, (group + 1) * tile)
        # Of the dz that were written: exactly known.
        assert_within(got, column_sum(exact(dz[part]), p), f"column sums {shape}")


def check_weight_gradient(kernels: Kernels, shape: tuple[int, int, int], dtype: str) -> None:
    rows, _, outputs = shape
    p = Precision.of(dtype)
    x, _, _ = draw_layer(sum(shape), *shape, dtype)
    dz = np.random.default_rng(sum(shape)).normal(size=(rows, outputs)).astype(dtype)
    depth = kernels.sizes_of_tile(dtype)[2]
    for slices in (1, 2, 3):
        of_slice = depth * -(-rows // (depth * slices))
        parts = kernels.weight_gradient(x, dz, of_slice)
        for i, got in enumerate(parts):
            part = slice(i * of_slice, (i + 1) * of_slice)
            want = matmul(exact(x[part]).T, exact(dz[part]), p)
            assert_within(got, want, f"dw {shape}, slice {i} of {len(parts)}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged(kernels: Kernels, dtype: str) -> None:
    for shape in shapes():
        check_forward(kernels, shape, dtype, "relu")
        check_data_gradient(kernels, shape, dtype, "relu")
        check_weight_gradient(kernels, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(kernels: Kernels, name: str, dtype: str) -> None:
    check_forward(kernels, (9, 7, 11), dtype, name)
    check_data_gradient(kernels, (9, 7, 11), dtype, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", ["small", "large"])
def test_shipped_tiles(kernels: Kernels, tile: str, dtype: str) -> None:
    kernels.tile = TILES[tile]
    for shape in SHIPPED:
        check_forward(kernels, shape, dtype, "tanh")
        check_data_gradient(kernels, shape, dtype, "tanh")
        check_weight_gradient(kernels, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_exact_on_integers(kernels: Kernels, tile: str, dtype: str) -> None:
    kernels.tile = TILES[tile]
    rows, inputs, outputs = (18, 300, 19) if tile == "tiny" else (129, 70, 65)
    x, w = integers(1, dtype, rows, inputs), integers(2, dtype, inputs, outputs)
    b, dz = integers(3, dtype, outputs), integers(4, dtype, rows, outputs)
    wx, ww, wb, wdz = (each.astype(np.int64) for each in (x, w, b, dz))
    a, _ = kernels.forward(x, w, b, "relu")
    np.testing.assert_array_equal(a, np.maximum(wx @ ww + wb, 0))
    got, partial = kernels.data_gradient(dz, w, x, "relu")
    want = (wdz @ ww.T) * (wx > 0)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(partial.sum(0), want.sum(0))
    parts = kernels.weight_gradient(x, dz, 8)
    np.testing.assert_array_equal(parts.sum(0), wx.T @ wdz)


def everything(kernels: Kernels, dtype: str, shape: tuple[int, int, int]) -> list[bytes]:
    rows, _, outputs = shape
    x, w, b = draw_layer(5, *shape, dtype)
    dz = np.random.default_rng(6).normal(size=(rows, outputs)).astype(dtype)
    found = [
        *kernels.forward(x, w, b, "gelu", keep_z=True),
        *kernels.data_gradient(dz, w, x, "silu"),
        kernels.weight_gradient(x, dz, 8),
    ]
    return [each.tobytes() for each in found if each is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 7, 10), (16, 8, 12)], ids=["ragged", "packs"])
def test_bits_are_those_of_any_run(
    kernels: Kernels, shape: tuple[int, int, int], dtype: str
) -> None:
    """Of poisoned outputs, of unaligned ones, with the blocks of a grid in another order."""
    want = everything(kernels, dtype, shape)
    for poison in POISONS:
        kernels.poison = poison
        assert everything(kernels, dtype, shape) == want, poison
    kernels.shift = np.dtype(dtype).itemsize
    assert everything(kernels, dtype, shape) == want, "unaligned"
    emulated_cuda.reversed_blocks(True)
    try:
        assert everything(kernels, dtype, shape) == want, "blocks in reverse"
    finally:
        emulated_cuda.reversed_blocks(False)


def test_unaligned_inputs_give_the_bits_of_aligned_ones(kernels: Kernels) -> None:
    def moved(array: Any) -> Any:
        place = np.empty(array.size + 5, array.dtype)
        start = (4 - place.ctypes.data // 4) % 4 + 1  # one number past a 16-byte boundary
        view = place[start : start + array.size].reshape(array.shape)
        view[...] = array
        return view

    x, w, b = draw_layer(5, 9, 8, 12, "float32")
    want, _ = kernels.forward(x, w, b, "relu")
    got, _ = kernels.forward(moved(x), moved(w), moved(b), "relu")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_batch_and_tile(kernels: Kernels, dtype: str) -> None:
    x, w, b = draw_layer(7, 70, 13, 9, dtype)
    want, _ = kernels.forward(x, w, b, "tanh")
    some = np.array([69, 3, 3, 40])
    got, _ = kernels.forward(np.ascontiguousarray(x[some]), w, b, "tanh")
    np.testing.assert_array_equal(got, want[some])
    for tile in (SMALL, LARGE):
        kernels.tile = tile
        got, _ = kernels.forward(x, w, b, "tanh")
        np.testing.assert_array_equal(got, want, err_msg=f"tile {tile}")


def test_nan_stays_in_its_row(kernels: Kernels) -> None:
    x, w, b = draw_layer(8, 9, 7, 10, "float32")
    x[4, 2], x[6, 0] = np.nan, np.inf
    for name in ACTIVATIONS:
        a, _ = kernels.forward(x, w, b, name)
        assert np.isnan(a[4]).all(), name
        assert np.isfinite(np.delete(a, (4, 6), axis=0)).all(), name


def test_no_rows(kernels: Kernels) -> None:
    x, w, b = draw_layer(8, 0, 7, 10, "float32")
    a, _ = kernels.forward(x, w, b, "relu")
    assert a.shape == (0, 10)
