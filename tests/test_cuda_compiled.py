"""Layer 2: every kernel compiled for cards that are not here, and what the assembler says of it.

Registers are under a table, nothing is spilled, float32 kernels hold no float64 instruction but
where a table says so, and loads of 16 bytes are there where they are promised.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_tools import program
from planting import planted_module

if not find_spec("numba") or not find_spec("numba_cuda"):
    pytest.skip("numba-cuda is not installed: it compiles these", allow_module_level=True)

import numba.cuda.dispatcher
from cuda_kernels import factories, factory_of
from numba import cuda, types

from fastneuron.kernels.device_plan import Blocks, tile_of
from fastneuron.kernels.fused_plan import ensemble_plan, ensemble_threads, fused_plan
from fastneuron.kernels.numba_cuda import (
    columns,
    driver,
    ensemble_kernel,
    fused,
    norms,
    outcome,
    pointwise,
    products,
    updates,
)
from fastneuron.kernels.numba_cuda.dropout import dropout
from fastneuron.kernels.numba_cuda.gather import gather
from fastneuron.kernels.numba_cuda.losses import loss_rows
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import UpdateKind
from fastneuron.spec import NetworkSpec

if driver.SIMULATED:
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

try:
    cuda.compile_ptx(lambda a: None, (types.float32[::1],), cc=(9, 0))
except Exception as error:  # of several types: NVVM, NVRTC or the toolkit's files are not there
    pytest.skip(
        f"numba-cuda has nothing to compile with (pip install numba-cuda[cu13]): {error}",
        allow_module_level=True,
    )

#: Ampere, Hopper, Blackwell.
TARGETS = ((8, 0), (9, 0), (10, 0))
_WHOLE = types.int64
#: What an argument is, by its letter: a vector of the kernel's dtype, or of others; a number.
_OTHERS = {
    "i": _WHOLE,
    "I": types.int64[::1],
    "B": types.uint8[::1],
    "K": types.uint64[::1],
    "D": types.float64[::1],
}


@dataclass(frozen=True)
class Promise:
    """A kernel with what is promised of its code.

    arguments: letters of `_OTHERS`, "v" for a vector of the dtype and "n" for a number of it.
    registers: the most that a thread may take.
    wide: loads of 16 bytes from global memory; near: from shared memory.
    doubles: float64 instructions in a float32 kernel.
    """

    kernel: Any
    arguments: str
    registers: int
    wide: bool = False
    near: bool = False
    doubles: bool = False
    dtype: str = "float32"


def _products(dtype: str, fours: bool, activation: str) -> dict[str, Promise]:
    """The three products: 256 threads of at most 168 registers fit on a multiprocessor's 65,536."""
    tile = tile_of(dtype)
    what = {"registers": 168, "wide": fours, "dtype": dtype}
    ends = f" {activation} {dtype}{' in fours' if fours else ''}"
    keeps_z = activation == "gelu"
    forward = products.forward(tile, dtype, activation, True, keeps_z, fours, fours)
    backward = products.data_gradient(tile, dtype, activation, True, fours, fours)
    found = {
        f"forward{ends}": Promise(forward, "vvvvviii", **what),
        f"data gradient{ends}": Promise(backward, "vvvvviii", **what),
    }
    if not keeps_z:
        gradient = products.weight_gradient(tile, dtype, fours, fours)
        found[f"weight gradient{ends}"] = Promise(gradient, "vvviiii", **what)
    return found


