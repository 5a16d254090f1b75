"""Training steps of fastneuron and its peers, side by side, against the machine's FMA peak.

``python benchmarks/engine.py --help``; README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measure the clone it lies in

from ours import Reference
from peak import try_peak
from peers import PEERS
from problems import TABLE, Peer, Problem, Row, Unsupported, draw_order, problem_of
from report import table

from fastneuron.kernels.contract import Parameters

Array = Any
Say = Callable[[str], None]

#: A result is wrong where a step's loss is off by this share of the float64 reference's loss, or
#: the way that some array of parameters went by this share of the reference's way (both as sums of
#: absolute values). What is allowed to float32 are the few ReLUs whose input is zero but for its
#: rounding: they send Adam's first steps elsewhere. A learning rate 2 % off is 2e-2 of the way.
LOSS_TOLERANCE, WAY_TOLERANCE = 1e-3, 1e-2
#: Multiply-adds of the steps that are compared: a second of float64 at 50 GFLOP/s.
CHECK_WORK, LEAST_CHECKED, MOST_CHECKED = 25e9, 2, 10
#: Rounds that a row's time is shared among, and the fewest, however little time there is.
ROUNDS, LEAST_ROUNDS = 9, 5
#: Seconds of one timed block, at most, and its steps: the order of a block stays in a cache.
LONGEST_BLOCK, MOST_STEPS = 0.1, 32768
#: Seconds that another library's threads may spin for after their last work (OpenBLAS: 80 ms, 2^26
#: cycles) before they leave the second core to others.
SETTLE = 0.15


def ways(parameters: Parameters, start: Parameters) -> list[Array]:
    """Return how far every parameter has come, a float64 array for each weight and bias."""
    return [
        np.subtract(array, first, dtype=np.float64)
        for pair, origin in zip(parameters, start, strict=True)
        for array, first in zip(pair, origin, strict=True)
        if array is not None
    ]


class WrongResult(Exception):
    """A peer's steps are not those of the reference; the message says by how much."""


class Judge:
    """Compares a peer's steps with those of the float64 reference on the same batches."""

    def __init__(self, row: Row, rng: np.random.Generator) -> None:
        steps = int(np.clip(CHECK_WORK / row.multiply_adds, LEAST_CHECKED, MOST_CHECKED))
        self.order = draw_order(rng, row.data_rows, row.batch, steps)
        self._want: dict[Problem, tuple[Array, list[Array]]] = {}

    def errors(self, peer: Peer, losses: Array) -> tuple[float, float]:
        """Return the errors of loss and way after `order` was trained; raise if they are large."""
        if peer.problem not in self._want:
            reference = Reference(peer.problem)
            want = reference.advance(self.order)
            self._want[peer.problem] = want, ways(reference.export(), peer.problem.parameters)
        want, goals = self._want[peer.problem]
        if not peer.loss_each_step:
            want = np.full(len(want), want.mean())
        gone = ways(peer.export(), peer.problem.parameters)
        loss_error = float(np.max(np.abs(losses - want) / np.abs(want)))
        # A dead layer's way is 0, and so must be the peer's: 0 / 0 is no error, more / 0 is.
        way_error = max(
            float(np.abs(got - goal).sum() / (np.abs(goal).sum() or np.finfo(np.float64).tiny))
            for got, goal in zip(gone, goals, strict=True)
        )
        # Not "error > tolerance": a NaN is wrong too.
        if not (loss_error <= LOSS_TOLERANCE and way_error <= WAY_TOLERANCE):
            raise WrongResult(
                f"after {len(want)} steps the loss is off by {loss_error:.1e} (allowed "
                f"{LOSS_TOLERANCE:.0e}), an array's way by {way_error:.1e} ({WAY_TOLERANCE:.0e})"
            )
        return loss_error, way_error


