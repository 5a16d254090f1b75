"""Predictions of a trained network before and after its normalisations were folded into weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from figures import Figure, at_least, quotient, report
from forwards import TOLERANCE, Forward, rounds
from racing import Say

import fastneuron
from fastneuron.datasets import load_digits

Array = Any

#: Hidden layers of the network that learns the digits, and its training.
HIDDEN, EPOCHS, BATCH = (128, 128), 10, 64
#: Rows of a call; 0 are all.
ROWS = (1, 64, 1024, 0)
#: Different inputs that the calls of few rows go through.
INPUTS = 16
#: The time before folding over that after.
GOAL = 1.0


class Asked(Forward):
    """`Sequential.forward` of a network that is there already."""

    name = module = "fastneuron"
    ours = True

    def __init__(self, net: Any) -> None:
        self.ask = net.forward  # itself: a call between would be timed too


def trained(x: Array, y: Array, hidden: tuple[int, ...], epochs: int) -> Any:
    """Return a network with a batch normalisation after each hidden layer's products."""
    layers: list[Any] = []
    for width, inputs in zip(hidden, (x.shape[1], *hidden), strict=False):
        layers.append(fastneuron.Dense(inputs, width, bias=False))
        layers.append(fastneuron.BatchNorm(activation="relu"))
    layers.append(fastneuron.Dense(out_features=int(y.max()) + 1))
    net = fastneuron.Sequential(*layers, seed=0)
    net.fit(x, y, loss="cross_entropy", batch_size=BATCH, epochs=epochs)
    return net


def faults(before: Any, after: Any, x: Array, y: Array) -> str:
    """Return what is wrong with the folded network, or nothing."""
    if any(layer.kind == "batch_norm" for layer in after.spec.layers):
        return "a batch normalisation is left"
    outputs = [net.forward(x) for net in (before, after)]
    largest = float(np.abs(outputs[0]).max())
    error = float(np.abs(np.subtract(*outputs)).max()) / largest
    if not error <= TOLERANCE:
        return f"an output is off by {error:.1e} of the largest ({TOLERANCE:.0e})"
    classes = [output.argmax(axis=1) for output in outputs]
    if differ := int((classes[0] != classes[1]).sum()):
        return f"{differ} of {len(x)} predictions differ"
    return ""


def folding(
    seconds: float,
    say: Say,
    rows: tuple[int, ...] = ROWS,
    hidden: tuple[int, ...] = HIDDEN,
    epochs: int = EPOCHS,
) -> dict[str, Any]:
    """Train a network on the digits, fold it, and ask both for the same rows by turns."""
    x, y = load_digits()
    x = x / np.float32(16)
    say("folding: training on the digits")
    before = trained(x, y, hidden, epochs)
    after = before.fold()
    reason = faults(before, after, x, y)
    label = "-".join(map(str, after.spec.sizes))
    right = float((after.forward(x).argmax(axis=1) == y).mean())
    figures = [
        Figure(f"digits {label}: same predictions", None, status="wrong", reason=reason)
        if reason
        else Figure(f"digits {label}: same predictions; share right", right)
    ]
    rng = np.random.default_rng(0)
    for asked in rows:
        count = asked or len(x)
        chosen = [rng.permutation(len(x))[:count] for _ in range(INPUTS if count <= 64 else 2)]
        inputs = [x[each] for each in chosen]
        ready = {name: (Asked(net), inputs) for name, net in (("before", before), ("after", after))}
        what = f"digits {label}, {count} row{'s' * (count > 1)}"
        results = rounds(ready, seconds, what, say)
        figures += [
            Figure(f"{what}: {name}", result["microseconds"], "us", detail=result)
            for name, result in results.items()
        ]
        ratio = quotient(f"{what}: before over after", results, "before", "after", at_least(GOAL))
        figures.append(ratio)
    return report(figures)
