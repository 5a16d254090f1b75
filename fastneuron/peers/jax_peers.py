"""JAX as a peer: a jitted step a call, or a compiled loop over steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import BETA1, BETA2, DECAY, EPSILON, MOMENTS, MOMENTUM, RHO, Problem

Array = Any


def merged(trained: Any, held: Any) -> Parameters:
    """Return the pairs of all parameters from those that are trained and those that are not."""
    return [
        tuple(b if a is None else a for a, b in zip(*pairs, strict=True))
        for pairs in zip(trained, held, strict=True)
    ]


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
        """Return ``(state, x, y, rows) -> (state, loss)``, state as `reset` makes it."""
        jax, p, measure = self.jax, self.problem, self._measure()
        layers: Any = p.spec(p.dtype).layers  # a kind has its own hyper-parameters
        jnp, tree = jax.numpy, jax.tree.map
        f = getattr(jax.nn, p.activation)
        if p.activation == "gelu":

            def f(z: Any) -> Any:
                return jax.nn.gelu(z, approximate=False)

        def moments_of(x: Any, axis: int) -> tuple[Any, Any]:
            mean = x.mean(axis=axis, keepdims=True)
            return mean, jnp.square(x - mean).mean(axis=axis, keepdims=True)

        def loss(trained: Any, held: Any, running: Any, key: Any, x: Any, y: Any) -> Any:
            moved: list[Any] = []
            for i, (layer, (w, b)) in enumerate(zip(layers, merged(trained, held), strict=True)):
                if layer.kind == "dense":
                    x = x @ w if b is None else x @ w + b
                elif layer.kind == "dropout":
                    kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - layer.rate, x.shape)
                    x = jnp.where(kept, x / (1 - layer.rate), 0)
                else:
                    of_batch = layer.kind == "batch_norm"
                    mean, variance = moments_of(x, 0 if of_batch else 1)
                    x = (x - mean) * jax.lax.rsqrt(variance + layer.epsilon) * w + b
                    if of_batch:
                        seen = (mean, variance * (p.batch / (p.batch - 1)))
                        share = layer.momentum
                        moved.append(
                            tuple(
                                (1 - share) * old + share * new[0]
                                for old, new in zip(running[len(moved)], seen, strict=True)
                            )
                        )
                x = x if layer.activation == "identity" else f(x)
            return measure(x, y), moved

        def step(state: Any, x: Any, y: Any, rows: Any) -> Any:
            trained, held, running, key, moments, count = state
            # Rows are in range: nothing to clamp.
            xs = x.at[rows].get(mode="promise_in_bounds")
            ys = y.at[rows].get(mode="promise_in_bounds")
            key, now = jax.random.split(key) if p.dropout else (key, None)
            descend = jax.value_and_grad(loss, has_aux=True)
            (value, running), g = descend(trained, held, running, now, xs, ys)
            count = count + 1
            moments, move = self._move(trained, moments, g, count)
            trained = tree(jnp.subtract, trained, move)
            return (trained, held, running, key, moments, count), value

        return step

    def _measure(self) -> Callable[..., Any]:
        """Return ``(outputs, y) -> mean loss of the batch``."""
        jax = self.jax
        jnp = jax.numpy

        def cross_entropy(x: Any, y: Any) -> Any:
            log = jax.nn.log_softmax(x)
            return -jnp.mean(jnp.take_along_axis(log, y[:, None], axis=1))

        def huber(x: Any, y: Any) -> Any:
            r = jnp.abs(x - y)
            return jnp.mean(jnp.where(r <= 1, 0.5 * r * r, r - 0.5))

        return {
            "mse": lambda x, y: jnp.mean(jnp.square(x - y)),
            "mae": lambda x, y: jnp.mean(jnp.abs(x - y)),
            "huber": huber,
            "cross_entropy": cross_entropy,
            "binary_cross_entropy": lambda x, y: jnp.mean(jax.nn.softplus(x) - x * y),
            "poisson": lambda x, y: jnp.mean(jnp.exp(x) - x * y),
        }[self.problem.loss]

    def _move(self, parameters: Any, moments: Any, g: Any, count: Any) -> Any:
        """Return the moments and what the optimizer takes off the parameters."""
        jnp, tree, rate = self.jax.numpy, self.jax.tree.map, self.problem.learning_rate
        name = self.problem.optimizer
        if name in ("adam", "adamw"):
            m = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], g)
            v = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], g)
            scale = rate / (1 - BETA1**count)
            root = 1 / jnp.sqrt(1 - BETA2**count)
            move = tree(lambda m, v: scale * m / (jnp.sqrt(v) * root + EPSILON), m, v)
            if name == "adamw":  # matrices alone are decayed
                decay = rate * DECAY
                move = tree(lambda d, w: d + decay * w if w.ndim == 2 else d, move, parameters)
            return (m, v), move
        if name == "rmsprop":
            v = tree(lambda v, g: RHO * v + (1 - RHO) * g * g, moments[0], g)
            return (v,), tree(lambda v, g: rate * g / (jnp.sqrt(v) + EPSILON), v, g)
        g = tree(lambda g: rate * g, g)
        if name == "sgd":
            return moments, g
        v = tree(lambda v, g: MOMENTUM * v + g, moments[0], g)
        return (v,), tree(lambda v, g: g + MOMENTUM * v, v, g) if name == "nesterov" else v

    def _jitted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def summed(state: Any, total: Any, x: Any, y: Any, rows: Any) -> Any:
            state, value = step(state, x, y, rows)
            return state, total + value

        return self.jax.jit(summed, donate_argnums=(0, 1))

    def reset(self) -> None:
        jnp, tree, problem = self.jax.numpy, self.jax.tree.map, self.problem
        trained, held = (
            [
                tuple(
                    jnp.array(array) if array is not None and trains == wanted else None
                    for array, trains in zip(
                        pair, (layer.trains_weight, layer.trains_bias), strict=True
                    )
                )
                for pair, layer in zip(
                    problem.parameters, problem.spec(problem.dtype).layers, strict=True
                )
            ]
            for wanted in (True, False)
        )
        running = tree(jnp.array, problem.statistics)
        moments = tuple(tree(jnp.zeros_like, trained) for _ in range(MOMENTS[problem.optimizer]))
        count = jnp.zeros((), problem.dtype)
        # Of its generators the fastest on a CPU.
        key = self.jax.random.key(0, impl="unsafe_rbg")
        self.state = (trained, held, running, key if problem.dropout else None, moments, count)

    def advance(self, order: Array) -> Array:
        total = self.jax.numpy.zeros((), self.problem.dtype)
        state, x, y, call = self.state, self.x, self.y, self.call
        for rows in order.astype(np.int32):
            state, total = call(state, total, x, y, rows)
        self.state = self.jax.block_until_ready(state)
        return np.full(len(order), float(total) / len(order))

    def export(self) -> Parameters:
        return self.jax.tree.map(np.array, merged(*self.state[:2]))

    def statistics(self) -> Parameters:
        return self.jax.tree.map(np.array, self.state[2])


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
