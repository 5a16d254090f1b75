"""Generated networks, batches and exact-integer data: seeded, so that a failure can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Engine, Parameters, Statistics
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES, Loss
from fastneuron.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastneuron.spec import NetworkSpec
from fastneuron.testing.bounds import Array

__all__ = [
    "Case",
    "batches",
    "central_differences",
    "draw_inputs",
    "draw_layer",
    "draw_parameters",
    "draw_targets",
    "generated_cases",
    "integer_case",
    "loaded",
    "ragged",
    "saved_of",
]

#: Widest layer and largest batch of generated networks.
MAX_WIDTH = 300
MAX_BATCH = 300

OPTIMIZERS: tuple[Optimizer, ...] = (
    SGD(0.01),
    SGD(0.005, momentum=0.9, weight_decay=1e-3),
    SGD(0.005, momentum=0.8, nesterov=True, clip_norm=0.5),
    Adam(1e-3, weight_decay=1e-4),
    AdamW(2e-3, weight_decay=0.1, decay_bias=True),
    RMSprop(1e-3, clip_norm=1.0),
    SGD(0.02, weight_decay=0.01, decay_bias=True, clip_norm=2.0),
    Adam(1e-3, beta1=0.8, beta2=0.99, clip_norm=0.3),
)


@dataclass(frozen=True)
class Case:
    """A network with everything that a training run of it needs.

    Attributes
    ----------
    parameters : row-major, of the spec's dtype
    x : (rows, I); y as the loss takes it; weight : (rows,) or None
    batch : int
        Rows of a step; `rows` is no multiple of it, so that partial batches occur.
    statistics : running mean and variance a layer, or None where no layer keeps such
    """

    name: str
    spec: NetworkSpec
    loss: Loss
    optimizer: Optimizer
    parameters: Parameters
    x: Array
    y: Array
    weight: Array | None
    batch: int
    statistics: Statistics | None = None


def draw_parameters(
    spec: NetworkSpec, rng: np.random.Generator, links: int | None = None
) -> Parameters:
    """Return weights of standard deviation sqrt(1 / I) and biases within +-0.5.

    Those of a normalisation, one a feature, lie around 1; some are below 0.

    Parameters
    ----------
    spec, rng
    links : int, optional
        Weights other than 0 that a neuron has on its way in and on its way out, where there is room
        for so many; I is then the number of those in. Worst cases grow with the sums of absolute
        weights, layer by layer: through dense weights of some hundred inputs they are soon above
        the gradients themselves, through a few they are not.
    """
    parameters: Parameters = []
    for layer in spec.layers:
        inputs, outputs = int(layer.in_features or 0), int(layer.out_features or 0)
        if not isinstance(layer, Dense):
            weight = rng.normal(1.0, 0.5, layer.weight_shape)
        elif links is None:
            weight = rng.normal(0, inputs**-0.5, layer.weight_shape)
        else:
            weight = _few_links(rng, inputs, outputs, max(links, -(-links * inputs // outputs)))
        bias = rng.uniform(-0.5, 0.5, outputs).astype(spec.dtype) if layer.bias else None
        parameters.append((weight.astype(spec.dtype), bias))
    return parameters


def _few_links(rng: np.random.Generator, inputs: int, outputs: int, count: int) -> Array:
    """Return weights (inputs, outputs), up to `count` a column, dealt from all inputs evenly."""
    count = min(count, inputs)
    decks = [rng.permutation(inputs) for _ in range(-(-count * outputs // inputs))]
    dealt = np.concatenate(decks)[: count * outputs].reshape(outputs, count).T
    weight = np.zeros((inputs, outputs))
    np.put_along_axis(weight, dealt, rng.normal(0, count**-0.5, dealt.shape), axis=0)
    return weight


def draw_inputs(rng: np.random.Generator, rows: int, features: int, dtype: str) -> Array:
    """Return normal inputs with a tenth of exact zeros, as real data has them."""
    x = rng.normal(size=(rows, features)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = 0
    return x


def draw_layer(
    seed: int, rows: int, inputs: int, outputs: int, dtype: str
) -> tuple[Array, Array, Array]:
    """Return inputs (rows, inputs), a weight (inputs, outputs) and a bias (outputs,)."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(dtype)
    x = draw_inputs(rng, rows, inputs, dtype)
    return x, weight, rng.normal(size=outputs).astype(dtype)


def saved_of(z: Array, activation: str) -> Array:
    """Return what a forward pass saves of z for the backward pass: z itself or f(z)."""
    f = ACTIVATIONS[activation]
    return z if f.saves == "z" else f.f(z)


def draw_targets(
    loss: Loss, rng: np.random.Generator, rows: int, outputs: int, dtype: str
) -> Array:
    """Return targets that `loss` takes; classes half of the time as probabilities."""
    if loss.targets == "classes":
        if rng.random() < 0.5:
            return rng.integers(0, outputs, rows)
        return rng.dirichlet(np.ones(outputs), rows).astype(dtype)
    if loss.targets == "binary":
        return rng.integers(0, 2, (rows, outputs)).astype(dtype)
    if loss.targets == "counts":
        return rng.poisson(2.0, (rows, outputs)).astype(dtype)
    return rng.normal(size=(rows, outputs)).astype(dtype)


