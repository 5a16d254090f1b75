"""What a training is predicted to take on a card, and when that is worth its start."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

import fastneuron as fn
from fastneuron.backends import Card
from fastneuron.kernels import device_cost, device_launches
from fastneuron.kernels.device_cost import (
    COMPILE,
    LAUNCH,
    SHARE,
    START,
    WORTH,
    Task,
    peak_of,
    start_on_card,
    step_on_card,
    weigh,
)
from fastneuron.kernels.device_fused import MOST_LAYERS
from fastneuron.kernels.device_launches import COMPILED, launches_of
from fastneuron.kernels.fused_plan import fused_plan
from fastneuron.losses import LOSSES

CARD = Card("H100 or so", (9, 0), 80 << 30, 132, 1.755e9, 3.35e12)


def task(*sizes: int, batch: int, **given: Any) -> Task:
    net = fn.mlp(list(sizes), seed=0, dtype=given.pop("dtype", "float32"))
    return Task(net.spec, LOSSES["mse"], fn.Adam(), batch, n_threads=1, **given)


LARGE = task(512, 2048, 512, batch=4096)


def test_little_work_stays_and_much_goes() -> None:
    assert weigh(LARGE, CARD).pays
    assert weigh(dataclasses.replace(LARGE, rows=1_000_000, epochs=10), CARD).pays
    tiny = weigh(task(4, 8, 1, batch=16), CARD)
    assert not tiny.pays
    assert "by its data sheet" in tiny.why
    # One epoch of few rows does not repay compiling, whatever a step takes.
    short = weigh(dataclasses.replace(LARGE, rows=4096, epochs=1), CARD)
    assert not short.pays
    assert "to start" in short.why


def test_what_the_driver_does_not_tell_is_not_guessed() -> None:
    for missing in ("clock", "bandwidth", "multiprocessors"):
        verdict = weigh(LARGE, CARD._replace(**{missing: 0}))
        assert not verdict.pays
        assert "does not tell how fast" in verdict.why
    small = weigh(dataclasses.replace(LARGE, rows=10_000_000, epochs=1), CARD._replace(memory=1))
    assert not small.pays
    assert "bytes are needed" in small.why


def test_a_step_on_a_card_grows_with_all_that_it_is_made_of() -> None:
    base = step_on_card(LARGE, 4096, CARD)
    assert base > LAUNCH * launches_of(LARGE.spec, 4096)
    assert step_on_card(LARGE, 8192, CARD) > 1.5 * base
    for slower in (
        CARD._replace(clock=CARD.clock / 2),
        CARD._replace(multiprocessors=66),
        CARD._replace(bandwidth=CARD.bandwidth / 10),
        CARD._replace(capability=(1, 0)),
    ):
        assert step_on_card(LARGE, 4096, slower) > base
    doubles = task(512, 2048, 512, batch=4096, dtype="float64")
    assert step_on_card(doubles, 4096, CARD) > base
    # 2 multiply-adds a cycle in float64 where the other has 64, and most of a step are those.
    few = step_on_card(doubles, 4096, CARD._replace(capability=(8, 9)))
    assert few > 20 * step_on_card(dataclasses.replace(doubles, on_device=True), 4096, CARD)
    on_device = dataclasses.replace(LARGE, on_device=True)
    assert step_on_card(on_device, 4096, CARD) < base
    # 2 x 3 products of 4096 x 512 x 2048 less one, at 60 % of 132 x 128 multiply-adds a cycle.
    products = 5 * 4096 * 512 * 2048 / (0.6 * 132 * 128 * CARD.clock)
    assert products < step_on_card(on_device, 4096, CARD) < 3 * products
    assert 0 < WORTH < 1


SMALL = task(64, 64, 64, 4, batch=16384, on_device=True)


def test_a_fused_network_costs_few_launches_and_no_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert launches_of(SMALL.spec, 16384) == 7
    fused, rows = step_on_card(SMALL, 16384, CARD), 16384
    # 64 rows or fewer a block, all products of a step, at most a round more than evenly shared.
    products = rows * SMALL.spec.multiply_adds / (SHARE * 132 * peak_of(CARD, "float32"))
    assert 7 * LAUNCH + products < fused < 2 * (7 * LAUNCH + products)
    # Memory hardly counts: what is read and written is data and the gradients of the blocks.
    slow = step_on_card(SMALL, rows, CARD._replace(bandwidth=CARD.bandwidth / 2))
    assert slow - fused < 0.2 * fused
    # Layer by layer: more launches, and activations through memory.
    by_layer(monkeypatch)
    launches = launches_of(SMALL.spec, rows)
    assert launches > 20
    assert step_on_card(SMALL, rows, CARD) > launches * LAUNCH
    assert step_on_card(SMALL, rows, CARD) > 2 * fused


def by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small networks go layer by layer, as others do."""
    for room in (device_cost, device_launches):
        monkeypatch.setattr(room, "fused_for", lambda *given: None)


def test_compiled_kernels_cost_what_numbas_do_but_for_many_layers() -> None:
    for layers in (MOST_LAYERS, MOST_LAYERS + 1):
        numba = task(*[4] * (layers + 1), batch=64, on_device=True)
        compiled = dataclasses.replace(numba, kernels=COMPILED)
        same = step_on_card(numba, 64, CARD) == step_on_card(compiled, 64, CARD)
        assert same == (layers == MOST_LAYERS)
    wide = dataclasses.replace(LARGE, kernels=COMPILED)
    assert step_on_card(wide, 4096, CARD) == step_on_card(LARGE, 4096, CARD)


def test_compiled_kernels_start_at_once_and_data_cross_the_bus_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numba = dataclasses.replace(LARGE, rows=40_960, epochs=10)
    compiled = dataclasses.replace(numba, kernels=COMPILED)
    assert start_on_card(compiled, 4096) == START
    assert start_on_card(numba, 4096) == START + COMPILE * launches_of(LARGE.spec, 4096)
    data = 40_960 * 1024 * 4
    for each in (numba, compiled):
        fast: list[float] = []
        slow: list[float] = []
        for rate, found in ((1e30, fast), (1e3, slow)):
            monkeypatch.setattr(device_cost, "TRANSFER", rate)
            monkeypatch.setattr(device_cost, "duration", lambda s, found=found: found.append(s))
            weigh(each, CARD)
        assert slow[0] - fast[0] == pytest.approx(data / 1e3)


def test_the_memory_of_a_fused_networks_gradients_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need = []
    for _ in range(2):
        why = weigh(SMALL, CARD._replace(memory=1)).why
        need.append(int(re.sub(r"\D", "", re.search(r"about ([\d,]+) bytes", why).group(1))))
        by_layer(monkeypatch)
    plan = fused_plan(SMALL.spec)
    assert need[0] - need[1] == 4 * plan.partials(16384, SMALL.spec)
