"""Every CUDA kernel of the package by name, read from the sources: none may lack its tests."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBA, CPP = ROOT / "fastneuron" / "kernels" / "numba_cuda", ROOT / "csrc" / "cuda"

#: The folder where processes of the simulator note the kernels that they launched.
LAUNCHED = "FASTNEURON_TEST_LAUNCHED"


@cache
def factories() -> set[str]:
    """Functions that make kernels of Numba, as room.function: what returns ``kernel(...)``."""
    found = set()
    for path in sorted(NUMBA.glob("*.py")):
        for function in ast.parse(path.read_text("utf-8")).body:
            if isinstance(function, ast.FunctionDef) and path.stem != "driver":
                returned = (n.value for n in ast.walk(function) if isinstance(n, ast.Return))
                calls = (call.func for call in returned if isinstance(call, ast.Call))
                if any(isinstance(name, ast.Name) and name.id == "kernel" for name in calls):
                    found.add(f"{path.stem}.{function.name}")
    return found


def factory_of(function: object) -> str:
    """The factory, as room.function, of a kernel's Python function, which a helper may define."""
    room = str(getattr(function, "__module__", "")).rpartition(".")[2]
    name = str(getattr(function, "__qualname__", "")).partition(".")[0]
    if f"{room}.{name}" in factories():
        return f"{room}.{name}"
    source = (NUMBA / f"{room}.py").read_text("utf-8")
    functions = {each.name: each for each in ast.parse(source).body if hasattr(each, "name")}
    for each in (factory.partition(".")[2] for factory in factories()):
        text = ast.get_source_segment(source, functions[each]) if each in functions else ""
        if re.search(rf"\b{name}\(", text or ""):
            return f"{room}.{each}"
    return f"{room}.{name}"


def in_cpp() -> dict[str, str]:
    """Every ``__global__`` of csrc/cuda, and where it is."""
    found = {}
    for path in sorted(CPP.glob("*.[ch]*")):
        text = path.read_text("utf-8")
        for name in re.findall(
            r"\b__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text, re.M
        ):
            found[name] = path.name
    return found


def functions_in_cpp() -> dict[str, str]:
    """Every function of csrc/cuda with its text, kernels included; overloads are one."""
    found: dict[str, str] = {}
    for path in sorted(CPP.glob("*.[ch]*")):
        text = re.sub(r"/\*.*?\*/|^#[^\n]*", "", path.read_text("utf-8"), flags=re.S | re.M)
        text = re.sub(r"__launch_bounds__\([^)]*\)", "", text)
        start = depth = 0
        name = ""
        for at, sign in ((each.start(), each.group()) for each in re.finditer(r"[;{}]", text)):
            if sign == "{":
                head = text[start:at]
                named = re.search(r"(\w+)\(", head)
                if not name and named:
                    name, depth, begin = named[1], 0, start
                depth += bool(name)  # a struct or a namespace is gone into
            elif sign == "}" and name:
                depth -= 1
                if not depth:
                    found[name] = found.get(name, "") + text[begin:at]
                    name = ""
            start = start if name else at + 1
    return found


def entries_of(kernel: str) -> set[str]:
    """The functions of kernels.h, without their prefix, by which a kernel can be started."""
    functions = functions_in_cpp()
    reach = {name for name, text in functions.items() if re.search(rf"\b{kernel}\b", text)}
    reach, new = set(), reach
    while new:
        reach |= new
        called = "|".join(  # no member or other namespace of that name
            rf"(?<![\w.>:]){each}[<(]|FN_OF\(\w+, {each}\)" for each in new
        )
        new = {n for n, text in functions.items() if n not in reach and re.search(called, text)}
    return {name.removeprefix("fn_cuda_") for name in reach if name.startswith("fn_cuda_")}


def called_in_emulation() -> set[str]:
    """The functions of kernels.h that tests ask `emulated_cuda.Kernels` for."""
    rooms = sorted((ROOT / "tests").glob("emulated_*.py"))
    text = "".join(path.read_text("utf-8") for path in rooms)
    return set(re.findall(r"_call\(\s*\"(\w+)\"", text))
