"""What the command's verbs understand alike: names of the tables, and words that are numbers.

Nothing but the standard library is imported, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse

# Repeated from the tables, which need numpy; tests hold them equal.
ACTIVATIONS = (
    "identity", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh",
)  # fmt: skip
LOSSES = ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "poisson")
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
BACKENDS = ("auto", "numpy", "numba", "cython", "cuda")
DEVICES = ("cpu", "cuda", "auto")
PRECISIONS = ("float32", "tf32", "bfloat16")
DTYPES = ("float32", "float64")
#: Variables that tell a BLAS its threads, before NumPy loads it.
BLAS_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def whole(text: str) -> int:
    """Return a whole number of at least 0."""
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """Return a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1e10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """Return a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def dtypes(text: str) -> tuple[str, ...]:
    """Return names of dtypes, divided by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    wrong = [name for name in names if name not in DTYPES]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not one of {', '.join(DTYPES)}")
    return names


def widths(text: str) -> tuple[int, ...]:
    """Return whole numbers, divided by commas; none of them for "none"."""
    if text.strip().lower() in ("", "none"):
        return ()
    return tuple(count(part.strip()) for part in text.split(","))


def seconds(text: str) -> float:
    """Return a number of seconds above 0, which may be inf."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
