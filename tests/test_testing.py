"""The measuring instruments themselves: right results pass, planted faults do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastneuron.activations import ACTIVATIONS
from fastneuron.kernels.contract import Parameters
from fastneuron.layers import Dense
from fastneuron.losses import LOSSES
from fastneuron.optimizers import CLIP_NORM, SGD, Adam
from fastneuron.spec import NetworkSpec
from fastneuron.testing import (
    POISONS,
    Bounded,
    Case,
    Precision,
    activate,
    assert_within,
    central_differences,
    clip_scale,
    column_sum,
    dense,
    draw_inputs,
    draw_parameters,
    draw_targets,
    exact,
    gate,
    generated_cases,
    guarded,
    guards_work,
    integer_case,
    loss_of_batch,
    matmul,
    multiply,
    poisoned,
    training_step,
    updated,
)

SINGLE = Precision.of("float32")


def small_case(loss: str = "mse", activation: str = "relu", seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    spec = NetworkSpec.chain([Dense(6, 11, activation), Dense(11, 7, activation), Dense(7, 3)])
    return Case(
        "small",
        spec,
        LOSSES[loss],
        SGD(0.1),
        draw_parameters(spec, rng),
        draw_inputs(rng, 13, 6, "float32"),
        draw_targets(LOSSES[loss], rng, 13, 3, "float32"),
        rng.uniform(0.5, 2, 13).astype(np.float32),
        13,
    )


class Plain:
    """A float32 step in plain NumPy, with one fault planted in it by name."""

    def __init__(self, case: Case, fault: str = "") -> None:
        self.case, self.fault = case, fault

    def forward(self) -> list[Any]:
        activations = [self.case.x]
        for i, (w, b) in enumerate(self.case.parameters):
            x = activations[-1]
            if self.fault == "missing term" and i == 1:
                x, w = x[:, 1:], w[1:]
            z = x @ w
            if b is not None and not (self.fault == "dropped bias" and i == 1):
                z = z + b
            if self.fault == "bias off by one lane" and i == 0:
                z = x @ w + np.roll(b, 1)
            if self.fault == "off-by-one tail" and i == 1:
                z[:, -1] = 0
            if self.fault == "last row left out" and i == 2:
                z[-1] = 0
            activations.append(ACTIVATIONS[self.case.spec.layers[i].activation].f(z))
        return activations

    def step(self) -> tuple[Any, Any, Parameters]:
        case, activations = self.case, self.forward()
        n, weight = len(case.x), case.weight
        assert weight is not None
        if self.fault == "weights forgotten":
            weight = np.ones_like(weight)
        rows = weight * case.loss.rows(activations[-1], case.y)
        da = (weight[:, None] * case.loss.grad(activations[-1], case.y)) / np.float32(n)
        if self.fault == "scaled gradient":
            da = da * np.float32(n / (n - 1))
        gradients: Parameters = []
        for i in reversed(range(len(case.parameters))):
            f = ACTIVATIONS[case.spec.layers[i].activation]
            saved = activations[i + 1]
            dz = da * f.df(saved)
            if self.fault == "wrong gate" and i == 1:
                dz = da
            x, dw_rows = activations[i], slice(None)
            if self.fault == "row left out of dW" and i == 0:
                dw_rows = slice(0, n - 1)
            db = dz.sum(0)
            if self.fault == "row left out of db" and i == 1:
                db = dz[1:].sum(0)
            if self.fault == "db twice" and i == 2:
                db = db * 2
            gradients.insert(0, (x[dw_rows].T @ dz[dw_rows], db))
            da = dz @ case.parameters[i][0].T
            if self.fault == "transposed weight is stale" and i == 2:
                da = dz @ (case.parameters[i][0] * np.float32(1.001)).T
        return rows.sum() / np.float32(n), activations[-1], gradients


def check(case: Case, fault: str = "") -> None:
    loss, out, gradients = Plain(case, fault).step()
    want = training_step(case.spec, case.loss, case.parameters, case.x, case.y, case.weight)
    assert_within(out, want.out, "output")
    assert_within(loss, want.loss, "loss")
    for i, (got, bounded) in enumerate(zip(gradients, want.gradients, strict=True)):
        assert bounded[1] is not None
        assert_within(got[0], bounded[0], f"weight gradient {i}")
        assert_within(got[1], bounded[1], f"bias gradient {i}")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_right_step_passes(loss: str, activation: str) -> None:
    for seed in range(5):
        check(small_case(loss, activation, seed))


FAULTS = (
    "missing term",
    "dropped bias",
    "bias off by one lane",
    "off-by-one tail",
    "last row left out",
    "weights forgotten",
    "scaled gradient",
    "wrong gate",
    "row left out of dW",
    "row left out of db",
    "db twice",
    "transposed weight is stale",
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "poisson"])
def test_a_planted_fault_is_found(loss: str, fault: str) -> None:
    for seed in range(3):
        with pytest.raises(AssertionError, match="outside the bound"):
            check(small_case(loss, "tanh" if fault == "wrong gate" else "relu", seed), fault)


def update_faults() -> dict[str, Callable[[Any, Any, Any, Any, float], Any]]:
    def adam(p: Any, g: Any, m: Any, v: Any, clip: float, **fault: Any) -> Any:
        g = g * np.float32(clip) * np.float32(fault.get("scale", 1))
        m = np.float32(fault.get("beta1", 0.9)) * m + np.float32(0.1) * g
        v = np.float32(0.999) * v + np.float32(0.001) * g * g
        root = np.sqrt(v) * np.float32(fault.get("correction", (1 - 0.999**3) ** -0.5))
        rate = np.float32(0.01 / fault.get("bias1", 1 - 0.9**3))
        return p - np.float32(fault.get("decay", 0.0)) * p - rate * m / (root + np.float32(1e-8))

    def planted(**fault: Any) -> Callable[[Any, Any, Any, Any, float], Any]:
        return lambda *arrays: adam(*arrays, **fault)

    return {
        "none": planted(),
        "not clipped": planted(scale=2.0),
        "one hundredth more": planted(scale=1.01),
        "other beta": planted(beta1=0.91),
        "no correction": planted(correction=1.0),
        "correction of the step before": planted(bias1=1 - 0.9**2),
        "decay where none is wanted": planted(decay=1e-4),
    }


@pytest.mark.parametrize("fault", update_faults())
def test_update_faults(fault: str) -> None:
    rng = np.random.default_rng(1)
    optimizer = Adam(0.01)
    scalars = optimizer.scalars(2, np.full(1, 0.01))[0]
    p, g, m = (rng.normal(size=(40, 3)).astype(np.float32) for _ in range(3))
    v = np.square(rng.normal(size=(40, 3))).astype(np.float32)
    spec = NetworkSpec.chain([Dense(40, 3, bias=False)])
    scalars[CLIP_NORM] = 0.5 * np.sqrt(np.square(g, dtype=np.float64).sum())  # clips by a half
    want, _ = updated(
        spec, optimizer, [(p, None)], [(exact(g), None)], [[(m, None)], [(v, None)]], scalars
    )
    got = update_faults()[fault](p, g, m, v, 0.5)
    if fault == "none":
        assert 0 < assert_within(got, want[0][0]) <= 1
    else:
        with pytest.raises(AssertionError, match="outside the bound"):
            assert_within(got, want[0][0])


def test_long_sums_need_integers() -> None:
    """From k = 4096 on a dropped term hides in the float32 bound; integer data shows it."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 2**16)), rng.normal(size=(2**16, 1))
    x, w = x.astype(np.float32), w.astype(np.float32)
    w[7] *= 1e-2
    faulty = x.astype(np.float64) @ w - np.float64(x[0, 7]) * w[7]
    assert_within(faulty.astype(np.float32), matmul(exact(x), exact(w), SINGLE))
    x, w = np.rint(x), np.rint(w * 2)
    x[0, 7] = w[7] = 1
    want = x.astype(np.int64) @ w.astype(np.int64)
    got = x.astype(np.float64) @ w - np.float64(x[0, 7]) * w[7]
    assert got[0, 0] != want[0, 0]


