"""The blocked layout: packing round trips, disjoint regions, tiles of what is trained."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fastneuron.kernels import columns as at
from fastneuron.kernels.contract import Parameters, Statistics
from fastneuron.kernels.layout import Layout, aligned, from_panels, to_panels
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.spec import NetworkSpec
from fastneuron.testing import draw_parameters, draw_statistics

LANES = 8
SLIM_OUTPUTS = (at.SLIM_PRE, at.SLIM_OUT, at.SLIM_OUT_DELTA)


def network(*sizes: int, activation: str = "relu") -> NetworkSpec:
    layers = [
        Dense(a, b, activation=activation, bias=i % 2 == 0)
        for i, (a, b) in enumerate(pairwise(sizes))
    ]
    return NetworkSpec.chain(layers)


@pytest.mark.parametrize("rows", [1, 7, 8])
@pytest.mark.parametrize("columns", range(1, 2 * LANES + 2))
def test_panels_hold_every_element_once_and_zeros_beside(rows: int, columns: int) -> None:
    want = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)
    blocked = to_panels(want, LANES)
    assert blocked.shape == (-(-columns // LANES), rows, LANES)
    assert np.count_nonzero(blocked) == want.size
    got = from_panels(blocked, columns)
    np.testing.assert_array_equal(got, want)
    assert got.flags.c_contiguous
    assert not np.shares_memory(got, blocked)


def test_parameters_round_trip() -> None:
    spec = network(5, 8, 17, 3)
    layout = Layout.build(spec, LANES, 4, 2)
    rng = np.random.default_rng(0)
    want = [
        (
            rng.standard_normal((layer.in_features, layer.out_features), np.float32),
            rng.standard_normal(layer.out_features, np.float32) if layer.bias else None,
        )
        for layer in spec.layers
    ]
    region = np.full(layout.n_parameters, np.nan, np.float32)
    layout.pack(want, region)
    assert np.isfinite(region).all()  # what fills a last panel up is zero, not what lay there
    for (weight, bias), (got_weight, got_bias) in zip(want, layout.unpack(region), strict=True):
        np.testing.assert_array_equal(got_weight, weight)
        assert (bias is None) == (got_bias is None)
        if bias is not None:
            np.testing.assert_array_equal(got_bias, bias)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("sizes", [(1, 1), (8, 8, 8), (3, 17, 1, 40), (2, 1, 2, 9)])
def test_regions_are_disjoint(sizes: tuple[int, ...], activation: str) -> None:
    spec = network(*sizes, activation=activation)
    layout = Layout.build(spec, LANES, 5, 3)
    head, capacity = layout.head, layout.capacity

    def padded(columns: int) -> int:
        return -(-columns // LANES) * LANES

    regions = [
        (head[at.ZEROS], LANES),
        (head[at.PARAMETERS], layout.n_parameters),
        (head[at.MOMENT_1], layout.n_parameters),
        (head[at.MOMENT_2], layout.n_parameters),
        (head[at.GRADIENT], layout.n_parameters),
        (head[at.TILE_SQUARES], head[at.N_TILES]),
        (head[at.ROW_LOSS], capacity),
        (head[at.SCRATCH], 3 * at.scratch_size(LANES)),
        (head[at.MAXIMA], 3 * at.maxima(len(sizes) - 1) * LANES),
        (layout.layers[0, at.IN_ROWS], padded(sizes[0]) * capacity),
        (layout.layers[0, at.IN_DELTA], padded(sizes[0]) * capacity),
    ]
    widest = max(map(padded, sizes)) * int(head[at.INFER_ROWS])
    regions += [(layout.layers[0, column], widest) for column in (at.INFER_IN, at.INFER_OUT)]
    for row in layout.layers:
        regions.append((row[at.TRANSPOSED], padded(row[at.INPUTS]) * row[at.OUTPUTS]))
        places = {int(row[column]) for column in (at.OUT_ROWS, at.PRE_ROWS, at.OUT_DELTA)}
        regions += [(place, padded(row[at.OUTPUTS]) * capacity) for place in places]
        if row[at.SLIM]:
            inputs, outputs = row[at.INPUTS], row[at.OUTPUTS]
            columns = {int(row[column]): outputs for column in SLIM_OUTPUTS}
            columns |= {int(row[column]): inputs for column in (at.SLIM_IN, at.SLIM_IN_DELTA)}
            regions += [(each, size * head[at.SLIM_STRIDE]) for each, size in columns.items()]
    regions = sorted(set(regions))
    for (start, size), (following, _size) in pairwise(regions):
        assert start + size <= following
    assert regions[-1][0] + regions[-1][1] <= layout.size
    saves_z = activation == "gelu"
    assert ((layout.layers[:, at.PRE_ROWS] != layout.layers[:, at.OUT_ROWS]) == saves_z).all()


@pytest.mark.parametrize("rows", [4, 1 << 12, 1 << 15])
def test_tiles_visit_every_parameter_once(rows: int) -> None:
    spec = network(5, 100, 1, 70)
    layout = Layout.build(spec, LANES, rows, 1)
    visits = np.zeros(layout.n_parameters, int)
    for tile in layout.tiles:
        first = tile[at.TILE_WEIGHT]
        visits[first : first + tile[at.TILE_INPUTS] * LANES] += 1
        if tile[at.TILE_BIAS] >= 0:
            visits[tile[at.TILE_BIAS] : tile[at.TILE_BIAS] + LANES] += 1
    assert (visits == 1).all()
    assert len(layout.tiles) == layout.head[at.N_TILES]
    assert (np.diff(layout.tiles[:, at.TILE_LAYER]) >= 0).all()


#: Every kind of layer, and every choice of what is trained.
KINDS = (
    BatchNorm(13, activation="gelu"), Dense(13, 20, "tanh"), LayerNorm(trainable="bias"),
    Dropout(), Dense(20, 9, bias=True, trainable="bias"), BatchNorm(bias=False, trainable="weight"),
    BatchNorm(trainable=False), Dense(9, 17, trainable=False), LayerNorm(bias=False),
    Dense(17, 5, trainable="weight"), LayerNorm(trainable=False), Dropout(0.25),
    Dense(5, 8, bias=False),
)  # fmt: skip


def drawn(spec: NetworkSpec) -> tuple[Parameters, Statistics]:
    rng = np.random.default_rng(0)
    return draw_parameters(spec, rng), draw_statistics(spec, rng)


def test_every_kind_round_trips() -> None:
    spec = NetworkSpec.chain(KINDS)
    layout = Layout.build(spec, LANES, 5, 1)
    parameters, statistics = drawn(spec)
    arena = np.full(layout.size, np.nan, np.float32)
    start = int(layout.head[at.PARAMETERS])
    region = arena[start : start + layout.n_parameters]
    layout.pack(parameters, region)
    layout.pack_statistics(statistics, arena)
    assert np.isfinite(region).all()
    for pair, want in zip(layout.unpack(region), parameters, strict=True):
        for one, other in zip(pair, want, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_array_equal(one, other)
                assert one.shape == other.shape
    for moved, kept in zip(layout.unpack_statistics(arena), statistics, strict=True):
        assert (moved is None) == (kept is None)
        for one, other in zip(moved or (), kept or (), strict=True):
            np.testing.assert_array_equal(one, other)
    written = np.flatnonzero(np.isfinite(arena))
    assert written.max() < layout.persistent  # statistics outlive a growth of the capacity


def test_gradients_of_what_is_not_trained_are_zero() -> None:
    spec = NetworkSpec.chain(KINDS)
    layout = Layout.build(spec, LANES, 5, 1)
    arena = np.full(layout.size, 7, np.float32)  # what lies there is never looked at
    for layer, (weight, bias) in zip(spec.layers, layout.unpack_gradient(arena), strict=True):
        np.testing.assert_array_equal(weight, 7 if layer.trains_weight else 0)
        if bias is not None:
            np.testing.assert_array_equal(bias, 7 if layer.trains_bias else 0)


@pytest.mark.parametrize("rows", [4, 1 << 12])
def test_tiles_visit_what_is_trained_once(rows: int) -> None:
    spec = NetworkSpec.chain(KINDS)
    layout = Layout.build(spec, LANES, rows, 1)
    visits = np.zeros(layout.n_parameters, int)
    for tile in layout.tiles:
        first = tile[at.TILE_WEIGHT]
        visits[first : first + tile[at.TILE_INPUTS] * LANES] += 1
        if tile[at.TILE_BIAS] >= 0:
            visits[tile[at.TILE_BIAS] : tile[at.TILE_BIAS] + LANES] += 1
    want = np.zeros_like(visits)
    for row, layer in zip(layout.layers, spec.layers, strict=True):
        width = -(-layer.out_features // LANES) * LANES
        inputs = layer.in_features if isinstance(layer, Dense) else 1
        want[row[at.WEIGHT] : row[at.WEIGHT] + inputs * width] = layer.trains_weight
        if layer.bias:
            want[row[at.BIAS] : row[at.BIAS] + width] = layer.trains_bias
    np.testing.assert_array_equal(visits, want)
    kinds = {int(kind) for kind in layout.tiles[:, at.TILE_KIND]}
    assert kinds == {at.DENSE, at.BATCH_NORM, at.LAYER_NORM, at.BIAS_ALONE}
    assert (np.diff(layout.tiles[:, at.TILE_LAYER]) >= 0).all()


def test_regions_of_every_kind_are_disjoint() -> None:
    """Deltas replace one another only where a layer works in place."""
    spec = NetworkSpec.chain(KINDS)
    layout = Layout.build(spec, LANES, 5, 3)
    head, capacity = layout.head, int(layout.head[at.CAPACITY])

    def padded(columns: int) -> int:
        return -(-columns // LANES) * LANES

    regions = [
        (int(head[place]), layout.n_parameters)
        for place in (at.PARAMETERS, at.MOMENT_1, at.MOMENT_2, at.GRADIENT)
    ]
    regions += [(int(head[at.ZEROS]), LANES), (int(head[at.TILE_SQUARES]), len(layout.tiles))]
    first = layout.layers[0]
    regions.append((int(first[at.IN_ROWS]), padded(int(first[at.INPUTS])) * capacity))
    for row, layer in zip(layout.layers, spec.layers, strict=True):
        inputs, outputs = int(row[at.INPUTS]), int(row[at.OUTPUTS])
        kind, width = row[at.KIND], padded(outputs)
        if kind == at.DENSE:
            regions.append((int(row[at.TRANSPOSED]), padded(inputs) * outputs))
        else:
            regions.append((int(row[at.NUMBERS]), LANES))
        if layer.has_statistics:
            regions.append((int(row[at.RUNNING]), 2 * width))
        if kind == at.BATCH_NORM:
            regions.append((int(row[at.KEPT]), 5 * width))
        if kind == at.LAYER_NORM:
            regions.append((int(row[at.KEPT]), 2 * capacity))
        places = {int(row[column]) for column in (at.OUT_ROWS, at.PRE_ROWS, at.OUT_DELTA)}
        regions += [(place, width * capacity) for place in places]
        regions.append((int(row[at.IN_DELTA]), padded(inputs) * capacity))
        in_place = kind in (at.BATCH_NORM, at.DROPOUT, at.FROZEN_NORM)
        assert (row[at.IN_DELTA] == row[at.OUT_DELTA]) == in_place
        assert (row[at.INFER_IN] == row[at.INFER_OUT]) == (kind != at.DENSE)
    ordered = sorted(set(regions))
    for (start, size), (following, _size) in pairwise(ordered):
        assert start + size <= following
    assert ordered[-1][0] + ordered[-1][1] <= layout.size
    assert not layout.layers[:, at.SLIM].any()


def test_deltas_go_back_to_the_first_that_learns() -> None:
    frozen, norm = Dense(4, 4, trainable=False), BatchNorm(4)
    for layers, want in [
        ([Dense(4, 4), Dense(4, 4)], 1), ([frozen, Dense(4, 4)], 2), ([norm, Dense(4, 4)], 0),
        ([frozen, norm, frozen], 1), ([LayerNorm(4), frozen], 1), ([Dropout(0.5, 4), norm], 1),
        ([frozen, frozen], 2), ([frozen, BatchNorm(4, trainable=False), Dense(4, 4)], 3),
        ([Dense(4, 4, trainable="bias"), frozen], 1),
    ]:  # fmt: skip
        spec = NetworkSpec.chain(layers)
        assert Layout.build(spec, LANES, 4, 1).head[at.BACK_TO] == want, layers


def test_tiles_stay_in_a_band_of_output_panels() -> None:
    rows = 2048  # of a panel of 8 float32 columns: 64 KiB, so a band has 3, the last 2
    layout = Layout.build(network(80, 64), LANES, rows, 1)
    stride = int(layout.head[at.CAPACITY]) * LANES
    layer = layout.layers[0]
    p = (layout.tiles[:, at.TILE_A] - layer[at.IN_ROWS]) // stride
    q = (layout.tiles[:, at.TILE_B] - layer[at.OUT_DELTA]) // stride
    want = [(j, i) for band in ((0, 1, 2), (3, 4, 5), (6, 7)) for i in range(10) for j in band]
    assert list(zip(q.tolist(), p.tolist(), strict=True)) == want
    source = layer[at.WEIGHT] + (q * 80 + p * LANES) * LANES
    np.testing.assert_array_equal(layout.tiles[:, at.TILE_WEIGHT], source)
    target = layer[at.TRANSPOSED] + (p * 64 + q * LANES) * LANES
    np.testing.assert_array_equal(layout.tiles[:, at.TILE_TRANSPOSED], target)


@pytest.mark.parametrize("rows", [4, 2048, 1 << 15])
def test_tiles_of_an_input_panel_share_the_asking_for_the_next(rows: int) -> None:
    tiles = Layout.build(network(80, 64, 1, 70), LANES, rows, 1).tiles
    place, share, shares = (
        tiles[:, column] for column in (at.TILE_NEXT_A, at.TILE_SHARE, at.TILE_SHARES)
    )
    first = 0
    while first < len(tiles):
        end = first + int(shares[first])
        assert len(set(tiles[first:end, at.TILE_A].tolist())) == 1
        np.testing.assert_array_equal(share[first:end], np.arange(end - first))
        np.testing.assert_array_equal(shares[first:end], end - first)
        want = tiles[end % len(tiles), at.TILE_A]
        np.testing.assert_array_equal(place[first:end], want)
        assert want != tiles[first, at.TILE_A]
        first = end


@pytest.mark.parametrize("rows", [1, 8, 9, 512, 1000])
def test_panels_of_rows_stand_no_power_of_two_apart(rows: int) -> None:
    layout = Layout.build(network(5, 5), LANES, rows, 1)
    capacity = int(layout.head[at.CAPACITY])
    assert rows <= capacity < rows + 16
    assert capacity // 8 % 2 == 1


def test_deltas_replace_only_outputs_that_nothing_reads_after_the_loss() -> None:
    for activation in ("identity", "relu", "tanh", "gelu"):
        table = Layout.build(network(3, 5, 4, activation=activation), LANES, 5, 1).layers
        got = (table[:, at.OUT_DELTA] == table[:, at.OUT_ROWS]).tolist()
        assert got == [False, activation == "identity"], activation


def test_arena_is_aligned() -> None:
    for elements in (1, 1000):
        arena = aligned(elements, "float32")
        assert arena.shape == (elements,)
        assert arena.ctypes.data % 4096 == 0
