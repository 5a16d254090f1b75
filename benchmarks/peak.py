"""The machine's peak: independent FMA chains in registers, compiled by Numba."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

#: FMA chains of the peak: above latency times units of any CPU (4 x 2), below 16 registers.
CHAINS = 12


@lru_cache
def _burst(dtype: str, width: int) -> Callable[..., None]:
    """Compile ``burst(out, scale, shift, turns)``: `CHAINS` x width x turns multiply-adds."""
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    bits = 8 * np.dtype(dtype).itemsize
    scalar, i64 = ir.FloatType() if bits == 32 else ir.DoubleType(), ir.IntType(64)
    vector = ir.VectorType(scalar, width)

    @intrinsic
    def chains(typingctx: Any, out: Any, scale: Any, shift: Any, turns: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = context.make_array(signature.args[0])(context, builder, args[0]).data
            at = builder.bitcast(base, vector.as_pointer())
            spread = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            nothing = ir.Constant(vector, ir.Undefined)

            def splat(value: Any) -> Any:
                one = builder.insert_element(nothing, value, ir.Constant(i64, 0))
                return builder.shuffle_vector(one, nothing, spread)

            factor, summand = splat(args[1]), splat(args[2])
            fma = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector] * 3),
                f"llvm.fma.v{width}f{bits}",
            )
            # Each chain starts elsewhere, or they would be found equal and computed once.
            starts = [builder.load(builder.gep(at, [ir.Constant(i64, i)]), align=bits // 8)
                      for i in range(CHAINS)]  # fmt: skip
            before = builder.block
            body, done = builder.append_basic_block("turn"), builder.append_basic_block("done")
            builder.branch(body)
            builder.position_at_end(body)
            left = builder.phi(i64)
            left.add_incoming(args[3], before)
            values = [builder.phi(vector) for _ in starts]
            rest = builder.sub(left, ir.Constant(i64, 1))
            left.add_incoming(rest, body)
            results = [builder.call(fma, [value, factor, summand]) for value in values]
            for value, start, result in zip(values, starts, results, strict=True):
                value.add_incoming(start, before)
                value.add_incoming(result, body)
            more = builder.icmp_signed(">", rest, ir.Constant(i64, 0))
            builder.cbranch(more, body, done)
            builder.position_at_end(done)
            for i, result in enumerate(results):  # all of it is looked at: nothing is left out
                builder.store(result, builder.gep(at, [ir.Constant(i64, i)]), align=bits // 8)
            return context.get_dummy_value()

        element = types.float32 if bits == 32 else types.float64
        return types.void(out, element, element, types.int64), codegen

    @njit
    def burst(out, scale, shift, turns):
        chains(out, scale, shift, turns)

    return burst


def peak_gflops(dtype: str, bursts: int = 10) -> float:
    """Return the best rate of independent FMA chains in registers, two operations a multiply-add.

    The widest vectors are not always the fastest, and Numba may compile for less than the CPU has:
    so 16, 32 and 64 bytes are tried.
    """
    best = 0.0
    for size in (16, 32, 64):
        width = size // np.dtype(dtype).itemsize
        burst = _burst(dtype, width)
        out = np.linspace(1, 2, CHAINS * width, dtype=dtype)
        turns = 2_000_000 * 16 // size  # 1 to 3 ms
        burst(out, 0.999, 1e-3, 1)
        for _ in range(bursts):
            start = time.perf_counter()
            burst(out, 0.999, 1e-3, turns)
            seconds = time.perf_counter() - start
            best = max(best, 2 * CHAINS * width * turns / seconds / 1e9)
    return best


def try_peak(dtype: str, bursts: int = 10) -> float | None:
    try:
        return peak_gflops(dtype, bursts)
    except ImportError:
        return None
