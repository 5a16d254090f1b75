"""Devices, without one: what is missing, which is chosen, arrays, its errors."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import arguments, backends, dlpack, loading
from fastneuron.cli import main
from fastneuron.device_arrays import DeviceArray, as_device_rows, device_array, lies_on_device
from fastneuron.errors import BackendUnavailable, SpecError, UnknownNameError
from fastneuron.kernels import cython_cuda, device_card, device_presence, device_supply, numba_cuda
from fastneuron.kernels.device_cost import Task, weigh
from fastneuron.kernels.device_faults import fault_of
from fastneuron.kernels.device_supply import Supply, supply
from fastneuron.kernels.precision import PRECISIONS
from fastneuron.losses import LOSSES

CARD = backends.Card("H100 or so", (9, 0), 80 << 30, 132, 1.755e9, 3.35e12)
SMALL = Task(fn.mlp([2, 1], seed=0).spec, LOSSES["mse"], fn.Adam(), 16)


class FakeDriver:
    """NVIDIA's driver as ctypes would show it."""

    def __init__(self, status: int = 0, cards: int = 1) -> None:
        self.status, self.cards = status, cards

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.cards
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"Card of paper"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        known = {16: 132, 13: 1_755_000, 36: 2_619_000, 37: 5120, 75: 9, 76: 0}
        if attribute not in known:  # CUDA_ERROR_INVALID_VALUE: newer drivers know fewer
            return 1
        value._obj.value = known[attribute]
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pretends which driver and packages are there; nothing else of the process is touched."""

    def pretend(driver: FakeDriver | None, packages: tuple[str, ...] = ("numba",)) -> None:
        def library(name: str) -> FakeDriver:
            if driver is None:
                raise OSError(name)
            return driver

        def find_spec(name: str) -> object:
            return name if name in packages else None

        # Not ctypes itself: other libraries are loaded meanwhile.
        stand_in = SimpleNamespace(CDLL=library, c_int=ctypes.c_int, byref=ctypes.byref)
        monkeypatch.setattr(device_presence, "ctypes", stand_in)
        monkeypatch.setattr(numba_cuda, "find_spec", find_spec)
        monkeypatch.setattr(device_supply, "find_spec", find_spec)
        built = SimpleNamespace(devices=lambda: (1, ""))
        monkeypatch.setattr(cython_cuda, "_extension", lambda: built)
        _forget()

    def _forget() -> None:
        device_presence._missing.cache_clear()

    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.delenv("FASTNEURON_BACKEND", raising=False)
    monkeypatch.delitem(loading.loaded, "cuda", raising=False)
    monkeypatch.delitem(loading.failed, "cuda", raising=False)
    yield pretend
    _forget()


ALL = ("numba", "numba_cuda")


@pytest.mark.parametrize(
    ("driver", "packages", "kernels", "said"),
    [
        (FakeDriver(), ALL, "numba-cuda", ""),
        (None, ALL, "numba-cuda", "driver is not installed .*nvidia.com/drivers$"),
        (FakeDriver(100), ALL, "numba-cuda", "^no NVIDIA card is visible.*CUDA_VISIBLE_DEVICES$"),
        (FakeDriver(0, 0), ALL, "numba-cuda", "^no NVIDIA card is visible"),
        (FakeDriver(999), ALL, "numba-cuda", "does not start .*999.*nvidia-smi"),
        (FakeDriver(), ("numba",), "", "^numba-cuda is not installed .*cuda"),
        (FakeDriver(), (), "", "^numba is not installed .*cuda"),
        (None, ("numba",), "", "driver is not installed .*; numba-cuda is not installed"),
        (FakeDriver(100), ("numba",), "", "no NVIDIA card .*; numba-cuda is not installed"),
        (FakeDriver(), (device_supply._EXTENSION,), "compiled", ""),
        (None, ("numba", device_supply._EXTENSION), "compiled", "driver is not installed"),
    ],
)
def test_what_is_missing_is_one_line_that_says_how_to_get_it(
    machine: Any, driver: FakeDriver | None, packages: tuple[str, ...], kernels: str, said: str
) -> None:
    machine(driver, packages)
    found = supply()
    assert found.kernels == kernels == backends.device_kernels()
    assert bool(found.module) == bool(kernels)
    if not said:
        assert found.problem == ""
        return
    assert "\n" not in found.problem
    with pytest.raises(BackendUnavailable, match=said):
        raise BackendUnavailable(found.problem)
    reason = backends.available()["cuda"]
    assert str(reason) == found.problem
    with pytest.raises(BackendUnavailable, match="device='cuda': "):
        fn.Trainer(fn.mlp([2, 1]), "mse", device="cuda")
    net = fn.mlp([2, 1], seed=0)
    before = net.layers[0].weight
    with pytest.raises(BackendUnavailable) as raised:
        net.fit([[1, 2]], [1], loss="mse", device="cuda")
    assert str(raised.value) == f"device='cuda': {found.problem}"
    np.testing.assert_array_equal(net.layers[0].weight, before)


def test_a_card_and_its_driver_are_described(
    machine: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(FakeDriver(), ALL)
    assert device_card.driver_version() == "13.1"
    (card,) = device_card.cards()
    assert card == CARD._replace(name="Card of paper", bandwidth=card.bandwidth)
    assert card.bandwidth == pytest.approx(
        3.35e12, rel=0.01
    )  # the data sheet's, from clock and bus
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cuda"]
    assert (found["driver"], found["kernels"]) == ("13.1", "numba-cuda")
    assert found["cards"][0]["capability"] == "9.0"
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Card of paper (9.0, 80.0 GiB, 132 multiprocessors); kernels by numba-cuda" in shown
    monkeypatch.setattr(FakeDriver, "cuDeviceGetName", lambda *_: 3)
    (unknown,) = device_card.cards()
    assert unknown.name == "card 0 (cuDeviceGetName of NVIDIA's driver returned 3)"
    assert unknown[1:] == ((0, 0), 0, 0, 0, 0, 0)
    assert "does not tell how fast the card 0" in weigh(SMALL, unknown).why
    with pytest.raises(OSError, match="cuDeviceGetName"):
        device_card.card()
    machine(FakeDriver(cards=2), ALL)
    assert main(["info"]) == 0
    assert "; the first of the cards is the one in use; " in " ".join(
        capsys.readouterr().out.split()
    )
    machine(None)
    assert device_card.cards() == []
    assert device_card.driver_version() == ""
    assert main(["info"]) == 0
    assert "no driver; no card; no kernels installed" in capsys.readouterr().out


# Choice


@pytest.mark.parametrize(
    ("backend", "device", "where"),
    [("numpy", "cuda", "'cpu'"), ("cuda", "cpu", "'cuda'"), ("cython", "cuda", "'cpu'")],
)
def test_backend_and_device_that_contradict_each_other(
    backend: str, device: str, where: str
) -> None:
    said = f"device='{device}' and backend='{backend}' contradict .* device {where}; leave one"
    with pytest.raises(SpecError, match=said):
        fn.Trainer(fn.mlp([2, 1]), "mse", backend=backend, device=device)
    with pytest.raises(SpecError, match=said):
        fn.mlp([2, 1]).fit([[1, 2]], [1], loss="mse", backend=backend, device=device)


def test_what_fits_together_is_taken(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(None)
    for device in (None, "cpu", "auto"):
        assert backends.on_device(device, "numpy") == backends.get("numpy")
        assert backends.on_device(device, backends.get("numpy")).name == "numpy"
        assert backends.on_device(device).device == "cpu"
    assert backends.on_device(None) == backends.on_device("cpu") == backends.get("auto")
    with pytest.raises(UnknownNameError, match=r"'gpu'.*cpu, cuda, auto"):
        backends.on_device("gpu")
    monkeypatch.setenv("FASTNEURON_BACKEND", "cuda")
    assert backends.on_device("cpu").device == "cpu"
    with pytest.raises(BackendUnavailable, match="backend 'cuda'"):
        backends.on_device(None)
    with backends.use("numpy"):
        assert backends.on_device("auto").name == "numpy"
        assert "use('numpy')" in backends.on_device("auto").reason
    assert backends.DEVICES == arguments.DEVICES
    assert tuple(PRECISIONS) == arguments.PRECISIONS


def test_auto_without_a_card_says_why(machine: Any) -> None:
    machine(None, ALL)
    trainer = fn.Trainer(fn.mlp([2, 1]), "mse", device="auto")
    assert trainer.backend.device == "cpu"
    assert "device auto: CUDA cannot be used: NVIDIA's driver is not" in trainer.plan["reason"]
    history = fn.mlp([2, 1]).fit([[1, 2]], [1], loss="mse", device="auto")
    assert history.backend != "cuda"
    assert "device auto: CUDA cannot be used: NVIDIA's driver is not" in history.reason


def test_auto_goes_where_the_model_says(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(FakeDriver(), ALL)
    monkeypatch.setitem(loading.loaded, "cuda", loading.load("numpy"))
    asked = []

    def verdict(pays: bool) -> Any:
        return lambda card: asked.append(card.name) or (pays, f"the model says {pays}")

    assert backends.on_device("auto", weigh=verdict(True)).device == "cuda"
    chosen = backends.on_device("auto", weigh=verdict(False))
    assert chosen.device == "cpu"
    assert chosen.reason.endswith("device auto: the model says False")
    assert asked == ["Card of paper"] * 2
    with backends.use("numpy"):
        assert backends.on_device("auto", weigh=verdict(True)).name == "numpy"
    assert "not known" in backends.on_device("auto").reason
    machine(FakeDriver(cards=3), ALL)
    for pays in (True, False):
        chosen = backends.on_device("auto", weigh=verdict(pays))
        said = "of 3 cards the first counts: CUDA_VISIBLE_DEVICES chooses which"
        assert chosen.reason.endswith(f"the model says {pays}; {said}")


def test_auto_is_told_whose_kernels_run(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(
        "fastneuron.kernels.device_cost.weigh",
        lambda task, card: told.append(task.kernels) or weigh(task, card),
    )
    for packages in (ALL, (device_supply._EXTENSION,)):
        machine(FakeDriver(), packages)
        fn.Trainer(fn.mlp([2, 1]), "mse", device="auto")
    assert told == ["numba-cuda", "compiled"]


# Arrays


class OnDevice:
    """An array that says it lies on a device; nobody reads it here."""

    def __init__(self, **given: Any) -> None:
        shape = {"shape": (4, 3), "typestr": "<f4", "data": (0x1000, False), "version": 3}
        self.__cuda_array_interface__ = {**shape, **given}


def test_device_arrays_are_recognised_and_checked() -> None:
    for host in (np.zeros((2, 2)), [[1, 2]], 3, memoryview(b"ab"), iter([])):
        assert device_array(host, "x") is None
        assert not lies_on_device(host)
    given = OnDevice(stream=7)
    found = device_array(given, "x")
    assert found is not None
    assert lies_on_device(given)
    assert (found.pointer, found.shape, found.dtype) == (0x1000, (4, 3), np.float32)
    assert (found.owner, found.stream, len(found), found.size) == (given, 7, 4, 12)
    assert device_array(found, "x") is found
    assert as_device_rows(found, "x", "float32", 3) is found
    assert device_array(OnDevice(strides=(12, 4)), "x") is not None
    assert device_array(OnDevice(shape=(1, 3), strides=(99, 4)), "x") is not None
    assert found.reshape(12).owner is found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strides": (4, 16)}, r"x is not C-contiguous .*shape \(4, 3\), strides \(4, 16\)"),
        ({"strides": (24, 4)}, "not C-contiguous"),
        ({"data": (0x1004, False)}, "x starts at 0x1004 .*no multiple of 16"),
        ({"mask": OnDevice}, "x has a mask"),
        ({"typestr": "<f8"}, "x is float64 on its device, .*float32"),
        ({"shape": (4, 2)}, r"x has shape \(4, 2\) .*\(n, 3\)"),
        ({"shape": (12,)}, r"x has shape \(12,\)"),
        ({"shape": (0, 3)}, "x has zero rows"),
    ],
)
def test_device_arrays_that_do_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(fn.DataError, match=said):
        as_device_rows(device_array(OnDevice(**given), "x"), "x", "float32", 3)


def test_a_library_that_does_not_hand_over_is_quoted() -> None:
    class NeedsGradient:
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("call detach() first")

    class Refuses:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CUDA, 0

        def __dlpack__(self, stream: Any = None) -> Any:
            raise BufferError("not today")

    for given, said in ((NeedsGradient(), "call detach"), (Refuses(), "not today")):
        assert lies_on_device(given)
        with pytest.raises(fn.DataError, match=f"x is not handed over by its library: {said}"):
            device_array(given, "x")


@pytest.mark.parametrize("backend", ["numpy", "numba", "cython"])
def test_an_array_on_a_device_is_refused_by_the_cpu(backend: str) -> None:
    if isinstance(backends.available()[backend], BackendUnavailable):
        pytest.skip(f"{backend} does not run here")
    trainer = fn.Trainer(fn.mlp([3, 1]), "mse", backend=backend)
    for call in (
        lambda: trainer.step(OnDevice(), np.zeros(4)),
        lambda: trainer.run(np.zeros((4, 3)), OnDevice()),
        lambda: trainer.forward(OnDevice()),
    ):
        with pytest.raises(fn.DataError, match=f"lies on a device, but the backend '{backend}'"):
            call()


class OnHost:
    """A tensor of a library that NumPy takes by DLPack alone."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **given: Any) -> Any:
        return self._array.__dlpack__(**given)


