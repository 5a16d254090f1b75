"""Where everything lies on a device and how work is cut there: a function of shapes alone.

Plain Python, shared by the CUDA backends: both keep parameters, gradients and moments in flat
vectors of one layout, cut products into the same tiles and sum columns over the same row groups.
Since nothing here asks what the card is, the order of every sum is the same on all of them.

B batch rows, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fastneuron.activations import ACTIVATIONS
from fastneuron.layers import Dense, Layer
from fastneuron.spec import NetworkSpec

__all__ = [
    "ALIGNMENT",
    "DECAYS",
    "TRAINS",
    "Blocks",
    "Part",
    "Tile",
    "blocks_of",
    "flat_parts",
    "flat_size",
    "kept_numbers",
    "marks_of",
    "most_slices",
    "row_groups",
    "saves_z",
    "slices_of",
    "tile_of",
    "widest",
]

#: Numbers that the start of every array in a flat vector is a multiple of: 64 bytes in float32, so
#: that a block's reads start at a sector and 16-byte loads are aligned.
ALIGNMENT = 16

#: Bits of the mark of 16 numbers of a flat vector: steps change them; weight decay always does.
TRAINS, DECAYS = 1, 2

# Blocks that a weight gradient's batch is cut for: two a multiprocessor of the largest cards (132
# to 148). Cards are not asked, for then the order of the sum would be theirs.
_GRADIENT_BLOCKS = 288
# Rows of a slice, at least: below that its partial sums move more numbers than they save.
_SLICE_ROWS = 256


@dataclass(frozen=True)
class Part:
    """One array of parameters in a flat vector.

    Attributes
    ----------
    layer : int
    name : {"weight", "bias"}
    offset, shape
        Its first number, a multiple of `ALIGNMENT`; its numbers lie row-major.
    trains, decays : bool
        Whether steps change it; whether weight decay always does (a dense layer's weight), where
        the rest decays by the optimizer's `decay_bias` alone.
    """

    layer: int
    name: str
    offset: int
    shape: tuple[int, ...]
    trains: bool
    decays: bool

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """One past its last number."""
        return self.offset + self.size


@dataclass(frozen=True)
class Tile:
    """How a block of threads cuts a product: its tile of the result, and a thread's part of it.

    Attributes
    ----------
    rows, columns : int
        Of the result, a block.
    depth : int
        Terms of the sums that are in shared memory at a time.
    thread_rows, thread_columns : int
        Of the result, a thread; it holds them in registers, in groups of four neighbours.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    def __post_init__(self) -> None:
        fours = (self.thread_rows, self.thread_columns, self.depth)
        whole = self.rows % self.thread_rows == 0 and self.columns % self.thread_columns == 0
        loads = (self.rows * self.depth // 4, self.columns * self.depth // 4)
        if not whole or any(n % 4 for n in fours) or any(n % self.threads for n in loads):
            raise ValueError(f"{self}: threads must cover tile and loads in whole groups of four")

    @property
    def threads_down(self) -> int:
        """Threads along the rows."""
        return self.rows // self.thread_rows

    @property
    def threads_across(self) -> int:
        """Threads along the columns."""
        return self.columns // self.thread_columns

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.threads_down * self.threads_across


@dataclass(frozen=True)
class Blocks:
    """How blocks of threads cut everything that is no product.

    Attributes
    ----------
    lanes, rows : int
        Of a block: `lanes` threads, a power of two, share a row of the batch.
    across, down, group : int
        `across` columns, each shared by `down` threads, are summed over `group` rows a block.
    threads : int
        Of a block where each takes one number; a power of two.
    chunk : int
        Numbers of a flat vector that one block sums the squares of.
    """

    lanes: int = 32
    rows: int = 8
    across: int = 32
    down: int = 8
    group: int = 128
    threads: int = 256
    chunk: int = 4096


_TILES = {"float32": Tile(128, 128, 8, 8, 8), "float64": Tile(64, 64, 16, 4, 4)}


def tile_of(dtype: str) -> Tile:
    """Return the tile of products in that dtype.

    64 sums a thread in float32 (Volkov & Demmel 2008, SC08: a thread's own tile spares shared
    memory's bandwidth), 16 in float64, whose numbers take two registers.
    """
    return _TILES[dtype]


def blocks_of(count: int, tile: int) -> int:
    """Return how many tiles cover `count`."""
    return -(-count // tile)


def flat_parts(spec: NetworkSpec) -> list[Part]:
    """Return the arrays of parameters in their order: weight, bias, weight, bias, ...

    A layer without a weight or bias has no part of it.
    """
    parts: list[Part] = []
    offset = 0
    for index, layer in enumerate(spec.layers):
        arrays = [("weight", layer.weight_shape, layer.trains_weight)] if layer.n_weights else []
        if layer.bias:
            arrays.append(("bias", (layer.out_features,), layer.trains_bias))
        for name, shape, trains in arrays:
            decays = name == "weight" and isinstance(layer, Dense)
            parts.append(Part(index, name, offset, shape, trains, decays))
            offset += blocks_of(prod(shape), ALIGNMENT) * ALIGNMENT
    return parts


def flat_size(spec: NetworkSpec) -> int:
    """Return the numbers of a flat vector, the gaps between its arrays included."""
    parts = flat_parts(spec)
    return blocks_of(parts[-1].end, ALIGNMENT) * ALIGNMENT if parts else 0


def marks_of(spec: NetworkSpec, decay_bias: bool) -> bytes:
    """Return a mark (`TRAINS`, `DECAYS`) for every 16 numbers of a flat vector.

    No group of 16 has numbers of two arrays. The marks of what is not trained are 0.
    """
    marks = bytearray(flat_size(spec) // ALIGNMENT)
    for part in flat_parts(spec):
        if part.trains:
            mark = TRAINS | (DECAYS if part.decays or decay_bias else 0)
            first, last = part.offset // ALIGNMENT, blocks_of(part.end, ALIGNMENT)
            marks[first:last] = bytes([mark]) * (last - first)
    return bytes(marks)


def row_groups(rows: int, group: int) -> int:
    """Return the groups of `group` rows over which columns are summed first.

    The second stage sums the groups one after the other.
    """
    return blocks_of(rows, group)


def slices_of(rows: int, inputs: int, outputs: int, tile: Tile) -> tuple[int, int]:
    """Return how many slices a weight gradient's batch is cut into, and the rows of one.

    Rows of a slice are a multiple of the tile's depth; the last slice may have fewer, but some.
    """
    most = most_slices(rows, inputs, outputs, tile)
    each = blocks_of(blocks_of(rows, most), tile.depth) * tile.depth
    return blocks_of(rows, each), each


def most_slices(rows: int, inputs: int, outputs: int, tile: Tile) -> int:
    """Return the slices that a batch of up to `rows` rows has at most."""
    blocks = blocks_of(inputs, tile.rows) * blocks_of(outputs, tile.columns)
    return max(1, min(_GRADIENT_BLOCKS // blocks, rows // _SLICE_ROWS))


def saves_z(layer: Layer) -> bool:
    """Return whether the backward pass needs the layer's z, and not its output."""
    return ACTIVATIONS[layer.activation].saves == "z"


def widest(spec: NetworkSpec) -> int:
    """Return the numbers of the longest row that a layer takes or gives."""
    return max(spec.sizes)


def kept_numbers(spec: NetworkSpec, rows: int) -> int:
    """Return the numbers of a batch that a training step keeps: inputs, outputs, and z by need."""
    layers = sum(layer.out_features * (1 + saves_z(layer)) for layer in spec.layers)
    return rows * (spec.in_features + layers)