def _light() -> dict[str, Promise]:
    """What is bound by memory: 64 registers let 1,024 threads run, half of what there can be."""
    b = Blocks()
    f32, lanes, down = "float32", (b.lanes, b.rows), (b.across, b.down, b.group)
    found = {
        "gather": Promise(gather(*lanes), "vIIIvii", 40),
        "classes": Promise(loss_rows("cross_entropy", f32, *lanes, True, True), "vIvvvii", 48),
        "mean loss": Promise(outcome.mean_loss(b.threads), "vDIi", 40, doubles=True),
        "squares": Promise(outcome.squares(b.threads, b.chunk), "vBDi", 40, doubles=True),
        "judge": Promise(outcome.judge(b.threads, f32), "DDvIi", 40, doubles=True),
        "advance": Promise(outcome.advance(), "I", 16),
        "bias": Promise(pointwise.bias_activation(f32, "gelu", True, True, *lanes), "vvvii", 40),
        "gate": Promise(columns.gate(f32, "gelu", True, *down), "vvvvii", 64),
        "spread": Promise(columns.column_spread(f32, True, *down), "vvvii", 48),
        "norm sums": Promise(columns.norm_sums(f32, True, *down), "vvvvvii", 64),
        "partials": Promise(columns.sum_partials(f32, *down[:2]), "vvii", 40),
        "moments": Promise(columns.batch_moments(f32, True, b.threads), "vvvnnii", 40),
        "batch norm": Promise(norms.norm_forward(f32, "gelu", True, True, *lanes), "vvvvvvvii", 64),
        "batch norm backward": Promise(
            norms.batch_norm_backward(f32, True, *lanes), "vvvvvvvvnii", 64
        ),
        "layer norm": Promise(
            norms.layer_norm_forward(f32, "gelu", True, True, *lanes), "vvvvvvvnnii", 64
        ),
        "layer norm backward": Promise(norms.layer_norm_backward(f32, *lanes), "vvvvvvnii", 56),
        "running inverse": Promise(norms.running_inverse(f32, b.threads), "vvni", 32),
        "statistics": Promise(norms.move_statistics(b.threads), "vvvvInni", 40),
        "dropout": Promise(dropout(f32, b.threads), "vvKIiinii", 64),
    }
    for name in sorted(LOSSES):
        found[f"loss {name}"] = Promise(loss_rows(name, f32, *lanes, True), "vvvvvii", 64)
    for kind in UpdateKind:
        kernel = updates.update(kind, 2 if kind is UpdateKind.ADAM else 1, f32, b.threads)
        found[f"update {kind.name}"] = Promise(kernel, "vvvvBvvIi", 48)
    return found


def _fused() -> dict[str, Promise]:
    """Small networks: three blocks of 256 threads on a multiprocessor, where memory lets them."""
    found = {}
    for activation in ("relu", "gelu"):
        layers = [Dense(64, 64, activation) for _ in range(2)] + [Dense(64, 4)]
        plan = fused_plan(NetworkSpec.chain(layers))
        assert plan is not None
        step = fused.fused_step(plan, "cross_entropy", "float32", 256, False, True)
        found[f"fused step {activation}"] = Promise(step, "vIvIIIvvvii", 128, near=True)
        predict = fused.fused_forward(plan, "float32", 256)
        found[f"fused forward {activation}"] = Promise(predict, "vvviii", 128, near=True)
    return found


def _ensemble(
    spec: NetworkSpec, registers: int, loss: str = "mse", kind: UpdateKind = UpdateKind.ADAM
) -> dict[str, Promise]:
    """A model a block: registers are what as many blocks leave each as shared memory lets run."""
    plan = ensemble_plan(spec)
    assert plan is not None
    threads, moments = ensemble_threads(plan), 2 if kind is UpdateKind.ADAM else 0
    of, classes = ("float32", threads), loss == "cross_entropy"
    steps = ensemble_kernel.ensemble_steps(plan, loss, kind, moments, *of, False, classes)
    predict = fused.fused_forward(plan, *of)
    name = f"{'-'.join(str(size) for size in spec.sizes)} {spec.layers[0].activation}"
    y, what = "I" if classes else "v", {"near": True, "registers": registers}
    arguments = f"v{y}vIIvDBvvvvvDIiiiiiii"
    return {
        f"ensemble {name}": Promise(steps, arguments, wide=True, doubles=True, **what),
        f"ensemble forward {name}": Promise(predict, "vvviii", wide=plan.holds, **what),
    }


def _chain(activation: str, *sizes: int) -> NetworkSpec:
    """All layers but the last of that activation."""
    return NetworkSpec.chain(
        [Dense(i, o, activation) for i, o in pairwise(sizes[:-1])] + [Dense(*sizes[-2:])]
    )


PROMISES: dict[str, Promise] = {
    **_light(),
    **_fused(),
    **_ensemble(_chain("relu", 20, 64, 64, 2), 128, "cross_entropy"),
    **_ensemble(_chain("gelu", 20, 64, 64, 2), 168),
    **_ensemble(_chain("silu", 4, 16, 1), 128, "huber"),
    **_ensemble(_chain("tanh", 128, 128, 128), 255),
    **_products("float32", True, "relu"),
    **_products("float32", False, "relu"),
    **_products("float32", True, "gelu"),
    **_products("float64", True, "relu"),
}


def test_every_kernel_is_promised_something() -> None:
    promised = {factory_of(promise.kernel.py_func) for promise in PROMISES.values()}
    assert factories() - promised == set(), "these are in no table here"


