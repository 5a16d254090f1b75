"""The engine with a library's products, which a library that checks its arguments computes."""

from __future__ import annotations

import numpy as np
import pytest

from fastneuron import backends
from fastneuron.errors import BackendUnavailable, SpecError, UnknownNameError
from fastneuron.kernels.cublaslt import Library
from fastneuron.kernels.device_plan import Blocks, Tile
from fastneuron.kernels.numba_cuda import library, library_passes
from fastneuron.kernels.numba_cuda.engine import CudaEngine
from fastneuron.kernels.numba_cuda.launches import Done, Launch, prepared, run_all
from fastneuron.kernels.numba_cuda.library import Provider
from fastneuron.kernels.reference import ReferenceEngine
from fastneuron.kernels.timed_choice import Choices
from fastneuron.layers import BatchNorm, Dense, Dropout, LayerNorm
from fastneuron.optimizers import SGD, Adam
from fastneuron.testing import (
    Case,
    Precision,
    assert_near,
    assert_parameters,
    assert_within,
    backward,
    case_of,
    check_step,
    draw_inputs,
    exact,
    flat,
    forward,
    integer_case,
    loaded,
    run_steps,
    scalars_of,
    state_of,
    training_step,
)

TILE = Tile(8, 8, 4, 4, 4)
BLOCKS = Blocks(lanes=4, rows=2, across=4, down=2, group=5, threads=8, chunk=50)


def epilogues(launches) -> list[str]:
    """The library's products among launches, by the name of their epilogue."""
    kernels = [launch.kernel for launch in launches]
    ours = [k for k in kernels if isinstance(k, library._LibraryProduct)]
    return [each._matmul.product.epilogue.name for each in ours]


def _most(names: list[str]) -> int:
    """How much an epilogue does, short of masks; none at all is less than a plain product."""
    rank = {"DEFAULT": 0, "BIAS": 1, "RELU": 2, "RELU_BIAS": 2, "BGRADA": 2}
    return max((rank.get(name, -1) for name in names), default=-2)


#: Clocks: what a way is said to cost, by the names of its products' epilogues.
COSTS = {
    "own": lambda names: 1 + len(names),
    "plain": lambda names: 9 if not names or set(names) != {"DEFAULT"} else 1,
    "epilogues": lambda names: 9 - _most(names),
    "masks": lambda names: 9 - ("DRELU" in "".join(names)) - bool(names),
}


def provider(fake, cost, precision="float32", choices=None, runs=False) -> Provider:
    """The library with a clock that goes by `cost`; with `runs` it runs what it times too."""

    def clock(launches):
        if runs:
            run_all(prepared(launches, 0))

        def time() -> float:
            return float(cost(epilogues(launches)))

        return time

    own = Choices() if choices is None else choices
    return Provider(Library(fake, "fake"), precision, clock, own, workspace_bytes=4096)


def engine_of(of: Case, fake, cost="epilogues", precision="float32", **given) -> CudaEngine:
    cost = COSTS[cost] if isinstance(cost, str) else cost
    options = {"batch_size": of.batch, "tile": TILE, "blocks": BLOCKS, "precision": precision}
    options["fused_rows"] = ()  # layer by layer, which is where the library competes
    options["library"] = provider(fake, cost, precision, **given)
    return loaded(CudaEngine(of.spec, of.loss, of.optimizer, **options), of)


def case(*layers, **given) -> Case:
    return case_of(*layers, **{"rows": 11, "batch": 5, **given})


