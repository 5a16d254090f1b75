"""Copies of source text in which a fault is planted, for tests that show that others find it."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = ["planted_folder", "planted_module"]


def _planted(path: Path, old: str, new: str, which: int) -> str:
    """Return the text of a file with the occurrence `which` of `old` replaced."""
    parts = path.read_text("utf-8").split(old)
    assert len(parts) > which + 1, f"{path.name} does not hold {old!r} that often"
    return old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])


def planted_folder(
    sources: Path, copy: Path, file: str, old: str, new: str, which: int = 0
) -> Path:
    """Copy a folder to `copy`, with a fault in one of its files."""
    shutil.copytree(sources, copy)
    (copy / file).write_text(_planted(sources / file, old, new, which), encoding="utf-8")
    return copy


def planted_module(name: str, old: str, new: str, which: int = 0) -> ModuleType:
    """Return a copy of a module with a fault in it; the module itself stays as it is."""
    path = Path(str(import_module(name).__file__))
    module = ModuleType(name)
    exec(compile(_planted(path, old, new, which), str(path), "exec"), module.__dict__)
    return module
