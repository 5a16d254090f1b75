"""fastneuron against itself, single calls, and starts: figures beside their goals.

``python benchmarks/ratios.py --help``; README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measure the clone it lies in

from ensembles import ensembles
from figures import faulty, table
from folding import folding
from forwards import forwards
from layer_ratios import layers
from neighbours import neighbours
from pinned import machine, run_pinned, teller, usable_cores, write_json
from starting import starts
from step_ratios import activations, avx2, avx2_environment, biases, cython, float64


@dataclass(frozen=True)
class Part:
    """One group of figures, measured in a process of its own."""

    measure: Callable[..., dict[str, Any]]
    about: str
    cores: int = 1
    environment: dict[str, str] = field(default_factory=dict)


PARTS = {
    "activations": Part(activations, "a step with every activation over one with ReLU"),
    "bias": Part(biases, "a step with biases over one without, on the rows of the table"),
    "float64": Part(float64, "efficiency in float64"),
    "avx2": Part(avx2, "efficiency of code for AVX2", environment=avx2_environment()),
    "cython": Part(cython, "a step of the kernels in C over one of Numba's, rows of the table"),
    "cython2": Part(partial(cython, cores=2), "the same on two cores", cores=2),
    "layers": Part(layers, "steps with normalisations, dropout, frozen layers; beside others"),
    "layers2": Part(partial(layers, cores=2), "the same on two cores", cores=2),
    "ensembles": Part(ensembles, "many networks at once, over one by one; beside vmap of others"),
    "ensembles2": Part(partial(ensembles, cores=2), "the same on two cores", cores=2),
    "folding": Part(folding, "predictions before and after batch normalisations are folded"),
    "forward": Part(forwards, "forward from Python, beside other libraries and the peak"),
    "neighbour": Part(neighbours, "two threads beside a busy process, over alone", cores=2),
    "start": Part(starts, "process start to the first finished step"),
}


def parse_parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    return names


def parser() -> argparse.ArgumentParser:
    about = "; ".join(f"{name}: {part.about}" for name, part in PARTS.items())
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=about)
    p.add_argument(
        "--only", type=parse_parts, default=list(PARTS), metavar="PART,...",
        help=f"some of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    p.add_argument("--seconds", type=float, default=5.0, help="measuring one comparison (5)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    p.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Measure each part in a process of its own, and show what it found."""
    options = parser().parse_args(arguments)
    if options.worker:
        (name,) = options.only
        say = teller()
        run = PARTS[name].measure(options.seconds, say)
        say("")
        write_json(options.json, {"cores": options.worker, "pinned_to": usable_cores()} | run)
        return 0
    runs: dict[str, dict[str, Any]] = {}
    for name in options.only:
        part = PARTS[name]
        given = ["--only", name, "--seconds", str(options.seconds)]
        runs[name] = run_pinned(__file__, given, part.cores, part.environment)
        print("\n".join([*table(name, runs[name]), ""]), flush=True)
        if options.json:
            asked = {"seconds_a_comparison": options.seconds}
            write_json(options.json, machine() | asked | {"parts": runs})
    return int(any(map(faulty, runs.values())))


if __name__ == "__main__":
    sys.exit(main())
