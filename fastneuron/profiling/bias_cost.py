"""What a bias should cost: bytes and flops counted from shapes, at speeds measured beforehand.

Of a layer with I inputs, O neurons and B rows, in numbers of s bytes, with m numbers kept for each
parameter (itself and the optimizer's moments):

==================  ===========================  ================================================
part                fused                        in a pass of its own
==================  ===========================  ================================================
forward add         O s bytes: sums start at b   2 B O s + O s bytes, B O adds, one call
backward reduction  B O adds in the same tiles   B O s bytes, and for each row the sums, read
                                                 and written: 2 B O s; B O adds, one call
update              (2 m + 1) O s bytes and the  the same, and one call
                    update's flops
==================  ===========================  ================================================

Bytes and flops overlap: the dearer of the two counts. What is fused meets its bytes in a
first-level cache; a pass of its own meets them wherever an array of that size stays. A column of
ones is a product with one input more, and a copy to append it and one to take its delta off.

The engines' own cost model (`Trainer.plan`) has no notion of a bias; it is asked what a step takes
without one, and with layers one wider: a panel of columns more is a matter of the engine's layout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastneuron import backends
from fastneuron.activations import ACTIVATIONS
from fastneuron.layers import Dense
from fastneuron.optimizers import UpdateKind
from fastneuron.profiling import bias_engine, bias_slots
from fastneuron.profiling.bias_parts import ADD, REDUCE, UPDATE
from fastneuron.profiling.workload import Workload
from fastneuron.spec import NetworkSpec

__all__ = ["FACTOR", "CostModel", "MachineSpeeds", "agrees", "measure_speeds"]

#: A prediction of a cost is meant to be good to this factor, either way.
FACTOR = 2.0
#: Multiply-adds of one parameter's update, a root and a division counting four each.
_UPDATE_FLOPS = {
    UpdateKind.SGD: 1,
    UpdateKind.MOMENTUM: 2,
    UpdateKind.NESTEROV: 3,
    UpdateKind.ADAM: 14,
    UpdateKind.RMSPROP: 12,
}
#: Seconds that a speed is measured for; the fastest of the calls counts: a call can be disturbed,
#: it cannot be lucky.
_PROBE_SECONDS, _LEAST_PROBES = 0.003, 20
#: Calls of less than a microsecond that are timed together: a clock has steps of some 30 ns.
_SHORT = 16
#: The layer whose product tells the pace of multiply-adds, and its rows.
_PROBE = (256, 128, 256)
#: Bytes of what a first-level cache certainly holds.
_CLOSE = 8 << 10


@dataclass(frozen=True)
class MachineSpeeds:
    """Seconds, measured on one thread.

    Attributes
    ----------
    multiply_add : float
        As the backend's engine reaches it in the forward product of a wide layer.
    add_call, update_call : float
        Of the slots `bias_act_forward` and the optimizer's update, with one number to do.
    numpy_call : float
        Of a NumPy reduction of one number.
    bytes : dict of int to float
        To read or write one byte of arrays of so many bytes that are passed over again and again.
    """

    multiply_add: float
    add_call: float
    update_call: float
    numpy_call: float
    bytes: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return the speeds as plain values."""
        return {
            "multiply_add_seconds": self.multiply_add,
            "add_call_seconds": self.add_call,
            "update_call_seconds": self.update_call,
            "numpy_call_seconds": self.numpy_call,
            "byte_seconds_by_array_bytes": {str(k): v for k, v in self.bytes.items()},
        }


def measure_speeds(workload: Workload) -> MachineSpeeds:
    """Measure what the predictions for `workload` rest on: some 50 milliseconds."""
    setting = workload.setting
    backend = backends.get(setting.backend, setting.dtype)
    inputs, outputs, rows = _PROBE
    engine = backend.engine(NetworkSpec.chain([Dense(inputs, outputs)], setting.dtype), n_threads=1)
    many = np.ones((rows, inputs), setting.dtype)
    one, other = np.ones((1, 1), setting.dtype), np.zeros((1, 1), setting.dtype)
    add = backend.slots["bias_act_forward"]
    optimizer = workload.optimizer
    update, scalars = backend.slots[optimizer.slot], workload.scalars[0]
    moments = tuple(np.zeros(1, setting.dtype) for _ in range(optimizer.n_moments))
    sizes = {_CLOSE, *(_measured_at(workload, width) for width in setting.sizes)}
    nothing = _fastest(lambda: np.copyto(other, one), _SHORT)
    return MachineSpeeds(
        _fastest(lambda: engine.forward(many)) / (inputs * outputs * rows),
        _fastest(lambda: add(one, one[0], "identity", other), _SHORT),
        _fastest(lambda: update(other[0], one[0], moments, scalars, 1.0), _SHORT),
        _fastest(lambda: np.add.reduce(one, axis=0, out=other[0]), _SHORT),
        {size: _copied(size, nothing) for size in sorted(sizes)},
    )


def agrees(predicted: float, low: float, high: float) -> bool:
    """Return whether a prediction, good to `FACTOR`, meets the interval of what was measured."""
    least, most = sorted((predicted / FACTOR, predicted * FACTOR))
    return max(least, low) <= min(most, high)


