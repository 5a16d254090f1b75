"""How a block that is one model of many is cut: plain Python, a function of shape alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fastneuron.kernels import fused_plan
from fastneuron.kernels.device_plan import ALIGNMENT, DECAYS, TRAINS
from fastneuron.kernels.fused_plan import (
    SHARED_BYTES,
    blocks_together,
    ensemble_marks,
    ensemble_plan,
    ensemble_threads,
    whole,
)
from fastneuron.layers import BatchNorm, Dense
from fastneuron.spec import NetworkSpec


def spec_of(*sizes: int, dtype: str = "float32", **given) -> NetworkSpec:
    return NetworkSpec.chain([Dense(i, o, "relu", **given) for i, o in pairwise(sizes)], dtype)


def test_the_network_that_is_to_be_fast_fits_three_times_on_a_multiprocessor() -> None:
    plan = ensemble_plan(spec_of(20, 64, 64, 2))
    assert (plan.rows, plan.holds, ensemble_threads(plan)) == (32, True, 128)
    # Weights of 68, 68 and 8 numbers a row, biases of 64, 64 and 16; 36 numbers for each feature.
    assert plan.flat == 20 * 68 + 64 + 64 * 68 + 64 + 64 * 8 + 16
    assert plan.gradient_at == plan.flat + (20 + 64 + 64 + 4) * 36
    assert plan.numbers == plan.gradient_at + plan.flat
    assert plan.forward_numbers == plan.gradient_at
    away = ensemble_plan(spec_of(20, 64, 64, 2), keeps=False)
    assert (away.numbers, away.gradient_at) == (plan.gradient_at, None)
    for each, want in ((plan, [3, 2, 1]), (away, [4, 3, 2])):
        got = [blocks_together(4 * each.numbers, 128, kib) for kib in (228, 164, 100)]
        assert got == want


def test_a_gradient_gives_way_to_blocks() -> None:
    cases = {(1, 1): True, (4, 16, 1): True, (64, 64, 64, 4): False, (96, 128): False}
    for sizes, want in cases.items():
        plan = ensemble_plan(spec_of(*sizes))
        assert (plan.gradient_at is not None) == want, sizes
    assert ensemble_plan(spec_of(128, 128), keeps=True).gradient_at is None, "it does not fit"


def test_rows_give_way_to_parameters_that_stay() -> None:
    cases = {
        (100, 100, 100): (32, False),
        (64, 100, 64): (32, True),
        (96, 128): (32, True),
        (64, 128, 64): (16, True),
        (1, 1): (32, True),
        (128, 128, 128): (16, False),
    }
    for sizes, want in cases.items():
        plan = ensemble_plan(spec_of(*sizes))
        assert (plan.rows, plan.holds) == want, sizes
        assert plan.numbers * 4 <= SHARED_BYTES


def test_what_is_wider_or_not_dense_has_no_plan(monkeypatch) -> None:
    assert ensemble_plan(spec_of(129, 2)) is None
    assert ensemble_plan(NetworkSpec.chain([Dense(4, 4), BatchNorm(4)])) is None
    monkeypatch.setattr(fused_plan, "SHARED_BYTES", 4096)
    assert ensemble_plan(spec_of(20, 64, 64, 2)) is None


@pytest.mark.parametrize(("holds", "keeps"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_begin_at_whole_groups_and_do_not_meet(holds, keeps, dtype) -> None:
    spec = NetworkSpec.chain(
        [Dense(5, 9, "gelu"), Dense(9, 3, bias=False), Dense(3, 6, "silu"), Dense(6, 1)], dtype
    )
    plan = ensemble_plan(spec, holds=holds, keeps=keeps)
    taken = np.zeros(plan.flat, int)
    for at in plan.layers:
        assert at.row == at.stride >= whole(at.outputs)
        assert at.row % 4 == at.weight_at % ALIGNMENT == at.bias_at % ALIGNMENT == 0
        taken[at.weight_at : at.weight_at + whole(at.inputs) * at.row] += 1
        if at.bias:
            taken[at.bias_at : at.bias_at + at.outputs] += 1
    assert taken.max() == 1
    assert plan.flat % ALIGNMENT == 0
    room = plan.flat if holds else max(whole(at.inputs) * at.stride for at in plan.layers)
    widths = [5, 9, 3, 6, 1]
    starts = sorted([*plan.tile_at, *(z for z in plan.z_at if z)])
    starts.append(plan.gradient_at if keeps else plan.numbers)
    assert starts[0] == room
    saved = [whole(o) for o, at in zip(widths[1:], plan.layers, strict=True) if at.saves_z]
    sizes = [whole(width) for width in widths] + saved
    assert starts[-1] % 4 == 0
    assert plan.numbers - starts[-1] == (plan.flat if keeps else 0)
    assert np.diff(starts).tolist() == [size * plan.row_stride for size in sizes]
    assert [plan.weight_near(i) for i in range(4)] == (
        [at.weight_at for at in plan.layers] if holds else [0] * 4
    )


@pytest.mark.parametrize("decay_bias", [True, False])
def test_marks_are_those_of_each_array(decay_bias) -> None:
    layers = [
        Dense(5, 9, trainable="bias"), Dense(9, 3, bias=False), Dense(3, 20, trainable="weight"),
        Dense(20, 2, trainable=False),
    ]  # fmt: skip
    spec = NetworkSpec.chain(layers)
    plan = ensemble_plan(spec)
    marks = np.repeat(ensemble_marks(spec, plan, decay_bias), ALIGNMENT)
    assert len(marks) == plan.flat
    whole_mark, bias_mark = TRAINS | DECAYS, TRAINS | (DECAYS if decay_bias else 0)
    want = [(0, bias_mark), (whole_mark, None), (whole_mark, 0), (0, 0)]
    for at, (weight, bias) in zip(plan.layers, want, strict=True):
        got = marks[at.weight_at : at.weight_at + at.inputs * at.row]
        assert set(got.tolist()) == {weight}
        if at.bias:
            assert set(marks[at.bias_at : at.bias_at + at.outputs].tolist()) == {bias}


def test_threads_are_those_of_the_widest_layers_patches() -> None:
    threads = {(4, 16, 1): 32, (20, 64, 2): 128, (2, 17, 2): 64, (96, 128): 256}
    for sizes, want in threads.items():
        assert ensemble_threads(ensemble_plan(spec_of(*sizes))) == want, sizes
