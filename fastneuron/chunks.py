"""Chunks of training steps: what one call of an engine does, and how long the next may be."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastneuron.order import Part
from fastneuron.parameters import ParameterStore
from fastneuron.spec import NetworkSpec

__all__ = ["Chunk", "Network", "Pace"]

# Seconds of one engine call: half of the 50 ms after which Ctrl-C would feel late, since a chunk's
# length is a guess from the chunk before.
_CHUNK_SECONDS = 0.025
# A chunk is at most this many times the one before: the first steps of an engine are its slowest.
_GROWTH = 8


class Network(Protocol):
    """What a trainer needs of a network; `Sequential` is one."""

    @property
    def spec(self) -> NetworkSpec:
        """Its description."""

    @property
    def parameters(self) -> ParameterStore:
        """What trainers share."""

    @property
    def seed(self) -> int:
        """Decides the data order."""


class Chunk(NamedTuple):
    """Steps that were trained in one call of the engine.

    Attributes
    ----------
    part : Part
        Where they lie among the epochs.
    losses : (steps,) float64
        Mean loss of each batch before its step.
    learning_rate : float
        That of the last step.
    seconds : float
    """

    part: Part
    losses: NDArray[np.float64]
    learning_rate: float
    seconds: float


class Pace:
    """Chooses the length of chunks by what the last one took.

    Parameters
    ----------
    least : float
        Seconds that a chunk should take at least.

    Attributes
    ----------
    steps : int
        Of the next chunk.
    """

    def __init__(self, least: float = 0.0) -> None:
        self.steps = 1
        self._least = least

    def note(self, steps: int, seconds: float) -> None:
        """Take in how long a chunk of so many steps was."""
        pace = max(seconds, 1e-9) / steps
        most = _GROWTH * max(self.steps, steps)
        self.steps = max(1, min(most, int(max(_CHUNK_SECONDS, self._least) / pace)))
