"""The interface behind which every library trains: fastneuron's backends and others alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, ClassVar

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.contract import Parameters
from fastneuron.peers.problems import Problem

__all__ = ["Peer", "Unsupported"]

Array = Any


class Unsupported(Exception):
    """A peer has no way to do what a row asks for; the message says what."""


class Peer(ABC):
    """One way to train; `advance` does real optimizer steps and goes on where it stopped.

    Parameters
    ----------
    problem : Problem
    threads : int
        Cores that the process may use, all of them.

    Attributes
    ----------
    problem : Problem
        What this peer trains: the one given, unless it can express an equal one only.
    loss_each_step : bool
        False where `advance` returns the mean loss of its steps in every entry.
    drops_alike : bool
        Whether its dropout drops what fastneuron's drops, so that results are the same.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    distribution: ClassVar[str]
    ours: ClassVar[bool] = False
    loss_each_step: ClassVar[bool] = True
    drops_alike: ClassVar[bool] = False

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem = problem
        self.threads = threads

    @classmethod
    def missing(cls) -> str:
        """Return why this peer cannot be measured here, or nothing."""
        if find_spec(cls.module):
            return ""
        return f"{cls.module} is not installed (pip install {cls.distribution})"

    @classmethod
    def check(cls) -> None:
        """Raise BackendUnavailable where this peer cannot be measured here."""
        if reason := cls.missing():
            raise BackendUnavailable(reason)

    @classmethod
    def load(cls) -> None:
        """Import what it trains with, so that a first step shows only what is its own."""
        import_module(cls.module)

    @classmethod
    def version(cls) -> str:
        """Return the version of the library."""
        try:
            return version(cls.distribution)
        except PackageNotFoundError:
            return "from source"

    @abstractmethod
    def reset(self) -> None:
        """Go back to the problem's parameters, with moments of zero."""

    @abstractmethod
    def advance(self, order: Array) -> Array:
        """Train on the batches ``x[order[s]]``, order (steps, batch) int64; return losses."""

    @abstractmethod
    def export(self) -> Parameters:
        """Return the current parameters, of all layers."""

    def statistics(self) -> Parameters:
        """Return the running mean and variance of each batch normalisation."""
        return []
