"""The front door: `fit`, `Trainer` and the command on a card, "auto", and arrays in and out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.device_arrays import DeviceArray
from fastneuron.fitting import History
from fastneuron.gpu_suite.calibration import PAPER
from fastneuron.gpu_suite.doors import KERNELS, Lender, behind_the_door, lenders, takes_arrays
from fastneuron.gpu_suite.engines import Kind
from fastneuron.gpu_suite.running import Check, NotHere
from fastneuron.layers import Dense
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import SGD
from fastneuron.testing import Precision, assert_within, flat, forward
from fastneuron.trainer import Trainer

__all__ = ["AUTO_SIZES", "door_checks", "exact_data", "exact_network", "numbers_of"]

#: Of the networks that "auto" is asked about, from few rows to many: layers, and rows of a batch.
AUTO_SIZES = (((4, 8, 1), 16), ((64, 64, 64, 4), 16384), ((1024, 4096, 1024), 8192))
#: Two steps: what a third adds would have more bits than float32.
ROWS, FEATURES, BATCH = 16, 4, 8
#: Seconds of the command, which compiles its kernels in a process of its own.
COMMAND_SECONDS = 240.0


def exact_data() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return small whole numbers: with a rate that is a power of two every sum is exact."""
    x = np.random.default_rng(0).integers(-3, 4, (ROWS, FEATURES)).astype("float32")
    return x, (x @ np.array([[1], [-2], [3], [1]], "float32") + 1).astype("float32")


def exact_network() -> Sequential:
    """Return a network whose first steps on those data are exact in float32, in any order."""
    return Sequential(Dense(FEATURES, 1, weight_init="zeros"))


#: Of a training that stays exact.
EXACT: dict[str, Any] = {"loss": "mse", "optimizer": SGD(2.0**-4), "batch_size": BATCH}


def numbers_of(net: Sequential) -> bytes:
    """Return the bits of all parameters, as the host has them."""
    return b"".join(
        each.tobytes() for each in flat([(each.weight, each.bias) for each in net.layers])
    )


def door_checks(kind: Kind, said: dict[str, str], *, simulated: bool) -> list[Check]:
    """Return the checks; what "auto" says of each network is left in `said`."""

    def check(work: Callable[..., float | None], *given: Any) -> float:
        with behind_the_door(kind):
            return work(*given) or 0.0

    checks = [
        Check("fit(device='cuda')", partial(check, _check_fit)),
        Check("Trainer(device='cuda')", partial(check, _check_trainer)),
        Check("predictions", partial(check, _check_predictions)),
    ]
    for sizes, batch in AUTO_SIZES:
        name = f"device='auto' for {'-'.join(map(str, sizes))} b{batch}"
        checks.append(Check(name, partial(check, _check_auto, sizes, batch, said, simulated)))
    checks += [
        Check(f"arrays: {name}", partial(check, _check_arrays, kind, lender))
        for name, lender in lenders(simulated=simulated).items()
    ]
    return [*checks, Check("fastneuron train --device cuda", partial(_check_command, kind))]


def _fitted(device: str | None, x: Any, y: Any, backend: str = "auto") -> tuple[bytes, History]:
    net = exact_network()
    history = net.fit(
        x, y, epochs=1, shuffle=False, backend=backend, device=device, progress=False, **EXACT
    )
    return numbers_of(net), history


def _check_fit() -> None:
    x, y = exact_data()
    want, right = _fitted(None, x, y, "numpy")
    got, history = _fitted("cuda", x, y)
    assert history.backend == "cuda", f"trained on the backend {history.backend!r}"
    assert "device='cuda'" in history.reason, f"chosen because: {history.reason}"
    assert history.loss.tolist() == right.loss.tolist(), f"loss {history.loss}, want {right.loss}"
    assert got == want, "other parameters than the reference's, where every sum is exact"


