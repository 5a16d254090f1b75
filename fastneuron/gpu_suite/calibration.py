"""The constants behind device="auto", each measured on the card beside the one in use.

`kernels.device_cost` has them from data sheets and publications; what is printed here is what may
take their place. Figures of the simulator mean nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastneuron.gpu_suite.doors import KERNELS
from fastneuron.gpu_suite.engines import NUMBA, SIMULATED_TILE, Kind
from fastneuron.gpu_suite.racing import Timer, by_host, by_numba_events
from fastneuron.gpu_suite.running import OK, WRONG, Budget, Finding, NotHere
from fastneuron.gpu_suite.workloads import Workload
from fastneuron.kernels import device_cost, numba_cuda
from fastneuron.kernels.device_card import Card, cards
from fastneuron.kernels.device_cost import Task, peak_of, step_on_card
from fastneuron.kernels.device_launches import launches_of
from fastneuron.kernels.device_plan import ALIGNMENT, TRAINS, Blocks, blocks_of, tile_of
from fastneuron.layers import Dense, Dropout
from fastneuron.losses import LOSSES
from fastneuron.optimizers import N_SCALARS, OPTIMIZERS, SGD, UpdateKind
from fastneuron.testing import case_of, loaded, run_steps, scalars_of

__all__ = ["PAPER", "costs", "predicted"]

#: Stands for the card where there is none: an H100's data sheet.
PAPER = Card("card of paper", (9, 0), 80 << 30, 132, 1.755e9, 3.35e12)
ROUNDS = 5
START_SECONDS = 120.0

#: Makes an engine in a fresh process; no kernel is compiled for that.
START = """
import time
import fastneuron as fn
from fastneuron import backends
from fastneuron.losses import LOSSES
net = fn.mlp([4, 3, 2], seed=0)
start = time.perf_counter()
engine = backends.on_device("cuda").engine(net.spec, LOSSES["mse"], fn.SGD(0.1))
engine.load([(each.weight, each.bias) for each in net.layers])
engine.export()
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes
    ----------
    launches : int
        Of a row of short kernels.
    side : int
        Of a square product.
    numbers : int
        Of a vector that is updated.
    bytes : int
        That are sent to the card.
    steps : (int, int)
        Of a short and a long run.
    """

    launches: int = 200
    side: int = 4096
    numbers: int = 2**26
    bytes: int = 2**28
    steps: tuple[int, int] = (50, 250)


SIMULATED_EXTENT = Extent(4, 8, 64, 4096, (1, 2))

#: A figure's unit and how it was come by.
Figure = tuple[str, str, Callable[[], float]]


def costs(kind: Kind, budget: Budget, *, simulated: bool) -> Finding:
    """Measure each constant that this engine shows; what it cannot show is said."""
    extent = SIMULATED_EXTENT if simulated else Extent()
    if kind.name == NUMBA:
        figures = _of_numba(kind, extent, simulated=simulated)
    else:
        figures = {"LAUNCH": ("s", "a step's share", partial(_by_steps, kind, extent))}
    entries: dict[str, dict[str, Any]] = {}
    for name, (unit, how, measure) in figures.items():
        in_use = getattr(device_cost, name.partition(",")[0])
        entry = entries[name] = {"in_use": in_use, "unit": unit, "how": how}
        if not budget.left:
            entry["said"] = "no time was left for it"
            continue
        try:
            entry["measured"] = measure()
        except NotHere as reason:
            entry["said"] = str(reason)
        except Exception as error:
            entry["said"] = f"{type(error).__name__}: {error}"
            entry["wrong"] = True
    wrong = [name for name, entry in entries.items() if entry.get("wrong")]
    details = {"costs": entries, "simulated": simulated}
    if wrong:
        return Finding("", WRONG, f"{wrong[0]}: {entries[wrong[0]]['said']}", 0.0, details)
    count = sum("measured" in entry for entry in entries.values())
    said = f"{count} of {len(entries)} constants of device='auto' measured: see the table"
    if simulated:
        said += "; SIMULATED, so that no figure means anything"
    return Finding("", OK, said, 0.0, details)


def predicted(workload: Workload, kind: Kind, *, simulated: bool) -> float | None:
    """Return the seconds that the model predicts of a workload's step, or None if it knows none."""
    found = [PAPER] if simulated else cards()
    if workload.precision != "float32" or workload.models > 1 or not found:
        return None
    if kind.name not in KERNELS or not (found[0].clock and found[0].bandwidth):
        return None
    row = workload.row
    optimizer = OPTIMIZERS[row.optimizer]()
    given = row.spec(row.dtype), LOSSES[row.loss], optimizer, row.batch
    task = Task(*given, on_device=True, kernels=KERNELS[kind.name])
    return step_on_card(task, row.batch, found[0])


