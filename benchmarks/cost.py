"""What the cost model predicts beside what steps take; ``--fit`` derives its prices anew.

``python benchmarks/cost.py --threads 1 2`` prints the rows of the table. After a change of the
kernels, ``taskset -c 0 python benchmarks/cost.py --fit`` prints what `prices.Prices` should hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measure the clone it lies in


from fastneuron import backends
from fastneuron.kernels import stages
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.prices import Prices
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, Optimizer
from fastneuron.peers.problems import TABLE, Row, draw_order, problem_of
from fastneuron.rates import Rates
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec

#: Steps that move nothing far, so that thousands of them stay finite.
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(1e-5),
    "momentum": SGD(1e-5, momentum=0.9),
    "adam": Adam(1e-6),
}
#: What a fit looks at beside the table: ragged, deep, wide, narrow, few rows and many, all kinds of
#: layers. What one pass takes, nobody here does alone: it keeps its least price.
MORE = """
64-64-10 b64 sgd; 256-256-10 b64 adam; 100-100-100-100-3 b100 momentum; 512-512-512 b128 sgd;
32-32-32-1 b16 adam; 784-30-10 b10 sgd; 17-40-40-6 b256 adam; 1024-1024-10 b64 sgd;
1024-1024-10 b64 adam; 50-20-1 b500 momentum; 300-200-100-50-10 b32 adam;
128-128-128-128-128-128-128-10 b128 momentum; 2000-16-2 b64 sgd; 4-400-4 b1000 adam;
256-1024-256 b8 sgd; 512-512-10 b1 sgd; 10-2048-2048-10 b32 adam; 64-2048-64 b256 momentum;
1500-96-1 b48 adam; 8-16-16-4 b8 momentum; 512-512-512-512 b2048 sgd; 200-200-200 b333 adam;
784-512-512-10 b256 adam batch_norm; 20-64-64-2 b32 adam batch_norm;
64-128*6-10 b128 sgd batch_norm; 17-256-256-6 b256 adam layer_norm; 20-64-64-2 b32 adam layer_norm;
64-128*6-10 b128 sgd layer_norm; 784-512-512-10 b256 adam dropout0.1;
17-256-256-6 b256 sgd dropout0.1
"""
#: Forward passes that tie down the probe that `measured_speeds` uses: sizes, rows.
FORWARD = (((256, 128), 64), ((256, 128), 256), ((128, 256), 64), ((20, 64, 64, 2), 1024))
#: Stages whose times are told apart, and the parts of the estimate that they do.
STAGES: dict[str, tuple[int, Sequence[str]]] = {
    "forward": (stages.FORWARD, ("gather", "forward", "step")),
    "loss": (stages.FORWARD | stages.LOSS, ("gather", "forward", "loss", "step")),
    "step": (stages.FORWARD | stages.LOSS | stages.BACKWARD | stages.UPDATE, ()),
}
#: Seconds of one timed call, and the calls of which the fastest counts: a call can be disturbed, it
#: cannot be lucky.
CALL_SECONDS, CALLS = 0.005, 20
#: Lowest price that a fit may give: what the work takes at the least, or little work would be free.
LEAST = {"row_slots": 1.05, "batch_slots": 1.05, "row_tile": 8, "batch_tile": 8, "row_panel": 10,
         "gathered": 20, "loss_row": 8, "visit": 20, "bound": 0.5, "squared": 0.5,
         "one_pass": 3, "transposed": 2, "streamed_byte": 0.05, "second_byte": 0.2,
         "third_byte": 0.7, "memory_byte": 3, "sgd_update": 2, "momentum_update": 3,
         "adam_update": 8}  # fmt: skip


def least_seconds(call: Callable[[], object]) -> float:
    """Return the least time of a call, the first left out: it may compile."""
    seconds = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure(row: Row, threads: int, wanted: Sequence[str]) -> tuple[Any, dict[str, float]]:
    """Return an engine that trained a row, and the seconds of each wanted stage of a step."""
    problem = problem_of(row)
    optimizer = OPTIMIZERS[row.optimizer]
    engine: Any = backends.get("numba").engine(
        problem.spec(row.dtype),
        LOSSES[row.loss],
        optimizer,
        n_threads=threads,
        batch_size=row.batch,
    )
    engine.load(problem.parameters)
    guess = row.multiply_adds / 80e9 + 1e-6
    steps = max(2, min(5000, int(CALL_SECONDS / guess)))
    order = draw_order(np.random.default_rng(0), row.data_rows, row.batch, steps).reshape(-1)
    bounds = np.arange(steps + 1, dtype=np.int64) * row.batch
    rates = Rates(optimizer)
    scalars = rates.scalars(0, rates.rates(0, steps, Horizon(steps, steps)))
    losses = np.zeros(steps)
    given = (problem.x, problem.y, None, order, bounds, scalars, losses, row.batch)
    return engine, {
        name: least_seconds(partial(engine._train_call, STAGES[name][0], *given)) / steps
        for name in wanted
    }


def compare(rows: Sequence[Row], counts: Sequence[int]) -> None:
    """Print predicted and measured steps."""
    print(f"{'row':32} {'threads':>7} {'predicted':>10} {'measured':>10} {'off':>6}")
    for row in rows:
        for threads in counts:
            engine, seconds = measure(row, threads, ("step",))
            got, want = engine.plan()["predicted_step_us"], 1e6 * seconds["step"]
            off = f"{got / want - 1:+.0%}"
            print(f"{row.label:32} {threads:7} {got:10.2f} {want:10.2f} {off:>6}", flush=True)


def singles() -> dict[str, Prices]:
    """Return, for each price, prices of which it is 1 and all others are 0."""
    free = {field.name: 0.0 for field in fields(Prices) if field.name != "update"}
    updates = dict.fromkeys(Prices().update, 0.0)
    found = {name: Prices(**{**free, name: 1.0}, update=updates) for name in free}
    for name in LEAST:
        if name in updates:
            found[name] = Prices(**free, update={**updates, name: 1.0})
    return found


def fit() -> None:
    """Print the prices whose predictions on one thread have the least squared relative error."""
    from scipy.optimize import nnls

    basis = singles()
    table, want, labels = [], [], []
    for row in [*TABLE, *(Row.parse(text) for text in MORE.replace("\n", " ").split(";"))]:
        engine, seconds = measure(row, 1, list(STAGES))
        speeds = engine._measure()
        lanes = engine._lanes()
        for name, (_bits, parts) in STAGES.items():
            models = [
                StepModel(engine.spec, engine.loss, engine.optimizer, prices=prices, lanes=lanes)
                for prices in basis.values()
            ]
            table.append(
                [
                    sum(
                        part.seconds
                        for part in model.step(row.batch, 1, speeds).parts
                        if not parts or part.name in parts
                    )
                    for model in models
                ]
            )
            want.append(seconds[name])
            labels.append(f"{row.label} {name}")
    for sizes, rows in FORWARD:
        spec = NetworkSpec.chain([Dense(a, b) for a, b in pairwise(sizes)])
        engine = backends.get("numba").engine(spec, n_threads=1)
        one, many = (
            least_seconds(partial(engine.forward, np.ones((n, sizes[0]), np.float32)))
            for n in (1, rows)
        )
        models = [
            StepModel(spec, None, None, lanes=engine._lanes(), prices=p) for p in basis.values()
        ]
        table.append([model.inference(rows, 1, speeds) for model in models])
        want.append(many - 0.8 * one)  # of a call with one row, most is Python
        labels.append(f"{'-'.join(map(str, sizes))} forward of {rows}")
    least = np.array([LEAST.get(name, 0.0) for name in basis])
    seen, seconds_seen = np.array(table), np.array(want)
    relative = seen / seconds_seen[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    found, _ = nnls(relative / scale, 1 - relative @ least)
    prices = found / scale + least
    for name, price in zip(basis, prices, strict=True):
        print(f"{name:18} {price:8.3g}")
    off = seen @ prices / seconds_seen - 1
    for label, error in zip(labels, off, strict=True):
        print(f"{label:50} {error:+.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=Row.parse, nargs="+", default=TABLE)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    if arguments.fit:
        fit()
    else:
        compare(arguments.rows, arguments.threads)


if __name__ == "__main__":
    main()
