"""The passes of a training step where cuBLASLt's products compete with ours.

Each piece lists its ways, ours first, and takes the fastest (`timed_choice`). The ways count what
they need around the product: a pass for bias and activation, a gate with its column sums, or an
epilogue that saves one. The library's GELU is left out: it is the approximation by tanh, and ours
is the exact one.

Predictions stay with our own products: a row has the same bits in any batch there, which no library
promises, whose algorithms depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastneuron.kernels.cublaslt import Epilogue, Matmul, Product, mask_bits
from fastneuron.kernels.numba_cuda.driver import empty
from fastneuron.kernels.numba_cuda.launches import Done, Launch, Passes
from fastneuron.kernels.numba_cuda.library import Provider, Way, address_of
from fastneuron.kernels.numba_cuda.pointwise import bias_activation
from fastneuron.kernels.numba_cuda.rows import Rows
from fastneuron.layers import Dense

__all__ = ["LibraryPasses"]


@dataclass(frozen=True)
class LibraryPasses(Passes):
    """Builds the passes of a network from the fastest of our products and the library's."""

    provider: Provider
    #: By layer: the rows it belongs to, and the mask of where that layer's ReLU is above 0.
    masks: dict[int, tuple[Rows, Any]] = field(default_factory=dict)

    def _dense_forward(self, rows: Rows, batch: int, index: int, layer: Dense) -> list[Launch]:
        if not rows.training:
            return super()._dense_forward(rows, batch, index, layer)
        if self._masked(rows, batch, index + 1):
            return self._with_mask(rows, batch, index + 1)[0]
        return self._forward_apart(rows, batch, index, layer)

    def _gradients(
        self, rows: Rows, batch: int, index: int, layer: Dense, done: Done
    ) -> list[Launch]:
        inputs, outputs = layer.weight_shape
        sums, activation = self._sums(index), layer.activation
        ends = self._finish(rows, batch, index, done)
        # A gate is run in place, and what it is run on may have come from the caller: only one that
        # changes nothing can be timed.
        fuses = done is Done.NOTHING and sums and activation == "identity"
        before = ends if fuses else []
        sizes, shape = (inputs, outputs, batch), {"left_transposed": True}
        operands = rows.a[index], rows.d[index + 1], self.state.of(self.state.g, index, "weight")
        matmul = self._matmul(Epilogue.DEFAULT, sizes, shape, *operands)
        own = self._weight_gradient(rows, batch, index, layer)
        ways = [Way("own", [*before, *own]), Way("cublaslt", before, matmul)]
        if fuses:
            vector = self.state.of(self.state.g, index, "bias")
            matmul = self._matmul(Epilogue.BGRADA, sizes, shape, *operands, vector)
            ways.append(Way("cublaslt bgrada", [], matmul))
        launches = self._best(("weight gradient", batch, inputs, outputs, fuses), ways)[1]
        return launches if fuses else [*ends, *launches]

    def _data_gradient(
        self, rows: Rows, batch: int, index: int, layer: Dense
    ) -> tuple[list[Launch], Done]:
        if self._masked(rows, batch, index):
            return self._with_mask(rows, batch, index)[1], Done.ALL
        name, launches = self._data_gradient_apart(rows, batch, index, layer)
        return launches, Done.FIRST_STAGE if name == "own" else Done.NOTHING

    def _forward_apart(self, rows: Rows, batch: int, index: int, layer: Dense) -> list[Launch]:
        """z or a of a layer, and nothing for its backward pass."""
        inputs, outputs = layer.weight_shape
        bias, keeps_z, f = bool(layer.bias), rows.keeps_z(index), layer.activation
        a = rows.a[index + 1]
        z = rows.z[index] if keeps_z else a
        w, b = (self.state.of(self.state.p, index, name) for name in ("weight", "bias"))
        sizes, operands = (batch, outputs, inputs), (rows.a[index], w, z)

        def after(with_bias: bool) -> list[Launch]:
            if not with_bias and f == "identity":
                return []
            cut = self.blocks.lanes, self.blocks.rows
            kernel = bias_activation(self.spec.dtype, f, with_bias, keeps_z, *cut)
            return [Launch(kernel, *self._over_rows(batch), (z, b, a, batch, outputs))]

        plain = self._matmul(Epilogue.DEFAULT, sizes, {}, *operands)
        ways = [
            Way("own", super()._dense_forward(rows, batch, index, layer)),
            Way("cublaslt", [], plain, after(bias)),
        ]
        if bias:
            matmul = self._matmul(Epilogue.BIAS, sizes, {}, *operands, b)
            ways.append(Way("cublaslt bias", [], matmul, after(False)))
        if f == "relu":
            epilogue = Epilogue.RELU_BIAS if bias else Epilogue.RELU
            matmul = self._matmul(epilogue, sizes, {}, *operands, b)
            ways.append(Way(f"cublaslt {epilogue.name.lower()}", [], matmul))
        return self._best(("forward", batch, inputs, outputs, f, bias, keeps_z), ways)[1]

    def _data_gradient_apart(
        self, rows: Rows, batch: int, index: int, layer: Dense
    ) -> tuple[str, list[Launch]]:
        """dz of the layer below, or what its gate makes dz of; and the name of the way."""
        inputs, outputs = layer.weight_shape
        own, done = super()._data_gradient(rows, batch, index, layer)
        below = index - 1
        w = self.state.of(self.state.p, index, "weight")
        operands = rows.d[index + 1], w, rows.d[index]
        sizes = batch, inputs, outputs
        matmul = self._matmul(Epilogue.DEFAULT, sizes, {"right_transposed": True}, *operands)
        ends = self._finish(rows, batch, below, done) if index else []
        gate = self._finish(rows, batch, below, Done.NOTHING) if index else []
        ways = [Way("own", own, then=ends), Way("cublaslt", [], matmul, then=gate)]
        f = self.spec.layers[below].activation if index else "identity"
        sums = bool(index) and self._sums(below)
        return self._best(("data gradient", batch, inputs, outputs, f, sums), ways)

    def _masked(self, rows: Rows, batch: int, index: int) -> bool:
        """Whether a ReLU leaves a mask by which the data gradient of the layer above is gated.

        That is decided for both at once: the one is no use without the other.
        """
        layers = self.spec.layers
        if not rows.training or not 1 <= index < len(layers):
            return False
        below, layer = layers[index - 1], layers[index]
        if not (isinstance(below, Dense) and isinstance(layer, Dense)):
            return False
        if below.activation != "relu" or not self._trains(index):
            return False
        inputs, width = below.weight_shape
        _, outputs = layer.weight_shape
        together = self._with_mask(rows, batch, index)
        if not all(together):
            return False
        name, back = self._data_gradient_apart(rows, batch, index, layer)
        done = Done.FIRST_STAGE if name == "own" else Done.NOTHING
        apart = [
            *self._forward_apart(rows, batch, index - 1, below),
            *back,
            *self._finish(rows, batch, index - 1, done),
        ]
        ways = [Way("apart", apart), Way("mask", [*together[0], *together[1]])]
        bias = bool(below.bias), self._sums(index - 1)
        return self._best(("mask", batch, inputs, width, outputs, *bias), ways)[0] == "mask"

    def _with_mask(self, rows: Rows, batch: int, index: int) -> tuple[list[Launch], list[Launch]]:
        """The forward product of the layer below with a mask, and the data gradient by it.

        Either is empty where the library cannot.
        """
        below, layer = self.spec.layers[index - 1], self.spec.layers[index]
        assert isinstance(below, Dense)
        assert isinstance(layer, Dense)
        inputs, width = below.weight_shape
        _, outputs = layer.weight_shape
        mask = self._mask(rows, index - 1, width)
        w, b = (self.state.of(self.state.p, index - 1, name) for name in ("weight", "bias"))
        bias, sums = bool(below.bias), self._sums(index - 1)
        epilogue = Epilogue.RELU_AUX_BIAS if bias else Epilogue.RELU_AUX
        operands = rows.a[index - 1], w, rows.a[index]
        matmul = self._matmul(epilogue, (batch, width, inputs), {}, *operands, b, mask)
        key: tuple[Any, ...] = ("forward with mask", batch, inputs, width, bias)
        forward = self.provider.best(key, [Way("cublaslt", [], matmul)], listed=False)
        above = self.state.of(self.state.p, index, "weight")
        gradient = self.state.of(self.state.g, index - 1, "bias")
        epilogue = Epilogue.DRELU_BGRAD if sums else Epilogue.DRELU
        operands = rows.d[index + 1], above, rows.d[index]
        shape = {"right_transposed": True}
        matmul = self._matmul(epilogue, (batch, width, outputs), shape, *operands, gradient, mask)
        key = "data gradient with mask", batch, width, outputs, sums
        backward = self.provider.best(key, [Way("cublaslt", [], matmul)], listed=False)
        return forward[1] if forward else [], backward[1] if backward else []

    def _mask(self, rows: Rows, index: int, width: int) -> Any:
        of, mask = self.masks.get(index, (None, None))
        if of is not rows:
            mask = empty(rows.count * mask_bits(width) // 8, np.uint8)
            self.masks[index] = rows, mask
        return mask

    def _best(self, key: tuple[Any, ...], ways: list[Way]) -> tuple[str, list[Launch]]:
        cut = self.tile, self.blocks, self.spec.dtype
        found = self.provider.best((*key, cut), ways)
        assert found is not None  # our own way is always there
        return found

    def _matmul(
        self,
        epilogue: Epilogue,
        sizes: tuple[int, int, int],
        shape: dict[str, bool],
        left: Any,
        right: Any,
        out: Any,
        vector: Any = None,
        mask: Any = None,
    ) -> Callable[[], Matmul]:
        turned = shape.get("left_transposed", False), shape.get("right_transposed", False)
        precision = self.provider.precision
        product = Product(*sizes, *turned, self.spec.dtype, precision, epilogue)
        further = [0 if each is None else address_of(each) for each in (vector, mask)]
        places = [address_of(each) for each in (left, right, out)]
        return partial(Matmul, self.provider.library, product, *places, *further)
