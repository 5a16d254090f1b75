"""Other libraries, and fastneuron's backends, behind one interface: the same steps of training.

Each trains as its own documentation advises somebody who is after speed. A library is imported when
its peer is made. Names are known here without NumPy; the peers themselves are in `roster`.
"""

from __future__ import annotations

__all__ = ["NAMES", "OURS"]

#: fastneuron's own.
OURS = ("fastneuron-numba", "fastneuron-cython", "fastneuron-numpy")
#: Every peer, in the order of the tables.
NAMES = (*OURS, "torch", "torch-compile", "jax-jit", "jax-scan", "sklearn", "numpy")
