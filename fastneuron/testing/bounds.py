"""Rounding bounds: how far a correct kernel may be from the float64 reference, and no further.

Every function takes and returns `Bounded` arrays: the float64 reference value and, beside it, a
bound of ``|kernel - reference|`` that holds for every order of every sum, blocked or not, with or
without fused multiply-adds. The bounds are proved, not fitted; with T the kernel's dtype:

- u = 2^-24 (float32) or 2^-53 (float64), plus 2^-53 for the reference's own rounding: each bound
  sums products of u and g with non-negative factors, so bound(u1) + bound(u2) <= bound(u1 + u2).
- g(n) = n u / (1 - n u): n roundings in a row change a result by at most this factor
  (Higham 2002, Accuracy and Stability of Numerical Algorithms, lemma 3.1).
- one underflowing product errs by at most the smallest subnormal number.
- a Bounded operand X stands for any X' with ``|X' - X| <= E``, so ``|X'| <= |X| + E``.
- an elementwise function errs by its published ulps, one ulp being at most 2 u times the value,
  plus its condition number (the argument may be rounded, and so may a constant that it is
  multiplied by), plus the smallest normal number.

Evaluating a bound rounds too; its terms are all positive, so `SLACK` covers that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastneuron.activations import LEAKY_SLOPE, Activation

Array: TypeAlias = NDArray[Any]

__all__ = [
    "EXP_ULP",
    "Bounded",
    "Precision",
    "activate",
    "assert_within",
    "column_sum",
    "dense",
    "exact",
    "gate",
    "matmul",
    "multiply",
]

#: Ulps that exp and log of a kernel may err by. NumPy's float32 exp has 2.5, its log 3.8.
EXP_ULP = 4.0
# Sums of up to 2^32 positive float64 terms: their relative error is below this.
SLACK = 1 + 2.0**-20


@dataclass(frozen=True)
class Precision:
    """The rounding constants of a kernel's dtype, the reference's own rounding included."""

    u: float
    normal: float
    subnormal: float

    @classmethod
    def of(cls, dtype: Any) -> Precision:
        """Return the constants of float32 or float64."""
        info = np.finfo(dtype)
        return cls(
            float(info.eps) / 2 + 2.0**-53,
            float(info.smallest_normal),
            float(info.smallest_subnormal),
        )

    def g(self, n: int) -> float:
        """Return the relative error of `n` roundings in a row."""
        if n * self.u >= 0.5:
            raise ValueError(f"{n} roundings of unit {self.u:g}: the bound says nothing any more")
        return n * self.u / (1 - n * self.u)


@dataclass(frozen=True)
class Bounded:
    """A float64 reference array and a bound of the kernel's distance from it, of the same shape."""

    value: Array
    bound: Array

    @property
    def size(self) -> Array:
        """The largest magnitude that the kernel's value can have."""
        return np.abs(self.value) + self.bound

    @property
    def T(self) -> Bounded:
        """The transpose of both."""
        return Bounded(self.value.T, self.bound.T)

    def __add__(self, error: Array | float) -> Bounded:
        return Bounded(self.value, self.bound + error)

    def scaled(self, factor: Array | float, rounding: float) -> Bounded:
        """Return the product with an exactly known factor; `rounding` is relative."""
        value = self.value * factor
        return Bounded(
            value, self.bound * np.abs(factor) * (1 + rounding) + rounding * np.abs(value)
        )


def exact(x: Any) -> Bounded:
    """Return `x` as a value that kernel and reference have in common."""
    value = np.asarray(x, np.float64)
    return Bounded(value, np.zeros_like(value))


def assert_within(got: Any, want: Bounded, what: str = "got") -> float:
    """Raise AssertionError where `got` is not finite or out of the bound; return the worst ratio.

    Returns
    -------
    float
        The largest error over its bound, at most 1; 0 where there is no error at all.
    """
    got = np.asarray(got)
    assert got.shape == want.value.shape, f"{what}: got shape {got.shape}, want {want.value.shape}"
    if not got.size:
        return 0.0
    bound = want.bound * SLACK
    error = np.abs(got.astype(np.float64) - want.value)
    wrong = ~(error <= bound)  # NaN anywhere is wrong
    if wrong.any():
        with np.errstate(all="ignore"):
            excess = np.where(wrong, error / bound, -1)
        at = np.unravel_index(int(np.argmax(excess)), got.shape)
        place = tuple(int(i) for i in at)
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {got.size} entries are outside the bound; worst at "
            f"{place}: got {got[at]!s}, want {want.value[at]!s} +- {bound[at]:.3g}, "
            f"error {error[at]:.3g}"
        )
    return float(np.max(np.divide(error, bound, out=np.zeros_like(error), where=error > 0)))


def matmul(x: Bounded, w: Bounded, p: Precision, extra: int = 0) -> Bounded:
    """Return x w: ``g(k + extra) (|x| + Ex)(|w| + Ew) + Ex |w| + (|x| + Ex) Ew + k subnormals``.

    A sum of nothing but products with 0 is 0: it has no subnormals, nor any bound.
    """
    k = x.value.shape[1]
    left = p.g(k + extra) * x.size + x.bound
    bound = left @ np.abs(w.value)
    if w.bound.any():
        bound += (1 + p.g(k + extra)) * (x.size @ w.bound)
    underflow: Any = k * p.subnormal
    if not bound.all():
        underflow = underflow * ((x.size > 0).astype(np.float32) @ (w.size > 0) > 0)
    return Bounded(x.value @ w.value, bound + underflow)


def dense(x: Bounded, w: Bounded, b: Bounded | None, p: Precision) -> Bounded:
    """Return z = x w + b: the product's bound with one rounding more, and ``g(k + 1)|b| + Eb``."""
    if b is None:
        return matmul(x, w, p)
    z = matmul(x, w, p, extra=1)
    b_error = p.g(x.value.shape[1] + 1) * b.size + b.bound
    return Bounded(z.value + b.value, z.bound + b_error)


