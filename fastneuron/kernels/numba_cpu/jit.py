"""The one place that states how kernels are compiled.

`nogil`: the team's threads run one compiled worker side by side. `error_model="numpy"`: the default
tests every division for zero, which stops vectorisation (Adam: 4.7 against 0.57 ns a parameter). No
fast-math: NaN and infinity keep their meaning and sums their order. `_nrt=False`: kernels allocate
nothing and their callers keep the arrays, so references need no counting, of which each count is an
atomic operation (25 in a step that did nothing else: 0.1 microseconds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numpy.typing import NDArray

from fastneuron.kernels.numba_cpu.cache import enable_cache

OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}


class _Part(JITCodeLibrary):
    """Code that is optimised, and becomes machine code, as part of its callers alone.

    Numba's own libraries do both at once, and again with every caller above them: a chain of large
    functions costs all of LLVM's work a time for each link (a training worker took 20 s of
    processor time, and takes 10).
    """

    def _optimize_final_module(self) -> None:
        """Do nothing: each function was cleaned up alone, which keeps what is linked small."""

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # there is none

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing: there is no machine code that could look at it."""


class _PartCompiler(Compiler):
    """Numba's compiler, into a `_Part`."""

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


def _part(function: Callable[..., Any], into_caller: bool) -> Any:
    # Left unsaid, whether LLVM must inline is taken over from the caller that is compiled first.
    return njit(
        **OPTIONS,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_PartCompiler,
        forceinline=into_caller,
    )(function)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call; it is cached as part of its callers."""
    return _part(function, into_caller=False)


def glue(function: Callable[..., Any]) -> Any:
    """Compile a function into the text of its one caller, which saves a call with many arguments.

    By LLVM: Numba's own inlining, into the caller's types, took a third of all compile time.
    """
    return _part(function, into_caller=True)


#: Every function that Python calls, as `kernel` made it.
kernels: list[Any] = []


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls; taken from the cache where it is there."""
    made = enable_cache(njit(**OPTIONS, no_cfunc_wrapper=True)(function))
    kernels.append(made)
    return made


class _Address:
    """Memory of a read-only array, offered as if it could be written."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._owner = array  # kept alive by the array that NumPy makes of this
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def uniform(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that kernels only read in the one form that they are compiled for.

    Numba compiles anew for an array of other flags, so a user's read-only data would cost seconds;
    and it takes a microsecond to look up the type of each read-only array. So kernels take writable
    arrays, and a read-only one goes in under another name: none of them writes its inputs.
    """
    return array if array.flags.writeable else np.asarray(_Address(array))
