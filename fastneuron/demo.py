"""The main job on real input: handwritten digits, with and without biases, timed two ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles
from textwrap import wrap

import numpy as np

from fastneuron.choice import chosen as chosen_backend
from fastneuron.datasets import Dataset, load_digits, stratified_split
from fastneuron.losses import LOSSES
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import AdamW
from fastneuron.reports import table
from fastneuron.schedules import Cosine
from fastneuron.trainer import Trainer

__all__ = ["BATCH_SIZE", "EPOCHS", "SIZES", "Comparison", "compare", "prepare", "run", "train"]

SIZES = (64, 128, 10)
BATCH_SIZE = 64
# Chosen on these data for accuracy: five seeds give a mean of 0.98 held-out accuracy.
EPOCHS = 40
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.1
TEST_FRACTION = 0.25

# Timing runs: long enough that starting one (tens of microseconds) does not count, and paired, so
# that a neighbour's load or a clock change meets both sides.
RUN_SECONDS = 0.1
FAST_PAIRS = 11
REFERENCE_PAIRS = 5
# Between the quartiles of the ratio; a quiet machine shows 0.01 to 0.05.
WIDE = 0.2


def prepare(seed: int) -> tuple[Dataset, Dataset]:
    """Return the digits to train on and those held out, 25 % of each digit, pixels from 0 to 1."""
    X, y = load_digits()
    train, test = stratified_split(y, TEST_FRACTION, seed)
    X = X / np.float32(16)
    return Dataset(X[train], y[train]), Dataset(X[test], y[test])


def train(
    data: Dataset,
    *,
    bias: bool = True,
    epochs: int = EPOCHS,
    seed: int = 0,
    backend: str = "auto",
    n_threads: int | None = None,
) -> Sequential:
    """Return the demo's network, trained on `data`."""
    net = mlp(list(SIZES), activation="relu", bias=bias, seed=seed)
    net.fit(
        data.X,
        data.y,
        loss="cross_entropy",
        optimizer=AdamW(Cosine(LEARNING_RATE), weight_decay=WEIGHT_DECAY),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        progress=False,
        backend=backend,
        n_threads=n_threads,
    )
    return net


@dataclass(frozen=True)
class Comparison:
    """Timing of training with and without biases, interleaved.

    Attributes
    ----------
    rate, rate_without : float
        Samples per second of the fastest run with and without biases: the least disturbed one.
    cost : float
        Median over the pairs of runs of time with biases / time without.
    cost_low, cost_high : float
        Lower and upper quartile of that ratio.
    pairs : int
    """

    rate: float
    rate_without: float
    cost: float
    cost_low: float
    cost_high: float
    pairs: int


def compare(data: Dataset, backend: str, pairs: int, n_threads: int | None = None) -> Comparison:
    """Time training on `data` with and without biases by turns, compiling and warm-up left out."""
    trainers = [
        Trainer(
            mlp(list(SIZES), activation="relu", bias=bias, seed=0),
            loss="cross_entropy",
            optimizer=AdamW(1e-3),
            batch_size=BATCH_SIZE,
            backend=backend,
            n_threads=n_threads,
        )
        for bias in (True, False)
    ]
    epochs = 1
    for trainer in trainers:
        _seconds(trainer, data, 1)
        epochs = max(epochs, round(RUN_SECONDS / max(1e-4, _seconds(trainer, data, 2) / 2)))
    seconds: list[tuple[float, float]] = []
    for i in range(pairs):
        first, second = (0, 1) if i % 2 == 0 else (1, 0)  # whatever comes second may run warmer
        times = {k: _seconds(trainers[k], data, epochs) for k in (first, second)}
        seconds.append((times[0], times[1]))
    ratios = [with_bias / without for with_bias, without in seconds]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    samples = epochs * len(data.y)
    rates = [samples / min(column) for column in zip(*seconds, strict=True)]
    return Comparison(rates[0], rates[1], middle, low, high, pairs)


def _seconds(trainer: Trainer, data: Dataset, epochs: int) -> float:
    start = time.perf_counter()
    trainer.run(data.X, data.y, epochs=epochs)
    return time.perf_counter() - start


def run(
    backend: str = "auto",
    epochs: int = EPOCHS,
    seed: int = 0,
    n_threads: int | None = None,
    say: Callable[[str], object] = print,
    *,
    device: str | None = None,
) -> None:
    """Run the demo and report through `say`, a line a call, none longer than 80 characters."""
    data, held_out = prepare(seed)
    net = mlp(list(SIZES), seed=seed)
    task = net.spec, LOSSES["cross_entropy"], AdamW(), BATCH_SIZE, n_threads
    chosen = chosen_backend(*task, backend, device, data.X, epochs)
    say(
        f"Handwritten digits, 8 x 8 pixels: {len(data.y):,} to learn from, "
        f"{len(held_out.y)} held out"
    )
    say(
        f"Network {'-'.join(map(str, SIZES))}, relu; AdamW, batch {BATCH_SIZE}, {epochs} epochs, "
        f"seed {seed}"
    )
    name = chosen.name
    for line in wrap(f"Backend {name} ({chosen.reason})", 80, subsequent_indent="  "):
        say(line)

    start = time.perf_counter()
    for bias in (True, False):  # one step each: loads or compiles every kernel that is used below
        train(Dataset(data.X[:BATCH_SIZE], data.y[:BATCH_SIZE]), bias=bias, epochs=1, backend=name)
    warm_up = time.perf_counter() - start
    kept = " (compiled kernels are kept on disk for the next time)" if name == "numba" else ""
    say(f"Compile and warm-up: {warm_up:.2f} s{kept}")

    rows: list[tuple[str, ...]] = []
    accuracy, seconds, sizes = [], [], []
    for bias in (True, False):
        start = time.perf_counter()
        net = train(data, bias=bias, epochs=epochs, seed=seed, backend=name, n_threads=n_threads)
        seconds.append(time.perf_counter() - start)
        accuracy.append(float(np.mean(net.predict(held_out.X) == held_out.y)))
        sizes.append(net.spec.n_parameters)
    rows.append(("held-out accuracy", *(f"{100 * a:.2f} %" for a in accuracy)))
    rows.append(("parameters", *(f"{n:,}" for n in sizes)))
    rows.append((f"training time, {epochs} epochs", *(f"{s:.3f} s" for s in seconds)))

    fast = compare(data, name, FAST_PAIRS, n_threads)
    rows.append((f"samples/s, {name}", f"{fast.rate:,.0f}", f"{fast.rate_without:,.0f}"))
    if name != "numpy":
        slow = compare(data, "numpy", REFERENCE_PAIRS)
        slow_rates = (slow.rate, slow.rate_without)
        rows.append(("samples/s, NumPy reference", *(f"{r:,.0f}" for r in slow_rates)))
        ratios = (fast.rate / slow.rate, fast.rate_without / slow.rate_without)
        rows.append((f"{name} / NumPy reference", *(f"{r:.1f} x" for r in ratios)))
    say("")
    for line in table(("", "with bias", "without bias"), rows):
        say(line)
    say("")
    say(
        f"What the bias cost: {100 * (fast.cost - 1):+.1f} % training time "
        f"(quartiles {100 * (fast.cost_low - 1):+.1f} to {100 * (fast.cost_high - 1):+.1f} %)"
    )
    say(f"for {sizes[0] - sizes[1]} more parameters; {fast.pairs} pairs of runs, taken by turns.")
    if fast.cost_high - fast.cost_low > WIDE:
        say("The quartiles are far apart: other work on this machine disturbed the timing.")