def test_dlpack_on_the_host_is_taken_without_a_copy() -> None:
    from fastneuron.arrays import as_rows

    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    got = as_rows(OnHost(x), "x", "float32", 3)
    assert np.shares_memory(got, x)
    np.testing.assert_array_equal(got, x)
    y = np.arange(4, dtype=np.float32)
    nets = fn.mlp([3, 1], seed=0), fn.mlp([3, 1], seed=0)
    nets[0].fit(x, y, loss="mse", backend="numpy")
    nets[1].fit(OnHost(x), OnHost(y), loss="mse", backend="numpy")
    np.testing.assert_array_equal(nets[0].layers[0].weight, nets[1].layers[0].weight)
    np.testing.assert_array_equal(nets[0].forward(OnHost(x)), nets[0].forward(x))


def test_a_capsule_of_numpys_is_read_right() -> None:
    x = np.arange(24, dtype=np.int64).reshape(4, 6)[:, ::2]
    tensor = dlpack.take(x.__dlpack__())
    assert (tensor.pointer, tensor.shape) == (x.ctypes.data, (4, 3))
    assert (tensor.strides, tensor.dtype) == (x.strides, np.int64)
    capsule = x.__dlpack__()
    dlpack.take(capsule)
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.take(capsule)
    with pytest.raises(ValueError, match="type 5 with 64 bits"):
        dlpack.take(np.zeros(2, np.complex64).__dlpack__())
    capsule = dlpack.export(0x2000, (2,), np.dtype("float32"), 0, None)
    managed = ctypes.cast(dlpack._pointer(capsule, b"dltensor"), ctypes.POINTER(dlpack._Managed))
    managed.contents.tensor.offset = 64
    assert dlpack.take(capsule).pointer == 0x2040
    # The lender's deleter is called: the array is free again.
    given = np.zeros(3)
    alive = weakref.ref(given)
    tensor = dlpack.take(given.__dlpack__())
    del given
    gc.collect()
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None


