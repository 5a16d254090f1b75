"""The cost model, the choice of threads that rests on it, and what a plan says of both."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron.backends import Backend
from fastneuron.kernels import blocked as room
from fastneuron.kernels import cost
from fastneuron.kernels.contract import Outcome, Status
from fastneuron.kernels.cost import (
    LAST_TRIAL,
    TIE,
    WORK_TO_WAKE,
    WORTH,
    Clock,
    Course,
    Pace,
    choose_threads,
    measured_speeds,
    thread_counts,
)
from fastneuron.kernels.estimate import StepModel
from fastneuron.kernels.prices import CHAINS, Prices
from fastneuron.kernels.speeds import TYPICAL, Speeds
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import OPTIMIZERS, SGD, Adam
from fastneuron.spec import NetworkSpec
from fastneuron.threads import run_team

LANES = 32
#: Shapes that meet every branch: ragged, narrow, deep, wide, one row, few and many tiles.
SHAPES = [
    ((2, 8, 1), 4),
    ((20, 64, 64, 2), 32),
    ((784, 128, 10), 129),
    ((17, 256, 256, 6), 256),
    ((64, 2048, 64), 8),
    ((3, 40, 40, 40, 40, 5), 1000),
    ((512, 512, 10), 1),
]
ids = [f"{'-'.join(map(str, sizes))} b{batch}" for sizes, batch in SHAPES]
shapes = pytest.mark.parametrize(("sizes", "batch"), SHAPES, ids=ids)


def spec_of(sizes: tuple[int, ...], activation: str = "relu") -> NetworkSpec:
    layers = [Dense(a, b, activation) for a, b in itertools.pairwise(sizes)]
    return NetworkSpec.chain(layers, "float32")


def model_of(sizes: tuple[int, ...], **options: Any) -> StepModel:
    given = {"loss": LOSSES["cross_entropy"], "optimizer": Adam(), **options}
    return StepModel(spec_of(sizes), lanes=LANES, **given)


def prices(**wanted: Any) -> Prices:
    """Prices of nothing but what is named."""
    free = {field.name: 0.0 for field in fields(Prices) if field.name != "update"}
    return Prices(**{**free, "update": dict.fromkeys(Prices().update, 0.0), **wanted})


# The model.

COUNTING = Speeds(slot=1.0, byte=1.0, barrier=1.0, wake=1.0)


@pytest.mark.parametrize(
    ("rows", "columns", "slots_a_term"),
    [
        (8, 32, 16),  # eight rows of two vectors
        (16, 64, 4 * 16),
        (8, 16, 9),  # one vector: nine loads
        (8, 10, 9),
        (8, 17, 16),  # more than half a panel is a whole one
        (8, 48, 16 + 9),
        (4, 32, CHAINS),
        (2, 32, CHAINS),  # latency
        (1, 32, CHAINS),
        (15, 32, 16 + 3 * CHAINS),  # 8 + 4 + 2 + 1
        (4, 16, CHAINS),
    ],
)
def test_sums_are_counted_in_register_tiles(rows: int, columns: int, slots_a_term: int) -> None:
    depth = 5
    model = model_of((depth, columns), prices=prices(row_slots=1.0))
    (forward,) = [
        part.seconds
        for part in model.step(rows, 1, COUNTING).parts
        if part.name == "forward" and part.layer == 0
    ]
    assert forward == depth * slots_a_term


@shapes
def test_the_parts_sum_up_to_the_step_and_to_its_work(sizes: tuple[int, ...], batch: int) -> None:
    model = model_of(sizes)
    products = [a * b for a, b in itertools.pairwise(sizes)]
    want = batch * (3 * sum(products) - products[0])
    for threads in (1, 2, 5):
        for estimate in (
            model.step(batch, threads, TYPICAL),
            model.by_columns(batch, threads, TYPICAL),
        ):
            assert estimate.threads == threads
            got = sum(part.seconds for part in estimate.parts)
            assert math.isclose(estimate.seconds, got, rel_tol=1e-12)
            assert all(part.seconds >= 0 for part in estimate.parts)
            assert sum(part.multiply_adds for part in estimate.parts) == want
            layers = {part.layer for part in estimate.parts if part.name == "gradient"}
            assert layers == set(range(len(sizes) - 1))


@shapes
def test_a_prediction_is_linear_in_its_prices(sizes: tuple[int, ...], batch: int) -> None:
    """Whatever takes time has a price that a fit can find: one by one they make up the whole."""
    whole = model_of(sizes).step(batch, 1, TYPICAL).seconds
    ours = Prices()
    singles = [
        {field.name: getattr(ours, field.name)}
        for field in fields(Prices)
        if field.name != "update"
    ]
    singles.append({"update": ours.update})
    parts = [
        model_of(sizes, prices=prices(**one)).step(batch, 1, TYPICAL).seconds for one in singles
    ]
    assert math.isclose(sum(parts), whole, rel_tol=1e-9)


@shapes
def test_more_work_takes_longer(sizes: tuple[int, ...], batch: int) -> None:
    def seconds(sizes: tuple[int, ...], batch: int, **options: Any) -> float:
        return model_of(sizes, **options).step(batch, 1, TYPICAL).seconds

    base = seconds(sizes, batch)
    assert seconds(sizes, batch + 8) > base
    assert seconds((*sizes[:-1], sizes[-2], sizes[-1]), batch) > base
    for i in range(len(sizes)):
        wider = (*sizes[:i], sizes[i] + LANES, *sizes[i + 1 :])
        assert seconds(wider, batch) > base
    assert seconds(sizes, batch, optimizer=SGD()) < base
    parts = {
        name: StepModel(spec_of(sizes, name), LOSSES["mse"], SGD(), lanes=LANES)
        .step(batch, 1, TYPICAL)
        .parts
        for name in ("relu", "tanh")
    }
    for plain, costly in zip(parts["relu"], parts["tanh"], strict=True):
        if plain.name in ("forward", "deltas"):
            assert costly.seconds > plain.seconds, plain
        else:
            assert costly == plain
    slow = replace(TYPICAL, slot=2 * TYPICAL.slot, byte=2 * TYPICAL.byte)
    got = model_of(sizes).step(batch, 1, slow).seconds
    assert math.isclose(got, 2 * base, rel_tol=1e-9)


@shapes
def test_more_threads_never_lengthen_a_phase(sizes: tuple[int, ...], batch: int) -> None:
    model = model_of(sizes)
    before = {"A": math.inf, "B": math.inf}
    for threads in (1, 2, 3, 4, 8, 16):
        parts = model.step(batch, threads, TYPICAL).parts
        for phase in before:
            now = sum(part.seconds for part in parts if part.phase == phase)
            assert now <= before[phase] * (1 + 1e-12), (phase, threads)
            before[phase] = now


def test_a_thread_takes_whole_blocks_and_whole_tiles() -> None:
    model = model_of((32, 64, 32), prices=prices(row_slots=1.0, batch_slots=1.0))

    def phase(name: str, rows: int, threads: int) -> float:
        parts = model.step(rows, threads, COUNTING).parts
        return sum(part.seconds for part in parts if part.phase == name)

    assert model.n_tiles == 4
    for rows, threads, want in [
        (64, 2, 32),
        (64, 3, 24),
        (64, 100, 8),
        (512, 3, 256),
        (130, 1, 130),
    ]:
        assert phase("A", rows, threads) == phase("A", want, 1), (rows, threads)
    for threads, share in [(2, 2), (3, 2), (4, 1), (9, 1)]:
        assert math.isclose(phase("B", 64, threads), phase("B", 64, 1) * share / 4), threads


def test_bytes_cost_what_the_level_costs_that_holds_them() -> None:
    ours = Prices()
    got = [ours.byte(size) for size in (0, 1 << 10, 256 << 10, 8 << 20, 1 << 30)]
    assert got == pytest.approx([0, 0, ours.second_byte, ours.third_byte, ours.memory_byte])
    assert got == sorted(got)


def test_columns_pay_where_rows_are_too_few_for_the_threads() -> None:
    wide = model_of((2048, 2048, 10))

    def gain(rows: int, threads: int) -> float:
        by_rows = wide.step(rows, threads, TYPICAL).seconds
        return by_rows / wide.by_columns(rows, threads, TYPICAL).seconds

    assert gain(8, 8) > 1.3
    assert gain(8, 16) > gain(8, 2) > 1
    assert gain(1024, 8) < 1.05
    assert math.isclose(gain(8, 1), 1, rel_tol=1e-9)


@pytest.mark.parametrize("name", list(fn.activations.ACTIVATIONS))
def test_every_activation_loss_and_optimizer_has_a_price(name: str) -> None:
    for loss in LOSSES.values():
        for kind in OPTIMIZERS.values():
            model = StepModel(spec_of((4, 8, 2), name), loss, kind(), lanes=LANES)
            assert model.step(16, 1, TYPICAL).seconds > 0
    assert StepModel(spec_of((4, 2), name), None, None, lanes=16).step(3, 2, TYPICAL).seconds > 0


# The choice.


@pytest.mark.parametrize(
    ("sizes", "batch", "in_two", "in_four", "one_call"),
    [
        ((2, 8, 1), 4, 1, 1, 1),
        ((32, 32, 1), 16, 1, 1, 1),
        ((256, 256, 10), 1, 1, 1, 1),  # one row: phase A has no second thread's worth
        ((20, 64, 64, 2), 32, 1, 1, 1),
        ((64, 128, 10), 64, 2, 4, 1),
        ((784, 128, 10), 32, 2, 4, 1),  # four blocks of eight rows; too short to wake for once
        ((784, 128, 10), 128, 2, 4, 2),
        ((784, 512, 512, 10), 256, 2, 4, 2),
        ((1024, 2048, 2048, 1024), 512, 2, 4, 2),
    ],
)
def test_threads_follow_from_shapes(
    sizes: tuple[int, ...], batch: int, in_two: int, in_four: int, one_call: int
) -> None:
    model = model_of(sizes)

    def chosen(limit: int, steps: int) -> int:
        seconds = {n: model.step(batch, n, TYPICAL).seconds for n in range(1, limit + 1)}
        return choose_threads(seconds, steps, TYPICAL.wake, None).threads

    assert chosen(1, 1000) == 1
    assert chosen(2, 1_000_000) == in_two
    assert chosen(4, 1_000_000) == in_four
    assert chosen(2, 1) == one_call


def test_the_choice_says_why_with_figures() -> None:
    def why(seconds: dict[int, float], steps: int = 1000, requested: int | None = None) -> Any:
        choice = choose_threads(seconds, steps, 40e-6, requested)
        return choice.threads, choice.why

    assert why({}, requested=3) == (3, "as requested")
    assert why({1: 1.0}) == (1, "one usable core")
    pays = {1: 90e-6, 2: 50e-6}
    assert why(pays) == (2, "predicted 50 us a step, 90 us on one thread")
    assert why(pays, 1) == (1, "predicted 90 us a call: too short to wake helpers")
    assert why({1: 9e-6, 2: 8.5e-6}) == (1, "predicted 9 us a step, 8.5 us on 2 threads")
    # Equal but for the error of a prediction: the fewer threads, and one rather than a team.
    assert why({1: 1.0, 2: 0.5 * (TIE - 0.001), 3: 0.5})[0] == 2
    assert why({1: 1.0, 2: 0.5 * (TIE + 0.001), 3: 0.5})[0] == 3
    assert why({1: 1.0, 2: WORTH + 0.01})[0] == 1
    assert why({1: 1.0, 2: WORTH - 0.01})[0] == 2


def test_the_counts_that_are_tried() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(3) == [1, 2, 3]
    many = thread_counts(256)
    assert many[:16] == list(range(1, 17))
    assert many[-1] == 256
    assert len(many) < 45
    assert many == sorted(set(many))


def test_a_course_asks_once_and_keeps_no_more_than_it_needs() -> None:
    asked = []

    def predict(rows: int, threads: int) -> float:
        asked.append((rows, threads))
        return 1.0 / threads

    course = Course(3, None)
    assert [course.choice(7, 100, predict).threads for _ in range(5)] == [3] * 5
    assert asked == [(7, 1), (7, 2), (7, 3)]
    course.forget()
    course.choice(7, 100, predict)
    assert len(asked) == 6
    for rows in range(1000):
        course.choice(rows, 1, predict)
    assert len(course._choices) <= cost._KEPT
    asked.clear()
    assert Course(3, 2).choice(7, 100, predict).threads == 2
    assert asked == []


def run_calls(pace: Pace, seconds: dict[int, float], calls: int) -> list[int]:
    """Make calls that take `seconds` on so many threads; return what was picked."""
    picked = []
    for _ in range(calls):
        threads = pace.pick(2)
        picked.append(threads)
        pace.record(2, threads, 1, seconds[threads])
    return picked


def test_the_pace_finds_the_faster_way_and_notices_a_change() -> None:
    pace = Pace()
    picked = run_calls(pace, {1: 2.0, 2: 1.0}, 2000)
    assert picked[:2] == [2, 1]  # the plan first, then one trial
    assert picked[-LAST_TRIAL:].count(1) <= 1
    # A neighbour takes one core: the team is now five times slower.
    picked = run_calls(pace, {1: 2.0, 2: 5.0}, 2000)
    assert picked[:50].count(1) >= 35
    assert picked[-LAST_TRIAL:].count(2) <= 1
    # It goes again; only a trial can tell, and trials are rare by now.
    picked = run_calls(pace, {1: 2.0, 2: 1.0}, 2000)
    assert picked[-LAST_TRIAL:].count(1) <= 2


def test_one_disturbed_call_does_not_cost_the_team() -> None:
    pace = Pace()
    run_calls(pace, {1: 2.0, 2: 1.0}, 100)
    run_calls(pace, {1: 2.0, 2: 9.0}, 1)
    assert run_calls(pace, {1: 2.0, 2: 1.0}, 20).count(2) >= 18


def test_the_pace_leaves_a_serial_plan_alone() -> None:
    pace = Pace()
    assert [pace.pick(1) for _ in range(5)] == [1] * 5
    pace.record(1, 1, 1, 1.0)
    assert not pace.outrun(1)


def test_the_pace_says_when_one_thread_outran_the_team() -> None:
    pace = Pace()
    run_calls(pace, {1: 2.0, 2: 1.0}, 50)
    assert not pace.outrun(2)
    run_calls(pace, {1: 1.0, 2: 3.0}, 200)
    assert pace.outrun(2)


def test_the_clock_keeps_means_of_one_batch_size() -> None:
    clock = Clock()
    assert clock.a_step() == {}
    clock.note(32, 1, 10, 1.0)
    clock.note(32, 2, 10, 0.5)
    clock.note(32, 1, 30, 1.0)
    assert clock.a_step() == {1: 0.05, 2: 0.05}
    clock.note(64, 2, 2, 1.0)
    assert (clock.rows, clock.a_step()) == (64, {2: 0.5})


def test_speeds_are_read_off_the_fastest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that take twice what `TYPICAL` says mean a slot of twice its time."""
    model = StepModel(spec_of((256, 128)), None, None, lanes=LANES)
    byte = 2 * TYPICAL.byte
    slow = replace(TYPICAL, slot=2 * TYPICAL.slot, byte=byte)
    monkeypatch.setattr(cost, "copy_seconds", lambda: byte)
    now, calls = [0.0], [0]

    def forward() -> None:
        calls[0] += 1
        disturbed = 1.0 if calls[0] % 3 == 0 else 0.0
        now[0] += model.inference(cost.PROBE_ROWS, 1, slow) + disturbed

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    got = measured_speeds(forward, model)
    assert got.measured
    assert got.byte == byte
    assert got.slot == pytest.approx(slow.slot, rel=1e-6)


