"""Networks of an ensemble whose step was not applied since something in it was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.divergence import diverged
from fastneuron.errors import NonFiniteError
from fastneuron.kernels.contract import Array, Status
from fastneuron.kernels.ensemble_contract import EnsembleOutcome
from fastneuron.order import Part
from fastneuron.parameters import ParameterStore

__all__ = ["Failed"]

# Networks that a warning names.
_NAMED = 8


class Failed(NamedTuple):
    """The networks that failed in a call of the engine, and where.

    Attributes
    ----------
    models : (k,) int64
    steps : (k,) int64
        That failed, counted over the ensemble's life.
    status : (k,) int64
    first : int
        Step that the call began with.
    """

    models: NDArray[np.int64]
    steps: NDArray[np.int64]
    status: NDArray[np.int64]
    first: int

    @classmethod
    def of(cls, outcome: EnsembleOutcome, stopped: NDArray[np.bool_], first: int) -> Failed:
        """Return those that failed in this call; the others that are `stopped` did so before."""
        models = np.flatnonzero((outcome.status != Status.OK) & ~stopped)
        return cls(models, first + outcome.steps[models], outcome.status[models], first)

    def warning(self, models: int, rates: NDArray[np.float64]) -> str:
        """Return what is said where others of so many networks go on.

        Parameters
        ----------
        models : int
        rates : (steps, M)
            Learning rates of the call.
        """
        named = zip(self.models[:_NAMED].tolist(), self.steps.tolist(), strict=False)
        names = ", ".join(
            f"{m} at step {step} (learning rate {rates[step - self.first, m]:g})"
            for m, step in named
        )
        more = f" and {len(self.models) - _NAMED} more" if len(self.models) > _NAMED else ""
        return (
            f"{len(self.models)} of {models} networks diverged and were stopped: {names}{more}. "
            "Their parameters are those after their last whole step; the others go on. "
            "`Ensemble.diverged` tells which they are"
        )

    def error(
        self,
        stores: Sequence[ParameterStore],
        x: Array,
        part: Part,
        scalars: NDArray[np.float64],
        rates: NDArray[np.float64],
    ) -> NonFiniteError:
        """Return what is raised where all have failed: the error of the one that came furthest.

        Parameters
        ----------
        stores : sequence of ParameterStore
        x : (n, I) or (M, n, I)
        part : Part
            With orders (M, rows) or (1, rows).
        scalars : (steps, M, N_SCALARS)
        rates : (steps, M)
        """
        i = int(np.argmax(self.steps))
        m, s = int(self.models[i]), int(self.steps[i]) - self.first
        order = part.order[m if len(part.order) > 1 else 0]
        error = diverged(
            stores[m],
            Status(int(self.status[i])),
            (x[m] if x.ndim == 3 else x)[order[part.bounds[s] : part.bounds[s + 1]]],
            scalars[s, m],
            part.epoch + s * part.whole_epochs // (len(part.bounds) - 1),
            int(self.steps[i]),
            float(rates[s, m]),
        )
        error.args = (f"every network has diverged, the last of them network {m}: {error}",)
        return error
