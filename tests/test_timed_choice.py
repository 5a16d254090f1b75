"""The choice between ways of the same work, by a clock that the test winds."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import Barrier, Thread

from fastneuron.kernels.timed_choice import MARGIN, Choices, Option

WAYS = [Option("own"), Option("bias #0", ("bias", 0)), Option("bias #1", ("bias", 1))]


def clock(seconds: dict[str, list[float]], log: list[str] | None = None) -> Callable:
    """Times by name, one a turn, the last one over and over."""

    def prepare(option: Option) -> Callable[[], float]:
        times = iter(seconds[option.name])
        last = seconds[option.name][-1]

        def time() -> float:
            if log is not None:
                log.append(option.name)
            return next(times, last)

        return time

    return prepare


def take(seconds: dict[str, list[float]], key="product", choices=None, log=None) -> str:
    option = (choices or Choices()).take(key, lambda: WAYS[: len(seconds)], clock(seconds, log))
    assert option is not None
    return option.name


def test_the_fastest_is_taken() -> None:
    assert take({"own": [3], "bias #0": [2], "bias #1": [1]}) == "bias #1"
    assert take({"own": [1], "bias #0": [2], "bias #1": [3]}) == "own"


def test_a_tie_goes_to_the_first() -> None:
    assert take({"own": [1], "bias #0": [1], "bias #1": [1]}) == "own"
    assert take({"own": [2], "bias #0": [1], "bias #1": [1]}) == "bias #0"


def test_what_is_hardly_faster_is_not_taken() -> None:
    just, more = 1 / (1 + MARGIN / 2), 1 / (1 + MARGIN * 2)
    assert take({"own": [1], "bias #0": [just]}) == "own"
    assert take({"own": [1], "bias #0": [more]}) == "bias #0"


def test_the_least_of_all_turns_counts_and_ways_take_turns() -> None:
    log: list[str] = []
    assert take({"own": [9, 9, 1, 9], "bias #0": [2]}, log=log) == "own"
    assert log[:4] == ["own", "bias #0"] * 2


def test_a_choice_is_made_once_for_a_key() -> None:
    choices, log = Choices(), []
    assert take({"own": [1], "bias #0": [2]}, "a", choices) == "own"
    # A second engine measures the opposite, and is not even asked.
    assert take({"own": [2], "bias #0": [1]}, "a", choices, log) == "own"
    assert log == []
    assert take({"own": [2], "bias #0": [1]}, "b", choices, log) == "bias #0"
    assert {key: made.option.name for key, made in choices.made.items()} == {
        "a": "own", "b": "bias #0",
    }  # fmt: skip
    assert choices.made["b"].seconds == {"own": 2, "bias #0": 1}


def test_a_way_that_fails_is_not_taken() -> None:
    assert take({"own": [9], "bias #0": [inf], "bias #1": [inf]}) == "own"
    assert take({"own": [inf], "bias #0": [9]}) == "bias #0"
    choices = Choices()
    assert choices.take("a", lambda: WAYS, clock({way.name: [inf] for way in WAYS})) is None
    assert choices.made == {}


def test_the_option_is_kept_whole() -> None:
    choices = Choices()
    take({"own": [3], "bias #0": [2], "bias #1": [1]}, "a", choices)
    got = choices.take("a", lambda: [Option("bias #1", ("bias", "another"))], clock({}))
    assert got == WAYS[2]


def test_one_way_is_not_timed_and_none_is_none() -> None:
    choices, log = Choices(), []
    assert take({"own": [1]}, "one", choices, log) == "own"
    assert log == []
    assert choices.take("none", list, clock({})) is None
    assert "none" not in choices.made


def test_threads_that_ask_at_once_get_the_same() -> None:
    choices, barrier, got = Choices(), Barrier(4), []

    def ask(first: float) -> None:
        barrier.wait()
        got.append(take({"own": [first], "bias #0": [2.5]}, "a", choices))

    threads = [Thread(target=ask, args=(float(i),)) for i in (1, 2, 3, 4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(got) == 4
    assert len(set(got)) == 1
