"""What layer 3 must find in the C++ kernels: a bias or a row that is dropped, a tail one off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import emulated_cuda
import pytest
import test_cuda_fused
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


def block(kernels: Kernels) -> None:
    for name in ("ragged", "saves z"):
        test_cuda_fused.test_a_step_is_within_its_bounds(kernels, name, False)


def prediction(kernels: Kernels) -> None:
    for name in ("ragged", "saves z"):
        test_cuda_fused.check_predictions(kernels, name, "parameters")


def models(kernels: Kernels) -> None:
    for own in (False, True):
        for name in ("ragged", "classes"):
            test_cuda_fused.check_steps(kernels, name, "both" if own else "neither", own=own)


def failed(kernels: Kernels) -> None:
    test_cuda_fused.test_a_model_that_has_failed_or_is_done_stays_as_it_is(kernels)


def not_there(kernels: Kernels) -> None:
    test_cuda_fused.test_what_is_not_finite_in_rows_that_are_not_there_is_not_summed(kernels)


_BLOCK, _MODELS = ("fused", "updates", "elementwise"), ("ensemble", "updates")
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
    "a small network without its bias": (
        ("fused.h", "bias[column + j] : T(0)", "0 * bias[column + j] : T(0)"), ("fused",),
        prediction,
    ),
    "a small network's last column without its bias": (
        ("fused.h", "bias_at && column + j < outputs", "bias_at && column + j < outputs - 1"),
        ("fused",), prediction,
    ),
    "the last input of a small network left out": (
        ("fused.h", "k < inputs; k++", "k < inputs - 1; k++"), ("fused",), prediction,
    ),
    "the last row of a small network's bias gradient left out": (
        ("fused.h", "total += four[k]", "total += row + k < count - 1 ? four[k] : T(0)"),
        _BLOCK, block,
    ),
    "the last rows of a small network's weight gradient left out": (
        ("fused.h", "row < count; row += 4) {\n                T x[4][4]",
         "row < count - 4; row += 4) {\n                T x[4][4]"), _BLOCK, block,
    ),
    "a small network's slope of the layer above": (
        ("fused.h", "gated(below.activation, T(1)", "gated(layer.activation, T(1)"), _BLOCK, block,
    ),
    "the weight of the layer above in a delta": (
        ("fused.h", "index > 0 && index < net.layers - 1", "index < 0"), _BLOCK, block,
    ),
    "the gaps between gradients not cleared": (
        ("fused.cu", "mine[i] = 0;", "mine[i] = mine[i];"), _BLOCK, block,
    ),
    "another model's parameters in a prediction": (
        ("fused.cu", "p + model * net.flat", "p + model * (net.flat - 16)"), ("fused",), prediction,
    ),
    "another model's rows": (
        ("ensemble.cu", "model * e.x_apart", "model * (e.x_apart - 1)"), _MODELS, models,
    ),
    "all models on the first one's rows": (
        ("ensemble.cu", "data.x += model * e.x_apart;", ""), _MODELS, models,
    ),
    "all models by the first one's scalars": (
        ("ensemble.cu", "e.tables == 1 ? 0 : model", "0"), _MODELS, models,
    ),
    "only the last tile of a batch in the gradient": (
        ("fused.h", "adds ? *place + sum : sum", "adds ? sum : sum"), _MODELS, models,
    ),
    "the last row of a model's mean loss left out": (
        ("losses.h", "row < rows; row += threads", "row < rows - 1; row += threads"),
        ("ensemble", "updates"), models,
    ),
    "the gaps of a gradient in shared memory not cleared": (
        ("ensemble.cu", "g[i] = 0;", "g[i] = g[i];"), _MODELS, models,
    ),
    "the decay of another model's biases": (
        ("ensemble.cu", "e.marks + start / FN_RUN", "e.marks"), _MODELS, models,
    ),
    "a model that has failed goes on": (
        ("ensemble.cu", "&& status == STATUS_OK", ""), _MODELS, failed,
    ),
    "rows past the batch not kept at zero": (
        ("fused.h", "a[i] = i < there ?", "a[i] = i < 4 ?"), _MODELS, not_there,
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
