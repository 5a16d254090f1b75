"""Fills the cache of compiled kernels ahead, by using every kernel once on a few numbers.

The kernels that exist are known to their backend alone. What is known here is all that a backend
can be asked: the engine's calls, on networks of several sizes, and every slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastneuron import backends
from fastneuron.kernels.contract import Array, Engine
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD, Adam, RMSprop
from fastneuron.spec import NetworkSpec

__all__ = ["DTYPES", "Kernel", "warm_up"]

DTYPES = ("float32", "float64")

# Widths and batch: within the first-level cache, of ragged panels, of many panels and rows. An
# engine may have kernels of its own for any of them.
_NETWORKS = (((2, 3, 1), 4), ((20, 64, 33), 32), ((300, 257, 10), 200))
_LOSSES = ("cross_entropy", "mse")
_OPTIMIZERS = (SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Adam(), RMSprop())


class Kernel(NamedTuple):
    """A compiled function that was met.

    Attributes
    ----------
    name, dtype : str
    found : bool
        Whether the cache had it before.
    kept : bool
        Whether it has it now.
    seconds : float
        Spent loading or compiling it.
    """

    name: str
    dtype: str
    found: bool
    kept: bool
    seconds: float


def warm_up(backend: str = "auto", dtypes: Sequence[str] = DTYPES) -> Iterator[Kernel]:
    """Use every kernel of a backend once, and tell of each one that was loaded or compiled.

    Parameters
    ----------
    backend : str
        A backend that compiles nothing gives nothing.
    dtypes : sequence of str
        "float32", "float64" or both.

    Yields
    ------
    Kernel
        Those that this process had not used before.
    """
    chosen = backends.get(backend)
    records: list[Any] = getattr(next(_engines(chosen, "float32")), "kernel_records", [])
    told = len(records)
    for _ in _uses(chosen, dtypes):
        while told < len(records):
            yield Kernel(*records[told])
            told += 1


def _uses(backend: backends.Backend, dtypes: Sequence[str]) -> Iterator[None]:
    for dtype in dtypes:
        for engine in _engines(backend, dtype):
            yield from _use(engine)
        yield from _use_slots(backend, dtype)
        yield from _use_ceilings(backend, dtype)


def _engines(backend: backends.Backend, dtype: str) -> Iterator[Engine]:
    for sizes, batch in _NETWORKS:
        for loss in _LOSSES:
            layers = [Dense(*pair, "relu") for pair in pairwise(sizes)]
            spec = NetworkSpec.chain(layers, dtype)
            engine = backend.engine(spec, LOSSES[loss], Adam(), n_threads=1, batch_size=batch)
            engine.load([(w, np.zeros(w.shape[1], dtype)) for w in _weights(sizes, dtype)])
            yield engine


def _weights(sizes: Sequence[int], dtype: str) -> list[Array]:
    return [np.full(pair, 0.01, dtype) for pair in pairwise(sizes)]


def _use(engine: Engine) -> Iterator[None]:
    """Call everything that an engine promises."""
    n, dtype, spec = engine.batch_size, np.dtype(engine.spec.dtype), engine.spec
    x = np.ones((n, spec.sizes[0]), dtype)
    y: Array = np.ones((n, spec.sizes[-1]), dtype)
    if engine.loss is not None and engine.loss.targets == "classes":
        y = np.zeros(n, np.int64)
    scalars = Adam().scalars(0, np.full(1, 0.01))
    order, bounds, losses = np.arange(n), np.array([0, n]), np.empty(1)
    engine.run(x, y, None, order, bounds, scalars, losses)
    yield
    engine.run(x, y, np.ones(n, dtype), order, bounds, scalars, losses)
    engine.forward(x[:1])
    yield
    engine.forward(x)
    dout = engine.forward_keep(x)
    yield
    engine.update(dout, scalars[0])
    engine.gradients(x, y, None)
    yield


def _use_slots(backend: backends.Backend, dtype: str) -> Iterator[None]:
    """Call every slot once."""
    slots = backend.slots
    x, w, b = np.ones((3, 2), dtype), np.ones((2, 4), dtype), np.ones(4, dtype)
    a = slots["dense_forward"](x, w, b, "relu")
    yield
    slots["bias_act_forward"](a, b, "relu")
    yield
    slots["dense_backward"](a, x, w, a, "relu")
    yield
    slots["act_bias_backward"](a, a, "relu")
    yield
    for loss in LOSSES.values():
        slots[loss.slot](a, np.ones_like(a))
        yield
    for optimizer in _OPTIMIZERS:
        scalars = optimizer.scalars(0, np.full(1, 0.01))[0]
        moments = tuple(np.zeros_like(b) for _ in range(optimizer.n_moments))
        slots[optimizer.slot](b.copy(), b, moments, scalars, 1.0)
        yield


def _use_ceilings(backend: backends.Backend, dtype: str) -> Iterator[None]:
    """Measure next to nothing with each of the kernels that profiles measure ceilings with."""
    kernels = backend.ceilings
    if kernels is None:
        return
    registers = np.ones(12 * kernels.lane_count(dtype), dtype)
    kernels.multiply_adds(registers, 1)
    yield
    few = registers[: 4 * kernels.lane_count(dtype)]
    kernels.read_all(few, 1, registers)
    yield
    kernels.copy_all(few, np.empty_like(few), 1)
    yield
