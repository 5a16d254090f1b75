"""What the GPU suite checks, without a card: a right engine passes, planted faults are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastneuron.errors import BackendUnavailable
from fastneuron.gpu_suite.engines import (
    LIBRARY_SWITCH,
    SHIPPED,
    SIMULATED,
    SMALL,
    Kind,
    engine_kinds,
)
from fastneuron.gpu_suite.network_checks import network_checks, networks, repeat_checks
from fastneuron.gpu_suite.precision_checks import BOUNDS, precision_checks
from fastneuron.gpu_suite.running import (
    CUT,
    MISSING,
    OK,
    SKIPPED,
    WRONG,
    Budget,
    Check,
    Finding,
    NotHere,
    Run,
    run_checks,
    summed,
)
from fastneuron.gpu_suite.slot_checks import slot_checks
from fastneuron.gpu_suite.stages import NAMES, Plan, stages
from fastneuron.gpu_suite.workloads import WORKLOADS
from fastneuron.kernels.contract import Array
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.layers import LAYERS
from fastneuron.losses import LOSSES
from fastneuron.optimizers import UpdateKind


class RowByRow(ReferenceEngine):
    """The reference, a row's bits the same in any batch: BLAS alone does not promise that."""

    def forward(self, x: Array) -> Array:
        rows = [ReferenceEngine.forward(self, x[i : i + 1]) for i in range(len(x))]
        return np.concatenate(rows) if rows else ReferenceEngine.forward(self, x)


class BatchDependent(RowByRow):
    """Bits of a row that depend on its batch."""

    def forward(self, x: Array) -> Array:
        return super().forward(x) * (1 + (len(x) % 2) * np.finfo(x.dtype).eps)


class NoBias(RowByRow):
    """Forgets the bias of the last layer, forward alone."""

    def forward(self, x: Array) -> Array:
        out = RowByRow.forward(self, x)
        bias = self.export()[-1][1]
        return out if bias is None else out - bias


class ShortTail(RowByRow):
    """The last row of a batch has no part in the gradients."""

    def gradients(self, x: Array, y: Array, weight: Array | None, scalars: Any = None) -> Any:
        if len(x) == 1:
            return super().gradients(x, y, weight, scalars)
        loss, _ = super().gradients(x, y, weight, scalars)
        rest = None if weight is None else weight[:-1]
        return loss, super().gradients(x[:-1], y[:-1], rest, scalars)[1]


class LostStep(RowByRow):
    """Steps of `run` leave the last layer as it is."""

    def run(self, *arguments: Any) -> Any:
        before = self.export()
        outcome = super().run(*arguments)
        self.load([*self.export()[:-1], before[-1]])
        return outcome


class Moody(RowByRow):
    """Every thirteenth run is another one, by a rounding: no bound finds that."""

    runs = 0

    def run(self, *arguments: Any) -> Any:
        outcome = super().run(*arguments)
        Moody.runs += 1
        if Moody.runs % 13 == 0:
            (weight, bias), *rest = self.export()
            self.load([(np.nextafter(weight, np.float32(9)), bias), *rest])
        return outcome


class WrongSlope(RowByRow):
    """dL/dx is half a percent off."""

    def update(self, dout: Array, scalars: Any) -> Any:
        dx, outcome = super().update(dout, scalars)
        return dx * dx.dtype.type(1.005), outcome


def kind_of(engine: Callable[..., Any]) -> Kind:
    return Kind("planted", engine)


def findings(engine: Callable[..., Any], sizes: Any = SIMULATED) -> dict[str, Any]:
    kind, budget = kind_of(engine), Budget(300.0)
    return {
        "slots": run_checks(slot_checks(kind, sizes), budget),
        "networks": run_checks(network_checks(kind, sizes), budget),
        "repeats": run_checks(repeat_checks(kind, replace(sizes, repeats=15)), budget),
    }


def test_a_right_engine_passes_everything() -> None:
    for name, found in findings(RowByRow).items():
        assert found.status == OK, f"{name}: {found.said}"
        assert found.details["checks"] == found.details["of"] > 0
    for dtype in ("float32", "float64"):
        checks = slot_checks(kind_of(RowByRow), replace(SHIPPED, every=4), dtype)
        found = run_checks(checks, Budget(300.0))
        assert found.status == OK, found.said
        assert 0 < found.details["worst"] < 1


