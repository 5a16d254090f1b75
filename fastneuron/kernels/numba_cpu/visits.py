"""Visits of the rows of a panel, emitted: loops over them, sums down them, what happens on the way.

Whole panel rows as vectors. A sum over rows r has four parts, one for each ``r % 4``, each in
ascending order: its order is a function of the number of rows alone, and four chains of additions
hide one another's latency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import I64, Memory, Number, Variable, splat, whole
from fastneuron.kernels.numba_cpu.target import ir_lanes

#: Parts of a sum over rows, and rows that one turn of a loop visits.
PARTS = 4


class Rows:
    """Emits access to the rows of panels of the arena."""

    def __init__(self, context: Any, builder: Any, arena: Any, value: Any) -> None:
        self.builder = builder
        self.memory = Memory(context, builder, arena, value)
        self.lanes = ir_lanes(arena.dtype)
        self.zeros = self.every(0.0)

    def every(self, number: float) -> Number:
        """Return a row with a constant in every lane."""
        row = ir.VectorType(self.memory.real, self.lanes)
        return Number(self.builder, ir.Constant(row, [number] * self.lanes))

    def splat(self, scalar: Any) -> Number:
        """Return a row with a scalar in every lane."""
        return splat(self.builder, scalar, self.lanes)

    def load(self, start: Any, index: Any = None) -> Number:
        """Return row `index`, or the first, of the panel at `start`."""
        return self.memory.load(self.place(start, index), self.lanes)

    def store(self, number: Number, start: Any, index: Any = None) -> None:
        """Write row `index`, or the first, of the panel at `start`."""
        self.memory.store(number, self.place(start, index))

    def place(self, start: Any, index: Any = None) -> Any:
        """Return where a row of the panel at `start` stands."""
        if index is None:
            return start
        return self.builder.add(start, self.builder.mul(index, whole(self.lanes)))

    def visit(self, count: Any, body: Callable[[Any, int], None]) -> None:
        """Emit body(r, r % 4) for each of `count` rows in ascending order."""
        builder = self.builder
        even = builder.and_(count, whole(-PARTS))
        with cgutils.for_range_slice(builder, whole(0), even, whole(PARTS), intp=I64) as (at, _):
            for k in range(PARTS):
                body(builder.add(at, whole(k)), k)
        for k in range(PARTS - 1):
            r = builder.add(even, whole(k))
            with builder.if_then(builder.icmp_signed("<", r, count)):
                body(r, k)


class Parts:
    """A sum over rows in its four parts."""

    def __init__(self, zeros: Number) -> None:
        self._parts = [Variable(zeros) for _ in range(PARTS)]

    def add(self, part: int, term: Number) -> None:
        """Add a term."""
        now = self._parts[part]
        now.set(now.get() + term)

    def fuse(self, part: int, x: Number, y: Number) -> None:
        """Add a product, rounded once with its sum where the target does so."""
        now = self._parts[part]
        now.set(x.times(y, now.get()))

    def total(self) -> Number:
        """Return the sum."""
        s0, s1, s2, s3 = (part.get() for part in self._parts)
        return (s0 + s1) + (s2 + s3)


class Finish:
    """What becomes of a visit's results: ReLU, or its gate, and the largest of each lane.

    `is_relu` is 0 where the activation is another: then the results stay as they are. `most` is
    a panel row of maxima to raise, or -1.
    """

    def __init__(self, rows: Rows, is_relu: Any, most: Any) -> None:
        self._rows = rows
        self._builder = rows.builder
        self._most_at = most
        self._most = Variable(rows.zeros)
        self._is_relu = self._builder.icmp_signed("!=", is_relu, whole(0))
        low = self._builder.select(self._is_relu, rows.zeros.value, rows.every(-np.inf).value)
        self._low = Number(self._builder, low)

    def output(self, number: Number) -> Number:
        """Return f of a number."""
        # A compare, and this way round, so that NaN stays.
        return self._noted(self._low.where(number < self._low, number))

    def delta(self, number: Number, saved: Any, index: Any) -> Number:
        """Return a delta gated by the output in row `index` of the panel at `saved`."""
        builder = self._builder
        no_gate = ir.Constant(ir.VectorType(ir.IntType(1), number.lanes), ir.Undefined)
        no_gate = builder.insert_element(no_gate, builder.not_(self._is_relu), whole(0))
        zero = ir.Constant(ir.VectorType(ir.IntType(32), number.lanes), [0] * number.lanes)
        no_gate = builder.shuffle_vector(no_gate, no_gate, zero)
        is_open = builder.or_(self._rows.load(saved, index) > 0.0, no_gate)
        # A product, as the slot: a NaN passes a closed gate.
        return self._noted(number * number.constant(1.0).where(is_open, 0.0))

    def _noted(self, number: Number) -> Number:
        self._raise_by(number)
        return number

    def _raise_by(self, number: Number) -> None:
        bits, so_far = abs(number).bits(), self._most.get().bits()
        larger = self._builder.icmp_signed(">", bits, so_far)
        self._most.set(number.of_bits(self._builder.select(larger, bits, so_far)))

    def note(self) -> None:
        """Raise the row of maxima: after the last result."""
        with self._builder.if_then(self._builder.icmp_signed(">=", self._most_at, whole(0))):
            self._raise_by(self._rows.load(self._most_at))
            self._rows.store(self._most.get(), self._most_at)


@intrinsic
def panel_sum(typingctx: Any, arena: Any, delta: Any, n_rows: Any, out: Any) -> Any:
    """Write the sum of a panel's rows to the panel row at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        delta, n_rows, out = args[1:]
        sums = Parts(rows.zeros)
        rows.visit(n_rows, lambda r, k: sums.add(k, rows.load(delta, r)))
        rows.store(sums.total(), out)
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 3), codegen
