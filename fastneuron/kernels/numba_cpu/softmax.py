"""Softmax and cross-entropy: of rows side by side up to one panel of classes, else row by row.

A row of ten classes fills a third of a vector register and its sums are chains of dependent adds,
so rows are turned into lanes: one register holds one class of as many rows as it has lanes. Lanes
never meet: the bits of a row do not depend on which rows share a register.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels.numba_cpu.emit import (
    I64,
    Memory,
    Number,
    Variable,
    below,
    splat,
    whole,
)
from fastneuron.kernels.numba_cpu.exponentials import emit_exp, emit_log
from fastneuron.kernels.numba_cpu.target import ir_lanes
from fastneuron.kernels.numba_cpu.transpose import transposed


class _Group:
    """Emits the work on one register of rows."""

    def __init__(self, builder: Any, arena: Memory, scratch: Any, classes: Any, pitch: int) -> None:
        self.builder = builder
        self.arena = arena
        self.pitch = pitch
        self.lanes = pitch // 2
        self.logits = scratch  # [class][row], turned into exponentials and then into deltas
        self.targets = builder.add(scratch, whole(pitch * self.lanes))  # [class][row]
        self.classes = classes
        self.registers = builder.udiv(
            builder.add(classes, whole(self.lanes - 1)), whole(self.lanes)
        )
        self.vector = ir.VectorType(arena.real, self.lanes)
        self.zeros = Number(builder, ir.Constant(self.vector, [0.0] * self.lanes))

    def every(self, count: Any, start: int = 0) -> Any:
        return cgutils.for_range_slice(self.builder, whole(start), count, whole(1), intp=I64)

    def of_class(self, base: Any, j: Any) -> Any:
        return self.builder.add(base, self.builder.mul(j, whole(self.lanes)))

    def to_lanes(self, row: Any, base: Any) -> None:
        """Turn rows into lanes; `row(r, first, mask)` is the part of row r from `first` on."""
        builder = self.builder
        with self.every(self.registers) as (half, _):
            first = builder.mul(half, whole(self.lanes))
            mask = below(builder, builder.sub(self.classes, first), self.lanes)
            rows = [row(r, first, mask).value for r in range(self.lanes)]
            for j, column in enumerate(transposed(builder, rows)):
                at = builder.add(base, whole(j * self.lanes))
                at = builder.add(at, builder.mul(first, whole(self.lanes)))
                self.arena.store(Number(builder, column), at)

    def from_lanes(self, place: Any) -> None:
        """Turn lanes into whole panel rows at `place(r)`, with zeros after the last class."""
        builder = self.builder
        filled = builder.mul(self.registers, whole(self.lanes))
        with cgutils.for_range_slice(builder, self.classes, filled, whole(1), intp=I64) as (j, _):
            self.arena.store(self.zeros, self.of_class(self.logits, j))
        with self.every(self.registers) as (half, _):
            first = builder.mul(half, whole(self.lanes))
            start = self.of_class(self.logits, first)
            columns = [
                self.arena.load(builder.add(start, whole(j * self.lanes)), self.lanes).value
                for j in range(self.lanes)
            ]
            for r, row in enumerate(transposed(builder, columns)):
                self.arena.store(Number(builder, row), builder.add(place(r), first))
        with builder.if_then(builder.icmp_signed("<", self.registers, whole(2))):
            for r in range(self.lanes):
                self.arena.store(self.zeros, builder.add(place(r), whole(self.lanes)))

    def largest(self) -> Number:
        """Return each row's largest logit; a NaN is left to the sums that follow."""
        most = Variable(self.arena.load(self.logits, self.lanes))
        with self.every(self.classes, 1) as (j, _):
            o, best = self.arena.load(self.of_class(self.logits, j), self.lanes), most.get()
            most.set(o.where(o > best, best))
        return most.get()

    def exponentials(self, note: Any) -> Number:
        """Turn logits into exp(o - best) and return their sums; note(j, o - best) looks on."""
        best, total = self.largest(), Variable(self.zeros)
        with self.every(self.classes) as (j, _):
            at = self.of_class(self.logits, j)
            shifted = self.arena.load(at, self.lanes) - best
            note(j, shifted)
            power = emit_exp(shifted)
            total.set(total.get() + power)
            self.arena.store(power, at)
        return total.get()

    def deltas(self, share: Number, target: Any) -> None:
        """Turn exponentials into share * e - target(j)."""
        with self.every(self.classes) as (j, _):
            at = self.of_class(self.logits, j)
            self.arena.store(self.arena.load(at, self.lanes) * share - target(j), at)

    def with_labels(self, labels: Any, scale: Number) -> Number:
        """Write the deltas where the targets are class numbers; return the row losses."""
        builder, picked = self.builder, Variable(self.zeros)

        def hit(j: Any) -> Any:
            short = builder.trunc(j, labels.type.element) if scale.single else j
            nothing = ir.Constant(labels.type, ir.Undefined)
            one = builder.insert_element(nothing, short, whole(0))
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
            number = builder.shuffle_vector(one, nothing, everywhere)
            return builder.icmp_signed("==", labels, number)

        def note(j: Any, shifted: Number) -> None:
            picked.set(shifted.where(hit(j), picked.get()))

        total = self.exponentials(note)
        self.deltas(scale / total, lambda j: scale.where(hit(j), 0.0))
        return scale * (emit_log(total) - picked.get())

    def with_probabilities(self, scale: Number) -> Number:
        """Write the deltas where the targets are probabilities; return the row losses."""
        mass, mean = Variable(self.zeros), Variable(self.zeros)

        def target(j: Any) -> Number:
            return self.arena.load(self.of_class(self.targets, j), self.lanes)

        def note(j: Any, shifted: Number) -> None:
            mass.set(mass.get() + target(j))
            mean.set(mean.get() + target(j) * shifted)

        total = self.exponentials(note)
        self.deltas(scale * mass.get() / total, lambda j: scale * target(j))
        return scale * (mass.get() * emit_log(total) - mean.get())


