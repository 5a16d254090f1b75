"""The integer cases of normalisations: that their arithmetic is exact is checked term by term."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastneuron.testing import (
    Precision,
    by_moments,
    by_statistics,
    exact,
    forward,
    generated_norm_cases,
    integer_norm_case,
    scalars_of,
    training_step,
)

SINGLE = Precision.of("float32")


def test_generated_cases_are_reproducible() -> None:
    for one, other in zip(generated_norm_cases(12), generated_norm_cases(12), strict=True):
        assert one.spec == other.spec
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)


def units(array: Any) -> float:
    """The largest power of two that every entry is a whole multiple of."""
    unit = 1.0
    for _ in range(60):
        if (np.rint(array / unit) * unit == array).all():
            return unit
        unit /= 2
    raise AssertionError("no such unit")


def fits(terms: Any, axis: int | None = None) -> None:
    """A sum of these terms, in any order, fused or not, is exact in float32."""
    assert np.abs(terms).sum(axis=axis).max(initial=0) < 2**24 * units(terms)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["batch", "layer", "frozen"])
def test_integer_cases_are_exact_in_float32(kind: str, bias: bool) -> None:
    """Every sum of absolute values is below 2^24 units of the finest number in it."""
    for seed in range(20):
        case = integer_norm_case(kind, seed, bias=bias)
        key = scalars_of(case, 1, seed=seed)[0]
        zs, activations = forward(case.spec, case.parameters, case.x, SINGLE, case.statistics, key)
        want = training_step(
            case.spec, case.loss, case.parameters, case.x, case.y, None, case.statistics, key
        )
        place = 0 if kind == "layer" else 1
        layer, (w, b) = case.spec.layers[place], case.parameters[place]
        x = activations[place].value
        statistics = None if case.statistics is None else case.statistics[place]
        rows: Any = (
            by_statistics(layer, exact(x), statistics, SINGLE)  # type: ignore[arg-type]
            if kind == "frozen"
            else by_moments(layer, exact(x), SINGLE)  # type: ignore[arg-type]
        )
        axis = 1 if kind == "layer" else 0
        inverse = rows.inverse.value
        assert set(np.unique(inverse)) <= {0.5, 0.25}
        np.testing.assert_array_equal(inverse**-2, rows.variance.value + 3)
        c = rows.centred.value
        np.testing.assert_array_equal(c, np.rint(c))
        fits(x, axis)
        fits(c * c, axis)
        last_w, last_b = case.parameters[-1]
        hidden = activations[-2].value
        terms = hidden[:, :, None] * last_w
        fits(np.concatenate([terms, np.broadcast_to(last_b, (16, 1, 4))], 1) if bias else terms, 1)
        out = zs[-1].value
        fits(np.square(out - case.y))
        dout = (out - case.y) / 32
        fits(hidden[:, :, None] * dout[:, None], 0)
        fits(dout, 0)
        fits(dout[:, None] * last_w, 2)
        # dL/dy of the normalisation: through the mask (the rest is doubled) and the relu.
        scale = np.where(hidden > 0, 2.0, 0.0)
        dy = (dout @ last_w.T) * scale
        assert b is None or (b == np.rint(b)).all()
        fits(np.stack([c * inverse * w, 0 * c if b is None else b + 0 * c]), 0)
        g = w * dy
        fits(dy, 0)
        fits(dy * c, 0)
        fits(g * c * inverse, axis)
        if kind != "frozen":
            along = (g * c * inverse).mean(axis=axis, keepdims=True)
            taken = c * inverse * along
            fits(np.stack([g, g.mean(axis=axis, keepdims=True) + 0 * g, taken]), 0)
            np.testing.assert_array_equal(
                want.dx.value @ case.parameters[0][0] if place else want.dx.value,
                inverse * (g - g.mean(axis=axis, keepdims=True) - taken),
            )
        if place:
            dz = want.dx.value @ case.parameters[0][0]  # the permutation's inverse, transposed
            fits(case.x[:, :, None] * dz[:, None], 0)
            fits(dz, 0)
        for pair, grads in zip(case.parameters, want.gradients, strict=True):
            for param, grad in zip(pair, grads, strict=True):
                if param is not None and grad is not None:
                    assert (grad.value.astype(np.float32) == grad.value).all()
                    fits(np.stack([param, grad.value / 8]), 0)


def test_a_bias_that_a_batch_takes_away_is_exactly_without_effect() -> None:
    for seed in range(5):
        case = integer_norm_case("batch", seed)
        want = training_step(case.spec, case.loss, case.parameters, case.x, case.y)
        assert want.gradients[0][1] is not None
        np.testing.assert_array_equal(want.gradients[0][1].value, 0)
