"""The engine of many small networks at once, over the compiled CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import SpecError
from fastneuron.kernels.device_calls import Calls, Device
from fastneuron.kernels.device_ensemble import DeviceEnsembleEngine, Steps
from fastneuron.kernels.device_fused import MOST_LAYERS, network_of, takes
from fastneuron.kernels.device_memory import STATE, Buffer
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.spec import NetworkSpec

__all__ = ["CythonCudaEnsembleEngine"]

#: Threads of a block that the kernel's sums have room for: FUSED_THREADS of csrc/cuda/fused.h.
_SUMMED_THREADS = 256


class CythonCudaEnsembleEngine(DeviceEnsembleEngine):
    """Each model in a block of a kernel that takes any network by its table of layers.

    Parameters
    ----------
    spec, loss, optimizers, given
        See `DeviceEnsembleEngine`.
    calls
        The functions of kernels.h.

    Raises
    ------
    SpecError, DeviceError
        See `DeviceEnsembleEngine`; the former for too many layers too.
    """

    #: `STATE`, whose first numbers are step and status.
    _state_numbers: ClassVar[int] = STATE.itemsize // 8

    def __init__(
        self,
        spec: NetworkSpec,
        loss: Loss | None,
        optimizers: Sequence[Optimizer],
        *,
        calls: Calls,
        **given: Any,
    ) -> None:
        self._calls = calls
        super().__init__(spec, loss, optimizers, **given)

    def _open(self) -> None:
        if not takes(self._plan):
            raise SpecError(f"a block of the device takes up to {MOST_LAYERS} layers")
        self._network = network_of(self._plan)
        self._device = Device(self._calls)
        self._scalars = self._vector(np.float64)

    def _make_state(self) -> None:
        super()._make_state()
        self._of_steps.append(self._scalars)

    def _vector(self, dtype: Any) -> Buffer:
        return Buffer(self._device, dtype)

    def _put_scalars(self, scalars: NDArray[np.float64]) -> None:
        self._scalars.put(scalars)

    def _training(self, steps: Steps, ends: list[int]) -> list[Callable[[], None]]:
        assert self.loss is not None
        targets = 0 if steps.classes else self._data[1].address
        labels = self._labels.address if steps.classes else 0
        weight = self._data[2].address if steps.weighted else 0
        vectors = (
            self._data[0].address, targets, labels, weight, self._order.address,
            self._bounds.address, self._scalars.address, self._marks.address, self._p.address,
            self._g.address, *([each.address for each in self._moments] + [0, 0])[:2],
            self._rows.address, self._losses.address, self._state.address,
        )  # fmt: skip
        what = self._code, self.loss.code, int(self.optimizers[0].kind), *self._block(self.n_models)
        given = *what, *vectors, *steps.apart, steps.tables, steps.most
        return [self._device.program([("ensemble_steps", (*given, end))]).run for end in ends]

    def _prediction(
        self, first: int, models: int, count: int, apart: int
    ) -> list[Callable[[], None]]:
        out = self._outputs.at(first * count * int(self.spec.out_features))
        x, p = self._inputs.at(first * apart), self._p.at(first * self._plan.flat)
        given = self._code, *self._block(models), x, p, out, count, apart
        return [self._device.program([("fused_forward", given)]).run]

    def _shared_bytes(self) -> int:
        of_sums = _SUMMED_THREADS * np.dtype(np.float64).itemsize
        return self._plan.numbers * self._dtype.itemsize + of_sums

    @property
    def _code(self) -> int:
        return int(self._dtype == np.float64)

    def _block(self, models: int) -> tuple[int, int, int]:
        return self._network.ctypes.data, models, self._threads
