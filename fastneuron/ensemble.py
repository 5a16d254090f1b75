"""Many independent networks of one architecture, trained at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.alike import alike_networks, alike_optimizers
from fastneuron.arrays import Array
from fastneuron.choice import chosen
from fastneuron.chunks import Pace
from fastneuron.descriptions import checked_count
from fastneuron.ensemble_divergence import Failed
from fastneuron.ensemble_intake import EnsembleIntake
from fastneuron.ensemble_order import EnsembleBatches
from fastneuron.ensemble_parameters import LiveEnsemble
from fastneuron.ensemble_rates import EnsembleRates
from fastneuron.errors import DivergenceWarning, NonFiniteError
from fastneuron.intake import check_batch
from fastneuron.keys import StepKeys
from fastneuron.layers import Dropout
from fastneuron.losses import LOSSES, Loss
from fastneuron.network import Sequential
from fastneuron.optimizers import Optimizer
from fastneuron.order import Part, checked_seed
from fastneuron.plans import Plan
from fastneuron.schedules import Horizon
from fastneuron.spec import NetworkSpec
from fastneuron.threads import requested_threads

__all__ = ["Ensemble"]

# Seconds of a call of the engine for each network, and of the call at most: one that computes by
# itself costs 12 us beside its steps, and its first step finds nothing in the caches. A small
# network does some 30 steps in this time; with one step a call it takes twice as long.
_SHARE_SECONDS, _CALL_SECONDS = 3e-4, 1.0


class Ensemble:
    """Trains M independent networks of one architecture at once, each with moments of its own.

    Each network becomes what `Trainer` would make of it alone, on the CPU to the bit: its seed
    decides its data order and dropped numbers, and nothing depends on the others. One whose loss
    or gradient is not finite keeps its last finite parameters and takes no further step; a
    `DivergenceWarning` names it, and the others go on.

    The networks stay the caller's: the parameters of ``ensemble[m]`` are read and assigned as ever,
    `save` and `predict` work, and everything is current whoever trained last.

    Parameters
    ----------
    networks : sequence of Sequential
        Alike but for parameters and seeds; `Ensemble.of` makes many of one. None may come twice.
    loss : str or Loss
        A name of `fastneuron.losses.LOSSES`.
    optimizer : str, Optimizer, or a sequence of M optimizers
        One for all, or one each: of one class; rates, schedules and the rest may differ.
    batch_size : int
        Rows of a step of `run`; `step` takes whatever comes.
    backend, n_threads, device
        As for `Trainer`; device="auto" weighs a card by a single network.
    seed : int, optional
        Decides every network's data order, which is then one for all: on a card, drawing a thousand
        orders takes longer than the steps. Left out, each network's own seed decides.

    Attributes
    ----------
    networks : tuple of Sequential
    step_count : int
        Optimizer steps done by the networks that have not diverged.
    epoch_count : int
        Epochs begun by `run`.

    Raises
    ------
    SpecError
        Where networks or optimizers are not alike, or backend and device contradict each other.
    UnknownNameError, BackendUnavailable
        As `Trainer`.
    """

    def __init__(
        self,
        networks: Sequence[Sequential],
        loss: str | Loss,
        optimizer: str | Optimizer | Sequence[Optimizer] = "adam",
        batch_size: int = 32,
        backend: str | backends.Backend = "auto",
        n_threads: int | None = None,
        seed: int | None = None,
        device: str | None = None,
    ) -> None:
        self.networks = alike_networks(networks)
        self.spec = self.networks[0].spec
        self.loss = loss if isinstance(loss, Loss) else LOSSES[loss]
        self.optimizers = alike_optimizers(optimizer, len(self.networks))
        self.batch_size = checked_count("Ensemble", "batch_size", batch_size)
        self.n_threads = requested_threads(n_threads)
        self.backend = chosen(
            self.spec,
            self.loss,
            self.optimizers[0],
            self.batch_size,
            self.n_threads,
            backend,
            device,
        )
        given = None if seed is None else checked_seed(seed)
        self.seeds = [net.seed if given is None else given for net in self.networks]
        self.step_count = 0
        self.epoch_count = 0
        engine = partial(
            self.backend.ensemble_engine, n_threads=self.n_threads, batch_size=self.batch_size
        )
        self._live = LiveEnsemble(
            [net.parameters for net in self.networks],
            partial(engine, self.spec, self.loss, self.optimizers),
            partial(self.backend.engine, self.spec, n_threads=self.n_threads),
            self.backend.name,
            lambda: self.step_count,
            on_device=self.backend.device != "cpu",
        )
        self._steps: NDArray[np.int64] = np.zeros(len(self), np.int64)  # of those stopped
        self._intake = EnsembleIntake(self.spec, len(self))
        self._rates = EnsembleRates(self.optimizers)
        self._error: NonFiniteError | None = None  # once no network is left
        self._draws = any(isinstance(layer, Dropout) for layer in self.spec.layers)
        self._pace = Pace(min(len(self) * _SHARE_SECONDS, _CALL_SECONDS))

    @classmethod
    def of(
        cls,
        net: Sequential | NetworkSpec,
        count: int,
        loss: str | Loss,
        optimizer: str | Optimizer | Sequence[Optimizer] = "adam",
        *,
        seed: int = 0,
        order_seed: int | None = None,
        **given: Any,
    ) -> Ensemble:
        """Return an ensemble of `count` new networks like `net`, each drawn by a seed of its own.

        Parameters
        ----------
        net : Sequential or NetworkSpec
            What they are like, ``trainable`` included; it is no part of them.
        count : int
            More networks of the same `seed` begin with the same ones.
        loss, optimizer, **given
            What `Ensemble` takes.
        seed : int
            Decides the networks' seeds, ``networks[m].seed``, which decide all the rest of each.
        order_seed : int, optional
            What `Ensemble` calls `seed`: one data order for all.
        """
        spec = net.spec if isinstance(net, Sequential) else net
        models = checked_count("Ensemble.of", "count", count)
        seeds = np.random.SeedSequence(checked_seed(seed)).generate_state(models, np.uint64)
        networks = [Sequential(*spec.layers, dtype=spec.dtype, seed=int(each)) for each in seeds]
        return cls(networks, loss, optimizer, seed=order_seed, **given)

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, m: int) -> Sequential:
        return self.networks[m]

    def __iter__(self) -> Iterator[Sequential]:
        return iter(self.networks)

    def __repr__(self) -> str:
        stopped = int(self.diverged.sum())
        said = f", diverged={stopped}" if stopped else ""
        return (
            f"Ensemble({len(self)} networks {'-'.join(map(str, self.spec.sizes))}, "
            f"loss={self.loss.name!r}, batch_size={self.batch_size}, "
            f"backend={self.backend.name!r}, step_count={self.step_count}{said})"
        )

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Which networks (M,) have diverged: they keep their last finite parameters."""
        return self._live.stopped.copy()

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps (M,) that each network has done: fewer where it has diverged."""
        return np.where(self._live.stopped, self._steps, self.step_count)

    def step(self, x: Any, y: Any, sample_weight: Any = None) -> NDArray[np.float64]:
        """Do one optimizer step of every network and return their mean losses (M,) before it.

        Parameters
        ----------
        x : array_like (n, in_features) or (M, n, in_features)
            The batch, for all networks or each its own.
        y : array_like
            Likewise, with the networks' axis first: see `fastneuron.arrays.as_targets`.
        sample_weight : array_like (n,) or (M, n), optional
            Likewise; each network's are scaled to mean 1 over these rows.

        Raises
        ------
        DataError
            Where shapes or values are wrong; nothing is changed.
        NonFiniteError
            Where every network has diverged.
        """
        rows, targets, weight = self._checked(x, y, sample_weight, "x")
        n = rows.shape[-2]
        check_batch(self.spec, n)
        order, bounds = np.arange(n, dtype=np.int64)[None], np.array([0, n], np.int64)
        part = Part(0, 0, False, order, bounds)
        self._begin()
        losses, _ = self._train(rows, targets, weight, part)
        found: NDArray[np.float64] = losses[0]
        return found

    def run(
        self, X: Any, y: Any, epochs: int = 1, shuffle: bool = True, sample_weight: Any = None
    ) -> NDArray[np.float64]:
        """Train for whole epochs and return the mean loss of every batch before its step.

        Parameters
        ----------
        X, y, sample_weight
            As in `step`, all rows.
        epochs, shuffle
            As for `Trainer.run`.

        Returns
        -------
        (epochs * ceil(n / batch_size), M) float64
            NaN from the step on at which a network diverged.

        Raises
        ------
        DataError, NonFiniteError
            As in `step`; what was trained before is kept.
        KeyboardInterrupt
            On Ctrl-C, after the running chunk of steps, with which all networks end: within about
            50 ms, or, where there are hundreds of networks, a second.
        """
        rows, targets, weight = self._checked(X, y, sample_weight, "X")
        epochs, n = checked_count("run", "epochs", epochs), rows.shape[-2]
        check_batch(self.spec, min(n, self.batch_size))
        self._begin()
        first_epoch = self.epoch_count
        batches = EnsembleBatches(
            n,
            self.batch_size,
            epochs,
            shuffle=shuffle,
            seeds=self.seeds,
            first_epoch=first_epoch,
            span=not self._rates.watches,
        )
        end = self.step_count + epochs * batches.steps_per_epoch
        horizon = Horizon(end, batches.steps_per_epoch)
        found: list[NDArray[np.float64]] = []
        begun = 0  # of them, before the epoch under way
        with self._live.held(rows, targets, weight):
            while (part := batches.take(self._pace.steps)) is not None:
                self.epoch_count = first_epoch + part.epoch + max(1, part.whole_epochs)
                losses, seconds = self._train(rows, targets, weight, part, horizon)
                found.append(losses)
                self._pace.note(len(losses), seconds)
                if part.ends_epoch and self._rates.watches:
                    self._rates.observe(np.concatenate(found[begun:]).mean(axis=0))
                    begun = len(found)
        return np.concatenate(found)

    def forward(self, x: Any) -> Array:
        """Return every network's output (M, n, out_features) for x (n, in_features).

        Or for x (M, n, in_features), each its own. It is that of prediction: `Sequential.forward`.
        """
        return self._live.forward(self._intake.rows(x, "x"))

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None) -> NDArray[np.float64]:
        """Return every network's mean loss (M,) over the rows of X at the current parameters."""
        x, targets, weight = self._checked(X, y, sample_weight, "X")
        out = self._live.forward(x)
        own_y = targets.ndim == (2 if targets.dtype == np.int64 else 3)
        own_weight = weight is not None and weight.ndim == 2
        return np.array(
            [
                self.loss.mean(
                    out[m],
                    targets[m] if own_y else targets,
                    weight[m] if weight is not None and own_weight else weight,
                )
                for m in range(len(self))
            ]
        )

    @property
    def plan(self) -> Plan:
        """How this ensemble computes and why; see `Plan`."""
        return Plan.of(
            self._live.engine.plan(),
            backend=self.backend.name,
            reason=self.backend.reason,
            device=self.backend.device,
            batch_size=self.batch_size,
            n_parameters=len(self) * self.spec.n_parameters,
        )

    def _checked(self, X: Any, y: Any, sample_weight: Any, name: str) -> tuple[Any, Any, Any]:
        """Return data as engines of many networks take it."""
        x = self._intake.rows(X, name)
        n = x.shape[-2]
        targets = self._intake.targets(y, self.loss.targets, n)
        return x, targets, self._intake.weights(sample_weight, n)

    def _begin(self) -> None:
        """Refuse to train where nothing is left to, and give the first step its keys."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._draws:
            self._rates.use_keys([StepKeys(seed, self.epoch_count) for seed in self.seeds])
            self._draws = False

    def _train(
        self, x: Array, y: Array, weight: Any, part: Part, horizon: Horizon | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """Train one part of many orders; leave counts, losses and errors right."""
        steps = len(part.bounds) - 1
        live = self._live
        with live.locked():
            if live.lost:  # with the device went the steps since
                self.step_count, live.lost = live.kept, False
            first = self.step_count
            scalars = (
                self._rates.row(first)
                if horizon is None
                else self._rates.scalars(first, steps, horizon)
            )
            losses = np.full((steps, len(self)), np.nan)
            live.claim()
            for net in self.networks:
                net.parameters.loss = self.loss.name
            start = time.perf_counter()
            outcome = live.run(x, y, weight, part.order, part.bounds, scalars, losses)
            seconds = time.perf_counter() - start
            failed = Failed.of(outcome, live.stopped, first)
            for m, step in zip(failed.models.tolist(), failed.steps.tolist(), strict=True):
                losses[step - first :, m] = np.nan
            left = len(self) - int(live.stopped.sum()) - len(failed.models)
            self.step_count += steps if left else int(failed.steps.max()) - first
            if len(failed.models):
                self._steps[failed.models] = failed.steps
                live.stop(failed.models.tolist())
                rates = self._rates.rates(first, steps, horizon or Horizon())
                if not left:
                    stores = [net.parameters for net in self.networks]
                    self._error = failed.error(stores, x, part, scalars, rates)
                    raise self._error
            live.keep()
        try:
            if len(failed.models):
                warnings.warn(failed.warning(len(self), rates), DivergenceWarning, stacklevel=3)
        finally:
            live.release()
        return losses, seconds
