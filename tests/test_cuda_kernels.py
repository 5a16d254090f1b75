"""No CUDA kernel without its layers of tests: what the sources alone can tell of that."""

from __future__ import annotations

import shutil
from pathlib import Path

import cuda_kernels
import pytest
from cuda_kernels import called_in_emulation, entries_of, factories, in_cpp


def test_the_sources_are_read_right() -> None:
    assert {"products.forward", "losses.loss_rows", "fused.fused_step"} <= factories()
    assert not {name for name in factories() if name.startswith("driver.")}
    kernels = in_cpp()
    assert kernels["product"] == "products.h"
    text = "".join(path.read_text("utf-8") for path in cuda_kernels.CPP.glob("*.[ch]*"))
    # One of them is the definition by which the emulation does without the word.
    assert len(kernels) == text.count("__global__") - 1
    assert entries_of("squares") == {"clip"}
    assert entries_of("product") == {"forward", "data_gradient", "weight_gradient"}


@pytest.mark.parametrize("kernel", sorted(in_cpp()))
def test_every_kernel_in_cpp_is_run_in_the_emulation(kernel: str) -> None:
    entries = entries_of(kernel)
    assert entries, f"no function of kernels.h starts {kernel} ({in_cpp()[kernel]})"
    assert entries & called_in_emulation(), f"emulated_cuda.Kernels calls none of {entries}"


FACTORY = """
@cache
def planted(dtype: str) -> Any:
    def nobody_tests_this(x):
        x[0] = 0

    return kernel(nobody_tests_this)
"""
KERNEL = """
template <class T> __global__ void __launch_bounds__(RUN_THREADS)
    planted(T *x) { x[0] = 0; }

extern "C" int fn_cuda_planted(void *x, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream), dim3(1), dim3(1), planted<float>, x);
}
"""


def test_a_new_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms, sources = tmp_path / "numba_cuda", tmp_path / "cuda"
    shutil.copytree(cuda_kernels.NUMBA, rooms)
    shutil.copytree(cuda_kernels.CPP, sources)
    for file, text in ((rooms / "sums.py", FACTORY), (sources / "norms.cu", KERNEL)):
        file.write_text(file.read_text("utf-8") + text, "utf-8")
    before = factories()
    monkeypatch.setattr(cuda_kernels, "NUMBA", rooms)
    monkeypatch.setattr(cuda_kernels, "CPP", sources)
    assert factories.__wrapped__() - before == {"sums.planted"}
    assert in_cpp()["planted"] == "norms.cu"
    assert entries_of("planted") == {"planted"}
    assert not entries_of("planted") & called_in_emulation()
