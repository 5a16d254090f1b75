"""One truth about a network's parameters, however many engines train and read it.

The store keeps row-major arrays. While an engine trains, its own copy is the newest and it is the
store's `owner`; the arrays are fetched back only when somebody else needs them. So the step of a
trainer that goes on alone pays one comparison, and reading a weight is always up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np

from fastneuron.arrays import as_rows
from fastneuron.errors import DataError, DeviceError, SpecError
from fastneuron.interrupts import HeldInterrupts
from fastneuron.kernels.contract import Array, Engine, Outcome, Parameters, Statistics
from fastneuron.spec import NetworkSpec, bias_is_redundant

# Values one forward call may hold a layer: bounds the memory of a prediction over a large data set
# (64 MiB of float32), and the time until Ctrl-C is heard.
_FORWARD_VALUES = 1 << 24

Result = TypeVar("Result")


class ParameterStore:
    """Holds the parameters of one network and knows who has the newest.

    Parameters
    ----------
    spec : NetworkSpec
        As an attribute it follows `set_trainable`: engines keep the one that they were made with.
    parameters : list of (weight, bias (out,) or None)
        Copied, after a check of every shape.
    statistics : list of (running mean (out,), running variance (out,)) or None, optional
        Likewise; means of 0 and variances of 1 unless given.

    Attributes
    ----------
    owner : LiveEngine or None
        The engine whose parameters are newer than the arrays here.
    version : int
        Grows whenever the arrays change; an engine of another version must load before its use.
    lock : RLock
        Held around every use of an engine, so that threads may share a network.
    loss : str or None
        Name of the loss that the parameters were last trained for.
    epochs : int
        Epochs that `fit` has begun on these parameters: the next fit's data order goes on there.
    initial_biases : list of (out,) or None
        Those that the store was made with: what a bias's drift is measured from.
    """

    def __init__(
        self, spec: NetworkSpec, parameters: Parameters, statistics: Statistics | None = None
    ) -> None:
        self.spec = spec
        self.version = 0
        self.owner: LiveEngine | None = None
        self.lock = RLock()
        self.loss: str | None = None
        self.epochs = 0
        self._arrays = self.checked(parameters)
        self._statistics = self._checked_all(statistics or _initial_statistics(spec))
        self.initial_biases = [None if b is None else b.copy() for _, b in self._arrays]

    def checked(self, parameters: Parameters) -> Parameters:
        """Return row-major copies in the network's dtype; what does not fit is a DataError."""
        if len(parameters) != len(self.spec.layers):
            raise DataError(
                f"parameters of {len(parameters)} layers for {len(self.spec.layers)} layers"
            )
        return [
            (self._checked_weight(i, weight), self._checked_bias(i, bias))
            for i, (weight, bias) in enumerate(parameters)
        ]

    def pull(self) -> Parameters:
        """Return the newest arrays themselves, to be read and not written."""
        if self.owner is None:
            return self._arrays
        with self.lock:
            owner = self.owner
            if owner is not None:
                try:
                    arrays, statistics = owner.engine.export(), owner.engine.export_statistics()
                except DeviceError as error:
                    raise owner.failed(error) from error
                self._arrays, self._statistics = arrays, statistics
                self.version += 1
                owner.version = self.version
                owner.note_kept()
                self.owner = None
            return self._arrays

    def pull_statistics(self) -> Statistics:
        """Return the newest running statistics themselves, to be read and not written."""
        self.pull()
        return self._statistics

    def replace(self, parameters: Parameters, statistics: Statistics | None = None) -> None:
        """Set every parameter at once, for example to put the best ones back.

        Running statistics stay as they are unless they are given.
        """
        checked = self.checked(parameters)
        with self.lock:
            given = self.pull_statistics() if statistics is None else statistics
            self._statistics = self._checked_all(given)
            self._arrays = checked
            self.version += 1
            self.owner = None

    def set_statistics(self, layer: int, mean: Any, variance: Any) -> None:
        """Set one layer's running mean and variance (out,)."""
        checked = self._checked_statistics(layer, mean, variance)
        with self.lock:
            statistics = list(self.pull_statistics())
            statistics[layer] = checked
            self._statistics = statistics
            self.version += 1

    def set_weight(self, layer: int, weight: Any) -> None:
        """Set one layer's weight."""
        checked = self._checked_weight(layer, weight)
        with self.lock:
            arrays = list(self.pull())
            arrays[layer] = (checked, arrays[layer][1])
            self._arrays = arrays
            self.version += 1

    def set_bias(self, layer: int, bias: Any) -> None:
        """Set one layer's bias (out,)."""
        checked = self._checked_bias(layer, bias)
        with self.lock:
            arrays = list(self.pull())
            arrays[layer] = (arrays[layer][0], checked)
            self._arrays = arrays
            self.version += 1

    def set_trainable(self, layer: int, trainable: Any) -> None:
        """Set what steps change of one layer, for the engines to come."""
        with self.lock:
            layers = list(self.spec.layers)
            if not layers[layer].has_parameters:
                if isinstance(trainable, (bool, np.bool_)):
                    return  # so that a loop over all layers freezes a network
                name = type(layers[layer]).__name__
                raise SpecError(f"layers[{layer}]: a {name} layer has neither weight nor bias")
            layers[layer] = replace(layers[layer], trainable=trainable)  # type: ignore[type-var]
            self.spec = replace(self.spec, layers=tuple(layers))

    def _checked_weight(self, layer: int, weight: Any) -> Array:
        spec = self.spec.layers[layer]
        name = f"layers[{layer}].weight"
        if not spec.has_parameters:
            if np.size(weight):
                raise DataError(f"{name}: a {type(spec).__name__} layer has no weight")
            return np.empty(0, self.spec.dtype)
        if len(spec.weight_shape) == 1:
            return self._checked_vector(name, weight, spec.weight_shape[0])
        if np.shape(weight) != spec.weight_shape:
            raise DataError(f"{name} must have shape {spec.weight_shape}, got {np.shape(weight)}")
        return as_rows(weight, name, self.spec.dtype).copy()

    def _checked_bias(self, layer: int, bias: Any) -> Array | None:
        spec = self.spec.layers[layer]
        name = f"layers[{layer}].bias"
        if not spec.bias:
            if bias is not None:
                raise DataError(f"{name}: {self._why_no_bias(layer)}")
            return None
        return self._checked_vector(name, bias, spec.out_features)

    def _why_no_bias(self, layer: int) -> str:
        if not self.spec.layers[layer].has_parameters:
            return f"a {type(self.spec.layers[layer]).__name__} layer has none"
        if bias_is_redundant(self.spec.layers, layer):
            return (
                "this layer has none, since the BatchNorm after it takes it away; that layer's "
                "bias does the shifting. Dense(..., bias=True) keeps one"
            )
        return "this layer was described with bias=False and has none"

    def _checked_all(self, statistics: Statistics) -> Statistics:
        return [
            None if pair is None else self._checked_statistics(i, *pair)
            for i, pair in enumerate(statistics)
        ]

    def _checked_statistics(self, layer: int, mean: Any, variance: Any) -> tuple[Array, Array]:
        spec = self.spec.layers[layer]
        if not spec.has_statistics:
            raise DataError(f"layers[{layer}]: a {type(spec).__name__} layer keeps no statistics")
        name = f"layers[{layer}].running"
        checked = self._checked_vector(f"{name}_variance", variance, spec.out_features)
        if (checked < 0).any():
            raise DataError(f"{name}_variance must be at least 0, got {checked.min():g}")
        return self._checked_vector(f"{name}_mean", mean, spec.out_features), checked

    def _checked_vector(self, name: str, values: Any, size: int) -> Array:
        if np.shape(values) != (size,):
            raise DataError(f"{name} must have shape ({size},), got {np.shape(values)}")
        return as_rows(np.asarray(values)[None], name, self.spec.dtype)[0].copy()

    def __getstate__(self) -> dict[str, Any]:
        """Leave engines and locks out of copies and pickles."""
        return {
            "spec": self.spec,
            "arrays": self.pull(),
            "statistics": self.pull_statistics(),
            "loss": self.loss,
            "epochs": self.epochs,
            "initial_biases": self.initial_biases,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["spec"], state["arrays"], state["statistics"])  # type: ignore[misc]
        self.loss = state["loss"]
        self.epochs = state["epochs"]
        self.initial_biases = state["initial_biases"]