class Entrant:
    """A peer that was started and checked on a row, with the timings it has so far."""

    def __init__(self, kind: type[Peer], problem: Problem, judge: Judge, cores: int) -> None:
        start = time.perf_counter()
        self.peer = kind(problem, cores)
        losses = self.peer.advance(judge.order)
        first = time.perf_counter() - start
        self.loss_error, self.way_error = judge.errors(self.peer, losses)
        self.peer.reset()
        start = time.perf_counter()
        self.peer.advance(judge.order)
        again = time.perf_counter() - start
        self.start_seconds = max(first - again, 0.0)
        self.step_seconds = again / len(judge.order)  # a guess, for the length of a block
        self.seconds: list[float] = []
        self.block = 1

    def time(self, before: Array, order: Array, settle: float) -> None:
        time.sleep(settle)
        if self.step_seconds < LONGEST_BLOCK / 5:
            self.peer.advance(before)  # brings parameters and code back into the caches
        start = time.perf_counter()
        losses = self.peer.advance(order)
        self.seconds.append((time.perf_counter() - start) / len(order))
        if not np.isfinite(losses).all():
            raise WrongResult("the loss is no longer finite")

    def result(self) -> dict[str, Any]:
        low, middle, high = 1e6 * np.percentile(self.seconds, (25, 50, 75))
        return {
            "status": "ok",
            "microseconds": middle,
            "quartiles": [low, high],
            "rounds": len(self.seconds),
            "steps_a_block": self.block,
            "start_seconds": self.start_seconds,
            "loss_error": self.loss_error,
            "way_error": self.way_error,
        }


def failure(error: Exception) -> dict[str, Any]:
    status = {Unsupported: "unsupported", WrongResult: "wrong"}.get(type(error), "failed")
    lines = str(error).strip().splitlines() or [""]
    reason = lines[0] if status != "failed" else f"{type(error).__name__}: {lines[0]}"
    return {"status": status, "reason": reason[:300]}


def measure_row(
    row: Row, kinds: Sequence[type[Peer]], cores: int, seconds: float, say: Say
) -> dict[str, dict[str, Any]]:
    """Return, by peer, the median of interleaved rounds, or why there is none."""
    rng = np.random.default_rng(1)
    problem, judge = problem_of(row), Judge(row, rng)
    results: dict[str, dict[str, Any]] = {}
    entrants: dict[str, Entrant] = {}
    for kind in kinds:
        say(f"{cores} core(s), {row.label}: starting {kind.name}")
        try:
            entrants[kind.name] = Entrant(kind, problem, judge, cores)
        except Exception as error:  # whatever a peer does, the others are measured
            results[kind.name] = failure(error)
    target = min(LONGEST_BLOCK, seconds / (ROUNDS * max(1, len(entrants))))
    for entrant in entrants.values():
        entrant.block = int(np.clip(target / entrant.step_seconds, 1, MOST_STEPS))
    a_round = sum(max(target, entrant.step_seconds) for entrant in entrants.values())
    rounds = int(np.clip(seconds / max(a_round, 1e-9), LEAST_ROUNDS, ROUNDS))
    shuffled = random.Random(2)
    for turn in range(rounds + 1):
        say(f"{cores} core(s), {row.label}: round {turn} of {rounds}")
        # In another order each time, so that nobody always follows the same neighbour.
        for name in shuffled.sample(list(entrants), len(entrants)):
            entrant = entrants[name]
            order = draw_order(rng, row.data_rows, row.batch, 2 * entrant.block)
            before, order = order[: entrant.block], order[entrant.block :]
            try:
                if turn == 0:  # unmeasured: jax-scan compiles for the block's length
                    entrant.peer.advance(order)
                else:
                    entrant.time(before, order, SETTLE if cores > 1 else 0.0)
            except Exception as error:
                results[name] = failure(error)
                del entrants[name]
    results.update({name: entrant.result() for name, entrant in entrants.items()})
    return {kind.name: results[kind.name] for kind in kinds}


def judged(row: Row, peers: dict[str, Any], peak: float | None, cores: int) -> dict[str, Any]:
    """Return a row's entry in the JSON: medians, floor, efficiency, and the best peer."""
    timed = {name: peer["microseconds"] for name, peer in peers.items() if "microseconds" in peer}
    ours = timed.get("fastneuron-numba")
    others = {name: t for name, t in timed.items() if not PEERS[name].ours}
    best = min(others, key=others.__getitem__, default=None)
    floor = None if peak is None else 2e-3 * row.multiply_adds / (peak * cores)
    return {
        "row": row.label,
        "loss": row.loss,
        "multiply_adds": row.multiply_adds,
        "floor_microseconds": floor,
        "efficiency": floor / ours if floor and ours else None,
        "goal": row.goals[cores - 1] if cores <= len(row.goals) else None,
        "best_peer": best,
        "ratio_to_best_peer": others[best] / ours if best and ours else None,
        "peers": peers,
    }


