"""Ctrl-C held back while a step is being applied, so that no step is ever half applied."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class HeldInterrupts:
    """Context that notes Ctrl-C instead of raising it; call `release` after it.

    Outside the main thread, or where the program ignores Ctrl-C or leaves it to the system, nothing
    is changed. A second Ctrl-C inside the context is raised at once: that is the way out of a call
    that does not come back, such as a long compilation.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._frame: FrameType | None = None
        self._noted = False

    def __enter__(self) -> HeldInterrupts:
        self._handler = None
        self._noted = False
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def release(self) -> None:
        """Raise what the last context held back, once the caller's books are in order."""
        if self._noted:
            self._noted = False
            self._handler(signal.SIGINT, self._frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            self._noted = False
            self._handler(number, frame)
            return
        self._noted = True
        self._frame = frame
