"""Where a trainer's arrays come in, on the host or on its engine's device, and how they return."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastneuron.arrays import Array, as_rows, as_targets, as_weights
from fastneuron.device_arrays import DeviceArray, as_device_rows, device_array
from fastneuron.errors import DataError, DeviceMemoryError
from fastneuron.parameters import LiveEngine
from fastneuron.spec import NetworkSpec

__all__ = ["Intake", "check_batch"]

# Parameters that are trained on a device are brought to the host so often, at most: what a device
# that fails takes with it is a second of training; bringing them takes two per cent at worst.
_KEEP_SECONDS, _KEEP_PAUSE = 1.0, 50


class Intake:
    """Checks arrays for an engine; what lies on its device stays there.

    Parameters
    ----------
    live : LiveEngine
    on_device : bool
        Whether the engine computes on a device, which may fail.
    """

    def __init__(self, live: LiveEngine, on_device: bool) -> None:
        spec = live.store.spec
        self._live, self._on_device = live, on_device
        self._held: Any = None  # the rows that `hold` was given last
        self._features, self._outputs = spec.in_features, spec.out_features
        self._dtype = np.dtype(spec.dtype)
        self._keep_at = time.perf_counter() + _KEEP_SECONDS

    def rows(self, x: Any, name: str, features: int = 0) -> Any:
        """Return rows as the engine takes them: (n, in_features) unless `features` are given."""
        # The usual kind first: it saves 0.2 us.
        found = None if type(x) is np.ndarray else self._device_array(x, name)
        if found is None:
            return as_rows(x, name, self._dtype, features or self._features)
        return as_device_rows(found, name, self._dtype, features or self._features)

    def targets(self, y: Any, kind: str, n: int) -> Any:
        """Return targets likewise; those on a device are read back to be checked."""
        found = self._device_array(y, "y")
        if found is None:
            return as_targets(y, kind, n, self._outputs, self._dtype)
        checked = as_targets(self.on_host(found), kind, n, self._outputs, self._dtype)
        if found.dtype == checked.dtype:
            return found if found.shape == checked.shape else found.reshape(*checked.shape)
        if checked.ndim == 1:  # class numbers of another width: few bytes, sent again as int64
            return checked
        return as_device_rows(found, "y", self._dtype, self._outputs)

    def weights(self, weight: Any, n: int) -> Array | None:
        """Return sample weights, which are scaled on the host."""
        if weight is None:
            return None
        found = self._device_array(weight, "sample_weight")
        return as_weights(weight if found is None else self.on_host(found), n, self._dtype)

    def check_batch(self, rows: int) -> None:
        """Refuse batches of one row where rows are normalised by their batch."""
        check_batch(self._live.store.spec, rows)

    def on_host(self, array: Any) -> Array:
        """Return what came in as a NumPy array, copied where it lies on the device."""
        if isinstance(array, np.ndarray):
            return array
        with self._live.store.lock:
            engine: Any = self._live.engine
            return self._live.asked(engine.fetch, array)

    def accused(self, array: Any, name: str) -> Array:
        """Return what came in as a NumPy array; where it holds NaN or infinity, say where."""
        return as_rows(self.on_host(array), name, self._dtype)

    def hold(self, x: Any, y: Any, weight: Array | None) -> None:
        """Put a data set on the device for calls to come; what is too large goes call by call."""
        if not self._on_device or self._held is x:
            return
        self._held = x
        engine = self._live.engine
        try:
            self._live.asked(engine.hold, x, y, weight)
        except DeviceMemoryError as error:
            if not error.whole:
                raise
            engine.let_go()

    def let_go(self) -> None:
        """Let the owners of what was held free it."""
        self._held = None
        if not self._live.gone:
            self._live.engine.let_go()

    def keep(self) -> None:
        """Bring the parameters to the host where it is time to: they outlive the device."""
        if not self._on_device:
            return
        now = time.perf_counter()
        if now >= self._keep_at and self._live.store.owner is self._live:
            self._live.store.pull()
            done = time.perf_counter()
            self._keep_at = done + max(_KEEP_SECONDS, _KEEP_PAUSE * (done - now))

    def _device_array(self, x: Any, name: str) -> DeviceArray | None:
        found = device_array(x, name)
        if found is not None and not self._live.engine.takes_device_arrays:
            raise DataError(
                f"{name} lies on a device, but the backend {self._live.backend!r} takes arrays on "
                "the host: give device='cuda' (with numba-cuda), or copy it to the host"
            )
        return found


def check_batch(spec: NetworkSpec, rows: int) -> None:
    """Refuse batches of one row where rows are normalised by their batch.

    Raises
    ------
    DataError
    """
    if rows < 2 and spec.uses_batch:
        raise DataError(
            "BatchNorm needs batches of 2 rows or more to train: one row has no variance. Give "
            "more rows, use LayerNorm, or BatchNorm(trainable=False)"
        )
