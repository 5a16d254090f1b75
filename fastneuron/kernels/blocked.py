"""An engine over the blocked layout: all but the compiled workers, which a backend supplies."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels import columns as at
from fastneuron.kernels import marks, stages
from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics, Status
from fastneuron.kernels.cost import PROBE_ROWS, WORK_TO_WAKE, Course, measured_speeds
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.explanation import explain
from fastneuron.kernels.layout import Layout, aligned, from_panels, to_panels
from fastneuron.kernels.speeds import TYPICAL, Speeds
from fastneuron.layers import Dense
from fastneuron.losses import Loss
from fastneuron.optimizers import N_SCALARS, Optimizer
from fastneuron.spec import NetworkSpec
from fastneuron.threads import run_team, usable_cores

_ONE_STEP = np.zeros((1, N_SCALARS), np.float64)
_WHOLE_STEP = stages.FORWARD | stages.LOSS | stages.BACKWARD | stages.UPDATE
#: Speeds that this process has measured, for (backend, dtype).
_speeds: dict[tuple[str, str], Speeds] = {}


@lru_cache(maxsize=64)
def _outcome(status: int, steps: int) -> Outcome:
    """Return the outcome; made once, since making one takes 0.2 us."""
    return Outcome(Status(status), steps)


class BlockedEngine(Engine):
    """Training state resident in one arena, allocated once; steps run in chunks of compiled code.

    The same bits come out for every thread count, chunking and batch capacity. Calls from several
    Python threads take turns.
    """

    #: Name of the backend, for `plan`.
    backend: ClassVar[str]

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(spec, loss, optimizer, n_threads=n_threads, batch_size=batch_size)
        self._dtype = np.dtype(spec.dtype)
        self._max_threads = n_threads or usable_cores()
        self._words = np.zeros(stages.words(self._max_threads), np.int64)
        self._turn = threading.Lock()
        self._training = Course(self._max_threads, n_threads)
        self._inference = Course(self._max_threads, n_threads)
        self._kept = 0  # rows whose activations `update` can use
        self._row_work = spec.multiply_adds
        self._infer_work = spec.n_parameters
        self._outputs = spec.out_features
        self._no_targets = self._input(np.empty((0, 0), self._dtype))
        self._no_weight = self._input(np.empty(0, self._dtype))
        self._no_labels = self._input(np.empty(0, np.int64))
        self._lay_out(batch_size)
        self._arena[: self._layout.persistent] = 0
        self._layout.write_numbers(self._arena)

    # What a backend supplies.

    @abstractmethod
    def _lanes(self) -> int:
        """Columns of a panel."""

    def _input(self, array: Array) -> Array:
        """Return an array that workers only read in the form that they take."""
        return array

    @abstractmethod
    def _train(self, *arguments: Any) -> None:
        """Run the compiled training worker as one thread of the team."""

    @abstractmethod
    def _infer(self, *arguments: Any) -> None:
        """Run the compiled inference worker as one thread of the team."""

    # State.

    def _lay_out(self, capacity: int) -> None:
        self._layout = Layout.build(self.spec, self._lanes(), capacity, self._max_threads)
        head = self._layout.head
        head[at.LOSS] = -1 if self.loss is None else self.loss.code
        head[at.UPDATE] = -1 if self.optimizer is None else self.optimizer.kind
        head[at.DECAY_BIAS] = self.optimizer is not None and self.optimizer.decay_bias
        self._arena = aligned(self._layout.size, self._dtype)
        self._fill_up_inputs()
        # Worker code steps through positions with 64-bit integers from 0: the identity order of a
        # batch that is given whole.
        self._identity = self._input(np.arange(self._layout.capacity, dtype=np.int64))

    def _fill_up_inputs(self) -> None:
        """Zero the lanes of the input rows that no feature is ever written to."""
        features = self.spec.in_features
        view = self._layout.rows_view(
            self._arena, int(self._layout.layers[0, at.IN_ROWS]), features
        )
        view[-1, :, features - (len(view) - 1) * self._lanes() :] = 0

    def _grow(self, rows: int) -> None:
        """Make room for batches of `rows` rows; state is kept, scratch is not."""
        if rows <= self._layout.capacity:
            return
        old, persistent = self._arena, self._layout.persistent
        stale = self._layout.head[at.STALE]
        self._lay_out(rows)
        self._arena[:persistent] = old[:persistent]
        self._layout.head[at.STALE] = stale
        self._kept = 0

    def _region(self, entry: int) -> Array:
        start = int(self._layout.head[entry])
        return self._arena[start : start + self._layout.n_parameters]

    def load(self, parameters: Parameters) -> None:
        with self._turn:
            self._layout.pack(parameters, self._region(at.PARAMETERS))
            for index, (weight, _bias) in enumerate(parameters):
                if weight.ndim < 2:
                    continue
                transposed = self._layout.transposed_view(self._arena, index)
                transposed[...] = to_panels(weight.T, self._lanes())
            self._layout.head[at.STALE] = 0

    def export(self) -> Parameters:
        with self._turn:
            return self._layout.unpack(self._region(at.PARAMETERS))

    def load_statistics(self, statistics: Statistics) -> None:
        with self._turn:
            self._layout.pack_statistics(statistics, self._arena)

    def export_statistics(self) -> Statistics:
        with self._turn:
            return self._layout.unpack_statistics(self._arena)

    def load_moments(self, moments: Sequence[Parameters]) -> None:
        with self._turn:
            for region, moment in zip((at.MOMENT_1, at.MOMENT_2), moments, strict=False):
                self._layout.pack(moment, self._region(region))

    def export_moments(self) -> list[Parameters]:
        count = 0 if self.optimizer is None else self.optimizer.n_moments
        with self._turn:
            regions = (at.MOMENT_1, at.MOMENT_2)[:count]
            return [self._layout.unpack(self._region(region)) for region in regions]

    # Work.

    def _call(
        self,
        worker: Any,
        arguments: tuple[Any, ...],
        course: Course,
        rows: int,
        step_work: int,
        steps: int,
        timed: bool = False,
        room: int = 0,
    ) -> Outcome:
        """Run a worker on as many threads as pay, and read off how it went.

        The caller holds the turn; each of the steps is worth `step_work` multiply-adds. `timed`
        says that they are whole training steps, whose time people ask for; `room` is for how many
        marks of time there is room in the words, a thread.
        """
        threads = planned = self.n_threads or 1
        if self.n_threads is None and step_work * steps >= WORK_TO_WAKE:
            planned = course.choice(rows, steps, self._predictor(course)).threads
            threads = course.pace.pick(planned)
        words = self._words
        words.fill(0)
        if room:
            marks.ask(words, room)
        start = time.perf_counter()
        if threads == 1:
            worker(*arguments, words, 0, 1)
        else:

            def work(tid: int) -> None:
                worker(*arguments, words, tid, threads)

            def abort() -> None:
                words[stages.ABORTED] = 1

            run_team(threads, work, abort)
        seconds = time.perf_counter() - start
        status, whole = words.item(stages.STATUS), words.item(stages.STEPS)
        if course.warm and not status:
            course.pace.record(planned, threads, step_work * steps, seconds)
            if timed:
                course.clock.note(rows, threads, steps, seconds)
        course.warm = True
        return _outcome(status, whole)

    def _train_call(
        self,
        stage: int,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
        rows: int,
        room: int = 0,
    ) -> Outcome:
        labels, targets = (y, self._no_targets) if y.ndim == 1 else (self._no_labels, y)
        given = self._input
        arguments = (
            stage,
            self._arena,
            self._layout.head,
            self._layout.layers,
            self._layout.tiles,
            given(x),
            given(labels),
            given(targets),
            given(self._no_weight if weight is None else weight),
            given(order),
            given(bounds),
            given(scalars),
            losses,
        )
        work, steps = self._row_work * rows, len(bounds) - 1
        timed = stage == _WHOLE_STEP
        return self._call(self._train, arguments, self._training, rows, work, steps, timed, room)

    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> Outcome:
        with self._turn:
            return self._run((x, y, weight, order, bounds, scalars, losses))

    def run_marked(self, *batches: Any, room: int) -> tuple[Outcome, list[NDArray[np.int64]]]:
        """Do what `run` does with the same arguments, and return each thread's marks of time too.

        Parameters
        ----------
        room : int
            Marks that a thread has room for; later ones are left out.

        Returns
        -------
        outcome : Outcome
        marks : list of (n, 2) int64
            Codes and ticks, see `fastneuron.kernels.marks`; one array a thread of the team.
        """
        with self._turn:
            usual = self._words
            self._words = np.zeros(marks.words(self._max_threads, room), np.int64)
            try:
                return self._run(batches, room), marks.read(self._words, self._max_threads)
            finally:
                self._words = usual

    def _run(self, batches: tuple[Any, ...], room: int = 0) -> Outcome:
        x, y, weight, order, bounds, scalars, losses = batches
        rows = int(np.diff(bounds).max()) if len(bounds) > 2 else int(bounds[1] - bounds[0])
        self._grow(rows)
        self._kept = 0
        return self._train_call(
            _WHOLE_STEP, x, y, weight, order, bounds, scalars, losses, rows, room
        )

    def _whole_batch(
        self, stage: int, x: Array, y: Array, weight: Array | None, scalars: Any
    ) -> Any:
        """One step's stages on rows given whole, in their order."""
        rows = len(x)
        bounds = np.array([0, rows], np.int64)
        loss = np.zeros(1, np.float64)
        order = self._identity[:rows]
        if scalars is None:
            scalars = _ONE_STEP
        return self._train_call(stage, x, y, weight, order, bounds, scalars, loss, rows), loss[0]

    def forward(self, x: Array) -> Array:
        rows = len(x)
        out = np.empty((rows, self._outputs), self._dtype)
        work = self._infer_work * rows
        with self._turn:
            layout, given = self._layout, self._input(x)
            arguments = (self._arena, layout.head, layout.layers, given, out)
            if work < WORK_TO_WAKE and self.n_threads in (None, 1):
                # What `_call` would do, but for clocks that nobody looks at: a third of the time of
                # one row of a small network.
                self._infer(*arguments, self._words, 0, 1)
            else:
                self._call(self._infer, arguments, self._inference, rows, work, 1)
        return out

    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        with self._turn:
            self._grow(len(x))
            self._whole_batch(stages.FORWARD, x, self._no_targets, None, scalars)
            self._kept = len(x)
            return self._rows(at.OUT_ROWS, -1, self.spec.out_features, len(x))

    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        if len(dout) != self._kept:
            raise ValueError(f"update() of {len(dout)} rows after forward_keep() of {self._kept}")
        stage = stages.FOREIGN | stages.BACKWARD | stages.UPDATE | stages.INPUT_DELTA
        with self._turn:
            outcome, _loss = self._whole_batch(stage, dout, dout, None, scalars.reshape(1, -1))
            self._kept = 0
            return self._rows(at.IN_DELTA, 0, self.spec.in_features, len(dout)), outcome

    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        stage = stages.FORWARD | stages.LOSS | stages.BACKWARD
        with self._turn:
            self._grow(len(x))
            self._kept = 0
            _outcome, loss = self._whole_batch(stage, x, y, weight, scalars)
            return float(loss), self._layout.unpack_gradient(self._arena)

    def _rows(self, column: int, index: int, columns: int, rows: int) -> Array:
        offset = int(self._layout.layers[index, column])
        view = self._layout.rows_view(self._arena, offset, columns)
        return from_panels(view[:, :rows], columns)

    # What people and tests look at.

    @property
    def tiles(self) -> NDArray[np.int64]:
        """The table of what phase B visits."""
        return self._layout.tiles

    def poison(self, value: float) -> None:
        """Fill all scratch with `value`: results must not change. For tests."""
        with self._turn:
            self._arena[self._layout.persistent :] = value
            self._fill_up_inputs()
            self._kept = 0

    @cached_property
    def _model(self) -> StepModel:
        return StepModel(self.spec, self.loss, self.optimizer, lanes=self._lanes())

    @property
    def _speed_key(self) -> tuple[str, str]:
        return self.backend, self.spec.dtype

    def _step_seconds(self, rows: int, threads: int) -> float:
        return self._model.step(rows, threads, _speeds.get(self._speed_key, TYPICAL)).seconds

    def _inference_seconds(self, rows: int, threads: int) -> float:
        return self._model.inference(rows, threads, _speeds.get(self._speed_key, TYPICAL))

    def _predictor(self, course: Course) -> Callable[[int, int], float]:
        # Not kept in the course: the engine would hold on to itself, and its arena live on.
        return self._step_seconds if course is self._training else self._inference_seconds

    def _measure(self) -> Speeds:
        """Return this machine's speeds, measured once a process by an engine of one layer."""
        if self._speed_key not in _speeds:
            spec = NetworkSpec.chain([Dense(256, 128)], self.spec.dtype)
            probe = type(self)(spec, n_threads=1)
            rows = np.ones((PROBE_ROWS, 256), self._dtype)
            _speeds[self._speed_key] = measured_speeds(lambda: probe.forward(rows), probe._model)
        return _speeds[self._speed_key]

    def plan(self) -> dict[str, Any]:
        speeds = self._measure()
        with self._turn:
            self._training.forget()
            self._inference.forget()
            rows = self._training.clock.rows or self.batch_size
            said = explain(self._training, self._model, rows, speeds)
            return {"backend": self.backend, **said, **self._layout.explain()}
