"""What layer 3 must find in the C++ kernels: a bias or a row that is dropped, a tail one off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import emulated_cuda
import pytest
import test_cuda_passes
import test_cuda_products
from emulated_cuda import SOURCES, TINY, Kernels
from planting import planted_folder

from fastneuron.losses import LOSSES


def products(kernels: Kernels) -> None:
    kernels.tile = TINY
    test_cuda_products.test_exact_on_integers(kernels, "tiny", "float32")


def ragged(kernels: Kernels) -> None:
    kernels.tile = TINY
    test_cuda_products.check_forward(kernels, (9, 5, 7), "float32", "relu")


def column_sums(kernels: Kernels) -> None:
    test_cuda_passes.test_column_sums_exact_on_integers(kernels, "float32")


def bias(kernels: Kernels) -> None:
    test_cuda_passes.test_bias_act_forward(kernels, "relu", "float32")


def dropped(kernels: Kernels) -> None:
    test_cuda_passes.test_dropout(kernels, "float32")


def losses(kernels: Kernels) -> None:
    for name in sorted(LOSSES):
        test_cuda_passes.test_losses(kernels, name, False, "float32")


#: Where: a file, what it holds, and what instead. The rooms to build, and what must fail.
FAULTS: dict[str, tuple[tuple[str, str, str], tuple[str, ...], Callable[[Kernels], None]]] = {
    "forward without its bias": (
        ("products.h", "? bias[column] : T(0)", "? T(0) : T(0)"), ("products",), products,
    ),
    "a column without its bias": (
        ("products.h", "column < columns ? bias", "column < columns - 1 ? bias"),
        ("products",), ragged,
    ),
    "the last line of an operand left out": (
        ("tiles.h", "line >= lines", "line >= lines - 1"), ("products",), products,
    ),
    "the last number of a line left out": (
        ("tiles.h", "at + i < width", "at + i < width - 1"), ("products",), ragged,
    ),
    "a row past the last written": (
        ("products.h", "my_row >= form.rows", "my_row > form.rows"), ("products",), products,
    ),
    "the bias gradient of a tile without its last threads": (
        ("products.h", "d < Tile::DOWN", "d < Tile::DOWN - 1"), ("products", "updates"), products,
    ),
    "a row of a bias gradient left out": (
        ("sums.h", "? rows : first", "? rows - 1 : first"), ("elementwise", "updates"),
        column_sums,
    ),
    "a part of a bias gradient left out": (
        ("sums.h", "part < parts.lines", "part < parts.lines - 1"), ("elementwise", "updates"),
        column_sums,
    ),
    "the last column without its bias": (
        ("elementwise.cu", "bias && at + i < z.width", "bias && at + i < z.width - 1"),
        ("elementwise",), bias,
    ),
    "the last row of the mean loss left out": (
        ("losses.h", "row < rows; row += threads", "row < rows - 1; row += threads"), ("losses",),
        losses,
    ),
    "the last row of dropout not written": (
        ("elementwise.cu", "four * 4 + i < rows", "four * 4 + i < rows - 1"), ("elementwise",),
        dropped,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, cuda_kernels: Kernels, tmp_path: Path) -> None:
    fault, rooms, check = FAULTS[name]
    cuda_kernels.poison, cuda_kernels.shift = "nan", 0
    check(cuda_kernels)
    sources = planted_folder(SOURCES, tmp_path / "sources", *fault)
    flags = "-DFN_ONLY_TINY", "-DFN_ONLY_SINGLE"
    library = emulated_cuda.build(tmp_path, *flags, sources=sources, rooms=rooms)
    with pytest.raises(AssertionError):
        check(Kernels(library))
