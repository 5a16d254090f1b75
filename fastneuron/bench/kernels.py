"""The suites `slots` and `ops`: kernels alone, below the border and through it.

A slot is timed with the arguments that an engine's parts get. The same call through
`fastneuron.ops` checks its arrays first, which is what a program that brings its own loop pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from fastneuron import backends, ops
from fastneuron.activations import ACTIVATIONS
from fastneuron.bench import calls
from fastneuron.bench.calls import Call
from fastneuron.bench.workloads import (
    NotItsOwn,
    Prepare,
    Prepared,
    Workload,
    first_call,
    repeated,
)
from fastneuron.losses import LOSSES

__all__ = ["fused_ops", "slots"]

DTYPES = ("float32", "float64")
#: Rows, inputs, outputs: a small hidden layer, a first layer of 28x28 images, a wide hidden layer.
SHAPES = ((32, 64, 64), (128, 784, 128), (256, 512, 512))
#: Of the passes over a layer's outputs, and of the losses.
PASS, OUTPUTS = (256, 512), (256, 10)
#: Parameters of an update: within the second-level cache, and far beyond it.
SIZES = (10_000, 1_000_000)
#: Rows, inputs, outputs through the border: small, where checking counts.
SMALL = (32, 64, 64)
#: Activations of the quick run: no exponential, one, and an error function.
QUICK_ACTIVATIONS = ("relu", "tanh", "gelu")


def slots() -> Iterator[Workload]:
    """Yield every slot: shapes, activations, with and without bias, both dtypes."""
    for dtype in DTYPES:
        yield from _products(dtype)
        yield from _passes(dtype)
        for name, loss in LOSSES.items():
            make = partial(calls.loss_rows, name, *OUTPUTS, dtype)
            yield _loss("slots", loss.slot, OUTPUTS, dtype, _slot(make))
        for name, optimizer in calls.OPTIMIZERS.items():
            for size in SIZES:
                words = size * (3 + 2 * optimizer.n_moments)
                quick = dtype == "float32" and size == SIZES[0]
                yield Workload(
                    "slots", name, f"{size:,}", dtype, None,
                    _slot(partial(calls.update, name, size, dtype)),
                    nbytes=_bytes(words, dtype), quick=quick,
                )  # fmt: skip


def _products(dtype: str) -> Iterator[Workload]:
    for shape in SHAPES:
        rows, inputs, outputs = shape
        product = 2 * rows * inputs * outputs
        data = rows * inputs + inputs * outputs + rows * outputs
        for bias in (True, False):
            for call, flop, words in (
                (calls.dense_forward, product, data + bias * outputs),
                (calls.dense_backward, 2 * product, 2 * data + bias * outputs),
            ):
                yield Workload(
                    "slots", call.__name__, "x".join(map(str, shape)), dtype, bias,
                    _slot(partial(call, *shape, dtype, bias)),
                    flop, _bytes(words, dtype), rows,
                    quick=dtype == "float32" and (bias or shape == SHAPES[1]),
                )  # fmt: skip


def _passes(dtype: str) -> Iterator[Workload]:
    rows, outputs = PASS
    for activation in ACTIVATIONS:
        for bias in (True, False):
            for call, arrays in ((calls.bias_act_forward, 2), (calls.act_bias_backward, 3)):
                yield Workload(
                    "slots", call.__name__, f"{rows}x{outputs} {activation}", dtype, bias,
                    _slot(partial(call, rows, outputs, activation, dtype, bias)),
                    0.0, _bytes(arrays * rows * outputs + bias * outputs, dtype), rows,
                    quick=dtype == "float32" and bias and activation in QUICK_ACTIVATIONS,
                )  # fmt: skip


def fused_ops() -> Iterator[Workload]:
    """Yield every function of `fastneuron.ops` on small arrays, where checking them counts."""
    rows, inputs, outputs = SMALL
    product = 2 * rows * inputs * outputs
    data = rows * inputs + inputs * outputs + rows * outputs
    for dtype in DTYPES:
        for bias in (True, False):
            for name, make, flop, words in (
                ("dense_forward", partial(calls.dense_forward, *SMALL), product, data),
                ("dense_backward", partial(calls.dense_backward, *SMALL), 2 * product, 2 * data),
                (
                    "bias_act_forward",
                    partial(calls.bias_act_forward, rows, outputs, "relu"),
                    0,
                    2 * rows * outputs,
                ),
                (
                    "act_bias_backward",
                    partial(calls.act_bias_backward, rows, outputs, "relu"),
                    0,
                    3 * rows * outputs,
                ),
            ):
                yield Workload(
                    "ops", f"ops.{name}", "x".join(map(str, SMALL)), dtype, bias,
                    _op(partial(make, dtype, bias)),
                    flop, _bytes(words + bias * outputs, dtype), rows,
                    quick=dtype == "float32" and bias,
                )  # fmt: skip
        for name, loss in LOSSES.items():
            shape = (rows, OUTPUTS[1])
            make_loss = partial(calls.loss_rows, name, *shape, dtype)
            yield _loss("ops", f"ops.{loss.slot}", shape, dtype, _op(make_loss))


def _loss(
    suite: str, name: str, shape: tuple[int, int], dtype: str, build: Callable[[], Prepare]
) -> Workload:
    rows, outputs = shape
    return Workload(
        suite, name, f"{rows}x{outputs}", dtype, None, build,
        nbytes=_bytes(3 * rows * outputs + rows, dtype), rows=rows,
        quick=dtype == "float32" and name.endswith(("mse", "softmax_cross_entropy")),
    )  # fmt: skip


def _bytes(words: int, dtype: str) -> float:
    return words * {"float32": 4.0, "float64": 8.0}[dtype]


def _slot(make: Callable[[], Call]) -> Callable[[], Prepare]:
    """Return what builds the call of a slot."""

    def build() -> Prepare:
        call = make()

        def prepare(name: str) -> Prepared:
            backend = backends.get(name)
            if backend.origin[call.name] != backend.name:
                raise NotItsOwn(f"{call.name} of {name} is that of {backend.origin[call.name]}")
            function, options = backend.slots[call.name], tuple(call.options.values())
            arguments = call.fresh()
            got, seconds = first_call(function, *arguments, *options)
            worst = call.check(got, arguments)
            return Prepared(repeated(function, *call.timed(arguments), *options), worst, seconds)

        return prepare

    return build


def _op(make: Callable[[], Call]) -> Callable[[], Prepare]:
    """Return what builds the call of a function of `fastneuron.ops`."""

    def build() -> Prepare:
        call = make()
        function = getattr(ops, call.name)

        def prepare(name: str) -> Prepared:
            backend = backends.get(name)
            if backend.origin[call.name] != backend.name:
                raise NotItsOwn(f"{call.name} of {name} is that of {backend.origin[call.name]}")
            arguments = call.fresh()
            with backends.use(name):
                got, seconds = first_call(function, *arguments, **call.options)
            worst = call.check(got, arguments)
            work = repeated(function, *call.timed(arguments), **call.options)

            def chosen(units: int) -> None:
                with backends.use(name):
                    work(units)

            return Prepared(chosen, worst, seconds)

        return prepare

    return build
