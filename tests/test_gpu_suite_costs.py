"""What the GPU suite makes of the cost model behind device="auto", without a card."""

from __future__ import annotations

from fastneuron.gpu_suite.calibration import PAPER, costs, predicted
from fastneuron.gpu_suite.engines import CPP, NUMBA, Kind
from fastneuron.gpu_suite.report import tables
from fastneuron.gpu_suite.running import OK, WRONG, Budget
from fastneuron.gpu_suite.workloads import WORKLOADS
from fastneuron.kernels.device_cost import Task, step_on_card
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.losses import LOSSES
from fastneuron.optimizers import Adam


def test_predictions_are_the_models_and_only_of_what_it_knows() -> None:
    kind = Kind(NUMBA, ReferenceEngine)
    float32, *_ = WORKLOADS
    got = predicted(float32, kind, simulated=True)
    row = float32.row
    of = Task(row.spec(row.dtype), LOSSES[row.loss], Adam(), row.batch, on_device=True)
    assert got == step_on_card(of, row.batch, PAPER)
    compiled = predicted(float32, Kind(CPP, ReferenceEngine), simulated=True)
    assert compiled == got, "both know the fused step, and its launches"
    for other in WORKLOADS:
        if other.precision != "float32" or other.models > 1:
            assert predicted(other, kind, simulated=True) is None
    assert predicted(float32, Kind("own", ReferenceEngine), simulated=True) is None


def test_a_launchs_share_of_a_step_is_measured_by_any_engine() -> None:
    found = costs(Kind(CPP, ReferenceEngine), Budget(60.0), simulated=True)
    assert (found.status, set(found.details["costs"])) == (OK, {"LAUNCH"})
    assert "no figure means anything" in found.said
    (cut,) = (
        costs(Kind(CPP, ReferenceEngine), Budget(0.0), simulated=True).details["costs"].values()
    )
    assert cut["said"] == "no time was left for it"


class Broken(ReferenceEngine):
    """Trains nothing."""

    def run(self, *arguments: object) -> object:  # type: ignore[override]
        raise RuntimeError("no step")


def test_a_figure_that_cannot_be_had_is_told_in_the_table() -> None:
    found = costs(Kind(CPP, Broken), Budget(60.0), simulated=False)
    assert (found.status, found.said) == (WRONG, "LAUNCH: RuntimeError: no step")
    printed = "\n".join(tables([found]))
    assert "LAUNCH" in printed
    assert "RuntimeError: no step" in printed
    assert "SIMULATED" not in printed
    assert max(map(len, printed.splitlines())) <= 80