@pytest.mark.parametrize(
    ("engine", "finders"),
    [
        (BatchDependent, {"slots", "networks"}),
        (NoBias, {"slots", "networks"}),
        (ShortTail, {"slots"}),
        (LostStep, {"slots", "networks"}),
        (Moody, {"repeats"}),
        (WrongSlope, {"slots"}),
    ],
)
def test_a_planted_fault_is_found(engine: Any, finders: set[str]) -> None:
    found = findings(engine)
    wrong = {name for name, finding in found.items() if finding.status == WRONG}
    # Some faults lie where other stages look, too: a rounding may be beyond an exact bound.
    assert finders <= wrong, {name: finding.said for name, finding in found.items()}
    for name in finders:
        first = found[name].details["wrong"][0]
        assert first["check"] in found[name].said
        assert first["said"]


def test_thirty_networks_hold_all_layers_losses_and_updates() -> None:
    cases = networks(SHIPPED)
    assert len(cases) == 30
    kinds = {layer.kind for case in cases for layer in case.spec.layers}
    assert kinds == set(LAYERS)
    assert {case.loss.name for case in cases} == set(LOSSES)
    assert {case.optimizer.kind for case in cases} == set(UpdateKind)
    assert max(max(case.spec.sizes) for case in cases) == SHIPPED.widest


def test_small_networks_are_small() -> None:
    for case in networks(SMALL):
        assert max(case.spec.sizes) <= SMALL.widest
        assert case.batch <= SMALL.longest


def test_slots_are_checked_around_the_edges_of_the_tile() -> None:
    names = " ".join(check.name for check in slot_checks(kind_of(RowByRow), SHIPPED))
    tile = SHIPPED.tile.rows
    for rows in (1, tile - 1, tile, tile + 1, SHIPPED.sliced_rows):
        assert f" b{rows} " in names
    for slot in (
        *("dense_forward", "act_bias_backward", "dense_backward", "whole numbers"),
        *(*LOSSES, "sgd", "momentum", "nesterov", "adam", "rmsprop"),
        *("batch_norm", "layer_norm", "dropout"),
    ):
        assert slot in names


