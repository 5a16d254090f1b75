"""Every fault that a user can bring about: the answer, its place, and what is left standing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends
from fastneuron.kernels.contract import Outcome

RNG = np.random.default_rng(11)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = X[:, :1] ** 2
ROOT = Path(__file__).parents[1]


def network(seed: int = 0, activation: str = "tanh", **options: Any) -> fn.Sequential:
    return fn.mlp([3, 5, 1], activation, seed=seed, **options)


def bits(net: fn.Sequential) -> bytes:
    return b"".join(
        layer.weight.tobytes() + (b"" if layer.bias is None else layer.bias.tobytes())
        for layer in net.layers
    )


def spoiled(array: np.ndarray[Any, Any], bad: float, at: tuple[int, int]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array[at] = bad
    return array


def every_call(net: fn.Sequential, backend: str) -> dict[str, Callable[[Any, Any], Any]]:
    trainer = fn.Trainer(net, "mse", backend=backend)
    return {
        "fit": lambda x, y: net.fit(x, y, loss="mse", backend=backend),
        "validation": lambda x, y: net.fit(
            X, Y, loss="mse", backend=backend, validation_data=(x, y)
        ),
        "evaluate": lambda x, y: net.evaluate(x, y, loss="mse"),
        "run": trainer.run,
        "step": trainer.step,
        "gradients": trainer.gradients,
        "trainer.evaluate": trainer.evaluate,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_data_is_refused_everywhere(backend: backends.Backend, bad: float) -> None:
    net = network()
    before = bits(net)
    for name, call in every_call(net, backend.name).items():
        with pytest.raises(fn.DataError, match="row 17, column 2"):
            call(spoiled(X, bad, (17, 2)), Y)
        with pytest.raises(fn.DataError, match=r"y holds .* row 23, column 0"):
            call(X, spoiled(Y, bad, (23, 0)))
        assert bits(net) == before, name
    for ask in (net.forward, net.predict, fn.Trainer(net, backend=backend.name).forward):
        with pytest.raises(fn.DataError, match="row 17, column 2"):
            ask(spoiled(X, bad, (17, 2)))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "elu", "softplus", "gelu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_finds_what_saturation_could_hide(
    backend: backends.Backend, bad: float, activation: str
) -> None:
    """tanh(inf) is finite: the loss alone would not tell."""
    net = network(activation=activation)
    trainer = fn.Trainer(net, "mse", fn.SGD(0.1), backend=backend.name)
    before = bits(net)
    with pytest.raises(fn.DataError, match=r"x holds .* row 3, column 1"):
        trainer.step(spoiled(X, bad, (3, 1)), Y)
    assert bits(net) == before
    trainer.step(X, Y)
    assert trainer.step_count == 1
    trainer.forward(X)
    after = bits(net)
    with pytest.raises(fn.DataError, match=r"dout holds .* row 5, column 0"):
        trainer.update(spoiled(Y, bad, (5, 0)))
    assert bits(net) == after


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :2], Y, r"\(40, 2\).*\(40, 3\)"),
        (X[0], Y, r"reshape\(1, -1\)"),
        (X, Y[:-1], r"y has shape \(39, 1\), but X has 40 rows"),
        (X[:0], Y[:0], "zero rows"),
        (X[:, :0], Y, r"\(40, 0\)"),
        (X, np.ones((40, 40)), "nothing is broadcast"),
        (X, np.ones((40, 1, 1)), "nothing is broadcast"),
        (X, np.ones((1, 40)), "40 rows"),
        (X.astype(complex), Y, "complex"),
        (X.astype(str), Y, "text"),
        (spoiled(X.astype(float), 1e39, (7, 0)), Y, "overflows float32.*row 7, column 0"),
        (X, spoiled(Y.astype(float), -1e300, (9, 0)), "overflows float32.*row 9, column 0"),
    ],
)
def test_data_that_does_not_fit_is_refused_everywhere(x: Any, y: Any, message: str) -> None:
    net = network()
    before = bits(net)
    for name, call in every_call(net, "numpy").items():
        with pytest.raises(fn.DataError, match=message) as caught:
            call(x, y)
        assert isinstance(caught.value, ValueError), name
        assert bits(net) == before, name


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_out_of_range_never_reaches_a_kernel(backend: backends.Backend, label: int) -> None:
    net = fn.mlp([3, 3], seed=0)
    before = bits(net)
    y = np.zeros(40, np.int64)
    y[31] = label
    trainer = fn.Trainer(net, "cross_entropy", backend=backend.name)
    for call in (trainer.step, trainer.run, trainer.gradients):
        with pytest.raises(fn.DataError, match=rf"y holds {label} at row 31.*classes are 0 to 2"):
            call(X, y)
    assert bits(net) == before


def test_a_column_of_one_target_is_no_broadcast(backend: backends.Backend) -> None:
    """(n,) and (n, 1) are the same for one output; for classes the column warns."""
    a, b = network(), network()
    fn.Trainer(a, "mse", backend=backend.name).run(X, Y)
    fn.Trainer(b, "mse", backend=backend.name).run(X, Y[:, 0])
    assert bits(a) == bits(b)
    with pytest.warns(fn.DataWarning, match="ravel"):
        fn.mlp([3, 2], seed=0).fit(X, (Y > 1).astype(int), loss="cross_entropy", backend="numpy")


LAYOUTS = {
    "integer": lambda x: x.astype(np.int16),
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f8"),
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 3, axis=0)[::3],
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


def frozen(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("layout", [*LAYOUTS, "read-only"])
def test_every_layout_gives_the_bits_of_its_copy(backend: backends.Backend, layout: str) -> None:
    convert: Callable[..., Any] = LAYOUTS.get(layout, frozen)
    x, y = convert(np.round(8 * X)), convert(np.round(8 * Y))
    nets = network(), network()
    for net, (xx, yy) in zip(
        nets, [(x, y), (np.array(x, np.float32), np.array(y, np.float32))], strict=True
    ):
        trainer = fn.Trainer(net, "mse", fn.SGD(1e-3), batch_size=8, backend=backend.name)
        trainer.run(xx, yy, sample_weight=np.arange(40, dtype=">i4"))
        trainer.step(xx, yy)
        trainer.forward(xx)
        trainer.update(convert(np.round(Y)))
    assert bits(nets[0]) == bits(nets[1])
    np.testing.assert_array_equal(nets[0].forward(x), nets[1].forward(np.array(x, np.float32)))


@pytest.mark.parametrize("stepwise", [True, False])
def test_divergence_stops_in_its_step(backend: backends.Backend, stepwise: bool) -> None:
    """The last whole step is kept: exactly what a twin has after as many steps."""
    options: dict[str, Any] = {
        "loss": "mse", "optimizer": fn.SGD(60.0), "batch_size": 16, "backend": backend.name,
    }  # fmt: skip
    net, twin = (network(activation="relu", bias_init="normal") for _ in range(2))
    trainer, twin_trainer = fn.Trainer(net, **options), fn.Trainer(twin, **options)
    batches = [(X[s : s + 16], Y[s : s + 16]) for s in (0, 16, 32)]

    def diverge() -> None:
        if not stepwise:
            trainer.run(X, Y, epochs=1000, shuffle=False)
        for i in range(3000):
            trainer.step(*batches[i % 3])

    with pytest.raises(fn.NonFiniteError, match="learning rate 60") as caught:
        diverge()
    error = caught.value
    assert isinstance(error, ArithmeticError)
    assert error.learning_rate == 60.0
    assert error.step == trainer.step_count > 0
    assert error.epoch == (0 if stepwise else error.step // 3)
    assert error.layer in (None, 0, 1)
    for i in range(error.step):
        twin_trainer.step(*batches[i % 3])
    assert bits(net) == bits(twin)
    assert all(np.isfinite(layer.weight).all() for layer in net.layers)
    net.layers[0].weight = np.ones((3, 5))
    net.layers[1].weight = np.ones((5, 1))
    fn.Trainer(net, "mse", backend=backend.name).step(X, Y)


def test_the_error_names_the_layer() -> None:
    net = fn.mlp([3, 4, 4, 1], "relu", seed=0, bias=False)
    for i in range(2):
        net.layers[i].weight = np.full((3 + i, 4), 1e19)
    trainer = fn.Trainer(net, "mse", backend="numpy")
    with pytest.raises(fn.NonFiniteError, match=r"the output of layer 1 \(relu\)") as caught:
        trainer.step(np.full((2, 3), 1e6, np.float32), np.ones((2, 1), np.float32))
    assert caught.value.layer == 1


def test_a_failed_fit_leaves_the_last_whole_step(backend: backends.Backend) -> None:
    net = network(activation="relu")
    with pytest.raises(fn.NonFiniteError) as caught:
        net.fit(X, Y, loss="mse", optimizer=fn.SGD(60.0), epochs=2000, batch_size=16,
                backend=backend.name)  # fmt: skip
    assert "epoch" in str(caught.value)
    assert np.isfinite(np.frombuffer(bits(net), np.float32)).all()


def interrupt_after(seconds: float) -> threading.Timer:
    gc.collect()  # an interrupt in a weak reference's callback is lost: Python can raise none there
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.parametrize("seconds", [0.02, 0.11, 0.3])
def test_ctrl_c_leaves_whole_steps_and_a_usable_trainer(
    backend: backends.Backend, seconds: float
) -> None:
    x, y = RNG.normal(size=(100, 30)).astype(np.float32), np.zeros((100, 4), np.float32)
    options: dict[str, Any] = {
        "loss": "mse", "optimizer": fn.Adam(1e-5), "batch_size": 32, "backend": backend.name,
    }  # fmt: skip
    net, twin = (fn.mlp([30, 200, 200, 4], "relu", seed=0) for _ in range(2))
    trainer, twin_trainer = fn.Trainer(net, **options), fn.Trainer(twin, **options)
    handler = signal.getsignal(signal.SIGINT)
    for one in (trainer, twin_trainer):
        one.run(x, y, epochs=1, shuffle=False)  # compiled, from here on
    timer = interrupt_after(seconds)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(x, y, epochs=10**6, shuffle=False)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is handler
    done = trainer.step_count
    assert 4 < done < 4 * 10**6
    if done >= 8:
        twin_trainer.run(x, y, epochs=done // 4 - 1, shuffle=False)
    for s in range(done % 4):
        twin_trainer.step(x[32 * s : 32 * s + 32], y[32 * s : 32 * s + 32])
    assert bits(net) == bits(twin)
    trainer.run(x, y)
    assert trainer.step_count == done + 4


def test_ctrl_c_in_fit(backend: backends.Backend) -> None:
    net = fn.mlp([3, 50, 1], seed=0)
    net.fit(X, Y, loss="mse", backend=backend.name)
    before = bits(net)
    timer = interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, loss="mse", epochs=10**7, backend=backend.name, callbacks=[lambda s: None])
    timer.join()
    assert bits(net) != before
    net.fit(X, Y, loss="mse", backend=backend.name)


def test_ctrl_c_in_the_first_call_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, twin = network(), network()
    for one in (net, twin):
        fn.Trainer(one, "mse", fn.SGD(0.1), backend="numpy").run(X, Y)
    trainer = fn.Trainer(net, "mse", fn.Adam(0.1), backend="numpy")
    engine = trainer._live.engine
    run = engine.run

    def cut_short(*arguments: Any) -> Outcome:
        run(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", cut_short)
    for call in (trainer.run, trainer.step):
        with pytest.raises(KeyboardInterrupt):
            call(X, Y)
        monkeypatch.setattr(trainer._live.engine, "run", cut_short)
    assert bits(net) == bits(twin)
    assert trainer.step_count == 0
    monkeypatch.undo()
    other = fn.Trainer(twin, "mse", fn.Adam(0.1), backend="numpy")
    assert trainer.step(X, Y) == other.step(X, Y)
    assert bits(net) == bits(twin)


def test_a_second_ctrl_c_is_raised_at_once() -> None:
    from fastneuron.interrupts import HeldInterrupts

    held = HeldInterrupts()
    with held:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with held:
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        held.release()
    held.release()


def wait_for_child(child: int, seconds: float = 120.0) -> int:
    """Exit code of a child, which is killed where it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on(backend: backends.Backend) -> None:
    x = RNG.normal(size=(256, 100)).astype(np.float32)
    y = np.zeros((256, 5), np.float32)
    nets = [fn.mlp([100, 300, 5], "relu", seed=0) for _ in range(2)]
    trainers = [
        fn.Trainer(net, "mse", batch_size=128, backend=backend.name, n_threads=2) for net in nets
    ]
    for trainer in trainers:
        trainer.run(x, y)
    trainers[1].run(x, y)
    want = bits(nets[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of threads and fork
        child = os.fork()
    if child == 0:
        code = 1
        try:
            trainers[0].run(x, y)
            nets[0].forward(x)
            code = 0 if bits(nets[0]) == want else 3
        finally:
            os._exit(code)
    assert wait_for_child(child) == 0
    trainers[0].run(x, y)
    assert bits(nets[0]) == want


def test_sixteen_threads_train_their_own_networks(backend: backends.Backend) -> None:
    x, y = RNG.normal(size=(64, 10)).astype(np.float32), np.zeros((64, 2), np.float32)

    def train(seed: int) -> bytes:
        net = fn.mlp([10, 40, 2], "relu", seed=seed)
        trainer = fn.Trainer(net, "mse", batch_size=16, backend=backend.name, n_threads=2)
        trainer.run(x, y, epochs=5)
        for _ in range(10):
            trainer.step(x, y)
        return bits(net)

    want = [train(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(train, range(16)))
    assert got == want


def test_threads_may_read_a_network_while_it_is_trained(backend: backends.Backend) -> None:
    net, twin = network(), network()
    trainer = fn.Trainer(net, "mse", batch_size=8, backend=backend.name)
    fn.Trainer(twin, "mse", batch_size=8, backend=backend.name).run(X, Y, epochs=200)
    stop = threading.Event()

    def read() -> bool:
        while not stop.is_set():
            assert np.isfinite(net.forward(X)).all()
            assert np.isfinite(net.layers[0].weight).all()
        return True

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for _ in range(20):
                trainer.run(X, Y, epochs=10)
        finally:
            stop.set()
        assert all(reader.result() for reader in readers)
    assert bits(net) == bits(twin)


SAVER = """
import sys
import fastneuron as fn
nets = [fn.mlp([200, 200, 5], seed=seed) for seed in (1, 2)]
print("ready", flush=True)
while True:
    for net in nets:
        net.save(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_kill_during_save_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    wants = [bits(fn.mlp([200, 200, 5], seed=seed)) for seed in (1, 2)]
    fn.mlp([200, 200, 5], seed=1).save(path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for delay in (0.0, 0.013, 0.037, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        assert bits(fn.load(path)) in wants
