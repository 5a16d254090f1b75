"""`net.diagnose`: the health of a network on some rows, and a callback that records it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastneuron import health_figure, reports
from fastneuron.arrays import Array, as_rows, as_targets
from fastneuron.callbacks import Callback, FitState
from fastneuron.descriptions import checked_count, checked_number
from fastneuron.errors import SpecError
from fastneuron.findings import Finding, find, is_saturated
from fastneuron.health import LayerHealth
from fastneuron.losses import LOSSES, Loss
from fastneuron.measurement import measure
from fastneuron.trainer import Network

__all__ = ["Diagnosis", "HealthRecord", "HealthRecorder", "diagnose"]

#: Rows that are looked at, taken evenly: shares are then right to 3 % (two standard errors at one
#: half), and a unit that is active on 1 row in 200 is missed with a chance of 0.6 %.
ROWS = 1024

_KEPT = 64  # records that a recorder keeps: of 1,000 neurons, some 8 MiB
_SHOWN = 8  # records of its table


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The health of a network on some rows; print it, or look into it.

    Attributes
    ----------
    layers : list of LayerHealth
        Numbers for each layer and neuron; `LayerHealth` says what they mean.
    findings : list of Finding
        What ails it, and what to do about it; empty for a healthy network.
    rows, rows_given : int
        Rows looked at, and rows to choose from.
    loss : str or None
        Name of the loss that the gradients belong to.
    mean_loss : float or None
        Over the rows looked at.
    """

    layers: list[LayerHealth]
    findings: list[Finding]
    rows: int
    rows_given: int
    loss: str | None = None
    mean_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows; what is not finite is None."""
        mean_loss = self.mean_loss
        return {
            "rows": self.rows,
            "rows_given": self.rows_given,
            "loss": self.loss,
            "mean_loss": mean_loss if mean_loss is not None and np.isfinite(mean_loss) else None,
            "layers": [layer.to_dict() for layer in self.layers],
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def figure(self) -> Any:
        """Return a figure: where each neuron's f' is small, and the part of f that is used.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        """
        return health_figure.health(
            [_panel(layer, layer.flat_share[None]) for layer in _judged(self.layers)]
        )

    def __str__(self) -> str:
        dense = [layer.out_features for layer in self.layers if layer.kind == "dense"]
        widths = [self.layers[0].in_features, *dense]
        title = f"Health of {'-'.join(map(str, widths))} on {self.rows} rows"
        if self.rows < self.rows_given:
            title += f" of {self.rows_given}, taken evenly"
        if self.mean_loss is not None:
            title += f"; {self.loss} {reports.number(self.mean_loss)}"
        lines = reports.wrapped("", title)
        lines += ["", *reports.neurons(self.layers), "", *reports.used(self.layers)]
        if self.mean_loss is not None:
            lines += ["", *reports.gradients(self.layers)]
        return "\n".join([*lines, "", *reports.told(self.findings)])

    __repr__ = __str__


def diagnose(net: Network, X: Any, y: Any = None, loss: str | Loss | None = None) -> Diagnosis:
    """Look at what every neuron does on the rows of X, and say what ails the network.

    With targets, the error is split into its factors, layer by layer and neuron by neuron:

    ``delta = dL/dz = dL/da * f'(z)``

    the contribution of the neuron's output to the error, times the liveliness of its activation at
    the z where it works. The gradient of the bias is the sum of delta over the batch, that of the
    weights the sum of ``delta x``; so a neuron that is dead or saturated, ``f'(z)`` near 0, moves
    neither, however large its error is.

    The rows are taken as one batch of training, with nothing dropped. So a `BatchNorm` goes by
    their own mean and variance, as it does while neurons learn; how far its running statistics are
    from that, and predictions with them, is a finding of its own. The mean loss is that of
    training, too. A single row goes by the running statistics. A neuron is judged where its
    activation is: that of a dense layer without one, at the normalisation after it. Nothing is said
    about layers that are frozen.

    Parameters
    ----------
    net : Sequential
        Its parameters are read; nothing is changed, and every backend gives the same answer.
    X : array_like (n, in_features)
        Rows of the kind that the network meets; at most 1024 of them, taken evenly, are looked at.
    y : array_like, optional
        See `fastneuron.arrays.as_targets`. Left out, nothing is said about gradients.
    loss : str or Loss, optional
        Left out, the loss that the network was trained for.

    Returns
    -------
    Diagnosis

    Raises
    ------
    DataError
        Where X or y has the wrong shape or values.
    SpecError
        Where there are targets and no loss, or a loss and no targets.
    """
    if loss is None and y is not None:
        loss = net.parameters.loss
    # Before any training, running statistics have not been moved, and need not fit.
    steps = 0.0 if net.parameters.loss is None else math.inf
    return _diagnosed(net, _sample(net, X, y, _loss(loss, y), ROWS), steps)


class HealthRecord(NamedTuple):
    """What a recorder saw at one moment.

    Attributes
    ----------
    epoch : int
        Zero-based, the last that had begun.
    step : int
        Optimizer steps done.
    seconds : float
        Since `fit` began.
    diagnosis : Diagnosis
    """

    epoch: int
    step: int
    seconds: float
    diagnosis: Diagnosis


class HealthRecorder(Callback):
    """Record the health of a network while it trains.

    Parameters
    ----------
    X, y, loss
        As for `diagnose`; with y and without a loss, the loss is the one being trained for.
    interval : int, optional
        Epochs from one record to the next. Left out, the pace follows from `share`.
    share : float
        Share of the time that records may take where `interval` is left out: after a record,
        training goes on for ``1 / share`` times as long as it took. The first one, after the first
        step, always takes place.
    rows : int
        Rows of X that are looked at, taken evenly.

    Attributes
    ----------
    records : list of HealthRecord
        At most 64: when there are more, every second one is dropped, and from then on every second
        one left out.

    Notes
    -----
    A record of 256 rows takes 2 to 4 ms for 20-64-64-2, 4 to 5 ms for 784-128-10 and 20 to 30 ms
    for 784-512-512-10 on one Zen 5 core, the more where layers are normalised; the first of a
    process 6 to 11 ms. Left to its own interval, the recorder makes a fit of half a second or more
    1 to 4 % longer, one of a fifth of a second 5 %; of shorter ones the first record takes more.
    Nothing else of the training changes: an `interval` asks for control at every epoch's end, which
    by itself costs a tenth where an epoch takes less than a millisecond.
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        loss: str | Loss | None = None,
        *,
        interval: int | None = None,
        share: float = 0.02,
        rows: int = 256,
    ) -> None:
        self.records: list[HealthRecord] = []
        self._given = X, y, loss
        self._share = checked_number("HealthRecorder", "share", share, 0.0, 1.0, open_low=True)
        self._rows = checked_count("HealthRecorder", "rows", rows)
        self._thinning = 1  # one of so many due records is taken
        self._epochs = 0  # ends of epochs met
        self._due = -math.inf  # seconds on the clock
        self._net: Network | None = None
        self._sampled: _Sample
        # Only one is overridden: a callback of epochs keeps `fit` from training several at once.
        if interval is None:
            self.on_chunk_end = self._after_chunk  # type: ignore[method-assign]
        else:
            self._interval = checked_count("HealthRecorder", "interval", interval)
            self.on_epoch_end = self._after_epoch  # type: ignore[method-assign]

    def _after_chunk(self, state: FitState) -> None:
        start = time.perf_counter()
        if start >= self._due:
            self._record(state)
            end = time.perf_counter()
            self._due = end + (end - start) / self._share * self._thinning

    def _after_epoch(self, state: FitState) -> None:
        if self._epochs % (self._interval * self._thinning) == 0:
            self._record(state)
        self._epochs += 1

    def _record(self, state: FitState) -> None:
        if state.net is not self._net:
            X, y, loss = self._given
            entry = _loss(state.trainer.loss if loss is None and y is not None else loss, y)
            self._sampled = _sample(state.net, X, y, entry, self._rows)
            self._net = state.net
        found = _diagnosed(state.net, self._sampled, state.step)
        self.records.append(HealthRecord(state.epoch, state.step, state.seconds, found))
        if len(self.records) > _KEPT:
            del self.records[1::2]
            self._thinning *= 2

    def to_dict(self) -> dict[str, Any]:
        """Return the records as what JSON knows."""
        return {
            "records": [
                record._asdict() | {"diagnosis": record.diagnosis.to_dict()}
                for record in self.records
            ]
        }

    def figure(self) -> Any:
        """Return a figure: each neuron's share of rows with small f', epoch by epoch.

        Beside it stands the part of f that is used at the last record.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        SpecError
            Where there is no record yet.
        """
        if not self.records:
            raise SpecError("HealthRecorder: no record yet; give it to fit(callbacks=[...]) first")
        by_layer = zip(*(_judged(record.diagnosis.layers) for record in self.records), strict=True)
        steps = [record.step for record in self.records]
        return health_figure.health(
            [_panel(seen[-1], np.stack([one.flat_share for one in seen])) for seen in by_layer],
            steps,
        )

    def __str__(self) -> str:
        if not self.records:
            return "HealthRecorder: no record yet"
        head = (
            "step",
            "epoch",
            "loss",
            "layer",
            "dead",
            "saturated",
            "|f'(z)|",
            "|delta|",
            "drift",
        )
        rows = [("", "", "", "", "[%]", "[%]", "", "", "")]
        # Evenly taken, first and last among them.
        for i in np.unique(np.linspace(0, len(self.records) - 1, _SHOWN).astype(int)).tolist():
            record = self.records[i]
            for layer in _judged(record.diagnosis.layers):
                first = layer is _judged(record.diagnosis.layers)[0]
                rows.append(
                    (
                        str(record.step) if first else "",
                        str(record.epoch) if first else "",
                        reports.number(record.diagnosis.mean_loss) if first else "",
                        str(layer.index),
                        f"{100 * layer.dead.mean():.0f}",
                        f"{100 * is_saturated(layer).mean():.0f}",
                        reports.number(reports.mean(layer.liveliness)),
                        reports.number(reports.mean(layer.delta)),
                        reports.number(reports.mean(layer.bias_drift)),
                    )
                )
        last = self.records[-1].diagnosis
        lines = [f"{len(self.records)} records on {last.rows} rows", *reports.table(head, rows)]
        return "\n".join([*lines, "", "At the last record:", *reports.told(last.findings)])


