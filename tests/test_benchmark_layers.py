"""Benchmarks of normalisations, dropout, frozen layers and folding: who is checked, and how."""

from __future__ import annotations

from argparse import ArgumentTypeError
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastneuron
from fastneuron.layers import BatchNorm, Dense, Dropout
from fastneuron.peers import engines, problems, roster

VARIANTS = ("batch_norm", "layer_norm", "dropout0.25", "frozen1", "batch_norm dropout0.1 frozen2")


def quiet(text: str) -> None:
    pass


@pytest.fixture
def plain(rooms: dict[str, ModuleType]) -> Any:
    """fastneuron's NumPy backend: one that runs everywhere, and has all layers."""
    return engines.FastneuronNumpy


def measured(rooms: dict[str, ModuleType], kind: Any, text: str) -> dict[str, Any]:
    row = problems.Row.parse(text)
    found: dict[str, Any] = rooms["racing"].measure_row(row, [kind], 1, 0.001, quiet)[kind.name]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_tell_their_layers(rooms: dict[str, ModuleType], variant: str) -> None:
    text = f"5-6-7-3 b8 adam tanh {variant}"
    row = problems.Row.parse(text)
    assert row.label == text
    assert not row.plain
    problem = problems.problem_of(row)
    spec = problem.spec("float32")
    shapes = [layer.weight_shape for layer in spec.layers]
    assert [w.shape for w, _ in problem.parameters] == shapes
    assert [b is not None for _, b in problem.parameters] == [x.bias for x in spec.layers]
    assert row.multiply_adds == 8 * spec.multiply_adds
    # The same dense weights and data as without.
    base = problems.problem_of(problems.Row.parse("5-6-7-3 b8 adam tanh"))
    got = [w for w, _ in problem.parameters if w.ndim == 2]
    for (want, _), w in zip(base.parameters, got, strict=True):
        np.testing.assert_array_equal(w, want)
    np.testing.assert_array_equal(problem.x, base.x)


def test_layers_stand_where_they_should(rooms: dict[str, ModuleType]) -> None:
    row = problems.Row.parse("5-6-7-3 b8 adam batch_norm dropout0.1 frozen1")
    assert row.spec("float32").layers == (
        Dense(5, 6, bias=False, trainable=False),
        BatchNorm(6, "relu"),
        Dropout(0.1, 6),
        Dense(6, 7, bias=False),
        BatchNorm(7, "relu"),
        Dropout(0.1, 7),
        Dense(7, 3, bias=True),
    )


