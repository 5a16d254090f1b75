"""Where a training step goes: its parts, layer by layer and thread by thread.

The engine's own code notes when a thread begins which part (`fastneuron.kernels.marks`), so what is
measured is the step that trains, fused as it is. Chunks with and without marks take turns: their
ratio says what looking costs.
"""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.arrays import Array
from fastneuron.errors import BackendUnavailable, FastneuronError
from fastneuron.kernels import marks
from fastneuron.losses import LOSSES
from fastneuron.network import Sequential
from fastneuron.optimizers import Optimizer
from fastneuron.profiling import ceilings
from fastneuron.profiling.pairs import Ratio, ratio
from fastneuron.profiling.work import Work, work_of
from fastneuron.spec import NetworkSpec
from fastneuron.trainer import Trainer

__all__ = ["PART_NAMES", "Part", "StepProfile", "step"]

#: Parts by name, in the order in which a step meets them. "call" is what a chunk costs beside its
#: steps: Python, and waking the team.
PART_NAMES = {
    marks.GATHER: "gather",
    marks.FORWARD: "forward",
    marks.LOSS: "loss",
    marks.BACKWARD: "backward",
    marks.GRADIENT: "gradient",
    marks.UPDATE: "update",
    marks.REFRESH: "transpose",
    marks.CHECK: "check",
    marks.WAIT: "wait",
    marks.END: "call",
}
_OF_LAYERS = (marks.FORWARD, marks.LOSS, marks.BACKWARD, marks.GRADIENT, marks.UPDATE)
#: Seconds of a chunk with marks, and the fewest and the most rounds.
_CHUNK_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.02, 9, 400
#: Steps that are kept for a trace.
_TRACED = 8
#: Rows of the data that is drawn where none is given, in batches.
_BATCHES = 8


class Part(NamedTuple):
    """One line of a profile.

    Attributes
    ----------
    name : str
        A value of `PART_NAMES`.
    layer : int or None
    seconds : float
        Of a step: the mean over the team's threads, so that all parts sum up to the step.
    imbalance : float
        What the busiest thread spends there over the mean; 1 for one thread.
    work : Work
    floor : float
        Seconds that the work takes at least by the machine's ceilings; 0 where it has none.
    """

    name: str
    layer: int | None
    seconds: float
    imbalance: float
    work: Work
    floor: float

    @property
    def gflops(self) -> float:
        """10^9 operations a second, two a multiply-add."""
        return 2e-9 * self.work.multiply_adds / self.seconds if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        """10^9 bytes a second, of those that it must move."""
        return 1e-9 * self.work.moved / self.seconds if self.seconds else 0.0

    @property
    def efficiency(self) -> float | None:
        """Share of the ceiling that it reaches, or None where it has no work of its own."""
        return self.floor / self.seconds if self.floor and self.seconds else None


