"""The backends: which exist, which run here and why not, and who supplies each slot.

With `loading` this is the only door to `fastneuron.kernels`. Nothing falls back unseen: a backend
asked for by name runs or raises; only "auto" chooses, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from fastneuron.errors import BackendUnavailable, SpecError, UnknownNameError
from fastneuron.kernels.contract import Ceilings, Engine
from fastneuron.kernels.device_card import Card, cards, driver_version
from fastneuron.kernels.device_supply import supply
from fastneuron.kernels.ensemble_contract import EnsembleEngine
from fastneuron.kernels.precision import check_precision
from fastneuron.loading import NAMES, Slot, load, loaded, problem_of
from fastneuron.losses import Loss
from fastneuron.optimizers import Optimizer
from fastneuron.places import compiled_kernels
from fastneuron.spec import NetworkSpec

__all__ = [
    "AUTO_ORDER",
    "DEVICES",
    "NAMES",
    "Backend",
    "Card",
    "available",
    "cards",
    "current",
    "device_kernels",
    "driver_version",
    "get",
    "on_device",
    "predicted",
    "use",
]

#: What ``device=`` may be.
DEVICES = ("cpu", "cuda", "auto")
#: What "auto" tries: the first that runs, and need not compile first for too little work.
AUTO_ORDER = ("numba", "cython", "numpy")
#: Multiply-adds of training from which compiling Numba's kernels is repaid: half an hour of one
#: core with AVX-512. The kernels in C take as long as Numba's, within a few percent either way.
WORK_TO_COMPILE = 2e14

_chosen: ContextVar[str | None] = ContextVar("fastneuron_backend", default=None)
#: What "auto" was found to mean in this process, for (dtype, whether the work is long).
_choices: dict[tuple[str, bool], Backend] = {}
# os.environ encodes the name at every look, which takes 0.6 us; asking the table behind it 0.02.
_environ = os.environ
_table: Any = getattr(os.environ, "_data", os.environ)
_variable: Any = getattr(os.environ, "encodekey", str)("FASTNEURON_BACKEND")


@dataclass(frozen=True)
class Backend:
    """One way to compute; its kernels are imported at the first use of `slots` or `engine`.

    Attributes
    ----------
    name : str
    device : str
        Where it computes: "cpu" or "cuda".
    reason : str
        Why this backend is the one in use.
    """

    name: str
    device: str = "cpu"
    reason: str = ""

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every slot by name; those that the backend lacks are the reference's (see `origin`)."""
        return load(self.name).slots

    @property
    def origin(self) -> Mapping[str, str]:
        """The name of the backend that supplies each slot."""
        return load(self.name).origin

    @property
    def has_engine(self) -> bool:
        """False where training runs through the reference engine over this backend's slots."""
        return load(self.name).has_engine

    @property
    def instruction_set(self) -> str:
        """The instruction set of kernels that were compiled ahead for several; else nothing."""
        return load(self.name).instruction_set

    @property
    def ceilings(self) -> Ceilings | None:
        """Kernels that show what a core can do at most; None where it has none."""
        return load(self.name).ceilings

    def check_precision(self, precision: str, dtype: str) -> None:
        """Refuse a precision (``docs/precision.md``) that a network cannot have here.

        Raises
        ------
        UnknownNameError, SpecError, BackendUnavailable
            Where it does not exist, or not for that dtype, or cannot be had from this backend.
        """
        check_precision(precision, dtype, self.name)

    def engine(
        self,
        spec: NetworkSpec,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        *,
        n_threads: int | None = None,
        batch_size: int = 1,
        precision: str = "float32",
    ) -> Engine:
        """Return a new engine; its parameters are yet to be loaded.

        Raises
        ------
        UnknownNameError, SpecError, BackendUnavailable
            See `check_precision`.
        """
        self.check_precision(precision, spec.dtype)
        given: dict[str, Any] = {"n_threads": n_threads, "batch_size": batch_size}
        if precision != "float32":  # which is what every engine computes in
            given["precision"] = precision
        return load(self.name).engine(spec, loss, optimizer, **given)

    def ensemble_engine(
        self, spec: NetworkSpec, loss: Loss | None, optimizers: Sequence[Optimizer], **given: Any
    ) -> EnsembleEngine:
        """Return a new engine of many networks at once: the backend's own, else `EachAlone`.

        `given`: n_threads and batch_size, as in `engine`.
        """
        own = load(self.name).ensemble
        engine = own(spec, loss, optimizers, **given) if own else None
        if engine is not None:
            return engine
        # Compiled kernels for the CPU let go of the interpreter; NumPy's steps are Python.
        compiled = self.has_engine and self.name != "numpy" and self.device == "cpu"
        given.update(make=self.engine, side_by_side=compiled)
        general = import_module("fastneuron.kernels.each_alone").EachAlone
        made: EnsembleEngine = general(spec, loss, optimizers, **given)
        return made