@pytest.fixture(params=TARGETS, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A card that functions are compiled for, though it is not here."""
    card = SimpleNamespace(compute_capability=request.param)
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: card)
    return request.param


def code_of(promise: Promise, target: tuple[int, int]) -> str:
    vector = types.float32 if promise.dtype == "float32" else types.float64
    own = {"v": vector[::1], "n": vector}
    signature = tuple({**_OTHERS, **own}[letter] for letter in promise.arguments)
    bounds = promise.kernel.targetoptions.get("launch_bounds")
    code, _ = cuda.compile_ptx(promise.kernel.py_func, signature, cc=target, launch_bounds=bounds)
    return str(code)


def check(name: str, promise: Promise, target: tuple[int, int], folder: Path) -> None:
    """Hold a kernel's code against what is promised of it."""
    code = code_of(promise, target)
    assert f".target sm_{target[0]}{target[1]}" in code
    if promise.dtype == "float32" and not promise.doubles:
        lines = [line for line in code.splitlines() if ".f64" in line]
        assert not lines, f"{name} computes in float64: {lines[:3]}"
    wide = r"ld\.global\.v4\.f32|ld\.global\.v2\.f64"
    assert bool(re.search(wide, code)) == promise.wide, f"{name}: 16-byte loads"
    if promise.near:
        assert re.search(r"ld\.shared\.v4\.f32", code), f"{name}: 16-byte loads from shared memory"
    assembles = program("ptxas")
    if assembles is None:
        pytest.skip("ptxas is not installed (pip install nvidia-cuda-nvcc)")
    source = folder / "kernel.ptx"
    source.write_text(code)
    arch = f"-arch=sm_{target[0]}{target[1]}"
    result = subprocess.run(
        [assembles, "-v", arch, str(source), "-o", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    spilled = {int(n) for n in re.findall(r"(\d+) bytes spill", result.stderr)}
    assert spilled == {0}, f"{name} spills registers: {result.stderr}"
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", result.stderr))
    assert registers <= promise.registers, f"{name}: {registers} registers"


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_what_is_promised_of_a_kernel(name: str, target: tuple[int, int], tmp_path: Path) -> None:
    check(name, PROMISES[name], target, tmp_path)


def found(said: str, promise: Promise, target: tuple[int, int], folder: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        check("the kernel", promise, target, folder)


def test_float64_that_creeps_in_is_found(target: tuple[int, int], tmp_path: Path) -> None:
    room = planted_module(pointwise.__name__, "= f(sum_of)", "= 0.1 * f(sum_of)")
    b = Blocks()
    kernel = room.bias_activation("float32", "gelu", True, True, b.lanes, b.rows)
    promise = replace(PROMISES["bias"], kernel=kernel)
    found("the kernel computes in float64", promise, target, tmp_path)


def test_a_spill_is_found(target: tuple[int, int], tmp_path: Path) -> None:
    promise = PROMISES["forward relu float32 in fours"]
    tight = driver.kernel(promise.kernel.py_func, launch_bounds=(256, 4))  # 64 registers a thread
    found("the kernel spills registers", replace(promise, kernel=tight), target, tmp_path)


def test_a_register_too_many_is_found(target: tuple[int, int], tmp_path: Path) -> None:
    promise = replace(PROMISES["forward relu float32 in fours"], registers=64)
    found(r"the kernel: \d+ registers", promise, target, tmp_path)


def test_narrow_loads_are_found(target: tuple[int, int], tmp_path: Path) -> None:
    promise = replace(PROMISES["forward relu float32"], wide=True)
    found("the kernel: 16-byte loads", promise, target, tmp_path)


def test_an_ensemble_computes_in_float64_what_its_loss_and_norm_take_alone(
    target: tuple[int, int],
) -> None:
    def doubles(activation: str, *given: Any) -> int:
        spec = _chain(activation, 20, 64, 64, 2)
        promise = next(iter(_ensemble(spec, 0, *given).values()))
        code, sums = code_of(promise, target), 8 * ensemble_threads(ensemble_plan(spec))
        assert re.search(rf"\.shared \.align \d+ \.b8 \w+\[{sums}\]", code), "what plans count"
        return sum(".f64" in line for line in code.splitlines())

    want = doubles("identity", "mse", UpdateKind.SGD)
    assert want
    for activation, loss in (("gelu", "cross_entropy"), ("tanh", "poisson")):
        assert doubles(activation, loss, UpdateKind.ADAM) == want
