"""The training step as a script would have it: NumPy and no package."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.peers.peer import Peer, Unsupported
from fastneuron.peers.problems import BETA1, BETA2, EPSILON, MOMENTUM, Problem

__all__ = ["PlainNumpy"]

Array = Any


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
