"""PyTorch as a peer, as its own documentation advises somebody who is after speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from problems import BETA1, BETA2, DECAY, EPSILON, MOMENTUM, RHO, Peer, Problem

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
        measure = {
            "mse": functional.mse_loss,
            "mae": functional.l1_loss,
            "huber": functional.huber_loss,
            "cross_entropy": functional.cross_entropy,
            "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
            "poisson": functional.poisson_nll_loss,
        }[problem.loss]

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
        rate, optim, name = self.problem.learning_rate, self.torch.optim, self.problem.optimizer
        given = [parameter for parameter in self.parameters if parameter is not None]
        if name == "adamw":
            # Biases are not decayed. Both groups are one call for torch's fused kernel each.
            weights = [p for p in self.parameters[::2] if p is not None]
            biases = [p for p in self.parameters[1::2] if p is not None]
            groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
            groups = [group for group in groups if group["params"]]
            self.optimizer = optim.AdamW(groups, rate, (BETA1, BETA2), EPSILON, DECAY, fused=True)
        elif name == "adam":
            self.optimizer = optim.Adam(given, rate, (BETA1, BETA2), EPSILON, fused=True)
        elif name == "rmsprop":  # has no fused kernel
            self.optimizer = optim.RMSprop(given, rate, RHO, EPSILON, foreach=True)
        else:
            self.optimizer = optim.SGD(
                given,
                rate,
                MOMENTUM if name in ("momentum", "nesterov") else 0.0,
                nesterov=name == "nesterov",
                fused=True,
            )

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
