"""The slots on plain row-major arrays: an engine's own loops between a packing and an unpacking.

A backend with a blocked engine supplies the loops. Formulas, arrays and costs are documented in
`fastneuron.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.columns import panels
from fastneuron.kernels.contract import Array
from fastneuron.kernels.layout import aligned
from fastneuron.losses import LOSSES
from fastneuron.optimizers import UpdateKind

_NO_LABELS = np.empty(0, np.int64)


class Loops(Protocol):
    """Compiled functions; empty arrays stand for what is left out, `arena` is scratch."""

    def forward_product(
        self, x: Array, w: Array, b: Array, code: int, out: Array, arena: Array
    ) -> None:
        """Compute f(x w + b)."""

    def bias_act(self, z: Array, b: Array, code: int, out: Array) -> None:
        """Compute f(z + b)."""

    def gate_reduce(self, da: Array, saved: Array, code: int, out: Array, db: Array) -> None:
        """Dz = da * f'; db += sums of dz."""

    def backward_products(
        self,
        dy: Array,
        x: Array,
        w: Array,
        saved: Array,
        code: int,
        dx: Array,
        dw: Array,
        db: Array,
        arena: Array,
    ) -> None:
        """Dx = dz w^T, dw = x^T dz, db = sums of dz, with dz = dy * f'."""

    def loss_rows(
        self,
        code: int,
        out: Array,
        labels: Array,
        targets: Array,
        weight: Array,
        rows: Array,
        dout: Array,
        arena: Array,
    ) -> None:
        """Loss times weight of each row, and dL/d(out) of the weighted mean."""

    def update_run(
        self,
        kind: int,
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        scalars: Array,
        clip: float,
        arena: Array,
    ) -> None:
        """One optimizer update of a run of parameters."""


class PanelSlots:
    """Every slot over the loops of one backend.

    Parameters
    ----------
    loops : Loops
    lanes : callable
        Columns of a panel for a dtype.
    given : callable
        Returns an array that loops only read in the form that they take.
    """

    def __init__(
        self, loops: Loops, lanes: Callable[[Any], int], given: Callable[[Array], Array]
    ) -> None:
        self._loops = loops
        self._lanes = lanes
        self._given = given

    def table(self) -> dict[str, Callable[..., Any]]:
        """Return slot name -> function; all of them."""
        table: dict[str, Callable[..., Any]] = {
            "dense_forward": self.dense_forward,
            "bias_act_forward": self.bias_act_forward,
            "act_bias_backward": self.act_bias_backward,
            "dense_backward": self.dense_backward,
        }
        for loss in LOSSES.values():
            table[loss.slot] = self._loss_slot(loss.slot, loss.code)
        for kind in UpdateKind:
            name = f"{kind.name.lower()}_update"
            table[name] = self._update_slot(name, kind)
        return table

    def _arena(self, like: Array, *parts: int) -> Array:
        """Scratch of `parts` runs of panel rows."""
        return aligned(sum(parts) * self._lanes(like.dtype), like.dtype)

    def _vector(self, b: Array | None, like: Array) -> Array:
        return self._given(np.empty(0, like.dtype) if b is None else b)

    def dense_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        activation: str = "identity",
        out: Array | None = None,
    ) -> Array:
        """Tiles whose sums start from b, ascending over I; f while the panel is in cache."""
        (n_rows, inputs), outputs = x.shape, w.shape[1]
        out = np.empty((n_rows, outputs), x.dtype) if out is None else out
        scratch = self._arena(x, panels(inputs, self._lanes(x.dtype)) * n_rows, inputs, n_rows, 1)
        code, given = ACTIVATIONS[activation].code, self._given
        self._loops.forward_product(given(x), given(w), self._vector(b, x), code, out, scratch)
        return out

    def bias_act_forward(
        self, z: Array, b: Array | None, activation: str = "identity", out: Array | None = None
    ) -> Array:
        """Row by row: the row is still in the first-level cache when f comes over it."""
        out = np.empty_like(z) if out is None else out
        code = ACTIVATIONS[activation].code
        self._loops.bias_act(self._given(z), self._vector(b, z), code, out)
        return out

    def act_bias_backward(
        self,
        da: Array,
        saved: Array,
        activation: str,
        bias: bool = True,
        out: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Row by row, db summing rows in ascending order."""
        out = np.empty_like(da) if out is None else out
        db = np.zeros(da.shape[1] if bias else 0, da.dtype)
        code = ACTIVATIONS[activation].code
        self._loops.gate_reduce(self._given(da), self._given(saved), code, out, db)
        return out, db if bias else None

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
        """Tiles again: dx ascending over O, dw over B with db as the row whose input is 1."""
        (n_rows, inputs), outputs = x.shape, w.shape[1]
        lanes = self._lanes(x.dtype)
        dx = np.empty((n_rows if need_dx else 0, inputs), x.dtype)
        dw = np.empty_like(w)
        db = np.empty(outputs if bias else 0, x.dtype)
        over_in, over_out = panels(inputs, lanes) * n_rows, panels(outputs, lanes) * n_rows
        scratch = self._arena(x, 2, over_in, over_out, max(outputs + n_rows, lanes))
        code, given = ACTIVATIONS[activation].code, self._given
        self._loops.backward_products(
            given(dy), given(x), given(w), given(saved), code, dx, dw, db, scratch
        )
        return dx if need_dx else None, dw, db if bias else None

    def _loss_slot(self, name: str, code: int) -> Callable[..., tuple[Array, Array]]:
        def loss(out: Array, y: Array, weight: Array | None = None) -> tuple[Array, Array]:
            n_rows, outputs = out.shape
            rows, dout = np.empty(n_rows, out.dtype), np.empty_like(out)
            labels, targets = (y, out[:0]) if y.ndim == 1 else (_NO_LABELS, y)
            scratch = self._arena(out, 2 * panels(outputs, self._lanes(out.dtype)))
            given, weights = self._given, self._vector(weight, out)
            self._loops.loss_rows(
                code, given(out), given(labels), given(targets), weights, rows, dout, scratch
            )
            return rows, dout

        loss.__name__ = loss.__qualname__ = name
        loss.__doc__ = (
            "Row by row, sums ascending over the outputs; loss and gradient in one visit."
        )
        return loss

    def _update_slot(self, name: str, kind: int) -> Callable[..., None]:
        def update(
            p: Array, g: Array, moments: tuple[Array, ...], scalars: Array, clip_scale: float
        ) -> None:
            first, second = (*moments, p, p)[:2]  # a kind without moments never looks at them
            scratch, given = self._arena(p, 4), self._given
            self._loops.update_run(
                int(kind), p, given(g), first, second, given(scalars), float(clip_scale), scratch
            )

        update.__name__ = update.__qualname__ = name
        update.__doc__ = (
            "Vectors over the run, its tail through a scratch row; every element on its own."
        )
        return update
