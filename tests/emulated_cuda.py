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
from fastneuron.kernels.device_faults import DriverError
from fastneuron.kernels.device_memory import STATE
from fastneuron.losses import Loss
from fastneuron.testing import poisoned

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
#: Warnings are errors: among them a float32 number that becomes float64 unasked.
FLAGS = (
    *("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-pthread"),
    *("-fPIC", "-shared", "-Wall", "-Wextra", "-Wdouble-promotion", "-Wno-unknown-pragmas"),
    *("-Werror", "-DFN_EMULATED"),
)
#: Of kernels.
KERNELS = ("products", "elementwise", "losses", "updates", "norms", "fused", "ensemble")
ROOMS = (*KERNELS, "memory", "calls")
LARGE, SMALL, TINY = range(3)
#: As many that a planted fault, a row past the last, stays inside.
GUARD, GUARD_BYTES = 0xA5, 1024

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
        whole = np.issubdtype(dtype, np.integer)
        self.array[...] = poisoned(shape, dtype, "bytes" if whole else poison)
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
        self.path = library
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

    def gather(self, x: Array, order: Array, bounds: Array | None, step: int, rows: int) -> Array:
        """Return the rows of a step's batch."""
        width = x.shape[1] if x.ndim == 2 else 1
        out = self._out((rows, *x.shape[1:]), x.dtype)
        state = state_at(step)
        self._call(
            "gather", 2 if x.dtype == np.int64 else _code(x.dtype),
            *map(_at, (x, order, bounds, state, out)), len(x), rows, width,
        )  # fmt: skip
        return out.taken()

    def bias_act_forward(self, z: Array, b: Array | None, activation: str) -> Array:
        """Return a."""
        a = self._out(z.shape, z.dtype)
        code = ACTIVATIONS[activation].code
        self._call("bias_act_forward", _code(z.dtype), code, *map(_at, (z, b, a)), *z.shape)
        return a.taken()

    def act_bias_backward(
        self, da: Array, saved: Array, activation: str, rows_of_group: int, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dz and the partial column sums."""
        dz = self._out(da.shape, da.dtype)
        groups = -(-len(da) // rows_of_group)
        partial = self._out((groups, da.shape[1]), da.dtype) if bias else None
        code = ACTIVATIONS[activation].code
        self._call(
            "act_bias_backward", _code(da.dtype), code, *map(_at, (da, saved, dz, partial)),
            *da.shape, rows_of_group,
        )  # fmt: skip
        return dz.taken(), None if partial is None else partial.taken()

    def sum_parts(self, parts: Array, factor: float = 1.0) -> Array:
        """Return factor times the sum over the first axis."""
        sums = self._out(parts.shape[1:], parts.dtype)
        n = int(np.prod(parts.shape[1:]))
        factor_of_c = ctypes.c_double(factor)
        self._call(
            "sum_parts", _code(parts.dtype), _at(parts), factor_of_c, _at(sums), len(parts), n
        )
        return sums.taken()

    def dropout(
        self, x: Array, scalars: Array, step: int, layer: int, dropped: int, rate: float
    ) -> Array:
        """Return y."""
        y, state = self._out(x.shape, x.dtype), state_at(step)
        self._call(
            "dropout", _code(x.dtype), *map(_at, (x, scalars, state)), ctypes.c_uint(layer),
            ctypes.c_uint(dropped), ctypes.c_double(rate), _at(y), *x.shape,
        )  # fmt: skip
        return y.taken()

    def loss_rows(
        self, loss: Loss, out: Array, y: Array, weight: Array | None
    ) -> tuple[Array, Array]:
        """Return the row losses and dout."""
        rows, dout = self._out((len(out),), out.dtype), self._out(out.shape, out.dtype)
        targets, labels = (None, y) if y.ndim == 1 else (y, None)
        self._call(
            "loss_rows", _code(out.dtype), loss.code,
            *map(_at, (out, targets, labels, weight, rows, dout)), *out.shape,
        )  # fmt: skip
        return rows.taken(), dout.taken()

    def batch_loss(self, rows: Array, losses: Array, state: Array) -> None:
        """Write the mean to the step's place in `losses`, or the failure into the state."""
        self._call("batch_loss", _code(rows.dtype), *map(_at, (rows, losses, state)), len(rows))

    def clip(self, g: Array, marks: Array, scalars: Array, state: Array) -> None:
        """Write the scale of the gradient, or the failure, into the state."""
        n = ctypes.c_int64(g.size)
        count = self._library.fn_cuda_norm_parts(n)
        partial = self._out((count,), np.float64)
        self._call("clip", _code(g.dtype), *map(_at, (g, marks, partial, scalars, state)), n)
        partial.taken()

    def update(
        self, kind: int, p: Array, g: Array, moments: Sequence[Array], marks: Array,
        scalars: Array, state: Array,
    ) -> list[Array]:  # fmt: skip
        """Return the parameters and moments after the step."""
        changed = []
        for array in (p, *moments):
            out = Out(array.shape, array.dtype, self.poison)
            out.array[...] = array
            changed.append(out)
        m, v = (*changed[1:], None, None)[:2]
        self._call(
            "update", _code(p.dtype), int(kind),
            *map(_at, (changed[0], g, m, v, marks, scalars, state)), ctypes.c_int64(p.size),
        )  # fmt: skip
        return [out.taken() for out in changed]

    def advance(self, state: Array) -> None:
        """Go on to the next step."""
        self._call("advance", _at(state))

    def column_moments(self, x: Array, epsilon: float, rows_of_group: int) -> tuple[Array, ...]:
        """Return mean, variance and inverse root (O,) over the batch."""
        found: list[Array | None] = [None]
        for _ in range(2):
            partial = self._out((-(-len(x) // rows_of_group), x.shape[1]), x.dtype)
            self._call(
                "spread", _code(x.dtype), *map(_at, (x, found[-1], partial)), *x.shape,
                rows_of_group,
            )  # fmt: skip
            found.append(self.sum_parts(partial.taken(), 1 / len(x)))
        inverse = self._out((x.shape[1],), x.dtype)
        epsilon_of_c = ctypes.c_double(epsilon)
        self._call(
            "inverse_root", _code(x.dtype), _at(found[-1]), epsilon_of_c, _at(inverse), x.shape[1]
        )
        return *found[1:], inverse.taken()

    def row_moments(self, x: Array, epsilon: float) -> tuple[Array, Array]:
        """Return mean and inverse root (B,) over the features."""
        mean, inverse = self._out((len(x),), x.dtype), self._out((len(x),), x.dtype)
        epsilon_of_c = ctypes.c_double(epsilon)
        self._call(
            "row_moments", _code(x.dtype), _at(x), epsilon_of_c, _at(mean), _at(inverse), *x.shape
        )
        return mean.taken(), inverse.taken()

    def norm_forward(
        self, activation: str, x: Array, mean: Array, inverse: Array, of_rows: bool,
        weight: Array, bias: Array | None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return a and z."""
        a, z = self._out(x.shape, x.dtype), self._out(x.shape, x.dtype)
        self._call(
            "norm_forward", _code(x.dtype), ACTIVATIONS[activation].code,
            *map(_at, (x, mean, inverse)), int(of_rows), *map(_at, (weight, bias, a, z)), *x.shape,
        )  # fmt: skip
        return a.taken(), z.taken()

    def norm_gradients(
        self, x: Array, mean: Array, inverse: Array, of_rows: bool, dy: Array, rows_of_group: int
    ) -> tuple[Array, Array]:
        """Return dweight and dbias."""
        partial = self._out((2, -(-len(x) // rows_of_group), x.shape[1]), x.dtype)
        self._call(
            "norm_sums", _code(x.dtype), *map(_at, (x, mean, inverse)), int(of_rows),
            *map(_at, (dy, partial)), *x.shape, rows_of_group,
        )  # fmt: skip
        dweight, dbias = partial.taken()
        return self.sum_parts(dweight), self.sum_parts(dbias)

    def batch_backward(
        self, x: Array, mean: Array, inverse: Array, weight: Array, dy: Array,
        sums: tuple[Array, Array] | None,
    ) -> Array:  # fmt: skip
        """Return dx."""
        dx = self._out(x.shape, x.dtype)
        self._call(
            "batch_backward", _code(x.dtype),
            *map(_at, (x, mean, inverse, weight, dy, *(sums or (None, None)), dx)), *x.shape,
        )  # fmt: skip
        return dx.taken()

    def layer_backward(
        self, x: Array, mean: Array, inverse: Array, weight: Array, dy: Array
    ) -> Array:
        """Return dx."""
        dx = self._out(x.shape, x.dtype)
        self._call(
            "layer_backward", _code(x.dtype), *map(_at, (x, mean, inverse, weight, dy, dx)),
            *x.shape,
        )  # fmt: skip
        return dx.taken()

    def move_statistics(
        self, mean: Array, variance: Array, running: tuple[Array, Array], momentum: float,
        rows: int, state: Array,
    ) -> tuple[Array, ...]:  # fmt: skip
        """Return the running mean and variance after the step."""
        moved = [self._out(each.shape, each.dtype) for each in running]
        for out, each in zip(moved, running, strict=True):
            out.array[...] = each
        self._call(
            "move_statistics", _code(mean.dtype), *map(_at, (mean, variance, *moved)),
            ctypes.c_double(momentum), rows, mean.size, _at(state),
        )  # fmt: skip
        return tuple(out.taken() for out in moved)

    def weight_gradient(self, x: Array, dz: Array, rows_of_slice: int) -> Array:
        """Return the slices of dw."""
        rows, inputs, outputs = len(x), x.shape[1], dz.shape[1]
        dw = self._out((-(-rows // rows_of_slice), inputs, outputs), x.dtype)
        self._call(
            "weight_gradient", _code(x.dtype), self.tile, *map(_at, (x, dz, dw)),
            rows, inputs, outputs, rows_of_slice,
        )  # fmt: skip
        return dw.taken()


def state_at(step: int, clip_scale: float = 1.0) -> Array:
    """Return the state of a chunk before one of its steps."""
    return np.array((step, 0, clip_scale), STATE)


class Calls:
    """The functions of kernels.h as the compiled extension has them, on addresses.

    Attributes
    ----------
    held : dict
        Address and bytes of what was allocated and not yet released.
    room : int
        Bytes that there are.
    queued : list of (str, int)
        "run", "record" or "replay", and how many times.
    counts_alone : bool
        Whether nothing of these is run.
    overruns : list of int
        Bytes of what was released and had been written past, or before.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.fn_cuda_name.restype = ctypes.c_char_p
        self._library.fn_cuda_error.restype = ctypes.c_char_p
        self.held: dict[int, int] = {}
        self.graphs: set[int] = set()
        self.room = 1 << 40
        self.queued: list[tuple[str, int]] = []
        self.counts_alone = False
        self.overruns: list[int] = []

    def tile(self, dtype: int, which: int) -> tuple[int, int, int]:
        sizes = (ctypes.c_int * 3)()
        assert self._library.fn_cuda_tile(dtype, which, sizes) > 0
        return sizes[0], sizes[1], sizes[2]

    def norm_parts(self, n: int) -> int:
        return int(self._library.fn_cuda_norm_parts(ctypes.c_int64(n)))

    def function(self, name: str, count: int) -> int:
        found = int(self._library.fn_cuda_function(name.encode(), count))
        assert found >= 0, f"{name} of {count} arguments"
        return found

    def run(self, calls: int, count: int, times: int, stream: int) -> None:
        at = ctypes.c_int()
        self.queued.append(("run", times))
        times = 0 if self.counts_alone else times
        where = ctypes.c_void_p(calls), count, ctypes.c_int64(times), ctypes.c_void_p(stream)
        self._check(self._library.fn_cuda_run(*where, ctypes.byref(at)), f"call {at.value}")

    def record(self, calls: int, count: int, times: int, stream: int) -> int:
        at, graph = ctypes.c_int(), ctypes.c_void_p()
        self.queued.append(("record", times))
        where = ctypes.c_void_p(calls), count, ctypes.c_int64(times), ctypes.c_void_p(stream)
        made = self._library.fn_cuda_record(*where, ctypes.byref(graph), ctypes.byref(at))
        self._check(made, f"record call {at.value}")
        assert graph.value
        self.graphs.add(graph.value)
        return graph.value

    def replay(self, graph: int, times: int, stream: int) -> None:
        assert graph in self.graphs
        self.queued.append(("replay", times))
        times = 0 if self.counts_alone else times
        where = ctypes.c_void_p(graph), ctypes.c_int64(times), ctypes.c_void_p(stream)
        self._check(self._library.fn_cuda_replay(*where), "replay")

    def forget(self, graph: int) -> None:
        self.graphs.remove(graph)
        self._library.fn_cuda_forget(ctypes.c_void_p(graph))

    def allocate(self, size: int) -> int:
        place = ctypes.c_void_p()
        full = sum(self.held.values()) + size > self.room
        wanted = ctypes.c_size_t(1 << 60 if full else size + 2 * GUARD_BYTES)
        error = self._library.fn_cuda_allocate(ctypes.byref(place), wanted)
        self._check(error, f"allocate {size} bytes")
        assert place.value
        start = place.value + GUARD_BYTES
        self.held[start] = size
        for guard in (start - GUARD_BYTES, start + size):
            ctypes.memset(guard, GUARD, GUARD_BYTES)
        return start

    def release(self, place: int) -> None:
        size, untouched = self.held.pop(place), bytes([GUARD]) * GUARD_BYTES
        for guard in (place - GUARD_BYTES, place + size):
            if ctypes.string_at(guard, GUARD_BYTES) != untouched:
                self.overruns.append(size)
        self._library.fn_cuda_release(ctypes.c_void_p(place - GUARD_BYTES))

    def clear(self, place: int, size: int, stream: int) -> None:
        where = ctypes.c_void_p(place), ctypes.c_size_t(size), ctypes.c_void_p(stream)
        self._check(self._library.fn_cuda_clear(*where), "clear")

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        ends = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size)
        self._check(self._library.fn_cuda_copy(*ends, ctypes.c_void_p(stream)), "copy")

    def wait(self, stream: int) -> None:
        self._check(self._library.fn_cuda_wait(ctypes.c_void_p(stream)), "wait")

    def stream(self) -> int:
        made = ctypes.c_void_p()
        self._check(self._library.fn_cuda_stream(ctypes.byref(made)), "stream")
        assert made.value
        return made.value

    def end_stream(self, stream: int) -> None:
        self._library.fn_cuda_end_stream(ctypes.c_void_p(stream))

    def _check(self, error: int, name: str) -> None:
        if error:
            raise DriverError(error, f"CUDA, {name}: {self._library.fn_cuda_error(error).decode()}")


def _code(dtype: Any) -> int:
    return int(np.dtype(dtype) == np.float64)


def reversed_blocks(on: bool) -> None:
    """Let grids run from their last block to their first, or as usual."""
    os.environ.pop("FN_EMULATED_REVERSED", None)
    if on:
        os.environ["FN_EMULATED_REVERSED"] = "1"
