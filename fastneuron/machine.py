"""What fastneuron finds on this machine: versions, processor, threads, backends, cache."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from textwrap import wrap
from typing import Any

import numpy as np

import fastneuron
from fastneuron import backends
from fastneuron.errors import BackendUnavailable, FastneuronError
from fastneuron.places import cache_directory, compiled_kernels, distrust, kernel_folder
from fastneuron.threads import requested_threads, usable_cores

# Vector extensions that the kernels gain from, weakest first; others are left out of the report.
VECTOR_FEATURES = (
    "SSE42", "AVX", "F16C", "FMA3", "AVX2", "AVX512F", "AVX512DQ", "AVX512BW", "AVX512VL",
    "AVX512_BF16", "AVX512_SPR", "NEON", "NEON_FP16", "ASIMD", "ASIMDDP", "ASIMDFHM", "SVE",
    "VSX", "VSX2", "VSX3", "VX", "VXE", "RVV", "LSX",
)  # fmt: skip
PACKAGES = ("numpy", "numba", "llvmlite", "numba-cuda", "safetensors", "tqdm")
DTYPES = ("float32", "float64")
VARIABLES = (
    "FASTNEURON_BACKEND",
    "FASTNEURON_NUM_THREADS",
    "FASTNEURON_CACHE_DIR",
    "FASTNEURON_INSTRUCTION_SET",
)


def describe() -> dict[str, Any]:
    """Return the machine as plain JSON values; what is missing is a value, never an error."""
    return {
        "versions": {
            "fastneuron": fastneuron.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_features": _cpu_features(),
        "cores": {"usable": usable_cores(), "present": os.cpu_count()},
        "threads": _threads(),
        "backends": _backends(),
        "cuda": _cuda(),
        "cache": _cache(),
        "kernels": _kernels(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    # numpy.show_config and show_runtime print this table; neither returns the processor's own part.
    table = getattr(getattr(np, "_core", None), "_multiarray_umath", None)
    found = getattr(table, "__cpu_features__", {})
    return [name for name in VECTOR_FEATURES if found.get(name)]


def _threads() -> dict[str, Any]:
    try:
        asked = requested_threads(None)
    except FastneuronError as error:
        return {"count": None, "source": f"unusable: {error}"}
    if asked is not None:
        return {"count": asked, "source": "FASTNEURON_NUM_THREADS"}
    return {"count": None, "source": "each network's shapes decide, up to the cores usable"}


def _backends() -> dict[str, Any]:
    """Return, by name, whether each backend runs here and why (not), and what "auto" means."""
    try:
        chosen = backends.get("auto")
        auto = {"available": True, "means": chosen.name, "reason": chosen.reason}
    except FastneuronError as error:
        auto = {"available": False, "means": None, "reason": str(error)}
    found: dict[str, Any] = {"auto": auto}
    # After the choice, which has found out what an import alone can tell.
    for name, backend in backends.available().items():
        missing = isinstance(backend, BackendUnavailable)
        found[name] = {"available": not missing, "reason": str(backend) if missing else ""}
        if name == "cython" and isinstance(backend, backends.Backend):
            found[name]["instruction_set"] = backend.instruction_set
    return found


def _cuda() -> dict[str, Any]:
    """Return the driver, the cards and whose kernels would run on them."""
    return {
        "driver": backends.driver_version() or None,
        "cards": [
            {**card._asdict(), "capability": ".".join(map(str, card.capability))}
            for card in backends.cards()
        ],
        "kernels": backends.device_kernels() or None,
    }


def _cuda_state(cuda: dict[str, Any]) -> str:
    driver = f"driver for CUDA {cuda['driver']}" if cuda["driver"] else "no driver"
    cards = [
        f"{card['name']} ({card['capability']}, {card['memory'] / 2**30:.1f} GiB, "
        f"{card['multiprocessors']} multiprocessors)"
        for card in cuda["cards"]
    ]
    kernels = f"kernels by {cuda['kernels']}" if cuda["kernels"] else "no kernels installed"
    first = ["the first of the cards is the one in use"] if len(cards) > 1 else []
    return "; ".join([driver, ", ".join(cards) or "no card", *first, kernels])


def _cache() -> dict[str, Any]:
    place = cache_directory()
    size = count = 0
    try:
        for file in place.rglob("*"):
            if file.is_file():
                size += file.stat().st_size
                count += 1
    except OSError:  # another process may be clearing it
        pass
    parent = next((folder for folder in (place, *place.parents) if folder.exists()), place)
    return {
        "place": str(place),
        "files": count,
        "bytes": size,
        "writable": parent.is_dir() and os.access(parent, os.W_OK),
    }


def _kernels() -> dict[str, Any] | None:
    """Return which kernels of this very version are compiled and kept; None without Numba."""
    numba = _version("numba")
    if numba is None:
        return None
    folder = kernel_folder(numba)
    names = {dtype: sorted(compiled_kernels(numba, dtype)) for dtype in DTYPES}
    return {"folder": str(folder), "refused": distrust(folder), **names}


def _kernel_state(kernels: dict[str, Any]) -> str:
    if kernels["refused"]:
        return f"not kept: {kernels['refused']}"
    kept = [f"{dtype}: {', '.join(kernels[dtype]) or 'none'}" for dtype in DTYPES]
    ahead = "" if all(kernels[dtype] for dtype in DTYPES) else "; fastneuron warmup compiles ahead"
    return f"compiled for this version: {'; '.join(kept)}{ahead}"


def report(found: dict[str, Any]) -> list[str]:
    """Return the lines that show what `describe` found, to be read at 80 columns."""
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in found["versions"].items())
    cores, threads, cache = found["cores"], found["threads"], found["cache"]
    writable = "" if cache["writable"] else "; not writable, so every process compiles anew"
    items = [
        ("versions", versions),
        ("platform", found["platform"]),
        ("processor", found["processor"]),
        ("vectors", " ".join(found["cpu_features"]) or "unknown"),
        ("cores", f"{cores['usable']} usable of {cores['present']}"),
        ("threads", f"{threads['count'] or 'auto'} ({threads['source']})"),
        ("cache", f"{cache['place']} ({cache['files']} files, {cache['bytes']:,} bytes{writable})"),
    ]
    if found["kernels"] is not None:
        items.append(("kernels", _kernel_state(found["kernels"])))
    auto = found["backends"]["auto"]
    items.append(("backend", f"{auto['means'] or 'none'} ({auto['reason']})"))
    for name, backend in found["backends"].items():
        if name != "auto":
            state = "available" if backend["available"] else f"missing: {backend['reason']}"
            if "instruction_set" in backend:
                state += f", instruction set {backend['instruction_set']}"
            items.append((f"  {name}", state))
    items.append(("devices", _cuda_state(found["cuda"])))
    for name, value in found["environment"].items():
        items.append(("variable", f"{name} is {'not set' if value is None else repr(value)}"))
    lines: list[str] = []
    for name, text in items:
        lines += wrap(text, 78, initial_indent=f"{name:11}", subsequent_indent=" " * 11)
    return lines