class CostModel:
    """Predicts, in seconds, what every part of every layer costs, and what whole steps differ by.

    Parameters
    ----------
    workload : Workload
    speeds : MachineSpeeds
    engine_steps : dict of str to float
        What the engine itself expects its steps to take, from `EngineSteps.predicted_seconds`.
    """

    def __init__(
        self, workload: Workload, speeds: MachineSpeeds, engine_steps: dict[str, float]
    ) -> None:
        self.workload, self.speeds, self.engine_steps = workload, speeds, engine_steps
        self._sizes = workload.setting.sizes
        self._rows, self._itemsize = workload.setting.batch_size, workload.setting.itemsize
        self._kept = 1 + workload.optimizer.n_moments
        self._layers = range(len(self._sizes) - 1)

    def part(self, index: int, part: str, *, fused: bool) -> float:
        """Return what a part costs in one layer."""
        outputs, s, speeds = self._sizes[index + 1], self._itemsize, self.speeds
        numbers = self._rows * outputs
        near, far = speeds.bytes[_CLOSE], speeds.bytes[_measured_at(self.workload, outputs)]
        adds = numbers * speeds.multiply_add
        if part == UPDATE:
            flops = outputs * _UPDATE_FLOPS[self.workload.optimizer.kind] * speeds.multiply_add
            work = max(flops, (2 * self._kept + 1) * outputs * s * near)
            return work if fused else work + speeds.update_call
        if part == ADD:
            if fused:
                return outputs * s * near
            return max(adds, (2 * numbers + outputs) * s * far) + speeds.add_call
        if fused:
            return max(adds, outputs * s * near)
        return max(adds, numbers * s * (far + 2 * near)) + speeds.numpy_call

    def engine(self, name: str) -> float:
        """Return what a step of the engine takes more than one without biases."""
        threads = self.workload.setting.n_threads
        if name == bias_engine.FROZEN:
            return self._all(ADD, fused=True) / threads
        if name == bias_engine.BIAS:
            return sum(self._all(part, fused=True) for part in (ADD, REDUCE, UPDATE)) / threads
        if name == bias_engine.ONES:
            known = self.engine_steps
            if bias_engine.ONES in known:
                return known[bias_engine.ONES] - known[bias_engine.NONE]
            wide = bias_engine.widened(self.workload.setting)
            more = wide.spec(bias=False).multiply_adds - self.workload.spec.multiply_adds
            return more * self._rows * self.speeds.multiply_add / threads
        return 0.0

    def slots(self, name: str) -> float:
        """Return what a step of slots takes more than the fused one without biases."""
        add = self._all(ADD, fused=True)
        update = self._all(UPDATE, fused=False)
        if name == bias_slots.FROZEN_FUSED:
            return add
        if name == bias_slots.FUSED_BIAS:
            return add + self._all(REDUCE, fused=True) + update
        if name == bias_slots.ONES_APPENDED:
            return sum(self._ones(index) for index in self._layers)
        if name == bias_slots.SEPARATE_NONE:
            return sum(self._activation_passes(index) for index in self._layers)
        if name == bias_slots.SEPARATE_BIAS:
            passes = sum(self._activation_passes(index) for index in self._layers)
            passes += sum(self._own_pass(index) for index in self._layers)
            return passes + self._all(REDUCE, fused=False) + update
        return 0.0

    def _all(self, part: str, *, fused: bool) -> float:
        return sum(self.part(index, part, fused=fused) for index in self._layers)

    def _pass(self, width: int, arrays: int) -> float:
        """Return what a pass over so many arrays (B, width) takes."""
        price = self.speeds.bytes[_measured_at(self.workload, width)]
        return arrays * _batch_bytes(self.workload, width) * price

    def _activation_passes(self, index: int) -> float:
        """Return what f and f' take more as passes of their own, without a bias."""
        f = ACTIVATIONS[self.workload.spec.layers[index].activation]
        if f.name == "identity":
            return 0.0
        # z is read and a written, unless z is kept in any case; da and a are read, dz written.
        width, call = self._sizes[index + 1], self.speeds.add_call
        forward = 0.0 if f.saves == "z" else self._pass(width, 2) + call
        return forward + self._pass(width, 3) + call

    def _own_pass(self, index: int) -> float:
        """Return what adding b takes where the activation has a pass already, or else a new one."""
        f = ACTIVATIONS[self.workload.spec.layers[index].activation]
        shared = f.name != "identity" and f.saves != "z"
        return self.part(index, ADD, fused=shared)

    def _ones(self, index: int) -> float:
        inputs, outputs = self._sizes[index : index + 2]
        products = 3 if index else 2
        work = products * self._rows * outputs * self.speeds.multiply_add
        work += self.part(index, UPDATE, fused=True)
        if index:  # the column appended, and its delta taken off
            work += 2 * (self._pass(inputs, 2) + self.speeds.numpy_call)
        return work


def _batch_bytes(workload: Workload, width: int) -> int:
    return workload.setting.batch_size * width * workload.setting.itemsize


def _measured_at(workload: Workload, width: int) -> int:
    """Return the size whose price a byte of a batch has; a small one's copy is all call."""
    return max(_CLOSE, _batch_bytes(workload, width))


def _copied(size: int, nothing: float) -> float:
    """Return the seconds a byte that copying an array of `size` bytes reads or writes."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    seconds = _fastest(lambda: np.copyto(target, source), _SHORT)
    # Should the call alone have been disturbed, the bytes do not come out as free.
    return max(seconds - nothing, 0.3 * seconds) / (2 * size)


def _fastest(call: Callable[[], object], together: int = 1) -> float:
    """Return the least seconds of a call, so many of them being timed together."""
    call()  # may compile
    best, start = float("inf"), time.perf_counter()
    probes = 0
    while probes < _LEAST_PROBES or time.perf_counter() - start < _PROBE_SECONDS:
        before = time.perf_counter()
        for _ in range(together):
            call()
        best = min(best, time.perf_counter() - before)
        probes += 1
    return best / together