@intrinsic
def softmax_group(
    typingctx: Any,
    arena: Any,
    out: Any,
    delta: Any,
    scratch: Any,
    classes: Any,
    labels: Any,
    targets: Any,
    weight: Any,
    samples: Any,
    losses: Any,
    share: Any,
) -> Any:
    """Cross-entropy of up to one register of rows: row losses and dL/d(logits), weighted.

    `samples` are the rows' numbers in the data, `losses` is where the row losses go, and `share` is
    what a row of weight 1 counts. `scratch` has room for a square tile and one register. Lanes
    without a row of their own repeat the last one's work, so that nothing else is read or written.
    """
    pitch = ir_lanes(arena.dtype)
    lanes = pitch // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arena_at = Memory(context, builder, arena, args[0])
        group = _Group(builder, arena_at, args[3], args[4], pitch)
        weights = Memory(context, builder, weight, args[7])
        probabilities = Memory(context, builder, targets, args[6])
        numbers = context.make_array(labels)(context, builder, args[5])
        which = context.make_array(samples)(context, builder, args[8])
        n_rows = which.nitems
        last = builder.sub(n_rows, whole(1))
        held = []
        for r in range(lanes):
            there = builder.icmp_signed("<", whole(r), last)
            held.append(builder.select(there, whole(r), last))
        rows = [builder.load(builder.gep(which.data, [r])) for r in held]
        offsets = [builder.mul(r, whole(pitch)) for r in held]

        def vector(kind: Any, values: Any) -> Any:
            result = ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)
            for r, value in enumerate(values):
                result = builder.insert_element(result, value, whole(r))
            return result

        scale = Variable(splat(builder, args[10], lanes))
        with builder.if_then(builder.icmp_signed(">", weights.size, whole(0))):
            each = vector(arena_at.real, [weights.load(r).value for r in rows])
            scale.set(scale.get() * Number(builder, each))

        def logits(r: int, first: Any, mask: Any) -> Number:
            return arena_at.load(builder.add(builder.add(args[1], offsets[r]), first), lanes)

        def wanted(r: int, first: Any, mask: Any) -> Number:
            at = builder.add(builder.mul(rows[r], args[4]), first)
            return probabilities.load_some(at, mask)

        group.to_lanes(logits, group.logits)
        losses_now = Variable(group.zeros)
        dense = builder.icmp_signed(">", probabilities.size, whole(0))
        with builder.if_else(dense) as (with_probabilities, with_labels):
            with with_probabilities:
                group.to_lanes(wanted, group.targets)
                losses_now.set(group.with_probabilities(scale.get()))
            with with_labels:
                kind = ir.IntType(32 if scale.get().single else 64)
                loaded = [builder.load(builder.gep(numbers.data, [r])) for r in rows]
                if kind.width < 64:
                    loaded = [builder.trunc(label, kind) for label in loaded]
                losses_now.set(group.with_labels(vector(kind, loaded), scale.get()))
        group.from_lanes(lambda r: builder.add(args[2], offsets[r]))
        found = losses_now.get()
        for r in range(lanes):
            one = Number(builder, builder.extract_element(found.value, whole(r)))
            arena_at.store(one, builder.add(args[9], held[r]))
        return context.get_dummy_value()

    integers = [types.int64] * 4
    arrays = (labels, targets, weight, samples)
    return types.void(arena, *integers, *arrays, types.int64, arena.dtype), codegen


