"""The CUDA kernels of csrc/cuda, made by a C++ compiler over emulation.h and driven by ctypes.

Each of the functions of `Kernels` allocates poisoned outputs between guard bytes, checks these
afterwards, and returns copies of the outputs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.constants import header
from fastneuron.testing import POISONS, poisoned

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
#: Warnings are errors: among them a float32 number that becomes float64 unasked.
FLAGS = (
    *("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-pthread"),
    *("-fPIC", "-shared", "-Wall", "-Wextra", "-Wdouble-promotion", "-Wno-unknown-pragmas"),
    *("-Werror", "-DFN_EMULATED"),
)
ROOMS = ("products",)
LARGE, SMALL, TINY = range(3)
GUARD, GUARD_BYTES = 0xA5, 64

Array = np.ndarray[Any, Any]


@cache
def problem() -> str:
    """Return why the emulation cannot be built here, or nothing."""
    if shutil.which("g++") is None:
        return "the emulation of CUDA needs g++, and there is none"
    text = "#include <barrier>\n#include <thread>\nstd::barrier<> b(1);\n"
    command = ["g++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    tried = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if tried.returncode:
        return "the emulation of CUDA needs a g++ with C++20's std::barrier (11 or newer)"
    return ""


def command(
    folder: Path, *flags: str, sources: Path = SOURCES, rooms: Sequence[str] = ROOMS
) -> Any:
    """Return the compiler's command that makes ``folder / "emulated.so"``."""
    (folder / "constants.h").write_text(header(), encoding="utf-8")
    files = [str(sources / f"{room}.cu") for room in rooms]
    includes = [f"-I{folder}", f"-I{sources}"]
    return ["g++", *FLAGS, *flags, *includes, "-x", "c++", *files, "-o", f"{folder}/emulated.so"]


def build(folder: Path, *flags: str, **what: Any) -> Path:
    """Compile the kernels into `folder`; the compiler's words are in the error."""
    made = subprocess.run(
        command(folder, *flags, **what), text=True, capture_output=True, check=False
    )
    if made.returncode:
        raise RuntimeError(made.stderr)
    return folder / "emulated.so"


class Out:
    """A poisoned output with guard bytes on both sides, `shift` bytes off a 16-byte boundary."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, poison: str, shift: int = 0) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._all = np.full(size + 2 * GUARD_BYTES + 32, GUARD, np.uint8)
        start = GUARD_BYTES + -(self._all.ctypes.data + GUARD_BYTES) % 16 + shift
        self.array = self._all[start : start + size].view(dtype).reshape(shape)
        self.array[...] = poisoned(shape, dtype, poison)
        self._range = start, start + size

    def taken(self) -> Array:
        """Return a copy of what was written; fails where a guard byte was."""
        start, end = self._range
        assert (self._all[:start] == GUARD).all(), "a write before an output"
        assert (self._all[end:] == GUARD).all(), "a write past an output"
        return self.array.copy()


def _at(array: Array | Out | None) -> ctypes.c_void_p:
    if array is None:
        return ctypes.c_void_p()
    got = array.array if isinstance(array, Out) else array
    assert got.flags.c_contiguous
    return ctypes.c_void_p(got.ctypes.data)


class Kernels:
    """The functions of kernels.h on NumPy arrays; outputs are poisoned with `poison`."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self.poison = "nan"
        self.tile = TINY
        self.shift = 0

    def _out(self, shape: tuple[int, ...], dtype: Any) -> Out:
        return Out(shape, dtype, self.poison, self.shift)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, f"fn_cuda_{name}")
        stream = ctypes.c_void_p()
        assert function(*arguments, stream) == 0, f"{name} did not start"

    def sizes_of_tile(self, dtype: Any) -> tuple[int, int, int]:
        """Rows, columns, depth of the tile in use."""
        sizes = (ctypes.c_int * 3)()
        assert self._library.fn_cuda_tile(_code(dtype), self.tile, sizes) > 0
        return sizes[0], sizes[1], sizes[2]

    def forward(
        self, x: Array, w: Array, b: Array | None, activation: str, keep_z: bool = False
    ) -> tuple[Array, Array | None]:
        """Return a and z."""
        rows, inputs, outputs = len(x), *w.shape
        a = self._out((rows, outputs), x.dtype)
        z = self._out((rows, outputs), x.dtype) if keep_z else None
        self._call(
            "forward", _code(x.dtype), self.tile, ACTIVATIONS[activation].code,
            *map(_at, (x, w, b, a, z)), rows, inputs, outputs,
        )  # fmt: skip
        return a.taken(), None if z is None else z.taken()

    def data_gradient(
        self, dz_above: Array, w: Array, saved: Array | None, activation: str, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dz and the partial column sums."""
        rows, inputs, outputs = len(dz_above), *w.shape
        dz = self._out((rows, inputs), w.dtype)
        groups = -(-rows // self.sizes_of_tile(w.dtype)[0])
        partial = self._out((groups, inputs), w.dtype) if bias else None
        self._call(
            "data_gradient", _code(w.dtype), self.tile, ACTIVATIONS[activation].code,
            *map(_at, (dz_above, w, saved, dz, partial)), rows, inputs, outputs,
        )  # fmt: skip
        return dz.taken(), None if partial is None else partial.taken()

    def weight_gradient(self, x: Array, dz: Array, rows_of_slice: int) -> Array:
        """Return the slices of dw."""
        rows, inputs, outputs = len(x), x.shape[1], dz.shape[1]
        dw = self._out((-(-rows // rows_of_slice), inputs, outputs), x.dtype)
        self._call(
            "weight_gradient", _code(x.dtype), self.tile, *map(_at, (x, dz, dw)),
            rows, inputs, outputs, rows_of_slice,
        )  # fmt: skip
        return dw.taken()


def _code(dtype: Any) -> int:
    return int(np.dtype(dtype) == np.float64)


def reversed_blocks(on: bool) -> None:
    """Let grids run from their last block to their first, or as usual."""
    os.environ.pop("FN_EMULATED_REVERSED", None)
    if on:
        os.environ["FN_EMULATED_REVERSED"] = "1"


assert set(POISONS) >= {"nan", "bytes"}
