"""What the factors of a product may be rounded to, by the name that a user asks with.

``docs/precision.md`` says what each costs and promises.
"""

from __future__ import annotations

from fastneuron.errors import BackendUnavailable, SpecError, UnknownNameError

__all__ = ["PRECISIONS", "check_precision"]

#: A name, and the largest relative error of a factor: none where it stays as it is; 2^-10 and 2^-7
#: for the 11 and 8 bits of the others, whether rounded to nearest (half of that) or cut off.
PRECISIONS = {"float32": 0.0, "tf32": 2.0**-10, "bfloat16": 2.0**-7}


def check_precision(precision: str, dtype: str, backend: str) -> None:
    """Refuse a precision that does not exist, or not for that dtype, or not in that backend.

    "float32", the default, is every backend's: nothing is rounded to less than the network's dtype.

    Raises
    ------
    UnknownNameError, SpecError, BackendUnavailable
    """
    if precision not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise UnknownNameError(f"unknown precision {precision!r} (there are: {names})")
    if precision == "float32":
        return
    if dtype != "float32":
        raise SpecError(
            f"precision={precision!r} rounds the products of float32 networks; this one is "
            f"{dtype}: leave precision at 'float32', which rounds nothing"
        )
    if backend != "cuda":
        raise BackendUnavailable(
            f"precision={precision!r} needs the tensor cores of a card (backend 'cuda'); backend "
            f"{backend!r} computes float32 networks in float32 alone: leave precision at 'float32'"
        )