@intrinsic
def cross_entropy_row(
    typingctx: Any,
    arena: Any,
    out: Any,
    delta: Any,
    stride: Any,
    classes: Any,
    label: Any,
    target: Any,
    dense: Any,
    scale: Any,
) -> Any:
    """Softmax and cross-entropy of one row of any length; returns scale * loss.

    The target is class `label`, or where `dense` the run `target` of class probabilities. The row
    stands in panels `stride` apart; scale * dL/d(logits) is written to those at `delta`, with zeros
    up to the end of the last. Sums go over registers, and then over lanes in halves.
    """
    pitch = ir_lanes(arena.dtype)
    lanes = pitch // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        wanted = Memory(context, builder, target, args[6])
        out_at, delta_at, panel, count, chosen = args[1:6]
        factor = Number(builder, args[8])
        factors = splat(builder, factor.value, lanes)
        zeros = factors.constant(0.0)
        whole_panels = builder.and_(builder.add(count, whole(pitch - 1)), whole(-pitch))

        def place(first: Any) -> Any:
            row = builder.mul(builder.udiv(first, whole(pitch)), panel)
            return builder.add(row, builder.and_(first, whole(pitch - 1)))

        def registers(end: Any) -> Any:
            return cgutils.for_range_slice(builder, whole(0), end, whole(lanes), intp=I64)

        def some(first: Any) -> Any:
            return below(builder, builder.sub(count, first), lanes)

        most = Variable(zeros.constant(-math.inf))
        with registers(count) as (at, _):
            o = memory.load(builder.add(out_at, place(at)), lanes)
            o, best = o.where(some(at), -math.inf), most.get()
            most.set(o.where(o > best, best))  # a NaN is left to the sums that follow
        best = splat(builder, most.get().largest_lane().value, lanes)
        logit = memory.load(builder.add(out_at, place(chosen)))  # deltas may go where logits stand
        total, mass, mean = Variable(zeros), Variable(zeros), Variable(zeros)
        with registers(count) as (at, _):
            here = place(at)
            shifted = memory.load(builder.add(out_at, here), lanes) - best
            power = emit_exp(shifted).where(some(at), 0.0)
            memory.store(power, builder.add(delta_at, here))
            total.set(total.get() + power)
            with builder.if_then(args[7]):
                t = wanted.load_some(at, some(at))
                mass.set(mass.get() + t)
                mean.set(mean.get() + (t * shifted).where(some(at), 0.0))
        whole_total = total.get().tree_sum()
        log_total = emit_log(whole_total)
        share, loss = Variable(factor), Variable(factor)
        with builder.if_else(args[7]) as (with_probabilities, with_label):
            with with_probabilities:
                whole_mass = mass.get().tree_sum()
                share.set(factor * whole_mass / whole_total)
                loss.set(factor * (whole_mass * log_total - mean.get().tree_sum()))
            with with_label:
                share.set(factor / whole_total)
                first = Number(builder, builder.extract_element(best.value, whole(0)))
                loss.set(factor * (log_total - (logit - first)))
        shares = splat(builder, share.get().value, lanes)
        with registers(whole_panels) as (at, _):
            here = builder.add(delta_at, place(at))
            with builder.if_else(builder.icmp_signed("<", at, count)) as (used, unused):
                with used:
                    d = (memory.load(here, lanes) * shares).where(some(at), 0.0)
                    with builder.if_else(args[7]) as (with_probabilities, with_label):
                        with with_probabilities:
                            t = wanted.load_some(at, some(at))
                            memory.store(d - factors * t, here)
                        with with_label:
                            memory.store(d, here)
                with unused:
                    memory.store(zeros, here)
        with builder.if_then(builder.not_(args[7])):
            here = builder.add(delta_at, place(chosen))
            memory.store(memory.load(here) - factor, here)
        return loss.get().value

    integers = [types.int64] * 5
    return arena.dtype(arena, *integers, target, types.boolean, arena.dtype), codegen
