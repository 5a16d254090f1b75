"""Who is measured: fastneuron's backends and other libraries, behind one interface.

Each peer trains as its own documentation advises somebody who is after speed. A library is imported
when its peer is made.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from jax_peers import JaxJit, JaxScan
from ours import FastneuronCython, FastneuronNumba, FastneuronNumpy
from problems import BETA1, BETA2, EPSILON, MOMENTUM, Peer, Problem, Unsupported
from torch_peers import Torch, TorchCompile

from fastneuron.kernels.contract import Parameters

Array = Any


class Sklearn(Peer):
    """MLPClassifier or MLPRegressor; `partial_fit` on many batches at once, without its shuffle.

    Two classes are one logistic output here: that network, from the difference of the two outputs'
    parameters, is what is trained and checked. The gradient of its squared error is O/2 times ours,
    which the learning rate makes up for, or Adam's epsilon; its reported loss is half of ours.
    """

    name = "sklearn"
    module, distribution = "sklearn", "scikit-learn"
    loss_each_step = False

    def __init__(self, problem: Problem, threads: int) -> None:
        if not problem.plain:
            raise Unsupported("it has dense layers alone, all trained")
        if not problem.bias:
            raise Unsupported("its layers always have biases")
        if problem.loss not in ("mse", "cross_entropy"):
            raise Unsupported(f"it has no {problem.loss} on values")
        if problem.optimizer not in ("sgd", "momentum", "adam"):
            raise Unsupported(f"not written out for {problem.optimizer}")
        names = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic"}
        if problem.activation not in names:
            raise Unsupported(f"it has no {problem.activation}")
        if problem.loss == "cross_entropy" and problem.sizes[-1] == 2:
            w, b = problem.parameters[-1]
            last = (w[:, 1:] - w[:, :1], b[1:] - b[:1])
            problem = replace(
                problem,
                sizes=(*problem.sizes[:-1], 1),
                loss="binary_cross_entropy",
                y=problem.y[:, None].astype(problem.dtype),
                parameters=[*problem.parameters[:-1], last],
            )
        super().__init__(problem, threads)
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.classes = problem.loss != "mse"
        outputs = problem.sizes[-1]
        adam = problem.optimizer == "adam"
        steeper = 1 if self.classes else outputs / 2
        self.model = (MLPClassifier if self.classes else MLPRegressor)(
            hidden_layer_sizes=problem.sizes[1:-1],
            activation=names[problem.activation],
            solver="adam" if adam else "sgd",
            alpha=0.0,
            batch_size=problem.batch,
            learning_rate_init=problem.learning_rate / (1 if adam else steeper),
            shuffle=False,
            momentum=MOMENTUM if problem.optimizer == "momentum" else 0.0,
            nesterovs_momentum=False,
            beta_1=BETA1,
            beta_2=BETA2,
            # Added before its correction of the second moment, 1 / sqrt(1 - beta2) at first.
            epsilon=EPSILON * steeper * np.sqrt(1 - BETA2),
        )
        self.y = problem.y
        if self.y.ndim == 2 and outputs == 1:
            self.y = self.y[:, 0].astype(np.int64) if self.classes else self.y[:, 0]
        self.named = {"classes": np.arange(max(2, outputs))} if self.classes else {}
        self.advance(np.arange(problem.batch)[None])  # makes coefs_
        self.reset()

    def reset(self) -> None:
        model = self.model
        for i, (w, b) in enumerate(self.problem.parameters):
            model.coefs_[i], model.intercepts_[i] = w.copy(), b.copy()
        del model._optimizer  # made again, with moments of zero, by the next call

    def advance(self, order: Array) -> Array:
        rows = order.reshape(-1)
        self.model.partial_fit(self.problem.x[rows], self.y[rows], **self.named)
        return np.full(len(order), self.model.loss_ * (1 if self.classes else 2))

    def export(self) -> Parameters:
        return list(zip(self.model.coefs_, self.model.intercepts_, strict=True))


class PlainNumpy(Peer):
    """The step as a script would have it: products, in-place elementwise work, no package."""

    name = "numpy"
    module = distribution = "numpy"

    def __init__(self, problem: Problem, threads: int) -> None:
        if not problem.plain:
            raise Unsupported("written out for dense layers, all trained")
        for name, written in (
            (problem.activation, ("relu", "tanh", "sigmoid")),
            (problem.loss, ("mse", "cross_entropy")),
            (problem.optimizer, ("sgd", "momentum", "adam")),
        ):
            if name not in written:
                raise Unsupported(f"not written out for {name}")
        super().__init__(problem, threads)
        self.reset()

    def reset(self) -> None:
        self.step = 0
        pairs = self.problem.parameters
        self.parameters = [(w.copy(), None if b is None else b.copy()) for w, b in pairs]
        self.flat = [array for pair in self.parameters for array in pair if array is not None]
        self.m = [np.zeros_like(array) for array in self.flat]
        self.v = [np.zeros_like(array) for array in self.flat]

    def advance(self, order: Array) -> Array:
        x, y = self.problem.x, self.problem.y
        return np.array([self._step(x[rows], y[rows]) for rows in order], np.float64)

    def export(self) -> Parameters:
        return self.parameters

    def _step(self, x: Array, y: Array) -> float:
        kind, last = self.problem.activation, len(self.parameters) - 1
        activations = [x]
        for i, (w, b) in enumerate(self.parameters):
            z = activations[-1] @ w
            if b is not None:
                z += b
            if i < last and kind == "relu":
                np.maximum(z, 0, out=z)
            elif i < last:
                np.tanh(z if kind == "tanh" else 0.5 * z, out=z)
                z = z if kind == "tanh" else 0.5 + 0.5 * z
            activations.append(z)
        d = activations.pop()
        if self.problem.loss == "mse":
            d -= y
            loss = float(np.mean(np.square(d)))
            d *= 2 / d.size
        else:
            rows = np.arange(len(y))
            d -= d.max(axis=1, keepdims=True)
            chosen = d[rows, y]
            np.exp(d, out=d)
            total = d.sum(axis=1, keepdims=True)
            loss = float(np.mean(np.log(total[:, 0]) - chosen))
            d /= total
            d[rows, y] -= 1
            d /= len(y)
        gradients: list[Array] = []
        for i in range(last, -1, -1):
            a, (w, b) = activations[i], self.parameters[i]
            gradients[:0] = [a.T @ d] if b is None else [a.T @ d, d.sum(axis=0)]
            if i > 0:
                d = d @ w.T
                d *= {"relu": a > 0, "tanh": 1 - a * a, "sigmoid": a * (1 - a)}[kind]
        self._update(gradients)
        return loss

    def _update(self, gradients: list[Array]) -> None:
        self.step += 1
        kind, rate = self.problem.optimizer, self.problem.learning_rate
        scale = rate / (1 - BETA1**self.step)
        root = 1 / float(np.sqrt(1 - BETA2**self.step))
        for p, g, m, v in zip(self.flat, gradients, self.m, self.v, strict=True):
            if kind == "adam":
                m += (1 - BETA1) * (g - m)
                np.square(g, out=g)
                v += (1 - BETA2) * (g - v)
                np.sqrt(v, out=g)
                g *= root
                g += EPSILON
                np.divide(m, g, out=g)
                g *= scale
            else:
                if kind == "momentum":
                    m *= MOMENTUM
                    m += g
                    g = m
                g = rate * g
            p -= g


#: Every peer, in the order of the table: ours, then the others.
PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        FastneuronNumba,
        FastneuronCython,
        FastneuronNumpy,
        Torch,
        TorchCompile,
        JaxJit,
        JaxScan,
        Sklearn,
        PlainNumpy,
    )
}


def parse_peers(text: str) -> list[str]:
    """Read names of peers, or "all"."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}: there are {', '.join(PEERS)}")
    return names
