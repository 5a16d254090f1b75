"""The thread team: helper threads that run one compiled worker side by side with the caller.

Helpers are daemon threads, kept idle between calls (starting one costs 120 microseconds, waking one
about 10) and lent to one caller at a time, so any number of Python threads can train at once.
A forked child has no threads but its own: it starts with an empty pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable

from fastneuron.errors import DataError


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def requested_threads(n_threads: int | None) -> int | None:
    """Return the asked-for thread count: the argument, else ``FASTNEURON_NUM_THREADS``, else None.

    Raises
    ------
    DataError
        Where either is not a whole number of at least 1.
    """
    source: object = n_threads
    name = "n_threads"
    if n_threads is None:
        source, name = os.environ.get("FASTNEURON_NUM_THREADS") or None, "FASTNEURON_NUM_THREADS"
    if source is None:
        return None
    try:
        count = int(source)  # type: ignore[call-overload]
        if isinstance(source, (bool, float)) or count < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise DataError(f"{name} must be a whole number of at least 1, got {source!r}") from None
    return int(count)


def _current_core() -> Callable[[], int] | None:
    """Return the C library's sched_getcpu where there is one."""
    try:
        return ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return None


_getcpu = _current_core() if hasattr(os, "sched_setaffinity") else None


def _cores_beside_caller() -> frozenset[int]:
    """Cores for helpers: all that the caller may use, but the one that it runs on now.

    A helper is woken by the caller, and a scheduler that then leaves both on one core lets them run
    in turns: 139 against 18 microseconds a step of 64-128-10 on two cores.
    """
    if _getcpu is None:
        return frozenset()
    cores = frozenset(os.sched_getaffinity(0))
    return cores - {_getcpu()}


class _Helper(threading.Thread):
    """A thread that waits for a job, runs it, says so, and waits again."""

    def __init__(self) -> None:
        super().__init__(name="fastneuron-helper", daemon=True)
        self._go = threading.Lock()
        self._done = threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._work: Callable[[int], None] | None = None
        self._tid = 0
        self.fault: BaseException | None = None
        self._cores: frozenset[int] = frozenset()
        self.start()

    def begin(self, work: Callable[[int], None], tid: int, cores: frozenset[int]) -> None:
        self.fault = None
        if cores and cores != self._cores and self.native_id is not None:
            with contextlib.suppress(OSError):  # where it is not allowed, the scheduler decides
                os.sched_setaffinity(self.native_id, cores)
                self._cores = cores
        self._work, self._tid = work, tid
        self._go.release()

    def run(self) -> None:
        while True:
            self._go.acquire()
            try:
                if self._work is not None:
                    self._work(self._tid)
            except BaseException as fault:
                self.fault = fault
            self._work = None  # an idle helper keeps nobody's engine alive
            self._done.release()

    def wait(self) -> BaseException | None:
        """Wait for the job's end, whatever interrupts come; return the last interrupt."""
        interrupt: BaseException | None = None
        while True:
            try:
                self._done.acquire()
                return interrupt
            except BaseException as caught:
                interrupt = caught


_idle: list[_Helper] = []


def _forget_helpers() -> None:
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def run_team(n_threads: int, work: Callable[[int], None], abort: Callable[[], None]) -> None:
    """Run ``work(0)`` here and ``work(1)`` ... on helpers; return when all have ended.

    Parameters
    ----------
    work
        The worker, given its thread number. It must release the GIL and meet the others at
        barriers.
    abort
        Called where one of them cannot go on (Ctrl-C before the worker began): tells the others to
        leave their barriers.
    """
    if n_threads == 1:
        work(0)
        return
    helpers: list[_Helper] = []
    started = 0
    fault: BaseException | None = None
    try:
        while len(helpers) < n_threads - 1:
            # list.pop and append are atomic: no lock that a fork could leave held.
            try:
                helpers.append(_idle.pop())
            except IndexError:
                helpers.append(_Helper())
        cores = _cores_beside_caller()
        for helper in helpers:
            started += 1
            helper.begin(work, started, cores)
        work(0)
    except BaseException as caught:
        fault = caught
        abort()
    for helper in helpers[:started]:
        fault = helper.wait() or fault
        fault = fault or helper.fault
    _idle.extend(helpers)
    if fault is not None:
        raise fault