# What an engine does with it.


def trainer_of(backend: Backend, **options: Any) -> Any:
    net = fn.mlp([12, 40, 3], seed=0)
    return fn.Trainer(net, "cross_entropy", "adam", 16, backend=backend.name, **options)


RNG = np.random.default_rng(5)
X = RNG.normal(size=(160, 12)).astype(np.float32)
Y = RNG.integers(0, 3, 160)


def test_a_plan_before_and_after_training(blocked: Backend) -> None:
    trainer = trainer_of(blocked, n_threads=1)
    before = trainer.plan
    assert before["measured_step_us"] is None
    assert before["measured_by_threads_us"] == {}
    assert before["rows_per_step"] == 16
    assert before["threads"] == 1
    trainer.run(X, Y)  # calls of 1, 8 and 1 steps: all but the first are timed
    after = trainer.plan
    assert after["measured_step_us"] > 0
    assert set(after["measured_by_threads_us"]) == {1}
    assert after["predicted_step_us"] == before["predicted_step_us"]  # speeds are measured once
    json.dumps(dict(after))
    # A batch of another size is another step.
    for _ in range(2):
        trainer.step(X[:40], Y[:40])
    assert trainer.plan["rows_per_step"] == 40
    assert trainer.plan["multiply_adds_per_step"] == 40 * (12 * 40 + 2 * 40 * 3 + 12 * 40 + 40 * 3)