ORDERS: dict[str, Callable[[Any], Any]] = {
    "ascending": lambda terms: np.add.accumulate(terms)[-1],
    "descending": lambda terms: np.add.accumulate(terms[::-1])[-1],
    "pairwise": lambda terms: np.add.reduce(terms),
    "by size": lambda terms: np.add.accumulate(terms[np.argsort(np.abs(terms))])[-1],
    "sixteen lanes": lambda terms: sum(np.add.accumulate(terms[i::16])[-1] for i in range(16)),
    "fused": lambda terms: np.float32(terms.astype(np.float64).sum()),
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_a_sum_is_inside(order: str) -> None:
    rng = np.random.default_rng(2)
    for k in (1, 2, 31, 300, 5000):
        k_terms = max(k, 16) if order == "sixteen lanes" else k
        x = (rng.normal(size=k_terms) * 10 ** rng.uniform(-3, 3, k_terms)).astype(np.float32)
        w, b = rng.normal(size=k_terms).astype(np.float32), np.float32(rng.normal())
        want = dense(exact(x[None]), exact(w[:, None]), exact([b]), SINGLE)
        assert_within(np.array([[ORDERS[order](x * w) + b]]), want, f"{order} of {k_terms}")


def test_bound_of_a_product() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100)).astype(np.float32)
    assert_within(x * y, multiply(exact(x), exact(y), Precision.of("float32")))


