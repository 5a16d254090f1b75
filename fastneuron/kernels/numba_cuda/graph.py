"""Launches recorded once and repeated as one: the driver then asks the interpreter for nothing.

The recording is the driver's (stream capture: CUDA C programming guide, section "CUDA graphs"),
reached through `cuda.bindings`, which numba-cuda stands on. Where it cannot be had, launches go one
by one, with the same results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fastneuron.kernels.numba_cuda.driver import SIMULATED

__all__ = ["Graph", "why_not"]


def why_not() -> str:
    """Return why launches cannot be recorded here, or nothing where they can."""
    if SIMULATED:
        return "the simulator cannot record launches"
    try:
        _binding()
    except ImportError as error:
        return f"cuda.bindings is needed to record launches: {error}"
    return ""


def _binding() -> Any:
    return import_module("cuda.bindings.driver")


class Graph:
    """What `launch` puts on a stream, recorded; nothing of it runs until `replay`.

    Every kernel must have run before: compiling and loading cannot be recorded.

    Parameters
    ----------
    stream : the stream that `launch` uses, not the default one
    launch : callable
    binding : module, optional
        `cuda.bindings.driver`, or what stands for it.

    Raises
    ------
    RuntimeError
        Where the driver refuses; the stream is usable again.
    """

    def __init__(self, stream: Any, launch: Callable[[], None], binding: Any = None) -> None:
        self._binding = binding or _binding()
        self._stream = self._binding.CUstream(int(stream))
        # In the other modes the collector, which frees vectors at any time, would end a recording.
        mode = self._binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            launch()
        except BaseException:
            self._binding.cuStreamEndCapture(self._stream)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            self._graph = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._binding.cuGraphDestroy(graph)
        weakref.finalize(self, self._binding.cuGraphExecDestroy, self._graph)

    def replay(self, times: int = 1) -> None:
        """Put all of it on the stream, `times` times."""
        for _ in range(times):
            self._call("cuGraphLaunch", self._graph, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._binding, name)(*arguments)
        if int(status):
            raise RuntimeError(f"{name} failed: {getattr(status, 'name', status)}")
        return results[0] if results else None
