"""The slots over the calls of csrc/cuda/kernels.h: arrays of the host in, arrays of the host out.

Each call copies to the device and back. What trains is the engine, whose numbers stay there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Array
from fastneuron.kernels.device_calls import Calls, Device
from fastneuron.kernels.device_memory import STATE, Buffer
from fastneuron.kernels.device_plan import ALIGNMENT, DECAYS, TRAINS, blocks_of
from fastneuron.losses import LOSSES
from fastneuron.optimizers import UpdateKind

__all__ = ["DeviceSlots"]

# Rows whose columns one block sums.
_GROUP = 128


class DeviceSlots:
    """The slots by name; see `fastneuron.kernels.reference`.

    Parameters
    ----------
    calls : the functions of kernels.h
    tile : int
        Number of the tile of products.
    """

    def __init__(self, calls: Calls, tile: int) -> None:
        self._device, self._tile = Device(calls), tile

    def table(self) -> dict[str, Callable[..., Any]]:
        """Return the slots by name."""
        found: dict[str, Callable[..., Any]] = {
            name: getattr(self, name)
            for name in (
                "dense_forward", "bias_act_forward", "act_bias_backward", "dense_backward",
            )
        }  # fmt: skip
        for loss in LOSSES.values():
            found[loss.slot] = self._loss(loss.code)
        for kind in UpdateKind:
            found[f"{kind.name.lower()}_update"] = self._update(kind)
        return found

    def dense_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        activation: str = "identity",
        out: Array | None = None,
    ) -> Array:
        """Make tiles of the result in shared memory and registers, sums from the bias on."""
        a = self._empty(x, len(x) * w.shape[1])
        held = [self._held(each) for each in (x, w, b)]
        head = _dtype(x), self._tile, ACTIVATIONS[activation].code
        self._run("forward", *head, *map(_place, held), a.address, 0, len(x), *w.shape)
        return _into(out, a.get(len(x), w.shape[1]))

    def bias_act_forward(
        self, z: Array, b: Array | None, activation: str = "identity", out: Array | None = None
    ) -> Array:
        """Give each thread 16 bytes."""
        held = [self._held(each) for each in (z, b)]
        a, code = self._empty(z, z.size), ACTIVATIONS[activation].code
        self._run("bias_act_forward", _dtype(z), code, *map(_place, held), a.address, *z.shape)
        return _into(out, a.get(*z.shape))

    def act_bias_backward(
        self,
        da: Array,
        saved: Array,
        activation: str,
        bias: bool = True,
        out: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Sum columns in two stages, over groups of rows and over the groups."""
        dz, db = self._gated(da, saved, activation, bias)
        rows, columns = da.shape
        return _into(out, dz.get(rows, columns)), None if db is None else db.get(columns)

    def dense_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        saved: Array,
        activation: str = "identity",
        bias: bool = True,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, Array | None]:
        """Make products in tiles; the whole batch is one slice."""
        rows, (inputs, outputs) = len(x), w.shape
        dz, db = self._gated(dy, saved, activation, bias)
        held_x, held_w = self._held(x), self._held(w)
        head, sizes = (_dtype(x), self._tile), (rows, inputs, outputs)
        dx, dw = self._empty(x, x.size), self._empty(w, w.size)
        depth = self._device.calls.tile(*head)[2]
        one_slice = max(blocks_of(rows, depth), 1) * depth
        places = _place(held_x), dz.address, dw.address
        self._run("weight_gradient", *head, *places, *sizes, one_slice)
        if need_dx:
            ends = dz.address, _place(held_w), 0, dx.address, 0
            self._run("data_gradient", *head, 0, *ends, *sizes)
        gradient = dw.get(inputs, outputs)
        return (
            dx.get(rows, inputs) if need_dx else None,
            gradient,
            None if db is None else db.get(outputs),
        )

    def _gated(
        self, da: Array, saved: Array, activation: str, bias: bool
    ) -> tuple[Buffer, Buffer | None]:
        """Return dz and db on the device."""
        rows, columns = da.shape
        held = [self._held(each) for each in (da, saved)]
        dz, code = self._empty(da, da.size), ACTIVATIONS[activation].code
        groups = blocks_of(rows, _GROUP)
        partial = self._empty(da, groups * columns) if bias else None
        db = self._empty(da, columns) if bias else None
        places = *map(_place, held), dz.address, _place(partial)
        self._run("act_bias_backward", _dtype(da), code, *places, rows, columns, _GROUP)
        if partial is not None and db is not None:
            ends = db.address, groups, columns
            self._run("sum_parts", _dtype(da), partial.address, 1.0, *ends)
        return dz, db

    def _loss(self, code: int) -> Callable[..., Any]:
        def loss(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
            """Give each warp a row."""
            classes = y.ndim == 1
            held_y = Buffer(self._device, np.int64 if classes else out.dtype)
            held_y.put(y)
            held_out, held_weight = self._held(out), self._held(weight)
            rows, dout = self._empty(out, len(out)), self._empty(out, out.size)
            targets = (0, held_y.address) if classes else (held_y.address, 0)
            places = _place(held_out), *targets, _place(held_weight), rows.address, dout.address
            self._run("loss_rows", _dtype(out), code, *places, *out.shape)
            return rows.get(len(out)), dout.get(*out.shape)

        return loss

    def _update(self, kind: UpdateKind) -> Callable[..., Any]:
        def update(
            p: Array,
            g: Array,
            moments: tuple[Array, ...],
            scalars: NDArray[np.float64],
            clip_scale: float,
        ) -> None:
            """Give each thread 16 bytes."""
            held = [self._held(each) for each in (p, g, *moments)]
            places = [*map(_place, held), 0, 0][:4]
            marks = np.full(blocks_of(p.size, ALIGNMENT), TRAINS | DECAYS, np.uint8)
            state = np.array([(0, 0, clip_scale)], STATE).view(np.uint8)
            tables = [self._held(each) for each in (marks, scalars, state)]
            ends = map(_place, tables)
            self._run("update", _dtype(p), int(kind), *places, *ends, p.size)
            for buffer, array in zip((held[0], *held[2:]), (p, *moments), strict=True):
                assert buffer is not None
                array[...] = buffer.get(array.size)

        return update

    def _run(self, name: str, *arguments: float) -> None:
        self._device.program([(name, arguments)]).run()
        self._device.wait()  # what is held may be given back after this

    def _held(self, array: Array | None) -> Buffer | None:
        """Return a copy of an array on the device."""
        if array is None:
            return None
        buffer = self._empty(array, array.size)
        buffer.put(array)
        return buffer

    def _empty(self, like: Array, size: int) -> Buffer:
        return Buffer(self._device, like.dtype, size)


def _place(buffer: Buffer | None) -> int:
    return 0 if buffer is None else buffer.address


def _dtype(array: Array) -> int:
    return int(array.dtype == np.float64)


def _into(out: Array | None, result: Array) -> Array:
    if out is None:
        return result
    out[...] = result
    return out
