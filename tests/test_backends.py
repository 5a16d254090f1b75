"""The registry of backends: what exists, why not, and who chose."""

from __future__ import annotations

import threading

import pytest

from fastneuron import backends, loading
from fastneuron.errors import BackendUnavailable, UnknownNameError
from fastneuron.kernels import cython_cuda, device_supply, numba_cuda
from fastneuron.kernels.contract import SLOTS, Engine
from fastneuron.kernels.device_supply import Supply
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import SGD
from fastneuron.spec import NetworkSpec


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTNEURON_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_choices", {})


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without what CUDA needs, whatever this one has."""
    monkeypatch.setattr(loading, "supply", lambda: Supply("", "", "no NVIDIA card is visible"))
    # Copies: what a test loads under these pretences must not stay.
    for table in ("loaded", "failed"):
        kept = {name: one for name, one in getattr(loading, table).items() if name != "cuda"}
        monkeypatch.setattr(loading, table, kept)


def test_all_backends_are_listed_with_reasons(no_card: None) -> None:
    found = backends.available()
    assert set(found) == {"numpy", "numba", "cython", "cuda"}
    assert isinstance(found["numpy"], backends.Backend)
    assert isinstance(found["cuda"], BackendUnavailable)
    assert str(found["cuda"]) == "no NVIDIA card is visible"


def test_every_backend_has_every_slot_and_says_whose(backend: backends.Backend) -> None:
    assert set(backend.slots) == set(SLOTS) == set(backend.origin)
    assert set(backend.origin.values()) <= {backend.name, "numpy"}
    assert all(callable(slot) for slot in backend.slots.values())


def test_every_backend_makes_an_engine(backend: backends.Backend) -> None:
    spec = NetworkSpec.chain([Dense(2, 1)])
    engine = backend.engine(spec, LOSSES["mse"], SGD(), batch_size=4)
    assert isinstance(engine, Engine)


def test_an_unknown_name_lists_what_exists_and_what_is_missing(no_card: None) -> None:
    with pytest.raises(UnknownNameError, match=r"'torch'.*available: auto, numpy.*cuda: "):
        backends.get("torch")
    with pytest.raises(UnknownNameError), backends.use("torch"):
        pass


def test_an_unavailable_backend_says_why_and_nothing_falls_back(no_card: None) -> None:
    with pytest.raises(BackendUnavailable, match=r"'cuda': no NVIDIA card.*available: auto, numpy"):
        backends.get("cuda")


def test_auto_never_means_a_card() -> None:
    assert "cuda" not in backends.AUTO_ORDER
    assert backends.get("auto").device == "cpu"


@pytest.mark.parametrize("package", ["numba", "numba_cuda"])
def test_cuda_without_a_package_names_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        numba_cuda, "find_spec", lambda name: None if name == package else "is here"
    )
    problem = numba_cuda.missing()
    assert problem == (
        f"{package.replace('_', '-')} is not installed (pip install fastneuron[cuda])"
    )


def test_a_backend_that_does_not_start_is_passed_over_by_auto_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> object:
        raise SystemError(f"no {name} today")

    for name in ("numba", "cython"):
        monkeypatch.delitem(loading.loaded, name, raising=False)
        monkeypatch.delitem(loading.failed, name, raising=False)
    backends.get("numpy")
    monkeypatch.setattr(loading, "find_spec", lambda name: object())  # installed, all of them
    monkeypatch.setattr(loading, "import_module", broken)
    try:
        chosen = backends.get("auto")
        assert chosen.name == "numpy"
        assert "no fastneuron.kernels.numba_cpu today" in chosen.reason
        with pytest.raises(BackendUnavailable, match=r"SystemError: no fastneuron\.kernels"):
            backends.get("numba")
    finally:
        loading.failed.clear()


def test_numba_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(loading.loaded, "numba", raising=False)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    try:
        with pytest.raises(BackendUnavailable, match="numba is not installed"):
            backends.get("numba")
        assert backends.get("auto").name != "numba"
    finally:
        loading.failed.clear()


@pytest.mark.parametrize(
    ("kept", "dtype", "work", "want", "why"),
    [
        ({"float32"}, "float32", 0.0, "numba", "kernels for float32 are compiled already"),
        ({"float32"}, "float64", 0.0, "cython", "kernels for float64 are not compiled yet"),
        (set(), "float32", 1e9, "cython", "fastneuron warmup"),
        (set(), "float64", 1e16, "numba", "long enough"),
    ],
)
def test_auto_compiles_nothing_for_little_work(
    kept: set[str],
    dtype: str,
    work: float,
    want: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiled(numba_version: str, dtype: str) -> frozenset[str]:
        return frozenset({"train"} if dtype in kept else ())

    for name in ("numba", "cython"):
        if isinstance(backends.available()[name], BackendUnavailable):
            pytest.skip(f"{name} is not there to be chosen")
    monkeypatch.setattr(backends, "compiled_kernels", compiled)
    got = backends.get("auto", dtype, work)
    assert got.name == want
    assert why in got.reason


def test_use_and_the_environment_decide_what_auto_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert backends.current() == "auto"
    monkeypatch.setenv("FASTNEURON_BACKEND", "numpy")
    assert "FASTNEURON_BACKEND=numpy" in backends.get().reason
    monkeypatch.setenv("FASTNEURON_BACKEND", "nonsense")
    with pytest.raises(UnknownNameError, match="nonsense"):
        backends.get()
    with backends.use("numpy") as chosen:
        assert chosen.name == backends.get().name == backends.current() == "numpy"
        assert "use('numpy')" in backends.get().reason
        seen = []
        thread = threading.Thread(target=lambda: seen.append(backends.current()))
        thread.start()
        thread.join()
        assert seen == ["nonsense"]
    assert backends.current() == "nonsense"
    assert backends.get("numpy").name == "numpy"


def test_use_ends_with_its_block_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), backends.use("numpy"):
        1 / 0  # noqa: B018
    assert backends.current() == "auto"


def test_without_numba_cuda_the_compiled_engine_is_taken(
    no_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"fastneuron.kernels._cython_cuda"}
    monkeypatch.setattr(device_supply, "find_spec", lambda name: name in there or None)
    monkeypatch.setattr(loading, "supply", device_supply.supply)
    monkeypatch.setattr(cython_cuda, "missing", lambda: "")
    monkeypatch.setattr(cython_cuda, "slots", lambda: {"mse": id})
    backend = backends.get("cuda")
    assert backend.device == "cuda"
    assert (backend.slots["mse"], backend.origin["mse"]) == (id, "cuda")
    assert backend.origin["mae"] == "numpy"
    assert loading._import("cuda").engine is cython_cuda.CythonCudaEngine
    monkeypatch.setattr(cython_cuda, "missing", lambda: "it was built for other tables")
    assert device_supply.supply().problem == "it was built for other tables"
    there.clear()
    assert device_supply.supply().module == ""
