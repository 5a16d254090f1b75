"""Dropout of panel rows: random numbers are computed where they are used, forward and backward.

Philox4x32-10 of Salmon, Moraes, Dror & Shaw 2011, SC11; which counter is whose, and what its words
decide, says `reference.dropout`. A word stands in 64 bits whose upper half may hold anything:
products read lower halves alone, so that a round is two products, two shifts and two exclusive ors.
A counter's four words belong to four rows of one feature. In float32 the features of odd lanes are
computed beside those of even lanes, and their words joined at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY, RELU, gate_rest
from fastneuron.kernels.numba_cpu.emit import I64, splat, whole
from fastneuron.kernels.numba_cpu.jit import inner
from fastneuron.kernels.numba_cpu.target import lanes
from fastneuron.kernels.numba_cpu.visits import PARTS, Finish, Rows
from fastneuron.optimizers import KEY_HIGH, KEY_LOW

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
#: Bits of a word.
WORD = 32


class _Generator:
    """Emits words of 32 random bits for the features of one panel."""

    def __init__(self, builder: Any, lanes: int, step: int, layer: Any, keys: Any) -> None:
        self.builder = builder
        self.lanes = lanes
        self._step = step  # from one feature to the next
        self._layer = self.every(layer)
        # What a round adds to its key; overflow goes to the upper half.
        self._keys = [
            [
                self.every(builder.add(key, whole(turn * step)))
                for key, step in zip(keys, KEY_STEPS, strict=True)
            ]
            for turn in range(ROUNDS)
        ]

    def every(self, number: Any) -> Any:
        """Return a vector with an int64 in each lane."""
        return splat(self.builder, number, self.lanes).value

    def constant(self, number: int) -> Any:
        """Return the same of a constant."""
        return ir.Constant(ir.VectorType(I64, self.lanes), [number] * self.lanes)

    def low(self, word: Any) -> Any:
        """Return a word without its upper half."""
        return self.builder.and_(word, self.constant((1 << WORD) - 1))

    def words(self, feature: Any, four: Any) -> list[Any]:
        """Return the words of four rows, for the features from `feature` on."""
        builder = self.builder
        numbers = [lane * self._step for lane in range(self.lanes)]
        places = ir.Constant(ir.VectorType(I64, self.lanes), numbers)
        c0, c1 = builder.add(self.every(feature), places), self.every(four)
        c2, c3 = self._layer, self.constant(0)
        for k0, k1 in self._keys:
            first, second = (
                builder.mul(self.low(word), self.constant(factor))
                for word, factor in zip((c0, c2), MULTIPLIERS, strict=True)
            )
            c0 = builder.xor(builder.xor(self._high(second), c1), k0)
            c2 = builder.xor(builder.xor(self._high(first), c3), k1)
            c1, c3 = second, first
        return [c0, c1, c2, c3]

    def _high(self, product: Any) -> Any:
        return self.builder.lshr(product, self.constant(WORD))


@intrinsic
def drop(
    typingctx: Any,
    arena: Any,
    source: Any,
    target: Any,
    n_rows: Any,
    place: Any,
    dropped: Any,
    scale: Any,
    keys: Any,
    saved: Any,
    is_relu: Any,
    most: Any,
) -> Any:
    """Drop numbers of `n_rows` rows of one panel from `source` to `target`, scale the others.

    `place` is the panel's first feature, the first row's number in the batch over 4, and the layer;
    `scale` where the factor of what is kept stands. Where `is_relu`, the results are gated by the
    outputs at `saved`, and `most` is as in `note_run`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = Rows(context, builder, signature.args[0], args[0])
        source, target, n_rows, place, dropped, scale, keys, saved, is_relu, most = args[1:]
        feature, first_four, layer = cgutils.unpack_tuple(builder, place, 3)
        finish = Finish(rows, is_relu, most)
        single = arena.dtype == types.float32
        step = 2 if single else 1
        generator = _Generator(
            builder, rows.lanes // step, step, layer, cgutils.unpack_tuple(builder, keys, 2)
        )
        factor = splat(builder, rows.memory.load(scale).value, rows.lanes)
        bits = ir.IntType(WORD) if single else I64
        limit = splat(
            builder, builder.trunc(dropped, bits) if single else dropped, rows.lanes
        ).value

        def kept(words: list[Any]) -> Any:
            """Return which lanes are kept, of the words of even and odd lanes, or of all."""
            word = generator.low(words[0])
            if single:
                word = builder.or_(word, builder.shl(words[1], generator.constant(WORD)))
                word = builder.bitcast(word, ir.VectorType(bits, rows.lanes))
            return builder.icmp_unsigned(">=", word, limit)

        fours = builder.udiv(builder.add(n_rows, whole(PARTS - 1)), whole(PARTS))
        with cgutils.for_range(builder, fours, intp=I64) as each:
            four = builder.add(first_four, each.index)
            start = builder.mul(each.index, whole(PARTS))
            of_lanes = [
                generator.words(builder.add(feature, whole(odd)), four) for odd in range(step)
            ]
            for k in range(PARTS):
                r = builder.add(start, whole(k))
                with builder.if_then(builder.icmp_signed("<", r, n_rows), likely=True):
                    mask = kept([words[k] for words in of_lanes])
                    number = rows.load(source, r) * factor.where(mask, 0.0)
                    rows.store(finish.delta(number, saved, r), target, r)
        finish.note()
        return context.get_dummy_value()

    numbers = [types.int64] * 3
    place, keys = types.UniTuple(types.int64, 3), types.UniTuple(types.int64, 2)
    after = [types.int64] * 3
    return types.void(arena, *numbers, place, types.int64, types.int64, keys, *after), codegen


@inner
def dropout_panels(
    arena,
    layer,
    index,
    scalars,
    first_panel,
    end_panel,
    source,
    target,
    stride,
    first,
    n_rows,
    code,
    saved,
    most,
):
    """Drop some numbers of a block of rows, forward or backward.

    Of the panels from `first_panel` up to `end_panel`; `source`, `target` and `saved` are of panel
    0 and the block's first row, whose number in the batch is `first`, a multiple of 4. `code` and
    `most` as in `layer_backward`; forward nothing is gated.
    """
    width = lanes(arena)
    keys = (np.int64(scalars[KEY_LOW]), np.int64(scalars[KEY_HIGH]))
    is_relu, note = np.int64(code == RELU), np.int64(-1)
    if code in (RELU, IDENTITY):
        note = most
    # Where nothing is gated, what is loaded all the same shall be in cache.
    gates = saved if code == RELU else source
    for p in range(first_panel, end_panel):
        here = p * stride
        drop(
            arena,
            source + here,
            target + here,
            n_rows,
            (p * width, first // PARTS, index),
            layer[at.DROPPED],
            layer[at.NUMBERS] + at.KEPT_SCALE,
            keys,
            gates + here,
            is_relu,
            note,
        )
        gate_rest(arena, code, target + here, saved + here, n_rows * width, most)