def test_a_result_is_lent_and_given_back() -> None:
    class Memory:
        pass

    memory = Memory()
    alive = weakref.ref(memory)
    array = DeviceArray(0x2000, (2, 3), "float32", memory, device=1)
    del memory
    tensor = dlpack.take(array.__dlpack__(max_version=(1, 0), stream=2))
    assert (tensor.pointer, tensor.shape, tensor.strides) == (0x2000, (2, 3), None)
    assert array.__dlpack_device__() == (dlpack.CUDA, 1)
    assert array.__cuda_array_interface__["data"] == (0x2000, False)
    untaken = array.__dlpack__()
    assert len(dlpack._lent) == 2
    del array
    gc.collect()
    assert alive() is not None
    del tensor, untaken
    gc.collect()
    assert alive() is None
    assert dlpack._lent == {}
    for given in ({"copy": True}, {"dl_device": (dlpack.CPU, 0)}):
        with pytest.raises(BufferError, match="without a copy"):
            DeviceArray(0, (1,), "float32", None).__dlpack__(**given)
    with pytest.raises(fn.DataError, match="its own library"):
        DeviceArray(0, (1,), "float32", None).copy_to_host()


# A driver's errors


class CudaAPIError(RuntimeError):
    """As numba-cuda raises it."""

    def __init__(self, code: int, msg: str) -> None:
        self.code = code
        super().__init__(code, msg)


