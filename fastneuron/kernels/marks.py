"""Marks of time that a compiled worker notes when it is asked to: which part of a step it is at.

The team's words hold, from `stages.MARKS` on, where the marks lie, and how many words each thread
has for them; zero asks for none. A thread's marks are pairs of (part + layer `PARTS`, ticks of the
processor's clock); each lasts until the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels import stages

# Parts of a step. A layer's number counts where the part is a layer's.
GATHER = 0  # the batch's rows from the data
FORWARD = 1
LOSS = 2  # loss and dL/d(output)
BACKWARD = 3  # the data gradient
GRADIENT = 4  # of the parameters, and in one visit their update
UPDATE = 5  # where it is a visit of its own
REFRESH = 6  # transposed copies that are not kept up
CHECK = 7  # the batch's loss, and whether all is finite
WAIT = 8  # for the team
END = 9  # of the chunk
PARTS = 16

# Words of a thread's marks.
COUNT, ROOM, LAST = 0, 1, 2
FIRST = 8  # where the pairs begin


def words(n_threads: int, room: int) -> int:
    """Words of a team of so many threads that notes up to `room` marks each."""
    return stages.words(n_threads) + n_threads * (FIRST + 2 * room)


def ask(team: NDArray[np.int64], room: int) -> None:
    """Ask for marks in words that have that much room for each thread."""
    size = FIRST + 2 * room
    n_threads = (len(team) - stages.TICKETS) // (size + 8)
    first = stages.words(n_threads)
    team[stages.MARKS], team[stages.MARKS + 1] = first, size
    team[first + ROOM :: size] = room
    team[first + LAST :: size] = -1


def read(team: NDArray[np.int64], n_threads: int) -> list[NDArray[np.int64]]:
    """Return the marks (n, 2) of each thread that was at work."""
    first, size = team[stages.MARKS], team[stages.MARKS + 1]
    found = []
    for tid in range(n_threads):
        own = team[first + tid * size : first + (tid + 1) * size]
        if count := own[COUNT]:
            found.append(own[FIRST : FIRST + 2 * count].reshape(-1, 2).copy())
    return found
