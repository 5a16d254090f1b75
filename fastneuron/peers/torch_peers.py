"""PyTorch as a peer, as its own documentation advises somebody who is after speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastneuron.kernels.contract import Parameters
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import BETA1, BETA2, DECAY, EPSILON, MOMENTUM, RHO, Problem

Array = Any


class Torch(Peer):
    """Autograd and the fused optimizers, step by step."""

    name = "torch"
    module = distribution = "torch"
    #: Where it computes, as PyTorch calls it.
    device: ClassVar[str] = "cpu"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        import torch
        from torch.nn import functional

        torch.set_num_threads(threads)
        self.torch = torch
        self.x, self.y = (torch.from_numpy(a).to(self.device) for a in (problem.x, problem.y))
        layers: Any = problem.spec(problem.dtype).layers  # a kind has its own hyper-parameters
        trained = [each for layer in layers for each in (layer.trains_weight, layer.trains_bias)]
        # Weights (O, I), as torch.nn.Linear holds them.
        self.parameters = [
            None if array is None else torch.tensor(array, device=self.device, requires_grad=trains)
            for array, trains in zip(self._start(), trained, strict=True)
        ]
        self.running = [
            torch.tensor(array, device=self.device) for pair in problem.statistics for array in pair
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

        def loss(x: Any, y: Any, running: Any, *parameters: Any) -> Any:
            norms = 0
            for i, layer in enumerate(layers):
                w, b = parameters[2 * i : 2 * i + 2]
                if layer.kind == "dense":
                    x = functional.linear(x, w, b)
                elif layer.kind == "batch_norm":  # what torch.nn.BatchNorm1d calls in training
                    mean, variance = running[2 * norms : 2 * norms + 2]
                    share, epsilon = layer.momentum, layer.epsilon
                    x = functional.batch_norm(x, mean, variance, w, b, True, share, epsilon)
                    norms += 1
                elif layer.kind == "layer_norm":
                    x = functional.layer_norm(x, w.shape, w, b, layer.epsilon)
                else:
                    x = functional.dropout(x, layer.rate)
                x = x if layer.activation == "identity" else f(x)
            return measure(x, y)

        self.loss = self._compiled(loss)
        self.reset()

    def _start(self) -> list[Array]:
        """Return what the parameters start from, one array after the other."""
        pairs = self.problem.parameters
        return [array for w, b in pairs for array in (np.ascontiguousarray(w.T), b)]

    def _compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return loss

    def reset(self) -> None:
        with self.torch.no_grad():
            for parameter, array in zip(self.parameters, self._start(), strict=True):
                if parameter is not None:
                    parameter.copy_(self.torch.from_numpy(array))
            start = (array for pair in self.problem.statistics for array in pair)
            for tensor, array in zip(self.running, start, strict=True):
                tensor.copy_(self.torch.from_numpy(array))
        self.torch.manual_seed(0)  # of dropout
        rate, optim, name = self.problem.learning_rate, self.torch.optim, self.problem.optimizer
        given = [p for p in self.parameters if p is not None and p.requires_grad]
        if name == "adamw":
            # Matrices alone are decayed. Both groups are one call for torch's fused kernel each.
            weights, biases = ([p for p in given if p.ndim == n] for n in (2, 1))
            groups: list[dict[str, Any]]
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
        losses = [self._step(rows) for rows in self.torch.from_numpy(order).to(self.device)]
        return self.torch.stack(losses).double().cpu().numpy()

    def _step(self, rows: Any) -> Any:
        """Train on these rows and return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.x[rows], self.y[rows], self.running, *self.parameters)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def export(self) -> Parameters:
        flat: list[Any] = [
            None if p is None else p.detach().cpu().numpy().T for p in self.parameters
        ]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def statistics(self) -> Parameters:
        flat = [tensor.cpu().numpy() for tensor in self.running]
        return list(zip(flat[::2], flat[1::2], strict=True))


class TorchCompile(Torch):
    """Forward, loss and their gradient through torch.compile; the fused optimizers."""

    name = "torch-compile"

    def _compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        self.torch._dynamo.reset()  # another row is another program, not a change of this one
        return self.torch.compile(loss, dynamic=False)
