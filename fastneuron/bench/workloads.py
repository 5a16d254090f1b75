"""What is timed: a workload, and checked work of one contestant at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BACKENDS",
    "HOST",
    "PEER_SUITES",
    "NotItsOwn",
    "Prepare",
    "Prepared",
    "Workload",
    "first_call",
    "label",
    "repeated",
]

#: Whose numbers stand side by side, the reference first.
BACKENDS = ("numpy", "numba", "cython")
#: The one contestant of work that no backend does: Python and NumPy at the border.
HOST = ("host",)
#: Suites whose contestants are peers; a backend and a peer are both called "numpy".
PEER_SUITES = ("peers", "accuracy")


class NotItsOwn(Exception):
    """A backend takes this from another one, whose row it is, or a library cannot do it at all."""


@dataclass(frozen=True)
class Prepared:
    """Checked work, ready to be timed.

    Attributes
    ----------
    work : callable
        Given a number of units, it does them; what it does may go on where it stopped.
    error_over_bound : float
        Largest error of the result that was checked, in units of its proved bound: at most 1.
    start_seconds : float
        Of the very first call: compiling, or loading what was compiled, and the first touch of
        memory.
    more : dict
        What else a reader wants to know, such as the threads that the engine chose.
    units : int
        Units that are done for each one that is asked for: who compiles for a number of steps does
        no other.
    """

    work: Callable[[int], object]
    error_over_bound: float
    start_seconds: float
    more: dict[str, Any] = field(default_factory=dict)
    units: int = 1


#: Given a contestant's name, checks its result and returns its work. It raises AssertionError where
#: the result is wrong, `NotItsOwn`, or BackendUnavailable.
Prepare = Callable[[str], Prepared]


@dataclass(frozen=True)
class Workload:
    """The same work for every backend.

    Attributes
    ----------
    suite, name : str
        The name is that of what is measured, such as a slot's; its workloads differ in the rest.
    shape : str
        Sizes, and what else belongs to the work, such as an activation.
    dtype : str
    bias : bool or None
        None where there is no such question.
    build : callable
        Draws data and computes the reference's result with its bound; returns `Prepare`.
    flop : float
        Operations that the mathematics needs, two a multiply-add.
    nbytes : float
        Bytes that an ideal fused kernel reads and writes.
    rows : int
        Rows of data that are met.
    quick : bool
        Whether the quick run has it.
    backends : tuple of str
        The contestants: `BACKENDS`, `HOST`, or the names of peers.
    chunk : int
        Units that a harness which times single calls shall time together, where the way into a
        call would hide the work.
    passes : tuple of (int, int), optional
        Of a full and of a quick run, where they are others than usual.
    """

    suite: str
    name: str
    shape: str
    dtype: str
    bias: bool | None
    build: Callable[[], Prepare]
    flop: float = 0.0
    nbytes: float = 0.0
    rows: int = 0
    quick: bool = False
    backends: tuple[str, ...] = BACKENDS
    chunk: int = 1
    passes: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """What tells it from the others of its name."""
        return label(self.shape, self.dtype, self.bias)

    def __str__(self) -> str:
        return f"{self.name} {self.label}"


def label(shape: str, dtype: str, bias: bool | None) -> str:
    """Return shape, dtype and bias in one short text."""
    short = {"float32": "f32", "float64": "f64"}.get(dtype, dtype)
    side = () if bias is None else ("bias" if bias else "no bias",)
    return " ".join((shape, short, *side))


def first_call(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Return what the function returns, and the seconds that its first call took."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - start


def repeated(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> Callable[[int], None]:
    """Return work whose unit is one call."""

    def work(units: int) -> None:
        for _ in range(units):
            function(*arguments, **options)

    return work
