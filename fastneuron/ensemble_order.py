"""The orders in which many networks meet rows: each network's own, cut into the same batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastneuron.order import Batches, Part

__all__ = ["EnsembleBatches"]

# Row numbers of a part: 32 MiB of them.
_PART_ROWS = 1 << 22


class EnsembleBatches:
    """`Batches` of M networks, one for each seed.

    Parameters
    ----------
    n, batch_size, epochs, shuffle, first_epoch, span
        See `Batches`.
    seeds : sequence of int
        One a network.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        epochs: int,
        *,
        shuffle: bool,
        seeds: Sequence[int],
        first_epoch: int,
        span: bool,
    ) -> None:
        place = {seed: i for i, seed in enumerate(dict.fromkeys(seeds if shuffle else [0]))}
        self._each = [
            Batches(
                n,
                batch_size,
                epochs,
                shuffle=shuffle,
                seed=seed,
                first_epoch=first_epoch,
                span=span,
            )
            for seed in place
        ]
        # Where networks share orders, but not all of them one.
        self._of = [place[seed] for seed in seeds] if 1 < len(place) < len(seeds) else None
        self._most = max(1, _PART_ROWS // (batch_size * (len(seeds) if len(place) > 1 else 1)))
        self.steps_per_epoch = self._each[0].steps_per_epoch

    def take(self, steps: int) -> Part | None:
        """Return the next part, as `Batches.take`; its order is (M, rows), or (1, rows) for all."""
        parts = [batches.take(min(steps, self._most)) for batches in self._each]
        first = parts[0]
        if first is None:
            return None
        orders = np.stack([part.order for part in parts if part is not None])
        return first._replace(order=orders if self._of is None else orders[self._of])