def _check_trainer() -> None:
    x, y = exact_data()
    want, _ = _fitted(None, x, y, "numpy")
    by_run, by_step = (exact_network() for _ in range(2))
    trainers = [Trainer(net, device="cuda", **EXACT) for net in (by_run, by_step)]
    losses = trainers[0].run(x, y, shuffle=False)
    cuts = [slice(first, first + BATCH) for first in range(0, ROWS, BATCH)]
    steps = [trainers[1].step(x[cut], y[cut]) for cut in cuts]
    assert losses.tolist() == steps, f"run gives {losses}, steps give {steps}"
    plan = trainers[0].plan
    assert plan["device"] == "cuda", f"the plan's device is {plan['device']!r}"
    for name, net in (("run", by_run), ("step", by_step)):
        assert numbers_of(net) == want, f"{name}: other parameters than the reference's"


def _check_predictions() -> float:
    net = mlp([FEATURES, 3, 2], seed=0)
    x, _ = exact_data()
    parameters = [(layer.weight, layer.bias) for layer in net.layers]
    want = forward(net.spec, parameters, x, Precision.of("float32"))[1][-1]
    with backends.use("cuda"):
        return assert_within(net.forward(x), want, "output")


def _check_auto(sizes: tuple[int, ...], batch: int, said: dict[str, str], simulated: bool) -> None:
    real = backends.cards
    if simulated:
        backends.cards = lambda: [PAPER]
    try:  # Nothing is trained: the choice is made when a trainer is.
        backend = Trainer(mlp(list(sizes), seed=0), "mse", batch_size=batch, device="auto").backend
    finally:
        backends.cards = real
    why = backend.reason.partition("device auto: ")[2]
    said[f"{'-'.join(map(str, sizes))} b{batch}"] = f"{backend.name}, {why}"
    assert why, f"it does not say why: {backend.reason}"
    if "predicted" not in why:  # the driver does not describe the card
        assert backend.device == "cpu", f"the card is taken because: {why}"


def _check_arrays(kind: Kind, lender: Callable[[], Lender]) -> None:
    if not takes_arrays(kind):
        raise NotHere("this engine takes arrays on the host")
    lend, take = lender()
    x, y = exact_data()
    want, _ = _fitted("cuda", x, y)
    got, history = _fitted("auto", lend(x), lend(y))
    assert history.backend == "cuda", "rows on the card were trained on elsewhere"
    assert got == want, "other parameters than from the same rows on the host"
    trainer = Trainer(exact_network(), device="cuda", **EXACT)
    trainer.run(x, y, shuffle=False)
    out: Any = trainer.forward(lend(x))
    assert isinstance(out, DeviceArray), f"the result is a {type(out).__name__}"
    right = trainer.forward(x)
    assert np.array_equal(take(out), right), "other numbers than from the same rows on the host"


def _check_command(kind: Kind) -> float:
    if KERNELS.get(kind.name) != backends.device_kernels():
        raise NotHere(f"the command takes the kernels by {backends.device_kernels() or 'nobody'}")
    x, y = exact_data()
    with TemporaryDirectory() as folder:
        table, model = Path(folder, "table.csv"), Path(folder, "model")
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow([*"abcd", "y"])
            rows.writerows(np.hstack([x, y + 0.5]).tolist())
        words = ["train", str(table), "--target", "y", "--out", str(model), "--epochs", "1"]
        words += ["--hidden", "3", "--batch-size", "4", "--device", "cuda", "--json"]
        result = subprocess.run(
            [sys.executable, "-m", "fastneuron", *words],
            capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS,
        )  # fmt: skip
        last = (result.stderr.strip().splitlines() or [""])[-1]
        assert result.returncode == 0, f"it ended with {result.returncode}: {last}"
        found = json.loads(result.stdout)
        assert found["backend"] == "cuda", f"it trained on the backend {found['backend']!r}"
        assert model.exists(), "it wrote no model"
        assert np.isfinite(found["training"]["rmse"]), f"training: {found['training']}"
    return 0.0
