"""The normalisations of csrc/cuda on the processor, against proved bounds."""

from __future__ import annotations

from typing import Any

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import Kernels, state_at

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Status
from fastneuron.layers import BatchNorm, LayerNorm
from fastneuron.testing import (
    POISONS,
    Bounded,
    Precision,
    activate,
    assert_within,
    by_moments,
    by_statistics,
    exact,
    moved_statistics,
    norm_backward,
    norm_forward,
    norm_gradients,
)

DTYPES = ("float32", "float64")
#: Rows around a group of 8, columns around a warp's 32 and a pack.
SHAPES = ((1, 1), (2, 5), (8, 32), (9, 33), (26, 4))
GROUP = 8


@pytest.fixture
def kernels(cuda_kernels: Kernels) -> Kernels:
    cuda_kernels.poison, cuda_kernels.shift = "nan", 0
    return cuda_kernels


def drawn(seed: int, dtype: str, rows: int, columns: int) -> list[Any]:
    """x, dy (rows, columns), weight, bias (columns,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (rows, columns))
    arrays = (x, rng.normal(size=x.shape), rng.normal(1, 0.5, columns), rng.normal(size=columns))
    return [each.astype(dtype) for each in arrays]


def only(bounded: Bounded) -> Bounded:
    """Of one row or column, as a vector."""
    return Bounded(bounded.value.ravel(), bounded.bound.ravel())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_moments(kernels: Kernels, kind: type, dtype: str) -> None:
    p = Precision.of(dtype)
    for i, shape in enumerate(SHAPES):
        x = drawn(i, dtype, *shape)[0]
        layer = kind(shape[1], epsilon=1e-3)
        want = by_moments(layer, exact(x), p)
        if kind is BatchNorm:
            mean, variance, inverse = kernels.column_moments(x, layer.epsilon, GROUP)
            assert_within(variance, only(want.variance), f"variance {shape}")
        else:
            mean, inverse = kernels.row_moments(x, layer.epsilon)
        assert_within(mean, only(want.mean), f"mean {shape}")
        assert_within(inverse, only(want.inverse), f"inverse {shape}")


def moments_of(kernels: Kernels, layer: Any, x: Any) -> tuple[Any, Any, bool]:
    """Mean and inverse, and whether they are of rows."""
    if isinstance(layer, LayerNorm):
        return *kernels.row_moments(x, layer.epsilon), True
    mean, _, inverse = kernels.column_moments(x, layer.epsilon, GROUP)
    return mean, inverse, False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [BatchNorm, LayerNorm])
def test_forward_and_backward(kernels: Kernels, kind: type, dtype: str) -> None:
    p = Precision.of(dtype)
    for i, shape in enumerate(SHAPES):
        x, dy, weight, bias = drawn(i, dtype, *shape)
        layer = kind(shape[1], epsilon=1e-3)
        want = by_moments(layer, exact(x), p)
        mean, inverse, of_rows = moments_of(kernels, layer, x)
        for b in (bias, None):
            a, z = kernels.norm_forward("silu", x, mean, inverse, of_rows, weight, b)
            y = norm_forward(want, weight, b, p)
            assert_within(z, y, f"z {shape}")
            assert_within(a, activate(y, ACTIVATIONS["silu"], p), f"a {shape}")
        sums = kernels.norm_gradients(x, mean, inverse, of_rows, dy, GROUP)
        for got, bounded in zip(sums, norm_gradients(want, exact(dy), p), strict=True):
            assert_within(got, bounded, f"sums {shape}")
        if of_rows:
            dx = kernels.layer_backward(x, mean, inverse, weight, dy)
        else:
            dx = kernels.batch_backward(x, mean, inverse, weight, dy, sums)
        assert_within(dx, norm_backward(want, weight, exact(dy), p), f"dx {shape}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics(kernels: Kernels, dtype: str) -> None:
    p = Precision.of(dtype)
    for i, shape in enumerate(SHAPES):
        x, dy, weight, bias = drawn(i, dtype, *shape)
        layer = BatchNorm(shape[1], momentum=0.3)
        running = bias, np.abs(weight)
        mean, variance, inverse = kernels.column_moments(x, layer.epsilon, GROUP)
        want = moved_statistics(layer, running, by_moments(layer, exact(x), p), p)
        got = kernels.move_statistics(mean, variance, running, 0.3, len(x), state_at(0))
        for each, bounded in zip(got, want, strict=True):
            assert_within(each, bounded, f"moved {shape}")
        state = state_at(0)
        state["status"] = Status.GRADIENT_NOT_FINITE
        got = kernels.move_statistics(mean, variance, running, 0.3, len(x), state)
        for each, before in zip(got, running, strict=True):
            np.testing.assert_array_equal(each, before)
        normal = by_statistics(layer, exact(x), running, p)
        inverse = (1 / np.sqrt(running[1] + x.dtype.type(layer.epsilon))).astype(dtype)
        dx = kernels.batch_backward(x, running[0], inverse, weight, dy, None)
        assert_within(dx, norm_backward(normal, weight, exact(dy), p), f"dx {shape}")


def test_a_variance_that_is_not_finite_gives_nan(kernels: Kernels) -> None:
    x = np.ones((4, 3), np.float32)
    x[2, 1] = 1e30  # its square is infinite
    inverse = kernels.column_moments(x, 1e-5, GROUP)[2]
    assert np.isnan(inverse).tolist() == [False, True, False]
    assert np.isnan(kernels.row_moments(x, 1e-5)[1]).tolist() == [False, False, True, False]


def everything(kernels: Kernels, dtype: str) -> list[bytes]:
    found = []
    x, dy, weight, bias = drawn(3, dtype, 9, 33)
    for layer in (BatchNorm(33), LayerNorm(33)):
        mean, inverse, of_rows = moments_of(kernels, layer, x)
        found += [mean, inverse]
        found += kernels.norm_forward("relu", x, mean, inverse, of_rows, weight, bias)
        found += (sums := kernels.norm_gradients(x, mean, inverse, of_rows, dy, GROUP))
        if of_rows:
            found.append(kernels.layer_backward(x, mean, inverse, weight, dy))
        else:
            found.append(kernels.batch_backward(x, mean, inverse, weight, dy, sums))
    return [each.tobytes() for each in found]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_any_run(kernels: Kernels, dtype: str) -> None:
    """Of poisoned outputs, of unaligned ones, with the blocks of a grid in another order."""
    want = everything(kernels, dtype)
    for poison in ("inf", "bytes"):
        assert poison in POISONS
        kernels.poison = poison
        assert everything(kernels, dtype) == want, poison
    kernels.shift = np.dtype(dtype).itemsize
    assert everything(kernels, dtype) == want, "unaligned"
    emulated_cuda.reversed_blocks(True)
    try:
        assert everything(kernels, dtype) == want, "blocks in reverse"
    finally:
        emulated_cuda.reversed_blocks(False)