class _Sample(NamedTuple):
    """Rows to look at, as engines take them."""

    x: Array
    y: Array | None
    loss: Loss | None
    rows_given: int


def _loss(loss: str | Loss | None, y: Any) -> Loss | None:
    """Return the loss that the targets, if any, ask for."""
    if y is None:
        if loss is not None:
            raise SpecError("a loss needs targets: give y, or leave the loss out")
        return None
    if loss is None:
        raise SpecError(
            "y was given, but no loss is known before training: give loss=... one of "
            f"{', '.join(LOSSES)}; or leave y out"
        )
    return loss if isinstance(loss, Loss) else LOSSES[loss]


def _sample(net: Network, X: Any, y: Any, loss: Loss | None, most: int) -> _Sample:
    """Return at most `most` checked rows, taken evenly."""
    spec = net.spec
    x = as_rows(X, "X", spec.dtype, spec.in_features)
    n = len(x)
    taken = np.arange(min(n, most)) * n // min(n, most)
    if loss is None:
        return _Sample(x[taken], None, None, n)
    targets = as_targets(y, loss.targets, n, spec.out_features, spec.dtype)
    return _Sample(x[taken], targets[taken], loss, n)


def _diagnosed(net: Network, sample: _Sample, steps: float) -> Diagnosis:
    """Look at the rows; `steps` as in `measure`."""
    store = net.parameters
    x, y, loss, given = sample
    with store.lock:
        parameters, statistics = store.pull(), store.pull_statistics()
    layers, mean_loss = measure(
        net.spec, parameters, statistics, store.initial_biases, x, y, loss, steps
    )
    name = None if loss is None else loss.name
    return Diagnosis(layers, find(layers), len(x), given, name, mean_loss)


def _judged(layers: Sequence[LayerHealth]) -> list[LayerHealth]:
    """Return the layers that have neurons' activations."""
    return [layer for layer in layers if not layer.normalised]


def _panel(layer: LayerHealth, shares: Array) -> health_figure.HealthPanel:
    return health_figure.HealthPanel(
        f"Layer {reports.named(layer)}: {layer.out_features} x {layer.activation}",
        shares,
        layer.z_edges,
        layer.z_counts,
        layer.z_flat,
    )
