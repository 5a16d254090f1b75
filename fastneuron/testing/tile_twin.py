"""The matrix product of the Numba engine in plain Python: for reading, and for tests.

The same arguments, the same places in memory and the same order of sums as
`fastneuron.kernels.numba_cpu.tile.product`, which emits vector code where this has lists of lanes.
What that asks the caches for ahead of time has no counterpart here. In float64 the two agree to the
bit; so do they in float32 where every sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

__all__ = ["BATCH", "PLAIN", "RELU_GATE", "RELU_OUTPUT", "ROWS", "fma", "product"]

ROWS, BATCH = 0, 1
PLAIN, RELU_OUTPUT, RELU_GATE = 0, 1, 2


def _fma(x: float, y: float, z: float) -> float:
    return float(Fraction(x) * Fraction(y) + Fraction(z))


#: x y + z of finite numbers, rounded once.
fma: Callable[[float, float, float], float] = getattr(math, "fma", _fma)  # from Python 3.13 on


def product(
    walk: int,
    columns: int,
    epilogue: int,
    arena: NDArray[Any],
    out: int,
    start: int,
    start_step: int,
    a: int,
    a_panel: int,
    b: int,
    depth: int,
    n_rows: int,
    extra: int,
    most: int,
    *,
    lanes: int,
) -> None:
    """Compute ``arena[out + r*lanes + c] = e(start[r, c] + sum_k A[r, k] * B[k, c])``.

    Parameters
    ----------
    walk, columns, epilogue, arena, out, start, start_step, a, a_panel, b, depth, n_rows
        As of the compiled product, like `extra` and `most`: all places are element offsets into
        the arena, a vector.
    lanes : int
        Columns of one panel, which compiled code knows from its target: see `lane_count` there.
    """
    width = lanes if columns > lanes // 2 else lanes // 2
    row_step, k_step = (lanes, 1) if walk == ROWS else (1, lanes)

    def started(r: int) -> list[float]:
        first = start + r * start_step
        values: list[float] = arena[first : first + width].tolist()
        return values

    sums = [started(r) for r in range(n_rows)]
    # The accumulator row whose input is always 1 starts as the others do, or goes on.
    goes_on = start_step != 0 and extra >= 0
    always_on = arena[extra : extra + width].tolist() if goes_on else started(0)
    for k in range(depth):
        panel, lane = divmod(k, lanes) if walk == ROWS else (0, k)
        column = a + panel * a_panel + lane * k_step
        weights = arena[b + k * lanes : b + k * lanes + width].tolist()
        for r in range(n_rows):
            value = float(arena[column + r * row_step])
            sums[r] = [fma(value, w, s) for w, s in zip(weights, sums[r], strict=True)]
        always_on = [s + w for w, s in zip(weights, always_on, strict=True)]
    for r in range(n_rows):
        if walk == ROWS and epilogue == RELU_OUTPUT:
            sums[r] = [0.0 if s < 0 else s for s in sums[r]]
        elif walk == ROWS and epilogue == RELU_GATE:
            saved = arena[extra + r * lanes : extra + r * lanes + width]
            gates = [1.0 if active > 0 else 0.0 for active in saved]
            sums[r] = [s * gate for s, gate in zip(sums[r], gates, strict=True)]
    unused = [0.0] * (lanes - width)
    for r in range(n_rows):
        arena[out + r * lanes : out + (r + 1) * lanes] = sums[r] + unused
        if walk == ROWS and most >= 0:
            row = arena[most : most + width]
            row[:] = [max(m, abs(s)) for m, s in zip(row.tolist(), sums[r], strict=True)]
    if walk == BATCH and extra >= 0:
        arena[extra : extra + lanes] = always_on + unused
