"""Losses of single rows: loss and dL/d(output) in one visit.

Emitted as vector IR, one register of outputs at a time: the rows are short, and beside them a
compiled loop's checks and remainder count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import (
    I64,
    Memory,
    Number,
    Variable,
    below,
    splat,
    whole,
)
from fastneuron.kernels.numba_cpu.exponentials import (
    emit_decay,
    emit_exp,
    emit_log1p_unit,
    emit_sigmoid,
)
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.target import ir_lanes
from fastneuron.losses import LOSSES

MSE = LOSSES["mse"].code
MAE = LOSSES["mae"].code
HUBER = LOSSES["huber"].code
CROSS_ENTROPY = LOSSES["cross_entropy"].code
BINARY_CROSS_ENTROPY = LOSSES["binary_cross_entropy"].code
POISSON = LOSSES["poisson"].code


@inner
def row_scale(arena, weight, sample, share):
    """Return what a row's loss counts in its batch: weight / B; no weights mean weight 1.

    `share` is 1 / B.
    """
    return share * weight[sample] if weight.shape[0] > 0 else share


def _mse(o: Number, y: Number) -> tuple[Number, Number]:
    r = o - y
    return 2.0 * r, r * r


def _mae(o: Number, y: Number) -> tuple[Number, Number]:
    r = o - y
    below_zero = r.constant(-1.0).where(r < 0.0, r)
    return r.constant(1.0).where(r > 0.0, below_zero), abs(r)


def _huber(o: Number, y: Number) -> tuple[Number, Number]:
    r = o - y
    size = abs(r)
    outside = size > 1.0
    flat = r.constant(1.0).where(r > 0.0, -1.0)
    return flat.where(outside, r), (size - 0.5).where(outside, 0.5 * r * r)


def _binary_cross_entropy(o: Number, y: Number) -> tuple[Number, Number]:
    above = o.constant(0.0).where(o < 0.0, o)
    return emit_sigmoid(o) - y, above - o * y + emit_log1p_unit(emit_decay(-abs(o)))


def _poisson(o: Number, y: Number) -> tuple[Number, Number]:
    e = emit_exp(o)
    return e - y, e - y * o


#: Of outputs and targets: dl/do and l.
FORMULAS: dict[int, Callable[[Number, Number], tuple[Number, Number]]] = {
    MSE: _mse,
    MAE: _mae,
    HUBER: _huber,
    BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    POISSON: _poisson,
}


@intrinsic
def values_row(
    typingctx: Any,
    arena: Any,
    code: Any,
    out: Any,
    delta: Any,
    stride: Any,
    target: Any,
    coming: Any,
    scale: Any,
) -> Any:
    """Any loss of one row but cross-entropy, a mean over its outputs; returns scale * loss.

    The outputs stand in panels from `out` on; scale * dL/d(output) is written to those at `delta`,
    which may be the same, with zeros up to the end of the last. The sum goes over registers, and
    then over lanes in halves: its order is that of the number of outputs. `coming` is the target of
    the row after this one: rows of a shuffled batch lie anywhere, so each is asked for a row ahead.
    """
    lanes = ir_lanes(arena.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        wanted = Memory(context, builder, signature.args[5], args[5])
        outputs = wanted.size
        factor = Number(builder, args[7])
        factor = factor / factor.of_integer(outputs)
        factors = splat(builder, factor.value, lanes)
        zeros = factors.constant(0.0)
        total = Variable(zeros)

        def panel_place(first: Any) -> Any:
            """Position of output `first`, a multiple of the register, from the row's start."""
            panel = builder.udiv(first, whole(2 * lanes))
            odd = builder.and_(first, whole(lanes))
            return builder.add(builder.mul(panel, args[4]), odd)

        after = Memory(context, builder, coming, args[6])
        done = builder.append_basic_block("loss.done")
        switch = builder.switch(args[1], done)
        for each, formula in FORMULAS.items():
            block = builder.append_basic_block(f"loss.code{each}")
            switch.add_case(whole(each), block)
            builder.position_at_end(block)
            with cgutils.for_range_slice(builder, whole(0), outputs, whole(lanes), intp=I64) as (
                at,
                _,
            ):
                after.fetch(at)
                mask = below(builder, builder.sub(outputs, at), lanes)
                place = panel_place(at)
                o = memory.load(builder.add(args[2], place), lanes)
                slope, loss = formula(o, wanted.load_some(at, mask))
                memory.store((factors * slope).where(mask, 0.0), builder.add(args[3], place))
                total.set(total.get() + loss.where(mask, 0.0))
            builder.branch(done)
        builder.position_at_end(done)
        # Where the last panel is at most half full, its other half was not visited.
        used = builder.and_(builder.sub(outputs, whole(1)), whole(2 * lanes - 1))
        with builder.if_then(builder.icmp_signed("<", used, whole(lanes))):
            last = builder.and_(builder.sub(outputs, whole(1)), whole(-2 * lanes))
            place = panel_place(builder.add(last, whole(lanes)))
            memory.store(zeros, builder.add(args[3], place))
        return (factor * total.get().tree_sum()).value

    integers = [types.int64] * 4
    return arena.dtype(arena, *integers, target, coming, arena.dtype), codegen