def test_only_whole_steps_are_timed_and_the_first_call_is_not(blocked: Backend) -> None:
    trainer = trainer_of(blocked, n_threads=1)
    trainer.step(X[:16], Y[:16])
    assert trainer.plan["measured_step_us"] is None
    trainer.gradients(X[:16], Y[:16])
    trainer.forward(X[:16])
    trainer.update(np.zeros((16, 3), np.float32))
    net_out = trainer.net.forward(X)
    assert net_out.shape == (160, 3)
    assert trainer.plan["measured_step_us"] is None
    trainer.step(X[:16], Y[:16])
    assert trainer.plan["measured_step_us"] > 0


def test_a_step_that_failed_is_not_timed(blocked: Backend) -> None:
    trainer = trainer_of(blocked, n_threads=1)
    trainer.step(X[:16], Y[:16])
    with pytest.raises(fn.DataError):
        trainer.step(np.full((16, 12), np.nan, np.float32), Y[:16])
    assert trainer.plan["measured_step_us"] is None


def test_a_plan_is_additive_and_readable(blocked: Backend) -> None:
    trainer = trainer_of(blocked, n_threads=2)
    plan = trainer.plan
    parts = plan["parts"]
    got = sum(part["predicted_us"] for part in parts)
    assert got == pytest.approx(plan["predicted_step_us"])
    assert plan["predicted_by_threads_us"][2] == plan["predicted_step_us"]
    work = [part["multiply_adds"] or 0 for part in parts]
    assert sum(work) == plan["multiply_adds_per_step"] == 16 * (2 * 12 * 40 + 3 * 40 * 3)
    names = [(part["phase"], part["part"], part["layer"]) for part in parts]
    assert ("A", "forward", 0) in names
    assert ("B", "gradient", 1) in names
    assert ("team", "barriers", None) in names
    assert plan["state_bytes"] > 0
    assert plan["scratch_bytes"] > 0
    text = repr(plan)
    head = next(line for line in text.splitlines() if "multiply adds" in line)
    assert head.split("  ")[0].strip() == "parts"
    for part in parts:
        row = next(line for line in text.splitlines() if f"{part['part']} " in line)
        assert row
    assert all(phase in text for phase in plan["phases"])