def _initial_statistics(spec: NetworkSpec) -> Statistics:
    """Return running means of 0 and variances of 1."""
    return [
        (np.zeros(layer.out_features, spec.dtype), np.ones(layer.out_features, spec.dtype))
        if layer.has_statistics
        else None
        for layer in spec.layers
    ]


class LiveEngine:
    """An engine kept in step with a store, whose steps Ctrl-C cannot cut in two.

    Parameters
    ----------
    store : ParameterStore
    make : callable
        Returns a new engine.
    backend : str
        Name of the engine's backend.
    count : callable, optional
        Returns the steps that the engine has done.

    Attributes
    ----------
    engine : Engine
        Made at its first use after a device failed.
    kept : int
        Steps done when the parameters on the host were last those of the engine.
    lost : bool
        Whether the device failed since: steps after `kept` are gone.
    proven : bool
        Whether it has trained: the first training call of an engine may compile.
    """

    def __init__(
        self,
        store: ParameterStore,
        make: Callable[[], Engine],
        backend: str,
        count: Callable[[], int] = int,
    ) -> None:
        self.store = store
        self.backend = backend
        self.engine = make()
        self.kept = 0
        self.lost = False
        self._count = count
        self.version = -1
        self.proven = False
        self._make = make
        self._held = HeldInterrupts()
        self._block = max(256, _FORWARD_VALUES // max(store.spec.sizes))  # rows of one forward call

    def refresh(self) -> bool:
        """Give the engine the newest parameters; True where it had to load them."""
        store = self.store
        if store.owner is self:
            return False
        arrays = store.pull()
        if self.version == store.version:
            return False
        self.engine.load(arrays)
        self.engine.load_statistics(store.pull_statistics())
        self.version = store.version
        return True

    def claim(self) -> bool:
        """`refresh`, then own the newest parameters: the engine is about to change them."""
        loaded = self.refresh()
        if self.store.owner is not self:
            self.note_kept()
        self.store.owner = self
        return loaded

    def note_kept(self) -> None:
        """Note that the host's parameters are those after the steps done so far."""
        self.kept = self._count()

    def failed(self, error: DeviceError) -> DeviceError:
        """Take in that the device failed; return the error that says what the host has.

        Where the device's state is whole nothing is lost. Else the engine is given up, and the
        parameters are those that were last brought to the host.
        """
        steps, store = self._count(), self.store
        owned = store.owner is self
        if error.whole:
            said = f"{error}. Nothing is lost: {steps} steps were done"
            return type(error)(said, whole=True) if owned else error
        if owned:
            store.owner = None
        self.version = -1
        self.proven = False
        self.lost = owned
        self.engine = cast(Engine, _Gone(self))
        if not owned:
            return error
        return type(error)(
            f"{error}. The parameters are those after step {self.kept} of {steps}, the last that "
            "were brought to the host; a training that goes on starts the optimizer's moments anew"
        )

    @property
    def gone(self) -> bool:
        """Whether there is no engine: its device failed, and nobody has asked since."""
        return isinstance(self.engine, _Gone)

    def remake(self) -> Engine:
        """Make the engine anew, after a device failed."""
        self.engine = self._make()
        return self.engine

    def guarded_run(self, *arguments: Any) -> Outcome:
        """`Engine.run`, so that Ctrl-C leaves whole steps; `release` must follow."""
        return self._guarded(self.engine.run, arguments)

    def guarded_update(self, *arguments: Any) -> tuple[Array, Outcome]:
        """`Engine.update`, so that Ctrl-C leaves whole steps; `release` must follow."""
        return self._guarded(self.engine.update, arguments)

    def asked(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call a method of the engine that changes no parameters."""
        try:
            return work(*arguments)
        except DeviceError as error:
            raise self.failed(error) from error

    def release(self) -> None:
        """Raise a Ctrl-C that was held back, once the caller's books are in order."""
        self._held.release()

    def _guarded(self, work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """Call `work` on the engine, which must own the newest parameters.

        The first call may compile for seconds: Ctrl-C cuts it short, and what it did is undone.
        Later calls are short: Ctrl-C waits for their end.
        """
        try:
            if self.proven:
                with self._held:
                    return work(*arguments)
            result = work(*arguments)
        except DeviceError as error:
            raise self.failed(error) from error
        except BaseException:
            if not self.proven:
                self.engine = self._make()
                self.version = -1
                self.store.owner = None  # its arrays are those that the engine had begun with
            raise
        self.proven = True
        return result

    def forward(self, x: Array) -> Array:
        """Return the output (n, O) for checked rows x (n, I), in bounded memory."""
        with self.store.lock:
            return self.answer(x)

    def answer(self, x: Array) -> Array:
        """Do what `forward` does, for a caller who holds the store's lock."""
        store = self.store
        # What `refresh` finds out too; a call takes 0.1 us.
        if store.owner is not self and (store.owner is not None or store.version != self.version):
            self.refresh()
        n, block = len(x), self._block
        if n <= block or self.engine.takes_device_arrays:  # which bounds its memory itself
            try:  # what `asked` does; a call takes 0.1 us
                return self.engine.forward(x)
            except DeviceError as error:
                raise self.failed(error) from error
        out = np.empty((n, self.store.spec.sizes[-1]), x.dtype)
        for start in range(0, n, block):
            out[start : start + block] = self.engine.forward(x[start : start + block])
        return out


class _Gone:
    """Stands where an engine's device failed: the first use makes a new one."""

    def __init__(self, live: LiveEngine) -> None:
        self._live = live

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live.remake(), name)
