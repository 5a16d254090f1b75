"""`forward` from Python: of one row, against other libraries; of many, against the peak."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from figures import Figure, at_least, at_most, report, unmeasured
from peak import try_peak
from racing import Say, failure

import fastneuron
from fastneuron.kernels.contract import Parameters
from fastneuron.peers.judging import WrongResult

Array = Any

SMALL, LARGE, MANY = (20, 64, 64, 2), (784, 512, 512, 10), 1024
#: Microseconds of one row; best other library over ours; share of the peak.
SMALL_GOAL, LARGE_GOAL, MANY_GOAL = 4.0, 1.0, 0.90
#: Error of an output over the largest: some 10 times what 784 roundings do in each of three layers.
TOLERANCE = 1e-4
ROUNDS, LONGEST_BLOCK = 15, 0.02
#: Inputs that the calls go through: no call has the input of the one before. Fewer of many rows.
INPUTS, FEW_INPUTS = 16, 3


class Forward:
    """One way to ask a ReLU network: `give` brings rows to the library, `ask` is what is timed."""

    name: str
    module: str
    ours = False

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    @classmethod
    def missing(cls) -> bool:
        return find_spec(cls.module) is None

    def give(self, x: Array) -> Any:
        return x

    def ask(self, x: Any) -> Any:
        raise NotImplementedError

    def take(self, out: Any) -> Array:
        return np.asarray(out)


class Ours(Forward):
    """`Sequential.forward`."""

    name = module = "fastneuron"
    ours = True

    def __init__(self, parameters: Parameters) -> None:
        sizes = [parameters[0][0].shape[0]] + [w.shape[1] for w, _ in parameters]
        net = fastneuron.mlp(sizes, seed=0)
        for layer, (w, b) in zip(net.layers, parameters, strict=True):
            layer.weight, layer.bias = w, b
        self.ask = net.forward  # itself: a call between would be timed too


class Numpy(Forward):
    name = module = "numpy"

    def ask(self, x: Array) -> Array:
        last = len(self.parameters) - 1
        for i, (w, b) in enumerate(self.parameters):
            x = x @ w
            x += b
            if i < last:
                np.maximum(x, 0, out=x)
        return x


class Torch(Forward):
    """`torch.nn.Sequential` in inference mode, tensors in and out."""

    name = module = "torch"

    def __init__(self, parameters: Parameters) -> None:
        import torch

        self.torch = torch
        layers: list[Any] = []
        for w, b in parameters:
            layer = torch.nn.Linear(*w.shape)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(w.T)))
                layer.bias.copy_(torch.from_numpy(b))
            layers += [layer, torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1]).eval()
        self.mode = torch.inference_mode(True)
        self.mode.__enter__()  # once, as a server has it; nobody here needs gradients

    def give(self, x: Array) -> Any:
        return self.torch.from_numpy(x)

    def ask(self, x: Any) -> Any:
        return self.net(x)


class Jax(Forward):
    """A jitted function, device arrays in and out."""

    name = module = "jax"

    def __init__(self, parameters: Parameters) -> None:
        import jax

        held = jax.tree.map(jax.numpy.asarray, parameters)

        def forward(parameters: Any, x: Any) -> Any:
            for i, (w, b) in enumerate(parameters):
                x = x @ w + b
                x = x if i == len(parameters) - 1 else jax.nn.relu(x)
            return x

        self.jax, self.held, self.call = jax, held, jax.jit(forward)

    def give(self, x: Array) -> Any:
        return self.jax.numpy.asarray(x)

    def ask(self, x: Any) -> Any:
        return self.call(self.held, x).block_until_ready()


KINDS: tuple[type[Forward], ...] = (Ours, Numpy, Torch, Jax)


def draw(sizes: Sequence[int], rows: int) -> tuple[Parameters, list[Array]]:
    """Return float32 parameters, and inputs of `rows` rows each."""
    rng = np.random.default_rng(0)
    parameters: Parameters = []
    for a, b in pairwise(sizes):
        w = rng.uniform(-1, 1, (a, b)) * np.sqrt(6 / a)
        parameters.append((w.astype(np.float32), rng.uniform(-0.1, 0.1, b).astype(np.float32)))
    shape = (INPUTS if rows == 1 else FEW_INPUTS, rows, sizes[0])
    return parameters, list(rng.standard_normal(shape).astype(np.float32))


def check(forward: Forward, parameters: Parameters, inputs: Sequence[Array]) -> float:
    """Return the largest error over the largest output; raise where it is large."""
    exact = Numpy([(w.astype(np.float64), b.astype(np.float64)) for w, b in parameters])
    worst = 0.0
    for x in inputs:
        want = exact.ask(x.astype(np.float64))
        got = forward.take(forward.ask(forward.give(x)))
        worst = np.fmax(worst, np.abs(got - want).max() / np.abs(want).max())
        if not np.isfinite(got).all() or worst > TOLERANCE:
            raise WrongResult(f"an output is off by {worst:.1e} of the largest ({TOLERANCE:.0e})")
    return float(worst)


def block_seconds(forward: Forward, given: Sequence[Any], calls: int) -> float:
    ask, turns = forward.ask, range(-(-calls // len(given)))
    start = time.perf_counter()
    for _ in turns:
        for x in given:
            ask(x)
    return (time.perf_counter() - start) / (len(turns) * len(given))


def rounds(
    ready: Mapping[str, tuple[Forward, Sequence[Any]]], seconds: float, what: str, say: Say
) -> dict[str, dict[str, Any]]:
    """Return, by name, the median of interleaved rounds of calls, each on its own inputs."""
    target = min(LONGEST_BLOCK, seconds / (ROUNDS * max(1, len(ready))))
    calls = {
        name: max(1, int(target / block_seconds(forward, given, 1)))
        for name, (forward, given) in ready.items()
    }
    each: dict[str, list[float]] = {name: [] for name in ready}
    shuffled = random.Random(2)
    for turn in range(ROUNDS):
        say(f"{what}: round {turn + 1} of {ROUNDS}")
        for name in shuffled.sample(list(ready), len(ready)):
            forward, given = ready[name]
            block_seconds(forward, given, 1)
            each[name].append(1e6 * block_seconds(forward, given, calls[name]))
    results: dict[str, dict[str, Any]] = {}
    for name, microseconds in each.items():
        low, middle, high = map(float, np.percentile(microseconds, (25, 50, 75)))
        found = {"microseconds": middle, "quartiles": [low, high], "each_round": microseconds}
        results[name] = {"status": "ok"} | found
    return results


def race(
    sizes: Sequence[int], rows: int, kinds: Sequence[type[Forward]], seconds: float, say: Say
) -> dict[str, dict[str, Any]]:
    """Return, by library, the median of interleaved rounds of calls, or why there is none."""
    parameters, inputs = draw(sizes, rows)
    what = f"forward of {rows} x {sizes}"
    results: dict[str, dict[str, Any]] = {}
    ready: dict[str, tuple[Forward, list[Any]]] = {}
    for kind in kinds:
        say(f"{what}: starting {kind.name}")
        try:
            forward = kind(parameters)
            results[kind.name] = {"error": check(forward, parameters, inputs)}
            ready[kind.name] = forward, [forward.give(x) for x in inputs]
        except Exception as problem:  # whatever a library does, the others are measured
            results[kind.name] = failure(problem)
    for name, result in rounds(ready, seconds, what, say).items():
        results[name] |= result
    return results


def forwards(seconds: float, say: Say, kinds: Sequence[type[Forward]] = KINDS) -> dict[str, Any]:
    """Measure one row of both networks beside other libraries, and many rows beside the peak."""
    present = [kind for kind in kinds if not kind.missing()]
    figures = []
    for sizes in (SMALL, LARGE):
        label = "-".join(map(str, sizes))
        results = race(sizes, 1, present, seconds, say)
        for kind in kinds:
            what = f"{label}, 1 row: {kind.name}"
            goal = at_most(SMALL_GOAL if kind.ours and sizes == SMALL else None)
            if kind not in present:
                reason = f"{kind.module} is not installed"
                figures.append(Figure(what, None, "us", goal, "missing", reason))
                continue
            result = results[kind.name]
            if "reason" in result:
                figures.append(unmeasured(what, result, goal, "us"))
            else:
                figures.append(Figure(what, result["microseconds"], "us", goal, detail=result))
        figures += [
            versus(kind.name, results, label, at_least(LARGE_GOAL if sizes == LARGE else None))
            for kind in present
            if not kind.ours and "microseconds" in results[kind.name]
        ]
    peak = try_peak("float32")
    result = race(LARGE, MANY, present[:1], seconds, say)[present[0].name]
    peak = max(peak or 0, try_peak("float32", 3) or 0) or None
    what = f"{'-'.join(map(str, LARGE))}, {MANY} rows: efficiency"
    if "reason" in result:
        figures.append(unmeasured(what, result, at_least(MANY_GOAL)))
    elif peak is not None:
        floor = 2e-3 * MANY * sum(a * b for a, b in pairwise(LARGE)) / peak
        value = floor / result["microseconds"]
        detail = result | {"floor_microseconds": floor}
        figures.append(Figure(what, value, "", at_least(MANY_GOAL), detail=detail))
    return report(figures, peak_gflops_a_core={"float32": peak})


def versus(name: str, results: dict[str, dict[str, Any]], label: str, goal: Any) -> Figure:
    what, ours = f"{label}, 1 row: {name} over fastneuron", results["fastneuron"]
    if "reason" in ours:
        return unmeasured(what, ours, goal)
    return Figure(what, results[name]["microseconds"] / ours["microseconds"], "", goal)
