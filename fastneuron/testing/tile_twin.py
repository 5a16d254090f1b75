"""The register tile of the Numba engine in plain Python: for reading, and for tests.

The same arguments, the same places in memory and the same order of sums as
`fastneuron.kernels.numba_cpu.tile.tile`, which emits vector code where this has lists of lanes. In
float64 the two agree to the bit; so do they in float32 where every sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

__all__ = ["BATCH", "PLAIN", "RELU_GATE", "RELU_OUTPUT", "ROWS", "fma", "tile"]

ROWS, BATCH = 0, 1
PLAIN, RELU_OUTPUT, RELU_GATE = 0, 1, 2


def _fma(x: float, y: float, z: float) -> float:
    return float(Fraction(x) * Fraction(y) + Fraction(z))


#: x y + z of finite numbers, rounded once.
fma: Callable[[float, float, float], float] = getattr(math, "fma", _fma)  # from Python 3.13 on


def tile(
    rows: int,
    walk: int,
    ones: int,
    columns: int,
    epilogue: int,
    arena: NDArray[Any],
    out: int,
    start: int,
    a: int,
    a_panel: int,
    b: int,
    depth: int,
    extra: int,
    *,
    lanes: int,
) -> None:
    """Compute ``arena[out + r*lanes + c] = e(arena[start + c] + sum_k A[r, k] * B[k, c])``.

    Parameters
    ----------
    rows, walk, ones, columns, epilogue, arena, out, start, a, a_panel, b, depth, extra
        As of the compiled tile: all places are element offsets into the arena, a vector.
    lanes : int
        Columns of one panel, which compiled code knows from its target: see `lane_count` there.
    """
    width = lanes if columns > lanes // 2 else lanes // 2
    row_step, k_step = (lanes, 1) if walk == ROWS else (1, lanes)
    sums = [arena[start : start + width].tolist() for _ in range(rows)]
    always_on = [0.0] * width  # the accumulator row whose input is always 1
    for k in range(depth):
        panel, lane = divmod(k, lanes) if walk == ROWS else (0, k)
        column = a + panel * a_panel + lane * k_step
        weights = arena[b + k * lanes : b + k * lanes + width].tolist()
        for r in range(rows):
            value = float(arena[column + r * row_step])
            sums[r] = [fma(value, w, s) for w, s in zip(weights, sums[r], strict=True)]
        always_on = [s + w for w, s in zip(weights, always_on, strict=True)]
    for r in range(rows):
        if walk == ROWS and epilogue == RELU_OUTPUT:
            sums[r] = [0.0 if s < 0 else s for s in sums[r]]
        elif walk == ROWS and epilogue == RELU_GATE:
            saved = arena[extra + r * lanes : extra + r * lanes + width]
            gates = [1.0 if active > 0 else 0.0 for active in saved]
            sums[r] = [s * gate for s, gate in zip(sums[r], gates, strict=True)]
    unused = [0.0] * (lanes - width)
    for r in range(rows):
        arena[out + r * lanes : out + (r + 1) * lanes] = sums[r] + unused
    if walk == BATCH and ones:
        arena[extra : extra + lanes] = always_on + unused
