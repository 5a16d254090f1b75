"""Bias and activation of sums that a library has left without them."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastneuron.kernels.numba_cuda import activations
from fastneuron.kernels.numba_cuda.driver import cuda, kernel

__all__ = ["bias_activation"]


@cache
def bias_activation(
    dtype: str, activation: str, bias: bool, keeps_z: bool, lanes: int, rows: int
) -> Any:
    """Return the kernel ``a = f(z + b)``, a lane for every `lanes`-th number of a row.

    Its arguments: z (B, O), b (O,) IN; z too is OUT where `keeps_z`, with b in it; a (B, O) OUT,
    which may be z; B, O.
    """
    f = activations.value(activation, dtype)

    def bias_act_forward(z, b, a, batch, outputs):
        row = cuda.blockIdx.x * rows + cuda.threadIdx.y
        if row < batch:
            for column in range(cuda.threadIdx.x, outputs, lanes):
                at = row * outputs + column
                sum_of = z[at]
                if bias:
                    sum_of = sum_of + b[column]
                    if keeps_z:
                        z[at] = sum_of
                a[at] = f(sum_of)

    return kernel(bias_act_forward)
