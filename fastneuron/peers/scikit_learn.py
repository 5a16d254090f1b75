"""scikit-learn's multi-layer perceptron as a peer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.peers.peer import Peer, Unsupported
from fastneuron.peers.problems import BETA1, BETA2, EPSILON, MOMENTUM, Problem

__all__ = ["Sklearn"]

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
            assert b is not None
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
            assert b is not None
            model.coefs_[i], model.intercepts_[i] = w.copy(), b.copy()
        del model._optimizer  # made again, with moments of zero, by the next call

    def advance(self, order: Array) -> Array:
        rows = order.reshape(-1)
        self.model.partial_fit(self.problem.x[rows], self.y[rows], **self.named)
        return np.full(len(order), self.model.loss_ * (1 if self.classes else 2))

    def export(self) -> Parameters:
        return list(zip(self.model.coefs_, self.model.intercepts_, strict=True))