def test_an_engine_uses_the_choice_and_its_bits_do_not(
    blocked: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "usable_cores", lambda: 3)
    used = []

    def spy(n_threads: int, *arguments: Any) -> None:
        used.append(n_threads)
        run_team(n_threads, *arguments)

    monkeypatch.setattr(room, "run_team", spy)

    def run(made: Any) -> bytes:
        order = np.tile(np.arange(160), 20)
        bounds = np.arange(21, dtype=np.int64) * 160
        scalars = Adam().scalars(0, np.full(20, 1e-3))
        losses = np.zeros(20)
        outcome = made.run(X, Y, None, order, bounds, scalars, losses)
        assert outcome == Outcome(Status.OK, 20)
        return losses.tobytes() + b"".join(w.tobytes() for w, _ in made.export())

    want = None
    for chosen in (1, 2, 3):
        made = blocked.engine(
            spec_of((12, 256, 3)), LOSSES["cross_entropy"], Adam(), batch_size=160
        )
        made.load(fn.mlp([12, 256, 3], seed=0).parameters.pull())
        monkeypatch.setattr(
            type(made), "_step_seconds", lambda self, rows, n, best=chosen: 1.0 + abs(n - best)
        )
        assert 20 * 160 * made._row_work >= WORK_TO_WAKE
        got = run(made)
        want = got if want is None else want
        assert got == want
    assert used == [2, 3]  # alone no team is called


def test_an_engine_is_freed_without_a_garbage_collection(blocked: Backend) -> None:
    made = blocked.engine(spec_of((4, 8, 2)), LOSSES["cross_entropy"], Adam())
    made.plan()
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_typical_speeds_are_used_until_a_plan_is_asked_for(
    blocked: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[tuple[str, str], Speeds] = {}
    monkeypatch.setattr(room, "_speeds", known)
    monkeypatch.setattr(room, "usable_cores", lambda: 2)
    trainer = fn.Trainer(
        fn.mlp([12, 256, 3], seed=0), "cross_entropy", batch_size=160, backend=blocked.name
    )
    trainer.run(X, Y)
    trainer.net.forward(np.tile(X, (4, 1)))
    assert known == {}  # neither training nor inference measures anything
    trainer.plan  # noqa: B018
    assert set(known) == {(blocked.name, "float32")}
    assert known[blocked.name, "float32"].measured
