"""One line on stderr where kernels take long to compile, so that nobody wonders at the silence."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable

#: Seconds of compiling that pass without a word.
PATIENCE = 2.0


class Announcer:
    """Says once a process that kernels are being compiled, when that has taken `patience` seconds.

    Parameters
    ----------
    patience : float
        Seconds, added up over all kernels compiled so far.
    """

    def __init__(self, patience: float) -> None:
        self._left = patience
        self._said = False
        self._start = 0.0
        self._timer: threading.Timer | None = None

    def begin(self, goes_on: Callable[[], object], kept: bool) -> None:
        """Note that a kernel is about to be compiled.

        Parameters
        ----------
        goes_on : callable
            True while it is: a compilation that failed or was interrupted needs no `end`.
        kept : bool
            Whether the result will be there for the next process.
        """
        if self._said:
            return
        self._start = time.perf_counter()
        self._timer = threading.Timer(max(0.0, self._left), self._say, (goes_on, kept))
        self._timer.daemon = True
        # Where no thread can be started, nothing is said.
        with contextlib.suppress(RuntimeError):
            self._timer.start()

    def end(self) -> None:
        """Note that the kernel is compiled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left -= time.perf_counter() - self._start

    def _say(self, goes_on: Callable[[], object], kept: bool) -> None:
        if self._said or not goes_on():
            return
        self._said = True
        scope = "machine, once" if kept else "process"
        # The stream may be None, closed, or a pipe without a reader.
        with contextlib.suppress(Exception):
            print(
                f"fastneuron: compiling kernels for this {scope}, about 10 s ...",
                file=sys.stderr,
                flush=True,
            )
