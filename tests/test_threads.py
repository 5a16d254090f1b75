"""The thread team: everyone runs, faults and interrupts come back, forks and nesting work."""

from __future__ import annotations

import os
import threading

import pytest

from fastneuron import threads
from fastneuron.errors import DataError
from fastneuron.threads import requested_threads, run_team


def never() -> None:
    raise AssertionError("nothing was to be aborted")


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_every_thread_runs_once_at_the_same_time(n_threads: int) -> None:
    meeting = threading.Barrier(n_threads, timeout=30)
    seen = []

    def work(tid: int) -> None:
        meeting.wait()
        seen.append(tid)

    run_team(n_threads, work, never)
    assert sorted(seen) == list(range(n_threads))


def test_helpers_are_kept() -> None:
    names = set()

    def work(tid: int) -> None:
        if tid:
            names.add(threading.get_ident())

    for _ in range(20):
        run_team(2, work, never)
    assert len(names) == 1


def test_teams_of_several_callers_do_not_meet() -> None:
    faults = []

    def caller() -> None:
        meeting = threading.Barrier(3, timeout=30)
        try:
            for _ in range(20):
                run_team(3, lambda tid: meeting.wait() and None, never)
        except BaseException as fault:
            faults.append(fault)

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(60)
    assert not faults


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_fault_comes_back_and_the_team_lives_on(guilty: int) -> None:
    aborted = threading.Event()

    def work(tid: int) -> None:
        if tid == guilty:
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        run_team(2, work, aborted.set)
    assert aborted.is_set() == (guilty == 0)
    run_team(2, lambda tid: None, never)


def test_an_interrupt_before_the_work_frees_waiting_helpers() -> None:
    gone = threading.Event()

    def work(tid: int) -> None:
        if tid == 0:
            raise KeyboardInterrupt
        assert gone.wait(30)  # as a helper waits at a barrier for the thread that never comes

    with pytest.raises(KeyboardInterrupt):
        run_team(2, work, gone.set)


# Python 3.12 and later warn of any fork beside threads; that it works is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_starts_its_own_helpers() -> None:
    run_team(3, lambda tid: None, never)
    assert threads._idle
    child = os.fork()
    if child == 0:
        status = 1
        try:
            seen = []
            run_team(3, seen.append, never)
            status = 0 if sorted(seen) == [0, 1, 2] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "two"])
def test_wrong_thread_counts_are_named(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="n_threads"):
        requested_threads(wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("FASTNEURON_NUM_THREADS", str(wrong))
    with pytest.raises(DataError, match="FASTNEURON_NUM_THREADS"):
        requested_threads(None)


def test_the_environment_decides_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNEURON_NUM_THREADS", "3")
    assert requested_threads(None) == 3
    assert requested_threads(2) == 2
    monkeypatch.setenv("FASTNEURON_NUM_THREADS", "")
    assert requested_threads(None) is None
