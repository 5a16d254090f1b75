"""The engine of many small networks at once, in Numba's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import BackendUnavailable
from fastneuron.kernels.device_ensemble import DeviceEnsembleEngine, Steps
from fastneuron.kernels.device_plan import blocks_of
from fastneuron.kernels.numba_cuda import missing
from fastneuron.kernels.numba_cuda.driver import allow_shared, empty, new_stream
from fastneuron.kernels.numba_cuda.ensemble_kernel import ensemble_steps, shared_bytes
from fastneuron.kernels.numba_cuda.fused import fused_forward
from fastneuron.kernels.numba_cuda.launches import Launch, prepared
from fastneuron.kernels.numba_cuda.state import Vector
from fastneuron.kernels.numba_cuda.updates import table_of
from fastneuron.losses import Loss
from fastneuron.optimizers import CLIP_NORM, Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CudaEnsembleEngine"]


class CudaEnsembleEngine(DeviceEnsembleEngine):
    """Each model in a block of a kernel that is compiled for its network.

    Parameters
    ----------
    spec, loss, optimizers, given
        See `DeviceEnsembleEngine`.

    Raises
    ------
    BackendUnavailable
        Where there is no driver or no card.
    SpecError, DeviceError
        See `DeviceEnsembleEngine`.
    """

    #: Of `outcome`.
    _state_numbers: ClassVar[int] = 2

    def __init__(
        self, spec: NetworkSpec, loss: Loss | None, optimizers: Sequence[Optimizer], **given: Any
    ) -> None:
        problem = missing()
        if problem:
            raise BackendUnavailable(problem)
        super().__init__(spec, loss, optimizers, **given)

    def _open(self) -> None:
        self._stream = new_stream()
        self._table, self._limits = self._vector(self._dtype), self._vector(np.float64)
        self._none = empty(1, self._dtype)

    def _make_state(self) -> None:
        super()._make_state()
        self._of_steps += [self._table, self._limits]

    def _vector(self, dtype: Any) -> Vector:
        return Vector(dtype, self._stream)

    def _put_scalars(self, scalars: NDArray[np.float64]) -> None:
        self._table.put(table_of(scalars, self.spec.dtype))
        self._limits.put(scalars[:, CLIP_NORM])

    def _training(self, steps: Steps, ends: list[int]) -> list[Callable[[], None]]:
        assert self.loss is not None
        plan, optimizer = self._plan, self.optimizers[0]
        what = optimizer.kind, optimizer.n_moments, self.spec.dtype, self._threads
        kernel = ensemble_steps(plan, self.loss.name, *what, steps.weighted, steps.classes)
        vectors = [
            each.array
            for each in (
                self._data[0], self._labels if steps.classes else self._data[1], self._data[2],
                self._order, self._bounds, self._table, self._limits, self._marks, self._p, self._g,
                *self._moments,
            )
        ]  # fmt: skip
        vectors += [self._none] * (2 - len(self._moments))
        vectors += [self._rows.array, self._losses.array, self._state.array]
        given = *vectors, *steps.apart, steps.tables, steps.most
        shared = plan.numbers * self._dtype.itemsize
        beside = self._shared_bytes() - shared
        allow_shared(kernel, (*given, ends[0]), shared, beside=beside)
        launches = [
            Launch(kernel, self.n_models, self._threads, (*given, end), shared) for end in ends
        ]
        return prepared(launches, self._stream)

    def _prediction(
        self, first: int, models: int, count: int, apart: int
    ) -> list[Callable[[], None]]:
        plan = self._plan
        kernel = fused_forward(plan, self.spec.dtype, self._threads)
        x, p = self._inputs.array[first * apart :], self._p.array[first * plan.flat :]
        out = self._outputs.array[first * count * self.spec.out_features :]
        arguments = x, p, out, count, apart, plan.flat
        grid = blocks_of(count, plan.rows), models
        shared = plan.forward_numbers * self._dtype.itemsize
        allow_shared(kernel, arguments, shared)
        return prepared([Launch(kernel, grid, self._threads, arguments, shared)], self._stream)

    def _shared_bytes(self) -> int:
        return shared_bytes(self._plan, self.spec.dtype, self._threads)
