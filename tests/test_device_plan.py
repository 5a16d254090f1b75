"""Where arrays lie on a device and how work is cut there."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron.kernels import device_plan, device_presence
from fastneuron.kernels.device_plan import DECAYS, TRAINS, Tile
from fastneuron.layers import BatchNorm, Dense, Dropout
from fastneuron.spec import NetworkSpec
from fastneuron.testing import generated_norm_cases

SPEC = NetworkSpec.chain(
    [
        Dense(5, 3, bias=True, trainable="bias"),
        Dropout(0.5),
        BatchNorm(),
        Dense(None, 17, bias=False),
        Dense(None, 2, trainable=False),
    ]
)


def test_arrays_follow_each_other_and_start_at_whole_groups() -> None:
    got = [(p.layer, p.name, p.offset, p.shape) for p in device_plan.flat_parts(SPEC)]
    want = [
        (0, "weight", 0, (5, 3)),
        (0, "bias", 16, (3,)),
        (2, "weight", 32, (3,)),
        (2, "bias", 48, (3,)),
        (3, "weight", 64, (3, 17)),
        (4, "weight", 128, (17, 2)),
        (4, "bias", 176, (2,)),
    ]
    assert got == want
    assert device_plan.flat_size(SPEC) == 192


def test_marks_say_what_trains_and_what_always_decays() -> None:
    got = list(device_plan.marks_of(SPEC, decay_bias=False))
    both = TRAINS | DECAYS
    assert got == [0, TRAINS, TRAINS, TRAINS, both, both, both, both, 0, 0, 0, 0]
    assert set(device_plan.marks_of(SPEC, decay_bias=True)) == {0, both}


@pytest.mark.parametrize("case", generated_norm_cases(12), ids=lambda case: case.name)
def test_no_group_has_numbers_of_two_arrays(case) -> None:
    owner = np.full(device_plan.flat_size(case.spec), -1)
    parts = device_plan.flat_parts(case.spec)
    for index, part in enumerate(parts):
        assert (owner[part.offset : part.end] == -1).all()
        owner[part.offset : part.end] = index
    for group in owner.reshape(-1, device_plan.ALIGNMENT):
        assert len(set(group[group >= 0])) <= 1
    assert sum(part.size for part in parts) == case.spec.n_parameters


@pytest.mark.parametrize("rows", [1, 7, 8, 255, 256, 511, 512, 513, 4096, 16384, 100_003])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (64, 64), (784, 512), (4096, 4096)])
def test_slices_cover_a_batch_once(rows: int, inputs: int, outputs: int) -> None:
    tile = device_plan.tile_of("float32")
    slices, each = device_plan.slices_of(rows, inputs, outputs, tile)
    assert each % tile.depth == 0
    assert (slices - 1) * each < rows <= slices * each
    assert slices == 1 or each >= 256


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_shipped_tiles_fit_in_shared_memory(dtype: str) -> None:
    tile = device_plan.tile_of(dtype)
    assert tile.threads == 256
    numbers = 2 * tile.depth * (tile.rows + tile.columns + 8) + tile.threads_down * tile.columns
    # 48 KiB a block without asking for more.
    assert numbers * np.dtype(dtype).itemsize <= 48 * 1024


def test_a_tile_that_threads_do_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="whole groups of four"):
        Tile(8, 8, 4, 4, 3)
    with pytest.raises(ValueError, match="whole groups of four"):
        Tile(64, 64, 8, 4, 4)  # 128 loads of four for 256 threads


def test_a_missing_driver_is_named() -> None:
    problem = device_presence._missing("libno_such_driver.so.1", cards=True)
    assert "driver is not installed" in problem
    assert "libno_such_driver.so.1" in problem


def test_what_is_missing_here_is_said_in_one_line() -> None:
    for problem in (device_presence.missing_driver(), device_presence.missing_card()):
        assert "\n" not in problem
