"""The CUDA kernels under ThreadSanitizer, which must see each barrier that is taken away.

And under AddressSanitizer, which sees a read past an array, whatever becomes of the number.

Also what the emulation itself finds: a barrier that some threads pass by, a write past a shared
array, too much shared memory; and what the compiler does, a float64 number in float32 code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import emulated_cuda
import pytest
from emulated_cuda import ROOMS, SOURCES
from planting import planted_folder

SCRIPT = Path(__file__).with_name("emulated_cuda_races.py")
BARRIER = "__syncthreads();"


@cache
def checker(kind: str) -> str:
    """Path of the run-time that checks threads or addresses."""
    name = f"lib{kind[0]}san.so"
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def _can_run() -> None:
    if emulated_cuda.problem():
        pytest.skip(emulated_cuda.problem())


def run(folder: Path, rooms: tuple[str, ...], sources: Path, checked: str = "") -> tuple[int, str]:
    """Build rooms of `sources` for float32 and run them, "thread" or "address" checked.

    Return the exit status and what was said.
    """
    folder.mkdir()
    flags = ["-DFN_ONLY_TINY", "-DFN_ONLY_SINGLE"]
    flags += [f"-fsanitize={checked}", "-g"] if checked else []
    library = emulated_cuda.build(folder, *flags, sources=sources, rooms=rooms)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "TSAN_OPTIONS": "halt_on_error=1"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # the interpreter's
    if checked:
        environment["LD_PRELOAD"] = checker(checked)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(library), *rooms],
        text=True, capture_output=True, check=False, timeout=900, env=environment,
    )  # fmt: skip
    return done.returncode, done.stderr


def planted(folder: Path, *fault: Any) -> Path:
    """Return a copy of the sources with a fault in it."""
    return planted_folder(SOURCES, folder / "sources", *fault)


@pytest.fixture
def thread_checker() -> None:
    if checker("thread") == "libtsan.so":
        pytest.skip("this g++ is without ThreadSanitizer's run-time, libtsan")


@pytest.fixture
def address_checker() -> None:
    if checker("address") == "libasan.so":
        pytest.skip("this g++ is without AddressSanitizer's run-time, libasan")


@pytest.mark.usefixtures("thread_checker")
def test_no_races(tmp_path: Path) -> None:
    status, said = run(tmp_path / "built", ROOMS, SOURCES, "thread")
    assert status == 0, said[-4000:]


def barriers() -> list[tuple[str, int]]:
    """(file, how many-th) of every barrier of the kernels."""
    return [
        (path.name, i)
        for path in sorted(SOURCES.glob("*.[ch]*"))
        if path.name != "emulation.h"
        for i in range(path.read_text("utf-8").count(BARRIER))
    ]


def rooms_of(file: str) -> tuple[str, ...]:
    """The rooms to build where a file is changed."""
    rooms = {
        "sums": ("elementwise", "updates", "ensemble"),
        "fused": ("fused", "ensemble"),
        "ensemble": ("ensemble",),
    }
    return rooms.get(Path(file).stem, ("products",))


@pytest.mark.usefixtures("thread_checker")
@pytest.mark.parametrize(("file", "which"), barriers())
def test_a_missing_barrier_is_found(tmp_path: Path, file: str, which: int) -> None:
    sources = planted(tmp_path, file, BARRIER, "", which)
    status, said = run(tmp_path / "built", rooms_of(file), sources, "thread")
    assert status != 0
    assert "ThreadSanitizer: data race" in said, said[-4000:]


@pytest.mark.usefixtures("address_checker")
def test_nothing_is_read_past_an_array(tmp_path: Path) -> None:
    status, said = run(tmp_path / "built", ROOMS, SOURCES, "address")
    assert status == 0, said[-4000:]


@pytest.mark.usefixtures("address_checker")
def test_a_read_past_an_array_is_found(tmp_path: Path) -> None:
    """Of the bias, by threads whose columns do not exist: no result shows it."""
    sources = planted(tmp_path, "products.h", "bias && column < columns", "bias")
    status, said = run(tmp_path / "built", ("products",), sources, "address")
    assert status != 0
    assert "AddressSanitizer: heap-buffer-overflow" in said, said[-4000:]


def test_a_barrier_that_some_pass_by_is_found(tmp_path: Path) -> None:
    sources = planted(tmp_path, "tiles.h", BARRIER, f"if (thread != 3) {BARRIER}")
    status, said = run(tmp_path / "built", ("products",), sources)
    assert status != 0
    assert "wait at a barrier that others never come to" in said, said[-4000:]


def test_a_write_past_a_shared_array_is_found(tmp_path: Path) -> None:
    sources = planted(
        tmp_path, "tiles.h", "2 * Right::NUMBERS", "2 * Right::NUMBERS - Right::SIZE - 1"
    )
    status, said = run(tmp_path / "built", ("products",), sources)
    assert status != 0
    assert "a write past the end of a shared array" in said, said[-4000:]


def test_a_write_past_a_launched_array_is_found(tmp_path: Path) -> None:
    size = "static_cast<size_t>(network->numbers) * sizeof(T)"
    # By less than the guard, or more would be lost than is found.
    sources = planted(tmp_path, "ensemble.cu", size, f"{size} - 16")
    status, said = run(tmp_path / "built", ("ensemble",), sources)
    assert status != 0
    assert "a write past the end of a shared array" in said, said[-4000:]


def test_more_shared_memory_than_was_asked_for_is_found(tmp_path: Path) -> None:
    sources = planted(tmp_path, "platform.h", "LAUNCHED_BYTES = 96 << 10", "LAUNCHED_BYTES = 64")
    sources = planted_folder(sources, tmp_path / "more", "fused.h", "<= LAUNCHED_BYTES", "> 0")
    status, said = run(tmp_path / "built", ("fused",), sources)
    assert status != 0
    assert "takes more shared memory than its kernel was given" in said, said[-4000:]


def test_too_much_shared_memory_is_found(tmp_path: Path) -> None:
    sources = planted(tmp_path, "tiles.h", "2 * Right::NUMBERS", "500 * Right::NUMBERS")
    status, said = run(tmp_path / "built", ("products",), sources)
    assert status != 0
    assert "more shared memory than 48 KiB" in said, said[-4000:]


def test_a_float64_constant_in_float32_code_is_found(tmp_path: Path) -> None:
    sources = planted(tmp_path, "functions.h", "T(0.01) * z", "0.01 * z")
    with pytest.raises(RuntimeError, match=re.escape("double-promotion")):
        run(tmp_path / "built", ("products",), sources)
