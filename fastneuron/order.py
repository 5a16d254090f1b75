"""The order in which rows are met: a function of seed, epoch and row count, never of chunking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import SpecError

# Epochs of small data share one seek of the generator (3 us): this many rows in all, so that
# starting in the middle of a block redraws at most 45 us of permutations.
BLOCK_ROWS = 4096
# Draws reserved for one block of epochs; a permutation of 2^31 rows takes far fewer.
_DRAWS = 1 << 64


def checked_seed(seed: object) -> int:
    """Return `seed` as an int of at least 0; anything else is a SpecError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SpecError(f"seed must be a whole number of at least 0, got {seed!r:.80}")
    return int(seed)


class EpochOrder:
    """Seeded permutations of ``range(n)``, one an epoch.

    Epoch e has the same permutation however many epochs are taken at once, and wherever the
    taking starts.

    Parameters
    ----------
    n : int
        Rows of the data.
    seed : int
    epoch : int
        The first epoch that `take` returns.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        self.n = n
        self.seed = seed
        self.epoch = epoch
        self._block = max(1, BLOCK_ROWS // n)
        # Key 1: weights drawn from the same seed (key 0) share no stream with the order.
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1,)))
        self._start = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self._rows = np.arange(n, dtype=np.int64)
        self._seek(epoch)

    def take(self, count: int) -> NDArray[np.int64]:
        """Return the next `count` epochs' orders (count, n)."""
        if count == 1 and self._block == 1:
            self._seek(self.epoch)
            self.epoch += 1
            return self._generator.permutation(self._rows)[None]
        orders = np.empty((count, self.n), np.int64)
        orders[:] = self._rows
        done = 0
        while done < count:
            inside = self.epoch % self._block
            if inside == 0:
                self._seek(self.epoch)
            step = min(count - done, self._block - inside)
            part = orders[done : done + step]
            self._generator.permuted(part, axis=1, out=part)
            self.epoch += step
            done += step
        return orders

    def _seek(self, epoch: int) -> None:
        """Put the generator where `epoch` begins."""
        self._bits.state = self._start
        self._bits.advance((epoch // self._block) * _DRAWS)
        inside = epoch % self._block
        if inside:
            self._generator.permuted(np.tile(self._rows, (inside, 1)), axis=1)


class Part(NamedTuple):
    """Steps to be done in one call: a part of an epoch, or several whole epochs.

    Attributes
    ----------
    epoch : int
        Zero-based epoch of the call in which the part starts.
    whole_epochs : int
        Epochs that the part consists of; 0 where it lies within one.
    ends_epoch : bool
        Whether an epoch ends with it.
    order : (rows,) int64
        The rows in the order in which they are met.
    bounds : (steps + 1,) int64
        Step s takes ``order[bounds[s]:bounds[s + 1]]``.
    """

    epoch: int
    whole_epochs: int
    ends_epoch: bool
    order: NDArray[np.int64]
    bounds: NDArray[np.int64]


class Batches:
    """Cuts some epochs into batches, and hands out as many steps at a time as are asked for.

    Parameters
    ----------
    n, batch_size : int
        The last batch of an epoch is the smaller one where batch_size does not divide n.
    epochs : int
    shuffle : bool
    seed, first_epoch : int
        See `EpochOrder`.
    span : bool
        Whether a part may hold several whole epochs.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        epochs: int,
        *,
        shuffle: bool,
        seed: int,
        first_epoch: int,
        span: bool,
    ) -> None:
        self.n = n
        self.epochs = epochs
        self.steps_per_epoch = -(-n // batch_size)
        self._ends = np.minimum(np.arange(self.steps_per_epoch + 1) * batch_size, n)
        self._span = span
        # One batch an epoch holds the same rows in any order.
        shuffle = shuffle and self.steps_per_epoch > 1
        self._shuffled = EpochOrder(n, seed, first_epoch) if shuffle else None
        self._rows = np.arange(n, dtype=np.int64)  # the order of the epoch under way
        self.epoch = 0  # the epoch under way
        self.position = 0  # steps handed out of it

    def take(self, steps: int) -> Part | None:
        """Return the next part, of at most `steps` steps and at least one; None at the end."""
        epoch, per_epoch = self.epoch, self.steps_per_epoch
        if epoch == self.epochs:
            return None
        if self.position == 0:
            whole = min(steps // per_epoch, self.epochs - epoch) if self._span else 0
            if whole > 1:
                self.epoch += whole
                starts = np.arange(whole)[:, None] * self.n
                bounds = np.append((starts + self._ends[:-1]).ravel(), whole * self.n)
                return Part(epoch, whole, True, self._orders(whole), bounds)
            if self._shuffled is not None:
                self._rows = self._orders(1)
        first = self.position
        last = min(first + steps, per_epoch)
        ends = last == per_epoch
        self.epoch += ends
        self.position = 0 if ends else last
        order = self._rows[self._ends[first] : self._ends[last]]
        return Part(epoch, 0, ends, order, self._ends[first : last + 1] - self._ends[first])

    def _orders(self, count: int) -> NDArray[np.int64]:
        if self._shuffled is None:
            return np.tile(self._rows, count)
        return self._shuffled.take(count).ravel()
