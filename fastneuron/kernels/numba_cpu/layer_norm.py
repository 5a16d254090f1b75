"""Normalisation of rows over their features: rows never meet.

Sums go over a row's panels in ascending order, lane by lane, and then over the lanes in halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.batch_norm import epsilon_of, inverse_root
from fastneuron.kernels.numba_cpu.emit import I64, Number, Variable, below, whole
from fastneuron.kernels.numba_cpu.visits import Finish, Parts, Rows

#: Rows that go side by side: the chains of their sums hide one another's latency.
SIDE_BY_SIDE = 4


class _Panels:
    """Emits loops over the panels of rows that lie side by side."""

    def __init__(self, rows: Rows, stride: Any, features: Any) -> None:
        self.rows = rows
        self.builder = builder = rows.builder
        self._stride = stride
        last = builder.sub(features, whole(1))
        self._full = builder.udiv(last, whole(rows.lanes))
        left = builder.add(builder.urem(last, whole(rows.lanes)), whole(1))
        self._mask = below(builder, left, rows.lanes)

    def visit(self, body: Callable[[Any, Any, Callable[[Number], Number]], None]) -> None:
        """Emit body(panel's rows' offset, panel's vectors' offset, only) for each panel.

        `only` sets the lanes of a last panel to zero that are none of the features.
        """
        builder = self.builder

        def panel(p: Any, only: Callable[[Number], Number]) -> None:
            body(builder.mul(p, self._stride), builder.mul(p, whole(self.rows.lanes)), only)

        with cgutils.for_range(builder, self._full, intp=I64) as each:
            panel(each.index, lambda number: number)
        panel(self._full, lambda number: number.where(self._mask, 0.0))

    def visit_sums(
        self, count: int, terms: Callable[[Any, Any, Any, list[Variable]], None]
    ) -> list[Any]:
        """Return the sums of `count` variables over all panels and lanes, as scalars."""
        sums = [Variable(self.rows.zeros) for _ in range(count)]
        self.visit(lambda here, vector, only: terms(here, vector, only, sums))
        return [each.get().tree_sum() for each in sums]


def _rows_side_by_side(builder: Any, n_rows: Any, body: Callable[[Any, int], None]) -> None:
    """Emit body(first, count) for groups of rows, and for the rows left over."""
    even = builder.and_(n_rows, whole(-SIDE_BY_SIDE))
    for start, end, step in ((whole(0), even, SIDE_BY_SIDE), (even, n_rows, 1)):
        with cgutils.for_range_slice(builder, start, end, whole(step), intp=I64) as (r, _):
            body(r, step)


@intrinsic
def normalise_rows(
    typingctx: Any,
    arena: Any,
    x: Any,
    out: Any,
    stride: Any,
    features: Any,
    n_rows: Any,
    share: Any,
    numbers: Any,
    weight: Any,
    bias: Any,
    bias_step: Any,
    means: Any,
    inverses: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Normalise rows over their features, `share` being 1 / features.

    The biases of a panel stand `bias_step` after those before; mean and inverse root of each row
    are kept at `means` and `inverses`, unless these are -1.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, out, stride, features, n_rows, share, numbers, weight, bias, bias_step = args[1:11]
        means, inverses, is_relu, most = args[11:]
        panels, finish = _Panels(rows, stride, features), Finish(rows, is_relu, most)
        epsilon, share = Number(builder, epsilon_of(rows, numbers)), Number(builder, share)
        keeps = builder.icmp_signed(">=", means, whole(0))

        def group(first: Any, count: int) -> None:
            each = range(count)
            row = [rows.place(x, builder.add(first, whole(r))) for r in each]
            target = [rows.place(out, builder.add(first, whole(r))) for r in each]

            def load(r: int, here: Any) -> Number:
                return rows.load(builder.add(row[r], here))

            def values(here: Any, _vector: Any, only: Any, sums: list[Variable]) -> None:
                for r in each:
                    sums[r].set(sums[r].get() + only(load(r, here)))

            mean = [total * share for total in panels.visit_sums(count, values)]
            means_ = [rows.splat(one.value) for one in mean]

            def squares(here: Any, _vector: Any, only: Any, sums: list[Variable]) -> None:
                for r in each:
                    c = only(load(r, here) - means_[r])
                    sums[r].set(c.times(c, sums[r].get()))

            variance = [total * share for total in panels.visit_sums(count, squares)]
            inverse = [inverse_root(one, epsilon) for one in variance]
            inverses_ = [rows.splat(one.value) for one in inverse]
            with builder.if_then(keeps):
                for r in each:
                    index = builder.add(first, whole(r))
                    rows.memory.store(mean[r], builder.add(means, index))
                    rows.memory.store(inverse[r], builder.add(inverses, index))

            def panel(here: Any, vector: Any, _only: Any) -> None:
                w = rows.load(builder.add(weight, vector))
                p = builder.udiv(vector, whole(rows.lanes))
                b = rows.load(builder.add(bias, builder.mul(p, bias_step)))
                for r in each:
                    c = load(r, here) - means_[r]
                    y = finish.output(c.times(w * inverses_[r], b))
                    rows.store(y, builder.add(target[r], here))

            panels.visit(panel)

        _rows_side_by_side(builder, n_rows, group)
        finish.note()
        return context.get_dummy_value()

    before, after = [types.int64] * 5, [types.int64] * 8
    return types.void(arena, *before, arena.dtype, *after), codegen


@intrinsic
def rows_back(
    typingctx: Any,
    arena: Any,
    x: Any,
    delta: Any,
    out: Any,
    stride: Any,
    features: Any,
    n_rows: Any,
    share: Any,
    weight: Any,
    means: Any,
    inverses: Any,
    saved: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Carry dL/dy of rows that were normalised over their features back to dL/dx at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, delta, out, stride, features, n_rows, share, weight, means, inverses = args[1:11]
        saved, is_relu, most = args[11:]
        panels, finish = _Panels(rows, stride, features), Finish(rows, is_relu, most)
        share = Number(builder, share)

        def group(first: Any, count: int) -> None:
            each = range(count)
            index = [builder.add(first, whole(r)) for r in each]
            mean, inverse = (
                [rows.splat(rows.memory.load(builder.add(kept, r)).value) for r in index]
                for kept in (means, inverses)
            )

            def of_row(r: int, here: Any, w: Number, only: Any) -> tuple[Number, Number]:
                """Return weight times delta, and the normalised input."""
                place = builder.add(here, rows.place(whole(0), index[r]))
                g = w * rows.load(builder.add(delta, place))
                xhat = (rows.load(builder.add(x, place)) - mean[r]) * inverse[r]
                return only(g), only(xhat)

            def terms(here: Any, vector: Any, only: Any, sums: list[Variable]) -> None:
                w = rows.load(builder.add(weight, vector))
                for r in each:
                    g, xhat = of_row(r, here, w, only)
                    plain, with_x = sums[2 * r], sums[2 * r + 1]
                    plain.set(plain.get() + g)
                    with_x.set(g.times(xhat, with_x.get()))

            totals = panels.visit_sums(2 * count, terms)
            m = [rows.splat((total * share).value) for total in totals]

            def panel(here: Any, vector: Any, only: Any) -> None:
                w = rows.load(builder.add(weight, vector))
                for r in each:
                    g, xhat = of_row(r, here, w, only)
                    dx = inverse[r] * (-xhat).times(m[2 * r + 1], g - m[2 * r])
                    dx = finish.delta(only(dx), builder.add(saved, here), index[r])
                    rows.store(dx, builder.add(out, here), index[r])

            panels.visit(panel)

        _rows_side_by_side(builder, n_rows, group)
        finish.note()
        return context.get_dummy_value()

    before, after = [types.int64] * 6, [types.int64] * 6
    return types.void(arena, *before, arena.dtype, *after), codegen


@intrinsic
def rows_weight_gradient(
    typingctx: Any,
    arena: Any,
    x: Any,
    delta: Any,
    columns: Any,
    n_rows: Any,
    means: Any,
    inverses: Any,
    out: Any,
) -> Any:
    """Write dL/dweight of a panel, of which `columns` count, to the panel row at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        x, delta, columns, n_rows, means, inverses, out = args[1:]
        mask = below(builder, columns, rows.lanes)
        sums = Parts(rows.zeros)

        def row(r: Any, k: int) -> None:
            mean, inverse = (
                rows.splat(rows.memory.load(builder.add(kept, r)).value)
                for kept in (means, inverses)
            )
            # Beside the columns that count, an extreme mean times 0 could be a NaN.
            c = (rows.load(x, r) - mean).where(mask, 0.0)
            sums.fuse(k, rows.load(delta, r), c * inverse)

        rows.visit(n_rows, row)
        rows.store(sums.total(), out)
        return context.get_dummy_value()

    return types.void(arena, *[types.int64] * 7), codegen
