"""Dropout: which numbers of a batch are dropped, as a function of place and key alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels.reference.dense import quiet

__all__ = ["ROUNDS", "dropout", "kept", "philox"]

#: Rounds of the generator.
ROUNDS = 10
#: Its two multipliers, and what its keys grow by from round to round.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

_MASK = np.uint64(0xFFFFFFFF)
Words = tuple[NDArray[np.uint64], ...]


def philox(counters: Words, key: tuple[int, int]) -> Words:
    """Return four words of 32 random bits for each counter of four words, as uint64 arrays.

    Source
    ------
    Philox4x32-10 of Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2,
    3", SC11.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (high >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            high & _MASK,
            (low >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            low & _MASK,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def kept(rows: int, features: int, layer: int, key: tuple[int, int], dropped: int) -> NDArray[Any]:
    """Return which numbers of a batch are kept, (rows, features) bool.

    Formula
    -------
    Row r and feature j have word ``r % 4`` of the counter ``(j, r // 4, layer, 0)``; they are kept
    where it is at least `dropped`, which is 2^32 times the rate.
    """
    columns = np.arange(features, dtype=np.uint64)[None]
    fours = np.arange(-(-rows // 4), dtype=np.uint64)[:, None]
    shape = np.broadcast_shapes(columns.shape, fours.shape)
    number = np.full(shape, layer, np.uint64)
    words = philox(
        (np.broadcast_to(columns, shape), np.broadcast_to(fours, shape), number, number * 0), key
    )
    random = np.stack(words, axis=1).reshape(-1, features)[:rows]
    return random >= dropped


@quiet
def dropout(x: NDArray[Any], mask: NDArray[Any], rate: float) -> NDArray[Any]:
    """Return x with what is not kept set to 0, and the rest scaled up; backward is the same.

    Formula
    -------
    ``y = x (mask / (1 - rate))``. A product, no selection: a NaN or an infinity that is dropped
    gives NaN, and is found in the loss.

    Arrays
    ------
    x (B, O) IN, mask (B, O) bool IN; y (B, O) OUT.

    Cost
    ----
    Reads B O, writes B O; the mask is never stored by fast kernels.

    Order
    -----
    No sums.

    Source
    ------
    Srivastava et al. 2014, JMLR 15, with the scale in training, so that predictions need none.
    """
    scale = x.dtype.type(1 / (1 - rate))
    return x * np.where(mask, scale, x.dtype.type(0))