@dataclass(frozen=True)
class StepProfile:
    """A step taken apart; `print` it, or look at `parts`.

    Attributes
    ----------
    network, backend, dtype : str
    batch_size, threads : int
    parts : tuple of Part
        They sum up to `marked_seconds`.
    seconds : float
        Median of a step without marks.
    marked_seconds : float
        Median of a step with them.
    slowdown : Ratio
        With marks over without.
    allocations : int
        Bytes that Python allocated in a call of many steps, at its peak.
    steps : int
        That were looked at.
    ceilings : MachineCeilings
    timeline : list of (n, 2) float64
        Of each thread: microseconds since the first mark, and the code of the part that begins.
    """

    network: str
    backend: str
    dtype: str
    batch_size: int
    threads: int
    parts: tuple[Part, ...]
    seconds: float
    marked_seconds: float
    slowdown: Ratio
    allocations: int
    steps: int
    ceilings: ceilings.MachineCeilings
    timeline: list[NDArray[np.float64]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; the timeline is what `trace` returns."""
        return {
            "network": self.network,
            "backend": self.backend,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "step_seconds": self.seconds,
            "marked_step_seconds": self.marked_seconds,
            "marking": self.slowdown.to_json(),
            "allocated_bytes": self.allocations,
            "steps": self.steps,
            "ceilings": self.ceilings.to_json(),
            "parts": [
                {
                    "part": part.name,
                    "layer": part.layer,
                    "seconds": part.seconds,
                    "share": part.seconds / self.marked_seconds,
                    "imbalance": part.imbalance,
                    "multiply_adds": part.work.multiply_adds,
                    "bytes": part.work.moved,
                    "floor_seconds": part.floor,
                }
                for part in self.parts
            ],
        }

    def trace(self) -> dict[str, Any]:
        """Return the timeline as a Chrome trace, which Perfetto and chrome://tracing open."""
        events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": self.network}}
        ]
        for tid, line in enumerate(self.timeline):
            name = {"name": f"thread {tid}"}
            events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": name})
            for (begin, code), (end, _) in pairwise(line):
                part, layer = int(code) % marks.PARTS, int(code) // marks.PARTS
                label = PART_NAMES[part] + (f" {layer}" if part in _OF_LAYERS else "")
                events.append(
                    {
                        "name": label,
                        "cat": PART_NAMES[part],
                        "ph": "X",
                        "ts": begin,
                        "dur": end - begin,
                        "pid": 1,
                        "tid": tid,
                        "args": {"layer": layer} if part in _OF_LAYERS else {},
                    }
                )
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def __str__(self) -> str:
        from fastneuron.profiling.step_report import table

        return "\n".join(table(self))

    def _repr_html_(self) -> str:
        from fastneuron.profiling.step_report import html

        return html(self)


def step(
    net: Sequential,
    X: Any = None,
    y: Any = None,
    *,
    loss: str = "cross_entropy",
    optimizer: str | Optimizer = "adam",
    batch_size: int = 256,
    backend: str | backends.Backend = "auto",
    n_threads: int | None = None,
    seconds: float = 2.0,
    machine: ceilings.MachineCeilings | None = None,
) -> StepProfile:
    """Take a network's training step apart.

    Parameters
    ----------
    net : Sequential
        It stays as it is: a copy is trained.
    X, y : array_like, optional
        Data to train on, as `fit` takes it; left out, random rows.
    loss, optimizer, batch_size, backend, n_threads
        As `Trainer` takes them.
    seconds : float
        For measuring, ceilings left out.
    machine : MachineCeilings, optional
        From an earlier call; left out, they are measured, which takes a second or two.

    Raises
    ------
    BackendUnavailable
        Where the backend has no compiled engine: the reference notes no marks.
    FastneuronError
        Where a marked step does not train what an unmarked one does.
    """
    import copy

    trainer = Trainer(copy.deepcopy(net), loss, optimizer, batch_size, backend, n_threads)
    engine: Any = trainer._live.engine
    if not hasattr(engine, "run_marked"):
        raise BackendUnavailable(
            f"a step profile needs a compiled engine; {trainer.backend.name} has none that notes "
            "marks: use backend='cython' or 'numba'"
        )
    x, targets = _data(net, loss, batch_size) if X is None else (X, y)
    rows, targets, _ = trainer.checked(x, targets, None)
    course = _Course(trainer, rows, targets, min(batch_size, len(rows)))
    course.check()
    plain, marked = course.measure(seconds)
    threads = len(course.found[0])
    if machine is None:
        machine = ceilings.measure(threads, dtypes=[net.spec.dtype])
    return StepProfile(
        network=_label(net.spec),
        backend=trainer.backend.name,
        dtype=net.spec.dtype,
        batch_size=course.batch,
        threads=threads,
        parts=_parts(course, marked, net, trainer.optimizer, machine),
        seconds=float(np.median(plain)),
        marked_seconds=float(np.median(marked)),
        slowdown=ratio(marked, plain),
        allocations=course.allocations(),
        steps=course.steps * len(marked),
        ceilings=machine,
        timeline=course.timeline(_TRACED),
    )


