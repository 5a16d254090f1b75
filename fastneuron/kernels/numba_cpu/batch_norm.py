"""Normalisations by mean and variance of each feature: of a batch, or given.

A visit takes one panel, for all rows of the batch where it finds mean and variance, since their
sums go down the rows: see `visits` for the order.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.emit import Number, whole
from fastneuron.kernels.numba_cpu.visits import Finish, Parts, Rows

#: What a normalisation of a batch keeps, as rows of panels at `columns.KEPT`.
MEAN, VARIANCE, INVERSE, WEIGHT_SLOPE, BIAS_SLOPE = range(5)


def inverse_root(variance: Number, epsilon: Number) -> Number:
    """Return ``1 / sqrt(variance + epsilon)``; NaN where the variance is not finite, not 0."""
    return 1.0 / (variance + epsilon).root() + (variance - variance)


def epsilon_of(rows: Rows, numbers: Any) -> Any:
    """Return the epsilon among a layer's own numbers."""
    return rows.memory.load(rows.builder.add(numbers, whole(at.EPSILON))).value


@intrinsic
def moments(
    typingctx: Any,
    arena: Any,
    x: Any,
    n_rows: Any,
    share: Any,
    numbers: Any,
    kept: Any,
    kept_step: Any,
) -> Any:
    """Keep mean, variance and inverse root of each lane of a panel, `share` being 1 / rows."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, n_rows, share, numbers, kept, kept_step = args[1:]
        share = rows.splat(share)

        sums = Parts(rows.zeros)
        rows.visit(n_rows, lambda r, k: sums.add(k, rows.load(x, r)))
        mean = sums.total() * share
        squares = Parts(rows.zeros)

        def square(r: Any, k: int) -> None:
            c = rows.load(x, r) - mean
            squares.fuse(k, c, c)

        rows.visit(n_rows, square)
        variance = squares.total() * share
        inverse = inverse_root(variance, rows.splat(epsilon_of(rows, numbers)))
        for which, row in ((MEAN, mean), (VARIANCE, variance), (INVERSE, inverse)):
            rows.store(row, builder.add(kept, builder.mul(kept_step, whole(which))))
        return context.get_dummy_value()

    after = [types.int64] * 3
    return types.void(arena, types.int64, types.int64, arena.dtype, *after), codegen


@intrinsic
def normalise(
    typingctx: Any,
    arena: Any,
    x: Any,
    out: Any,
    n_rows: Any,
    mean: Any,
    variance: Any,
    numbers: Any,
    weight: Any,
    bias: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Compute ``weight (x - mean) / sqrt(variance + epsilon) + bias`` of a panel's rows.

    All but x are one panel row each; `is_relu` and `most` as in `visits.Finish`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, out, n_rows, mean_at, variance_at, numbers, weight, bias_at, is_relu, most = args[1:]
        finish = Finish(rows, is_relu, most)
        mean, bias = rows.load(mean_at), rows.load(bias_at)
        epsilon = rows.splat(epsilon_of(rows, numbers))
        factor = rows.load(weight) * inverse_root(rows.load(variance_at), epsilon)

        def row(r: Any, _k: int) -> None:
            c = rows.load(x, r) - mean
            rows.store(finish.output(c.times(factor, bias)), out, r)

        rows.visit(n_rows, row)
        finish.note()
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 10), codegen


@intrinsic
def batch_back(
    typingctx: Any,
    arena: Any,
    x: Any,
    delta: Any,
    n_rows: Any,
    share: Any,
    kept: Any,
    kept_step: Any,
    weight: Any,
    saved: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Turn a panel's dL/dy into dL/dx in place, and keep dL/dweight and dL/dbias.

    Gated as in `visits.Finish` by the outputs at `saved`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, delta, n_rows, share, kept, kept_step, weight, saved, is_relu, most = args[1:]
        share = rows.splat(share)

        def place(which: int) -> Any:
            return builder.add(kept, builder.mul(kept_step, whole(which)))

        mean, inverse = rows.load(place(MEAN)), rows.load(place(INVERSE))
        biases, weights = Parts(rows.zeros), Parts(rows.zeros)

        def sum_up(r: Any, k: int) -> None:
            d = rows.load(delta, r)
            biases.add(k, d)
            weights.fuse(k, d, rows.load(x, r) - mean)

        rows.visit(n_rows, sum_up)
        dbias, dweight = biases.total(), weights.total() * inverse
        rows.store(dweight, place(WEIGHT_SLOPE))
        rows.store(dbias, place(BIAS_SLOPE))
        mean_d, slope = dbias * share, (dweight * inverse) * share
        factor = rows.load(weight) * inverse
        finish = Finish(rows, is_relu, most)

        def row(r: Any, _k: int) -> None:
            c = rows.load(x, r) - mean
            d = rows.load(delta, r) - mean_d
            rows.store(finish.delta(factor * (-c).times(slope, d), saved, r), delta, r)

        rows.visit(n_rows, row)
        finish.note()
        return context.get_dummy_value()

    after = [types.int64] * 6
    return types.void(arena, *[types.int64] * 3, arena.dtype, *after), codegen


@intrinsic
def frozen_back(
    typingctx: Any,
    arena: Any,
    delta: Any,
    n_rows: Any,
    variance: Any,
    numbers: Any,
    weight: Any,
    saved: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Do what `batch_back` does where mean and variance are given: a factor for each lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        delta, n_rows, variance, numbers, weight, saved, is_relu, most = args[1:]
        epsilon = rows.splat(epsilon_of(rows, numbers))
        factor = rows.load(weight) * inverse_root(rows.load(variance), epsilon)
        finish = Finish(rows, is_relu, most)

        def row(r: Any, _k: int) -> None:
            rows.store(finish.delta(factor * rows.load(delta, r), saved, r), delta, r)

        rows.visit(n_rows, row)
        finish.note()
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 8), codegen


@intrinsic
def move_statistics(
    typingctx: Any,
    arena: Any,
    running: Any,
    running_step: Any,
    kept: Any,
    kept_step: Any,
    numbers: Any,
    wider: Any,
) -> Any:
    """Move one panel's running mean and variance towards the batch's, `wider` being B / (B - 1)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        running, running_step, kept, kept_step, numbers, wider = args[1:]
        place = builder.add(numbers, whole(at.MOMENTUM))
        momentum = rows.splat(rows.memory.load(place).value)
        mean, variance = rows.load(kept), rows.load(builder.add(kept, kept_step))
        second = builder.add(running, running_step)
        for place, new in ((running, mean), (second, variance * rows.splat(wider))):
            old = rows.load(place)
            rows.store(momentum.times(new - old, old), place)
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 5, arena.dtype), codegen