def available() -> dict[str, Backend | BackendUnavailable]:
    """Return every backend by name: a `Backend`, or the error that says why it cannot run here.

    Nothing heavy is imported: numba is only looked for.
    """
    found: dict[str, Backend | BackendUnavailable] = {}
    for name in NAMES:
        problem = problem_of(name)
        found[name] = BackendUnavailable(problem) if problem else _backend(name)
    return found


def get(name: str | Backend = "auto", dtype: str = "float32", work: float = 0.0) -> Backend:
    """Return the backend called `name`; "auto": `use`, FASTNEURON_BACKEND, then its own choice.

    Parameters
    ----------
    name : str or Backend
        A backend is returned as it is.
    dtype : str
        "float32" or "float64": what "auto" shall compute with.
    work : float
        Multiply-adds that it is wanted for, as far as they are known.

    Raises
    ------
    UnknownNameError
        Where no backend is called so; the message lists those that exist.
    BackendUnavailable
        Where it cannot run here; the message says why, and what can.
    """
    if isinstance(name, Backend):
        return name
    if name != "auto":
        return _named(name, f"asked for as {name!r}")
    chosen = _chosen.get()
    if chosen is not None and chosen != "auto":
        return _named(chosen, f"chosen by fastneuron.backends.use({chosen!r})")
    variable = os.environ.get("FASTNEURON_BACKEND", "")
    if chosen is None and variable not in ("", "auto"):
        return _named(variable, f"chosen by FASTNEURON_BACKEND={variable}")
    key = dtype, work >= WORK_TO_COMPILE
    if key not in _choices:
        _choices[key] = _own_choice(*key)
    return _choices[key]


def on_device(
    device: str | None,
    name: str | Backend = "auto",
    dtype: str = "float32",
    work: float = 0.0,
    weigh: Callable[[Card], tuple[bool, str]] | None = None,
) -> Backend:
    """Return the backend that computes on `device`; `name`, `dtype` and `work` as in `get`.

    Parameters
    ----------
    device : {None, "cpu", "cuda", "auto"}
        None: wherever the backend does, which for "auto" is the CPU. "auto": on a card where
        `weigh` says so of the first that the driver shows, since engines use no other
        (CUDA_VISIBLE_DEVICES chooses which that is); a backend that was asked for, or chosen by
        `use` or FASTNEURON_BACKEND, keeps its place.
    weigh : callable, optional
        Card -> whether it is worth its start, and why.

    Raises
    ------
    UnknownNameError, BackendUnavailable
        As in `get`.
    SpecError
        Where the backend computes elsewhere.
    """
    if device is not None and device not in DEVICES:
        raise UnknownNameError(f"unknown device {device!r} (known: {', '.join(DEVICES)})")
    asked = name.name if isinstance(name, Backend) else name
    if asked != "auto":
        if device in ("cpu", "cuda") and asked in NAMES and _device_of(asked) != device:
            raise SpecError(
                f"device={device!r} and backend={asked!r} contradict each other: {asked} computes "
                f"on the device {_device_of(asked)!r}; leave one of them out"
            )
        return get(name, dtype, work)
    if device == "cuda":
        if problem := problem_of("cuda"):
            raise BackendUnavailable(f"device='cuda': {problem}")
        return _named("cuda", "asked for by device='cuda'")
    if device == "cpu" and current() == "cuda":  # what is said here outdoes what is said elsewhere
        return _own_choice(dtype, work >= WORK_TO_COMPILE)
    chosen = get("auto", dtype, work)
    if device != "auto" or current() != "auto":
        return chosen
    found = cards()
    if problem_of("cuda"):
        why = f"CUDA cannot be used: {problem_of('cuda')}"
    elif not found or weigh is None:
        why = "no card: the simulator is none" if not found else "the work is not known"
    else:
        pays, why = weigh(found[0])
        if len(found) > 1:  # engines use the first that the driver shows
            why += f"; of {len(found)} cards the first counts: CUDA_VISIBLE_DEVICES chooses which"
        if pays:
            return _named("cuda", f"device auto: {why}")
    return replace(chosen, reason=f"{chosen.reason}; device auto: {why}")


