"""The floors of the house: imports point down, and importing the package costs little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastneuron"

#: The rooms of each floor, from the ground up; rooms of one floor do not see each other.
HOUSE = (
    ("errors", "places", "interrupts", "plans", "arguments", "dlpack"),
    ("registry", "order", "device_arrays"),
    ("descriptions", "threads", "arrays", "activations", "losses", "initializers"),
    ("schedules", "layers", "ensemble_order"),
    ("optimizers", "spec"),
    ("keys",),
    ("kernels.contract", "rates"),
    ("kernels.columns", "kernels.stages", "kernels.ensemble_contract", "ensemble_rates"),
    ("kernels.tiles",),
    (
        "kernels.layout",
        "kernels._cython_cpu",
        "kernels._cython_cuda",
        "kernels.marks",
        "kernels.speeds",
        "kernels.prices",
        "kernels.reference",
        "kernels.device_plan",
        "kernels.device_presence",
        "kernels.cublaslt",
        "kernels.timed_choice",
        "kernels.precision",
        "kernels.device_faults",
        "kernels.device_calls",
    ),
    ("kernels.device_card",),
    (
        "kernels.estimate",
        "kernels.panel_slots",
        "kernels.constants",
        "kernels.fused_plan",
        "kernels.device_state",
        "kernels.device_engine",
    ),
    (
        "kernels.cost",
        "kernels.device_memory",
        "kernels.device_ensemble",
        "kernels.device_fused",
    ),
    (
        "kernels.device_passes",
        "kernels.device_slots",
        "kernels.device_launches",
        "kernels.cython_cuda_ensemble",
    ),
    ("kernels.explanation", "kernels.each_alone"),
    ("kernels.blocked",),
    ("kernels.numba_cpu", "kernels.cython_cpu", "kernels.numba_cuda", "kernels.cython_cuda"),
    ("kernels.device_supply", "kernels.device_cost"),
    ("loading",),
    ("backends", "parameters", "elision", "folding", "summary"),
    ("chunks", "divergence", "intake", "choice"),
    (
        "callbacks",
        "files",
        "warmup",
        "health",
        "twins",
        "handles",
        "initial",
        "ensemble_intake",
        "ensemble_parameters",
        "ensemble_divergence",
    ),
    ("ops", "trainer"),
    ("fitting", "findings", "measurement"),
    ("reports", "plots"),
    ("health_figure",),
    ("diagnostics",),
    ("network",),
    ("tables", "datasets", "alike"),
    ("preprocessing", "explain", "ensemble"),
    ("machine", "demo", "commands", "testing"),
    ("profiling", "peers"),
    ("bench", "gpu_suite"),
    ("cli",),
    ("__main__",),
    ("",),
)
FLOORS = {room: floor for floor, rooms in enumerate(HOUSE) for room in rooms}
# Rooms that may `import fastneuron` itself: they print its version.
_ASK_THE_VERSION = ("machine", "cli")

# What callers of a slot or an engine must know; it computes nothing.
_CONTRACT = ("kernels.contract", "kernels.ensemble_contract", "kernels.marks")


def room_of(module: str) -> str | None:
    """Room of a dotted module name inside the package, or None for other packages."""
    if module != "fastneuron" and not module.startswith("fastneuron."):
        return None
    inner = module.removeprefix("fastneuron").lstrip(".")
    parts = inner.split(".")
    if parts[0] == "kernels":
        return ".".join(parts[:2]) if len(parts) > 1 else "kernels"
    return parts[0]


def imports_of(path: Path, source: str) -> list[tuple[int, str]]:
    """Every (line, module) that a file imports, names of `from` imports resolved to modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                where = PACKAGE.parent / Path(*inner.split("."))
                is_module = where.with_suffix(".py").exists() or where.is_dir()
                found.append((node.lineno, inner if is_module else module))
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append((node.lineno, str(node.args[0].value)))
    return found


