"""`fit`: epochs, validation, early stopping, callbacks and progress around a trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import initial
from fastneuron.arrays import Array, as_class_weights, as_weights
from fastneuron.backends import Backend
from fastneuron.callbacks import CallbackLike, EarlyStopping, FitState, chunk_end_of, epoch_end_of
from fastneuron.choice import chosen
from fastneuron.chunks import Chunk, Network
from fastneuron.descriptions import checked_count
from fastneuron.errors import DataError, SpecError
from fastneuron.kernels.contract import Parameters, Statistics
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import Optimizer, as_optimizer
from fastneuron.parameters import ParameterStore
from fastneuron.threads import requested_threads
from fastneuron.trainer import Trainer

__all__ = ["History", "fit"]

Rows = tuple[Array, Array, Array | None]  # x, targets, weight


@dataclass(frozen=True)
class History:
    """What `fit` saw, one entry an epoch.

    Attributes
    ----------
    loss : (epochs,) float64
        Mean training loss over the epoch's rows, each before the step it was used in.
    val_loss : (epochs,) float64
        Mean validation loss at the epoch's end; NaN without validation data.
    learning_rate : (epochs,) float64
        That of the epoch's last step.
    seconds : (epochs,) float64
        Time of the training steps, validation and callbacks left out. The first epoch's holds the
        compiling, where there is any. Epochs that were trained in one compiled call share its time
        evenly.
    best_epoch : int or None
        The epoch that early stopping found best.
    stopped_epoch : int or None
        The last epoch, where the training was stopped before the epochs asked for.
    backend : str
        The backend that did the work.
    reason : str
        Why it was that one; with ``device="auto"``, what a card and the CPU were predicted to take.
    """

    loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    seconds: NDArray[np.float64]
    best_epoch: int | None = None
    stopped_epoch: int | None = None
    backend: str = ""
    reason: str = ""

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        if not len(self):
            return "History(no epochs)"
        text = f"History({len(self)} epochs, loss {self.loss[0]:.4g} -> {self.loss[-1]:.4g}"
        if not np.isnan(self.val_loss).all():
            text += f", val_loss {self.val_loss[0]:.4g} -> {self.val_loss[-1]:.4g}"
        if self.best_epoch is not None:
            text += f", best epoch {self.best_epoch}"
        if self.stopped_epoch is not None:
            text += f", stopped after epoch {self.stopped_epoch}"
        return f"{text}, {self.seconds.sum():.3g} s)"


def fit(
    net: Network,
    X: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    optimizer: str | Optimizer = "adam",
    batch_size: int = 32,
    epochs: int = 1,
    validation_data: Sequence[Any] | None = None,
    validation_split: float = 0.0,
    shuffle: bool = True,
    callbacks: Sequence[CallbackLike] = (),
    progress: bool = False,
    early_stopping: EarlyStopping | None = None,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | str | None = None,
    backend: str = "auto",
    n_threads: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str = "float32",
) -> History:
    """Train a network in place and return the history.

    A second fit goes on from the parameters of the first, with a fresh optimizer and the next
    epochs' data orders. The first one sets the output bias by the rows to train on, with their
    weights, where the output layer has bias_init="class_prior".

    Parameters
    ----------
    net : Sequential
    X : array_like (n, in_features)
    y : array_like
        See `fastneuron.arrays.as_targets`.
    loss : str or Loss
        A name of `fastneuron.losses.LOSSES`.
    optimizer : str or Optimizer
    batch_size, epochs : int
    validation_data : (X, y) or (X, y, sample_weight), optional
    validation_split : float
        Share of the rows, drawn by the seed, that is held out for validation instead.
    shuffle : bool
        Whether each epoch meets the rows in a new order.
    callbacks : sequence of Callback or callable
        A plain function is called at each epoch's end.
    progress : bool
        Show a bar, on a terminal only.
    early_stopping : EarlyStopping, optional
    sample_weight : array_like (n,), optional
        Scaled to mean 1.
    class_weight : mapping of class to weight, or "balanced", optional
        Multiplies the rows' weights; "balanced" gives each class the same sum.
    backend, n_threads, seed
        See `Trainer`. With a seed, the data order starts anew with each fit.
    device : {None, "cpu", "cuda", "auto"}
        See `Trainer`. "auto" weighs the whole training: what it takes to bring the data to a card
        and to compile the kernels, and its steps, against the CPU's; a card must be predicted to
        take at most half of the time, since nobody has measured the card that is there.
    precision : {"float32", "tf32", "bfloat16"}
        See `Trainer`.

    Raises
    ------
    DataError, SpecError, UnknownNameError, BackendUnavailable
        Where something given is wrong; nothing is changed.
    NonFiniteError
        Where training diverges. The parameters are those of the last whole step.
    DeviceError
        Where a device fails or has too little memory; the message says which step's parameters
        the network has.
    KeyboardInterrupt
        On Ctrl-C, within half a second; likewise.
    """
    start = time.perf_counter()
    if loss is None:
        raise SpecError(f"fit needs a loss: loss=... one of {', '.join(LOSSES)}")
    entry = loss if isinstance(loss, Loss) else LOSSES[loss]
    rule, threads = as_optimizer(optimizer), requested_threads(n_threads)
    asked = net.spec, entry, rule, checked_count("fit", "batch_size", batch_size), threads
    found = chosen(*asked, backend, device, X, checked_count("fit", "epochs", epochs))
    trainer = Trainer(net, entry, rule, batch_size, found, threads, seed, precision=precision)
    store = net.parameters
    if seed is None:
        trainer.epoch_count = store.epochs
    train, held_out = _split_rows(
        trainer, X, y, sample_weight, validation_data, validation_split, class_weight
    )
    state = FitState(net, trainer, epochs)
    at_epoch = [call for c in callbacks if (call := epoch_end_of(c)) is not None]
    at_chunk = [call for c in callbacks if (call := chunk_end_of(c)) is not None]
    stopping = _Stopping(early_stopping, held_out is not None) if early_stopping else None
    watched = bool(
        at_epoch or stopping or held_out is not None or trainer.optimizer.schedule.state()
    )
    records = _Records(len(train[0]), trainer.batch_size)
    stopped_epoch = None
    begins = initial.wants_prior(store)
    if begins and trainer.loss is not None:
        initial.set_prior(store, trainer.loss, trainer.on_host(train[1]), train[2])
    try:
        with _bar(progress, epochs * records.steps_per_epoch) as bar:
            for chunk in trainer.chunks(*train, epochs, shuffle, span=not watched):
                part = chunk.part
                records.add(chunk)
                state.step = trainer.step_count
                state.learning_rate = chunk.learning_rate
                state.epoch = part.epoch + max(0, part.whole_epochs - 1)
                state.loss = float(chunk.losses.mean())
                state.val_loss = math.nan
                state.seconds = time.perf_counter() - start
                _call(at_chunk, state)
                if watched and part.ends_epoch:
                    state.loss = records.loss[-1]
                    if held_out is not None:
                        state.val_loss = trainer.mean_loss(*held_out)
                        records.val_loss[-1] = state.val_loss
                        state.seconds = time.perf_counter() - start
                    metric = state.loss if held_out is None else state.val_loss
                    trainer.observe(metric)
                    if stopping and stopping.look(state, store):
                        state.stop = True
                    _call(at_epoch, state)
                if bar is not None:
                    _show(bar, records, chunk)
                if state.stop:
                    if state.epoch + 1 < epochs or not part.ends_epoch:
                        stopped_epoch = state.epoch
                    break
    finally:
        store.epochs = max(store.epochs, trainer.epoch_count)
        store.pull()
        if begins and store.loss is None:  # refused before its first step
            initial.unset_prior(store)
    if stopping and stopping.best is not None:
        store.replace(*stopping.best)
    best_epoch = stopping.best_epoch if stopping else None
    return records.history(best_epoch, stopped_epoch, trainer.backend)


class _Records:
    """Adds the losses of chunks up to epochs."""

    def __init__(self, n: int, batch_size: int) -> None:
        size = min(n, batch_size)
        starts = np.arange(0, n, size)
        # A batch's share of the epoch's mean: its rows over all rows.
        self._share = np.minimum(size, n - starts) / n
        self.steps_per_epoch = len(starts)
        self._position = 0
        self._loss = self._seconds = 0.0  # of the epoch under way
        self._rate = math.nan
        self.loss: list[float] = []
        self.val_loss: list[float] = []
        self.learning_rate: list[float] = []
        self.seconds: list[float] = []

    def add(self, chunk: Chunk) -> None:
        """Take the chunk in."""
        whole = chunk.part.whole_epochs
        self._rate = chunk.learning_rate
        if whole:
            for loss in (chunk.losses.reshape(whole, -1) @ self._share).tolist():
                self._loss, self._seconds = loss, chunk.seconds / whole
                self._end()
            return
        last = self._position + len(chunk.losses)
        self._loss += float(chunk.losses @ self._share[self._position : last])
        self._seconds += chunk.seconds
        self._position = last
        if chunk.part.ends_epoch:
            self._end()

    def history(
        self, best_epoch: int | None, stopped_epoch: int | None, backend: Backend
    ) -> History:
        """Return what was taken in; an epoch cut short counts by the batches it had."""
        if self._position:
            self._loss /= float(self._share[: self._position].sum())
            self._end()
        return History(
            np.array(self.loss),
            np.array(self.val_loss),
            np.array(self.learning_rate),
            np.array(self.seconds),
            best_epoch,
            stopped_epoch,
            backend.name,
            backend.reason,
        )

    def _end(self) -> None:
        self.loss.append(self._loss)
        self.val_loss.append(math.nan)
        self.learning_rate.append(self._rate)
        self.seconds.append(self._seconds)
        self._position = 0
        self._loss = self._seconds = 0.0


class _Stopping:
    """What early stopping remembers while training."""

    def __init__(self, rule: EarlyStopping, validated: bool) -> None:
        if rule.monitor == "val_loss" and not validated:
            raise SpecError(
                "EarlyStopping watches val_loss, but there is no validation data: give "
                "validation_data or validation_split, or monitor='loss'"
            )
        self._rule = rule
        self._on_validation = validated and rule.monitor != "loss"
        self._lowest = math.inf
        self.best_epoch: int | None = None
        self.best: tuple[Parameters, Statistics] | None = None

    def look(self, state: FitState, store: ParameterStore) -> bool:
        """Take an epoch in; True where it is time to stop."""
        value = state.val_loss if self._on_validation else state.loss
        if self.best_epoch is None or value < self._lowest - self._rule.min_delta:
            self._lowest, self.best_epoch = value, state.epoch
            if self._rule.restore_best:
                self.best = store.pull(), store.pull_statistics()
        return state.epoch - self.best_epoch >= self._rule.patience


def _split_rows(
    trainer: Trainer,
    X: Any,
    y: Any,
    sample_weight: Any,
    validation_data: Sequence[Any] | None,
    validation_split: float,
    class_weight: Mapping[int, float] | str | None,
) -> tuple[Rows, Rows | None]:
    """Return the checked rows to train on, and those to validate on."""
    x, targets, weight = trainer.checked(X, y, sample_weight)
    held_out: Rows | None = None
    if not (isinstance(validation_split, (int, float)) and 0 <= validation_split < 1):
        raise SpecError(
            f"validation_split must be at least 0 and below 1, got {validation_split!r}"
        )
    if validation_data is not None:
        if validation_split:
            raise SpecError("give validation_data or validation_split, not both")
        if not (isinstance(validation_data, (tuple, list)) and len(validation_data) in (2, 3)):
            raise DataError("validation_data must be (X, y) or (X, y, sample_weight)")
        try:
            held_out = trainer.checked(*validation_data, *[None] * (3 - len(validation_data)))
        except DataError as error:
            raise DataError(f"validation_data: {error}") from None
    elif validation_split:
        if not (isinstance(x, np.ndarray) and isinstance(targets, np.ndarray)):
            raise SpecError(
                "validation_split takes rows out of arrays on the host: split those on a device "
                "yourself, and give validation_data"
            )
        n = len(x)
        n_out = max(1, round(n * validation_split))
        if n_out >= n:
            raise DataError(
                f"validation_split={validation_split} of {n} rows leaves none to train on"
            )
        # Key 2: a stream apart from the weights' (0) and the data order's (1).
        stream = np.random.SeedSequence(trainer.seed, spawn_key=(2,))
        rows = np.random.Generator(np.random.PCG64(stream)).permutation(n)
        out, kept = np.sort(rows[:n_out]), np.sort(rows[n_out:])
        held_out = (x[out], targets[out], None if weight is None else _mean_one(weight[out]))
        x, targets = x[kept], targets[kept]
        weight = None if weight is None else _mean_one(weight[kept])
    if class_weight is not None:
        per_row = as_class_weights(class_weight, *_class_shares(trainer, targets))
        weight = as_weights(per_row if weight is None else per_row * weight, len(x), x.dtype)
    return (x, targets, weight), held_out


def _mean_one(weight: Array) -> Array:
    return as_weights(weight, len(weight), weight.dtype)


def _class_shares(trainer: Trainer, targets: Array) -> tuple[Array, int]:
    """Return class numbers (n,) or each row's shares of the classes (n, C), and C."""
    kind = trainer.loss.targets if trainer.loss else ""
    targets = trainer.on_host(targets)
    if kind == "classes":
        return targets, trainer.spec.out_features
    if kind == "binary" and targets.shape[1] == 1:
        return np.concatenate([1 - targets, targets], axis=1), 2
    raise SpecError(
        "class_weight needs classes: the loss cross_entropy, or binary_cross_entropy with one "
        "output"
    )


def _call(calls: list[Any], state: FitState) -> None:
    for call in calls:
        if call(state) is True:
            state.stop = True


@contextmanager
def _bar(progress: bool, steps: int) -> Iterator[Any]:
    """Give a progress bar, or None; the bar is silent where there is no terminal."""
    if not progress:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step", disable=None) as bar:
        yield bar


def _show(bar: Any, records: _Records, chunk: Chunk) -> None:
    if chunk.part.ends_epoch:
        text = {"epoch": str(len(records.loss)), "loss": f"{records.loss[-1]:.4g}"}
        if not math.isnan(records.val_loss[-1]):
            text["val_loss"] = f"{records.val_loss[-1]:.4g}"
        bar.set_postfix(text, refresh=False)
    bar.update(len(chunk.losses))
