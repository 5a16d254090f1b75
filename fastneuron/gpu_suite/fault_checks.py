"""What goes wrong on a card: clear errors, and a host whose parameters are the ones it had.

Memory is asked for in one allocation that no card could give, so that nothing is filled up. A
device is lost in a process of its own, whose context is lost with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastneuron import backends
from fastneuron.errors import DataError, DeviceMemoryError, NonFiniteError
from fastneuron.gpu_suite.door_checks import (
    EXACT,
    FEATURES,
    ROWS,
    exact_data,
    exact_network,
    numbers_of,
)
from fastneuron.gpu_suite.doors import KERNELS, behind_the_door, lenders, takes_arrays
from fastneuron.gpu_suite.engines import NUMBA, Kind
from fastneuron.gpu_suite.running import Check, NotHere
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.network import Sequential, mlp
from fastneuron.optimizers import SGD
from fastneuron.spec import NetworkSpec
from fastneuron.trainer import Trainer

__all__ = ["fault_checks"]

#: Numbers along each side of a weight of 2^44 bytes, and rows of a batch of which a column has as
#: many: 200 times the memory of the largest cards of 2025.
WIDE, LONG = 2**21, 2**42
#: Bytes that a simulated card has: less than the absurd, more than the rest.
SIMULATED_BYTES = 2**32
#: Seconds until a process that loses its device must have said so.
LOST_SECONDS = 120.0

#: Trains on rows where nothing is, in a process of its own, and tells what became of it.
LOST = """
import os
import numpy as np
import fastneuron as fn
from fastneuron.device_arrays import DeviceArray
net = fn.mlp([4, 3, 2], seed=0)
before = [(each.weight, each.bias) for each in net.layers]
trainer = fn.Trainer(net, "mse", fn.SGD(0.1), batch_size=8, device="cuda")
x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
nowhere = DeviceArray(1 << 46, (8, 4), "float32", None)
try:
    trainer.run(nowhere, y)
except fn.DeviceError as error:
    said = str(error)
else:
    raise SystemExit("rows at an address where nothing is were trained on")
for layer, (weight, bias) in zip(net.layers, before):
    assert np.array_equal(layer.weight, weight) and np.array_equal(layer.bias, bias), "changed"
net.fit(x, y, loss="mse", backend="numpy", epochs=1)
print("said:", " ".join(said.split()), flush=True)
os._exit(0)  # what numba would free is lost
"""


def fault_checks(kind: Kind, *, simulated: bool) -> list[Check]:
    """Return the checks: what is refused, and that everything works afterwards."""

    def check(work: Callable[..., None], *given: Any) -> float:
        with behind_the_door(kind), _card_of(simulated):
            work(*given)
            _check_next_training()
        return 0.0

    x, y = exact_data()
    labels = np.arange(ROWS) % 2
    named: list[tuple[str, Any, Any, str, type[Exception], str]] = []
    for number, where in ((2, 5), (-1, 3)):
        bad = labels.copy()
        bad[where] = number
        said = f"y holds {number} at row {where}"
        named.append((f"class {number} of 2", x, bad, "cross_entropy", DataError, said))
    for value in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[3, 1] = value
        named.append((f"{value} in X", spoilt, y, "mse", DataError, "at row 3, column 1"))
    named.append(
        ("a loss beyond float32", x * np.float32(1e30), y, "mse", NonFiniteError, "not applied")
    )
    checks = [
        Check("a network larger than the card", partial(check, _check_wide)),
        Check("a batch larger than the card", partial(check, _check_long)),
    ]
    for name, *given in named:
        checks.append(Check(name, partial(check, _check_refused, *given)))
        if given[3] is DataError and given[2] == "cross_entropy":
            lent = partial(_check_refused_there, kind, simulated, *given)
            checks.append(Check(f"{name}, on the card", partial(check, lent)))
    there = partial(_check_nan_there, kind, simulated)
    checks.append(Check("nan in X, on the card", partial(check, there)))
    return [*checks, Check("a lost device", partial(_check_lost, kind, simulated))]


class CudaAPIError(RuntimeError):
    """As numba-cuda raises it, for the simulator's card, which has no driver."""

    code = 2


