"""What every backend promises: the engine's methods, its status codes, and the names of the slots.

Shapes: B batch rows, I inputs, O outputs, T the network's dtype. Rows are C-contiguous arrays of T
that `fastneuron.arrays` has normalised; an engine trusts its arguments and checks nothing again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

Array: TypeAlias = NDArray[Any]
#: One (weight, bias (O,) or None) a layer, row-major. The weight is (I, O) of a dense layer, (O,)
#: of a normalisation, and (0,) where there is none.
Parameters: TypeAlias = list[tuple[Array, Array | None]]
#: One (running mean (O,), running variance (O,)) a layer, None where it keeps no such thing.
Statistics: TypeAlias = list[tuple[Array, Array] | None]

#: Every slot, in the order in which a training step meets them. The reference fills all of them;
#: its docstrings are the slots' documentation.
SLOTS = (
    "dense_forward",
    "bias_act_forward",
    "mse",
    "mae",
    "huber",
    "softmax_cross_entropy",
    "binary_cross_entropy",
    "poisson",
    "act_bias_backward",
    "dense_backward",
    "sgd_update",
    "momentum_update",
    "nesterov_update",
    "adam_update",
    "rmsprop_update",
)


def clear_untrained(spec: NetworkSpec, gradients: Parameters) -> None:
    """Set the gradients of what is not trained to zero."""
    for layer, (weight, bias) in zip(spec.layers, gradients, strict=True):
        if not layer.trains_weight:
            weight[...] = 0
        if bias is not None and not layer.trains_bias:
            bias[...] = 0


class Ceilings(NamedTuple):
    """Kernels that show what one core can do at most; each does its work `turns` times.

    Attributes
    ----------
    multiply_adds : callable (out, turns)
        12 registers of multiply-adds on the numbers of `out`, at least as many.
    read_all : callable (x, turns, out)
        Reads x, a whole multiple of 8 registers, and leaves sums in `out` (8 registers).
    copy_all : callable (x, y, turns)
        ``y = x``.
    lane_count : callable (dtype)
        Numbers of two registers.
    """

    multiply_adds: Callable[[Array, int], object]
    read_all: Callable[[Array, int, Array], object]
    copy_all: Callable[[Array, Array, int], object]
    lane_count: Callable[[Any], int]


class Status(IntEnum):
    """How a call of an engine ended."""

    OK = 0
    LOSS_NOT_FINITE = 1  # the step's loss is NaN or infinite; that step was not applied
    GRADIENT_NOT_FINITE = 2  # the squared norm of the step's gradient is; that step was not applied


class Outcome(NamedTuple):
    """Result of `Engine.run` and `Engine.update`: how it ended, and how many whole steps."""

    status: Status
    steps: int


class Engine(ABC):
    """Training state in a backend's own layout, and the step on it.

    Parameters
    ----------
    spec : NetworkSpec
    loss : Loss or None
        Entry of the loss table; None where only `forward` or foreign losses are used.
    optimizer : Optimizer or None
        None where only `forward` and `gradients` are used.
    n_threads : int or None
        None lets the engine decide from shapes alone. Results never depend on it.
    batch_size : int
        The batch that buffers are first sized for; they grow when a larger one comes.

    Attributes
    ----------
    takes_device_arrays : bool
        Whether rows, targets and dL/d(output) may be a `DeviceArray`; then results that belong to
        rows are one too. Such an engine has ``fetch(array)``, which copies one to the host.

    An engine on a device raises `DeviceError` where the device fails.
    """

    takes_device_arrays = False

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.spec = spec
        self.loss = loss
        self.optimizer = optimizer
        self.n_threads = n_threads
        self.batch_size = batch_size

    @abstractmethod
    def load(self, parameters: Parameters) -> None:
        """Copy `parameters` in; the optimizer's moments stay as they are."""

    @abstractmethod
    def export(self) -> Parameters:
        """Return fresh row-major copies of the current parameters."""

    @abstractmethod
    def load_statistics(self, statistics: Statistics) -> None:
        """Copy the running statistics in. Steps move them; `forward` goes by them."""

    @abstractmethod
    def export_statistics(self) -> Statistics:
        """Return fresh copies of the running statistics."""

    @abstractmethod
    def load_moments(self, moments: Sequence[Parameters]) -> None:
        """Copy the optimizer's moments in: `n_moments` of them, shaped like the parameters."""

    @abstractmethod
    def export_moments(self) -> list[Parameters]:
        """Return fresh row-major copies of the optimizer's moments."""

    def hold(self, x: Array, y: Array, weight: Array | None) -> None:  # noqa: B027
        """Get ready for many calls of `run` on these very arrays, which are not written to.

        An engine on a device puts them there; one on the host has nothing to do.
        """

    def let_go(self) -> None:  # noqa: B027
        """Hold no data any more."""

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
    ) -> Outcome:
        """Train on many batches in one call.

        Step s trains on the rows ``order[bounds[s]:bounds[s + 1]]`` of the data.

        Parameters
        ----------
        x : (n, I) T
        y : (n, O) T, or (n,) int64 class numbers for cross-entropy
        weight : (n,) T or None
            Sample weights. A batch's loss is ``sum(weight_i * loss_i) / B``: the caller scales the
            weights of the whole data set to mean 1.
        order : (bounds[-1],) int64
        bounds : (steps + 1,) int64, ascending, no empty batch
        scalars : (steps, N_SCALARS) float64
            What the optimizer needs at each step, from `Optimizer.scalars`.
        losses : (steps,) float64, OUT
            The mean loss of each batch before its update. Where a step fails, its loss is written
            and later entries are left alone.

        Returns
        -------
        Outcome
            A step that would make anything non-finite is not applied: the state is that after
            `Outcome.steps` whole steps.
        """

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return the network's output (n, O) for x (n, I), n >= 0; no training state is touched.

        A row's output has the same bits in any batch.
        """

    @abstractmethod
    def forward_keep(self, x: Array, scalars: NDArray[np.float64] | None = None) -> Array:
        """Return the output of x in training: by the batch's statistics, with numbers dropped.

        What `update` needs of exactly these rows is kept. `scalars` (1, N_SCALARS) float64 hold
        the key of the step's random numbers; None is the key 0.
        """

    @abstractmethod
    def update(self, dout: Array, scalars: NDArray[np.float64]) -> tuple[Array, Outcome]:
        """Apply one optimizer step for the rows of the last `forward_keep`.

        Parameters
        ----------
        dout : (B, O) T
            dL/d(output), already holding whatever normalisation over the batch the loss wants.
        scalars : (N_SCALARS,) float64

        Returns
        -------
        dx : (B, I) T
            dL/dx at the parameters before the update.
        outcome : Outcome
        """

    @abstractmethod
    def gradients(
        self, x: Array, y: Array, weight: Array | None, scalars: NDArray[np.float64] | None = None
    ) -> tuple[float, Parameters]:
        """Return the batch's mean loss and (dweight, dbias or None) a layer; update nothing.

        What is not trained has gradient zero. `scalars` as in `forward_keep`.
        """

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Explain the engine: backend, threads and why, buffer sizes in bytes, and phases.

        An engine with a cost model adds what `plans.Plan` lists: predicted and measured times.
        """
