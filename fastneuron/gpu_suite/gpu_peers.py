"""Other libraries on the card, and our engines beside them: the peers of `fastneuron.peers`.

Each trains as its own documentation advises somebody who is after speed there: PyTorch eagerly,
its steps recorded as a CUDA graph, and through torch.compile; JAX by a compiled loop over steps.
Where many models are trained at once, through vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastneuron.gpu_suite.engines import Kind
from fastneuron.kernels.contract import Engine, Parameters
from fastneuron.kernels.ensemble_contract import of_model
from fastneuron.losses import LOSSES
from fastneuron.peers.engines import Fastneuron
from fastneuron.peers.jax_peers import JaxJit, JaxScan, merged
from fastneuron.peers.peer import Peer
from fastneuron.peers.problems import Problem
from fastneuron.peers.torch_peers import Torch, TorchCompile
from fastneuron.schedules import Horizon

__all__ = [
    "MANY_PEERS",
    "PEERS",
    "JaxVmap",
    "Ours",
    "OursMany",
    "TorchVmap",
    "jax_missing",
    "many_starts",
    "torch_missing",
]

Array = Any


def torch_missing() -> str:
    """Return why PyTorch cannot be timed on the card, or nothing."""
    if not find_spec("torch"):
        return "torch is not installed"
    if not import_module("torch").cuda.is_available():
        return "torch sees no card: is it a build for the CPU?"
    return ""


def jax_missing() -> str:
    """Return why JAX cannot be timed on the card, or nothing."""
    if not find_spec("jax"):
        return "jax is not installed"
    try:
        platform = import_module("jax").default_backend()
    except RuntimeError as error:
        return f"jax does not start: {error}"
    return "" if platform in ("gpu", "cuda") else f"jax sees no card: it computes on the {platform}"


class Ours(Fastneuron):
    """An engine on the card, its data resident, a call's steps in one chunk.

    Parameters
    ----------
    problem : Problem
    threads : int
    kind : Kind
    precision : str
        Of the products.
    """

    # Seconds of a chunk, which never ends before its steps do.
    CHUNK = 3600.0

    def __init__(self, problem: Problem, threads: int, kind: Kind, precision: str) -> None:
        self.kind = kind
        self.precision = precision
        super().__init__(problem, threads)
        self.chunk = 1 << 20
        self.engine.hold(problem.x, problem.y, None)

    def _new_engine(self) -> Engine:
        problem = self.problem
        given = {} if self.precision == "float32" else {"precision": self.precision}
        spec = problem.spec(problem.dtype)
        loss = LOSSES[problem.loss]
        return self.kind.new(spec, loss, self.optimizer, batch_size=problem.batch, **given)


class OursMany(Ours):
    """An engine on the card of many models at once, all of them on the same batches.

    Losses and parameters that it returns are those of the first model.
    """

    def __init__(self, problem: Problem, threads: int, kind: Kind, models: int) -> None:
        self.many = many_starts(problem, models)
        super().__init__(problem, threads, kind, "float32")

    def _new_engine(self) -> Any:
        problem = self.problem
        optimizers = [self.optimizer] * len(self.many[0][0])
        spec = problem.spec(problem.dtype)
        return self.kind.ensemble(spec, LOSSES[problem.loss], optimizers, problem.batch)

    def reset(self) -> None:
        self.step = 0
        zeros = [(np.zeros_like(w), None if b is None else np.zeros_like(b)) for w, b in self.many]
        self.engine.load(self.many)
        self.engine.load_moments([zeros] * self.optimizer.n_moments)

    def advance(self, order: Array) -> Array:
        steps, batch = order.shape
        models = len(self.many[0][0])
        rates = self.rates.rates(self.step, steps, Horizon(self.step + steps, steps))
        scalars = self.rates.scalars(self.step, rates)
        losses = np.empty((steps, models))
        outcome: Any = self.engine.run(
            self.problem.x,
            self.problem.y,
            None,
            order.reshape(1, -1),
            np.arange(steps + 1, dtype=np.int64) * batch,
            np.broadcast_to(scalars[:, None], (steps, models, scalars.shape[1])),
            losses,
        )
        if outcome.status.any():
            m = int(np.argmax(outcome.status))
            raise FloatingPointError(f"model {m} failed at step {self.step + outcome.steps[m]}")
        self.step += steps
        return losses[:, 0]

    def export(self) -> Parameters:
        return of_model(self.engine.export(), 0)


class TorchCuda(Torch):
    """Autograd and the fused optimizers, a launch an operation."""

    name = "torch"
    device = "cuda"

    @classmethod
    def missing(cls) -> str:
        return torch_missing()


class TorchCudaCompile(TorchCuda, TorchCompile):
    """Forward, loss and their gradient through torch.compile; the fused optimizers."""

    name = "torch compile"


class TorchGraph(TorchCuda):
    """A whole step recorded as a CUDA graph; its rows are copied into it."""

    name = "torch graph"
    #: Steps before the recording, as PyTorch's documentation has them.
    WARM_UP = 3

    def reset(self) -> None:
        super().reset()
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        self._record()
        # Recording trained: back to the start, in the places that the graph knows.
        torch = self.torch
        with torch.no_grad():
            for parameter, array in zip(self.parameters, self._start(), strict=True):
                if parameter is not None:
                    parameter.copy_(torch.from_numpy(array))
            for state in self.optimizer.state.values():
                for moment in state.values():
                    if torch.is_tensor(moment):
                        moment.zero_()

    def _record(self) -> None:
        torch = self.torch
        self.rows = torch.arange(self.problem.batch, device=self.device)
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UP):
                super()._step(self.rows)
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = super()._step(self.rows)

    def _step(self, rows: Any) -> Any:
        self.rows.copy_(rows)
        self.graph.replay()
        return self.out.clone()


class _OnCard:
    """What JAX's peers on the card have in common."""

    @classmethod
    def missing(cls) -> str:
        return jax_missing()