@contextmanager
def _card_of(simulated: bool) -> Iterator[None]:
    """Give the simulator's card a size: else its memory is the host's."""
    if not simulated:
        yield
        return
    cuda: Any = import_module("fastneuron.kernels.numba_cuda.driver").cuda
    real = cuda.device_array

    def device_array(count: int, dtype: Any, *given: Any, **more: Any) -> Any:
        if count * np.dtype(dtype).itemsize > SIMULATED_BYTES:
            raise CudaAPIError("Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        return real(count, dtype, *given, **more)

    cuda.device_array = device_array
    try:
        yield
    finally:
        cuda.device_array = real


def _check_next_training() -> None:
    """Train in this process as if nothing had been: to the reference's bits, as all is exact."""
    x, y = exact_data()
    nets = exact_network(), exact_network()
    for net, backend in zip(nets, ("cuda", "numpy"), strict=True):
        net.fit(x, y, epochs=1, shuffle=False, backend=backend, progress=False, **EXACT)
    got, want = (numbers_of(net) for net in nets)
    assert got == want, "the next training in this process gives other parameters"


def _refused(
    net: Sequential, work: Callable[[], object], error: type[Exception], words: str
) -> None:
    """Check that `work` raises that error with those words, and leaves the host's parameters."""
    before = numbers_of(net)
    said = None
    try:
        work()
    except error as raised:
        said = str(raised)
    assert said is not None, f"no {error.__name__} was raised"
    assert words in said, f"the {error.__name__} says: {said}"
    assert "\n" not in said, f"the {error.__name__} has more than a line: {said}"
    assert numbers_of(net) == before, f"the parameters changed, though it said: {said}"


def _check_wide() -> None:
    """Ask for an engine of a description: no host could hold such a network either."""
    spec = NetworkSpec((Dense(WIDE, WIDE),))
    make = partial(backends.get("cuda").engine, spec, LOSSES["mse"], SGD(0.1))
    _refused(exact_network(), make, DeviceMemoryError, "bytes")


def _check_long() -> None:
    x, y = exact_data()
    net = exact_network()
    trainer = Trainer(net, device="cuda", **EXACT)
    trainer.run(x, y, shuffle=False)
    after = numbers_of(net)  # brought to the host
    long = Trainer(net, device="cuda", **{**EXACT, "batch_size": LONG})
    _refused(net, lambda: long.run(x, y, shuffle=False), DeviceMemoryError, "bytes")
    assert numbers_of(net) == after, "the parameters are not those of the training before"
    assert np.isfinite(trainer.step(x, y)), "the trainer from before does not go on"


def _check_refused(
    x: NDArray[Any], y: NDArray[Any], loss: str, error: type[Exception], words: str
) -> None:
    net = _network(loss)
    options: dict[str, Any] = {"loss": loss, "optimizer": SGD(0.1), "batch_size": 8}
    fit = partial(net.fit, x, y, device="cuda", epochs=1, shuffle=False, progress=False, **options)
    _refused(net, fit, error, words)
    trainer = Trainer(net, device="cuda", **options)
    _refused(net, lambda: trainer.run(x, y, shuffle=False), error, words)


def _check_refused_there(
    kind: Kind,
    simulated: bool,
    x: NDArray[Any],
    y: NDArray[Any],
    loss: str,
    error: type[Exception],
    words: str,
) -> None:
    lend = _lend(kind, simulated)
    net = _network(loss)
    trainer = Trainer(net, loss, SGD(0.1), batch_size=8, device="cuda")
    there = lend(x), lend(y.astype(np.int64))
    _refused(net, lambda: trainer.run(*there, shuffle=False), error, words)


def _check_nan_there(kind: Kind, simulated: bool) -> None:
    """Rows on the card are not looked at: the step that they spoil is the one that tells."""
    lend = _lend(kind, simulated)
    x, y = exact_data()
    x[3, 1] = np.nan
    net = exact_network()
    trainer = Trainer(net, device="cuda", **EXACT)
    there = lend(x), lend(y)
    _refused(net, lambda: trainer.run(*there, shuffle=False), NonFiniteError, "not applied")
    words = "x holds NaN at row 3, column 1"
    _refused(net, lambda: trainer.step(*there), DataError, words)


def _lend(kind: Kind, simulated: bool) -> Callable[[NDArray[Any]], Any]:
    if not takes_arrays(kind):
        raise NotHere("this engine takes arrays on the host")
    lend, _ = next(iter(lenders(simulated=simulated).values()))()
    return lend


def _network(loss: str) -> Sequential:
    return mlp([FEATURES, 3, 2], seed=0) if loss == "cross_entropy" else exact_network()


def _check_lost(kind: Kind, simulated: bool) -> float:
    if simulated:
        raise NotHere("a simulated device is the host, and would be lost with it")
    if kind.name != NUMBA or KERNELS[NUMBA] != backends.device_kernels():
        raise NotHere("only rows on the card can lie where nothing is")
    result = subprocess.run(
        [sys.executable, "-c", LOST],
        capture_output=True, text=True, check=False, timeout=LOST_SECONDS,
    )  # fmt: skip
    last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    assert result.returncode == 0, f"it ended with {result.returncode}: {last}"
    assert "the device failed" in result.stdout, f"it said: {result.stdout.strip()}"
    return 0.0
