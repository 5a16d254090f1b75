"""The table of tiles: what the phase of weight gradients and updates visits, and in which order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastneuron.kernels import columns as at
from fastneuron.layers import BatchNorm, Dense, Dropout, Layer, LayerNorm

__all__ = ["kind_of", "tile_table"]


def kind_of(layer: Layer) -> int:
    """Return the layer's kind in the tables."""
    if isinstance(layer, BatchNorm):
        return at.BATCH_NORM if layer.uses_batch else at.FROZEN_NORM
    kinds = {Dense: at.DENSE, LayerNorm: at.LAYER_NORM, Dropout: at.DROPOUT}
    return kinds[type(layer)]


def tile_table(
    layers: tuple[Layer, ...], table: NDArray[np.int64], lanes: int, stride: int, itemsize: int
) -> NDArray[np.int64]:
    """Return the table of what phase B visits, and note each layer's first entry in `table`.

    Panels of rows are `stride` elements apart. Neighbours share the input panel, and stay in a
    band of output panels whose deltas stay in L2 while the parameters stream by.
    """
    tables = [np.empty((0, at.TILE_COLUMNS), np.int64)]
    count = 0
    for index, (row, layer) in enumerate(zip(table, layers, strict=True)):
        row[at.FIRST_TILE] = count
        if not (layer.trains_weight or layer.trains_bias):
            continue
        inputs, outputs = int(row[at.INPUTS]), int(row[at.OUTPUTS])
        q: NDArray[np.int64] = np.arange(at.panels(outputs, lanes))
        p = np.zeros_like(q)
        kind = int(row[at.KIND])
        if kind == at.DENSE and layer.trains_weight:
            band = max(1, at.BAND_BYTES // (stride * itemsize))
            if at.panels(inputs, lanes) * stride * itemsize <= at.INPUT_BYTES:
                band = 1
            q, p = np.meshgrid(q, np.arange(at.panels(inputs, lanes)))
            order = np.lexsort((q.ravel(), p.ravel(), q.ravel() // band))
            q, p = q.ravel()[order], p.ravel()[order]
        elif kind == at.DENSE:
            kind = at.BIAS_ALONE
        tiles = np.zeros((len(q), at.TILE_COLUMNS), np.int64)
        tiles[:, at.TILE_LAYER], tiles[:, at.TILE_KIND] = index, kind
        tiles[:, at.TILE_NUMBER] = count + p * at.panels(outputs, lanes) + q
        tiles[:, at.TILE_OUTPUTS] = np.minimum(lanes, outputs - q * lanes)
        has_bias = (p == 0) & layer.trains_bias
        tiles[:, at.TILE_BIAS] = np.where(has_bias, row[at.BIAS] + q * lanes, -1)
        tiles[:, at.TILE_A] = row[at.IN_ROWS] + p * stride
        tiles[:, at.TILE_B] = row[at.OUT_DELTA] + q * stride
        if kind == at.DENSE:
            tiles[:, at.TILE_INPUTS] = np.minimum(lanes, inputs - p * lanes)
            tiles[:, at.TILE_WEIGHT] = row[at.WEIGHT] + (q * inputs + p * lanes) * lanes
            tiles[:, at.TILE_TRANSPOSED] = row[at.TRANSPOSED] + (p * outputs + q * lanes) * lanes
        else:
            tiles[:, at.TILE_INPUTS] = layer.trains_weight  # one row of weights
            tiles[:, at.TILE_WEIGHT] = row[at.WEIGHT] + q * lanes
        if kind in (at.BATCH_NORM, at.LAYER_NORM):
            tiles[:, at.TILE_A] = row[at.IN_ROWS] + q * stride
        tables.append(tiles)
        count += len(tiles)
    tiles = np.concatenate(tables)
    turns = np.flatnonzero(np.diff(tiles[:, at.TILE_A], prepend=-1))
    ends = np.append(turns[1:], len(tiles))
    for start, end in zip(turns, ends, strict=False):
        tiles[start:end, at.TILE_NEXT_A] = tiles[end % len(tiles), at.TILE_A]
        tiles[start:end, at.TILE_SHARE] = np.arange(end - start)
        tiles[start:end, at.TILE_SHARES] = end - start
    return tiles
