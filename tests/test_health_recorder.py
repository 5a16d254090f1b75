"""`HealthRecorder`: when it records, that it changes nothing, and what it shows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, diagnostics
from fastneuron.callbacks import chunk_end_of, epoch_end_of
from fastneuron.errors import SpecError
from fastneuron.testing.patients import X, Y, small


def train(net: fn.Sequential, recorder: fn.HealthRecorder | None, **options: Any) -> fn.History:
    callbacks = [] if recorder is None else [recorder]
    return net.fit(X, Y, **{"loss": "cross_entropy", "callbacks": callbacks, "epochs": 6} | options)


def test_the_recorder_sees_each_epoch_and_changes_no_bit(backend: backends.Backend) -> None:
    plain, watched = small(), small()
    recorder = fn.HealthRecorder(X, Y, interval=1, rows=300)
    train(plain, None, backend=backend.name)
    train(watched, recorder, backend=backend.name)
    assert [r.epoch for r in recorder.records] == list(range(6))
    assert [r.step for r in recorder.records] == list(range(10, 70, 10))
    assert recorder.records[-1].diagnosis.to_dict() == watched.diagnose(X, Y).to_dict()
    drifts = [np.abs(r.diagnosis.layers[0].bias_drift).mean() for r in recorder.records]
    assert drifts == sorted(drifts)
    for one, other in zip(plain.layers, watched.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)


def test_by_default_the_recorder_leaves_epochs_together(backend: backends.Backend) -> None:
    recorder = fn.HealthRecorder(X)
    assert epoch_end_of(recorder) is None
    assert chunk_end_of(recorder) is not None
    each = fn.HealthRecorder(X, interval=2)
    assert epoch_end_of(each) is not None
    assert chunk_end_of(each) is None
    plain, watched = small(), small()
    train(plain, None, backend=backend.name)
    train(watched, recorder, backend=backend.name)
    assert 1 <= recorder.records[0].step <= 60
    assert recorder.records[0].diagnosis.mean_loss is None
    np.testing.assert_array_equal(plain.layers[0].weight, watched.layers[0].weight)


def test_the_recorder_waits_as_long_as_its_share_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 1.0  # a record takes one second by this clock, a chunk another
        return clock[0]

    monkeypatch.setattr(diagnostics.time, "perf_counter", now)
    monkeypatch.setattr(diagnostics, "_diagnosed", lambda *_: None)
    recorder = fn.HealthRecorder(X, share=0.125)
    state = diagnostics.FitState(small(), None, 1)
    taken = []
    for _ in range(40):
        chunk_end_of(recorder)(state)
        taken.append(len(recorder.records))
    # At second 1, ready at 2, due from 10 on, ready at 11, due from 19 on ...
    assert np.flatnonzero(np.diff([0, *taken])).tolist() == [0, 8, 16, 24, 32]
    monkeypatch.setattr(diagnostics, "_KEPT", 2)
    rare = fn.HealthRecorder(X, share=0.125)
    for step in range(50):
        state.step = step
        chunk_end_of(rare)(state)
    # Taken at 0, 8 and 16: one too many, 8 goes and the wait is doubled; 32: 16 goes, 64 is next.
    assert [r.step for r in rare.records] == [0, 32]


def test_many_records_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "_KEPT", 4)
    recorder = fn.HealthRecorder(X, interval=1)
    train(small(), recorder, epochs=12, backend="numpy")
    assert [r.epoch for r in recorder.records] == [0, 4, 8]


def test_interval_counts_epochs_over_fits() -> None:
    recorder = fn.HealthRecorder(X, Y, interval=3)
    net = small()
    for _ in range(2):
        train(net, recorder, epochs=5, backend="numpy")
    assert [r.epoch for r in recorder.records] == [0, 3, 1, 4]


def test_the_record_as_text_json_and_figure() -> None:
    recorder = fn.HealthRecorder(X, Y, interval=1)
    assert "no record" in str(recorder)
    with pytest.raises(SpecError, match="no record yet"):
        recorder.figure()
    train(small(), recorder, epochs=12, backend="numpy")
    text = str(recorder)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[3].split()[0] == "10"
    got = json.loads(json.dumps(recorder.to_dict(), allow_nan=False))
    assert len(got["records"]) == 12
    assert set(got["records"][0]) == {"epoch", "step", "seconds", "diagnosis"}
    pytest.importorskip("matplotlib")
    panels = recorder.figure().axes
    assert panels[0].images[0].get_array().shape == (12, 32)
    assert panels[0].get_ylabel() == "step (count)"
    assert panels[0].get_yticklabels()[-1].get_text() == "120"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval"),
        ({"interval": 1.5}, "interval"),
        ({"share": 0}, "share"),
        ({"share": 1.5}, "share"),
        ({"rows": 0}, "rows"),
    ],
)
def test_what_a_recorder_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"HealthRecorder: {message}"):
        fn.HealthRecorder(X, **options)