def test_a_sum_of_products_with_zero_has_no_bound() -> None:
    """Nothing underflows there, so a gate behind it cannot flip; beside it there is one."""
    x, w = np.array([[0.0, 2.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 1e-45], [5.0, 0.0]])
    found = matmul(exact(x), exact(w.astype(np.float32)), SINGLE)
    assert found.bound[0, 0] == 0
    assert found.bound[0, 1] >= 3 * SINGLE.subnormal
    moved = matmul(Bounded(x, np.array([[1e-30, 0, 0]])), exact(w), SINGLE)
    assert moved.bound[0, 0] >= 3e-30
    zeros = activate(found, ACTIVATIONS["relu"], SINGLE)
    assert gate(exact(np.ones((1, 2))), zeros, ACTIVATIONS["relu"], SINGLE).bound[0, 0] == 0


@pytest.mark.parametrize("sizes", [(784, 512), (512, 10), (10, 300), (3, 2), (1, 7), (7, 1)])
def test_few_links_leave_nothing_out(sizes: tuple[int, int]) -> None:
    spec = NetworkSpec.chain([Dense(*sizes)])
    ((weight, _),) = draw_parameters(spec, np.random.default_rng(0), links=2)
    linked = weight != 0
    least = min(2, *sizes)
    assert linked.any(axis=1).all()
    assert linked.any(axis=0).all()
    assert linked.sum(axis=0).mean() > 0.9 * least
    assert linked.sum(axis=1).mean() > 0.9 * least
    assert linked.sum(axis=0).max() <= max(2, -(-2 * sizes[0] // sizes[1]))
    # Sums of squares of a column, whose mean is 1: within 5 standard deviations.
    squares = np.square(weight, dtype=np.float64).sum(axis=0)
    assert abs(squares.mean() - 1) < 5 * np.sqrt(2 / linked.sum())


def corners(rng: np.random.Generator, x: Bounded) -> Any:
    """A value that `x` stands for, at the ends of its interval or between."""
    return x.value + x.bound * rng.choice([-1.0, 1.0, 0.3], x.value.shape)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bounds_cover_what_their_operands_stand_for(name: str) -> None:
    """Operands moved to the ends of their intervals move no result out of its bound."""
    rng = np.random.default_rng(3)
    f = ACTIVATIONS[name]
    for size in (1e-6, 1e-3, 0.1, 1.0):
        z = Bounded(rng.normal(size=(20, 9)) * 3, size * rng.random((20, 9)))
        a = activate(z, f, SINGLE)
        da = Bounded(rng.normal(size=z.value.shape), size * rng.random(z.value.shape))
        dz = gate(da, z if f.saves == "z" else a, f, SINGLE)
        w = Bounded(rng.normal(size=(9, 4)), size * rng.random((9, 4)))
        for _ in range(20):
            moved = corners(rng, z)
            assert_within(f.f(moved), a, f"{name} value at {size}")
            got = corners(rng, da) * f.df(moved if f.saves == "z" else f.f(moved))
            assert_within(got, dz, f"{name} gate at {size}")
            assert_within(corners(rng, z) @ corners(rng, w), matmul(z, w, SINGLE), "product")
            assert_within(corners(rng, z).sum(0), column_sum(z, SINGLE), "sum")


@pytest.mark.parametrize("name", LOSSES)
def test_loss_bounds_cover_what_their_operands_stand_for(name: str) -> None:
    rng = np.random.default_rng(4)
    loss = LOSSES[name]
    for size in (1e-6, 1e-3, 0.1, 1.0):
        out = Bounded(rng.normal(size=(12, 5)) * 2, size * rng.random((12, 5)))
        y = draw_targets(loss, rng, 12, 5, "float64")
        weight = rng.random(12)
        rows, grad, mean = loss_of_batch(loss, out, y, weight, SINGLE)
        for _ in range(20):
            moved = corners(rng, out)
            got = weight * loss.rows(moved, y)
            assert_within(got, rows, f"{name} rows at {size}")
            assert_within(got.sum() / 12, mean, f"{name} mean at {size}")
            got = weight[:, None] * loss.grad(moved, y) / 12
            assert_within(got, grad, f"{name} gradient at {size}")


def test_clip_scale_is_an_interval() -> None:
    rng = np.random.default_rng(5)
    g = Bounded(rng.normal(size=(30, 7)), 0.01 * rng.random((30, 7)))
    norm = float(np.sqrt(np.square(g.value).sum()))
    for limit in (0.5 * norm, 0.999 * norm, norm, 1.001 * norm, 2 * norm):
        want = clip_scale([(g, None)], limit, SINGLE)
        for _ in range(50):
            moved = float(np.sqrt(np.square(corners(rng, g)).sum()))
            assert_within(min(1.0, limit / moved), want, f"limit {limit}")
    assert clip_scale([(g, None)], 3 * norm, SINGLE).bound == 0


def test_gates_near_a_kink_may_flip() -> None:
    z = Bounded(np.array([[1e-9, -1e-9, 1.0]]), np.full((1, 3), 1e-8))
    f = ACTIVATIONS["relu"]
    dz = gate(exact([[5.0, 5.0, 5.0]]), activate(z, f, SINGLE), f, SINGLE)
    assert_within(np.array([[0.0, 5.0, 5.0]]), dz)
    with pytest.raises(AssertionError):
        assert_within(np.array([[5.0, 0.0, 0.0]]), dz)


@pytest.mark.parametrize("case", generated_cases(12, seed=3, dtype="float64"), ids=lambda c: c.name)
def test_the_bounded_step_has_the_gradient_of_its_loss(case: Case) -> None:
    spec = _narrow(case.spec)
    rng = np.random.default_rng(len(case.name))
    parameters = draw_parameters(spec, rng)
    x = draw_inputs(rng, 4, spec.in_features, "float64")
    y = draw_targets(case.loss, rng, 4, spec.out_features, "float64")
    weight = rng.random(4)
    want = training_step(spec, case.loss, parameters, x, y, weight)
    for layer, pair in enumerate(parameters):
        for which, array in enumerate(pair):
            bounded = want.gradients[layer][which]
            if array is None or bounded is None:
                assert array is bounded
                continue

            def loss_at(changed: Any, layer: int = layer, which: int = which) -> float:
                arrays = [list(pair) for pair in parameters]
                arrays[layer][which] = changed
                pairs: Parameters = [(pair[0], pair[1]) for pair in arrays]
                return float(training_step(spec, case.loss, pairs, x, y, weight).loss.value)

            got = central_differences(loss_at, array)
            np.testing.assert_allclose(got, bounded.value, rtol=1e-5, atol=1e-8)


def _narrow(spec: NetworkSpec) -> NetworkSpec:
    sizes = [min(size, 4) for size in spec.sizes]
    return NetworkSpec.chain(
        [
            replace(layer, in_features=sizes[i], out_features=sizes[i + 1])
            for i, layer in enumerate(spec.layers)
        ],
        "float64",
    )


def test_integer_case_is_exact_in_float32() -> None:
    """Every sum of absolute values is below 2^24 units of the finest number that occurs in it."""
    for seed in range(5):
        case = integer_case(seed)
        want = training_step(case.spec, case.loss, case.parameters, case.x, case.y)
        arrays = [
            want.out,
            want.loss,
            *(g for pair in want.gradients for g in pair if g is not None),
        ]
        for array in arrays:
            np.testing.assert_array_equal(array.value.astype(np.float32), array.value)
        (w0, b0), (w1, b1) = case.parameters
        assert b0 is not None
        assert b1 is not None
        hidden = np.abs(case.x) @ np.abs(w0) + np.abs(b0)
        out = hidden @ np.abs(w1) + np.abs(b1)
        residual = out + np.abs(case.y)
        assert np.square(residual).sum() < 2**24
        # The gradient's unit is 2 / 4 / 16 = 2^-5, a step's 2^-8.
        delta = residual @ np.abs(w1).T
        assert (hidden.T @ residual).max() < 2**24
        assert (np.abs(case.x).T @ delta).max() + 2 * 2**8 < 2**24


def test_generated_cases_are_reproducible() -> None:
    for one, other in zip(generated_cases(8), generated_cases(8), strict=True):
        assert one.spec == other.spec
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)


def test_assert_within_names_the_worst_place() -> None:
    want = Bounded(np.zeros((2, 3)), np.full((2, 3), 1e-3))
    got = np.zeros((2, 3))
    assert assert_within(got, want) == 0
    got[1, 2] = 0.5
    with pytest.raises(AssertionError, match=r"out: 1 of 6 .* worst at \(1, 2\): got 0.5"):
        assert_within(got, want, "out")
    got[1, 2] = np.nan
    with pytest.raises(AssertionError, match="got nan"):
        assert_within(got, want)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(got[:1], want)
    got[1, 2] = 1e-3
    assert assert_within(got, want) == pytest.approx(1)


def test_bounds_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="says nothing"):
        SINGLE.g(2**24)


