"""The bias profile: who is timed computes the right thing, and what is said follows from times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastneuron as fn
from fastneuron import backends, loading, profiling
from fastneuron.activations import ACTIVATIONS
from fastneuron.cli import main
from fastneuron.errors import FastneuronError, SpecError
from fastneuron.losses import LOSSES
from fastneuron.optimizers import OPTIMIZERS
from fastneuron.profiling import arguments, bias_cost, bias_profile, bias_sweeps
from fastneuron.profiling.bias_cost import CostModel, MachineSpeeds, agrees
from fastneuron.profiling.bias_engine import AGAIN, BIAS, FROZEN, HOLDS_ONE, NONE, ONES, EngineSteps
from fastneuron.profiling.bias_parts import ADD, PARTS, REDUCE, UPDATE, LayerParts
from fastneuron.profiling.bias_profile import BiasProfile, Comparison
from fastneuron.profiling.bias_slots import FUSED_BIAS, SEPARATE_BIAS, SlotSteps
from fastneuron.profiling.pairs import Difference, Ratio, Series
from fastneuron.profiling.sections import interval, microseconds
from fastneuron.profiling.workload import Setting, Workload, WrongResult

SIZES, BATCH = (9, 17, 17, 3), 12
SPEEDS = MachineSpeeds(
    multiply_add=1e-11,
    add_call=1e-6,
    update_call=3e-6,
    numpy_call=2e-6,
    bytes={8192: 1e-11, 12 * 17 * 4: 1e-11},
)


def workload(backend: str = "numpy", **others: Any) -> Workload:
    return Workload(Setting.checked(SIZES, BATCH, backend=backend, **others))


def paced(costs: dict[str, float]) -> Callable[..., dict[str, Series]]:
    """Return what stands for `in_sittings`: times that are known, work that is done once."""

    def measure(build: Any, seconds: float, *, sittings: int, seed: int) -> dict[str, Series]:
        noise = np.random.default_rng(seed).normal(1, 1e-3, 3 * sittings)
        found = {}
        for name, work in build(0).items():
            work(1)
            found[name] = Series(costs.get(name, 1e-3) * noise, 0.0, 1, sittings)
        return found

    return measure


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> BiasProfile:
    costs = {AGAIN: 1e-3, NONE: 1e-3, FROZEN: 1e-3, BIAS: 1.02e-3, ONES: 1.5e-3}
    monkeypatch.setattr(bias_profile, "in_sittings", paced(costs))
    return profiling.bias(SIZES, BATCH, backend="numpy")


# Who is timed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_all_contestants_are_right(backend: backends.Backend, activation: str, dtype: str) -> None:
    job = workload(backend.name, activation=activation, dtype=dtype)
    engine, slots = EngineSteps(job), SlotSteps(job)
    layers = [LayerParts(job, index) for index in range(3)]
    for group in (engine, slots, *layers):
        share = group.check()
        assert 0 <= share <= 1
    if activation in HOLDS_ONE:
        assert engine.skipped == {}, engine.skipped
        assert engine.names == (NONE, AGAIN, BIAS, FROZEN, ONES)
    else:
        assert list(engine.skipped) == [ONES]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_any_loss_and_optimizer_can_be_profiled(loss: str) -> None:
    for optimizer in sorted(OPTIMIZERS):
        job = workload(loss=loss, optimizer=optimizer)
        assert EngineSteps(job).check() <= 1
        assert SlotSteps(job).check() <= 1


def test_a_table_of_activations_holds_one_exactly() -> None:
    for name, z in HOLDS_ONE.items():
        for dtype in (np.float32, np.float64):
            assert ACTIVATIONS[name].f(np.array([z], dtype))[0] == 1, name


def test_columns_of_ones_have_the_gradients_of_the_bias() -> None:
    """On whole numbers, where nothing rounds: dL/d[W; b] is [dL/dW; dL/db] to the bit."""
    job = workload(loss="mse")
    rng = np.random.default_rng(0)
    job.x[...] = rng.integers(-2, 3, job.x.shape)
    job.y[...] = rng.integers(-2, 3, job.y.shape)
    for pair in job.parameters:
        for array in pair:
            assert array is not None
            array[...] = rng.integers(-1, 2, array.shape)
    steps = EngineSteps(job)
    rows, y = job.batch
    engine, _ = steps._with()
    _, want = engine.gradients(rows, y, None)
    widened, x = steps._ones()
    _, joined = widened.gradients(x[: len(rows)], y, None)
    for (dw, db), (got, _), size in zip(want, joined, SIZES[1:], strict=True):
        assert np.array_equal(got[:-1, :size], dw)
        assert np.array_equal(got[-1, :size], db)


def test_no_timed_neuron_is_dead() -> None:
    for seed in range(20):
        job = Workload(Setting.checked((3, 40, 40, 2), 4, backend="numpy"), seed)
        for with_bias in (1, 0):
            a = job.x.astype(np.float64)
            for weight, bias in job.parameters[:-1]:
                z = a @ weight + with_bias * bias
                assert (z > 0).any(axis=0).all(), f"seed {seed}"
                a = np.maximum(z, 0)


def test_a_wrong_kernel_is_found_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends.get("numpy").slots["dense_backward"]

    def wrong(*given: Any) -> Any:
        dx, dw, db = right(*given)
        return dx, dw, None if db is None else db * np.float32(1.001)

    monkeypatch.setitem(loading.load("numpy").slots, "dense_backward", wrong)  # type: ignore[arg-type]
    with pytest.raises(WrongResult, match=r"dL/db of layer \d.*outside the bound.*no time"):
        SlotSteps(workload()).check()
    with pytest.raises(WrongResult, match="db"):
        LayerParts(workload(), 0).check()


def test_a_diverging_step_is_no_time() -> None:
    job = workload()
    work = EngineSteps(job).build(0)[BIAS]
    job.x[...] = np.inf
    with pytest.raises(WrongResult, match="ended with LOSS_NOT_FINITE"):
        work(1)


def test_an_engine_that_trains_frozen_biases_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    job = workload()
    steps = EngineSteps(job)
    steps._make[FROZEN] = steps._with
    steps.check()
    assert FROZEN not in steps.names
    assert "frozen" in steps.skipped[FROZEN]


# What should be paid for it


def test_costs_by_hand() -> None:
    model = CostModel(workload(), SPEEDS, {NONE: 10e-6, ONES: 13e-6})
    numbers, near = 12 * 17, 1e-11
    assert model.part(0, ADD, fused=True) == pytest.approx(17 * 4 * near)
    want = (2 * numbers + 17) * 4 * near + 1e-6
    assert model.part(0, ADD, fused=False) == pytest.approx(want)
    assert model.part(0, REDUCE, fused=True) == pytest.approx(numbers * 1e-11)
    want = numbers * 4 * 3 * near + 2e-6
    assert model.part(0, REDUCE, fused=False) == pytest.approx(want)
    # Adam keeps three numbers for each: seven passes, or fourteen multiply-adds.
    assert model.part(0, UPDATE, fused=True) == pytest.approx(7 * 17 * 4 * near)
    assert model.part(0, UPDATE, fused=False) == pytest.approx(7 * 17 * 4 * near + 3e-6)
    whole = sum(model.part(i, part, fused=True) for i in range(3) for part in PARTS)
    assert model.engine(BIAS) == pytest.approx(whole)
    assert model.engine(ONES) == pytest.approx(3e-6)
    assert model.engine(NONE) == model.engine(AGAIN) == 0


def test_predictions_have_an_order() -> None:
    for activation in ("relu", "gelu", "identity"):
        model = CostModel(workload(activation=activation), SPEEDS, {})
        assert 0 < model.engine(FROZEN) < model.engine(BIAS) < model.engine(ONES)
        assert model.slots(FUSED_BIAS) < model.slots(SEPARATE_BIAS)


def test_speeds_are_measured() -> None:
    speeds = bias_cost.measure_speeds(workload())
    values = [speeds.multiply_add, speeds.add_call, speeds.update_call, speeds.numpy_call]
    assert all(0 < value < 1 for value in (*values, *speeds.bytes.values()))
    assert json.loads(json.dumps(speeds.to_json()))["add_call_seconds"] == speeds.add_call


@pytest.mark.parametrize(
    ("predicted", "low", "high", "want"),
    [
        (1.0, 0.9, 1.1, True),
        (1.0, 1.9, 3.0, True),
        (1.0, 2.1, 3.0, False),
        (1.0, -3.0, 0.4, False),
        (0.0, -1.0, 1.0, True),
        (0.0, 0.1, 1.0, False),
        (-1.0, -2.5, -1.5, True),
        (-1.0, 0.5, 1.5, False),
    ],
)
def test_agreement(predicted: float, low: float, high: float, want: bool) -> None:
    assert agrees(predicted, low, high) is want


# What is said


def test_a_profile_says_what_the_times_say(found: BiasProfile) -> None:
    main = found.of("engine", BIAS)
    assert main is not None
    assert main.ratio.verdict == "2.0% slower"
    assert main.cost.value == pytest.approx(2e-5, rel=0.1)
    frozen, control = found.of("engine", FROZEN), found.of("engine", AGAIN)
    assert frozen is not None
    assert control is not None
    assert frozen.ratio.verdict == control.ratio.verdict == "no measurable difference"
    rows = {(row.group, row.name, row.against) for row in found.comparisons}
    want = {("engine", *pair) for pair in bias_profile.ENGINE_PAIRS}
    assert rows == want | {("slots", *pair) for pair in bias_profile.SLOT_PAIRS}
    parts = {(part.layer, part.part, part.fused) for part in found.parts}
    assert parts == {(i, part, how) for i in range(3) for part in PARTS for how in (True, False)}
    assert 0 < found.worst_of_bound <= 1


def test_a_profile_is_readable(found: BiasProfile) -> None:
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80, text
    assert "bias / no bias" in text
    assert "[us]" in text
    assert "no measurable difference, as it must be" in " ".join(text.split())
    page = found._repr_html_()
    assert page.count("<table>") == 4
    assert "&lt;" not in page
    assert profiling.BiasProfile is BiasProfile
    assert fn.profiling is profiling


def test_a_noisy_run_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bias_profile, "in_sittings", paced({AGAIN: 1.1e-3}))
    text = str(profiling.bias(SIZES, BATCH, backend="numpy"))
    assert "trust no smaller ratio" in " ".join(text.split())


def test_json_is_closed(found: BiasProfile) -> None:
    values = json.loads(json.dumps(found.to_json()))
    guide = (Path(__file__).parents[1] / "docs" / "profiling.md").read_text("utf-8")

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {key for key in value if not key.isdigit()}.union(*map(names, value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    own = {*found.step_seconds["engine"], *found.step_seconds["slots"], "engine", "slots"}
    missing = {name for name in names(values) - own if f"`{name}`" not in guide}
    assert missing == set(), "docs/profiling.md says what every key means"


def test_the_split_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_profile, "in_sittings", paced({}))
    found = profiling.bias(SIZES, BATCH, backend="numpy", split=False)
    assert found.parts == ()
    assert "Cost of each part" not in str(found)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"layers": (784,)}, "layers needs"),
        ({"layers": (4, 0, 2)}, "from 1 to"),
        ({"layers": (4, 1)}, "2 outputs or more"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_threads": 0}, "n_threads"),
        ({"seconds": 0.0}, "seconds"),
        ({"activation": "rely"}, "rely"),
        ({"loss": "l2"}, "l2"),
        ({"optimizer": "adma"}, "adma"),
        ({"dtype": "float16"}, "float16"),
        ({"backend": "cudda"}, "cudda"),
    ],
)
def test_what_cannot_be_profiled_is_said(given: dict[str, Any], want: str) -> None:
    with pytest.raises(FastneuronError, match=want):
        profiling.bias(**{"layers": (4, 2), "batch_size": 4, "backend": "numpy", **given})


# Sweeps


def test_a_sweep_goes_over_all_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_profile, "in_sittings", paced({BIAS: 1.02e-3}))
    told: list[str] = []
    axes = {"width": (4, 6), "batch": (8, 16), "depth": (1, 2)}
    found = profiling.bias_sweep(axes, (5, 8, 3), 4, backend="numpy", say=told.append)
    sizes = [(p.setting.sizes, p.setting.batch_size) for p in found.points if p is not None]
    want = [((5, *[w] * d, 3), b) for w in (4, 6) for b in (8, 16) for d in (1, 2)]
    assert sizes == want
    assert len(told) == 8
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80, text
    assert len([line for line in text.splitlines() if "  =" not in line]) >= 8
    values = json.loads(json.dumps(found.to_json()))
    assert values["points"][3]["at"] == {"width": 4, "batch": 16, "depth": 2}
    assert values["points"][3]["found"]["setting"]["layers"] == [5, 4, 4, 3]
    assert found._repr_html_().count("<tr>") == 9


def test_a_sweep_over_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_profile, "in_sittings", paced({}))
    axes = {"dtype": ("float32", "float64"), "backend": ("numpy", "cuda"), "threads": (1, 2)}
    found = profiling.bias_sweep(axes, (5, 8, 3), 4)
    kinds = [
        None if p is None else (p.setting.dtype, p.setting.backend, p.setting.n_threads)
        for p in found.points
    ]
    numpy_points = [[(dtype, "numpy", n) for n in (1, 2)] for dtype in axes["dtype"]]
    assert kinds == [*numpy_points[0], None, None, *numpy_points[1], None, None]
    assert set(found.skipped) == {f"{d}, cuda, {n}" for d in axes["dtype"] for n in (1, 2)}
    assert "Not timed: float32, cuda, 1" in str(found)


@pytest.mark.parametrize(
    ("axes", "layers", "want"),
    [
        ({}, (4, 2), "one or more of width"),
        ({"widht": (1,)}, (4, 2), "there is no 'widht'"),
        ({"width": ()}, (4, 2), "one or more of width"),
        ({"width": (4,)}, (4, 2), "hidden layers"),
        ({"batch": (4, 0)}, (4, 2), "batch_size"),
    ],
)
def test_sweeps_that_cannot_be(axes: dict[str, Any], layers: tuple[int, ...], want: str) -> None:
    with pytest.raises(SpecError, match=want):
        profiling.bias_sweep(axes, layers, 4, backend="numpy")


# Figures


def test_figures(found: BiasProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = found.figure()
    assert len(figure.axes) == 2
    figure.savefig(tmp_path / "profile.png")
    monkeypatch.setattr(bias_profile, "in_sittings", paced({BIAS: 1.02e-3}))
    axes = {"batch": (4, 8), "backend": ("numpy", "cuda")}
    sweep = profiling.bias_sweep(axes, (5, 8, 3))
    figure = sweep.figure()
    assert [a.get_title() for a in figure.axes[:3]] == [shown[0] for shown in bias_sweeps._SHOWN]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["+2.0", "-", "+2.0", "-"]
    figure.savefig(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


# Words and digits


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ((1.01234, 1.0, 1.0251), "1.012 [1.000, 1.025]"),
        ((35.2, 10.0, 60.0), "35 [10, 60]"),
        ((-0.001, -0.04, 0.04), "0.00 [-0.04, 0.04]"),
        ((5.0, 5.0, 5.0), "5.000 [5.000, 5.000]"),
    ],
)
def test_no_more_digits_than_are_known(given: tuple[float, float, float], want: str) -> None:
    assert interval(*given) == want


def test_microseconds() -> None:
    shown = [microseconds(s) for s in (0, 1.234e-3, 5.678e-6, 1.234e-8, -2e-6)]
    assert shown == ["0", "1234", "5.7", "0.012", "-2.0"]


def test_comparison_as_json() -> None:
    row = Comparison(
        "engine", BIAS, NONE, Ratio(1.02, 1.01, 1.03), Difference(2e-6, 1e-6, 3e-6), 1e-6
    )
    got = row.to_json()
    assert got["verdict"] == "2.0% slower"
    assert got["prediction_agrees"] is True
    assert got["cost"] == {"seconds": 2e-6, "low": 1e-6, "high": 3e-6, "confidence": 0.95}


# The command


def test_the_tables_of_the_arguments_are_current() -> None:
    assert set(arguments.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(arguments.LOSSES) == set(LOSSES)
    assert set(arguments.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(arguments.BACKENDS) == {"auto", *backends.NAMES}
    assert arguments.AXES == bias_sweeps.AXES


def test_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real, but short."""
    pytest.importorskip("matplotlib")
    for variable in arguments.BLAS_THREADS:
        monkeypatch.setenv(variable, "1")
    files = [tmp_path / "found.json", tmp_path / "found.png"]
    given = ["--layers", "6,8,3", "--batch", "8", "--backend", "numpy", "--seconds", "0.3"]
    wanted = ["--json", str(files[0]), "--plot", str(files[1])]
    assert main(["profile", "bias", *given, *wanted]) == 0
    assert "What the bias costs: 6-8-3 relu, batch 8" in capsys.readouterr().out
    assert json.loads(files[0].read_text("utf-8"))["profile"] == "bias"
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    sweep = ["--sweep", "width=4,8", "--sweep", "dtype=float32", "--quiet"]
    assert main(["profile", "bias", *given, *sweep, *wanted]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert json.loads(files[0].read_text("utf-8"))["profile"] == "bias sweep"


@pytest.mark.parametrize(
    "given",
    [
        ["--layers", "784,x"],
        ["--batch", "0"],
        ["--seconds", "0"],
        ["--backend", "tpu"],
        ["--sweep", "width"],
        ["--sweep", "height=4"],
        ["--sweep", "dtype=float16"],
    ],
)
def test_wrong_usage(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "bias", *given]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["--json", "nowhere/found.json"], "no such folder"),
        (["--plot", "."], "is a folder"),
        (["--sweep", "width=4", "--sweep", "width=8"], "twice"),
        (["--layers", "784"], "layers needs"),
        (["--backend", "cuda"], "cuda"),
    ],
)
def test_failures_are_one_line(
    given: list[str], want: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in arguments.BLAS_THREADS:
        monkeypatch.setenv(variable, "1")
    assert main(["profile", "bias", *given]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert want in captured.err


def test_every_backend_can_be_profiled(blocked: backends.Backend) -> None:
    found = profiling.bias((6, 8, 3), 8, backend=blocked.name, seconds=0.2)
    assert found.setting.backend == blocked.name
    assert found.skipped == {}