class JaxCudaJit(_OnCard, JaxJit):
    """One jitted, donated step a call."""

    name = "jax jit"


class JaxCudaScan(_OnCard, JaxScan):
    """All steps of a call in one compiled `lax.scan`."""

    name = "jax scan"


def many_starts(problem: Problem, models: int, seed: int = 0) -> Parameters:
    """Return what so many models start from, along a new first axis: the problem's own is first.

    The others have its numbers in other places.
    """
    rng = np.random.default_rng(seed)

    def many(array: Array) -> Array:
        others = (rng.permutation(array.reshape(-1)) for _ in range(models - 1))
        return np.stack([array, *(other.reshape(array.shape) for other in others)])

    return [(many(w), None if b is None else many(b)) for w, b in problem.parameters]


class TorchVmap(TorchCuda):
    """Gradients of all models by `torch.func.vmap`, one optimizer over their stacked parameters.

    Losses and parameters that it returns are those of the first model.
    """

    name = "torch vmap"

    def __init__(self, problem: Problem, threads: int, models: int) -> None:
        self.many = many_starts(problem, models)
        super().__init__(problem, threads)

    def _start(self) -> list[Array]:
        turned = ((np.ascontiguousarray(w.swapaxes(1, 2)), b) for w, b in self.many)
        return [array for pair in turned for array in pair]

    def _compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        func = self.torch.func

        def loss_of(parameters: Any, x: Any, y: Any) -> Any:
            return loss(x, y, [], *parameters)

        vmapped: Callable[..., Any] = func.vmap(func.grad_and_value(loss_of), (0, None, None))
        return vmapped

    def _step(self, rows: Any) -> Any:
        gradients, losses = self.loss(tuple(self.parameters), self.x[rows], self.y[rows])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient
        self.optimizer.step()
        return losses.detach()

    def advance(self, order: Array) -> Array:
        return super().advance(order)[:, 0]

    def export(self) -> Parameters:
        first = [None if p is None else p[0].detach().cpu().numpy().T for p in self.parameters]
        return list(zip(first[::2], first[1::2], strict=True))  # type: ignore[arg-type]


class TorchVmapGraph(TorchGraph, TorchVmap):
    """Its steps recorded as a CUDA graph."""

    name = "torch vmap graph"


class JaxVmap(JaxCudaScan):
    """The compiled loop over steps, each of all models by `jax.vmap`.

    Losses and parameters that it returns are those of the first model.
    """

    name = "jax vmap scan"

    def __init__(self, problem: Problem, threads: int, models: int) -> None:
        self.many = many_starts(problem, models)
        super().__init__(problem, threads)

    def _jitted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return super()._jitted(self.jax.vmap(step, (0, None, None, None)))

    def reset(self) -> None:
        super().reset()
        _, held, running, key, moments, _ = self.state
        jnp, tree = self.jax.numpy, self.jax.tree.map
        trained = [tuple(pair) for pair in tree(jnp.array, self.many)]
        moments = tuple(tree(jnp.zeros_like, trained) for _ in moments)
        count = jnp.zeros(len(self.many[0][0]), self.problem.dtype)
        self.state = (trained, held, running, key, moments, count)

    def advance(self, order: Array) -> Array:
        return super().advance(order)[:, 0]

    def export(self) -> Parameters:
        first = self.jax.tree.map(lambda array: np.array(array[0]), self.state[0])
        return merged(first, self.state[1])


#: Those that train one model, and many.
PEERS: tuple[type[Peer], ...] = (
    TorchCuda, TorchGraph, TorchCudaCompile, JaxCudaScan, JaxCudaJit,
)  # fmt: skip
MANY_PEERS: tuple[type[TorchVmap | JaxVmap], ...] = (TorchVmap, TorchVmapGraph, JaxVmap)