def _of_numba(kind: Kind, extent: Extent, *, simulated: bool) -> dict[str, Figure]:
    names = ("driver", "launches", "graph", "products", "updates", "outcome")
    k = SimpleNamespace(
        **{name: import_module(f"{numba_cuda.__name__}.{name}") for name in names},
        extent=extent,
        tile=SIMULATED_TILE if simulated else tile_of("float32"),
        threads=8 if simulated else Blocks().threads,
        card=PAPER if simulated else cards()[0],
    )
    k.stream = k.driver.new_stream()
    k.timer = _waiting(k) if simulated else by_numba_events(k.driver.cuda)
    return {
        "LAUNCH": ("s", "short kernels in a recorded graph", partial(_in_graph, k)),
        "LAUNCH, queued": ("s", "short kernels one by one", partial(_queued, k)),
        "SHARE": ("", "our product beside the peak of all tiles' rounds", partial(_share, k)),
        "MEMORY_SHARE": ("", "adam's update beside the data sheet", partial(_memory_share, k)),
        "TRANSFER": ("B/s", "a pageable array to the card", partial(_transfer, k)),
        "COMPILE": ("s", "first launches of kernels, less the second", partial(_compile, k)),
        "START": ("s", "an engine in a fresh process", _start),
    }  # fmt: skip


def _waiting(k: Any) -> Timer:
    def timer(work: Callable[[int], object], units: int) -> float:
        return by_host(lambda n: (work(n), k.stream.synchronize()), units)

    return timer


def _seconds(timer: Timer, work: Callable[[], object], units: int = 1) -> float:
    """Return the median seconds of one `work`, of some rounds of so many, after a first."""

    def repeated(count: int) -> None:
        for _ in range(count):
            work()

    repeated(1)
    return median(timer(repeated, units) / units for _ in range(ROUNDS))


def _short(k: Any) -> list[Callable[[], None]]:
    """Return launches of a kernel of one thread, which have run before."""
    state = k.driver.zeros(2, np.int64, k.stream)
    launch = k.launches.Launch(k.outcome.advance(), 1, 1, (state,))
    calls: list[Callable[[], None]] = k.launches.prepared([launch] * k.extent.launches, k.stream)
    k.launches.run_all(calls)
    k.stream.synchronize()
    return calls


def _in_graph(k: Any) -> float:
    if problem := k.graph.why_not():
        raise NotHere(problem)
    calls = _short(k)
    graph = k.graph.Graph(k.stream, lambda: k.launches.run_all(calls))
    return _seconds(k.timer, graph.replay, 10) / len(calls)


def _queued(k: Any) -> float:
    calls = _short(k)
    return _seconds(_waiting(k), lambda: k.launches.run_all(calls), 10) / len(calls)


def _vector(k: Any, count: int) -> Any:
    """Return random numbers on the card: zeros would take less power, and run faster."""
    vector = k.driver.empty(count, np.float32)
    k.driver.put(vector, np.random.default_rng(0).random(count, np.float32), k.stream)
    return vector


def _product(k: Any, make: Callable[..., Any]) -> Callable[[], None]:
    side, tile = k.extent.side, k.tile
    kernel = make(tile, "float32", "identity", True, False, True, True)
    x, w, y = (_vector(k, side * side) for _ in range(3))
    grid = blocks_of(side, tile.columns), blocks_of(side, tile.rows)
    arguments = x, w, _vector(k, side), _vector(k, 1), y, side, side, side
    launch = k.launches.Launch(kernel, grid, tile.threads, arguments)
    (call,) = k.launches.prepared([launch], k.stream)
    return call