CASES = {
    "relu, classes": case(
        Dense(4, 9, "relu"), Dense(None, 5, "relu"), Dense(None, 3),
        loss="cross_entropy", optimizer=Adam(),
    ),
    "saves z": case(
        Dense(3, 5, "gelu"), Dense(None, 6, "silu", bias=False), Dense(None, 2, "softplus"),
        loss="huber", optimizer=SGD(0.05, momentum=0.9, clip_norm=0.1),
    ),
    "no biases, doubles": case(
        Dense(3, 6, "relu", bias=False), Dense(None, 4, bias=False), Dense(None, 2, "tanh"),
        dtype="float64",
    ),
    "norms and dropout": case(
        Dense(3, 6), BatchNorm(None, "relu"), Dense(None, 5, "relu"), Dropout(0.5),
        Dense(None, 4), LayerNorm(None, "silu"), Dense(None, 2),
    ),
    "partly frozen": case(
        Dense(3, 4, "relu", trainable="weight"), Dense(None, 5, "relu", trainable="bias"),
        Dense(None, 4, "relu", trainable=False), Dense(None, 2, trainable="weight"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cost", ["plain", "epilogues", "masks"])
def test_steps_are_within_their_bounds(fake_cublaslt, name, cost) -> None:
    of = CASES[name]
    engine, scalars = engine_of(of, fake_cublaslt, cost), scalars_of(of, 2)
    fake_cublaslt.fake_set(b"runs", 0)
    check_step(engine, of, np.arange(5), scalars[0], f"{name}, step 0")
    check_step(engine, of, np.array([10, 3, 3]), scalars[1], f"{name}, step 1")
    assert fake_cublaslt.fake_get(b"runs") > 5


@pytest.mark.parametrize("name", ["partly frozen", "no biases, doubles"])
@pytest.mark.parametrize("cost", ["epilogues", "masks"])
def test_gradients_of_what_is_not_trained_stay_zero(fake_cublaslt, name, cost) -> None:
    of = CASES[name]
    key = scalars_of(of, 1)
    want = training_step(
        of.spec, of.loss, of.parameters, of.x[:7], of.y[:7], None, of.statistics, key[0]
    )
    engine = engine_of(of, fake_cublaslt, cost)
    _, got = engine.gradients(of.x[:7], of.y[:7], None, key)
    assert_parameters(got, want.gradients, name)
    unused = engine._state.g.copy_to_host()
    for part in engine._state.parts:
        unused[part.offset : part.end] = 0
    assert not unused.any(), "numbers between the arrays were written"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cost", ["plain", "epilogues", "masks"])
def test_whole_numbers_are_exact(fake_cublaslt, cost, bias) -> None:
    of = integer_case(bias=bias)
    scalars = scalars_of(of, 1)
    order, bounds = np.arange(of.batch), np.array([0, of.batch])
    got = engine_of(of, fake_cublaslt, cost)
    want = loaded(ReferenceEngine(of.spec, of.loss, of.optimizer), of)
    losses = [run_steps(each, of, order, bounds, scalars) for each in (got, want)]
    assert losses[0] == losses[1]
    for new, right in zip(flat(got.export()), flat(want.export()), strict=True):
        np.testing.assert_array_equal(new, right)


def test_each_piece_takes_the_way_that_is_cheapest(fake_cublaslt) -> None:
    of = CASES["relu, classes"]
    taken, launched = {}, {}
    for cost in COSTS:
        engine = engine_of(of, fake_cublaslt, cost)
        run_steps(engine, of, np.arange(5), np.array([0, 5]), scalars_of(of, 1))
        taken[cost] = set(engine.plan()["products"].values())
        passes, rows = engine._passes, engine._training
        lists = passes.forward(rows, 5), passes.backward(rows, 5, need_dx=False)
        launched[cost] = [epilogues(each) for each in lists]
    assert taken["own"] == {"own", "apart"}
    assert taken["plain"] == {"cublaslt #0", "apart"}
    ways = {"cublaslt relu_bias #0", "cublaslt bias #0", "cublaslt bgrada #0", "cublaslt #0"}
    assert taken["epilogues"] == {*ways, "apart"}
    assert "mask" in taken["masks"]
    assert launched["own"] == [[], []]
    assert launched["plain"] == [["DEFAULT"] * 3, ["DEFAULT"] * 5]
    backward = ["BGRADA", *["DEFAULT"] * 4]
    assert launched["epilogues"] == [["RELU_BIAS", "RELU_BIAS", "BIAS"], backward]
    assert launched["masks"][0][:2] == ["RELU_AUX_BIAS"] * 2
    assert launched["masks"][1].count("DRELU_BGRAD") == 2


def test_the_plan_says_what_was_taken(fake_cublaslt) -> None:
    of = CASES["saves z"]
    engine = engine_of(of, fake_cublaslt, "epilogues", "tf32")
    run_steps(engine, of, np.arange(5), np.array([0, 5]), scalars_of(of, 1))
    plan = engine.plan()
    assert plan["precision"] == "tf32"
    products = plan["products"]
    assert products["forward 5 3 5 gelu True True"] == "cublaslt bias #0"
    assert products["data gradient 5 6 2 silu False"] == "cublaslt #0"
    assert products["weight gradient 5 6 2 False"] == "cublaslt #0"


def test_epilogues_that_the_library_lacks_are_no_ways(fake_cublaslt) -> None:
    of = CASES["relu, classes"]
    fake_cublaslt.fake_set(b"refused", 2 | 4 | 128 | 256)
    try:
        engine = engine_of(of, fake_cublaslt, "epilogues")
        check_step(engine, of, np.arange(5), scalars_of(of, 1)[0], "plain products alone")
        taken = set(engine.plan()["products"].values())
    finally:
        fake_cublaslt.fake_set(b"refused", 0)
    assert taken == {"cublaslt #0"}


@pytest.mark.parametrize("offered", [1, 3])
def test_what_fails_when_it_is_run_is_not_taken(fake_cublaslt, offered) -> None:
    of = CASES["relu, classes"]
    fake_cublaslt.fake_set(b"fails", 2 | 128 | 256)
    fake_cublaslt.fake_set(b"offered", offered)
    try:
        engine = engine_of(of, fake_cublaslt, "epilogues", runs=True)
        check_step(engine, of, np.arange(5), scalars_of(of, 1)[0], "what works")
        taken = set(engine.plan()["products"].values())
    finally:
        fake_cublaslt.fake_set(b"fails", 0)
        fake_cublaslt.fake_set(b"offered", 3)
    assert taken - {"apart"} == {"cublaslt bias #0", "cublaslt #0"}


@pytest.mark.parametrize("name", ["relu, classes", "saves z", "norms and dropout"])
def test_timing_leaves_no_trace(fake_cublaslt, name) -> None:
    """Ways are run on the engine's own vectors while they are timed."""
    of = CASES[name]
    order, bounds, scalars = np.arange(10), np.array([0, 5, 10]), scalars_of(of, 3)
    dout = draw_inputs(np.random.default_rng(0), 5, of.spec.out_features, of.spec.dtype)
    states = []
    for runs in (False, True):
        engine = engine_of(of, fake_cublaslt, "epilogues", runs=runs)
        # First the kind of call that keeps something between two calls, then whole steps.
        out = engine.forward_keep(of.x[:5], scalars[:1])
        dx, _ = engine.update(dout, scalars[0])
        losses = run_steps(engine, of, order, bounds, scalars[1:])
        loss, gradients = engine.gradients(of.x[:4], of.y[:4], None, scalars[:1])
        kept = [out, dx, losses, np.array(loss), *flat(gradients)]
        states.append((state_of(engine), [each.tobytes() for each in kept]))
    assert states[0] == states[1]


@pytest.mark.parametrize("cost", ["plain", "epilogues", "masks"])
def test_foreign_losses(fake_cublaslt, cost) -> None:
    of = CASES["saves z"]
    engine, p, scalars = (
        engine_of(of, fake_cublaslt, cost),
        Precision.of("float32"),
        scalars_of(of, 1),
    )
    x = of.x[:5]
    dout = draw_inputs(np.random.default_rng(0), 5, of.spec.out_features, of.spec.dtype)
    got = engine.forward_keep(x, scalars)
    zs, outputs = forward(of.spec, of.parameters, x, p, of.statistics, scalars[0])
    assert_within(got, outputs[-1], "output")
    args = of.spec, of.parameters, zs, outputs, exact(dout), p, of.statistics, scalars[0]
    assert_within(engine.update(dout, scalars[0])[0], backward(*args)[0], "dx")


def test_engines_of_a_process_agree_whatever_the_clock_says(fake_cublaslt) -> None:
    of, choices = CASES["relu, classes"], Choices()
    order, bounds, scalars = np.arange(10), np.array([0, 5, 10]), scalars_of(of, 2)
    # The second engine's clock would take other ways, and the library's other algorithm.
    clocks = COSTS["epilogues"], COSTS["own"]
    engines = [engine_of(of, fake_cublaslt, cost, choices=choices) for cost in clocks]
    for engine in engines:
        run_steps(engine, of, order, bounds, scalars)
    assert state_of(engines[0]) == state_of(engines[1])
    assert engines[0].plan()["products"] == engines[1].plan()["products"]
    alone = engine_of(of, fake_cublaslt, "own")
    run_steps(alone, of, order, bounds, scalars)
    assert state_of(alone) != state_of(engines[0]), "the test would not see another choice"


def test_steps_have_the_same_bits_again_and_again(fake_cublaslt) -> None:
    of = CASES["relu, classes"]
    choices = Choices()
    states = set()
    for _ in range(3):
        engine = engine_of(of, fake_cublaslt, "masks", choices=choices)
        for step in range(2):
            scalars = scalars_of(of, 1, step)
            run_steps(engine, of, np.arange(5), np.array([0, 5]), scalars)
        states.add(state_of(engine))
    assert len(states) == 1


def test_predictions_are_our_own_products(fake_cublaslt) -> None:
    of = CASES["relu, classes"]
    engine = engine_of(of, fake_cublaslt, "epilogues", "bfloat16")
    fake_cublaslt.fake_set(b"runs", 0)
    out = engine.forward(of.x)
    assert fake_cublaslt.fake_get(b"runs") == 0
    want = forward(of.spec, of.parameters, of.x, Precision.of("float32"), of.statistics)[1][-1]
    assert_within(out, want, "predictions in float32")
    np.testing.assert_array_equal(engine.forward(of.x[3:4]), out[3:4])


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_gradients_are_as_near_as_the_precision_promises(fake_cublaslt, precision) -> None:
    of = case(
        Dense(40, 30, "tanh"), Dense(None, 20, "tanh"), Dense(None, 10), rows=24, batch=24, seed=5
    )
    engine = engine_of(of, fake_cublaslt, "plain", precision)
    want = training_step(of.spec, of.loss, of.parameters, of.x, of.y, None)
    _, got = engine.gradients(of.x, of.y, None)
    worst = 0.0
    for pair, bounded in zip(got, want.gradients, strict=True):
        for array, each in zip(pair, bounded, strict=True):
            worst = max(worst, assert_near(array, each.value, precision))
    finer = {"float32": 0, "tf32": 1e-5, "bfloat16": 1e-3}[precision]
    assert worst > finer, "factors were not rounded at all"


def test_a_precision_that_cannot_be_had_is_refused() -> None:
    of = CASES["saves z"]
    with pytest.raises(BackendUnavailable, match=r"precision='tf32' needs cuBLASLt: the simulator"):
        CudaEngine(of.spec, precision="tf32")
    with pytest.raises(UnknownNameError, match=r"'float16' \(there are: float32, tf32, bfloat16\)"):
        CudaEngine(of.spec, precision="float16")
    with pytest.raises(SpecError, match="this one is float64"):
        CudaEngine(CASES["no biases, doubles"].spec, precision="bfloat16")
    assert CudaEngine(of.spec).plan()["products"] == "the simulator has no cuBLASLt"


def test_the_backend_hands_the_precision_on() -> None:
    with pytest.raises(BackendUnavailable, match="precision='bfloat16' needs cuBLASLt"):
        backends.get("cuda").engine(CASES["saves z"].spec, precision="bfloat16")


class Event:
    """An event of a device whose clock is the number of launches so far."""

    def __init__(self, launches: list) -> None:
        self._launches, self.at = launches, 0.0

    def record(self, stream) -> None:
        self.at = float(len(self._launches))

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize("records", ["graphs", "refuses", "cannot"])
@pytest.mark.parametrize(("long", "repeats"), [(False, 16), (True, 1)])
def test_the_clock_runs_each_way_and_gives_seconds_a_run(
    monkeypatch, records, long, repeats
) -> None:
    launched: list[str] = []
    recorded: list[int] = []

    class Graph:
        def __init__(self, stream, launch) -> None:
            if records == "refuses":
                raise RuntimeError("not here")
            before = len(launched)
            launch()
            recorded.append(len(launched) - before)
            self._launches = launched[before:]
            del launched[before:]

        def replay(self) -> None:
            launched.extend(self._launches)

    class Device:
        def event(self, timing):
            assert timing
            return Event(launched)

        def event_elapsed_time(self, start, end) -> float:
            return (end.at - start.at) * (1e3 if long else 1e-3)  # in milliseconds

    monkeypatch.setattr(library, "cuda", Device())
    monkeypatch.setattr(library, "Graph", Graph)
    monkeypatch.setattr(library, "why_not", lambda: "no" if records == "cannot" else "")

    class Kernel:
        def __getitem__(self, cut):
            return lambda name: launched.append(name)

    launches = [Launch(Kernel(), 1, 1, (name,)) for name in ("first", "second")]
    time = library.device_clock("stream")(launches)
    assert time() == pytest.approx(2.0 if long else 2e-6)
    assert recorded == ([2 * repeats] if records == "graphs" else [])
    assert launched[:4] == ["first", "second"] * 2


def test_the_library_is_opened_for_the_device(fake_cublaslt, monkeypatch) -> None:
    class Device:
        id, name = 3, "a card"

    asked = []

    def load(device):
        asked.append(device)
        return Library(fake_cublaslt, "fake")

    monkeypatch.setattr(library, "SIMULATED", False)
    monkeypatch.setattr(library.cuda, "get_current_device", Device, raising=False)
    monkeypatch.setattr(library, "load", load)
    found, problem = library.open_library("tf32", 0)
    assert (found.precision, found.device, problem, asked) == ("tf32", "a card 3", "", [3])


def test_the_switch_leaves_the_library_out(monkeypatch) -> None:
    monkeypatch.setenv("FASTNEURON_CUBLASLT", "0")
    monkeypatch.setattr(library, "SIMULATED", False)  # where it would be looked for
    found, problem = library.open_library("float32", 0)
    assert (found, problem) == (None, "FASTNEURON_CUBLASLT=0 leaves cuBLASLt out")


def test_a_choice_that_stands_makes_no_other_products(fake_cublaslt, monkeypatch) -> None:
    of = CASES["saves z"]
    engine, made = engine_of(of, fake_cublaslt, "own"), []
    order, bounds, scalars = np.arange(5), np.array([0, 5]), scalars_of(of, 1)
    run_steps(engine, of, order, bounds, scalars)
    monkeypatch.setattr(library_passes, "Matmul", lambda *arguments: made.append(arguments))
    engine.gradients(of.x[:5], of.y[:5], None)  # lists its launches anew
    assert made == []


class TestPlantedFaults:
    """Each fault in the passes is found by the bounds of a step, or by the library's checks."""

    def caught(self, fake, cost: str, message: str) -> None:
        of = CASES["relu, classes"]
        with pytest.raises((AssertionError, RuntimeError), match=message):
            check_step(engine_of(of, fake, cost), of, np.arange(5), scalars_of(of, 1)[0], "step")

    def test_missing_bias(self, fake_cublaslt, monkeypatch) -> None:
        right = library_passes.bias_activation

        def without(dtype, activation, bias, *cut):
            return right(dtype, activation, False, *cut)

        monkeypatch.setattr(library_passes, "bias_activation", without)
        self.caught(fake_cublaslt, "plain", "outside the bound")

    def test_missing_gate(self, fake_cublaslt, monkeypatch) -> None:
        right = library_passes.LibraryPasses._data_gradient

        def gated(*arguments):
            return right(*arguments)[0], Done.ALL

        monkeypatch.setattr(library_passes.LibraryPasses, "_data_gradient", gated)
        self.caught(fake_cublaslt, "plain", "outside the bound")

    def test_gate_twice_is_no_fault_of_a_relu_but_its_sums_are(
        self, fake_cublaslt, monkeypatch
    ) -> None:
        right = library_passes.LibraryPasses._data_gradient

        def first_stage(*arguments):
            return right(*arguments)[0], Done.FIRST_STAGE

        monkeypatch.setattr(library_passes.LibraryPasses, "_data_gradient", first_stage)
        self.caught(fake_cublaslt, "masks", "outside the bound")

    def test_mask_of_another_layer(self, fake_cublaslt, monkeypatch) -> None:
        kept = []

        def another(self, rows, index, width):
            kept.append(library_passes.empty(rows.count * 16, np.uint8))
            kept[-1][:] = 255
            return kept[-1]

        monkeypatch.setattr(library_passes.LibraryPasses, "_mask", another)
        self.caught(fake_cublaslt, "masks", "outside the bound")

    def test_rows_of_a_mask_that_are_too_short(self, fake_cublaslt, monkeypatch) -> None:
        monkeypatch.setattr("fastneuron.kernels.cublaslt.mask_bits", lambda columns: columns)
        self.caught(fake_cublaslt, "masks", "a mask of 9 bits")

    def test_wrong_compute_type(self, fake_cublaslt, monkeypatch) -> None:
        key = "float32", "float32"
        monkeypatch.setitem(library_passes.Matmul.__init__.__globals__["_COMPUTE"], key, 77)
        self.caught(fake_cublaslt, "plain", "outside the bound")
