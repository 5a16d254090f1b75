"""Where a training step goes: its parts, layer by layer and thread by thread.

The engine's own code notes when a thread begins which part (`fastneuron.kernels.marks`), so what is
measured is the step that trains, fused as it is. Chunks with and without marks take turns: their
ratio says what looking costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.arrays import Array
from fastneuron.kernels import marks
from fastneuron.losses import Loss
from fastneuron.network import Sequential
from fastneuron.optimizers import Optimizer
from fastneuron.profiling.machine_ceilings import MachineCeilings
from fastneuron.profiling.machine_ceilings import ceilings as measured_ceilings
from fastneuron.profiling.marked_steps import MarkedSteps, span
from fastneuron.profiling.pairs import Ratio, ratio
from fastneuron.profiling.work import Work, work_of
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_targets
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
    ceilings: MachineCeilings
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
    machine: MachineCeilings | None = None,
) -> StepProfile:
    """Take a network's training step apart.

    Parameters
    ----------
    net : Sequential
        It stays as it is: engines of their own are trained.
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
    trainer = Trainer(net, loss, optimizer, batch_size, backend, n_threads)
    x, targets = _data(net, trainer.loss, batch_size) if X is None else (X, y)
    rows, targets, _ = trainer.checked(x, targets, None)
    course = MarkedSteps(trainer, net.parameters, rows, targets)
    course.check()
    plain, marked = course.measure(seconds)
    threads = len(course.found[0])
    if machine is None:
        machine = measured_ceilings(threads, dtypes=[net.spec.dtype])
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


def _data(net: Sequential, loss: Loss | None, batch_size: int) -> tuple[Array, Array]:
    """Draw rows to train on, and targets that the loss takes."""
    assert loss is not None  # the trainer was given one
    rng, dtype = np.random.default_rng(0), net.spec.dtype
    rows, outputs = _BATCHES * batch_size, net.spec.out_features
    x = rng.normal(size=(rows, net.spec.in_features)).astype(dtype)
    if loss.targets == "classes":
        return x, rng.integers(0, outputs, rows)
    return x, draw_targets(loss, rng, rows, outputs, dtype)


def _parts(
    course: MarkedSteps,
    marked: NDArray[np.float64],
    net: Sequential,
    optimizer: Optimizer,
    machine: MachineCeilings,
) -> tuple[Part, ...]:
    """Return the parts of a step, which sum up to the median of `marked`."""
    threads = len(course.found[0])
    sums: dict[int, NDArray[np.float64]] = {}
    whole = course.ticks_a_second * course.steps * float(marked.sum())
    sums[marks.END] = np.full(threads, whole - sum(map(span, course.found)))
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
        floor = machine.floor(2 * work.multiply_adds, work.moved, net.spec.dtype, work.held)
        parts.append(Part(PART_NAMES[part], layer, mean, imbalance, work, floor))
    return tuple(parts)