def column_sum(d: Bounded, p: Precision) -> Bounded:
    """Return the sum over rows: ``g(m - 1) sum(|d| + Ed) + sum Ed``."""
    m = max(len(d.value), 1)
    return Bounded(d.value.sum(0), p.g(m - 1) * d.size.sum(0) + d.bound.sum(0))


def multiply(x: Bounded, y: Bounded, p: Precision, roundings: int = 1) -> Bounded:
    """Return x y elementwise, rounded `roundings` times."""
    bound = x.bound * y.size + np.abs(x.value) * y.bound + p.g(roundings) * x.size * y.size
    return Bounded(x.value * y.value, bound + roundings * p.subnormal)


#: sup |f''|: what an error of z can grow to in f'(z). None: f' jumps at the kink.
_CURVATURE: dict[str, float | None] = {
    "identity": 0.0,
    "relu": None,
    "leaky_relu": None,
    "elu": 1.0,
    "gelu": 0.7979,  # 2 phi(0), at z = 0
    "silu": 0.5,  # at z = 0
    "softplus": 0.25,  # at z = 0
    "sigmoid": 0.0963,  # sqrt(3) / 18
    "tanh": 0.7699,  # 4 / (3 sqrt 3)
}


def activate(z: Bounded, f: Activation, p: Precision) -> Bounded:
    """Return a = f(z): ``sup|f'| Ez``, the supremum over [z - Ez, z + Ez], and f's own error.

    That is ``2 u (ulp |f| + |z f'|) +`` the smallest normal number; zero for identity and relu.
    """
    value = f.f(z.value)
    slope = np.abs(f.df(value if f.saves == "a" else z.value))
    curvature = _CURVATURE[f.name]
    if curvature is None:
        slope = np.where((np.abs(z.value) <= z.bound) & (z.bound > 0), f.lipschitz, slope)
    else:
        slope = np.minimum(slope + curvature * z.bound, f.lipschitz)
    bound = slope * z.bound
    if f.ulp:
        own = 2 * p.u * (max(f.ulp, EXP_ULP) * (np.abs(value) + bound) + slope * z.size)
        bound = bound + own + p.normal
    return Bounded(value, bound)


def _jump(low: float) -> Callable[[Bounded, Array, Precision], Array]:
    def error(s: Bounded, g: Array, p: Precision) -> Array:
        flips = (np.abs(s.value) <= s.bound) & (s.bound > 0)
        return np.where(flips, 1 - low, 0) + 2 * p.u * low

    return error


def _elu_error(s: Bounded, g: Array, p: Precision) -> Array:
    return np.where(s.value > s.bound, 0, s.bound + 2 * p.u * (1 + s.bound))


def _gelu_error(s: Bounded, g: Array, p: Precision) -> Array:
    z2 = np.square(s.value)
    density = np.exp(-0.5 * z2) / np.sqrt(2 * np.pi)
    terms = np.abs(g) + 2 * np.abs(s.value) * density  # Phi + |z| phi, at most
    # phi has condition number z^2.
    return 0.7979 * s.bound + 2 * p.u * (EXP_ULP * terms + np.abs(s.value) * density * z2)


def _silu_error(s: Bounded, g: Array, p: Precision) -> Array:
    # 1 - s(z) may be computed so; past |z| = 40 it is 0 or 1 in either dtype. s has condition
    # number |z| (1 - s).
    m = np.minimum(np.abs(s.value), 40.0)
    t = np.exp(-np.abs(s.value))
    logistic = np.where(s.value >= 0, 1, t) / (1 + t)
    own = EXP_ULP * logistic * (1 + m) + np.abs(s.value) * (1 + m) * logistic * t
    return 0.5 * s.bound + 2 * p.u * own


def _softplus_error(s: Bounded, g: Array, p: Precision) -> Array:
    return np.minimum(1, np.exp(s.bound - s.value)) * s.bound + 2 * p.u * EXP_ULP * (g + s.bound)


def _sigmoid_error(s: Bounded, g: Array, p: Precision) -> Array:
    slope = np.abs(1 - 2 * s.value) + s.bound
    return slope * s.bound + 4 * p.u * (g + s.bound)


def _tanh_error(s: Bounded, g: Array, p: Precision) -> Array:
    # 1 - a * a cancels where |a| is near 1: the product's rounding stays, absolutely.
    return (2 * np.abs(s.value) + s.bound) * s.bound + 4 * p.u * (1 + s.bound)


_GATE_ERRORS: dict[str, Callable[[Bounded, Array, Precision], Array]] = {
    "relu": _jump(0.0),
    "leaky_relu": _jump(LEAKY_SLOPE),
    "elu": _elu_error,
    "gelu": _gelu_error,
    "silu": _silu_error,
    "softplus": _softplus_error,
    "sigmoid": _sigmoid_error,
    "tanh": _tanh_error,
}


def gate(da: Bounded, saved: Bounded, f: Activation, p: Precision) -> Bounded:
    """Return dz = da f'(saved) by the product rule.

    Where a kernel's z can lie on the other side of a kink, ``|saved| <= Esaved``, its gate may
    legally flip: the upstream |da| is then in the bound.
    """
    g = f.df(saved.value)
    if f.name == "identity":
        return da
    # A gate of 0 or 1 multiplies without rounding; one that is no constant may underflow.
    roundings = 0 if f.name == "relu" else 1
    underflow = 0.0 if _CURVATURE[f.name] is None else p.normal
    return multiply(da, Bounded(g, _GATE_ERRORS[f.name](saved, g, p) + underflow), p, roundings)
