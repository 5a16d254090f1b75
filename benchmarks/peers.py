"""Who is measured by `engine.py`: fastneuron's backends and other libraries, behind one interface.

Each peer trains as its own documentation advises somebody who is after speed. A library is imported
when its peer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ours import FastneuronCython, FastneuronNumba, FastneuronNumpy
from problems import BETA1, BETA2, EPSILON, MOMENTUM, Peer, Problem, Unsupported

from fastneuron.kernels.contract import Parameters

Array = Any


class Torch(Peer):
    """Autograd and the fused optimizers, step by step."""

    name = "torch"
    module = distribution = "torch"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        import torch
        from torch.nn import functional

        torch.set_num_threads(threads)
        self.torch = torch
        self.x, self.y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
        # Weights (O, I), as torch.nn.Linear holds them.
        self.parameters = [
            None if array is None else torch.tensor(array, requires_grad=True)
            for array in self._transposed(problem.parameters)
        ]
        f = getattr(functional, problem.activation)
        classes = problem.loss == "cross_entropy"
        measure = functional.cross_entropy if classes else functional.mse_loss

        def loss(x: Any, y: Any, *parameters: Any) -> Any:
            for i in range(0, len(parameters), 2):
                x = functional.linear(x, parameters[i], parameters[i + 1])
                x = x if i == len(parameters) - 2 else f(x)
            return measure(x, y)

        self.loss = self._compiled(loss)
        self.reset()

    @staticmethod
    def _transposed(parameters: Parameters) -> list[Array]:
        return [array for w, b in parameters for array in (np.ascontiguousarray(w.T), b)]

    def _compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return loss

    def reset(self) -> None:
        flat = self._transposed(self.problem.parameters)
        with self.torch.no_grad():
            for parameter, array in zip(self.parameters, flat, strict=True):
                if parameter is not None:
                    parameter.copy_(self.torch.from_numpy(array))
        given = [parameter for parameter in self.parameters if parameter is not None]
        rate, optim = self.problem.learning_rate, self.torch.optim
        if self.problem.optimizer == "adam":
            self.optimizer = optim.Adam(given, rate, (BETA1, BETA2), EPSILON, fused=True)
        else:
            momentum = MOMENTUM if self.problem.optimizer == "momentum" else 0.0
            self.optimizer = optim.SGD(given, rate, momentum, fused=True)

    def advance(self, order: Array) -> Array:
        x, y, parameters, optimizer = self.x, self.y, self.parameters, self.optimizer
        losses = []
        for rows in self.torch.from_numpy(order):
            optimizer.zero_grad()
            loss = self.loss(x[rows], y[rows], *parameters)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return self.torch.stack(losses).double().numpy()

    def export(self) -> Parameters:
        flat = [None if p is None else p.detach().numpy().T for p in self.parameters]
        return list(zip(flat[::2], flat[1::2], strict=True))


class TorchCompile(Torch):
    """Forward, loss and their gradient through torch.compile; the fused optimizers."""

    name = "torch-compile"

    def _compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        self.torch._dynamo.reset()  # another row is another program, not a change of this one
        return self.torch.compile(loss, dynamic=False)


class JaxJit(Peer):
    """One jitted, donated step a call; the gather is part of it. Sums its losses as it goes."""

    name = "jax-jit"
    module = distribution = "jax"
    loss_each_step = False

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        import jax

        self.jax = jax
        jax.config.update("jax_enable_x64", problem.dtype == "float64")
        self.x, self.y = jax.numpy.asarray(problem.x), jax.numpy.asarray(problem.y)
        self.call = self._jitted(self._step())
        self.reset()

    def _step(self) -> Callable[..., Any]:
        """Return ``(state, x, y, rows) -> (state, loss)``, state (parameters, moments, count)."""
        jax, p = self.jax, self.problem
        jnp, tree, rate = jax.numpy, jax.tree.map, p.learning_rate
        f = getattr(jax.nn, p.activation)
        if p.activation == "gelu":

            def f(z: Any) -> Any:
                return jax.nn.gelu(z, approximate=False)

        def loss(parameters: Any, x: Any, y: Any) -> Any:
            for i, (w, b) in enumerate(parameters):
                x = x @ w if b is None else x @ w + b
                x = x if i == len(parameters) - 1 else f(x)
            if p.loss == "mse":
                return jnp.mean(jnp.square(x - y))
            log = jax.nn.log_softmax(x)
            return -jnp.mean(jnp.take_along_axis(log, y[:, None], axis=1))

        def step(state: Any, x: Any, y: Any, rows: Any) -> Any:
            parameters, moments, count = state
            # Rows are in range: nothing to clamp.
            xs = x.at[rows].get(mode="promise_in_bounds")
            ys = y.at[rows].get(mode="promise_in_bounds")
            value, g = jax.value_and_grad(loss)(parameters, xs, ys)
            count = count + 1
            if p.optimizer == "adam":
                m = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], g)
                v = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], g)
                moments = (m, v)
                scale = rate / (1 - BETA1**count)
                root = 1 / jnp.sqrt(1 - BETA2**count)
                g = tree(lambda m, v: scale * m / (jnp.sqrt(v) * root + EPSILON), m, v)
            elif p.optimizer == "momentum":
                g = tree(lambda m, g: MOMENTUM * m + rate * g, moments[0], g)
                moments = (g,)
            else:
                g = tree(lambda g: rate * g, g)
            return (tree(lambda p, g: p - g, parameters, g), moments, count), value

        return step

    def _jitted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def summed(state: Any, total: Any, x: Any, y: Any, rows: Any) -> Any:
            state, value = step(state, x, y, rows)
            return state, total + value

        return self.jax.jit(summed, donate_argnums=(0, 1))

    def reset(self) -> None:
        jnp, tree = self.jax.numpy, self.jax.tree.map
        parameters = tree(jnp.array, self.problem.parameters)
        count = {"sgd": 0, "momentum": 1, "adam": 2}[self.problem.optimizer]
        moments = tuple(tree(jnp.zeros_like, parameters) for _ in range(count))
        self.state = (parameters, moments, jnp.zeros((), self.problem.dtype))

    def advance(self, order: Array) -> Array:
        total = self.jax.numpy.zeros((), self.problem.dtype)
        state, x, y, call = self.state, self.x, self.y, self.call
        for rows in order.astype(np.int32):
            state, total = call(state, total, x, y, rows)
        self.state = self.jax.block_until_ready(state)
        return np.full(len(order), float(total) / len(order))

    def export(self) -> Parameters:
        return self.jax.tree.map(np.array, self.state[0])


class JaxScan(JaxJit):
    """All steps of a call in one compiled `lax.scan`."""

    name = "jax-scan"
    loss_each_step = True

    def _jitted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def scanned(state: Any, x: Any, y: Any, order: Any) -> Any:
            return self.jax.lax.scan(lambda s, rows: step(s, x, y, rows), state, order)

        return self.jax.jit(scanned, donate_argnums=0)

    def advance(self, order: Array) -> Array:
        self.state, losses = self.call(self.state, self.x, self.y, order.astype(np.int32))
        self.jax.block_until_ready(self.state)
        return np.asarray(losses, np.float64)


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
        if not problem.bias:
            raise Unsupported("its layers always have biases")
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
        if problem.activation not in ("relu", "tanh", "sigmoid"):
            raise Unsupported(f"not written out for {problem.activation}")
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
