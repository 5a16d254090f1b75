"""How far results may be off where products round their factors: `fastneuron.kernels.precision`.

Two measures. `rounded` gives the bounds of single numbers, proved, when it is put around the
factors of a product. `RELATIVE_NORMS` limits whole arrays: with numbers of both signs the errors of
a sum's terms cancel as the terms themselves do, so the relative norm of the error stays about one
factor's rounding, whatever the length of the sum; ``docs/precision.md`` has the figures behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.kernels.precision import PRECISIONS
from fastneuron.testing.bounds import Array, Bounded

__all__ = ["RELATIVE_NORMS", "assert_near", "rounded"]

#: The largest relative Frobenius norm of a result's error, by precision.
RELATIVE_NORMS = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 1e-2}


def rounded(x: Bounded, precision: str) -> Bounded:
    """Return x as a product takes it at that precision: ``u (|x| + Ex)`` is added to the bound.

    That is proved for every way of rounding, down to cutting bits off, of normal numbers.
    """
    return x + PRECISIONS[precision] * x.size


def assert_near(got: Any, want: Array, precision: str, what: str = "got") -> float:
    """Raise AssertionError where the error's relative norm is beyond the limit; return the norm."""
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape, f"{what}: got shape {got.shape}, want {want.shape}"
    error = float(np.linalg.norm(got - want))
    size = float(np.linalg.norm(want))
    limit = RELATIVE_NORMS[precision]
    assert error <= limit * size, (
        f"{what}: got an error of relative norm {error / size if size else np.inf:.3g}, "
        f"want at most {limit:g} ({precision})"
    )
    return error / size if size else 0.0