def test_a_drivers_errors_become_ours() -> None:
    memory = fault_of(CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY"), whole=True)
    assert isinstance(memory, fn.DeviceMemoryError)
    assert memory.whole
    half = fault_of(CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY"), whole=False)
    assert isinstance(half, fn.DeviceMemoryError)
    assert not half.whole
    for error in (
        CudaAPIError(700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        RuntimeError("cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED"),
    ):
        lost = fault_of(error, whole=True)
        assert type(lost) is fn.DeviceError
        assert not lost.whole, "whatever was queued, a failed device is not trusted"
        assert "start a new process" in str(lost)
    named = fault_of(RuntimeError("cuGraphLaunch failed: CUDA_ERROR_OUT_OF_MEMORY"), whole=True)
    assert isinstance(named, fn.DeviceMemoryError)
    for other in (RuntimeError("no"), ValueError("CUDA_ERROR_UNKNOWN"), fn.DeviceError("ours")):
        assert fault_of(other, whole=True) is None


def test_a_compiler_that_is_not_there_is_named_with_how_to_get_it() -> None:
    class DynamicLibNotFoundError(RuntimeError):
        """As numba-cuda's finder of libraries raises it."""

    error = DynamicLibNotFoundError('Failure finding "libnvvm.so":\n  No such file')
    found = fault_of(error, whole=True)
    assert type(found) is BackendUnavailable
    assert str(found) == (
        'numba-cuda finds nothing to compile with here (Failure finding "libnvvm.so": No such '
        "file): pip install fastneuron[cuda] brings NVVM and NVRTC"
    )


class LinkerError(RuntimeError):
    """As numba-cuda raises it."""


class CCSupportError(RuntimeError):
    """As numba-cuda raises it."""


@pytest.mark.parametrize(
    "error",
    [
        LinkerError("[222] Call to cuLinkAddData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION\nptxas: 8.8"),
        CudaAPIError(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        CCSupportError("GPU compute capability 3.5 is not supported"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_too_old_is_named_with_what_to_do(error: Exception) -> None:
    found = fault_of(error, whole=True)
    assert type(found) is BackendUnavailable
    assert re.fullmatch(
        r"the driver or the card is too old .*nvidia.com/drivers.*cu12.*", str(found)
    )


def test_numba_cudas_own_error_is_recognised() -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: its errors are meant")
    program = (
        "from numba.cuda.cudadrv.driver import CudaAPIError as E\n"
        "from fastneuron.kernels.device_faults import fault_of\n"
        "print(type(fault_of(E(2, 'OUT'), whole=True)).__name__, fault_of(E(700, 'x'), whole=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("DeviceMemoryError the device failed ([700] x)")


def test_the_supply_is_what_backends_import() -> None:
    assert Supply("", "", "").module == ""
    names = [name for name in backends.NAMES if backends._device_of(name) == "cuda"]
    assert names == ["cuda"]


@pytest.mark.parametrize("train", [fn.Trainer, fn.Sequential.fit])
@pytest.mark.parametrize(
    ("precision", "dtype", "error", "said"),
    [
        ("tf32", "float32", BackendUnavailable, "needs the tensor cores of a card"),
        ("bfloat16", "float64", SpecError, "rounds the products of float32 networks"),
        ("float16", "float32", UnknownNameError, "there are: float32, tf32, bfloat16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_before_anything_is_done(
    train: Any, precision: str, dtype: str, error: type[Exception], said: str
) -> None:
    net = fn.mlp([2, 1], seed=0, dtype=dtype)
    before = net.layers[0].weight
    rows = () if train is fn.Trainer else ([[1, 2]], [[1]])
    with pytest.raises(error, match=said):
        train(net, *rows, loss="mse", precision=precision)
    np.testing.assert_array_equal(net.layers[0].weight, before)


def test_a_trainer_hands_its_precision_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    engine = backends.Backend.engine

    def noting(self: Any, *given: Any, precision: str, **more: Any) -> Any:
        asked.append(precision)
        return engine(self, *given, **more)

    monkeypatch.setattr(backends.Backend, "engine", noting)
    monkeypatch.setattr(backends.Backend, "check_precision", lambda *_: None)
    net = fn.mlp([2, 1], seed=0)
    fn.Trainer(net, "mse", precision="tf32").step([[1, 2]], [[1]])
    net.fit([[1, 2]], [[1]], loss="mse", precision="bfloat16")
    net.fit([[1, 2]], [[1]], loss="mse")
    assert asked == ["tf32", "bfloat16", "float32"]


def test_compiled_kernels_have_one_precision() -> None:
    with pytest.raises(BackendUnavailable, match=r"'tf32' needs cuBLASLt.*pip install"):
        cython_cuda.CythonCudaEngine(fn.mlp([2, 1]).spec, precision="tf32")


def test_the_command_refuses_a_precision_before_it_reads_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "no.csv", "--target", "a", "--out", "m", "--precision", "tf32"]
    assert main(command) == 1
    assert "precision='tf32' needs the tensor cores of a card" in capsys.readouterr().err
    assert main([*command, "--device", "auto"]) == 1
    assert "no.csv: No such file" in capsys.readouterr().err
