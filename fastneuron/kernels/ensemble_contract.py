"""What an engine of many networks at once promises: one architecture, each its own parameters.

Shapes as in `contract`, and M models. Every array of parameters, moments or statistics has the
models for its first axis: a dense weight is (M, I, O), its bias (M, O).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.contract import Array, Parameters, Statistics
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["EnsembleEngine", "EnsembleOutcome", "of_model", "stacked"]


class EnsembleOutcome(NamedTuple):
    """How a call of `EnsembleEngine.run` ended for each model.

    Attributes
    ----------
    status : (M,) int64
        `contract.Status`.
    steps : (M,) int64
        Whole steps that were applied.
    """

    status: NDArray[np.int64]
    steps: NDArray[np.int64]


class EnsembleEngine(ABC):
    """Training state of M networks of one architecture, and a step of all of them.

    What becomes of a model never depends on the others: not on their number, not on its place among
    them, not on whether one of them fails.

    Parameters
    ----------
    spec : NetworkSpec
    loss : Loss or None
        None where only `forward` is used.
    optimizers : sequence of Optimizer
        One a model, so M of them; all of one kind and with as many moments.
    n_threads : int or None
        None lets the engine decide from shapes alone. Results never depend on it.
    batch_size : int
        The batch that buffers are first sized for; they grow when a larger one comes.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizers: Sequence[Optimizer],
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.spec = spec
        self.loss = loss
        self.optimizers = list(optimizers)
        self.n_threads = n_threads
        self.batch_size = batch_size

    @property
    def n_models(self) -> int:
        """M."""
        return len(self.optimizers)

    @abstractmethod
    def load(self, parameters: Parameters) -> None:
        """Copy the parameters of all models in; moments stay as they are."""

    @abstractmethod
    def export(self) -> Parameters:
        """Return fresh copies of the parameters of all models."""

    @abstractmethod
    def load_statistics(self, statistics: Statistics) -> None:
        """Copy the running statistics (M, O) in."""

    @abstractmethod
    def export_statistics(self) -> Statistics:
        """Return fresh copies of the running statistics."""

    @abstractmethod
    def load_moments(self, moments: Sequence[Parameters]) -> None:
        """Copy the optimizers' moments in: `n_moments` of them, shaped like the parameters."""

    @abstractmethod
    def export_moments(self) -> list[Parameters]:
        """Return fresh copies of the optimizers' moments."""

    @abstractmethod
    def run(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        order: NDArray[np.int64],
        bounds: NDArray[np.int64],
        scalars: NDArray[np.float64],
        losses: NDArray[np.float64],
    ) -> EnsembleOutcome:
        """Train every model on many batches in one call.

        Step s of model m trains on the rows ``order[m, bounds[s]:bounds[s + 1]]`` of its data.

        Parameters
        ----------
        x : (n, I) T, the same rows for all models, or (M, n, I), each its own
        y : (n, O) or (M, n, O) T, or (n,) or (M, n) int64 class numbers for cross-entropy
            Shared or each its own, whatever x is.
        weight : (n,) or (M, n) T, or None
            Sample weights, likewise: bootstraps weigh shared rows each in a way of its own. Each
            model's are scaled as `Engine.run` says.
        order : (M, k) int64, or (1, k) where all models meet the rows in one order
        bounds : (steps + 1,) int64, ascending, no empty batch
        scalars : (steps, M, N_SCALARS) float64
            From each model's `Optimizer.scalars`. Where all models share them, they may be a view
            with a stride of 0 along the models.
        losses : (steps, M) float64, OUT
            The mean loss of each batch before its update. Where a model's step fails, its loss is
            written and the model's later entries are left alone.

        Returns
        -------
        EnsembleOutcome
            A step that would make anything of a model non-finite is not applied, and that model
            takes no further step in this call; the others go on. Nothing is remembered: who wants
            a model to stay stopped loads parameters of NaN, with which no step is ever applied.
        """

    @abstractmethod
    def hold(self, x: Array, y: Array, weight: Array | None) -> None:
        """Make a data set ready for calls of `run` with these very arrays, until `let_go`.

        They must not be written to in between. On the host there is nothing to be done.
        """

    @abstractmethod
    def let_go(self) -> None:
        """Forget what `hold` was given."""

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return the outputs (M, n, O) for x (n, I), the same rows for all, or (M, n, I).

        A row's output has the same bits in any batch.
        """

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Explain the engine, as `Engine.plan` does."""


def of_model(pairs: Any, m: int) -> list[Any]:
    """Return one model's parameters, or its statistics: views into those of all."""
    return [
        None if pair is None else tuple(None if array is None else array[m] for array in pair)
        for pair in pairs
    ]


def stacked(each: Sequence[Any]) -> list[Any]:
    """Return the parameters, or the statistics, of all models from those of each."""

    def stack(arrays: Sequence[Any]) -> Array | None:
        return None if arrays[0] is None else np.stack(arrays)

    return [
        None if pairs[0] is None else tuple(stack(arrays) for arrays in zip(*pairs, strict=True))
        for pairs in zip(*each, strict=True)
    ]
