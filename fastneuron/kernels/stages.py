"""What a compiled worker is asked to do, and where it reports: shared by every blocked engine."""

from __future__ import annotations

# Stages of a step, as bits.
FORWARD = 1  # gather the batch and go forward
LOSS = 2  # loss and dL/d(output) from the targets
FOREIGN = 4  # dL/d(output) comes from outside
BACKWARD = 8  # deltas, weight and bias gradients
UPDATE = 16  # check the gradient, then let the optimizer update
INPUT_DELTA = 32  # dL/dx as well

# The team's words, int64, 64 bytes apart: one cache line each.
ARRIVED = 0
GENERATION = 8
ABORTED = 16
STATUS = 24
STEPS = 32
MARKS = 40  # where the marks of time begin, and words a thread has for them; 0 for none
TICKETS = 48  # one for each thread


def words(n_threads: int) -> int:
    """Words of a team of so many threads."""
    return TICKETS + 8 * n_threads
