"""One engine and one data order: training step by step, or many steps a call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.arrays import Array, fits_rows, fits_targets
from fastneuron.choice import chosen
from fastneuron.chunks import Chunk, Network, Pace
from fastneuron.descriptions import checked_count
from fastneuron.divergence import diverged
from fastneuron.errors import DataError, SpecError
from fastneuron.intake import Intake
from fastneuron.kernels.contract import Parameters, Status
from fastneuron.keys import StepKeys
from fastneuron.layers import Dropout
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import Optimizer, as_optimizer
from fastneuron.order import Batches, Part, checked_seed
from fastneuron.parameters import LiveEngine
from fastneuron.plans import Plan
from fastneuron.rates import Rates
from fastneuron.schedules import Horizon
from fastneuron.threads import requested_threads

__all__ = ["Chunk", "Trainer"]


class Trainer:
    """Trains a network: one optimizer with its moments, one engine, one data order.

    Several trainers may share a network: `net.layers[i].weight` is current whichever was used last.

    Parameters
    ----------
    net : Sequential
    loss : str or Loss, optional
        A name of `fastneuron.losses.LOSSES`. Left out, only `forward` and `update` can be used.
    optimizer : str or Optimizer
    batch_size : int
        Rows of a step of `run`; `step` takes whatever comes.
    backend : str or Backend
        "auto", "numba", "cython", "numpy" or "cuda"; see `fastneuron.backends`.
    n_threads : int, optional
        Left out, FASTNEURON_NUM_THREADS, else the engine's own choice. Never changes a result.
    seed : int, optional
        Decides the data order. Left out, the network's.
    device : {None, "cpu", "cuda", "auto"}
        Left out, the CPU, unless the backend is "cuda". "auto": a card that is predicted to take
        half of the CPU's time or less for a step and its data; ``backend.reason`` says why. On a
        device every array may be one that lies there: see `DeviceArray`.
    precision : {"float32", "tf32", "bfloat16"}
        What a card may round the factors of a training step's products to: ``docs/precision.md``.

    Attributes
    ----------
    step_count : int
        Optimizer steps done by this trainer; schedules count them.
    epoch_count : int
        Epochs begun by `run`: the number that, with the seed, decides the next epoch's order.

    Raises
    ------
    UnknownNameError, BackendUnavailable
        Where a name is in no table, or the backend cannot run here; the message says what can.
    SpecError
        Where backend and device contradict each other.
    """

    def __init__(
        self,
        net: Network,
        loss: str | Loss | None = None,
        optimizer: str | Optimizer = "adam",
        batch_size: int = 32,
        backend: str | backends.Backend = "auto",
        n_threads: int | None = None,
        seed: int | None = None,
        device: str | None = None,
        precision: str = "float32",
    ) -> None:
        self.net = net
        self.spec = net.spec
        self.loss = loss if isinstance(loss, Loss) or loss is None else LOSSES[loss]
        self.optimizer = as_optimizer(optimizer)
        self.batch_size = checked_count("Trainer", "batch_size", batch_size)
        self.n_threads = requested_threads(n_threads)
        self.backend = chosen(
            self.spec, self.loss, self.optimizer, self.batch_size, self.n_threads, backend, device
        )
        self.seed = net.seed if seed is None else checked_seed(seed)
        self.step_count = 0
        self.epoch_count = 0
        self._store = net.parameters
        self._dtype = np.dtype(self.spec.dtype)
        self._features, self._outputs = self.spec.in_features, self.spec.out_features
        self._kind = self.loss.targets if self.loss else None
        self.backend.check_precision(precision, self.spec.dtype)
        engine = partial(self.backend.engine, n_threads=self.n_threads, batch_size=self.batch_size)
        make = partial(engine, self.spec, self.loss, self.optimizer, precision=precision)
        self._live = LiveEngine(self._store, make, self.backend.name, lambda: self.step_count)
        self._rates = Rates(self.optimizer)
        self._on_device = self.backend.device != "cpu"
        self._intake = Intake(self._live, self._on_device)
        # Engines that run Python within a step, where Ctrl-C could cut it in two.
        slow = self.backend.name == "numpy" or not self.backend.has_engine
        self._guard_steps = slow or self._on_device
        # Until the first step: then they have their keys.
        self._draws = any(isinstance(layer, Dropout) for layer in self.spec.layers)
        self._kept = 0  # rows of the last `forward`, 0 where `update` has none to work on
        self._pace = Pace()
        # Of `step`: made once.
        self._order, self._bounds = np.empty(0, np.int64), np.zeros(2, np.int64)
        self._losses = np.empty(1)

    def __repr__(self) -> str:
        loss = self.loss.name if self.loss else None
        return (
            f"Trainer(loss={loss!r}, optimizer={self.optimizer!r}, batch_size={self.batch_size}, "
            f"backend={self.backend.name!r}, step_count={self.step_count})"
        )

    def step(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Do one optimizer step on a batch and return its mean loss before the step.

        Parameters
        ----------
        x : array_like (n, in_features)
        y : array_like
            See `fastneuron.arrays.as_targets`.
        sample_weight : array_like (n,), optional
            Scaled to mean 1 over these rows.

        Raises
        ------
        DataError
            Where shapes or values are wrong; nothing is changed.
        NonFiniteError
            Where the loss or the gradient is not finite; that step is not applied.
        """
        # NaN and infinity in arrays that fit already are left to the engine, which finds them in
        # the loss or the gradient of that very step and applies nothing.
        kind = self._kind or self._need_loss().targets
        features, outputs, dtype = self._features, self._outputs, self._dtype
        if not fits_rows(x, features, dtype):
            x = self._intake.rows(x, "x")
        n = len(x)
        if not fits_targets(y, kind, n, outputs, dtype):
            y = self._intake.targets(y, kind, n)
        weight = None if sample_weight is None else self._intake.weights(sample_weight, n)
        if n < 2:
            self._intake.check_batch(n)
        store, live = self._store, self._live
        with store.lock:
            if store.owner is not live:
                self._claim()
            if len(self._order) != n:
                self._order = np.arange(n, dtype=np.int64)
                self._bounds = np.array([0, n], np.int64)
            self._kept = 0
            if self._draws:
                self._begin_keys()
            run = live.guarded_run if self._guard_steps or not live.proven else live.engine.run
            step = self.step_count
            row = self._rates.row(step)
            outcome = run(x, y, weight, self._order, self._bounds, row, self._losses)
            if outcome.status:
                x = self._intake.accused(x, "x")
                if y.ndim == 2:
                    self._intake.accused(y, "y")
                where = 0, step, self._rates.rate(step)
                raise diverged(store, outcome.status, x, row[0], *where)
            self.step_count = step + 1
            loss = self._losses.item(0)
            if self._on_device:
                self._intake.let_go()
                self._intake.keep()
        if self._guard_steps:
            live.release()
        return loss

    def run(
        self, X: Any, y: Any, epochs: int = 1, shuffle: bool = True, sample_weight: Any = None
    ) -> NDArray[np.float64]:
        """Train for whole epochs and return the mean loss of every batch before its step.

        Five runs of one epoch meet the rows in the order of one run of five. A last batch that is
        not full is trained like the others. Schedules that need the length of the training take
        the end of this call for it.

        Parameters
        ----------
        X : array_like (n, in_features)
        y : array_like
            See `fastneuron.arrays.as_targets`.
        epochs : int
        shuffle : bool
            False takes the rows as they come.
        sample_weight : array_like (n,), optional
            Scaled to mean 1 over all rows.

        Returns
        -------
        (epochs * ceil(n / batch_size),) float64

        Raises
        ------
        DataError, NonFiniteError
            As in `step`; what was trained before is kept.
        KeyboardInterrupt
            On Ctrl-C, after the running chunk of steps: within about 50 ms.
        """
        x, targets, weight = self.checked(X, y, sample_weight)
        parts = []
        begun: list[NDArray[np.float64]] = []  # of the epoch under way
        for chunk in self.chunks(x, targets, weight, epochs, shuffle, span=not self._rates.watches):
            parts.append(chunk.losses)
            if self._rates.watches:
                begun.append(chunk.losses)
                if chunk.part.ends_epoch:
                    self.observe(float(np.mean(np.concatenate(begun))))
                    begun = []
        return np.concatenate(parts)

    def forward(self, x: Any) -> Array:
        """Return the output (n, out_features) for x and keep what `update` needs of these rows.

        It is the output in training: normalised by this batch, with numbers dropped.
        """
        x = self._intake.rows(x, "x")
        self._intake.check_batch(len(x))
        with self._store.lock:
            self._live.refresh()
            out = self._live.asked(self._live.engine.forward_keep, x, self._next_row())
            self._kept = len(x)
        return out

    def update(self, dout: Any) -> Array:
        """Do one optimizer step for the rows of the last `forward`, with a loss of your own.

        Parameters
        ----------
        dout : array_like (n, out_features)
            dL/d(output), already holding whatever mean over the batch the loss wants.

        Returns
        -------
        (n, in_features) ndarray
            dL/dx at the parameters before the step.
        """
        if not self._kept:
            raise DataError("update(dout) needs a forward(x) just before it, for the same rows")
        rows = dout
        if not fits_rows(dout, self._outputs, self._dtype):
            rows = self._intake.rows(dout, "dout", self._outputs)
        if len(rows) != self._kept:
            shape = self._kept, self._outputs
            raise DataError(f"dout has shape {rows.shape}, but forward(x) gave {shape}")
        with self._store.lock:
            if self._live.claim():
                raise DataError("the parameters changed since forward(x): call forward again")
            self._kept = 0
            row = self._next_row()[0]
            dx, outcome = self._live.guarded_update(rows, row)
            if outcome.status:
                self._intake.accused(rows, "dout")
                step = self.step_count
                rate = self._rates.rate(step)
                raise diverged(self._store, outcome.status, None, row, 0, step, rate)
            self.step_count += 1
            self._intake.keep()
        self._live.release()
        return dx

    def gradients(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[float, Parameters]:
        """Return the batch's mean loss and (dweight, dbias or None) a layer; nothing is updated.

        They are the next step's: with its dropped numbers. What is not trained has gradient zero.
        """
        x, y, weight = self.checked(x, y, sample_weight)
        self._intake.check_batch(len(x))
        with self._store.lock:
            self._live.refresh()
            self._kept = 0
            row = self._next_row()
            engine: Any = self._live.engine
            loss, gradients = self._live.asked(engine.gradients, x, y, weight, row)
            if not np.isfinite(loss):
                x, step = self._intake.on_host(x), self.step_count
                where = 0, step, self._rates.rate(step)
                raise diverged(self._store, Status.LOSS_NOT_FINITE, x, row[0], *where)
        return loss, gradients

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean loss over the rows of X at the current parameters."""
        return self.mean_loss(*self.checked(X, y, sample_weight))

    def mean_loss(self, x: Array, y: Array, weight: Array | None) -> float:
        """Do what `evaluate` does, on what `checked` returns."""
        out = self._intake.on_host(self._live.forward(x))
        return self._need_loss().mean(out, self._intake.on_host(y), weight)

    def observe(self, metric: float) -> None:
        """Feed the metric (lower is better) that a `Plateau` schedule watches; `fit` does it."""
        self._rates.observe(metric)

    @property
    def plan(self) -> Plan:
        """How this trainer computes and why, to be printed, or looked up like a dictionary.

        What it holds, with a step's predicted and measured time, is said at `Plan`.
        """
        return Plan.of(
            self._live.engine.plan(),
            backend=self.backend.name,
            reason=self.backend.reason,
            device=self.backend.device,
            batch_size=self.batch_size,
            n_parameters=self.spec.n_parameters,
        )

    def checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Array, Array, Array | None]:
        """Return data as engines take it; `chunks` wants it so."""
        kind = self._need_loss().targets
        x = self._intake.rows(X, "X")
        targets = self._intake.targets(y, kind, len(x))
        return x, targets, self._intake.weights(sample_weight, len(x))

    def on_host(self, array: Any) -> Array:
        """Return what `checked` returned as a NumPy array, copied where it lies on the device."""
        return self._intake.on_host(array)

    def chunks(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        epochs: int,
        shuffle: bool = True,
        *,
        span: bool = True,
    ) -> Iterator[Chunk]:
        """Train for `epochs` epochs, giving control back after each call of the engine.

        Parameters
        ----------
        x, y, weight
            From `checked`.
        epochs : int
        shuffle : bool
        span : bool
            Whether a chunk may hold several whole epochs, so that tiny data sets do not pay for
            Python at every epoch. False where something must happen at each epoch's end.
        """
        epochs = checked_count("run", "epochs", epochs)
        self._intake.check_batch(min(len(x), self.batch_size))
        if self._draws:
            self._begin_keys()
        batches = Batches(
            len(x),
            self.batch_size,
            epochs,
            shuffle=shuffle,
            seed=self.seed,
            first_epoch=self.epoch_count,
            span=span,
        )
        first_epoch = self.epoch_count
        end = self.step_count + epochs * batches.steps_per_epoch
        horizon = Horizon(end, batches.steps_per_epoch)
        try:
            while (part := batches.take(self._pace.steps)) is not None:
                self.epoch_count = first_epoch + part.epoch + max(1, part.whole_epochs)
                yield self._chunk(x, y, weight, part, horizon)
        finally:
            self._intake.let_go()

    def _chunk(
        self, x: Array, y: Array, weight: Array | None, part: Part, horizon: Horizon
    ) -> Chunk:
        """Train one part; leave the count, the pace and the error, if any, right."""
        order, bounds = part.order, part.bounds
        steps = len(bounds) - 1
        rates = self._rates.rates(self.step_count, steps, horizon)
        scalars = self._rates.scalars(self.step_count, rates)
        losses = np.empty(steps)
        with self._store.lock:
            if self._store.owner is not self._live:
                self._claim()
            self._kept = 0
            self._intake.hold(x, y, weight)
            start = time.perf_counter()
            outcome = self._live.guarded_run(x, y, weight, order, bounds, scalars, losses)
            seconds = time.perf_counter() - start
            self.step_count += outcome.steps
            if outcome.status:
                s = outcome.steps
                failed = self._intake.on_host(x)[order[bounds[s] : bounds[s + 1]]]
                epoch = part.epoch + s * part.whole_epochs // steps
                where = epoch, self.step_count, float(rates[s])
                raise diverged(self._store, outcome.status, failed, scalars[s], *where)
            self._intake.keep()
        self._pace.note(steps, seconds)
        self._live.release()
        return Chunk(part, losses, float(rates[-1]), seconds)

    def _next_row(self) -> NDArray[np.float64]:
        """Return the scalars (1, N_SCALARS) of the next step."""
        if self._draws:
            self._begin_keys()
        return self._rates.row(self.step_count)

    def _begin_keys(self) -> None:
        """Give steps their keys: the training's, named by the epoch that it begins with."""
        self._rates.use_keys(StepKeys(self.seed, self.epoch_count))
        self._draws = False

    def _claim(self) -> None:
        if self._live.lost:  # with the device went the steps since
            self.step_count = self._live.kept
            self._live.lost = False
        self._live.claim()
        if self.loss is not None:
            self._store.loss = self.loss.name

    def _need_loss(self) -> Loss:
        if self.loss is None:
            raise SpecError(
                "this trainer has no loss: give one, Trainer(net, loss=...), "
                f"from {', '.join(LOSSES)}; or use forward(x) and update(dout)"
            )
        return self.loss