def faults_of(path: Path, source: str) -> list[str]:
    """What a file imports and may not."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    name = ".".join(["fastneuron", *relative.parts]).removesuffix(".__init__")
    room = room_of(name)
    assert room is not None
    if room == "kernels":
        room = "kernels.reference"  # the package itself is empty
    if room not in FLOORS:
        return [f"{path}: the room {room!r} has no floor"]
    faults = []
    for line, module in imports_of(path, source):
        where = f"{path}:{line}"
        top = module.split(".")[0]
        if top in ("numba", "llvmlite") and not room.startswith("kernels.numba_"):
            faults.append(f"{where}: {top} is imported outside kernels.numba_*")
        other = room_of(module)
        if other is None or other in (room, "kernels"):
            continue
        if other == "" and room in _ASK_THE_VERSION:
            continue
        if other not in FLOORS:
            faults.append(f"{where}: the room {other!r} has no floor")
        elif FLOORS[other] >= FLOORS[room]:
            faults.append(f"{where}: {room!r} imports {other!r}, which is not below it")
        elif (
            other.startswith("kernels.")
            and other not in _CONTRACT
            and not room.startswith("kernels.")
            and room not in ("loading", "backends", "testing", "gpu_suite")
        ):
            faults.append(
                f"{where}: kernels are reached through loading and backends only, not by {room!r}"
            )
    return faults


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    assert faults_of(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "line", "message"),
    [
        ("trainer", "import numba", "outside kernels.numba_"),
        ("trainer", "from numba import njit", "outside kernels.numba_"),
        ("kernels/reference/engine", "import llvmlite.ir", "outside kernels.numba_"),
        ("trainer", "from fastneuron.fitting import fit", "not below"),
        ("trainer", "from fastneuron import fitting", "not below"),
        ("trainer", "import fastneuron.ops", "not below"),
        ("trainer", "def f():\n    from fastneuron.network import mlp", "not below"),
        ("trainer", "from fastneuron.kernels.reference import dense", "backends only"),
        ("trainer", "import_module('fastneuron.kernels.numba_cpu')", "backends only"),
        ("activations", "from fastneuron.losses import LOSSES", "not below"),
        ("kernels/reference/dense", "from fastneuron.kernels.numba_cpu import SLOTS", "not below"),
        ("kernels/numba_cpu/engine", "import fastneuron.backends", "not below"),
        ("errors", "import fastneuron", "not below"),
        ("trainer", "import fastneuron.utils", "no floor"),
        ("utils", "import os", "no floor"),
    ],
)
def test_a_planted_fault_is_found(room: str, line: str, message: str) -> None:
    faults = faults_of(PACKAGE / f"{room}.py", f"{line}\n")
    assert len(faults) == 1, faults
    assert message in faults[0]


def test_every_room_is_in_the_table_for_contributors() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    table = " ".join(line for line in text.splitlines() if line.startswith("|"))
    hidden = {"", "__main__", "kernels._cython_cpu", "kernels._cython_cuda"}
    missing = [
        room
        for room in FLOORS
        if room not in hidden and not re.search(rf"`(kernels/)?{room.split('.')[-1]}`", table)
    ]
    assert missing == []
    named = {name.split("/")[-1] for name in re.findall(r"`([a-z_/]+)`", table)}
    known = {room.split(".")[-1] for room in FLOORS}
    assert named - known <= {"__init__"}


def test_what_is_allowed_is_no_fault() -> None:
    for room, line in [
        ("trainer", "from fastneuron.kernels.contract import Engine"),
        ("trainer", "from fastneuron import backends\nimport os"),
        ("loading", "import_module('fastneuron.kernels.reference')"),
        ("kernels/numba_cpu/jit", "import numba"),
        ("kernels/numba_cpu/engine", "from fastneuron.kernels.numba_cpu import jit"),
    ]:
        assert faults_of(PACKAGE / f"{room}.py", line) == []


def test_no_file_is_much_over_400_lines() -> None:
    long = {p.name: n for p in files() if (n := len(p.read_text("utf-8").splitlines())) > 440}
    assert long == {}


def imported_by(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    return set(result.stdout.split())


HEAVY = {"numba", "llvmlite", "safetensors", "tqdm", "scipy", "sklearn", "matplotlib"}


@pytest.mark.parametrize(
    "code",
    [
        "import fastneuron",
        "import fastneuron as fn; dir(fn); fn.Adam, fn.Trainer, fn.mlp, fn.ops, fn.Dense",
        "import fastneuron as fn; fn.backends.available()",
        "import fastneuron as fn; net = fn.mlp([2, 3, 1]);"
        "net.fit([[1, 2], [3, 4]], [1, 2], loss='mse', backend='numpy')",
    ],
)
def test_importing_brings_in_nothing_heavy(code: str) -> None:
    assert imported_by(code) & HEAVY == set()


def test_the_heavy_modules_would_be_seen() -> None:
    assert "tqdm" in imported_by("import tqdm")


def test_import_alone_does_not_even_bring_in_numpy() -> None:
    assert "numpy" not in imported_by("import fastneuron")