@pytest.mark.parametrize("poison", POISONS)
def test_poison_is_not_a_number_one_computes_with(poison: str) -> None:
    array = poisoned((3, 4), "float32", poison)
    assert array.shape == (3, 4)
    assert not (np.abs(array) < 1e37).any()


TOUCH = """
import numpy as np, sys
from fastneuron.testing import guarded
import ctypes
side, doing = sys.argv[1:3]
source = np.arange(5000, dtype=np.float32)
with guarded(source, side, read_only=doing == "inside") as array:
    assert (array == source).all()
    word = ctypes.c_float.from_address(
        array.ctypes.data + (0 if doing == "inside" else array.nbytes if side == "after" else -4)
    )
    print(array.sum(), flush=True)
    if doing == "read":
        word.value
    elif doing in ("write", "inside"):
        word.value = 1.0
print("survived")
"""


@pytest.mark.skipif(not guards_work(), reason="guard pages need Linux's mprotect")
@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("doing", ["nothing", "read", "write", "inside"])
def test_guard_pages_bite(side: str, doing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, side, doing], capture_output=True, text=True, timeout=60
    )
    if doing == "nothing":
        assert done.returncode == 0, done.stderr
        assert "survived" in done.stdout
    else:
        assert done.returncode == -11, f"{done.returncode}: {done.stdout} {done.stderr}"
        assert "survived" not in done.stdout


@pytest.mark.skipif(not guards_work(), reason="guard pages need Linux's mprotect")
def test_guarded_arrays_keep_dtype_and_shape() -> None:
    for source in (np.zeros((3, 5)), np.zeros((0, 4), np.float32), np.arange(7)):
        for side in ("after", "before"):
            with guarded(source, side) as array:
                assert array.dtype == source.dtype
                assert array.shape == source.shape
                np.testing.assert_array_equal(array, source)