def _label(spec: NetworkSpec) -> str:
    """Return the widths of a network, with what stands between its dense layers."""
    names = {"batch_norm": "bn", "layer_norm": "ln", "dropout": "do"}
    return "-".join(
        [str(spec.in_features)]
        + [names.get(layer.kind, str(layer.out_features)) for layer in spec.layers]
    )


def _data(net: Sequential, loss: str, batch_size: int) -> tuple[Array, Array]:
    """Draw rows to train on, and targets that the loss takes."""
    rng = np.random.default_rng(0)
    rows, outputs = _BATCHES * batch_size, net.spec.out_features
    x = rng.normal(size=(rows, net.spec.in_features)).astype(net.spec.dtype)
    kind = LOSSES[loss].targets
    if kind == "classes":
        return x, rng.integers(0, outputs, rows)
    if kind == "binary":
        return x, rng.integers(0, 2, (rows, outputs)).astype(net.spec.dtype)
    if kind == "counts":
        return x, rng.poisson(1.0, (rows, outputs)).astype(net.spec.dtype)
    return x, rng.normal(size=(rows, outputs)).astype(net.spec.dtype)


class _Course:
    """Chunks of steps of one trainer, with and without marks.

    Attributes
    ----------
    found : list of marks a thread, a round
    ticks_a_second : float
    """

    def __init__(self, trainer: Trainer, x: Array, y: Array, batch: int) -> None:
        self.batch = batch
        self.found: list[list[NDArray[np.int64]]] = []
        self.ticks_a_second = 0.0
        self._trainer = trainer
        self._x, self._y = x, y
        self._rng = np.random.default_rng(1)
        trainer._live.refresh()
        self._engine: Any = trainer._live.engine
        spec = trainer.spec
        blocks = -(-batch // 8) + len(spec.layers)
        engine: Any = self._engine
        tiles = len(engine.tiles)
        self._room = 2 * tiles + blocks * (2 * len(spec.layers) + 3) + 16  # marks a step
        self.steps = 1
        self._run(1, marked=False)
        start = time.perf_counter()
        self._run(2, marked=False)
        pace = (time.perf_counter() - start) / 2
        self.steps = int(np.clip(_CHUNK_SECONDS / pace, 2, 4096))

    def check(self) -> None:
        """Raise where a chunk with marks does not leave the parameters of one without."""
        results = []
        for marked in (False, True):
            self._engine.load(self._trainer._store.pull())
            moments = self._engine.export_moments()
            self._engine.load_moments([[(0 * w, b if b is None else 0 * b) for w, b in moment]
                                       for moment in moments])  # fmt: skip
            self._rng = np.random.default_rng(2)
            self._run(3, marked=marked)
            results.append([a.tobytes() for pair in self._engine.export() for a in pair
                            if a is not None])  # fmt: skip
        if results[0] != results[1]:
            raise FastneuronError("a step with marks trained other parameters: a fault of ours")

    def measure(self, seconds: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the seconds of a step, round by round: without marks, and with them."""
        plain, marked = [], []
        end = time.perf_counter() + seconds
        self.found = []
        for turn in range(_MOST_ROUNDS):
            pair: dict[bool, float] = {}
            for with_marks in (False, True) if turn % 2 else (True, False):
                pair[with_marks] = self._run(self.steps, marked=with_marks)
            plain.append(pair[False])
            marked.append(pair[True])
            if turn + 1 >= _LEAST_ROUNDS and time.perf_counter() > end:
                break
        return np.array(plain), np.array(marked)

    def allocations(self) -> int:
        """Return the bytes that Python held at most during a call of many steps."""
        given = self._given(self.steps)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            self._engine.run(*given)
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    def timeline(self, steps: int) -> list[NDArray[np.float64]]:
        """Return each thread's microseconds and codes over the last `steps` steps."""
        last = self.found[-1]
        ticks = self.ticks_a_second
        begin = max(float(line[max(0, len(line) - 1 - steps * (len(line) // self.steps)), 1])
                    for line in last)  # fmt: skip
        return [
            np.stack([1e6 * (line[:, 1] - begin) / ticks, line[:, 0]], axis=1)[line[:, 1] >= begin]
            for line in last
        ]

    def _given(self, steps: int) -> tuple[Any, ...]:
        n, batch = len(self._x), self.batch
        passes = -(-steps * batch // (n - n % batch))
        order = np.concatenate([self._rng.permutation(n)[: n - n % batch] for _ in range(passes)])
        rates = self._trainer._rates
        scalars = np.repeat(rates.row(0), steps, axis=0)
        bounds = np.arange(steps + 1, dtype=np.int64) * batch
        return self._x, self._y, None, order, bounds, scalars, np.empty(steps)

    def _run(self, steps: int, *, marked: bool) -> float:
        """Return the seconds of a step."""
        given = self._given(steps)
        start = time.perf_counter()
        if marked:
            outcome, found = self._engine.run_marked(*given, room=self._room * steps)
        else:
            outcome = self._engine.run(*given)
        seconds = time.perf_counter() - start
        if outcome.status:
            raise FastneuronError(
                f"the step that was to be profiled diverges ({outcome.status.name}): give data "
                "scaled to about 1, or a lower learning rate"
            )
        if marked:
            self.found.append(found)
            # The call that had the least beside its steps tells best what a tick is.
            self.ticks_a_second = max(self.ticks_a_second, _span(found) / seconds)
        return seconds / steps


def _span(found: list[NDArray[np.int64]]) -> float:
    """Return the ticks from a team's first mark to its last."""
    return float(max(line[-1, 1] for line in found) - min(line[0, 1] for line in found))


def _parts(
    course: _Course,
    marked: NDArray[np.float64],
    net: Sequential,
    optimizer: Optimizer,
    machine: ceilings.MachineCeilings,
) -> tuple[Part, ...]:
    """Return the parts of a step, which sum up to the median of `marked`."""
    threads = len(course.found[0])
    sums: dict[int, NDArray[np.float64]] = {}
    whole = course.ticks_a_second * course.steps * float(marked.sum())
    sums[marks.END] = np.full(threads, whole - sum(map(_span, course.found)))
    for found in course.found:
        begin = min(line[0, 1] for line in found)
        end = max(line[-1, 1] for line in found)
        for tid, line in enumerate(found):
            lasts = np.diff(line[:, 1]).astype(np.float64)
            for code in np.unique(line[:-1, 0]):
                own = sums.setdefault(int(code), np.zeros(threads))
                own[tid] += lasts[line[:-1, 0] == code].sum()
            # A thread that came late, or went early, waited for nobody's work.
            sums[marks.END][tid] += float(line[0, 1] - begin + end - line[-1, 1])
    scale = float(np.median(marked)) / whole
    fused = not any(code % marks.PARTS == marks.UPDATE for code in sums)
    rank = {part: i for i, part in enumerate(PART_NAMES)}
    parts = []
    for code in sorted(sums, key=lambda code: (rank[code % marks.PARTS], code)):
        part, index = code % marks.PARTS, code // marks.PARTS
        seconds = sums[code] * scale
        work = Work(0, 0, 0)
        if part in _OF_LAYERS or part == marks.GATHER:
            work = work_of(net.spec, optimizer, course.batch, part, index, fused=fused)
        mean = float(seconds.mean())
        layer = index if part in _OF_LAYERS else None
        imbalance = float(seconds.max()) / mean if mean else 1.0
        floor = machine.floor(net.spec.dtype, 2 * work.multiply_adds, work.moved, work.held)
        parts.append(Part(PART_NAMES[part], layer, mean, imbalance, work, floor))
    return tuple(parts)
