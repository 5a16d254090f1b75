"""Layers of a few columns for many rows: batch rows are the lanes of a register.

A panel row of one column is 31 lanes of nothing, computed, activated, stored and read again. Here
the rows of a block stand side by side, ``[column][row]``, and weights are broadcast. Each element's
sum goes over k in ascending order, one fused multiply-add each: the bits of `tile.product`. Only
the weight gradient has an order of its own: `PARTS` registers of partial sums over the batch.

Blocks are whole multiples of `SLIM_ROWS` rows here; rows after the batch's last have zeros for
inputs and for deltas, and count for nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastneuron.kernels import columns as at
from fastneuron.kernels.numba_cpu.elementwise import IDENTITY, activate, gate
from fastneuron.kernels.numba_cpu.emit import I64, Memory, Number, Variable, below, splat, whole
from fastneuron.kernels.numba_cpu.jit import glue, inner
from fastneuron.kernels.numba_cpu.losses import FORMULAS
from fastneuron.kernels.numba_cpu.panels import note_run
from fastneuron.kernels.numba_cpu.target import ir_lanes, lanes
from fastneuron.kernels.numba_cpu.transpose import ONE_BY_ONE, transposed_pairs
from fastneuron.kernels.numba_cpu.views import copy, fill, run

#: Registers of rows that go side by side, so that their sums do not wait for each other.
PARTS = 4


def _held_rows(builder: Any, first: Any, n_rows: Any, size: int) -> tuple[list[Any], Any]:
    """Return a register of row numbers, and which count; the last row stands for those after it."""
    last = builder.sub(n_rows, whole(1))
    held = []
    for lane in range(size):
        index = builder.add(first, whole(lane))
        held.append(builder.select(builder.icmp_signed("<", index, last), index, last))
    return held, below(builder, builder.sub(n_rows, first), size)


def _joined(builder: Any, values: list[Number]) -> Number:
    """Return a register of these numbers."""
    result = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for lane, value in enumerate(values):
        result = builder.insert_element(result, value.value, whole(lane))
    return Number(builder, result)


def _emit_turn(
    source: Memory, places: list[Any], columns: Any, to: Memory, out: Any, step: Any, mask: Any
) -> None:
    """Store the rows at `places` as the lanes of columns `step` apart, zeros where no `mask`."""
    builder, size = source.builder, len(places)
    half = size // 2

    def one_by_one() -> None:
        with cgutils.for_range(builder, columns, intp=I64) as column:
            values = [source.load(builder.add(place, column.index)) for place in places]
            place = builder.add(out, builder.mul(column.index, step))
            to.store(_joined(builder, values).where(mask, 0.0), place)

    def in_registers() -> None:
        there = below(builder, columns, half)
        rows = [source.load_some(place, there).value for place in places]
        last = builder.sub(columns, whole(1))
        turned = transposed_pairs(builder, rows)
        # Backwards: what is no column is written to the last one's place, and then over.
        for j in reversed(range(half)):
            held = builder.select(builder.icmp_signed("<", whole(j), last), whole(j), last)
            place = builder.add(out, builder.mul(held, step))
            to.store(Number(builder, turned[j]).where(mask, 0.0), place)

    if half <= ONE_BY_ONE:
        one_by_one()
        return
    few = builder.icmp_signed("<=", columns, whole(ONE_BY_ONE))
    with builder.if_else(few) as (a_few, more):
        with a_few:
            one_by_one()
        with more:
            in_registers()


@intrinsic
def turn_rows(
    typingctx: Any,
    arena: Any,
    source: Any,
    first: Any,
    step: Any,
    which: Any,
    n_rows: Any,
    columns: Any,
    out: Any,
    stride: Any,
) -> Any:
    """Copy rows to columns at `out`, with zeros after them up to a multiple of `SLIM_ROWS`.

    Row r begins at element ``first + i*step`` of `source`, i being ``which[r]``, or r where `which`
    is a number.
    """
    size = ir_lanes(arena.dtype) // 2
    consecutive = isinstance(which, types.Integer)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = Memory(context, builder, arena, args[0])
        rows = Memory(context, builder, source, args[1])
        n = args[5]
        padded = builder.and_(builder.add(n, whole(at.SLIM_ROWS - 1)), whole(-at.SLIM_ROWS))
        with cgutils.for_range_slice(builder, whole(0), padded, whole(size), intp=I64) as (r, _):
            held, mask = _held_rows(builder, r, n, size)
            if not consecutive:
                numbers = context.make_array(signature.args[4])(context, builder, args[4]).data
                held = [builder.load(builder.gep(numbers, [index])) for index in held]
            places = [builder.add(args[2], builder.mul(index, args[3])) for index in held]
            _emit_turn(rows, places, args[6], to, builder.add(args[7], r), args[8], mask)
        return context.get_dummy_value()

    kind = types.int64 if consecutive else which
    return types.void(arena, source, types.int64, types.int64, kind, *[types.int64] * 4), codegen


@intrinsic
def slim_product(
    typingctx: Any,
    arena: Any,
    out: Any,
    start: Any,
    a: Any,
    stride: Any,
    b: Any,
    b_steps: Any,
    depth: Any,
    columns: Any,
    n_rows: Any,
) -> Any:
    """Compute ``out[c*stride + r] = start[c] + sum_k a[k*stride + r] * b[k*step0 + c*step1]``.

    All are places in the arena; `b_steps` are the two steps, n_rows a multiple of `SLIM_ROWS`.
    """
    size = ir_lanes(arena.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        out_at, start_at, a_at, column_step, b_at = args[1:6]
        k_step, c_step = cgutils.unpack_tuple(builder, args[6], 2)
        depth_value, columns_value, rows_value = args[7:]
        with cgutils.for_range(builder, columns_value, intp=I64) as column:
            to = builder.add(out_at, builder.mul(column.index, column_step))
            weights = builder.add(b_at, builder.mul(column.index, c_step))
            first = memory.load(builder.add(start_at, column.index))
            begin = splat(builder, first.value, size)
            with cgutils.for_range_slice(
                builder, whole(0), rows_value, whole(PARTS * size), intp=I64
            ) as (r, _):
                sums = [Variable(begin) for _ in range(PARTS)]
                with cgutils.for_range(builder, depth_value, intp=I64) as k:
                    weight = memory.load(builder.add(weights, builder.mul(k.index, k_step)))
                    every = splat(builder, weight.value, size)
                    row = builder.add(a_at, builder.add(builder.mul(k.index, column_step), r))
                    for j, total in enumerate(sums):
                        value = memory.load(builder.add(row, whole(j * size)), size)
                        total.set(value.call("fma", every, total.get()))
                for j, total in enumerate(sums):
                    memory.store(total.get(), builder.add(to, builder.add(r, whole(j * size))))
        return context.get_dummy_value()

    steps = types.UniTuple(types.int64, 2)
    numbers = [types.int64] * 5
    return types.void(arena, *numbers, steps, *[types.int64] * 3), codegen


@intrinsic
def dot(typingctx: Any, arena: Any, a: Any, d: Any, count: Any, ones: Any) -> Any:
    """Return the sum over `count` rows of column a times column d, or of d where `ones`.

    Row r is summed in lane r of `PARTS` registers, which are added in pairs, and then their lanes
    in halves.
    """
    size = ir_lanes(arena.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        vector = ir.VectorType(memory.real, size)
        zeros = Number(builder, ir.Constant(vector, [0.0] * size))
        one = zeros.constant(1.0)
        sums = [Variable(zeros) for _ in range(PARTS)]
        step = PARTS * size
        even = builder.and_(args[3], whole(-step))

        def add(total: Variable, value: Number, delta: Number) -> None:
            total.set(one.where(args[4], value).call("fma", delta, total.get()))

        with cgutils.for_range_slice(builder, whole(0), even, whole(step), intp=I64) as (r, _):
            for j, total in enumerate(sums):
                place = builder.add(r, whole(j * size))
                add(
                    total,
                    memory.load(builder.add(args[1], place), size),
                    memory.load(builder.add(args[2], place), size),
                )
        with builder.if_then(builder.icmp_signed("<", even, args[3])):
            for j, total in enumerate(sums):
                place = builder.add(even, whole(j * size))
                mask = below(builder, builder.sub(args[3], place), size)
                add(
                    total,
                    memory.load_some(builder.add(args[1], place), mask),
                    memory.load_some(builder.add(args[2], place), mask),
                )
        parts = [total.get() for total in sums]
        while len(parts) > 1:
            parts = [x + y for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0].tree_sum().value

    return arena.dtype(arena, *[types.int64] * 3, types.boolean), codegen


@intrinsic
def slim_losses(
    typingctx: Any,
    arena: Any,
    code: Any,
    out: Any,
    delta: Any,
    stride: Any,
    outputs: Any,
    targets: Any,
    weight: Any,
    samples: Any,
    losses: Any,
    share: Any,
    scratch: Any,
) -> Any:
    """Any loss but cross-entropy of a block of rows; the bits of `values_row`.

    `samples` are the rows' numbers in the data, `losses` is where the row losses go, and `share` is
    what a row of weight 1 counts. The rows after the last, up to a multiple of `SLIM_ROWS`,
    get deltas of zero. `scratch` has room for two squares of registers.
    """
    size = ir_lanes(arena.dtype) // 2

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = Memory(context, builder, arena, args[0])
        chosen, out_at, delta_at, step, columns = args[1:6]
        wanted = Memory(context, builder, targets, args[6])
        weights = Memory(context, builder, weight, args[7])
        which = context.make_array(samples)(context, builder, args[8])
        losses_at, scratch_at = args[9], args[11]
        n_rows = which.nitems
        padded = builder.and_(builder.add(n_rows, whole(at.SLIM_ROWS - 1)), whole(-at.SLIM_ROWS))
        zeros = Number(builder, ir.Constant(ir.VectorType(memory.real, size), [0.0] * size))
        wanted_at = builder.add(scratch_at, whole(size * size))
        outputs_number = Number(builder, args[10]).of_integer(columns)
        parts_of = splat(builder, outputs_number.value, size)

        with cgutils.for_range_slice(builder, whole(0), padded, whole(size), intp=I64) as (r, _):
            held, mask = _held_rows(builder, r, n_rows, size)
            numbers = [builder.load(builder.gep(which.data, [index])) for index in held]
            places = [builder.mul(number, columns) for number in numbers]
            _emit_turn(wanted, places, columns, memory, wanted_at, whole(size), mask)
            scale = Variable(splat(builder, args[10], size))
            with builder.if_then(builder.icmp_signed(">", weights.size, whole(0))):
                each = _joined(builder, [weights.load(number) for number in numbers])
                scale.set(scale.get() * each)
            factor = scale.get() / parts_of
            with cgutils.for_range(builder, columns, intp=I64) as column:
                c = column.index
                y = memory.load(builder.add(wanted_at, builder.mul(c, whole(size))), size)
                here = builder.add(builder.mul(c, step), r)
                o = memory.load(builder.add(out_at, here), size)
                slope, loss = Variable(zeros), Variable(zeros)
                done = builder.append_basic_block("slim.loss.done")
                switch = builder.switch(chosen, done)
                for each_code, formula in FORMULAS.items():
                    block = builder.append_basic_block(f"slim.loss{each_code}")
                    switch.add_case(whole(each_code), block)
                    builder.position_at_end(block)
                    new_slope, new_loss = formula(o, y)
                    slope.set(new_slope)
                    loss.set(new_loss)
                    builder.branch(done)
                builder.position_at_end(done)
                gradient = (factor * slope.get()).where(mask, 0.0)
                memory.store(gradient, builder.add(delta_at, here))
                kept = builder.add(scratch_at, builder.mul(c, whole(size)))
                memory.store(zeros + loss.get(), kept)
            parts = []
            for j in range(size // 2):
                counts = builder.icmp_signed("<", whole(j), columns)
                place = builder.add(scratch_at, whole(j * size))
                parts.append(memory.load(place, size).where(counts, 0.0))
            while len(parts) > 1:  # halves, as lanes are added there
                half = len(parts) // 2
                parts = [x + y for x, y in zip(parts[:half], parts[half:], strict=True)]
            memory.store_some(factor * parts[0], builder.add(losses_at, r), mask)
        return context.get_dummy_value()

    arrays = (targets, weight, samples)
    numbers = [types.int64] * 5
    return types.void(arena, *numbers, *arrays, types.int64, arena.dtype, types.int64), codegen


@inner
def slim_rows(n_rows):
    """Rows that a block takes here: a multiple of `SLIM_ROWS`."""
    return (n_rows + at.SLIM_ROWS - 1) // at.SLIM_ROWS * at.SLIM_ROWS


@inner
def gather_columns(arena, x, samples, out, stride):
    """Copy rows `samples` of x to columns at `out`, and zeros after them."""
    columns = x.shape[1]
    turn_rows(arena, x, 0, columns, samples, samples.shape[0], columns, out, stride)


@inner
def to_columns(arena, panel, out, stride, columns, n_rows):
    """Copy rows of one panel to columns, and zeros after them."""
    turn_rows(arena, arena, panel, lanes(arena), 0, n_rows, columns, out, stride)


@inner
def to_panel(arena, source, out, stride, columns, n_rows):
    """Copy columns to rows of one panel, zeros beside them."""
    width = lanes(arena)
    fill(run(arena, out, n_rows * width), arena.dtype.type(0.0))
    for c in range(columns):
        for r in range(n_rows):
            arena[out + r * width + c] = arena[source + c * stride + r]


@glue
def slim_forward(arena, head, layer, first, n_rows, most):
    """Compute f(x W + b) of a block of rows, as `layer_forward`."""
    stride, code = head[at.SLIM_STRIDE], layer[at.ACTIVATION]
    pre, out = layer[at.SLIM_PRE] + first, layer[at.SLIM_OUT] + first
    weight = head[at.PARAMETERS] + layer[at.WEIGHT]
    inputs, outputs, a = layer[at.INPUTS], layer[at.OUTPUTS], layer[at.SLIM_IN] + first
    steps = (lanes(arena), 1)
    slim_product(arena, pre, layer[at.START], a, stride, weight, steps, inputs, outputs, n_rows)
    for c in range(outputs):
        values = run(arena, out + c * stride, n_rows)
        if pre != out:
            copy(values, run(arena, pre + c * stride, n_rows))
        if code != IDENTITY:
            activate(code, values)
        if most >= 0:
            note_run(arena, most, out + c * stride, n_rows)


@glue
def slim_gate(arena, head, layer, first, n_rows, most):
    """Turn dL/d(output) of a block of rows into dL/dz, as `gate_output`."""
    stride, code = head[at.SLIM_STRIDE], layer[at.ACTIVATION]
    for c in range(layer[at.OUTPUTS]):
        here = c * stride + first
        if code != IDENTITY:
            saved = run(arena, layer[at.SLIM_PRE] + here, n_rows)
            gate(code, run(arena, layer[at.SLIM_OUT_DELTA] + here, n_rows), saved)
        if most >= 0:
            note_run(arena, most, layer[at.SLIM_OUT_DELTA] + here, n_rows)


@glue
def slim_backward(arena, head, layer, first, n_rows):
    """Carry dL/dz of a block of rows back through the weights."""
    slim_product(
        arena,
        layer[at.SLIM_IN_DELTA] + first,
        head[at.ZEROS],
        layer[at.SLIM_OUT_DELTA] + first,
        head[at.SLIM_STRIDE],
        head[at.PARAMETERS] + layer[at.WEIGHT],
        (1, lanes(arena)),
        layer[at.OUTPUTS],
        layer[at.INPUTS],
        n_rows,
    )


@inner
def slim_gradient(arena, head, layer, inputs, batch, out, bias_out):
    """Compute dW of a layer, and db where `bias_out` >= 0, in panel rows with zeros beside.

    `inputs` is 0 where the weights are not trained.
    """
    width, stride, zero = lanes(arena), head[at.SLIM_STRIDE], arena.dtype.type(0.0)
    fill(run(arena, out, inputs * width), zero)
    if bias_out >= 0:
        fill(run(arena, bias_out, width), zero)
    for c in range(layer[at.OUTPUTS]):
        d = layer[at.SLIM_OUT_DELTA] + c * stride
        for i in range(inputs + (1 if bias_out >= 0 else 0)):
            ones = i == inputs
            a = layer[at.SLIM_IN] + (0 if ones else i) * stride
            place = bias_out if ones else out + i * width
            arena[place + c] = dot(arena, a, d, batch, ones)
