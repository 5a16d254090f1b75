"""Numbers of code that is being emitted: floats, or vectors of them, under Python's operators.

What is written with them once serves every dtype, a number alone (in loops that LLVM vectorises)
and whole vectors. Sums and products are rounded one by one, as written; nothing is re-associated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.target import target_features, target_machine

#: Whether the target rounds x y + z once in one instruction; of the usual ones only old x86 cannot.
FUSES = target_machine() not in ("x86_64", "i686") or "+fma" in target_features().split(",")

I64 = ir.IntType(64)


def whole(value: int) -> Any:
    """Return a constant int64."""
    return ir.Constant(I64, value)


class Number:
    """A float or a vector of floats; Python's numbers beside it become constants of its type."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value
        self.type = value.type
        self.lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0
        real = value.type.element if self.lanes else value.type
        self.single = isinstance(real, ir.FloatType)

    def like(self, number: Any) -> Any:
        """Return `number` as a value of this type."""
        if isinstance(number, Number):
            return number.value
        return ir.Constant(self.type, [float(number)] * self.lanes if self.lanes else float(number))

    def _of(self, value: Any) -> Number:
        return Number(self.builder, value)

    def constant(self, number: float) -> Number:
        """Return a constant of this type."""
        return self._of(self.like(number))

    def __add__(self, other: Any) -> Number:
        return self._of(self.builder.fadd(self.value, self.like(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Number:
        return self._of(self.builder.fsub(self.value, self.like(other)))

    def __rsub__(self, other: Any) -> Number:
        return self._of(self.builder.fsub(self.like(other), self.value))

    def __mul__(self, other: Any) -> Number:
        return self._of(self.builder.fmul(self.value, self.like(other)))

    def __rmul__(self, other: Any) -> Number:
        return self._of(self.builder.fmul(self.like(other), self.value))

    def __truediv__(self, other: Any) -> Number:
        return self._of(self.builder.fdiv(self.value, self.like(other)))

    def __rtruediv__(self, other: Any) -> Number:
        return self._of(self.builder.fdiv(self.like(other), self.value))

    def __neg__(self) -> Number:
        return self._of(self.builder.fneg(self.value))

    # Comparisons are false where either side is a NaN.

    def __lt__(self, other: Any) -> Any:
        return self.builder.fcmp_ordered("<", self.value, self.like(other))

    def __gt__(self, other: Any) -> Any:
        return self.builder.fcmp_ordered(">", self.value, self.like(other))

    def where(self, mask: Any, other: Any) -> Number:
        """Return this number where `mask`, else the other."""
        return self._of(self.builder.select(mask, self.value, self.like(other)))

    def call(self, name: str, *others: Any) -> Number:
        """Return LLVM's ``llvm.name`` of this number and others."""
        width = f"v{self.lanes}" if self.lanes else ""
        entry = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.type, [self.type] * (1 + len(others))),
            f"llvm.{name}.{width}f{32 if self.single else 64}",
        )
        return self._of(self.builder.call(entry, [self.value, *map(self.like, others)]))

    def __abs__(self) -> Number:
        return self.call("fabs")

    def root(self) -> Number:
        """Return the square root."""
        return self.call("sqrt")

    def times(self, factor: Any, summand: Any) -> Number:
        """Return x factor + summand, rounded once where the target does so in one instruction.

        Whether it does is the target's alone, so a number has the same bits at any place in a loop.
        """
        return self.call("fmuladd", factor, summand)

    def integer(self, value: int) -> Any:
        """Return a constant integer, or vector of them, as wide as this number."""
        bits = ir.IntType(32 if self.single else 64)
        if not self.lanes:
            return ir.Constant(bits, value)
        return ir.Constant(ir.VectorType(bits, self.lanes), [value] * self.lanes)

    def bits(self) -> Any:
        """Return the number's bits as such an integer."""
        return self.builder.bitcast(self.value, self.integer(0).type)

    def of_bits(self, bits: Any) -> Number:
        """Return the number that has these bits."""
        return self._of(self.builder.bitcast(bits, self.type))

    def of_integer(self, whole: Any) -> Number:
        """Return the number that is this integer."""
        return self._of(self.builder.sitofp(whole, self.type))

    def tree(self, join: Callable[[Number, Number], Number]) -> Number:
        """Return the lanes of a vector joined in halves until one is left."""
        now = self
        while now.lanes:
            size = now.lanes // 2
            nothing = ir.Constant(now.type, ir.Undefined)
            halves = [
                ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(at, at + size)))
                for at in (0, size)
            ]
            low, high = (
                self._of(self.builder.shuffle_vector(now.value, nothing, half)) for half in halves
            )
            if size == 1:
                low, high = (
                    self._of(self.builder.extract_element(one.value, whole(0)))
                    for one in (low, high)
                )
            now = join(low, high)
        return now

    def tree_sum(self) -> Number:
        """Return the sum of a vector's lanes: halves are added until one lane is left."""
        return self.tree(lambda low, high: low + high)

    def largest_lane(self) -> Number:
        """Return the largest of a vector's lanes; what a NaN stands beside may win or not."""
        return self.tree(lambda low, high: high.where(high > low, low))


