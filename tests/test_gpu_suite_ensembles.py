"""The GPU suite's ensembles without a card: right engines pass, planted faults are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_gpu_suite_checks import RowByRow

from fastneuron.gpu_suite.benchmarks import benchmark, contestants
from fastneuron.gpu_suite.engines import SHIPPED, SIMULATED, Kind
from fastneuron.gpu_suite.ensemble_checks import WIDEST, OneOf, ensemble_cases, members
from fastneuron.gpu_suite.gpu_peers import OursMany
from fastneuron.gpu_suite.running import OK, WRONG, Budget, Finding
from fastneuron.gpu_suite.stages import Plan, stages
from fastneuron.gpu_suite.workloads import Workload
from fastneuron.kernels.each_alone import EachAlone
from fastneuron.kernels.ensemble_contract import stacked
from fastneuron.layers import Dense
from fastneuron.peers.judging import Judge, WrongResult
from fastneuron.peers.problems import Row, problem_of
from fastneuron.testing import loaded, state_of

SIZES = replace(SIMULATED, networks=8, models=3, repeats=12, widest=9, longest=8)
MANY = Workload(Row((3, 5, 2), 8, "adam"), 2, 2.0, models=3, rounds=(2, 2))


class ByRows(EachAlone):
    """An ensemble of the reference, a row's bits the same in any batch."""

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, make=RowByRow, **given)


class SharedScalars(ByRows):
    """All networks step by the first one's scalars."""

    def run(self, *arguments: Any) -> Any:
        *data, scalars, losses = arguments
        return super().run(*data, np.repeat(scalars[:, :1], self.n_models, axis=1), losses)


class OneData(ByRows):
    """All networks see the first one's rows."""

    def run(self, x: Any, *rest: Any) -> Any:
        return super().run(x[0] if x.ndim == 3 else x, *rest)


class OneForward(ByRows):
    """Each answers as the first does."""

    def forward(self, x: Any) -> Any:
        return np.stack([super().forward(x)[0]] * self.n_models)


class SwappedMoments(ByRows):
    """The last two networks have each other's moments."""

    def export_moments(self) -> Any:
        order = [*range(self.n_models - 2), self.n_models - 1, self.n_models - 2]
        return [
            [(w[order], None if b is None else b[order]) for w, b in moment]
            for moment in super().export_moments()
        ]


class LostStatistics(ByRows):
    """Running statistics stay as they were loaded."""

    def run(self, *arguments: Any) -> Any:
        before = self.export_statistics()
        outcome = super().run(*arguments)
        self.load_statistics(before)
        return outcome


class Moody(ByRows):
    """One network's bits of the twelfth run are others."""

    runs = 0

    def run(self, *arguments: Any) -> Any:
        outcome = super().run(*arguments)
        if arguments[3].shape[1] > arguments[4][1] * 3:  # a repeated training
            Moody.runs += 1
            if Moody.runs == 12:
                (weight, bias), *rest = self.export()
                weight[1] = np.nextafter(weight[1], np.float32(9))
                self.load([(weight, bias), *rest])
        return outcome


def found_of(many: Callable[..., Any] | None, **given: Any) -> Finding:
    kind = Kind("own", RowByRow, many=many)
    plan = Plan({"own": lambda: kind}, replace(SIZES, **given))
    (stage,) = (stage for stage in stages(plan) if stage.name == "ensembles own")
    return stage.work(Budget(300.0))


def test_a_right_engine_passes() -> None:
    for many, name in ((None, "EachAlone"), (lambda *_, **__: None, "EachAlone"), (ByRows,) * 2):
        found = found_of(many)
        name = name if isinstance(name, str) else name.__name__
        assert found.status == OK, found.said
        assert found.details["checks"] == found.details["of"] == 3 + 12
        assert 0 < found.details["worst"] < 1
        assert found.details["engines"] == [name]
        assert found.said.endswith(f"by {name}")


@pytest.mark.parametrize(
    "fault", [SharedScalars, OneData, OneForward, SwappedMoments, LostStatistics, Moody]
)
def test_a_planted_fault_is_found(fault: Any) -> None:
    found = found_of(fault)
    assert found.status == WRONG, found.said
    first = found.details["wrong"][0]
    assert ("run 11" in first["check"]) == (fault is Moody)


def test_shipped_ensembles_are_small_and_of_all_kinds() -> None:
    cases = ensemble_cases(SHIPPED)
    assert len(cases) == 8
    assert max(max(case.spec.sizes) for case in cases) <= WIDEST
    assert any(not isinstance(layer, Dense) for layer in cases[-1].spec.layers)
    assert all(isinstance(layer, Dense) for case in cases[:-1] for layer in case.spec.layers)
    assert len(ensemble_cases(SIMULATED)) == 1


def test_one_of_many_is_loaded_alone() -> None:
    case = ensemble_cases(SIZES)[-1]
    each = members(case, 3)
    many = ByRows(case.spec, case.loss, [case.optimizer] * 3)
    many.load(stacked([one.parameters for one in each[::-1]]))
    many.load_statistics(stacked([one.statistics for one in each[::-1]]))
    for m, one in enumerate(each):
        loaded(OneOf(many, m), one)
    for m, one in enumerate(each):
        alone = loaded(RowByRow(case.spec, case.loss, case.optimizer), one)
        assert state_of(OneOf(many, m)) == state_of(alone)
        assert OneOf(many, m).plan()["n_models"] == 3


# The workload of many models


def test_our_many_train_what_they_should() -> None:
    problem = problem_of(MANY.row)
    judge = Judge(MANY.row, np.random.default_rng(0))
    for kind in (Kind("own", RowByRow), Kind("own", RowByRow, many=ByRows)):
        peer = OursMany(problem, 1, kind, models=3)
        for _ in range(2):
            judge.errors(peer, peer.advance(judge.order))
            (weight, _), *_ = peer.engine.export()
            assert len({each.tobytes() for each in weight}) == 3
            peer.reset()
    wrong = OursMany(problem, 1, Kind("own", RowByRow, many=Halved), models=3)
    with pytest.raises(WrongResult):
        judge.errors(wrong, wrong.advance(judge.order))


class Halved(ByRows):
    """Every step starts from half of the parameters."""

    def run(self, *arguments: Any) -> Any:
        self.load([(w / 2, None if b is None else b / 2) for w, b in self.export()])
        return super().run(*arguments)


class Failing(ByRows):
    """The second network fails."""

    def run(self, *arguments: Any) -> Any:
        outcome = super().run(*arguments)
        outcome.status[1] = 1
        return outcome


def test_the_workload_is_judged_and_timed() -> None:
    (racer,) = contestants(MANY, [Kind("own", RowByRow)], simulated=True)
    found = benchmark(MANY, [racer], Budget(30.0))
    assert found.status == OK, found.said
    entry = found.details["contestants"]["fastneuron own"]
    assert entry["step_seconds"] > 0
    assert found.details["models"] == 3
    (racer,) = contestants(MANY, [Kind("own", RowByRow, many=Failing)], simulated=True)
    found = benchmark(MANY, [racer], Budget(30.0))
    assert found.status == WRONG
    assert "model 1 failed" in found.said