def measure(options: argparse.Namespace, cores: int, say: Say) -> dict[str, Any]:
    """Do one run on the cores that this process may use."""
    kinds = [PEERS[name] for name in options.peers]
    missing = {kind.name: reason for kind in kinds if (reason := kind.missing())}
    present = [kind for kind in kinds if kind.name not in missing]
    peaks = {dtype: try_peak(dtype) for dtype in ("float32", "float64")}
    measured = []
    for row in options.rows:
        measured.append(measure_row(row, present, cores, options.seconds, say))
        again = try_peak(row.dtype, 3)  # whatever clock the CPU reaches in this run counts
        peaks[row.dtype] = max(peaks[row.dtype] or 0, again or 0) or None
    pinned = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cores": cores,
        "pinned_to": pinned,
        "peak_gflops_a_core": peaks,
        "versions": {kind.name: kind.version() for kind in present},
        "missing": missing,
        "rows": [
            judged(row, peers, peaks[row.dtype], cores)
            for row, peers in zip(options.rows, measured, strict=True)
        ],
    }


def environment(cores: int) -> dict[str, str]:
    """Return the variables by which libraries are told their threads before they are loaded."""
    told = dict(os.environ)
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM", "BLIS"):
        told[f"{name}_NUM_THREADS"] = str(cores)
    # The engine chooses, up to the cores that it is pinned to.
    told.pop("FASTNEURON_NUM_THREADS", None)
    told |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    told["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes beside the measurement
    if cores == 1:
        told["FASTNEURON_NUM_THREADS"] = "1"
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        told["XLA_FLAGS"] = f"{told.get('XLA_FLAGS', '')} {flags}".strip()
    return told


def run_pinned(arguments: list[str], cores: int) -> dict[str, Any]:
    """Measure in a new process, pinned to `cores` cores before it loads anything."""
    pin = None
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < cores:
            return {"cores": cores, "skipped": f"{len(usable)} usable cores only"}
        pin = partial(os.sched_setaffinity, 0, usable[:cores])
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *arguments, "--worker", str(cores)]
        # preexec_fn is safe here: this process has no other thread.
        done = subprocess.run(
            [*command, "--json", str(result)], env=environment(cores), preexec_fn=pin, check=False
        )
        if done.returncode or not result.exists():
            return {"cores": cores, "skipped": f"the run ended with exit code {done.returncode}"}
        return json.loads(result.read_text("utf-8"))


def faults(run: dict[str, Any]) -> bool:
    """Whether a result was wrong, or one of ours could not be measured."""
    rows = run.get("rows", [])
    return "skipped" in run or any(
        peer["status"] == "wrong" or (PEERS[name].ours and peer["status"] == "failed")
        for row in rows
        for name, peer in row["peers"].items()
    )


def parse_rows(text: str) -> list[Row]:
    rows = []
    for part in text.split(","):
        if part.strip().isdecimal():
            if not 1 <= int(part) <= len(TABLE):
                raise argparse.ArgumentTypeError(f"rows are 1 to {len(TABLE)}, got {part.strip()}")
            rows.append(TABLE[int(part) - 1])
        else:
            rows.append(Row.parse(part))
    return rows


def parse_peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}: there are {', '.join(PEERS)}")
    return names


def parser() -> argparse.ArgumentParser:
    known = "; ".join(f"{i} {row.label}" for i, row in enumerate(TABLE, 1))
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"rows: {known}")
    p.add_argument(
        "--rows", type=parse_rows, default=list(TABLE), metavar="ROW,...",
        help="numbers of the table, or networks such as '20-64-64-2 b32 adam tanh float64 nobias'",
    )  # fmt: skip
    p.add_argument("--cores", type=int, choices=(1, 2), help="default: 1, then 2")
    p.add_argument(
        "--seconds", type=float, default=5.0, help="measuring a row, all peers together (5)"
    )
    p.add_argument("--peers", type=parse_peers, default=list(PEERS), help=", ".join(PEERS))
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    p.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Measure in one process for each number of cores, and show what they found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    shown = sys.stderr.isatty()

    def say(text: str) -> None:
        if shown:
            print(f"{text:79.79}", end="\r", file=sys.stderr, flush=True)

    if options.worker:
        run = measure(options, options.worker, say)
        say("")
        options.json.write_text(json.dumps(run), "utf-8")
        return 0
    runs = []
    for cores in (options.cores,) if options.cores else (1, 2):
        run = run_pinned(arguments, cores)
        runs.append(run)
        single = runs[0] if len(runs) == 2 and "rows" in runs[0] else None
        print("\n".join([*table(run, single), ""]), flush=True)
    if options.json:
        found = {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "numba_cpu_name": os.environ.get("NUMBA_CPU_NAME"),
            "seconds_a_row": options.seconds,
            "tolerance": {"loss": LOSS_TOLERANCE, "way": WAY_TOLERANCE},
            "runs": runs,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return int(any(faults(run) for run in runs))


if __name__ == "__main__":
    sys.exit(main())