def splat(builder: Any, scalar: Any, lanes: int) -> Number:
    """Return a vector with the same number in each lane."""
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, scalar, whole(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return Number(builder, builder.shuffle_vector(one, nothing, zeros))


def horner(x: Number, coefficients: tuple[float, ...]) -> Number:
    """Return the polynomial of x with these coefficients, lowest power first."""

    def chain(at: Number, values: list[Any]) -> Any:
        result = values.pop()
        while values:
            result = at.times(result, values.pop())
        return result

    values: list[Any] = list(coefficients)
    if len(values) < 12:
        return chain(x, values)
    # Past the first two terms, where every rounding counts, two chains: a processor cannot look far
    # enough ahead to fill the waits of a long one.
    square = x * x
    even, odd = chain(square, values[2::2]), chain(square, values[3::2])
    return chain(x, [*values[:2], x.times(odd, even)])


def power_of_two(rounded: Number) -> Number:
    """Return 2^n for n + 1.5 * 2^mantissa + the exponent's bias, 2^n being a normal number."""
    mantissa = rounded.integer(23 if rounded.single else 52)
    return rounded.of_bits(rounded.builder.shl(rounded.bits(), mantissa))


def square_error(x: Number, square: Number) -> Number:
    """Return x^2 - square, exactly but for its last bits, for the rounded square of x."""
    if FUSES:
        return x.call("fma", x, -square)
    # Without fused multiply-add from a part of x with half the digits (Dekker 1971, Numer. Math.
    # 18); the library's fma would be a call an element.
    high = x.of_bits(x.builder.and_(x.bits(), x.integer(-(1 << (12 if x.single else 27)))))
    low = x - high
    return (high * high - square) + (high + high) * low + low * low


def function(emitted: Callable[[Number], Number]) -> Any:
    """Make a function of one number for kernels of what emits it."""

    @intrinsic
    def made(typingctx: Any, x: Any) -> Any:
        if not isinstance(x, types.Float):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emitted(Number(builder, args[0])).value

        return x(x), codegen

    return made


class Memory:
    """Elements of an array of floats, by offset; only their own alignment is claimed."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        made = context.make_array(kind)(context, builder, array)
        self.builder = builder
        self.base, self.size = made.data, made.nitems
        self.itemsize = kind.dtype.bitwidth // 8
        self.real = context.get_value_type(kind.dtype)

    def _place(self, offset: Any, lanes: int) -> Any:
        place = self.builder.gep(self.base, [offset])
        vector = ir.VectorType(self.real, lanes) if lanes else self.real
        return self.builder.bitcast(place, vector.as_pointer())

    def load(self, offset: Any, lanes: int = 0) -> Number:
        """Return the element at `offset`, or the vector that starts there."""
        return Number(
            self.builder, self.builder.load(self._place(offset, lanes), align=self.itemsize)
        )

    def load_some(self, offset: Any, mask: Any) -> Number:
        """Return a vector: masked lanes from memory, zeros in the others, which are not read."""
        place = self._place(offset, mask.type.count)
        vector = ir.VectorType(self.real, mask.type.count)
        entry = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(vector, [place.type, ir.IntType(32), mask.type, vector]),
            f"llvm.masked.load.v{mask.type.count}f{8 * self.itemsize}.p0",
        )
        zeros = ir.Constant(vector, [0.0] * mask.type.count)
        align = ir.Constant(ir.IntType(32), self.itemsize)
        return Number(self.builder, self.builder.call(entry, [place, align, mask, zeros]))

    def fetch(self, offset: Any) -> None:
        """Ask for the cache line of an element, to be read soon."""
        i32 = ir.IntType(32)
        place = self.builder.bitcast(self._place(offset, 0), ir.IntType(8).as_pointer())
        entry = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [place.type, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        self.builder.call(entry, [place, *(ir.Constant(i32, n) for n in (0, 3, 1))])

    def store(self, number: Any, offset: Any) -> None:
        """Write a number, or vector, from `offset` on."""
        self.builder.store(number.value, self._place(offset, number.lanes), align=self.itemsize)

    def store_some(self, number: Number, offset: Any, mask: Any) -> None:
        """Write the masked lanes of a vector from `offset` on."""
        place = self._place(offset, number.lanes)
        entry = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [number.type, place.type, ir.IntType(32), mask.type]),
            f"llvm.masked.store.v{number.lanes}f{8 * self.itemsize}.p0",
        )
        align = ir.Constant(ir.IntType(32), self.itemsize)
        self.builder.call(entry, [number.value, place, align, mask])


def below(builder: Any, count: Any, lanes: int) -> Any:
    """Return the mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, count, lanes).value)


class Variable:
    """A number that loops change."""

    def __init__(self, number: Number) -> None:
        self._builder = number.builder
        self._place = cgutils.alloca_once(number.builder, number.type)
        self.set(number)

    def get(self) -> Number:
        """Return the number as it is now."""
        return Number(self._builder, self._builder.load(self._place))

    def set(self, number: Number) -> None:
        """Put a number in its place."""
        self._builder.store(number.value, self._place)