def generated_cases(
    count: int = 30,
    seed: int = 0,
    dtype: str = "float32",
    *,
    widest: int = MAX_WIDTH,
    longest: int = MAX_BATCH,
) -> list[Case]:
    """Return `count` networks of 0 to 5 hidden layers that between them hold every table entry.

    Activations, losses, optimizers, depths, weights on or off and biases on or off are dealt from
    decks, so that each occurs from 12 networks on; widths and batches are log-uniform from 1 to
    `widest` and `longest`, and both ends are dealt too.
    """
    rng = np.random.default_rng(seed)
    activations = _deck(rng, sorted(ACTIVATIONS))
    losses = cycle(sorted(LOSSES))
    widths = _log_uniform(rng, widest)
    rows_of_batch = _log_uniform(rng, longest)
    cases = []
    for i, (loss_name, optimizer) in enumerate(
        zip(islice(losses, count), cycle(OPTIMIZERS), strict=False)
    ):
        loss = LOSSES[loss_name]
        depth = (i * 5 + i // 6) % 6
        sizes = [next(widths) for _ in range(depth + 2)]
        if loss.targets == "classes":
            sizes[-1] = max(sizes[-1], 2)
        layers = [
            Dense(sizes[j], sizes[j + 1], next(activations), bias=bool(rng.integers(2)))
            for j in range(depth + 1)
        ]
        if i % 2 == 0:  # half of the networks end as people end them
            last = layers[-1]
            layers[-1] = Dense(last.in_features, last.out_features, "identity", bias=last.bias)
        spec = NetworkSpec.chain(layers, dtype)
        batch = next(rows_of_batch)
        rows = 2 * batch + max(batch // 3, 1)
        weight = rng.uniform(0, 2, rows).astype(dtype) if i % 3 == 0 else None
        cases.append(
            Case(
                f"{i}-{'x'.join(map(str, sizes))}-b{batch}-{loss_name}",
                spec,
                loss,
                optimizer,
                draw_parameters(spec, rng),
                draw_inputs(rng, rows, sizes[0], dtype),
                draw_targets(loss, rng, rows, sizes[-1], dtype),
                weight,
                batch,
            )
        )
    return cases


def _log_uniform(rng: np.random.Generator, most: int) -> Iterator[int]:
    yield 1
    yield most
    while True:
        yield round(float(np.exp(rng.uniform(0, np.log(most)))))


def _deck(rng: np.random.Generator, names: list[str]) -> Iterator[str]:
    while True:
        yield from rng.permutation(names).tolist()


def batches(rows: int, batch: int, steps: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return `order` and `bounds` of `steps` steps: shuffled epochs, partial batches included."""
    order: list[Array] = []
    bounds = [0]
    while len(bounds) <= steps:
        epoch = rng.permutation(rows)
        for start in range(0, rows, batch):
            part = epoch[start : start + batch]
            order.append(part)
            bounds.append(bounds[-1] + len(part))
            if len(bounds) > steps:
                break
    return np.concatenate(order).astype(np.int64), np.asarray(bounds, np.int64)


def integer_case(seed: int = 0, dtype: str = "float32", bias: bool = True) -> Case:
    """Return a ReLU network on small integers whose forward, backward and SGD step are exact.

    Batch, output width and learning rate are powers of two and every number is a small multiple of
    a power of two, so that all products and partial sums, in any order, are below 2^24 multiples of
    their own unit: float32 holds each of them. See `test_testing.py` for the check.
    """
    rng = np.random.default_rng(seed)
    sizes, batch = (9, 13, 4), 16

    def whole(*shape: int) -> Array:
        return rng.integers(-2, 3, shape).astype(dtype)

    layers = [
        Dense(sizes[0], sizes[1], "relu", bias=bias),
        Dense(sizes[1], sizes[2], "identity", bias=bias),
    ]
    spec = NetworkSpec.chain(layers, dtype)
    parameters: Parameters = [
        (whole(sizes[i], sizes[i + 1]), whole(sizes[i + 1]) if bias else None) for i in range(2)
    ]
    return Case(
        "integers",
        spec,
        LOSSES["mse"],
        SGD(2.0**-3),
        parameters,
        whole(batch, sizes[0]),
        whole(batch, sizes[-1]),
        None,
        batch,
    )


def ragged(tile: int, most: int | None = None) -> list[int]:
    """Return the sizes 1 to 2 tile + 1 that matter: 1, 2, and both sides of each multiple."""
    sizes = {1, 2, 3, tile - 1, tile, tile + 1, 2 * tile - 1, 2 * tile, 2 * tile + 1}
    return sorted(size for size in sizes if 1 <= size <= (most or 2 * tile + 1))


def loaded(engine: Engine, case: Case, moments: Sequence[Parameters] = ()) -> Engine:
    """Return `engine` with the case's parameters, statistics and, where given, `moments` loaded."""
    engine.load(case.parameters)
    if case.statistics is not None:
        engine.load_statistics(case.statistics)
    if moments:
        engine.load_moments(moments)
    return engine


def central_differences(function: Callable[[Array], float], x: Array, step: float = 1e-6) -> Array:
    """Return d function / dx of a scalar function of a float64 array, entry by entry.

    The error is ``step^2 |f'''| / 6 + 2^-53 |f| / step``: 1e-10 relative for functions of order 1.
    """
    x = np.array(x, np.float64)
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        middle = x[i]
        x[i] = middle + step
        above = function(x)
        x[i] = middle - step
        gradient[i] = (above - function(x)) / (2 * step)
        x[i] = middle
    return gradient
