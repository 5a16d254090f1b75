"""The table of activations: value, derivative, and what the derivative is computed from.

NaN in gives NaN out. Infinities give the limit (``gelu(-inf) == 0``), and no input warns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastneuron.registry import Registry

__all__ = ["ACTIVATIONS", "LEAKY_SLOPE", "Activation", "erfc"]

#: Slope of leaky_relu below zero (Maas et al. 2013, section 3).
LEAKY_SLOPE = 0.01


@dataclass(frozen=True)
class Activation:
    """One activation ``a = f(z)``, elementwise.

    Attributes
    ----------
    name : str
    code : int
        Small number by which compiled kernels know it; files store the name.
    formula, derivative, source : str
        f(z), f'(z) and where they come from, as text.
    saves : {"a", "z"}
        What the backward pass computes f' from: the output a where f' is a function of it, which
        spares a buffer, else the pre-activation z.
    f : callable
        z -> a, any shape, float32 or float64; keeps the dtype.
    df : callable
        The saved array -> f'(z), same shape and dtype.
    lipschitz : float
        Supremum of abs(f'), rounded up: what an error of z can grow to in a.
    ulp : float
        Error a fast kernel's f may have, in units in the last place of the result, on top of the
        dtype's smallest normal number. In float64, gelu is ill-conditioned far below zero, with
        condition number z**2: there twice that comes on top, in the reference too.
    """

    name: str
    code: int
    formula: str
    derivative: str
    source: str
    saves: Literal["a", "z"]
    f: Callable[[NDArray[Any]], NDArray[Any]]
    df: Callable[[NDArray[Any]], NDArray[Any]]
    lipschitz: float
    ulp: float


def erfc(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return the complementary error function of each element, in float64.

    NumPy has none; the C library's is accurate to an ulp or so over the whole range, and costs a
    call an element, which only the reference can afford.
    """
    values = map(math.erfc, x.ravel().tolist())
    return np.fromiter(values, np.float64, x.size).reshape(x.shape)


def _relu(z: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(z, 0)


def _relu_df(a: NDArray[Any]) -> NDArray[Any]:
    return (a > 0).astype(a.dtype)


def _leaky_relu(z: NDArray[Any]) -> NDArray[Any]:
    return np.where(z > 0, z, LEAKY_SLOPE * z)


def _leaky_relu_df(a: NDArray[Any]) -> NDArray[Any]:
    return np.where(a > 0, 1, LEAKY_SLOPE).astype(a.dtype)


def _elu(z: NDArray[Any]) -> NDArray[Any]:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def _elu_df(a: NDArray[Any]) -> NDArray[Any]:
    return np.where(a > 0, 1, a + 1).astype(a.dtype)


# |z| beyond which exp(-z**2 / 2) and erfc(|z| / sqrt 2) are zero in float64. Clamping there gives
# the limits at the infinities, where the formulas would multiply infinity by zero.
_GELU_TAIL = 40.0


def _gelu(z: NDArray[Any]) -> NDArray[Any]:
    clamped = np.maximum(z.astype(np.float64), -_GELU_TAIL)
    return (0.5 * clamped * erfc(-clamped * math.sqrt(0.5))).astype(z.dtype)


def _gelu_df(z: NDArray[Any]) -> NDArray[Any]:
    clamped = np.clip(z.astype(np.float64), -_GELU_TAIL, _GELU_TAIL)
    below = 0.5 * erfc(-clamped * math.sqrt(0.5))
    density = np.exp(-0.5 * clamped * clamped) / math.sqrt(2 * math.pi)
    return (below + clamped * density).astype(z.dtype)


def _sigmoid(z: NDArray[Any]) -> NDArray[Any]:
    # Only exp of something negative: it cannot overflow, and both tails stay relatively accurate.
    # In float64, since NumPy's float32 exp is off by up to 2.5 ulps: more than the table allows.
    t = np.exp(-np.abs(z.astype(np.float64)))
    return (np.where(z >= 0, 1, t) / (1 + t)).astype(z.dtype)


def _sigmoid_df(a: NDArray[Any]) -> NDArray[Any]:
    return a * (1 - a)


# |z| beyond which exp(-|z|) is zero in float64; see _GELU_TAIL.
_SILU_TAIL = 800.0


def _silu(z: NDArray[Any]) -> NDArray[Any]:
    clamped = np.maximum(z, -_SILU_TAIL)
    return clamped * _sigmoid(clamped)


def _silu_df(z: NDArray[Any]) -> NDArray[Any]:
    clamped = np.clip(z, -_SILU_TAIL, _SILU_TAIL)
    return _sigmoid(clamped) * (1 + clamped * _sigmoid(-clamped))


def _softplus(z: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _softplus_df(a: NDArray[Any]) -> NDArray[Any]:
    return -np.expm1(-a)


def _tanh_df(a: NDArray[Any]) -> NDArray[Any]:
    return 1 - a * a


#: Every activation by name.
ACTIVATIONS: Registry[Activation] = Registry("activation")

for _activation in (
    Activation(
        name="identity",
        code=0,
        formula="z",
        derivative="1",
        source="the linear layer; a network of them is linear regression",
        saves="a",
        f=np.positive,
        df=np.ones_like,
        lipschitz=1.0,
        ulp=0.0,
    ),
    Activation(
        name="relu",
        code=1,
        formula="max(z, 0)",
        derivative="1 where a > 0, else 0 (0 at z = 0)",
        source="Nair & Hinton 2010, ICML; Glorot, Bordes & Bengio 2011, AISTATS",
        saves="a",
        f=_relu,
        df=_relu_df,
        lipschitz=1.0,
        ulp=0.0,
    ),
    Activation(
        name="leaky_relu",
        code=2,
        formula="z where z > 0, else 0.01 z",
        derivative="1 where a > 0, else 0.01",
        source="Maas, Hannun & Ng 2013, ICML",
        saves="a",
        f=_leaky_relu,
        df=_leaky_relu_df,
        lipschitz=1.0,
        ulp=2.0,
    ),
    Activation(
        name="elu",
        code=3,
        formula="z where z > 0, else exp(z) - 1",
        derivative="1 where a > 0, else a + 1",
        source="Clevert, Unterthiner & Hochreiter 2015, arXiv:1511.07289 (alpha = 1)",
        saves="a",
        f=_elu,
        df=_elu_df,
        lipschitz=1.0,
        ulp=4.0,
    ),
    Activation(
        name="gelu",
        code=4,
        formula="z Phi(z), Phi(z) = erfc(-z / sqrt 2) / 2",
        derivative="Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)",
        source="Hendrycks & Gimpel 2016, arXiv:1606.08415 (exact form)",
        saves="z",
        f=_gelu,
        df=_gelu_df,
        lipschitz=1.129,  # at z = sqrt 2
        ulp=4.0,
    ),
    Activation(
        name="silu",
        code=5,
        formula="z s(z), s(z) = 1 / (1 + exp(-z))",
        derivative="s(z) (1 + z (1 - s(z)))",
        source="Elfwing, Uchibe & Doya 2017, arXiv:1702.03118; swish with beta = 1",
        saves="z",
        f=_silu,
        df=_silu_df,
        lipschitz=1.1,  # 1.09984, near z = 2.4
        ulp=4.0,
    ),
    Activation(
        name="softplus",
        code=6,
        formula="log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|))",
        derivative="1 / (1 + exp(-z)) = 1 - exp(-a)",
        source="Dugas et al. 2000, NIPS 13",
        saves="a",
        f=_softplus,
        df=_softplus_df,
        lipschitz=1.0,
        ulp=4.0,
    ),
    Activation(
        name="sigmoid",
        code=7,
        formula="1 / (1 + exp(-z))",
        derivative="a (1 - a)",
        source="the logistic function; Rumelhart, Hinton & Williams 1986, Nature 323",
        saves="a",
        f=_sigmoid,
        df=_sigmoid_df,
        lipschitz=0.25,
        ulp=2.5,
    ),
    Activation(
        name="tanh",
        code=8,
        formula="tanh(z)",
        derivative="1 - a^2",
        source="LeCun et al. 1998, Efficient BackProp, section 4.4 (unscaled)",
        saves="a",
        f=np.tanh,
        df=_tanh_df,
        lipschitz=1.0,
        ulp=2.0,
    ),
):
    ACTIVATIONS.register(_activation.name, _activation)
