"""One engine of many networks, and the stores that hold the parameters of each.

While the engine trains, its copy is the newest of every store: reading a weight of one network
fetches those of all, once. A network that something else has changed since is loaded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastneuron.errors import DeviceError, DeviceMemoryError
from fastneuron.interrupts import HeldInterrupts
from fastneuron.kernels.contract import Array, Engine, Parameters, Statistics
from fastneuron.kernels.ensemble_contract import (
    EnsembleEngine,
    EnsembleOutcome,
    of_model,
    stacked,
)
from fastneuron.parameters import LiveEngine, ParameterStore

__all__ = ["LiveEnsemble"]

# Values that one forward call may return: 64 MiB of float32, as of one network.
_FORWARD_VALUES = 1 << 24
# As `Intake` brings one network's parameters to the host.
_KEEP_SECONDS, _KEEP_PAUSE = 1.0, 50


class LiveEnsemble:
    """An engine of many networks kept in step with their stores; Ctrl-C cuts no step in two.

    Parameters
    ----------
    stores : sequence of ParameterStore
        Of networks of one architecture; no store twice.
    make : callable
        Returns a new `EnsembleEngine` for all of them.
    ask : callable
        Returns a new `Engine` for one of them, to be asked.
    backend : str
    count : callable
        Returns the steps that the engine has done.
    on_device : bool
        Whether the engine computes on a device, which may fail.

    Attributes
    ----------
    stopped : (M,) bool
        Networks that have diverged: the engine does no step of theirs, and their stores hold them.
    kept : int
        Steps done when all parameters were last brought to the host from a device.
    lost : bool
        Whether the device failed since: steps after `kept` are gone.
    """

    def __init__(
        self,
        stores: Sequence[ParameterStore],
        make: Callable[[], EnsembleEngine],
        ask: Callable[[], Engine],
        backend: str,
        count: Callable[[], int],
        *,
        on_device: bool,
    ) -> None:
        self.stores = stores
        self.stopped: NDArray[np.bool_] = np.zeros(len(stores), bool)
        self.kept = 0
        self.lost = False
        self._make, self._ask, self._count = make, ask, count
        self._engine: EnsembleEngine | None = make()
        self._asker: tuple[Engine, Any] | None = None
        self._members = [_Member(self, m, store, backend) for m, store in enumerate(stores)]
        # One network's thread may ask for what it owns while another's does: after its own store's
        # lock each takes the turn. Who takes several stores' locks takes them in this order.
        self._turn = RLock()
        self._locks = [store.lock for store in sorted(stores, key=id)]
        self._held = HeldInterrupts()
        self._proven = False
        self._exported: tuple[Parameters, Statistics] | None = None
        self._changed: dict[int, tuple[Parameters, Statistics]] = {}  # yet to be loaded
        self._on_device = on_device
        self._keep_at = time.perf_counter() + _KEEP_SECONDS

    @property
    def engine(self) -> EnsembleEngine:
        """The engine; made anew after a device failed."""
        if self._engine is None:
            self._engine = self._make()
        return self._engine

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all stores."""
        held = 0
        try:
            for lock in self._locks:
                lock.acquire()
                held += 1
            with self._turn:
                yield
        finally:
            for lock in self._locks[:held]:
                lock.release()

    def refresh(self) -> None:
        """Give the engine the newest parameters of all networks; the caller holds the locks."""
        for member, stopped in zip(self._members, self.stopped.tolist(), strict=True):
            if member.store.owner is not member and not stopped:
                member.refresh()
        if self._changed:
            try:
                self._load()
            except DeviceError as error:
                raise self.failed(error) from error

    def claim(self) -> None:
        """`refresh`, then own the newest parameters: the engine is about to change them."""
        stopped = self.stopped.tolist()
        pairs = [(m.store, m) for m, done in zip(self._members, stopped, strict=True) if not done]
        if any(store.owner is not member for store, member in pairs):
            if self._on_device:  # what a device takes with it are the same steps of all
                for store, _ in pairs:
                    store.pull()
            self.kept = self._count()
        self.refresh()
        for store, member in pairs:
            store.owner = member

    def run(self, *arguments: Any) -> EnsembleOutcome:
        """`EnsembleEngine.run` after `claim`; `release` must follow.

        The first call may compile for seconds: Ctrl-C cuts it short, and what it did is undone.
        Later calls are short: Ctrl-C waits for their end.
        """
        self._exported = None
        try:
            if self._proven:
                with self._held:
                    return self.engine.run(*arguments)
            outcome = self.engine.run(*arguments)
        except DeviceError as error:
            raise self.failed(error) from error
        except BaseException:
            if not self._proven:
                self._give_up()
            raise
        self._proven = True
        return outcome

    @contextmanager
    def held(self, *data: Any) -> Iterator[None]:
        """Put a data set where the engine finds it in calls to come, if there is room for it."""
        with self.locked():
            try:
                self.engine.hold(*data)
            except DeviceError as error:
                if not (error.whole and isinstance(error, DeviceMemoryError)):
                    raise self.failed(error) from error
                self.engine.let_go()
        try:
            yield
        finally:
            if self._engine is not None:
                self._engine.let_go()

    def release(self) -> None:
        """Raise a Ctrl-C that was held back, once the caller's books are in order."""
        self._held.release()

    def stop(self, models: Sequence[int]) -> None:
        """Let networks do no further step: their parameters go to their stores, and stay there."""
        for m in models:
            self._changed[m] = self._members[m].not_a_number()
            self.stopped[m] = True

    def forward(self, x: Array) -> Array:
        """Return the outputs (M, n, O) for checked rows (n, I) or (M, n, I), in bounded memory."""
        with self.locked():
            self.refresh()
            n, outputs = x.shape[-2], self.stores[0].spec.sizes[-1]
            block = max(256, _FORWARD_VALUES // (max(self.stores[0].spec.sizes) * len(self.stores)))
            out = np.empty((len(self.stores), n, outputs), x.dtype)
            try:
                for start in range(0, n, block):
                    part = slice(start, start + block)
                    out[:, part] = self.engine.forward(np.ascontiguousarray(x[..., part, :]))
            except DeviceError as error:
                raise self.failed(error) from error
            for m in np.flatnonzero(self.stopped).tolist():
                out[m] = self.answer(m, x[m] if x.ndim == 3 else x)
            return out

    def answer(self, m: int, x: Array) -> Array:
        """Return the output of one network, whose store's lock the caller holds."""
        with self._turn:
            store = self.stores[m]
            arrays = store.pull()
            if self._asker is None:
                self._asker = self._ask(), None
            engine, loaded = self._asker
            try:
                if loaded != (m, store.version):
                    engine.load(arrays)
                    engine.load_statistics(store.pull_statistics())
                    self._asker = engine, (m, store.version)
                return engine.forward(x)
            except DeviceError:  # the store has the parameters; the next question makes it anew
                self._asker = None
                raise

    def exported(self) -> tuple[Parameters, Statistics]:
        """Return the engine's parameters and statistics, to be read and not written."""
        with self._turn:
            if self._exported is None:
                self._exported = self.engine.export(), self.engine.export_statistics()
            return self._exported

    def change(self, m: int, parameters: Parameters, statistics: Statistics) -> None:
        """Note what is to be loaded of one network, before anything else is done."""
        self._changed[m] = parameters, statistics

    def keep(self) -> None:
        """Bring the parameters to the host where it is time to: they outlive the device."""
        now = time.perf_counter()
        if self._on_device and now >= self._keep_at:
            for store in self.stores:
                store.pull()
            self.kept = self._count()
            done = time.perf_counter()
            self._keep_at = done + max(_KEEP_SECONDS, _KEEP_PAUSE * (done - now))

    def failed(self, error: DeviceError) -> DeviceError:
        """Take in that the device failed; return the error that says what the host has."""
        steps = self._count()
        owned = any(member.store.owner is member for member in self._members)
        if error.whole:
            said = f"{error}. Nothing is lost: {steps} steps were done"
            return type(error)(said, whole=True) if owned else error
        self._give_up()
        self.lost = owned
        if not owned:
            return error
        return type(error)(
            f"{error}. The parameters are those after step {self.kept} of {steps}, the last that "
            "were brought to the host; a training that goes on starts the optimizer's moments anew"
        )

    def _give_up(self) -> None:
        """Leave the engine: the stores' arrays are those that they had last."""
        self._engine, self._asker, self._exported, self._proven = None, None, None, False
        self._changed.clear()
        for member, stopped in zip(self._members, self.stopped.tolist(), strict=True):
            member.version = -1
            if member.store.owner is member:
                member.store.owner = None
            if stopped:
                self._changed[member.index] = member.not_a_number()

    def _load(self) -> None:
        """Load what has changed; what has not goes out of the engine and in again."""
        each = dict(self._changed)
        if len(each) < len(self.stores):  # an engine that was never loaded has nothing to tell
            parameters, statistics = self.exported()
            for m in set(range(len(self.stores))) - set(each):
                each[m] = of_model(parameters, m), of_model(statistics, m)
        of_all = [each[m] for m in range(len(self.stores))]
        self.engine.load(stacked([of_one for of_one, _ in of_all]))
        self.engine.load_statistics(stacked([of_one for _, of_one in of_all]))
        self._changed.clear()
        self._exported = None


class _Member(LiveEngine):
    """What owns one network's store while the engine of all has its newest parameters."""

    def __init__(
        self, ensemble: LiveEnsemble, index: int, store: ParameterStore, backend: str
    ) -> None:
        self.ensemble, self.index = ensemble, index
        super().__init__(store, lambda: cast(Engine, _View(ensemble, index)), backend)

    def note_kept(self) -> None:
        pass  # the ensemble notes that, for all

    def failed(self, error: DeviceError) -> DeviceError:
        return self.ensemble.failed(error)

    def answer(self, x: Array) -> Array:
        return self.ensemble.answer(self.index, x)

    def not_a_number(self) -> tuple[Parameters, Statistics]:
        """Return parameters by which an engine does no step, see `EnsembleEngine.run`.

        The store has the network's own from then on.
        """
        arrays, statistics = self.store.pull(), self.store.pull_statistics()
        nan = [
            (np.full_like(w, np.nan), None if b is None else np.full_like(b, np.nan))
            for w, b in arrays
        ]
        return nan, statistics


class _View:
    """One network of an engine of many, as far as a store and a `LiveEngine` ask for it."""

    def __init__(self, ensemble: LiveEnsemble, index: int) -> None:
        self._ensemble, self._index = ensemble, index
        self._parameters: Parameters = []

    def load(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def load_statistics(self, statistics: Statistics) -> None:
        self._ensemble.change(self._index, self._parameters, statistics)
        self._parameters = []

    def export(self) -> Parameters:
        return _copied(of_model(self._ensemble.exported()[0], self._index))

    def export_statistics(self) -> Statistics:
        return _copied(of_model(self._ensemble.exported()[1], self._index))


def _copied(pairs: list[Any]) -> list[Any]:
    """Return parameters, or statistics, that are no views: one network keeps no others alive."""
    return [
        None if pair is None else tuple(None if array is None else array.copy() for array in pair)
        for pair in pairs
    ]
