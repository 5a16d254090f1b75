"""The keys of a training's random numbers: one a step, a function of seed and step alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.optimizers import KEY_HIGH, KEY_LOW

__all__ = ["StepKeys"]


class StepKeys:
    """Keys of 64 bits that no two steps share.

    The mixing of SplitMix64 is a bijection of a counter (Steele, Lea & Flood 2014, "Fast splittable
    pseudorandom number generators", OOPSLA).

    Parameters
    ----------
    seed : int
    epoch : int
        The first epoch of the training: one that goes on after another gets keys of its own.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        # Key 3: a stream apart from weights (0), data order (1) and validation split (2).
        sequence = np.random.SeedSequence(seed, spawn_key=(3, epoch))
        self._start = sequence.generate_state(1, np.uint64)[0]

    def fill(self, scalars: NDArray[np.float64], first_step: int) -> None:
        """Write the keys of the steps from `first_step` on into their rows of scalars."""
        steps = np.arange(first_step + 1, first_step + 1 + len(scalars), dtype=np.uint64)
        z = self._start + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        scalars[:, KEY_LOW] = z & np.uint64(0xFFFFFFFF)
        scalars[:, KEY_HIGH] = z >> np.uint64(32)