def predicted(card: Card, **task: Any) -> tuple[bool, str]:
    """Return whether a card would pay for a task, and why; see `kernels.device_cost.Task`."""
    model = import_module("fastneuron.kernels.device_cost")
    verdict = model.weigh(model.Task(kernels=device_kernels(), **task), card)
    return verdict.pays, verdict.why


def device_kernels() -> str:
    """Return whose kernels the backend "cuda" would run; nothing where none are installed."""
    return supply().kernels


def _own_choice(dtype: str, long: bool) -> Backend:
    order: tuple[str, ...] = AUTO_ORDER
    why = ""
    if not problem_of("numba") and not problem_of("cython"):
        if _compiled(dtype):
            why = f"numba's kernels for {dtype} are compiled already"
        elif long:
            why = "the work is long enough to repay compiling numba's kernels"
        else:
            order = ("cython", *(name for name in AUTO_ORDER if name != "cython"))
            why = (
                f"cython needs no compiling; numba's kernels for {dtype} are not compiled yet "
                "(fastneuron warmup does that)"
            )
    why = why or f"first of {', '.join(order)} that runs here"
    problems = []
    for candidate in order:
        try:
            load(candidate)
        except BackendUnavailable as error:
            problems.append(f"{candidate} would come before it, but {error}")
        else:
            return _backend(candidate, "; ".join([f"auto: {why}", *problems]))
    raise BackendUnavailable("; ".join(problems))


def _compiled(dtype: str) -> bool:
    """Return whether Numba's kernels wait in the cache, without importing numba."""
    # Imported here: where Numba is missing, or a backend asked for, it is a tenth of the start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "train" in compiled_kernels(version("numba"), dtype)
    except PackageNotFoundError:
        return False


def current() -> str:
    """Return the name that "auto" stands for here, which may be "auto"; nothing is imported."""
    chosen = _chosen.get()
    if chosen is None and os.environ is _environ and _variable not in _table:
        return "auto"
    return chosen or os.environ.get("FASTNEURON_BACKEND") or "auto"


@contextmanager
def use(name: str) -> Iterator[Backend]:
    """Make "auto" mean the backend `name` inside a ``with`` block, in this thread or task only."""
    backend = get(name)
    token = _chosen.set(name)
    try:
        yield backend
    finally:
        _chosen.reset(token)


def _named(name: str, reason: str) -> Backend:
    if name not in loaded:
        if name not in NAMES:
            raise UnknownNameError(f"unknown backend {name!r} ({_overview()})")
        try:
            load(name)
        except BackendUnavailable as error:
            raise BackendUnavailable(f"backend {name!r}: {error} ({_overview(name)})") from error
    return _backend(name, reason)


def _backend(name: str, reason: str = "") -> Backend:
    return Backend(name, _device_of(name), reason)


def _device_of(name: str) -> str:
    return "cuda" if name == "cuda" else "cpu"


def _overview(but: str = "") -> str:
    """Return what exists and why the rest is missing, for messages; `but` has been told of."""
    problems = {name: problem_of(name) for name in NAMES if name != but}
    runs = [name for name, problem in problems.items() if not problem]
    missing = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    return "; ".join([f"available: auto, {', '.join(runs)}", *missing])
