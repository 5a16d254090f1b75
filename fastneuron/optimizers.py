"""The table of optimizers: hyper-parameters, and the numbers that each step's update needs.

The updates themselves are slots (`fastneuron.kernels.reference.updates`). Compiled kernels take
their numbers from a row of `N_SCALARS` float64 columns a step, which `Optimizer.scalars` fills.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.descriptions import checked_number, from_description, to_description
from fastneuron.errors import SpecError
from fastneuron.registry import Registry
from fastneuron.schedules import SCHEDULES, Schedule, as_schedule

__all__ = [
    "BETA1",
    "BETA2",
    "CLIP_NORM",
    "CORRECTION",
    "EPSILON",
    "KEY_HIGH",
    "KEY_LOW",
    "L2",
    "N_SCALARS",
    "OPTIMIZERS",
    "RATE",
    "SGD",
    "SHRINK",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "UpdateKind",
    "as_optimizer",
]

#: Columns of a step's scalars.
N_SCALARS = 10
RATE = 0  # learning rate; Adam's is over 1 - beta1^t
L2 = 1  # weight decay that is added to the gradient
SHRINK = 2  # weight decay that shrinks the parameter itself (AdamW), times the learning rate
BETA1 = 3  # momentum; Adam's beta1
BETA2 = 4  # Adam's beta2; RMSprop's rho
EPSILON = 5
CORRECTION = 6  # Adam: 1 / sqrt(1 - beta2^t)
CLIP_NORM = 7  # largest global norm of the gradient; 0 where it is not clipped
# The step's key for random numbers, two whole numbers below 2^32: `fastneuron.keys` fills them in.
KEY_LOW, KEY_HIGH = 8, 9

# Below float32's smallest normal number epsilon would turn to 0 there, and 0 / 0 follow.
_LEAST_EPSILON = 2.0**-126

# With MAX_RATE it keeps one step of decay within float32 for parameters up to 1e18.
_MOST_DECAY = 1e10


class UpdateKind(IntEnum):
    """Which of the update slots an optimizer runs; compiled kernels know them by number."""

    SGD = 0
    MOMENTUM = 1
    NESTEROV = 2
    ADAM = 3
    RMSPROP = 4


_SLOTS = {kind: f"{kind.name.lower()}_update" for kind in UpdateKind}
_N_MOMENTS = {
    UpdateKind.SGD: 0,
    UpdateKind.MOMENTUM: 1,
    UpdateKind.NESTEROV: 1,
    UpdateKind.ADAM: 2,
    UpdateKind.RMSPROP: 1,
}


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of the optimizers: frozen hyper-parameters, no state.

    With g the gradient of the mean loss, every optimizer steps along
    ``g' = clip_scale g + L2 p``, ``clip_scale = min(1, clip_norm / ||g||)``.

    Parameters
    ----------
    decay_bias : bool
        Whether weight decay shrinks biases too. By default it leaves them alone: a bias does not
        make the function steeper (Goodfellow, Bengio & Courville 2016, section 7.1).
    clip_norm : float, optional
        Largest norm of the whole gradient, all layers together, above 0 (Pascanu, Mikolov & Bengio
        2012, arXiv:1211.5063). Left out, nothing is clipped.
    """

    decay_bias: bool = field(default=False, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    def __post_init__(self) -> None:
        if isinstance(self.learning_rate, (int, float, np.number)):
            constant: Any = as_schedule(self.learning_rate, self._where("learning_rate"))
            self._set("learning_rate", constant.learning_rate)
        elif not isinstance(self.learning_rate, Schedule):
            raise SpecError(
                f"{self._where('learning_rate')} must be a number or a schedule, "
                f"got {self.learning_rate!r:.80}"
            )
        self._check_number("weight_decay", high=_MOST_DECAY)
        self._check_flag("decay_bias")
        if self.clip_norm is not None:
            self._check_number("clip_norm", open_low=True)

    @property
    @abstractmethod
    def learning_rate(self) -> float | Schedule:
        """A field of every subclass."""

    @property
    @abstractmethod
    def weight_decay(self) -> float:
        """A field of every subclass."""

    @property
    @abstractmethod
    def kind(self) -> UpdateKind:
        """Number of the update slot."""

    @property
    def slot(self) -> str:
        """Name of the update slot."""
        return _SLOTS[self.kind]

    @property
    def n_moments(self) -> int:
        """Running averages that the update keeps for each parameter."""
        return _N_MOMENTS[self.kind]

    @property
    def schedule(self) -> Schedule:
        """The learning rate as a schedule."""
        return as_schedule(self.learning_rate)

    def scalars(self, first_step: int, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the update needs at the steps first_step, ..., one row a step.

        Parameters
        ----------
        first_step : int
            Zero-based, counted over the life of the moments.
        rates : (n,) float64
            Learning rates, from the schedule.

        Returns
        -------
        (n, N_SCALARS) float64
            Columns that the optimizer has no use for are 0.
        """
        table = np.zeros((len(rates), N_SCALARS))
        table[:, RATE] = rates
        table[:, L2] = self.weight_decay
        table[:, CLIP_NORM] = self.clip_norm or 0.0
        self._fill(table, np.arange(first_step + 1, first_step + 1 + len(rates), dtype=np.float64))
        return table

    def to_json(self) -> dict[str, Any]:
        """Return a closed JSON description that `from_json` reads back."""
        return to_description(self, self.name)

    @staticmethod
    def from_json(description: object) -> Optimizer:
        """Rebuild an optimizer; anything missing, unknown or of a wrong type is a SpecError."""
        return from_description(OPTIMIZERS, description, SCHEDULES)

    @abstractmethod
    def _fill(self, table: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        """Fill in the columns of this optimizer alone; t counts steps from 1."""

    def _where(self, name: str) -> str:
        return f"{type(self).__name__}: {name}"

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_number(
        self, name: str, low: float = 0.0, high: float = math.inf, **ends: bool
    ) -> None:
        owner = type(self).__name__
        self._set(name, checked_number(owner, name, getattr(self, name), low, high, **ends))

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, (bool, np.bool_)):
            raise SpecError(f"{self._where(name)} must be True or False, got {value!r:.80}")
        self._set(name, bool(value))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent on mini-batches, with momentum on request.

    Parameters
    ----------
    learning_rate : float or Schedule
        From 0 to 1e10.
    momentum : float
        Within [0, 1): share of the last step's velocity that is kept.
    nesterov : bool
        Step along the gradient plus the momentum to come; needs a momentum above 0.
    weight_decay : float
        At least 0: added to the gradient, times the parameter.
    decay_bias, clip_norm
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    name: ClassVar[str] = "sgd"
    formula: ClassVar[str] = (
        "p -= rate g'; with momentum v = momentum v + g', p -= rate v; "
        "with nesterov p -= rate (g' + momentum v)"
    )
    source: ClassVar[str] = (
        "Robbins & Monro 1951; Polyak 1964; Nesterov 1983 as in Sutskever et al. 2013, ICML"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("momentum", high=1.0, open_high=True)
        self._check_flag("nesterov")
        if self.nesterov and self.momentum == 0:
            raise SpecError("SGD: nesterov=True needs a momentum above 0, such as momentum=0.9")

    @property
    def kind(self) -> UpdateKind:
        """SGD, MOMENTUM or NESTEROV."""
        if self.momentum == 0:
            return UpdateKind.SGD
        return UpdateKind.NESTEROV if self.nesterov else UpdateKind.MOMENTUM

    def _fill(self, table: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        table[:, BETA1] = self.momentum


@dataclass(frozen=True)
class Adam(Optimizer):
    """Steps by the gradient's running mean over the root of its running mean square.

    Parameters
    ----------
    learning_rate : float or Schedule
        From 0 to 1e10.
    beta1, beta2 : float
        Within [0, 1): what the running mean and mean square keep at each step.
    epsilon : float
        Above 0 (at least 2**-126): added to the root.
    weight_decay : float
        At least 0: added to the gradient, times the parameter.
    decay_bias, clip_norm
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    name: ClassVar[str] = "adam"
    formula: ClassVar[str] = (
        "m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2; "
        "p -= rate / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)"
    )
    source: ClassVar[str] = "Kingma & Ba 2014, arXiv:1412.6980, algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("beta1", high=1.0, open_high=True)
        self._check_number("beta2", high=1.0, open_high=True)
        self._check_number("epsilon", low=_LEAST_EPSILON)

    @property
    def kind(self) -> UpdateKind:
        """ADAM."""
        return UpdateKind.ADAM

    def _fill(self, table: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        table[:, RATE] /= 1 - self.beta1**t
        table[:, BETA1] = self.beta1
        table[:, BETA2] = self.beta2
        table[:, EPSILON] = self.epsilon
        table[:, CORRECTION] = 1 / np.sqrt(1 - self.beta2**t)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay bypasses the running means.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon
        See `Adam`.
    weight_decay : float
        At least 0: each step first shrinks the parameter by ``learning_rate * weight_decay``.
    decay_bias, clip_norm
        See `Optimizer`.
    """

    weight_decay: float = 0.01

    name: ClassVar[str] = "adamw"
    formula: ClassVar[str] = f"p -= rate weight_decay p, then Adam without decay: {Adam.formula}"
    source: ClassVar[str] = "Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2"

    def _fill(self, table: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        table[:, SHRINK] = table[:, RATE] * self.weight_decay
        table[:, L2] = 0.0
        super()._fill(table, t)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Steps by the gradient over the root of its running mean square.

    Parameters
    ----------
    learning_rate : float or Schedule
        From 0 to 1e10.
    rho : float
        Within [0, 1): what the running mean square keeps at each step.
    epsilon : float
        Above 0 (at least 2**-126): added to the root.
    weight_decay : float
        At least 0: added to the gradient, times the parameter.
    decay_bias, clip_norm
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 1e-3
    rho: float = 0.9
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    name: ClassVar[str] = "rmsprop"
    formula: ClassVar[str] = "v = rho v + (1 - rho) g'^2; p -= rate g' / (sqrt(v) + epsilon)"
    source: ClassVar[str] = (
        "Tieleman & Hinton 2012, Neural networks for machine learning, lecture 6.5"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("rho", high=1.0, open_high=True)
        self._check_number("epsilon", low=_LEAST_EPSILON)

    @property
    def kind(self) -> UpdateKind:
        """RMSPROP."""
        return UpdateKind.RMSPROP

    def _fill(self, table: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        table[:, BETA2] = self.rho
        table[:, EPSILON] = self.epsilon


#: Every optimizer class by name.
OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")
for _optimizer in (SGD, Adam, AdamW, RMSprop):
    OPTIMIZERS.register(_optimizer.name, _optimizer)


def as_optimizer(x: str | Optimizer) -> Optimizer:
    """Return x if it is an optimizer, else the one of that name with its defaults."""
    if isinstance(x, Optimizer):
        return x
    return OPTIMIZERS[x]()
