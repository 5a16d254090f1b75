"""Runs the kernels of a library made under ThreadSanitizer: ``emulated_cuda_races.py LIBRARY ROOM...``.

A process of its own, since the checker's run-time must be there before anything else is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from emulated_cuda import Kernels


def products(kernels: Kernels, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b, dz = (rng.normal(size=size).astype(dtype) for size in ((9, 9), (9, 10), 10, (9, 10)))
    kernels.forward(x, w, b, "tanh", keep_z=True)
    kernels.data_gradient(dz, w, x, "tanh")
    kernels.weight_gradient(x, dz, 8)


ROOMS = {"products": products}


def main(library: str, *rooms: str) -> None:
    kernels = Kernels(Path(library))
    for room in rooms:
        for dtype in ("float32", "float64"):
            ROOMS[room](kernels, dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
