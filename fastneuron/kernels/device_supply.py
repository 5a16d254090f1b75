"""Who supplies the backend "cuda" here: numba-cuda's kernels, else those compiled with the package.

Nothing is imported that needs either; the driver is only asked whether there is a card.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from fastneuron.kernels import numba_cuda
from fastneuron.kernels.device_presence import missing_card

__all__ = ["Supply", "supply"]

_RESIDENT = "fastneuron.kernels.numba_cuda.resident"
_PACKAGES = ("numba", "numba_cuda")
#: The extension that is built where nvcc is; its engine lies in `kernels.cython_cuda`.
_EXTENSION = "fastneuron.kernels._cython_cuda"


class Supply(NamedTuple):
    """Where the engine comes from, and what keeps it from running.

    Attributes
    ----------
    module : str
        Where the engine's class is; nothing where no kernels are installed.
    kernels : str
        Whose kernels they are.
    problem : str
        One line: what is missing and how to get it; nothing where all is there.
    engine : str
        The name of the class.
    ensemble : str
        The module that offers `ensemble_engine`, if any does.
    """

    module: str
    kernels: str
    problem: str
    engine: str = "CudaEngine"
    ensemble: str = numba_cuda.__name__


def supply() -> Supply:
    """Return who supplies the backend here."""
    if all(find_spec(package) for package in _PACKAGES):
        return Supply(_RESIDENT, "numba-cuda", numba_cuda.missing())
    if find_spec(_EXTENSION):
        # Imported here: a start without CUDA does without it.
        from fastneuron.kernels import cython_cuda

        name, problem = cython_cuda.__name__, cython_cuda.missing()
        return Supply(name, "compiled", problem, "CythonCudaEngine", name)
    # Both at once: who has no card need not install anything.
    problems = [missing_card(), numba_cuda.missing()]
    return Supply("", "", "; ".join(problem for problem in problems if problem))
