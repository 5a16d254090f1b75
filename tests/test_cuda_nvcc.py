"""What nvcc and ptxas make of csrc/cuda, where they are: no card is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cuda_kernels import in_cpp
from cuda_tools import program
from emulated_cuda import KERNELS, SOURCES

from fastneuron.kernels.constants import header

#: Registers a thread of the large tile of float32, or of a small network's block, may have: two
#: blocks of 256 threads share the 65,536 of a multiprocessor.
MOST_REGISTERS = 128
CARDS = ("sm_80", "sm_90", "sm_100")


def tool(name: str) -> str:
    """Path of one of the toolkit's programs."""
    found = program(name)
    if found is None:
        pytest.skip(f"there is no {name} here (pip install nvidia-cuda-nvcc)")
    return found


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 kernels as PTX for the oldest card, which all newer ones take."""
    nvcc = tool("nvcc")
    folder = tmp_path_factory.mktemp("ptx")
    (folder / "constants.h").write_text(header(), encoding="utf-8")
    names = KERNELS
    text = "".join(f'#include "{name}.cu"\n' for name in names)
    (folder / "all.cu").write_text(text, encoding="utf-8")
    flags = [
        "-std=c++17",
        "-O3",
        "-fmad=false",
        "-arch=compute_80",
        "-DFN_ONLY_SINGLE",
        f"-I{folder}",
        f"-I{SOURCES}",
    ]
    command = [nvcc, *flags, "-ptx", str(folder / "all.cu"), "-o", str(folder / "all.ptx")]
    made = subprocess.run(command, text=True, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr, made.stderr
    return folder / "all.ptx"


def entries(ptx: Path) -> dict[str, str]:
    """Mangled name and text of every kernel."""
    parts = re.split(r"\.entry ", ptx.read_text("utf-8"))[1:]
    found = {part.split("(")[0]: part for part in parts}
    # Rows are gathered in float64 too, whatever else is compiled.
    return {name: part for name, part in found.items() if not re.search(r"gatherI[dl]E", name)}


def test_every_kernel_is_compiled(ptx: Path) -> None:
    """As PTX, and so in what is asked of its registers, spills and float64."""
    made = " ".join(entries(ptx))
    missing = {k: file for k, file in in_cpp().items() if f"{len(k)}{k}" not in made}
    assert missing == {}, "add their files to those that are compiled here"


#: Those that hold float64 numbers by design: sums over the batch, scalars of the optimizer.
FLOAT64 = ("batch_loss", "squares", "update", "dropout", "clip", "ensemble_steps")
#: A small network's block, by what may lie in shared memory: two ways of a prediction, three of
#: the steps of an ensemble.
FUSED = re.compile(r"fused_(?:step|forward)If|ensemble_stepsIf")


def test_float32_kernels_know_no_float64(ptx: Path) -> None:
    found = {
        name: text.count(".f64")
        for name, text in entries(ptx).items()
        if not any(word in name for word in FLOAT64)
    }
    assert len(found) >= 16, found
    assert {name: count for name, count in found.items() if count} == {}


def test_products_load_and_store_16_bytes_at_once(ptx: Path) -> None:
    names = [name for name in entries(ptx) if re.search(r"7productIf4TileILi(128|64)", name)]
    assert len(names) == 6
    for name in names:
        text = entries(ptx)[name]
        assert re.search(r"ld\.global(\.nc)?\.v4", text), name
        assert re.search(r"ld\.shared\.v4", text), name
        assert re.search(r"st\.global\.v4", text), name


def test_small_networks_load_and_store_16_bytes_at_once(ptx: Path) -> None:
    found = {name: text for name, text in entries(ptx).items() if FUSED.search(name)}
    assert len(found) == 6
    for name, text in found.items():
        assert len(re.findall(r"ld\.shared\.v4\.f32", text)) >= 4, name
        assert re.search(r"st\.shared\.v4\.f32", text), name
        # Of which memory, is known everywhere, and nothing that registers should hold is local.
        assert not re.search(r"\b(?:ld|st)\.(?:v[24]\.)?[fsub]\d+|\.local\.", text), name
        # What is read by itself: for losses, and on the way home.
        assert text.count("ld.shared.f32") < text.count("fma.rn.f32") / 4, name
        if "ensemble" in name:
            assert re.search(r"ld\.global\.v4\.f32", text), name
            assert re.search(r"st\.global\.v4\.f32", text), name


@pytest.mark.parametrize("card", CARDS)
def test_registers_and_spills(ptx: Path, card: str) -> None:
    command = [tool("ptxas"), "-v", f"-arch={card}", str(ptx), "-o", "/dev/null"]
    said = subprocess.run(command, text=True, capture_output=True, check=True).stderr
    found = re.findall(
        r"entry function '(\w+)' for.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        said, re.DOTALL,
    )  # fmt: skip
    assert len(found) >= len(entries(ptx))
    limited = {
        name: int(registers)
        for name, _, registers in found
        if "7productIf" in name or FUSED.search(name)
    }
    assert len(limited) == 6 + 6
    assert {name: n for name, n in limited.items() if n > MOST_REGISTERS} == {}
    assert {name: spills for name, spills, _ in found if int(spills)} == {}
