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
from fastneuron.kernels.numba_cpu.panels import LINE, Loop, Panel
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

#: Rows of deltas that fit in registers beside the constants of an update.
HELD_ROWS = 4

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


def _each_kind(
    builder: Any, kind: Any, emit: Callable[[Callable[[_Step], _Formula], int], None]
) -> None:
    """Emit code for every formula and its number of moments; `kind` chooses when it runs."""
    after = builder.append_basic_block("update.done")
    switch = builder.switch(kind, after)
    for code, (formula, moments) in _FORMULAS.items():
        block = builder.append_basic_block(f"update.kind{int(code)}")
        switch.add_case(whole(int(code)), block)
        builder.position_at_end(block)
        emit(formula, moments)
        builder.branch(after)
    builder.position_at_end(after)


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

        _each_kind(builder, args[0], loop)
        return context.get_dummy_value()

    numbers = (types.float64, types.int64, types.int64)
    return types.void(types.int64, p, g, m, v, scalars, *numbers), codegen


@intrinsic
def update_by_rows(
    typingctx: Any,
    kind: Any,
    p: Any,
    m: Any,
    v: Any,
    arena: Any,
    a: Any,
    a_step: Any,
    b: Any,
    n_rows: Any,
    scalars: Any,
    decays: Any,
    columns: Any,
    ahead: Any,
) -> Any:
    """Like `update`, of gradients that are computed on the way and never stored.

    Row k of the parameters has the gradient ``sum_r arena[a + r*a_step + k] * B[r, :]``, B panel
    rows at `b`: the sums of a BATCH `product` that starts from zeros, to the bit. `ahead` is how
    many elements further on parameters and moments are asked for, or 0.
    """
    pitch = ir_lanes(p.dtype)
    width = pitch // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        runs = [Memory(context, builder, kinds[i], args[i]) for i in (1, 2, 3)]
        memory = Memory(context, builder, kinds[4], args[4])
        a, a_step, b, n_rows = args[5:9]
        table = Memory(context, builder, kinds[9], args[9])
        decaying = builder.icmp_signed("!=", args[10], whole(0))
        one = ir.Constant(ir.DoubleType(), 1.0)
        step = _Step(table, width, p.dtype == types.float32, one, decaying)
        wide = builder.icmp_signed(">", args[11], whole(width))
        far = builder.icmp_signed("!=", args[12], whole(0))
        count = builder.udiv(runs[0].size, whole(pitch))
        zeros = Number(builder, ir.Constant(ir.VectorType(memory.real, width), [0.0] * width))

        def ask_ahead(run: Memory, at: Any) -> None:
            panel = Panel(builder, run.base, p.dtype, pitch, pitch)
            for line in range(0, pitch, LINE // run.itemsize):
                panel.fetch(builder.add(builder.add(at, args[12]), whole(line)), to_write=1)

        def loop(make: Callable[[_Step], _Formula], moments: int) -> None:
            formula, used = make(step), [runs[0], *runs[1 : 1 + moments]]

            def row(k: Any, slopes: list[Number]) -> None:
                at = builder.mul(k, whole(pitch))
                with builder.if_then(far):
                    for run in used:
                        ask_ahead(run, at)

                def half(place: Any, slope: Number) -> None:
                    old_p, *old = [run.load(place, width) for run in used]
                    new = formula(old_p, slope, *old)
                    for run, number in zip(used, new, strict=True):
                        run.store(number, place)

                half(at, slopes[0])
                with builder.if_then(wide):
                    half(builder.add(at, whole(width)), slopes[1])

            def slopes(factors: list[Number], rows: list[list[Number]]) -> list[Number]:
                sums = [zeros, zeros]
                for factor, halves in zip(factors, rows, strict=True):
                    x = splat(builder, factor.value, width)
                    sums = [
                        x.call("fma", d, so_far) for d, so_far in zip(halves, sums, strict=True)
                    ]
                return sums

            def held(count_of_rows: int) -> None:
                """Deltas stay in registers."""
                rows = [
                    [
                        memory.load(builder.add(b, whole(r * pitch + half)), width)
                        for half in (0, width)
                    ]
                    for r in range(count_of_rows)
                ]
                starts = [builder.add(a, builder.mul(a_step, whole(r))) for r in range(len(rows))]
                with cgutils.for_range(builder, count, intp=I64) as each:
                    factors = [memory.load(builder.add(start, each.index)) for start in starts]
                    row(each.index, slopes(factors, rows))

            done = builder.append_basic_block("rows.done")
            more = builder.append_basic_block("rows.more")
            switch = builder.switch(n_rows, more)
            for count_of_rows in range(1, HELD_ROWS + 1):
                block = builder.append_basic_block(f"rows{count_of_rows}")
                switch.add_case(whole(count_of_rows), block)
                builder.position_at_end(block)
                held(count_of_rows)
                builder.branch(done)
            builder.position_at_end(more)
            with cgutils.for_range(builder, count, intp=I64) as each:
                a_at = builder.add(a, each.index)
                rows = Loop(builder, n_rows, [a_at, b, zeros.value, zeros.value], 1, "rows")
                a_now, b_now, *sums = rows.values
                x = splat(builder, memory.load(a_now).value, width)
                new = [
                    x.call(
                        "fma",
                        memory.load(builder.add(b_now, whole(half)), width),
                        Number(builder, so_far),
                    ).value
                    for half, so_far in zip((0, width), sums, strict=True)
                ]
                after = [builder.add(a_now, a_step), builder.add(b_now, whole(pitch)), *new]
                _a, _b, *sums = rows.close(after, whole(1))
                row(each.index, [Number(builder, total) for total in sums])
            builder.branch(done)
            builder.position_at_end(done)

        _each_kind(builder, args[0], loop)
        return context.get_dummy_value()

    numbers = [types.int64] * 4
    return types.void(types.int64, p, m, v, arena, *numbers, scalars, *[types.int64] * 3), codegen
