"""Operations on one number that Numba's Python has no word for, and that LLVM vectorises."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.tile import target_features, target_machine

#: Whether the target rounds x y + z once in one instruction; of the usual ones only old x86 cannot.
FUSES = target_machine() not in ("x86_64", "i686") or "+fma" in target_features().split(",")


def _llvm_real(dtype: Any) -> Any:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def _fmuladd(builder: Any, dtype: Any) -> Any:
    real = _llvm_real(dtype)
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(real, [real] * 3), f"llvm.fmuladd.f{dtype.bitwidth}"
    )


@intrinsic
def fused(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once where the target does so in one instruction, else twice.

    Which of the two is the target's alone, so a number has the same bits at any place in a loop.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_fmuladd(builder, signature.return_type), args)

    return x(x, x, x), codegen


@intrinsic
def horner(typingctx: Any, x: Any, coefficients: Any) -> Any:
    """Return the polynomial of x with these coefficients, a tuple, lowest power first."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, packed = args
        values = [builder.extract_value(packed, i) for i in range(len(coefficients))]
        step = _fmuladd(builder, signature.return_type)

        def chain(at: Any, values: list[Any]) -> Any:
            result = values.pop()
            while values:
                result = builder.call(step, [result, at, values.pop()])
            return result

        if len(values) < 12:
            return chain(at, values)
        # Past the first two terms, where every rounding counts, two chains: a processor cannot look
        # far enough ahead to fill the waits of a long one.
        square = builder.fmul(at, at)
        even, odd = chain(square, values[2::2]), chain(square, values[3::2])
        rest = builder.call(step, [odd, at, even])
        return chain(at, [*values[:2], rest])

    return x(x, coefficients), codegen


@intrinsic
def square_error(typingctx: Any, x: Any, square: Any) -> Any:
    """Return x^2 - square, exactly but for its last bits, for the rounded square of x."""
    # Without fused multiply-add from a part of x with half the digits (Dekker 1971, Numer. Math.
    # 18); the library's fma would be a call an element.
    bits, low_half = (32, 12) if x == types.float32 else (64, 27)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, rounded = args
        real, whole = _llvm_real(x), ir.IntType(bits)
        if FUSES:
            return builder.fma(at, at, builder.fneg(rounded))
        mask = ir.Constant(whole, -(1 << low_half))
        high = builder.bitcast(builder.and_(builder.bitcast(at, whole), mask), real)
        low = builder.fsub(at, high)
        error = builder.fsub(builder.fmul(high, high), rounded)
        twice = builder.fmul(builder.fadd(high, high), low)
        return builder.fadd(builder.fadd(error, twice), builder.fmul(low, low))

    return x(x, x), codegen


@intrinsic
def power_of_two(typingctx: Any, rounded: Any) -> Any:
    """Return 2^n for n + 1.5 * 2^mantissa + the exponent's bias, 2^n being a normal number."""
    bits, mantissa = (32, 23) if rounded == types.float32 else (64, 52)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(bits)
        low = builder.shl(builder.bitcast(args[0], whole), ir.Constant(whole, mantissa))
        return builder.bitcast(low, _llvm_real(rounded))

    return rounded(rounded), codegen