def _share(k: Any) -> float:
    side, tile = k.extent.side, k.tile
    seconds = _seconds(k.timer, _product(k, k.products.forward), 5)
    blocks = blocks_of(side, tile.rows) * blocks_of(side, tile.columns)
    rounds = blocks_of(blocks, k.card.multiprocessors)
    return rounds * tile.rows * tile.columns * side / peak_of(k.card, "float32") / seconds


def _update(k: Any, make: Callable[..., Any]) -> Callable[[], None]:
    n, threads = k.extent.numbers, k.threads
    marks = k.driver.empty(n // ALIGNMENT, np.uint8)
    k.driver.put(marks, np.full(n // ALIGNMENT, TRAINS, np.uint8), k.stream)
    table = k.updates.table_of(np.full((1, N_SCALARS), 0.5), "float32").reshape(-1)
    there = k.driver.empty(table.size, np.float32)
    k.driver.put(there, table, k.stream)
    state = k.driver.zeros(2, np.int64, k.stream)
    arguments = *(_vector(k, n) for _ in range(4)), marks, there, _vector(k, 1), state, n
    kernel = make(UpdateKind.ADAM, 2, "float32", threads)
    launch = k.launches.Launch(kernel, blocks_of(n, threads), threads, arguments)
    (call,) = k.launches.prepared([launch], k.stream)
    return call


def _memory_share(k: Any) -> float:
    seconds = _seconds(k.timer, _update(k, k.updates.update), 5)
    # Parameter and two moments are read and written, the gradient is read.
    return float(7 * 4 * k.extent.numbers / seconds / k.card.bandwidth)


def _transfer(k: Any) -> float:
    numbers = np.random.default_rng(0).random(k.extent.bytes // 4, np.float32)
    vector = k.driver.empty(numbers.size, np.float32)
    return numbers.nbytes / _seconds(_waiting(k), lambda: k.driver.put(vector, numbers, k.stream))


def _compile(k: Any) -> float:
    """Return the median of a heavy kernel, a light one and one of nothing."""
    state = k.driver.zeros(2, np.int64, k.stream)
    advance = k.launches.Launch(k.outcome.advance.__wrapped__(), 1, 1, (state,))
    calls = [
        _product(k, k.products.forward.__wrapped__),
        _update(k, k.updates.update.__wrapped__),
        *k.launches.prepared([advance], k.stream),
    ]
    k.stream.synchronize()
    timer = _waiting(k)

    def seconds(call: Callable[[], None]) -> float:
        first, second = (timer(lambda count: call(), 1) for _ in range(2))
        return max(first - second, 0.0)

    return median(seconds(call) for call in calls)


def _start() -> float:
    result = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True, text=True, check=False, timeout=START_SECONDS,
    )  # fmt: skip
    last = (result.stderr.strip().splitlines() or [""])[-1]
    assert result.returncode == 0, f"it ended with {result.returncode}: {last}"
    return float(result.stdout)


def _by_steps(kind: Kind, extent: Extent) -> float:
    """Return a launch's share of a step whose kernels have next to nothing to do."""
    layers = Dense(4, 8, "relu"), Dropout(0.5), Dense(8, 8, "relu"), Dense(8, 2)
    case = case_of(*layers, rows=8, batch=8, optimizer=SGD(1e-3))
    engine = loaded(kind.new(case.spec, case.loss, case.optimizer, batch_size=8), case)

    def run(steps: int) -> float:
        order, bounds = np.tile(np.arange(8), steps), np.arange(steps + 1) * 8
        start = time.perf_counter()
        run_steps(engine, case, order, bounds, scalars_of(case, steps))
        return time.perf_counter() - start

    short, long = extent.steps
    run(long), run(long)
    extra = median(run(long) for _ in range(ROUNDS)) - median(run(short) for _ in range(ROUNDS))
    launches = launches_of(case.spec, 8, KERNELS.get(kind.name, ""))
    return max(extra, 0.0) / (long - short) / launches