@pytest.mark.parametrize("word", ["batchnorm", "dropout", "dropout1.0", "frozen", "frozen2"])
def test_a_word_that_says_nothing_is_refused(rooms: dict[str, ModuleType], word: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no row"):
        problems.Row.parse(f"5-6-3 b8 adam {word}")


@pytest.mark.parametrize(
    "row",
    [
        "20-32-32-3 b32 adam batch_norm",
        "20-32-32-3 b32 sgd tanh batch_norm nobias float64",
        "20-32-32-3 b32 momentum layer_norm",
        "20-32-32-3 b32 rmsprop frozen1",
        "20-32-32-3 b32 adamw batch_norm frozen2",
        "20-64-64-5 b256 adam dropout0.1",
    ],
)
@pytest.mark.parametrize(
    "name", ["fastneuron-numba", "fastneuron-cython", "fastneuron-numpy", "torch", "jax-scan"]
)
def test_peers_agree_with_the_reference(rooms: dict[str, ModuleType], name: str, row: str) -> None:
    kind = roster.PEERS[name]
    if kind.missing():
        pytest.skip(kind.missing())
    got = measured(rooms, kind, row)
    assert got["status"] == "ok", got
    if "dropout" in row and not kind.drops_alike:
        return  # its own random numbers: the mean loss was compared
    # As in test_benchmark_script; Adam turns where a gradient is near 0.
    u = np.finfo("float64" if "float64" in row else "float32").eps / 2
    assert got["loss_error"] < 50 * u
    assert got["way_error"] < 1e-3


@pytest.mark.parametrize("name", ["sklearn", "numpy"])
def test_who_has_dense_layers_alone_says_so(rooms: dict[str, ModuleType], name: str) -> None:
    kind = roster.PEERS[name]
    if kind.missing():
        pytest.skip(kind.missing())
    got = measured(rooms, kind, "5-6-3 b8 adam batch_norm")
    assert (got["status"], "dense" in got["reason"]) == ("unsupported", True)


def test_running_statistics_that_stand_still_are_wrong(
    rooms: dict[str, ModuleType], plain: Any
) -> None:
    class Still(plain):
        def statistics(self) -> Any:
            return self.problem.statistics

    got = measured(rooms, Still, "5-6-3 b8 adam batch_norm")
    assert (got["status"], "way" in got["reason"]) == ("wrong", True)


def test_other_random_numbers_are_allowed_and_another_loss_is_not(
    rooms: dict[str, ModuleType], plain: Any
) -> None:
    class Other(plain):
        drops_alike = False

        def __init__(self, problem: Any, threads: int) -> None:
            super().__init__(problem, threads)
            self.rates.use_keys(engines.StepKeys(seed=1, epoch=0))

    class Off(Other):
        def advance(self, order: Any) -> Any:
            return super().advance(order) * 1.1

    class Same(plain):  # claims to drop what the reference drops, and does not
        def __init__(self, problem: Any, threads: int) -> None:
            super().__init__(problem, threads)
            self.rates.use_keys(engines.StepKeys(seed=1, epoch=0))

    row = "20-64-64-5 b256 adam dropout0.1"
    assert measured(rooms, Other, row)["status"] == "ok"
    got = measured(rooms, Off, row)
    assert (got["status"], "dropped" in got["reason"]) == ("wrong", True)
    assert measured(rooms, Same, row)["status"] == "wrong"


def test_variants_are_compared_with_the_plain_network(
    rooms: dict[str, ModuleType], plain: Any
) -> None:
    class Theirs(plain):
        name, ours = "torch", False

    class Wrong(Theirs):
        name = "jax-jit"

        def advance(self, order: Any) -> Any:
            factor = 1.01 if self.problem.norm else 1.0
            return super().advance(order) * factor

    class Absent(Theirs):
        name = "jax-scan"

        @classmethod
        def missing(cls) -> str:
            return "not installed"

    room, figures = rooms["layer_ratios"], rooms["figures"]
    base = problems.Row.parse("5-6-3 b8 adam")
    kinds = [plain, Theirs, Wrong, Absent]
    variants = {"batch_norm": 1.12, "frozen1": None}
    found = room.layers(0.001, quiet, variants, base, kinds)
    got = {figure["what"]: (figure["status"], figure["goal"]) for figure in found["figures"]}
    best = [what for what in got if what.startswith("frozen1: ")]
    assert best[0].endswith("over fastneuron-numpy")
    del got[best[0]]
    assert got == {
        "batch_norm over plain: fastneuron-numpy": ("ok", "<= 1.12"),
        "batch_norm: jax-jit": ("wrong", "-"),
        "batch_norm: torch over fastneuron-numpy": ("ok", ">= 1"),
        "frozen1 over plain: fastneuron-numpy": ("ok", "-"),
    }
    assert figures.faulty({"cores": 1, **found})
    lines = figures.table("layers", {"cores": 1, **found})
    assert max(map(len, lines)) <= 100
    head = next(i for i, line in enumerate(lines) if "predicted" in line)
    _plain, of_norms, _frozen = (line.split() for line in lines[head + 1 : head + 4])
    assert of_norms[0] == "batch_norm"
    assert of_norms[1] == "-"  # the reference predicts nothing
    assert of_norms[-2:] == ["WRONG", "missing"]


def test_a_prediction_stands_beside_the_measurement(rooms: dict[str, ModuleType]) -> None:
    kinds = [k for k in rooms["layer_ratios"].KINDS[:2] if not k.missing()]
    if not kinds:
        pytest.skip("no engine with a cost model here")
    row = problems.Row.parse("20-64-64-2 b32 adam batch_norm")
    plain = problems.Row.parse("20-64-64-2 b32 adam")
    got = [rooms["layer_ratios"].predict(each, kinds, 1) for each in (plain, row)]
    assert 0 < got[0] < got[1]


def test_folded_digits_are_predicted_alike_and_timed(rooms: dict[str, ModuleType]) -> None:
    found = rooms["folding"].folding(0.001, quiet, (1, 0), (8, 8), 1)
    assert {figure["status"] for figure in found["figures"]} == {"ok"}, found
    names = [figure["what"] for figure in found["figures"]]
    assert names == [
        "digits 64-8-8-10: same predictions; share right",
        "digits 64-8-8-10, 1 row: before",
        "digits 64-8-8-10, 1 row: after",
        "digits 64-8-8-10, 1 row: before over after",
        "digits 64-8-8-10, 1797 rows: before",
        "digits 64-8-8-10, 1797 rows: after",
        "digits 64-8-8-10, 1797 rows: before over after",
    ]
    assert all(figure["value"] > 0 for figure in found["figures"])


def test_a_folded_network_that_is_another_is_found(rooms: dict[str, ModuleType]) -> None:
    faults = rooms["folding"].faults
    x = np.eye(4, dtype=np.float32)
    y = np.arange(4)
    net = fastneuron.Sequential(Dense(4, 4), seed=0)
    other = fastneuron.Sequential(Dense(4, 4), seed=1)
    norm = fastneuron.Sequential(Dense(4, 4), BatchNorm(), seed=0)
    assert faults(net, net, x, y) == ""
    assert "is off by" in faults(net, other, x, y)
    assert faults(net, norm, x, y) == "a batch normalisation is left"
