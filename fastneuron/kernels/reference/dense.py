"""The slots of a dense layer, forward and backward.

Here and in the other rooms of the reference: B batch rows, I inputs, O outputs, T float32 or
float64, and every array of a call has the same T. All arrays are C-contiguous; nothing is checked,
that was done at the border. Cost counts words of T read and written, and multiply-adds, for the
ideal of a fused kernel; NumPy moves more. An array given as `out` is overwritten and
returned; what it held before is never read.

NaN and infinities flow through without a warning: the engine looks for them in the loss and in the
gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import ACTIVATIONS

__all__ = ["act_bias_backward", "bias_act_forward", "dense_backward", "dense_forward", "quiet"]

#: Decorator: a diverging network's overflows are results, not warnings.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def dense_forward(
    x: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    activation: str = "identity",
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the layer's output.

    Formula
    -------
    ``a = f(x w + b)``; without b, ``a = f(x w)``.

    Arrays
    ------
    x (B, I) IN, w (I, O) IN, b (O,) or None IN; a (B, O) OUT.

    Cost
    ----
    B I O multiply-adds; reads B I + I O + O, writes B O. The bias costs no pass: a fused kernel's
    sums start from it.

    Order
    -----
    The sum over I is the BLAS's own, and may change with B. Fast kernels fix it by I alone.

    Source
    ------
    Rosenblatt 1958; Rumelhart, Hinton & Williams 1986. f: `fastneuron.activations`.
    """
    z = x @ w
    if b is not None:
        z += b
    return _into(out, ACTIVATIONS[activation].f(z))


@quiet
def bias_act_forward(
    z: NDArray[Any],
    b: NDArray[Any] | None,
    activation: str = "identity",
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Add the bias and apply the activation, in one pass.

    Formula
    -------
    ``a = f(z + b)``; without b, ``a = f(z)``.

    Arrays
    ------
    z (B, O) IN, b (O,) or None IN; a (B, O) OUT, which may be z itself.

    Cost
    ----
    Reads B O + O, writes B O.

    Order
    -----
    No sums.

    Source
    ------
    The epilogue of `dense_forward`, alone.
    """
    return _into(out, ACTIVATIONS[activation].f(z if b is None else z + b))


@quiet
def act_bias_backward(
    da: NDArray[Any],
    saved: NDArray[Any],
    activation: str,
    bias: bool = True,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Gate the gradient by f' and reduce it to the bias gradient, in one pass.

    Formula
    -------
    ``dz = da * f'``; ``db_j = sum_i dz_ij``. f' comes from `saved`, which is the output a or the
    pre-activation z, as `Activation.saves` says. A product, no selection: where f' is 0, a da
    of NaN or infinity still gives NaN.

    Arrays
    ------
    da (B, O) IN, saved (B, O) IN; dz (B, O) OUT, which may be da itself; db (O,) OUT, or None where
    `bias` is false.

    Cost
    ----
    Reads 2 B O, writes B O + O.

    Order
    -----
    db sums rows in NumPy's order; fast kernels in an order fixed by B alone.

    Source
    ------
    Rumelhart, Hinton & Williams 1986. The bias is the weight of an input that is always 1, so its
    gradient is the row of ``[x 1]^T dz`` that belongs to the ones.
    """
    dz = _into(out, da * ACTIVATIONS[activation].df(saved))
    return dz, dz.sum(axis=0) if bias else None


@quiet
def dense_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    w: NDArray[Any],
    saved: NDArray[Any],
    activation: str = "identity",
    bias: bool = True,
    need_dx: bool = True,
) -> tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any] | None]:
    """Return the gradients of a loss by the layer's input, weight and bias.

    Formula
    -------
    ``dz = dy * f'``; ``dx = dz w^T``; ``dw = x^T dz``; ``db_j = sum_i dz_ij``.

    Arrays
    ------
    dy (B, O) IN: gradient by the layer's output; x (B, I) IN; w (I, O) IN; saved (B, O) IN, see
    `act_bias_backward`; dx (B, I) OUT, or None where `need_dx` is false; dw (I, O) OUT; db (O,)
    OUT, or None where `bias` is false.

    Cost
    ----
    2 B I O multiply-adds, half of that without dx; reads 2 B O + B I + I O, writes B I + I O + O.

    Order
    -----
    dw and db sum over B, dx over O, in the BLAS's and NumPy's order; fast kernels in an order fixed
    by the length of the sum alone.

    Source
    ------
    Rumelhart, Hinton & Williams 1986, Nature 323.
    """
    dz, db = act_bias_backward(dy, saved, activation, bias)
    return dz @ w.T if need_dx else None, x.T @ dz, db


def _into(out: NDArray[Any] | None, result: NDArray[Any]) -> NDArray[Any]:
    if out is None:
        return result
    out[...] = result
    return out
