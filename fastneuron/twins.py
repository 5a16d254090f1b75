"""Neurons that are copies of one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastneuron.arrays import Array

__all__ = ["twins"]

#: Chance, for a whole layer, that two neurons drawn at random would be called twins.
TWIN_CHANCE = 1e-6
#: Twins differ by at most this share of their length, where TWIN_CHANCE allows as much: rounding
#: that has grown over a training, far below any difference that training aims at.
TWIN_DISTANCE = 1e-4


def twins(blocks: Sequence[Array], inputs: int) -> NDArray[np.int64]:
    """Return for each neuron the least index of its twins, -1 where it has none.

    Parameters
    ----------
    blocks : sequence of (k, O)
        What neurons are told apart by, a column a neuron: weights, and what comes to them, which
        may be large without making the weights alike.
    inputs : int
        How many numbers of a column are drawn at random. Neurons of I of them lie within a share t
        of their length with a chance of about t**I, so that few inputs ask for a nearness that
        grows with the number of pairs.

    Notes
    -----
    Neurons are sorted by their product with a fixed random vector: twins come to lie side by side,
    in O(k O) instead of the O(k O^2) of all pairs. Three vectors more keep others out.
    """
    width = blocks[0].shape[1]
    twin = np.full(width, -1, np.int64)
    if width < 2:
        return twin
    pairs = width * (width - 1) / 2
    near = min(TWIN_DISTANCE, (TWIN_CHANCE / pairs) ** (1 / inputs))
    rng = np.random.default_rng(0)
    places, squares = np.zeros((4, width)), np.zeros(width)
    for block in blocks:
        probes = rng.standard_normal((4, len(block))).astype(block.dtype)
        places += probes @ block
        squares += _squares(block)
    order = np.argsort(places[0], kind="stable")
    size = np.sqrt(squares)[order]
    size = np.maximum(size[1:], size[:-1])
    # The products of twins differ by a normal deviate times their distance, and by rounding.
    same = (np.abs(np.diff(places[:, order])) <= (8 * near + 1e-4) * size).all(axis=0)
    for i in np.flatnonzero(same):
        pair = order[i : i + 2]
        gaps = [_squares(np.diff(block[:, pair].astype(np.float64))).item() for block in blocks]
        of_weights = _squares(blocks[0][:, pair].astype(np.float64)).max()
        same[i] = sum(gaps) <= (near * size[i]) ** 2 and gaps[0] <= near**2 * of_weights
    if not same.any():  # np.unique, in its first use, takes 20 ms
        return twin
    group = np.concatenate([[0], np.cumsum(~same)])
    for number in np.unique(group[1:][same]):
        members = order[group == number]
        twin[members] = members.min()
    return twin


def _squares(block: Array) -> Array:
    return np.einsum("ij,ij->j", block, block)
