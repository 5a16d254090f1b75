"""The suite accuracy: who trains rightly reaches the target, who does not has no time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fastneuron import Dense, Sequential
from fastneuron.bench import accuracy, running
from fastneuron.bench.accuracy import MOST_EPOCHS, TASKS, race
from fastneuron.bench.suites import workloads
from fastneuron.bench.workloads import Prepare, Prepared
from fastneuron.peers.judging import MOST_CHECKED
from fastneuron.peers.plain_numpy import PlainNumpy
from fastneuron.peers.problems import Problem
from fastneuron.peers.roster import PEERS

DIGITS, TABULAR = TASKS
#: The one that is installed wherever fastneuron is.
NAME = PlainNumpy.name


@cache
def digits() -> Prepare:
    return race(DIGITS)


def peer_of(prepared: Prepared) -> Any:
    work: Any = prepared.work
    return work.args[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_target_is_reached_and_timed_up_to_there(task: accuracy.Task) -> None:
    prepare = race(task)
    found = [prepare(name) for name in (NAME, "fastneuron-numpy")]
    # float32 in different orders of its sums: the way differs, the epoch does not.
    assert len({prepared.more["epochs"] for prepared in found}) == 1
    for prepared in found:
        more = prepared.more
        per_epoch = len(task.split()[0].y) // task.row.batch
        assert 1 < more["epochs"] <= MOST_EPOCHS / 2
        assert more["steps"] == more["epochs"] * per_epoch
        assert more["accuracy"] >= task.target
        assert prepared.error_over_bound == pytest.approx(
            (1 - more["accuracy"]) / (1 - task.target)
        )
        want = peer_of(prepared).export()
        want = [(w.copy(), b.copy()) for w, b in want]
        prepared.work(1)  # from the start, and no step more
        for pair, got in zip(want, peer_of(prepared).export(), strict=True):
            for array, other in zip(pair, got, strict=True):
                np.testing.assert_array_equal(other, array)


def test_the_accuracy_is_what_predict_says() -> None:
    prepared = digits()("fastneuron-numpy")
    _, test = DIGITS.split()
    net = Sequential(Dense(64, 128, activation="relu"), Dense(128, 10), seed=0)
    for layer, (w, b) in zip(net.layers, peer_of(prepared).export(), strict=True):
        layer.weight, layer.bias = w, b
    told = net.forward(test.X).argmax(axis=1)
    assert prepared.more["accuracy"] == np.mean(told == test.y)


def test_one_logistic_output_tells_two_classes_as_two_outputs_do() -> None:
    rng = np.random.default_rng(0)
    rows = TABULAR.split()[1]
    hidden = rng.normal(size=(20, 8)), rng.normal(size=8)
    w, b = rng.normal(size=(8, 2)), rng.normal(size=2)
    both = [hidden, (w, b)]
    one = [hidden, (w[:, 1:] - w[:, :1], b[1:] - b[:1])]
    want = accuracy._share_right(both, rows)
    assert 0.3 < want < 0.7
    assert accuracy._share_right(one, rows) == want


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_held_out_rows_are_a_quarter_and_not_trained_on(task: accuracy.Task) -> None:
    train, test = task.split()
    y = task.draw().y
    assert len(test.y) == pytest.approx(len(y) / 4, rel=1e-2)
    assert len(train.y) + len(test.y) == len(y)
    np.testing.assert_allclose(train.X.mean(0, np.float64), 0, atol=1e-5)
    spread = train.X.std(0, np.float64)
    np.testing.assert_allclose(spread[spread > 0], 1, rtol=1e-4)
    seen = {row.tobytes() for row in train.X}
    assert not any(row.tobytes() in seen for row in test.X)


def test_all_peers_get_the_same_start_and_batches() -> None:
    one, other = (digits()(name) for name in (NAME, "fastneuron-numpy"))
    assert peer_of(one).problem is peer_of(other).problem
    np.testing.assert_array_equal(peer_of(one).problem.x, DIGITS.split()[0].X)
    works: list[Any] = [one.work, other.work]
    orders = [work.args[1] for work in works]
    np.testing.assert_array_equal(*orders)
    for epoch in orders[0]:
        assert len(np.unique(epoch)) == epoch.size  # every row at most once
    assert not np.array_equal(orders[0][0], orders[0][1])


class NoBiases(PlainNumpy):
    """Trains weights alone."""

    def _update(self, gradients: list[Any]) -> None:
        super()._update([g if g.ndim == 2 else np.zeros_like(g) for g in gradients])


class Idle(PlainNumpy):
    """Trains with a learning rate of 0."""

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(replace(problem, rate=0.0), threads)
        self.problem = problem

    def _update(self, gradients: list[Any]) -> None:
        pass


class Tired(PlainNumpy):
    """Right as long as it is compared with the reference, then learns no more."""

    def _update(self, gradients: list[Any]) -> None:
        if self.step < MOST_CHECKED:
            super()._update(gradients)


@pytest.mark.parametrize(
    ("planted", "reason"),
    [(NoBiases, "an array's way by"), (Idle, "an array's way by"), (Tired, "wanted 96.00%")],
)
def test_who_trains_wrongly_is_wrong_and_has_no_time(
    monkeypatch: pytest.MonkeyPatch, planted: type[PlainNumpy], reason: str
) -> None:
    monkeypatch.setitem(PEERS, NAME, planted)
    monkeypatch.setattr(running, "SECONDS", (0.002, 0.002))
    (workload,) = (w for w in workloads("accuracy") if w.quick)
    result = running.run(names=[NAME], listed=[workload], passes=1)
    (row,) = (row for row in result.rows if row.key.backend == NAME)
    assert row.status == "wrong"
    assert reason in row.reason
    assert row.samples == ()
    assert row in result.wrong
