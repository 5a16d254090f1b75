"""Optimizer updates over whole panel rows, in place; formulas in `fastneuron.optimizers`.

Emitted as vector IR, since the runs are short: beside 1024 parameters a compiled loop's call, alias
checks and remainder count (a tile's SGD update took 120 ns, and takes 96; the rest is memory).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.tile import ir_lanes
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
    """One panel row of one update: vectors in, vectors out, constants splat outside the loop."""

    def __init__(self, builder: Any, vector: Any, constants: dict[str, Any], root: Any) -> None:
        self.builder = builder
        self.c = constants
        self.vector = vector
        self._root = root

    def slope(self, g: Any, p: Any) -> Any:
        """Return the clipped gradient plus L2 decay."""
        b = self.builder
        return b.fadd(b.fmul(self.c["scale"], g), b.fmul(self.c["l2"], p))

    def mean(self, old: Any, new: Any, beta: str, rest: str) -> Any:
        """Return beta * old + rest * new."""
        b = self.builder
        return b.fadd(b.fmul(self.c[beta], old), b.fmul(self.c[rest], new))

    def root(self, x: Any) -> Any:
        return self.builder.call(self._root, [x])

    def down(self, p: Any, step: Any) -> Any:
        """Return p - rate * step."""
        return self.builder.fsub(p, self.builder.fmul(self.c["rate"], step))

    def plain(self, p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        return self.down(p, self.slope(g, p)), None, None

    def momentum(self, p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        m = self.builder.fadd(self.builder.fmul(self.c["beta1"], m), self.slope(g, p))
        return self.down(p, m), m, None

    def nesterov(self, p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        b, slope = self.builder, self.slope(g, p)
        m = b.fadd(b.fmul(self.c["beta1"], m), slope)
        return self.down(p, b.fadd(slope, b.fmul(self.c["beta1"], m))), m, None

    def adam(self, p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        b, slope = self.builder, self.slope(g, p)
        m = self.mean(m, slope, "beta1", "rest1")
        v = self.mean(v, b.fmul(slope, slope), "beta2", "rest2")
        root = b.fadd(b.fmul(self.root(v), self.c["correction"]), self.c["epsilon"])
        kept = b.fsub(p, b.fmul(self.c["shrink"], p))
        return b.fsub(kept, b.fdiv(b.fmul(self.c["rate"], m), root)), m, v

    def rmsprop(self, p: Any, g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        # Its one moment is the mean square.
        b, slope = self.builder, self.slope(g, p)
        m = self.mean(m, b.fmul(slope, slope), "beta2", "rest2")
        root = b.fadd(self.root(m), self.c["epsilon"])
        return b.fsub(p, b.fdiv(b.fmul(self.c["rate"], slope), root)), m, None


#: Kind -> (formula, number of moments).
_FORMULAS = {
    PLAIN: (_Step.plain, 0),
    MOMENTUM: (_Step.momentum, 1),
    NESTEROV: (_Step.nesterov, 1),
    ADAM: (_Step.adam, 2),
    RMSPROP: (_Step.rmsprop, 1),
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
) -> Any:
    """Update parameters p from gradients g; m and v are the moments that the kind has.

    The runs are whole panel rows and do not overlap. `scalars` is one step's row of
    `Optimizer.scalars`; `decays` is 0 for biases that weight decay leaves alone.
    """
    width = ir_lanes(p.dtype)
    itemsize = p.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, double = ir.IntType(64), ir.DoubleType()
        real = context.get_value_type(p.dtype)
        vector = ir.VectorType(real, width)

        def data(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position])

        table = data(5).data

        def number(column: int) -> Any:
            return builder.load(builder.gep(table, [ir.Constant(i64, column)]))

        def splat(value: Any) -> Any:
            if itemsize == 4:
                value = builder.fptrunc(value, real)
            nothing = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(nothing, value, ir.Constant(i64, 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            return builder.shuffle_vector(one, nothing, zeros)

        zero, one = ir.Constant(double, 0.0), ir.Constant(double, 1.0)
        decaying = builder.icmp_signed("!=", args[7], ir.Constant(i64, 0))
        constants = {
            "scale": splat(args[6]),
            "rate": splat(number(RATE)),
            "l2": splat(builder.select(decaying, number(L2), zero)),
            "shrink": splat(builder.select(decaying, number(SHRINK), zero)),
            "beta1": splat(number(BETA1)),
            "rest1": splat(builder.fsub(one, number(BETA1))),
            "beta2": splat(number(BETA2)),
            "rest2": splat(builder.fsub(one, number(BETA2))),
            "correction": splat(number(CORRECTION)),
            "epsilon": splat(number(EPSILON)),
        }
        root = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector]),
            f"llvm.sqrt.v{width}f{8 * itemsize}",
        )
        step = _Step(builder, vector, constants, root)
        size = data(1).nitems
        bases = [data(position).data for position in (1, 2, 3, 4)]

        def loop(formula: Any, moments: int) -> None:
            count = builder.udiv(size, ir.Constant(i64, width))
            with cgutils.for_range(builder, count, intp=i64) as each:
                offset = builder.mul(each.index, ir.Constant(i64, width))
                places = [
                    builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())
                    for base in bases[: 2 + moments]
                ]
                values = [builder.load(place, align=itemsize) for place in places]
                values += [None] * (2 - moments)
                new_p, *new_moments = formula(step, *values)
                builder.store(new_p, places[0], align=itemsize)
                for value, place in zip(new_moments, places[2:], strict=False):
                    builder.store(value, place, align=itemsize)

        after = builder.append_basic_block("update.done")
        switch = builder.switch(args[0], after)
        for code, (formula, moments) in _FORMULAS.items():
            block = builder.append_basic_block(f"update.kind{int(code)}")
            switch.add_case(ir.Constant(i64, int(code)), block)
            builder.position_at_end(block)
            loop(formula, moments)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.int64, p, g, m, v, scalars, types.float64, types.int64), codegen
