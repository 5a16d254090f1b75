"""What Numba compiles for: the instruction set, its registers, and the panel width they make.

A panel is `lanes` columns wide: two vector registers of the instruction set that Numba compiles
for. LLVM legalises the wide IR vectors, so the same code serves AVX-512, AVX2, NEON and plain SSE2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def target_features() -> str:
    """Return the features that Numba compiles for: NUMBA_CPU_NAME counts, cpuid does not."""
    _triple, _name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(features)


def target_machine() -> str:
    """Return the machine part of the target triple: "x86_64", "aarch64" ..."""
    return str(cpu_target.target_context.codegen().magic_tuple()[0]).split("-")[0]


def _vector_bytes(features: str) -> int:
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 64
    if "+avx" in enabled:
        return 32
    return 16


#: Bytes of one vector register of the target.
VECTOR_BYTES = _vector_bytes(target_features())


def lane_count(dtype: Any) -> int:
    """Columns of one panel for `dtype`: two registers' worth."""
    return 2 * VECTOR_BYTES // np.dtype(dtype).itemsize


def ir_lanes(dtype: Any) -> int:
    """Return the same for a Numba type."""
    return 2 * VECTOR_BYTES * 8 // dtype.bitwidth


@intrinsic
def lanes(typingctx: Any, arena: Any) -> Any:
    """Panel width for the arena's dtype, a constant in the compiled code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), ir_lanes(signature.args[0].dtype))

    return types.int64(arena), codegen