class Coarse(RowByRow):
    """Products of operands with so many bits."""

    bits = 23

    def __init__(self, *arguments: Any, precision: str = "float32", **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.kept = {"float32": 23, "tf32": 10, "bfloat16": 7}[precision] if self.bits else 4

    def load(self, parameters: Any) -> None:
        step = 2.0**-self.kept
        super().load([(np.float32(w * (1 + step * 0.3)), b) for w, b in parameters])


def test_precisions_are_judged_by_their_norms() -> None:
    found = run_checks(precision_checks(kind_of(Coarse), SIMULATED), Budget(60.0))
    assert found.status == OK, found.said
    assert found.details["checks"] == 2 * len(BOUNDS)

    class TooCoarse(Coarse):
        bits = 0

    found = run_checks(precision_checks(kind_of(TooCoarse), SIMULATED), Budget(60.0))
    assert found.status == WRONG
    assert len(found.details["wrong"]) == 2 * len(BOUNDS)


def plan(kinds: Any, **given: Any) -> Plan:
    given = {"card": {"simulated": True}, **given}
    return Plan(kinds, SIMULATED, **given)


def run(name: str, of: Plan) -> Finding:
    stage = next(stage for stage in stages(of) if stage.name == name)
    return stage.work(Budget(100.0))


def test_a_kernel_that_no_check_launches_is_wrong() -> None:
    for left, want in (([], OK), (["norms.fused"], WRONG)):
        kind = Kind("own", RowByRow, lambda left=left: left)
        found = run("slots own", plan({"own": lambda kind=kind: kind}))
        assert found.status == want
    assert found.said == "no check launches norms.fused"

    def new(*arguments: Any, library: Any = None, **given: Any) -> RowByRow:
        return RowByRow(*arguments, **given)

    kind = Kind("own", new, lambda: ["norms.fused"])
    found = run("slots own", plan({"own": lambda: kind}))
    assert found.status == OK
    assert found.said.endswith("; none launches norms.fused")


class Shortcut(RowByRow):
    """Has a shortcut for small networks, and a wrong way beside it."""

    def __init__(self, *arguments: Any, fused_rows: tuple[int, ...] = (8,), **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.fused, self.library = bool(fused_rows), os.environ.get(LIBRARY_SWITCH) != "0"

    def forward(self, x: Array) -> Array:
        assert self.fused == self.library
        return super().forward(x) if self.fused else NoBias.forward(self, x)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", [None, "1"])
def test_kernels_beside_a_shortcut_are_checked_too(
    switch: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIBRARY_SWITCH, raising=False)
    if switch:
        monkeypatch.setenv(LIBRARY_SWITCH, switch)
    assert len(kind_of(RowByRow).ways()) == 1
    kind = kind_of(Shortcut)
    short, long = (slot_checks(way, SIMULATED) for way in kind.ways())
    assert len(short) == len(long)
    assert run_checks(short, Budget(60.0)).status == OK
    assert run_checks(long, Budget(60.0)).status == WRONG
    found = run("slots own", plan({"own": lambda: kind}))
    assert found.status == WRONG
    assert all(", layer by layer" in each["check"] for each in found.details["wrong"])
    assert os.environ.get(LIBRARY_SWITCH) == switch


def test_parts_share_the_checks() -> None:
    kind = kind_of(RowByRow)
    whole = plan({"own": lambda: kind})
    want = run("networks own", whole)
    parts = [run("networks own", replace(whole, part=(i, 2))) for i in range(2)]
    assert sum(part.details["checks"] for part in parts) == want.details["checks"]
    assert all(part.details["checks"] for part in parts)


def test_the_order_of_stages_is_that_of_their_worth() -> None:
    real = Plan(engine_kinds(simulated=False), SHIPPED, WORKLOADS, {"major": 9, "minor": 0})
    names = [stage.name for stage in stages(real)]
    kinds = [name.split()[0] for name in names]
    assert sorted(set(kinds), key=kinds.index) == list(NAMES)
    assert names[:4] == ["build", "slots numba", "networks numba", "repeats numba"]
    assert [name for name in names if name.startswith("bench")] == [
        "bench 64-64-64-4 b16384 adam",
        "bench 784-512-512-10 b256 adam",
        "bench 1024-4096-4096-1024 b8192 sgd tf32",
        "bench 20-64-64-2 b32 adam x1000",
    ]


def test_an_engine_that_is_not_there_is_skipped_with_its_reason() -> None:
    def gone() -> Kind:
        raise BackendUnavailable("no compiler was there")

    run = Run([s for s in stages(plan({"own": gone})) if s.checks], Budget(10.0))
    assert {finding.status for finding in run.run()} == {SKIPPED}
    assert {finding.said for finding in run.findings} == {"no compiler was there"}
    assert run.code == 0


def test_what_is_not_built_yet_is_said() -> None:
    chosen = [s for s in stages(plan({"own": lambda: kind_of(RowByRow)})) if "precision" in s.name]
    (found,) = Run(chosen, Budget(10.0)).run()
    assert found.status == MISSING
    assert "not part of this version" in found.said


def test_what_a_check_needs_and_is_not_here_is_no_fault() -> None:
    def absent() -> float:
        raise NotHere("torch is not installed")

    checks = [Check("own", lambda: 0.25), Check("PyTorch", absent)]
    found = run_checks(checks, Budget(10.0))
    assert (found.status, found.details["checks"], found.details["of"]) == (OK, 1, 1)
    assert found.details["skipped"] == [{"check": "PyTorch", "said": "torch is not installed"}]
    both = summed([found.details, found.details])
    assert (both.details["checks"], len(both.details["skipped"])) == (2, 2)
    alone = run_checks(checks[1:], Budget(10.0))
    assert (alone.status, alone.said) == (SKIPPED, "PyTorch: torch is not installed")


def test_checks_are_cut_off_by_the_clock_and_by_many_faults() -> None:
    now = [0.0]

    def slow() -> float:
        now[0] += 1.0
        return 0.5

    budget = Budget(3.5, lambda: now[0])
    found = run_checks([Check(str(i), slow) for i in range(9)], budget)
    assert (found.status, found.details["checks"], found.details["of"]) == (CUT, 4, 9)
    assert found.said == "4 of 9 checks, the worst error is 0.50 of its bound"

    def broken() -> float:
        raise ValueError("illegal address")

    found = run_checks([Check(str(i), broken) for i in range(50)], Budget(3.0))
    assert (found.status, found.details["checks"]) == (WRONG, 10)
    assert found.said == "10 of 10 checks: 0: ValueError: illegal address"
    assert "Traceback" in found.details["wrong"][0]["traceback"]
