"""Optimizer updates over whole panel rows, in place; formulas in `fastneuron.optimizers`.

Emitted as vector IR, since the runs are short: beside 1024 parameters a compiled loop's call, alias
checks and remainder count (a tile's SGD update took 120 ns, and takes 96; the rest is memory).
Adam takes 12 cycles a vector of AVX-512 for its root and division. One tile's update a vector at a
time between the multiply-adds of the next tile's gradient was tried: a step gained 1 % (Zen 5), for
root and division keep a multiplier busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import I64, Memory, Number, splat, whole
from fastneuron.kernels.numba_cpu.target import ir_lanes
from fastneuron.optimizers import (
    BETA1,
    BETA2,
    CORRECTION,
    EPSILON,
    L2,
    RATE,
    SGD,
    SHRINK,
    Adam,
    RMSprop,
)

PLAIN = SGD().kind
MOMENTUM = SGD(momentum=0.5).kind
NESTEROV = SGD(momentum=0.5, nesterov=True).kind
ADAM = Adam().kind
RMSPROP = RMSprop().kind


class _Step:
    """Emits what one step's formulas take: each number once, before the loop, and in every lane."""

    def __init__(self, table: Memory, lanes: int, single: bool, scale: Any, decays: Any) -> None:
        self.builder = table.builder
        self._table = table
        self._lanes = lanes
        self._single = single
        self._scale = scale
        self._decays = decays

    def _every(self, value: Any) -> Number:
        if self._single:
            value = self.builder.fptrunc(value, ir.FloatType())
        return splat(self.builder, value, self._lanes)

    def scalar(self, column: int) -> Number:
        """Return a column of the step's scalars."""
        return self._every(self._table.load(whole(column)).value)

    def rest(self, column: int) -> Number:
        """Return 1 less a column."""
        return self._every((1.0 - self._table.load(whole(column))).value)

    def decay(self, column: int) -> Number:
        """Return a column that counts only for what decays."""
        return self._every(self._table.load(whole(column)).where(self._decays, 0.0).value)

    def slope(self) -> Callable[[Number, Number], Number]:
        """Return how the clipped gradient plus L2 decay comes from gradient and parameter."""
        scale, l2 = self._every(self._scale), self.decay(L2)
        return lambda g, p: scale * g + l2 * p


# Each makes its constants and returns: parameters, gradients and moments to parameters and moments.
_Formula = Callable[..., list[Number]]


def _plain(step: _Step) -> _Formula:
    slope, rate = step.slope(), step.scalar(RATE)
    return lambda p, g: [p - rate * slope(g, p)]


def _momentum(step: _Step) -> _Formula:
    slope, rate, beta = step.slope(), step.scalar(RATE), step.scalar(BETA1)

    def formula(p: Number, g: Number, m: Number) -> list[Number]:
        m = beta * m + slope(g, p)
        return [p - rate * m, m]

    return formula


def _nesterov(step: _Step) -> _Formula:
    slope, rate, beta = step.slope(), step.scalar(RATE), step.scalar(BETA1)

    def formula(p: Number, g: Number, m: Number) -> list[Number]:
        now = slope(g, p)
        m = beta * m + now
        return [p - rate * (now + beta * m), m]

    return formula


def _adam(step: _Step) -> _Formula:
    slope, rate, shrink = step.slope(), step.scalar(RATE), step.decay(SHRINK)
    beta1, rest1 = step.scalar(BETA1), step.rest(BETA1)
    beta2, rest2 = step.scalar(BETA2), step.rest(BETA2)
    correction, epsilon = step.scalar(CORRECTION), step.scalar(EPSILON)

    def formula(p: Number, g: Number, m: Number, v: Number) -> list[Number]:
        now = slope(g, p)
        m = beta1 * m + rest1 * now
        v = beta2 * v + rest2 * (now * now)
        return [p - shrink * p - rate * m / (v.root() * correction + epsilon), m, v]

    return formula


def _rmsprop(step: _Step) -> _Formula:
    slope, rate, epsilon = step.slope(), step.scalar(RATE), step.scalar(EPSILON)
    beta2, rest2 = step.scalar(BETA2), step.rest(BETA2)

    def formula(p: Number, g: Number, v: Number) -> list[Number]:
        now = slope(g, p)
        v = beta2 * v + rest2 * (now * now)
        return [p - rate * now / (v.root() + epsilon), v]

    return formula


#: Kind -> (formula, number of moments).
_FORMULAS: dict[int, tuple[Callable[[_Step], _Formula], int]] = {
    PLAIN: (_plain, 0),
    MOMENTUM: (_momentum, 1),
    NESTEROV: (_nesterov, 1),
    ADAM: (_adam, 2),
    RMSPROP: (_rmsprop, 1),
}


@intrinsic
def update(
    typingctx: Any,
    kind: Any,
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    scalars: Any,
    clip: Any,
    decays: Any,
    columns: Any,
) -> Any:
    """Update parameters p from gradients g; m and v are the moments that the kind has.

    The runs are whole panel rows and do not overlap. `scalars` is one step's row of
    `Optimizer.scalars`; `decays` is 0 for biases that weight decay leaves alone. Where the panel
    has at most half its `columns`, the other half, all zeros, is left alone.
    """
    width = ir_lanes(p.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args[1:5]
        runs = [
            Memory(context, builder, kind, array)
            for kind, array in zip(kinds, args[1:5], strict=True)
        ]
        table = Memory(context, builder, signature.args[5], args[5])

        decaying = builder.icmp_signed("!=", args[7], whole(0))
        step = _Step(table, width, p.dtype == types.float32, args[6], decaying)
        narrow = builder.icmp_signed("<=", args[8], whole(width))
        stride = builder.select(narrow, whole(2 * width), whole(width))
        count = builder.udiv(runs[0].size, stride)

        def loop(make: Callable[[_Step], _Formula], moments: int) -> None:
            formula, used = make(step), [runs[0], *runs[2 : 2 + moments]]
            with cgutils.for_range(builder, count, intp=I64) as each:
                at = builder.mul(each.index, stride)
                old_p, *old = [run.load(at, width) for run in used]
                new = formula(old_p, runs[1].load(at, width), *old)
                for run, number in zip(used, new, strict=True):
                    run.store(number, at)

        after = builder.append_basic_block("update.done")
        switch = builder.switch(args[0], after)
        for code, (formula, moments) in _FORMULAS.items():
            block = builder.append_basic_block(f"update.kind{int(code)}")
            switch.add_case(whole(int(code)), block)
            builder.position_at_end(block)
            loop(formula, moments)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    numbers = (types.float64, types.int64, types.int64)
    return types.void(types.int64, p, g, m, v, scalars, *numbers), codegen
