"""Measurements in processes of their own, pinned to their cores before they load anything."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastneuron.peers.environment import told


def environment(cores: int) -> dict[str, str]:
    """Return the variables by which libraries are told their threads before they are loaded."""
    found = {**os.environ, **told(cores)}
    if cores > 1:  # the engine chooses, up to the cores that it is pinned to
        del found["FASTNEURON_NUM_THREADS"]
    return found


def usable_cores() -> list[int] | None:
    """Return the cores that this process may run on, or None where nobody can say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def run_pinned(
    script: str, arguments: list[str], cores: int, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``script *arguments --worker cores --json file`` on its cores; return what it wrote.

    A worker that ends badly leaves what it wrote until then, and "skipped" says how it ended.
    `more` are further environment variables.
    """
    pin = None
    if (usable := usable_cores()) is not None:
        if len(usable) < cores:
            return {"cores": cores, "skipped": f"{len(usable)} usable cores only"}
        pin = partial(os.sched_setaffinity, 0, usable[:cores])
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, script, *arguments, "--worker", str(cores)]
        # preexec_fn is safe here: this process has no other thread.
        done = subprocess.run(
            [*command, "--json", str(result)],
            env={**environment(cores), **(more or {})},
            preexec_fn=pin,
            check=False,
        )
        found = json.loads(result.read_text("utf-8")) if result.exists() else {"cores": cores}
        if done.returncode or not result.exists():
            found["skipped"] = f"the run ended with exit code {done.returncode}"
        return found


def teller() -> Callable[[str], None]:
    """Return what tells a person at the terminal how far it is, on a line that it overwrites."""
    shown = sys.stderr.isatty()

    def say(text: str) -> None:
        if shown:
            print(f"{text:79.79}", end="\r", file=sys.stderr, flush=True)

    return say


def machine() -> dict[str, Any]:
    """Return what a JSON file says of where it comes from."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numba_cpu_name": os.environ.get("NUMBA_CPU_NAME"),
    }


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write all of it or nothing: who reads it may come at any time."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    beside.replace(path)
